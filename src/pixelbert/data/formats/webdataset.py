"""Webdataset tars as img2dataset writes them: 00000.tar with 000000000.jpg, .txt, .json, 000000001.jpg, ...

So Conceptual Captions, SBU, LAION and the like. Files of one key stand together; the caption is the .txt, else the
.json's "caption". Nothing is unpacked: the image's place in the tar is noted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pixelbert.data.files import OnRead, is_url
from pixelbert.data.formats.common import RowError, find_annotations, parse_json, split_of_name
from pixelbert.data.records import BadRow, Example, ImageRef
from pixelbert.data.shards import COMPRESSED_TAR_SUFFIXES, Member, SliceReader, tar_members

PATTERNS = ("*.tar", *(f"*{suffix}" for suffix in COMPRESSED_TAR_SUFFIXES))
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


def locate(source: Path) -> list[Path]:
    """The tars of a folder, in the order of their names."""
    return find_annotations(source, PATTERNS, "webdataset tar")


def read(
    source: Path | str,
    *,
    split: str | None = None,
    label: Path | str | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow]:
    """One example a caption; id and image_id = the key, source = the folder's name.

    The split is `split`, else what the tar's name says ("val-00003.tar"), else none. `label` is the name under
    which the tar is told of, when it was unpacked. Raises DataError when the tar is compressed, damaged or cut off.
    """
    told = Path(str(label or source))
    split = split or split_of_name(told)
    dataset = told.absolute().parent.name if not is_url(str(told)) else str(label or source).split("/")[-2]
    with SliceReader(str(source)) as reader:
        for key, members in itertools.groupby(tar_members(source, on_read), key=lambda m: _key(m.name)):
            place = f"sample {key}"
            try:
                image, texts = _sample(members, reader)
            except RowError as error:
                yield BadRow(str(told), place, str(error), split)
                continue
            ref = ImageRef(
                str(Path(source).absolute()) if not is_url(source) else str(source), image.offset, image.size
            )
            for k, text in enumerate(texts):
                identity = key if len(texts) == 1 else f"{key}#{k}"
                yield Example(identity, split, image.name, key, text, f"{told}: {place}", source=dataset, ref=ref)


def _key(name: str) -> str:
    """The part of a member's path before the first dot of its base name (the webdataset rule)."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _sample(members: Iterable[Member], reader: SliceReader) -> tuple[Member, list[Any]]:
    """The image and the captions of one key's files. Raises RowError when one is missing."""
    parts = {m.name.rpartition("/")[2].partition(".")[2].lower(): m for m in members}
    images = [parts[suffix] for suffix in parts if suffix in IMAGE_SUFFIXES]
    if len(images) > 1:
        raise RowError(f"has several images: {', '.join(m.name for m in images)}")
    if images and "txt" in parts:
        try:
            return images[0], [reader.read(parts["txt"].offset, parts["txt"].size).decode("utf-8-sig")]
        except UnicodeDecodeError as error:
            raise RowError(f"its .txt is not UTF-8 (byte {error.start})") from error
    meta = _meta(parts.get("json"), reader)
    if not images:
        status = meta.get("status")
        raise RowError(f"has no image (status: {status})" if status else "has no image")
    if "caption" not in meta:
        raise RowError("has neither a .txt nor a caption in its .json")
    text = meta["caption"]
    return images[0], text if isinstance(text, list) and text else [text]


def _meta(member: Member | None, reader: SliceReader) -> dict[str, Any]:
    """The .json of a sample, {} when it has none. Raises RowError when it is not valid."""
    if member is None:
        return {}
    try:
        meta = parse_json(reader.read(member.offset, member.size).decode("utf-8-sig"))
    except ValueError as error:
        raise RowError(f"its .json is not valid JSON ({error})") from error
    return meta if isinstance(meta, dict) else {}
