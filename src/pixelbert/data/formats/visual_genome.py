"""Visual Genome's region descriptions, with the filter that keeps photos of the test sets out.

Krishna et al., "Visual Genome", IJCV 2017. `region_descriptions.json` (v1.2): a list of `{"id", "regions":
[{"region_id", "image_id", "phrase", ...}]}`; in v1.0 a region calls its ids "id" and "image". `image_data.json`: a
list of `{"image_id", "url", "coco_id", "flickr_id", ...}`; the photo lies in the folder that `url` ends with
(VG_100K or VG_100K_2).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pixelbert.data.files import OnRead
from pixelbert.data.formats.common import as_id, find_annotations, json_items
from pixelbert.data.formats.exclusion import Exclusions
from pixelbert.data.records import BadRow, Example, Excluded
from pixelbert.errors import DataError

# In this order: v1.2 before v1.0, of which a folder may hold both.
PATTERNS = (
    "region_descriptions.json",
    "region_descriptions.json.gz",
    "region_descriptions*.json",
    "region_descriptions*.json.gz",
)


class _Photo(NamedTuple):
    name: str
    excluded: str  # the reason, "" when it may stay


def locate(source: Path) -> list[Path]:
    """The region file of a folder; v1.2 when both versions are there, since they hold the same regions."""
    found = find_annotations(source, PATTERNS, "Visual Genome region file")
    return sorted(found, key=lambda path: (path.name not in PATTERNS, "v1.0" in path.name, path.name))[:1]


def read(
    source: Path,
    *,
    split: str | None = None,
    exclude: Exclusions | None = None,
    image_data: Path | str | None = None,
    notes: list[str] | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow | Excluded]:
    """One example a region; id = the region's, image = the last two parts of the photo's `url`. An image without any
    is a bad row.

    Photos that an exclusion list names by COCO id, Flickr id or own id are left out whatever the split.
    `image_data` defaults to the file of that name beside `source`. Raises DataError when a file is missing or
    damaged.
    """
    photos, from_coco, from_flickr = _photos(_image_data(source, image_data), exclude)
    if notes is not None:
        if from_coco and not (exclude and exclude.coco_ids):
            notes.append(f"{from_coco:,} Visual Genome photos are COCO photos, and no list of COCO val and test photos"
                         " was given to leave out: --exclude dataset_coco.json")  # fmt: skip
        if from_flickr and not (exclude and exclude.flickr_ids):
            notes.append(f"{from_flickr:,} Visual Genome photos have a Flickr id, and no list of Flickr30K photos was"
                         " given to leave out: --exclude dataset_flickr30k.json")  # fmt: skip
    split = split or ""
    number = -1
    for number, image in enumerate(json_items(source, "item", on_read)):
        regions = image.get("regions") if isinstance(image, dict) else None
        if not isinstance(regions, list):
            yield BadRow(str(source), f"image {number}", "has no list of 'regions'", split)
            continue
        image_id = as_id(image.get("id", image.get("image_id")))
        yield from _regions(source, number, image_id, regions, photos, split)
        photo = photos.get(image_id)
        if not regions and not (photo and photo.excluded):
            told = f"'{photo.name}'" if photo else f"image '{image_id}'"
            yield BadRow(str(source), f"image {number}", f"{told} has no region", split, captionless=True)
    if number < 0:
        raise DataError(f"{source}: is no list of images; is it a Visual Genome region file?")


def _regions(
    source: Path, number: int, image_id: str, regions: list[Any], photos: dict[str, _Photo], split: str
) -> Iterator[Example | BadRow | Excluded]:
    left_out: dict[str, int] = {}
    for k, region in enumerate(regions):
        place = f"image {number}, region {k}"
        if not isinstance(region, dict):
            yield BadRow(str(source), place, f"an object was expected, found {type(region).__name__}", split)
            continue
        own_image = as_id(region.get("image_id", region.get("image"))) or image_id
        photo = photos.get(own_image)
        if photo is None:
            yield BadRow(str(source), place, f"image '{own_image}' is not in image_data.json", split)
        elif photo.excluded:
            left_out[photo.excluded] = left_out.get(photo.excluded, 0) + 1
        else:
            identity = as_id(region.get("region_id", region.get("id"))) or f"{own_image}#{k}"
            phrase: Any = region.get("phrase")
            yield Example(identity, split, photo.name, own_image, phrase, f"{source}: {place}", source="visual_genome")
    for reason, rows in left_out.items():
        yield Excluded(reason, rows)


def _image_data(source: Path, given: Path | str | None) -> Path:
    if given is not None:
        return Path(given)
    folder = Path(source).parent
    for place in (folder, folder.parent):
        for name in ("image_data.json", "image_data.json.gz"):
            if (place / name).is_file():
                return place / name
    raise DataError(f"{folder / 'image_data.json'}: no such file; it says where the photos of {Path(source).name} lie")


def _photos(path: Path, exclude: Exclusions | None) -> tuple[dict[str, _Photo], int, int]:
    """({image id: photo}, number of photos with a COCO id, number with a Flickr id)."""
    photos: dict[str, _Photo] = {}
    from_coco = from_flickr = 0
    for number, image in enumerate(json_items(path, "item")):
        identity = as_id(image.get("image_id", image.get("id"))) if isinstance(image, dict) else ""
        if not identity:
            raise DataError(f"{path}: image {number} has no 'image_id'")
        coco, flickr = as_id(image.get("coco_id")), as_id(image.get("flickr_id"))
        from_coco += bool(coco)
        from_flickr += bool(flickr)
        url = image.get("url")
        name = "/".join(url.split("/")[-2:]) if isinstance(url, str) and "/" in url else f"{identity}.jpg"
        reason = exclude.reason(coco_id=coco, flickr_id=flickr, image_id=identity) if exclude else ""
        before = photos.get(identity)
        if before is None or not before.excluded:  # of one listed twice, either entry may say why it stays out
            photos[identity] = _Photo(name, reason)
    if not photos:
        raise DataError(f"{path}: names no image; is it Visual Genome's image_data.json?")
    return photos, from_coco, from_flickr
