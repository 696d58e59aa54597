"""Progress of long inputs on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """`with Progress("reading", total, "B") as progress: progress.advance(n)`; rate and time left are shown."""

    def __init__(self, title: str, total: float, unit: str) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = 0.0
        self._start = self._told = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from rich import progress as bars
            from rich.console import Console

            amount = bars.DownloadColumn() if unit == "B" else bars.MofNCompleteColumn()
            rate = bars.TransferSpeedColumn() if unit == "B" else bars.TextColumn("{task.fields[rate]}")
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"), bars.BarColumn(), amount, rate, bars.TimeRemainingColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(title, total=total or None, rate="")

    def advance(self, amount: float) -> None:
        """Count `amount` more as done."""
        self.done += amount
        if self._bar is not None:
            rate = self.done / max(time.monotonic() - self._start, 1e-9)
            self._bar.update(self._task, completed=self.done, rate=f"{rate:.0f} {self.unit}/s")
        elif time.monotonic() - self._told > _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            print(self.line(self._told - self._start), file=sys.stderr, flush=True)

    def line(self, seconds: float) -> str:
        """'reading: 40 % of 700 MB, 9.3 MB/s, 45 s left' after `seconds`."""
        scale, unit = (1e6, "MB") if self.unit == "B" else (1.0, self.unit)
        rate = self.done / max(seconds, 1e-9)
        share = f"{100 * self.done / self.total:.0f} % of {self.total / scale:.0f} {unit}" if self.total else ""
        left = f", {max(self.total - self.done, 0) / rate:.0f} s left" if self.total and rate else ""
        return f"{self.title}: {share or f'{self.done / scale:.0f} {unit}'}, {rate / scale:.1f} {unit}/s{left}"

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
