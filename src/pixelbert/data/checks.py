"""Is an image usable? Told from its header and its end, cheaply, or by decoding it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

from pixelbert.data.images import BadImage, ImageLimits, check_image, read_ref
from pixelbert.data.records import ImageRef
from pixelbert.errors import DataError

CHECKS = ("header", "full", "none")
_HEAD, _TAIL = 1 << 16, 1 << 12
_PNG = b"\x89PNG\r\n\x1a\n"
_NOT_SIZE_MARKERS = (0xC4, 0xC8, 0xCC)


class _Bytes:
    """Random access to an image's encoded bytes: a file or a slice of a tar; a URL is read whole."""

    def __init__(self, ref: ImageRef, limits: ImageLimits) -> None:
        self._data = read_ref(ref, limits) if "://" in ref.file else None
        self._file = -1
        self._start = max(ref.offset, 0)
        if self._data is not None:
            self.size = len(self._data)
            return
        try:
            self._file = os.open(ref.file, os.O_RDONLY)
            held = os.fstat(self._file).st_size
        except OSError as error:
            raise BadImage(f"cannot be read ({error.strerror or error})") from error
        self.size = held if ref.offset < 0 else ref.length
        if self._start + self.size > held:
            os.close(self._file)
            raise BadImage(f"ends before byte {self._start + self.size}; the shard is cut off")

    def read(self, start: int, length: int) -> bytes:
        length = max(0, min(length, self.size - start))
        if self._data is not None:
            return self._data[start : start + length]
        return os.pread(self._file, length, self._start + start)

    def __enter__(self) -> _Bytes:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file >= 0:
            os.close(self._file)


def check_header(ref: ImageRef, limits: ImageLimits) -> None:
    """Type, size in pixels and completeness of an image, without decoding JPEG, PNG or WebP.

    A JPEG must have its end marker somewhere after the scan begins (bytes after it are tolerated); one without is
    decoded, which refuses a picture that is cut off. A PNG must have its IEND chunk, a WebP the length that its
    header says. Other types are decoded.
    Raises BadImage with the reason.
    """
    with _Bytes(ref, limits) as data:
        if data.size == 0:
            raise BadImage("is empty")
        limits.check_bytes(data.size)
        head = data.read(0, _HEAD)
        if head[:3] == b"\xff\xd8\xff":
            _check_jpeg(ref, data, head, limits)
        elif head[:8] == _PNG and head[12:16] == b"IHDR":
            _check_png(data, head, limits)
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            _check_webp(ref, data, head, limits)
        else:
            check_image(ref, limits)


def _check_jpeg(ref: ImageRef, data: _Bytes, head: bytes, limits: ImageLimits) -> None:
    size, scan = _jpeg_header(head)
    if not scan and data.size > len(head):  # a large EXIF or colour profile comes first
        head = data.read(0, data.size)
        size, scan = _jpeg_header(head)
    if size is not None:
        limits.check_pixels(*size)
    if size is None or not scan:
        check_image(ref, limits)
        return
    tail = max(scan, data.size - _TAIL)
    if b"\xff\xd9" in data.read(tail, _TAIL):
        return
    if b"\xff\xd9" not in data.read(scan, data.size):
        check_image(ref, limits)


def _jpeg_header(head: bytes) -> tuple[tuple[int, int] | None, int]:
    """((height, width) or None, offset where the scan begins or 0) of a JPEG's first bytes."""
    size, place = None, 2
    while place + 4 <= len(head) and head[place] == 0xFF:
        marker = head[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # these have no length
            place += 2
            continue
        length = int.from_bytes(head[place + 2 : place + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_SIZE_MARKERS and place + 9 <= len(head):
            size = (
                int.from_bytes(head[place + 5 : place + 7], "big"),
                int.from_bytes(head[place + 7 : place + 9], "big"),
            )
        place += 2 + length
        if marker == 0xDA:
            return size, place
    return size, 0


def _check_png(data: _Bytes, head: bytes, limits: ImageLimits) -> None:
    limits.check_pixels(int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big"))
    if b"IEND" not in data.read(max(0, data.size - _TAIL), _TAIL) and b"IEND" not in data.read(0, data.size):
        raise BadImage("is cut off: the PNG has no end")


def _check_webp(ref: ImageRef, data: _Bytes, head: bytes, limits: ImageLimits) -> None:
    from PIL import Image

    if int.from_bytes(head[4:8], "little") + 8 > data.size:
        raise BadImage("is cut off: the WebP is shorter than it says")
    try:
        with Image.open(io.BytesIO(data.read(0, data.size))) as image:
            limits.check_pixels(image.height, image.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadImage(f"is not a readable WebP ({error})") from error


def check_all(refs: Iterable[ImageRef], how: str, limits: ImageLimits, on_done: Callable[[int], None]) -> Iterator[str]:
    """For each image in order: "" when it is usable, else the reason. `how` is "header" or "full"."""

    def reason(ref: ImageRef) -> str:
        try:
            check_header(ref, limits)
            if how == "full":
                check_image(ref, limits)
        except DataError as error:
            return str(error).removeprefix(f"{ref.file}: ").removeprefix(f"{ref.file} at byte {ref.offset}: ")
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        return ""

    # Threads: reading waits for the disk, and the decoders let go of the interpreter.
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        block: list[ImageRef] = []
        for ref in refs:
            block.append(ref)
            if len(block) == 1024:
                yield from pool.map(reason, block)
                on_done(len(block))
                block.clear()
        yield from pool.map(reason, block)
        on_done(len(block))
