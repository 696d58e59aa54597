"""Ctrl-C and SIGTERM as requests to stop after the step, so that no step is cut in two."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that is empty until somebody asks to stop; a second request stops at once.

    Outside of the main thread, where Python handles no signals, it stays empty.
    """
    asked: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        os.write(2, b"\nstopping after this step and its checkpoint, or between features (once more: at once)\n")

    old = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread
        pass
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
