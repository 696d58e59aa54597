"""Saving and finding the state of a run: written whole or not at all, checked when read.

A run folder:

    RUN/recipe.yaml  run.json           every choice; data fingerprint, versions, weight reports
    RUN/model.safetensors config.json … the best model with its processor: what `from_pretrained` loads
    RUN/last/                           the last model, the same way
    RUN/checkpoints/step-00000123/      model and optimizers at a step, to resume from
    RUN/metrics.jsonl  report.html      one line a step and a validation; the report
    RUN/validation/                     per-record files of the last validation
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from pixelbert.errors import CheckpointError
from pixelbert.training.files import disk_full, is_disk_full, read_lines, sync_file, write_file, write_folder

_STEP = re.compile(r"step-(\d{8})")


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the training state at a step; then drop all but the newest `keep`, and any of later steps.

    Those of later steps were damaged, or the run would have gone on from them. Raises MachineError on a full disk.
    """
    path = checkpoint_path(run, step)

    def fill(folder: Path) -> None:
        torch.save(state, folder / "state.pt")
        (folder / "sha256").write_text(_digest(folder / "state.pt"))

    write_folder(path, fill)
    found = checkpoints(run)
    place = found.index(path)
    for other in found[: max(0, place + 1 - keep)] + found[place + 1 :]:
        shutil.rmtree(other, ignore_errors=True)
    return path


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    return sorted(p for p in folder.iterdir() if _STEP.fullmatch(p.name)) if folder.is_dir() else []


def load_checkpoint(run: Path, note: Callable[[str], None] | None = None) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint that can be read: (step, state); None when the run has none.

    note: told of each damaged one that is passed over. Raises CheckpointError when none can be read.
    """
    found = checkpoints(run)
    for path in reversed(found):
        try:
            if (path / "sha256").read_text() != _digest(path / "state.pt"):
                raise ValueError("its checksum differs")
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:
            if note is not None:
                note(f"{path}: damaged ({_first_line(error)}); looking for an older checkpoint")
            continue
        return int(path.name.removeprefix("step-")), state
    if found:
        raise CheckpointError(f"{found[-1]}: damaged, and there is no older checkpoint to go back to")
    return None


def restore(
    run: Path, step: int, state: dict[str, Any], model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> float | None:
    """Put a checkpoint's state into model and optimizers; returns the best value so far.

    Raises CheckpointError when it is of another shape.
    """
    path = checkpoint_path(run, step)
    try:
        model.load_state_dict(state["model"])
        for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
            _check_state(optimizer)
        best: float | None = state["best"]
        if best is not None and not isinstance(best, (int, float)):
            raise TypeError(f"its best value is {best!r}")
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[1][:200] if len(lines) > 1 else _first_line(error)
        raise CheckpointError(f"{path}: a checkpoint of another shape: {reason}") from error
    return best


def _check_state(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError where a weight's state has another shape: the step itself would not look, and crash."""
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != weight.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, its weight {tuple(weight.shape)}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class MetricsFile:
    """`metrics.jsonl`: one line a step or validation. On resume, lines after the checkpoint's step are dropped.

    Each line gets `seconds`: the run's time so far, over all its parts, without the steps that a resume does again.
    `writes` is False on all processes but the main one.
    """

    def __init__(self, path: Path, step: int, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        rows = [row for row in self.rows() if isinstance(row.get("step"), int)]
        kept = [row for row in rows if row["step"] <= step]
        self.before, self.begun = float(kept[-1].get("seconds", 0.0)) if kept else 0.0, time.monotonic()
        if writes:
            write_file(path, "".join(json.dumps(row) + "\n" for row in kept))

    def write(self, **values: Any) -> None:
        """Append a line; raises MachineError on a full disk."""
        if not self.writes:
            return
        values["seconds"] = round(self.before + time.monotonic() - self.begun, 2)
        try:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(values) + "\n")
        except OSError as error:
            if is_disk_full(error):
                raise disk_full(self.path) from error
            raise

    def sync(self) -> None:
        """Force the lines to the disk: a checkpoint must not outlive them."""
        sync_file(self.path)

    def rows(self) -> list[dict[str, Any]]:
        """All lines; one that a kill or a full disk cut off is left out."""
        return read_lines(self.path)

    def last_figures(self) -> dict[str, float]:
        """Those of the last validation, {} when there was none."""
        return last_figures(self.path)


def last_figures(path: Path) -> dict[str, float]:
    """The figures of the last validation in a `metrics.jsonl`, {} when there was none."""
    return next((row["figures"] for row in reversed(read_lines(path)) if row.get("kind") == "validation"), {})
