"""Opening files: local or URL, plain or gzipped, with the bytes counted for progress."""

from __future__ import annotations

import gzip
import io
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from pixelbert.errors import DataError, MachineError, UsageError

OnRead = Callable[[int], None]


def is_url(name: str | Path) -> bool:
    """True for s3://..., https://... and the like."""
    return re.match(r"^[a-zA-Z][a-zA-Z0-9+.-]+://", str(name)) is not None


def file_size(path: str) -> int:
    """In bytes; -1 of a file that is not there, such as an image that was not looked for."""
    try:
        return os.path.getsize(path)
    except OSError:
        return -1


def file_in_the_way(path: Path) -> Path | None:
    """What stands as a file where a folder above `path` would have to be."""
    return next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None)


_PICTURES = frozenset({".jpg", ".jpeg", ".gif", ".webp", ".tif", ".tiff", ".bmp", ".svg", ".pdf", ".avif"})


def check_picture(path: Path) -> None:
    """`check_output` for a PNG: its name does not say that it is another kind of picture."""
    if path.suffix.lower() in _PICTURES:
        raise UsageError(f"{path}: what is written is PNG; give a name that ends in .png")
    check_output(path)


def check_output(path: Path) -> None:
    """Before any work: a file can be written there. Raises UsageError, MachineError."""
    if path.is_dir():  # also an empty name: the folder one stands in
        raise UsageError(f"{path}: is a folder; give a file to write")
    if in_the_way := file_in_the_way(path):
        raise UsageError(f"{path}: {in_the_way} is a file, not a folder")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise MachineError(f"{above}: cannot be written to")


class _Source(io.RawIOBase):
    """A file that counts the bytes taken from the disk and turns a damaged gzip stream into a DataError."""

    def __init__(self, name: str, raw: IO[bytes], on_read: OnRead | None) -> None:
        self._name = name
        self._raw = raw
        self._on_read = on_read
        self._told = 0
        start = raw.read(2)
        raw.seek(0)
        self._stream: Any = gzip.GzipFile(fileobj=raw) if start == b"\x1f\x8b" else raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except EOFError as error:
            raise DataError(f"{self._name}: the gzip file is cut off at byte {self._raw.tell()}") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self._name}: the gzip file is damaged near byte {self._raw.tell()} ({error})") from error
        except OSError as error:
            raise DataError(f"{self._name}: cannot be read ({error.strerror or error})") from error
        buffer[: len(data)] = data
        if self._on_read is not None:
            position = self._raw.tell()
            self._on_read(position - self._told)
            self._told = position
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


def open_raw(source: Path | str) -> IO[bytes]:
    """A local file or URL, to read and seek in. Raises DataError when it is missing or cannot be opened."""
    name = str(source)
    try:
        if is_url(name):
            import fsspec

            handle: IO[bytes] = fsspec.open(name, "rb").open()
            return handle
        return open(name, "rb")
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file") from error
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{name}: cannot be opened ({getattr(error, 'strerror', None) or error})") from error


def open_bytes(source: Path | str, on_read: OnRead | None = None) -> io.BufferedReader:
    """The bytes of a local file or URL, unpacked when gzipped (told by content, not by name).

    `on_read` is called with the number of bytes taken from the file as reading goes on, for progress.
    Raises DataError when the file is missing, unreadable, or its gzip stream is damaged.
    """
    return io.BufferedReader(_Source(str(source), open_raw(source), on_read), 1 << 18)
