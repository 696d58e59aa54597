"""Where images lie: in folders, in tar shards, locally or at a URL; and writing shards of our own.

A tar shard is read in place: its members' offsets are noted once, and an image is one seek and one read after
that. That needs an uncompressed tar.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pixelbert.data.files import OnRead, is_url, open_raw
from pixelbert.data.records import ImageRef
from pixelbert.errors import DataError

TAR_SUFFIXES = (".tar",)
COMPRESSED_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}
# A folder that the user did not name (it is only where the annotation file lies) is not searched deeper than this.
_GUESSED_DEPTH = 3
_NUMBERED = re.compile(r"(?<!\d)(\d{12})\.(?:jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)


def is_tar(name: str | Path) -> bool:
    """Told by the file name: .tar, or a compressed tar."""
    return str(name).lower().endswith(TAR_SUFFIXES + COMPRESSED_TAR_SUFFIXES)


class ImageNotFound(DataError):
    """An image is nowhere, or in two places."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside a tar: its name and where its bytes begin."""

    name: str
    offset: int
    size: int


def tar_members(path: Path | str, on_read: OnRead | None = None) -> Iterator[Member]:
    """The regular files of an uncompressed tar (local or URL), in order; hard links point to what they link to.

    Raises DataError when the tar is missing, compressed, damaged or cut off.
    """
    name = str(path)
    with open_raw(name) as stream:
        start = stream.read(2)
        stream.seek(0, os.SEEK_END)
        size = stream.tell()
        stream.seek(0)
        if start in _MAGIC:
            raise DataError(
                f"{name}: a {_MAGIC[start]}-compressed tar cannot be read in place; unpack it to a plain .tar first"
            )
        seen: dict[str, Member] = {}
        told = 0
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                # in an empty tar the place after the first header is 0, and Python 3.10 would seek before it
                while tar.offset and (info := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined] # tarfile keeps every header otherwise
                    member = _member(info, seen)
                    if member is not None:
                        if member.offset + member.size > size:
                            raise DataError(f"{name}: the tar is cut off inside '{info.name}' (byte {size})")
                        seen[member.name] = member
                        yield member
                    if on_read is not None:
                        on_read(tar.offset - told)
                        told = tar.offset
                stream.seek(tar.offset)
                if stream.read(512).strip(b"\0"):  # tarfile takes a damaged header for the end
                    raise DataError(f"{name}: the tar is damaged at byte {tar.offset}")
        except tarfile.TarError as error:
            raise DataError(f"{name}: not a readable tar, damaged or cut off ({error})") from error
        if on_read is not None:
            on_read(size - told)


def _member(info: tarfile.TarInfo, seen: dict[str, Member]) -> Member | None:
    name = str(PurePosixPath(info.name))
    if info.islnk() and info.linkname in seen:
        target = seen[info.linkname]
        return Member(name, target.offset, target.size)
    if not info.isreg() or info.issparse():
        return None
    return Member(name, info.offset_data, info.size)


class SliceReader:
    """Reads slices of one file (local or URL), opened once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stream = open_raw(name)

    def read(self, offset: int, size: int) -> bytes:
        """Raises DataError when the file ends before."""
        self._stream.seek(offset)
        data = self._stream.read(size)
        if len(data) != size:
            raise DataError(f"{self._name}: ends before byte {offset + size}; the tar is cut off")
        return data

    def __enter__(self) -> SliceReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


class Unpacker:
    """Makes plain tars of compressed ones in a folder of its own, each once; plain ones are left where they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, str] = {}

    def plain(self, name: str) -> str:
        """The path of a plain tar with the content of `name`.

        Raises DataError when it is damaged or packed with something other than gzip, bzip2 or xz.
        """
        if name not in self._done:
            self._done[name] = self._unpack(name)
        return self._done[name]

    def _unpack(self, name: str) -> str:
        with open_raw(name) as stream:
            packing = _MAGIC.get(stream.read(2), "")
            stream.seek(0)
            if not packing:
                return name
            if packing == "zstd":
                raise DataError(f"{name}: a zstd-compressed tar; unpack it to a plain .tar first")
            opener: Any = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}[packing]
            self.folder.mkdir(exist_ok=True)
            stem = re.sub(r"\.(tar|tgz|tbz2|txz)?(\.\w+)?$", "", name.rpartition("/")[2])
            target = self.folder / f"{len(self._done):05d}-{stem}.tar"
            with open(target, "wb") as out:
                self._copy(name, opener(stream), out)
                out.flush()
                os.fsync(out.fileno())
        return str(target)

    @staticmethod
    def _copy(name: str, packed: IO[bytes], out: IO[bytes]) -> None:
        while True:
            try:
                block = packed.read(1 << 20)
            except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError) as error:
                raise DataError(f"{name}: the compressed tar is damaged or cut off ({error})") from error
            if not block:
                return
            out.write(block)


@dataclass
class _Found:
    """Everything below the roots: {relative name: places}, and {basename: relative names}."""

    files: dict[str, list[ImageRef]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    unpacker: Unpacker | None = None

    @cached_property
    def numbers(self) -> dict[int, list[str]]:
        """{number: relative names} of the images whose name ends with twelve digits, as all of COCO's do."""
        numbers: dict[int, list[str]] = {}
        for name in self.files:
            match = _NUMBERED.search(name)
            if match:
                numbers.setdefault(int(match[1]), []).append(name)
        return numbers

    def add_tar(self, path: str) -> None:
        path = self.unpacker.plain(path) if self.unpacker else path
        for member in tar_members(path):
            self.add(member.name, ImageRef(path, member.offset, member.size))

    def add(self, name: str, ref: ImageRef) -> None:
        places = self.files.setdefault(name, [])
        if not places:
            self.names.setdefault(name.rpartition("/")[2], []).append(name)
        places.append(ref)


class ImageFinder:
    """Finds an image by the name that an annotation file gives it.

    Looked up in this order; within a step two different places are an error that names both:
    1. a file at that path below a root folder (or at that absolute path or URL);
    2. a member of that name in a tar shard (a root, or lying in a root folder);
    3. a file or member whose path ends with the name;
    4. a file or member with the same base name;
    5. when a number is given too: an image whose name ends with it in twelve digits.

    `roots` are folders, tars or URLs of either; `guessed` are folders to look in when the roots have nothing (where
    the annotation file lies), searched three levels deep. A compressed tar is a DataError unless there is an
    `unpacker`. Finders that share a `cache` list the same roots once.
    """

    def __init__(
        self,
        roots: Iterable[Path | str],
        guessed: Iterable[Path | str] = (),
        *,
        unpacker: Unpacker | None = None,
        cache: dict[tuple[str, ...], _Found] | None = None,
    ) -> None:
        self.roots = [str(root) for root in roots]
        self.guessed = [g for g in (str(root) for root in guessed) if g not in self.roots]
        self._unpacker = unpacker
        self._cache = {} if cache is None else cache
        for root in self.roots:
            if not is_url(root) and not os.path.exists(root):
                raise DataError(f"{root}: no such image folder or tar")
            if not is_url(root) and not os.path.isdir(root) and not is_tar(root):
                raise DataError(f"{root}: not a folder nor a .tar of images")

    def __str__(self) -> str:
        return ", ".join(self.roots + self.guessed) or "no folder"

    def find(self, name: str, number: int | None = None) -> ImageRef:
        """Where the image lies. Raises ImageNotFound when it is nowhere, or in two places."""
        if is_url(name):
            return ImageRef(name)
        clean = name.replace("\\", "/") if "\\" in name and not os.path.exists(name) else name
        if os.path.isabs(clean):
            if os.path.isfile(clean):
                return ImageRef(clean)
            raise ImageNotFound(f"image '{name}' does not exist")
        clean = os.path.normpath(clean).replace(os.sep, "/")
        for roots, is_guess in ((self.roots, False), (self.guessed, True)):
            if not roots:
                continue
            places = self._in_folders(clean, roots) or self._in_index(clean, roots, is_guess, number)
            if len(places) > 1:
                told = " and ".join(_told(place) for place in places[:2])
                raise ImageNotFound(f"image '{name}' is ambiguous: {told}")
            if places:
                return places[0]
        raise ImageNotFound(f"image '{name}' not found in {self}")

    @staticmethod
    def _in_folders(name: str, roots: list[str]) -> list[ImageRef]:
        found: dict[str, ImageRef] = {}
        for root in roots:
            if is_url(root):
                continue
            path = os.path.normpath(os.path.join(root, name))
            if os.path.isfile(path):
                found.setdefault(os.path.realpath(path), ImageRef(os.path.abspath(path)))
        return list(found.values())

    def _in_index(self, name: str, roots: list[str], is_guess: bool, number: int | None) -> list[ImageRef]:
        key = (str(is_guess), *roots)
        if key not in self._cache:
            self._cache[key] = _index(roots, _GUESSED_DEPTH if is_guess else None, self._unpacker)
        index = self._cache[key]
        if name in index.files:
            return index.files[name]
        same_base = index.names.get(name.rpartition("/")[2], [])
        ends = [n for n in same_base if n.endswith("/" + name)]
        numbered = [] if number is None else index.numbers.get(number, [])
        return [ref for n in (ends or same_base or numbered) for ref in index.files[n]]


def _told(ref: ImageRef) -> str:
    return ref.file if ref.offset < 0 else f"{ref.file} at byte {ref.offset}"


def _index(roots: list[str], depth: int | None, unpacker: Unpacker | None) -> _Found:
    found = _Found(unpacker=unpacker)
    seen: set[str] = set()
    for root in roots:
        if is_url(root):
            _index_url(found, root)
        elif os.path.isdir(root):
            for folder, name, path in _walk(root, depth):
                real = os.path.realpath(path)
                if real in seen:
                    continue
                seen.add(real)
                if is_tar(name):
                    found.add_tar(os.path.abspath(path))
                else:
                    found.add(f"{folder}/{name}" if folder else name, ImageRef(os.path.abspath(path)))
        elif os.path.exists(root):
            real = os.path.realpath(root)
            if real not in seen:
                seen.add(real)
                found.add_tar(os.path.abspath(root))
    return found


def _walk(root: str, depth: int | None) -> Iterator[tuple[str, str, str]]:
    """(folder relative to the root, file name, path), sorted, hidden names left out."""
    visited: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add(real)
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        relative = "" if relative == "." else relative
        level = relative.count("/") + 1 if relative else 0
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if depth is None or level < depth else []
        for name in sorted(files):
            if not name.startswith("."):
                yield relative, name, os.path.join(folder, name)


def _index_url(found: _Found, root: str) -> None:
    if is_tar(root):
        found.add_tar(root)
        return
    import fsspec

    try:
        system, base = fsspec.core.url_to_fs(root)
        paths = sorted(system.find(base))
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"{root}: cannot be listed ({error})") from error
    for path in paths:
        url = system.unstrip_protocol(path)
        if is_tar(path):
            found.add_tar(url)
        else:
            found.add(path[len(base) :].lstrip("/"), ImageRef(url))


def image_suffix(data: bytes) -> str:
    """The file suffix of an image's type, told by its first bytes; "" for a type unknown here."""
    if data[8:12] == b"WEBP":
        return ".webp"
    starts = {
        b"\xff\xd8": ".jpg",
        b"\x89PNG": ".png",
        b"GIF8": ".gif",
        b"BM": ".bmp",
        b"II*\0": ".tif",
        b"MM\0*": ".tif",
    }
    return next((suffix for start, suffix in starts.items() if data.startswith(start)), "")


class ShardWriter:
    """Writes images one after another into tar shards `{prefix}-00000.tar` of at most 1,000 images or 1 GB.

    The bytes written depend on the images alone (no times, no owner), so the same input gives the same shards.
    """

    def __init__(self, folder: Path, prefix: str, max_images: int = 1000, max_bytes: int = 10**9) -> None:
        self.folder = folder
        self.prefix = prefix
        self.max_images = max_images
        self.max_bytes = max_bytes
        self.shards = 0
        self._images = 0
        self._stream: IO[bytes] | None = None
        self._tar: tarfile.TarFile | None = None

    def add(self, name: str, data: bytes) -> ImageRef:
        """Append an image; the answer's `file` is the path of the shard."""
        full = self._tar is not None and (
            self._images >= self.max_images or self._tar.offset + len(data) > self.max_bytes
        )
        if full:
            self.close()
        if self._tar is None:
            self._start()
        tar, stream = self._tar, self._stream
        assert tar is not None and stream is not None
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        start = tar.offset
        tar.addfile(info, io.BytesIO(data))
        header = len(info.tobuf(tar.format, tar.encoding or "utf-8", tar.errors or "surrogateescape"))
        self._images += 1
        return ImageRef(stream.name, start + header, len(data))

    def _start(self) -> None:
        path = self.folder / f"{self.prefix}-{self.shards:05d}.tar"
        self._stream = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._tar = tarfile.open(fileobj=self._stream, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self.shards += 1
        self._images = 0

    def close(self) -> None:
        """Finish the current shard and flush it to the disk."""
        if self._tar is None or self._stream is None:
            return
        self._tar.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._tar = self._stream = None
