"""A folder that is written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pixelbert.data.files import file_in_the_way
from pixelbert.errors import MachineError, UsageError

try:
    import fcntl
except ImportError:  # Windows: there a stale folder cannot be told from one in use, and stays
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"
_SECONDS_TO_LOCK = 60.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(out: Path, *, overwrite: bool, marker: str) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends without an error.

    Killed at any moment, what lies at `out` is the old folder or nothing; the leftover has a hidden name and is
    removed by the next run for the same `out`. Only a folder holding `marker` (or an empty one) is ever replaced.

    Raises UsageError when `out` exists and may not be replaced, MachineError when the disk is full or refuses.
    """
    out = Path(os.path.abspath(out))
    _check_target(out, overwrite, marker)
    with machine_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out, marker)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.tmp-", dir=out.parent))
        lock = _lock(temporary)
    try:
        with machine_errors(out):
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            _sync_folder(temporary)
            _check_target(out, overwrite, marker)  # another run may have finished meanwhile
            _put_in_place(temporary, out)
            (out / _LOCK).unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


@contextmanager
def machine_errors(out: Path) -> Iterator[None]:
    """A full disk or a lack of memory while writing `out`, as a MachineError saying what to change."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise MachineError(
                f"{out}: the disk is full ({error.strerror or error}); nothing was left there: free space or choose"
                " another --out"
            ) from error
        raise MachineError(f"{out}: cannot be written ({error.strerror or error}: {error.filename or out})") from error
    except MemoryError as error:
        raise MachineError(f"{out}: out of memory while preparing; nothing was left there") from error


def _check_target(out: Path, overwrite: bool, marker: str) -> None:
    if in_the_way := file_in_the_way(out):
        raise UsageError(f"{out}: {in_the_way} is a file, not a folder; choose another --out")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: exists and is not a folder; choose another --out")
    if not any(out.iterdir()):
        return
    if not (out / marker).is_file():
        raise UsageError(f"{out}: exists and is not a prepared folder; choose another --out")
    if not overwrite:
        raise UsageError(f"{out}: exists; give --overwrite to replace it")


def _lock(folder: Path) -> int:
    """Held as long as this process lives, so that others can tell a leftover from work in progress."""
    handle = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _remove_stale(out: Path, marker: str) -> None:
    """What killed runs left beside `out`."""
    if fcntl is None:
        return
    for old in sorted(out.parent.glob(f".{out.name}.old-*")):
        # Killed between the two renames below: the old folder is the good one.
        if not out.exists() and (old / marker).is_file():
            old.rename(out)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for folder in sorted(out.parent.glob(f".{out.name}.tmp-*")):
        try:
            handle = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:  # no lock file: an old folder that was replaced, or one made a moment ago
            with suppress(OSError):
                if time.time() - folder.stat().st_mtime > _SECONDS_TO_LOCK:
                    shutil.rmtree(folder, ignore_errors=True)
            continue
        with suppress(OSError):  # in use by a running process
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _put_in_place(temporary: Path, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        if out.is_dir():
            out.rmdir()
        os.rename(temporary, out)
    elif not _exchange(temporary, out):
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old-", dir=out.parent))
        os.rename(out, old)
        os.rename(temporary, out)
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(out.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step, where the system can (Linux renameat2). False when it cannot."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    at_cwd, exchange = -100, 2
    return int(function(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange)) == 0


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
