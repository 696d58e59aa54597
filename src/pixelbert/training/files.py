"""Files and folders written whole or not at all, whatever happens meanwhile; a full disk as one clear error."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixelbert.errors import MachineError


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path` whole: `fill` writes into a temporary one beside it, which is then renamed.

    Raises MachineError when the disk is full; whatever was at `path` before is then untouched.
    """
    temporary, old = _beside(path, "writing"), _beside(path, "old")
    shutil.rmtree(temporary, ignore_errors=True)
    with _whole_or_not(path, temporary):
        temporary.mkdir(parents=True)
        fill(temporary)
        _sync(temporary)
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync_file(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a file whole or not at all: `fill` writes a temporary one. Raises MachineError when the disk is full."""
    temporary = _beside(path, "writing")
    with _whole_or_not(path, temporary):
        fill(temporary)
        sync_file(temporary)
        os.replace(temporary, path)


def check_writable(path: Path) -> None:
    """Before hours of work: its folder is there, or made, and takes files. Raises MachineError when it does not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = _beside(path, "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MachineError(f"{path.parent}: cannot be written to ({error.strerror or error})") from error


def write_file(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises MachineError when the disk is full."""

    def fill(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)

    write_whole(path, fill)


def take_from_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Replace the file `path` by the one of that name that `fill` writes into a temporary folder, in one step.

    Raises MachineError when the disk is full; the old file is then untouched.
    """
    temporary = _beside(path, "writing")
    shutil.rmtree(temporary, ignore_errors=True)
    with _whole_or_not(path, temporary):
        temporary.mkdir(parents=True)
        fill(temporary)
        _sync(temporary)
        os.replace(temporary / path.name, path)
    shutil.rmtree(temporary, ignore_errors=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The mappings of a JSON-lines file; a line cut off by a kill is left out, a missing file is empty."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def clean_leftovers(folder: Path) -> None:
    """Remove what interrupted writes left in a folder; put back what was about to be replaced."""
    for path in folder.glob(".*.writing"):
        _remove(path)
    for path in folder.glob(".*.old"):
        name = path.name[1 : -len(".old")]
        if (folder / name).exists():
            _remove(path)
        else:
            path.rename(folder / name)


def _beside(path: Path, why: str) -> Path:
    return path.with_name(f".{path.name}.{why}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _whole_or_not(path: Path, temporary: Path) -> Iterator[None]:
    """Take away the temporary file or folder when writing fails; a full disk becomes MachineError."""
    try:
        yield
    except BaseException as error:
        _remove(temporary)
        if not path.exists() and _beside(path, "old").exists():
            _beside(path, "old").rename(path)
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk or the quota is full, in whatever words the writing library told it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error).lower()
    words = (
        "no space left",
        "os error 28",
        "disk quota exceeded",
        "file write failed",
        "fail at inline_container",
    )
    return any(word in text for word in words)


def disk_full(path: Path) -> MachineError:
    """The error to raise then."""
    return MachineError(
        f"{path}: the disk is full; free some space, then give the command again (train with --resume where a"
        " checkpoint stands: earlier ones are whole)"
    )


def _sync(folder: Path) -> None:
    """Force a folder's files to the disk before it is renamed."""
    for path in [*folder.rglob("*"), folder]:
        sync_file(path)


def sync_file(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
