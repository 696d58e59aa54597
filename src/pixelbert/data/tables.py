"""From the spooled rows to the two tables of each split."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pixelbert.data.records import IMAGES_SCHEMA, RECORDS_SCHEMA, ImageRef
from pixelbert.data.spool import Spool

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WrittenSplit:
    """What was written of a split: counts, the digest of its tables, {source: (images, records)}, and a digest of where
    the images lie, which the first leaves out."""

    images: int
    records: int
    digest: str
    sources: dict[str, tuple[int, int]]
    places: str = ""


def write_split(
    folder: Path,
    spool: Spool,
    rows: Ints,
    image_ids: Sequence[str],
    place_image: Callable[[int, int], ImageRef],
) -> WrittenSplit:
    """Write images.arrow and records.arrow of one split.

    `rows` are the split's good rows of the spool; an image's number there indexes `image_ids`. `place_image(image,
    row)` says what to note as the image's place, `row` being its row in images.arrow (so it may copy it into a
    shard). Images stand in the order in which the rows first name them, records in image order.
    """
    folder.mkdir()
    image, image2 = spool.numbers("image")[rows], spool.numbers("image2")[rows]
    used = _first_seen(image, image2)
    local = np.full(len(image_ids) + 1, -1, dtype=np.int64)  # the last entry answers for -1, no image
    local[used] = np.arange(len(used))
    image, image2 = local[image], local[image2]
    order = np.argsort(image, kind="stable")
    rows, image, image2 = rows[order], image[order], image2[order]

    columns: dict[str, pa.Array] = {"image": pa.array(image), "image2": pa.array(image2)}
    for name in ("id", "text", "target", "source"):
        columns[name] = spool.take(name, rows)
    records = pa.RecordBatch.from_arrays([columns[n] for n in RECORDS_SCHEMA.names], schema=RECORDS_SCHEMA)
    refs = [place_image(int(g), row) for row, g in enumerate(used)]
    images = pa.RecordBatch.from_arrays(
        [
            pa.array([image_ids[g] for g in used], pa.large_string()),
            pa.array([ref.file for ref in refs], pa.large_string()),
            pa.array([ref.offset for ref in refs], pa.int64()),
            pa.array([ref.length if ref.offset >= 0 else -1 for ref in refs], pa.int64()),
            pa.array(np.searchsorted(image, np.arange(len(used)))),
        ],
        schema=IMAGES_SCHEMA,
    )
    write_batch(folder / "records.arrow", records)
    write_batch(folder / "images.arrow", images)
    sizes = pa.array([ref.length for ref in refs], pa.int64())  # other pictures of the same names are other data
    sources = _by_source(columns["source"], image, image2)
    places = hashlib.sha256("\n".join(ref.file for ref in refs).encode()).hexdigest()
    return WrittenSplit(len(used), len(rows), _digest(images, records, sizes), sources, places)


def _first_seen(image: Ints, image2: Ints) -> Ints:
    """The distinct images (-1 left out) in the order of their first row."""
    both = np.stack([image, image2], axis=1).ravel()
    values, first = np.unique(both, return_index=True)
    ordered: Ints = values[np.argsort(first)]
    return ordered[ordered >= 0]


def write_batch(path: Path, batch: pa.RecordBatch) -> None:
    """One record batch, uncompressed, so that it can be memory-mapped; on the disk when this returns."""
    with open(path, "wb") as stream:
        with pa.ipc.new_file(stream, batch.schema) as writer:
            writer.write_batch(batch)
        stream.flush()
        os.fsync(stream.fileno())


def _digest(images: pa.RecordBatch, records: pa.RecordBatch, sizes: pa.Array) -> str:
    """sha256 of what the tables say, and of the images' sizes in bytes. Of an image's file only the base name counts:
    moving the photos is no change."""
    digest = hashlib.sha256()
    files = images.column("file").to_pylist()
    names = pa.array([os.path.basename(f) for f in files], pa.large_string())
    for column in [names, *(images.column(n) for n in images.schema.names if n != "file"), sizes, *records.columns]:
        if pa.types.is_large_string(column.type):
            ends = np.frombuffer(column.buffers()[1], np.int64, len(column) + 1, column.offset * 8)
            digest.update(np.diff(ends).tobytes())
            if len(column):
                digest.update(memoryview(column.buffers()[2] or b"")[ends[0] : ends[-1]])
        else:
            digest.update(np.ascontiguousarray(column.to_numpy()).tobytes())
    return digest.hexdigest()


def _by_source(source: pa.Array, image: Ints, image2: Ints) -> dict[str, tuple[int, int]]:
    """{source: (distinct images, records)}."""
    encoded: Any = source.dictionary_encode()
    codes = encoded.indices.to_numpy()
    names = encoded.dictionary.to_pylist()
    records = Counter(dict(enumerate(np.bincount(codes, minlength=len(names)).tolist())))

    def images(code: int) -> int:
        used = np.union1d(image[codes == code], image2[codes == code])
        return int(np.count_nonzero(used >= 0))

    return {
        name: (images(code), records[code]) for code, name in sorted(enumerate(names), key=lambda pair: str(pair[1]))
    }
