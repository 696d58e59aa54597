"""What a person sees while a run goes on: rate, share of time spent waiting for data, time left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from rich.console import Console

from pixelbert.data.records import SPLIT_ALIASES, TEST_SPLITS

if TYPE_CHECKING:
    from pathlib import Path

    from pixelbert.data.batches import Records
    from pixelbert.training.plan import RunPlan

_OFTEN = 100  # each record seen so often: the paper's own runs see theirs 40 times at the most
_LOSSES = ("loss", "mlm", "itm", "contrastive", "align", "tags", "text_mlm")


def note(text: str) -> None:
    """A line on stderr."""
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def announcement(plan: RunPlan, data: Path, train: Records, val: Records, first: int) -> str:
    """What a run is about to do: records, steps, how often each record is seen, what is held out."""
    recipe, times = plan.recipe, plan.pairs / max(1, train.num_records)
    told = (
        f"{recipe.name or 'the recipe'} on {data}: {train.num_records:,} records of {train.num_images:,} images, "
        f"held out ({recipe.data.val_split}) {val.num_records:,} of {val.num_images:,}\n"
        f"{plan.pairs:,} records in {plan.steps:,} steps of {plan.batch_size}: "
        + (f"each is seen about {times:,.1f} times" if times >= 0.1 else f"one of {1 / times:,.0f} is seen")
    )
    if times > _OFTEN:
        told += f"\n{times:,.0f} times is a lot for so few records: schedule.epochs=20 would see each 20 times"
    if SPLIT_ALIASES.get(recipe.data.val_split, recipe.data.val_split) in TEST_SPLITS and recipe.validation.times > 1:
        told += f"\nthe best model is chosen on split '{recipe.data.val_split}': what it scores there is no test of it"
    if first >= plan.steps:
        return f"{told}\nall {plan.steps:,} steps are done: nothing is left to do"
    return f"{told}\ngoing on after step {first:,}" if first else told


class StepProgress:
    """Prints a line now and then on stderr: often on a terminal, rarely in a log file, never when `quiet`."""

    def __init__(self, first: int, steps: int, pairs_per_step: int, every: int, quiet: bool = False) -> None:
        self.first, self.steps, self.pairs, self.every = first, steps, pairs_per_step, max(1, every)
        self.console = Console(stderr=True, highlight=False, quiet=quiet)
        self.seconds = 15.0 if sys.stderr.isatty() else 60.0
        self.begun = self.shown = time.monotonic()
        self.waited = self.aside = 0.0  # seconds spent waiting for data, and outside of training (validation, saving)

    def rate(self, done: int) -> float:
        """Pairs a second since the start or resume, validation and saving aside."""
        return (done - self.first) * self.pairs / max(1e-9, time.monotonic() - self.begun - self.aside)

    def wait_share(self) -> float:
        """Share of the training time spent waiting for data."""
        return self.waited / max(1e-9, time.monotonic() - self.begun - self.aside)

    def step(self, done: int, values: dict[str, float]) -> None:
        """`done` steps are done."""
        now = time.monotonic()
        if done < self.steps and (now - self.shown < self.seconds or done % self.every):
            return
        self.shown = now
        left = (self.steps - done) * (now - self.begun) / max(1, done - self.first)
        losses = "  ".join(f"{name} {values[name]:.3f}" for name in _LOSSES if name in values)
        self.console.print(
            f"step {done:,}/{self.steps:,}  {losses}  {self.rate(done):.0f} pairs/s  "
            f"waiting {self.wait_share():.0%}  left {clock(left)}",
            soft_wrap=True,
        )


class PairProgress:
    """Progress of scoring, a line now and then: what, how much, rate, time left.

    A count that starts again, such as the features of a later phase, begins a new clock; one that goes on where it was
    stopped counts only what is done since.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.seconds = 5.0 if sys.stderr.isatty() else 60.0
        self.what, self.begun, self.shown = "", 0.0, 0.0
        self.first = self.last = 0  # done when the clock began, and last time

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self.what or done <= self.last:
            self.what, self.begun, self.shown, self.first = what, now, now, done
        elif now - self.shown >= self.seconds:
            self.shown = now
            rate = (done - self.first) / (now - self.begun)
            self.console.print(f"{what}: {done:,}/{total:,}  {rate:.0f} a second  left {clock((total - done) / rate)}")
        self.last = done


def clock(seconds: float) -> str:
    """1:02:03, or 2:03 under an hour."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
