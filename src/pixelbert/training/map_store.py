"""Feature maps of images on disk, each of its own size, in one file that grows: what is there is not computed again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from pixelbert.training.files import is_disk_full

_PLACE = 4  # numbers that say where a map lies
_VALUE = np.dtype(np.float16)


class MapStore:
    """Maps [h, w, C] float16 of the images 0, 1, 2, ... of some data.

    FOLDER/maps.bin    the values of all maps, one after the other
    FOLDER/places.bin  int64 [images, 4]: of each map its first value's place, h, w and C; written after the map itself

    A process that is killed leaves whole maps and at most a piece of one, which `appending` takes away.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._maps, self._placed = folder / "maps.bin", folder / "places.bin"
        self._values = np.empty(0, dtype=_VALUE)
        self.places = self._read_places()

    def __len__(self) -> int:
        return len(self.places)

    @property
    def bytes(self) -> int:
        """What the maps take on disk."""
        ends = self.places[:, 0] + self.places[:, 1:].prod(axis=1)
        return int(ends.max(initial=0)) * _VALUE.itemsize

    def _read_places(self) -> np.ndarray:
        """Of whole maps only: a place whose map did not reach the disk does not count."""
        if not (self._maps.exists() and self._placed.exists()):
            return np.empty((0, _PLACE), dtype=np.int64)
        places = np.fromfile(self._placed, dtype=np.int64)
        places = places[: len(places) // _PLACE * _PLACE].reshape(-1, _PLACE)
        there = places[:, 0] + places[:, 1:].prod(axis=1) <= self._maps.stat().st_size // _VALUE.itemsize
        return places[: len(there) if there.all() else int(there.argmin())]

    @contextmanager
    def appending(self, announce: Callable[[str], None]) -> Iterator[None]:
        """While this process alone appends; another one that wants to waits, says so, and finds what the first left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            announce(f"{self.folder}: another process computes these features; waiting for it")
            lock.acquire()
        try:
            self.places = self._read_places()
            for path, size in ((self._maps, self.bytes), (self._placed, self.places.nbytes)):
                path.touch()
                os.truncate(path, size)
            yield
        finally:
            lock.release()

    def append(self, maps: Sequence[np.ndarray | int]) -> None:
        """The maps of the next images; a number is an image whose map this one's equals. Inside `appending` only.

        Raises OSError when the disk is full, and then the maps of before are whole.
        """
        known, end = len(self.places), self.bytes // _VALUE.itemsize
        new, values = np.empty((len(maps), _PLACE), dtype=np.int64), []
        for i, one in enumerate(maps):
            if isinstance(one, int):
                new[i] = self.places[one] if one < known else new[one - known]
                continue
            new[i] = end, *one.shape
            values.append(np.ascontiguousarray(one, dtype=_VALUE))
            end += one.size
        _append(self._maps, values)
        _append(self._placed, [new])
        self.places = np.concatenate([self.places, new])

    def read(self, images: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float16 [I, h, w, C], padded with zeros on the right and at the bottom; bool [I, h, w], True in an image."""
        if len(self._values) * _VALUE.itemsize < self.bytes:
            self._values = np.memmap(self._maps, dtype=_VALUE, mode="r")
        places = self.places[images]
        height, width, channels = places[:, 1:].max(axis=0)
        maps = np.zeros((len(places), height, width, channels), dtype=_VALUE)
        mask = np.zeros((len(places), height, width), dtype=bool)
        for i, (start, h, w, c) in enumerate(places.tolist()):
            maps[i, :h, :w] = self._values[start : start + h * w * c].reshape(h, w, c)
            mask[i, :h, :w] = True
        return maps, mask


def _append(path: Path, arrays: Sequence[np.ndarray]) -> None:
    """Add to a file and force it to the disk; when that fails, the file is as before."""
    size = path.stat().st_size
    try:
        with open(path, "ab") as handle:
            for array in arrays:
                handle.write(array.data)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        if is_disk_full(error):
            os.truncate(path, size)
        raise
