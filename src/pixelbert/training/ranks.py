"""Processes that train together: accelerate's launcher and wrapper, sums over all of them, a lost one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from pixelbert.errors import TrainingStopped, UsageError, nearest
from pixelbert.training.progress import note

# The main process validates and saves while the others wait for it.
_PATIENCE = dt.timedelta(hours=2)
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "socket")


def make_accelerator(trackers: Sequence[str], run: Path) -> Accelerator:
    """accelerate's view of this process, its device and the others. Raises UsageError for an unknown tracker.

    Precision is the recipe's business (model/precision.py), not that of accelerate's own settings.
    """
    known, installed = sorted(map(str, LOGGER_TYPE_TO_CLASS)), set(map(str, get_available_trackers()))
    for name in trackers:
        if name not in known:
            raise UsageError(f"train.trackers: no tracker '{name}'; {nearest(name, known)}")
    accelerator = Accelerator(
        mixed_precision="no",
        log_with=[name for name in trackers if name in installed] or None,
        project_dir=str(run),
        kwargs_handlers=[
            # a phase may leave out a loss, or freeze what an earlier one trained
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=_PATIENCE),
        ],
    )
    missing = [name for name in trackers if name not in installed]
    if missing and accelerator.is_main_process:
        note(f"nothing is logged to {', '.join(missing)}: not installed")
    return accelerator


def sum_over_ranks(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """Each value summed over all processes; every process must bring the same names."""
    if accelerator.num_processes == 1:
        return values
    mine = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(values, accelerator.reduce(mine, "sum").tolist(), strict=True))


@contextmanager
def lost_ranks(accelerator: Accelerator) -> Iterator[None]:
    """An error that says another process is gone becomes TrainingStopped."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if accelerator.num_processes == 1 or not any(word in text for word in _LOST):
            raise
        raise TrainingStopped(
            f"process {accelerator.process_index}: another process of this run was lost; go on with --resume"
        ) from error
