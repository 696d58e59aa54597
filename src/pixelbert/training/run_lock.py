"""One training at a time in a run folder.

The folder itself is locked: filelock, which `map_store` uses, would leave its file in the run, and make it before one
knows that the folder may be used at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pixelbert.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None  # type: ignore[assignment]

_held: set[int] = set()


def _leave_to_parent() -> None:
    """A forked loader worker lets go of the lock: it would outlive a killed training and keep it from going on."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


@contextmanager
def sole_training(run: Path, wanted: bool = True) -> Iterator[None]:
    """Hold the run folder, made when it is not there, until the block ends or the process does, however it dies.

    A folder that was made for the lock and stayed empty goes again. Where the file system locks no folders nothing is
    held, and nothing done when not `wanted`. Raises UsageError when another training holds it.
    """
    if not wanted or fcntl is None or run.is_file():
        yield
        return
    made = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    handle = os.open(run, os.O_RDONLY)
    try:
        _lock(handle, run)
        _held.add(handle)
        yield
    finally:
        _held.discard(handle)
        os.close(handle)
        if made:
            with suppress(OSError):
                run.rmdir()


def _lock(handle: int, run: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"{run}: another training is writing here; wait until it ends, or stop it") from error
    except OSError:  # some network file systems have no such lock
        return
