"""One exception class per exit code of the command line.

A function raises the class that says whose turn it is to act: the person at the keyboard (`UsageError`), the
owner of the data (`DataError`), and so on. The message is one clear sentence that names the file and the record;
the command line prints it alone, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PixelBertError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class UsageError(PixelBertError):
    """The command, recipe or option is wrong (exit code 2)."""

    exit_code = 2


class DataError(PixelBertError):
    """The user's data is wrong: the message names file, row and reason (exit code 3)."""

    exit_code = 3


class TrainingStopped(PixelBertError):
    """Training stopped itself: a loss that is not finite, a lost rank (exit code 4)."""

    exit_code = 4


class CheckpointError(PixelBertError):
    """A checkpoint or run folder is damaged, of another shape or of a newer format (exit code 5)."""

    exit_code = 5


class MachineError(PixelBertError):
    """The machine refused: disk full, out of memory; the message says what to change (exit code 6)."""

    exit_code = 6


def nearest(name: str, valid: Iterable[str]) -> str:
    """The words "did you mean 'x'?" for the valid name closest to `name`, else the list of valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid names: {', '.join(names)}"
