"""The official COCO captions: captions_train2014.json, captions_val2014.json, the 2017 ones, and others of that shape.

Chen et al., "Microsoft COCO Captions", 2015. One object: `{"images": [{"id", "file_name", "flickr_url"}],
"annotations": [{"id", "image_id", "caption"}]}`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pixelbert.data.files import OnRead
from pixelbert.data.formats.common import as_id, find_annotations, json_items, split_of_name
from pixelbert.data.formats.exclusion import Exclusions, flickr_id_of_url
from pixelbert.data.records import BadRow, Example, Excluded
from pixelbert.errors import DataError

PATTERNS = ("captions_*.json", "captions_*.json.gz")


class _Photo(NamedTuple):
    number: int  # its place in the list of images
    name: str
    excluded: str  # the reason, "" when it may stay


def locate(source: Path) -> list[Path]:
    """The caption files of a folder (train and val have a file each)."""
    return find_annotations(source, PATTERNS, "COCO captions file")


def read(
    source: Path,
    *,
    split: str | None = None,
    exclude: Exclusions | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow | Excluded]:
    """One example a caption; id = the annotation's, image = file_name. An image without any is a bad row.

    The split is `split`, else what the file name says ("captions_val2014.json": val). `exclude` drops photos from
    train and restval only. Raises DataError when the file is damaged or holds no captions.
    """
    split = split or split_of_name(source)
    guarded = split in ("", "train", "restval")
    photos, bad = _photos(source, split, exclude if guarded else None)
    yield from bad
    captioned: set[str] = set()
    left_out: Counter[str] = Counter()
    number = -1
    for number, caption in enumerate(json_items(source, "annotations.item", on_read)):
        place = f"annotation {number}"
        if not isinstance(caption, dict):
            yield BadRow(str(source), place, f"an object was expected, found {type(caption).__name__}", split)
            continue
        if "caption" not in caption and "category_id" in caption:
            raise DataError(f"{source}: holds objects, not captions (an 'instances' file?)")
        image = as_id(caption.get("image_id"))
        photo = photos.get(image)
        captioned.add(image)
        if photo is None:
            yield BadRow(str(source), place, f"image_id '{image}' is not in the file's list of images", split)
        elif photo.excluded:
            left_out[image] += 1
        else:
            identity = as_id(caption.get("id")) or f"{Path(source).name}#{number}"
            where = f"{source}: {place}"
            text: Any = caption.get("caption")
            yield Example(identity, split, photo.name, image, text, where, source="coco")
    if number < 0:
        raise DataError(f"{source}: has no 'annotations'; is it a COCO captions file?")
    for image, photo in photos.items():
        if image not in captioned and not photo.excluded:
            yield BadRow(
                str(source), f"image {photo.number}", f"'{photo.name}' has no caption", split, captionless=True
            )
    for image, rows in left_out.items():
        yield Excluded(photos[image].excluded, rows)


def _photos(source: Path, split: str, exclude: Exclusions | None) -> tuple[dict[str, _Photo], list[BadRow]]:
    photos: dict[str, _Photo] = {}
    bad: list[BadRow] = []
    for number, image in enumerate(json_items(source, "images.item")):
        name = image.get("file_name") if isinstance(image, dict) else None
        identity = as_id(image.get("id")) if isinstance(image, dict) else ""
        if not isinstance(name, str) or not name or not identity:
            bad.append(BadRow(str(source), f"image {number}", "has no 'id' or no 'file_name'", split))
            continue
        reason = ""
        if exclude:
            flickr = flickr_id_of_url(image.get("flickr_url"))
            reason = exclude.reason(coco_id=identity, flickr_id=flickr, image_id=identity)
        if identity in photos and photos[identity].name != name:
            reason = f"id '{identity}' is repeated with another file_name"
            bad.append(BadRow(str(source), f"image {number}", reason, split))
            continue
        photos[identity] = _Photo(number, name, reason)
    if not photos:
        raise DataError(f"{source}: has no 'images' list; is it a COCO captions file?")
    return photos, bad
