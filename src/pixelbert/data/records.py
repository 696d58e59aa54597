"""Prepared data: what `pixelbert prepare` writes and everything else reads.

A prepared folder holds one folder per split, each with two Arrow tables that are memory-mapped, so that millions
of records open at once and all loader workers share the same pages:

    DATA/prepared.json            format, task, counts, sources, notes, fingerprint
    DATA/bad_rows.jsonl           every row that was left out: file, place, reason
    DATA/{split}/images.arrow     image_id, file, offset, length, first_record  (one row an image)
    DATA/{split}/records.arrow    id, image, image2, text, target, source       (one row a record, sorted by image)

`file` is relative to DATA when it lies inside it (so a folder with its own shards can be moved), else an absolute
path or a URL. `offset` is -1 when the file is the image itself; else the image is `length` bytes at `offset` of a
tar shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pixelbert.data.files import is_url, open_raw
from pixelbert.errors import DataError, nearest

FORMAT_VERSION = 1

_ROWS_AT_ONCE = 1 << 14
SPLITS = ("train", "restval", "val", "test", "test-dev", "test-std")
TEST_SPLITS = ("test", "test-dev", "test-std")  # only these may lack answers and labels
SPLIT_ALIASES = {
    "dev": "val", "valid": "val", "validation": "val", "test1": "test", "test2": "test-std",
    "test-standard": "test-std",
}  # fmt: skip

IMAGES_SCHEMA = pa.schema(
    [
        ("image_id", pa.large_string()),
        ("file", pa.large_string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("first_record", pa.int64()),
    ]
)
RECORDS_SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("image", pa.int64()),
        ("image2", pa.int64()),  # -1 when the record has one image
        ("text", pa.large_string()),
        ("target", pa.large_string()),  # JSON, empty when the task needs none
        ("source", pa.large_string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Example:
    """One training example as a reader yields it, before its image was looked for."""

    id: str
    split: str
    image: str  # the image's name as the annotation file gives it
    image_id: str  # what makes two examples share an image
    text: str
    where: str  # "captions.json: annotation 17", for messages
    image2: str | None = None
    target: Mapping[str, Any] | None = None
    source: str = ""
    image_number: int | None = None  # the image may also be any file whose name ends with these twelve digits
    ref: ImageRef | None = None  # where the image lies, when the reader knows (tar shards, prepared data)
    ref2: ImageRef | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    file: str
    place: str  # "line 12", "annotation 17"
    reason: str
    split: str = ""  # as far as its file tells
    captionless: bool = False  # an image of pairs without any text: it could be ranked, but nothing is true of it


@dataclass(frozen=True, slots=True)
class Excluded:
    """A photo left out on purpose, by an exclusion list, with the number of rows that went with it."""

    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image's bytes lie: a whole file (offset -1) or a slice of a tar shard; path or URL."""

    file: str
    offset: int = -1
    length: int = -1

    def read(self) -> bytes:
        """The encoded bytes. Raises DataError naming the file when they cannot be read whole."""
        with open_raw(self.file) as handle:
            try:
                if self.offset < 0:
                    return handle.read()
                handle.seek(self.offset)
                data = handle.read(self.length)
            except OSError as error:
                raise DataError(f"{self.file}: cannot be read ({error.strerror or error})") from error
        if len(data) != self.length:
            raise DataError(f"{self.file}: ends before byte {self.offset + self.length}; the shard is cut off")
        return data


class Split:
    """One split of prepared data, memory-mapped. Cheap to pickle: a worker opens the same pages again.

    folder: where the two tables lie. base: what the images' relative paths start from, a folder or URL; without it
    the folder above.
    """

    def __init__(self, folder: Path | str, base: str | None = None) -> None:
        self.folder = Path(folder)
        self.base = base or str(self.folder.parent)
        self._images = _open(self.folder / "images.arrow", IMAGES_SCHEMA)
        self._records = _open(self.folder / "records.arrow", RECORDS_SCHEMA)

    def __reduce__(self) -> tuple[type[Split], tuple[Path, str]]:
        return Split, (self.folder, self.base)

    @property
    def num_images(self) -> int:
        return self._images.num_rows

    @property
    def num_records(self) -> int:
        return self._records.num_rows

    @cached_property
    def image_of(self) -> np.ndarray:
        """int64 [records]: the image row of each record, without a copy."""
        return self._records.column("image").to_numpy(zero_copy_only=True)

    @cached_property
    def first_record(self) -> np.ndarray:
        """int64 [images]: the first record of each image; its last is the next image's first, minus one."""
        return self._images.column("first_record").to_numpy(zero_copy_only=True)

    def records_of(self, image: int) -> range:
        """The records of an image."""
        end = self.first_record[image + 1] if image + 1 < self.num_images else self.num_records
        return range(int(self.first_record[image]), int(end))

    def text(self, record: int) -> str:
        return self._records.column("text")[record].as_py()

    def record_id(self, record: int) -> str:
        return self._records.column("id")[record].as_py()

    def source(self, record: int) -> str:
        return self._records.column("source")[record].as_py()

    def target(self, record: int) -> dict[str, Any]:
        """The record's labels, {} when it has none."""
        text = self._records.column("target")[record].as_py()
        return json.loads(text) if text else {}

    def second_image(self, record: int) -> int:
        """The row of the record's second image, -1 when it has one image."""
        return self._records.column("image2")[record].as_py()

    def image_id(self, image: int) -> str:
        return self._images.column("image_id")[image].as_py()

    def image(self, image: int) -> ImageRef:
        """Where the image's bytes lie."""
        file = self._images.column("file")[image].as_py()
        if "://" not in file and not os.path.isabs(file):
            file = f"{self.base}/{file}"
        return ImageRef(
            file, self._images.column("offset")[image].as_py(), self._images.column("length")[image].as_py()
        )

    def image_places(self) -> list[tuple[str, int]]:
        """Where every image lies: file and offset. Of a copy in shards of one's own, which each split has, what it is
        called and its length.
        """
        names = ("file", "offset", "image_id", "length")
        rows = zip(*(self._images.column(name).to_pylist() for name in names), strict=True)
        return [
            (file, offset) if "://" in file or os.path.isabs(file) else (name, length)
            for file, offset, name, length in rows
        ]

    def rows_of_photo(self, image: int) -> tuple[int, ...]:
        """The image's row alone: no photo stands twice in a split."""
        return (image,)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every record in order, as {"id", "image", "image2", "text", "target", "source"}; `target` still JSON."""
        for start in range(0, self.num_records, _ROWS_AT_ONCE):
            yield from self._records.slice(start, _ROWS_AT_ONCE).to_pylist()


def _open(path: Path, schema: pa.Schema) -> pa.RecordBatch:
    """The single record batch of an Arrow file, memory-mapped."""
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if reader.num_record_batches == 0:
                return pa.RecordBatch.from_pylist([], schema=schema)
            batch = reader.get_batch(0)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not readable as prepared data ({error}); run pixelbert prepare again") from error
    if batch.schema.names != schema.names:
        raise DataError(f"{path}: has columns {batch.schema.names}, expected {schema.names}")
    return batch


class PreparedData:
    """A prepared folder: its description and its splits."""

    def __init__(self, folder: Path | str) -> None:
        self.location = str(folder).rstrip("/") if is_url(folder) else str(Path(folder))
        self.folder = Path(folder)
        path = f"{self.location}/prepared.json"
        if not is_url(path) and not os.path.isfile(path):
            raise DataError(f"{folder}: not a prepared folder (no prepared.json); run pixelbert prepare")
        try:
            with open_raw(path) as stream:
                self.info: dict[str, Any] = json.loads(stream.read())
            version, _ = self.info["format"], (self.info["task"], self.info["fingerprint"])
            for name, value, kind in (
                ("format", version, int), ("splits", self.info["splits"], dict),
                ("bad_rows", self.info.get("bad_rows", {}), dict),
            ):  # fmt: skip
                if not isinstance(value, kind):
                    raise TypeError(f"{name} is {value!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: damaged ({error}); run pixelbert prepare again") from error
        if version > FORMAT_VERSION:
            raise DataError(f"{path}: written by a newer pixelbert (format {version}); update pixelbert")
        if is_url(path):
            self.folder = _cached_tables(self.location, self.info)

    @property
    def task(self) -> str:
        """pairs, vqa (questions), nlvr2 (statements about two images) or nlvr (about one)."""
        return self.info["task"]

    @property
    def fingerprint(self) -> str:
        return self.info["fingerprint"]

    def split(self, name: str) -> Split:
        """A split by its name or another word for it (dev is val, test1 is test).

        Raises DataError when there is no such split, with the nearest name.
        """
        own = self.own_name(name)
        if own not in self.info["splits"]:
            raise DataError(f"{self.folder}: no split '{name}'; {nearest(name, self.info['splits'])}")
        return Split(self.folder / own, self.location)

    def own_name(self, name: str) -> str:
        """The name of the split that is called so; `name` itself where there is none."""
        meant = [name, SPLIT_ALIASES.get(name, name)]
        # VQA's server takes the answers to test2015, which are prepared as test, for test-standard.
        if meant[1] == "test-std" and "vqa" in self.info["splits"].get("test", {}).get("sources", {}):
            meant.append("test")
        return next((n for n in meant if n in self.info["splits"]), name)


def _cached_tables(location: str, info: Mapping[str, Any]) -> Path:
    """Prepared data at a URL: its tables are copied once to the user's cache, because a URL cannot be mapped.

    The images stay where they are. `XDG_CACHE_HOME` moves the cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pixelbert"
    told = json.dumps(info, sort_keys=True)  # with where the images lie: prepared again elsewhere, these are others
    folder = cache / f"{info['fingerprint'][:24]}-{hashlib.sha256(f'{location} {told}'.encode()).hexdigest()[:8]}"
    for split in info["splits"]:
        (folder / split).mkdir(parents=True, exist_ok=True)
        for table in ("images.arrow", "records.arrow"):
            target = folder / split / table
            if not target.exists():
                partial = target.with_name(f".{table}.{os.getpid()}")
                with open_raw(f"{location}/{split}/{table}") as source, open(partial, "wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                os.replace(partial, target)
    return folder
