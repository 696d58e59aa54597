"""The rows of a data set while it is being prepared: on disk, so that millions of them cost little memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pixelbert.data.records import BadRow

_BATCH = 1 << 16
_SCHEMA = pa.schema(
    [
        ("split", pa.int8()),
        ("image", pa.int64()),
        ("image2", pa.int64()),
        ("key", pa.int64()),  # hash of scope and id, to find candidates for duplicates
        ("id", pa.large_string()),
        ("text", pa.large_string()),
        ("target", pa.large_string()),
        ("source", pa.large_string()),
        ("file", pa.int32()),
        ("place", pa.large_string()),
    ]
)


class Spool:
    """Append rows, then read them back as memory-mapped columns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, int] = {}
        self._rows: list[tuple[object, ...]] = []
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, _SCHEMA)
        self._table: pa.Table | None = None

    def add(
        self, split: int, image: int, image2: int, scope: str, identity: str, text: str, target: str, source: str,
        where: str,
    ) -> None:  # fmt: skip
        """Append one row. `where` is "file: place"."""
        file, _, place = where.rpartition(": ")
        code = self._files.setdefault(file, len(self._files))
        self._rows.append((split, image, image2, hash((scope, identity)), identity, text, target, source, code, place))
        if len(self._rows) >= _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
            self._writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
            self._rows.clear()

    def close(self) -> None:
        """Let go of the file, finished or not."""
        self._table = None
        if not self._sink.closed:
            self._sink.close()

    def finish(self) -> None:
        """Stop writing; the rows can be read now."""
        self._flush()
        self._writer.close()
        self._sink.close()
        self._table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()

    def numbers(self, name: str) -> npt.NDArray[np.int64]:
        """A whole integer column."""
        assert self._table is not None
        return np.asarray(self._table.column(name).to_numpy())

    def take(self, name: str, rows: npt.NDArray[np.int64]) -> pa.Array:
        """Some rows of a column, in the order asked for, as one array."""
        assert self._table is not None
        taken = pc.take(self._table.column(name), pa.array(rows))
        if isinstance(taken, pa.ChunkedArray):
            taken = taken.combine_chunks()
        if isinstance(taken, pa.ChunkedArray):  # no chunk at all
            taken = pa.array([], type=_SCHEMA.field(name).type)
        return taken

    def value(self, name: str, row: int) -> str:
        """One text value."""
        assert self._table is not None
        return str(self._table.column(name)[row].as_py())

    def where(self, row: int) -> tuple[str, str]:
        """(file, place) of a row."""
        assert self._table is not None
        file = list(self._files)[self._table.column("file")[row].as_py()]
        return file, self.value("place", row)

    def bad(self, row: int, reason: str) -> BadRow:
        """This row as a bad one."""
        file, place = self.where(row)
        return BadRow(file, place, reason)

    def duplicates(self, rows: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
        """(repeated row, first row) for every row of `rows` whose scope and id an earlier one has."""
        keys = self.numbers("key")[rows]
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        out: list[tuple[int, int]] = []
        first_of: dict[tuple[int, str], int] = {}
        for place in same:
            earlier, later = int(rows[order[place]]), int(rows[order[place + 1]])
            # Two ids may share a hash, by chance once in 10^12: the id itself decides.
            key = int(keys[order[place]])
            first_of.setdefault((key, self.value("id", earlier)), earlier)
            first = first_of.setdefault((key, self.value("id", later)), later)
            if first != later:
                out.append((later, first))
        return sorted(out)
