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

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pixelbert.errors import CheckpointError, MachineError

_STEP = re.compile(r"step-(\d{8})")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path` whole: `fill` writes into a temporary one beside it, which is then renamed.

    Raises MachineError when the disk is full; whatever was at `path` before is then untouched.
    """
    temporary = path.with_name(f".{path.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        _sync(temporary)
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _disk_error(error, path) from error


def write_whole(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a file whole or not at all: `fill` writes a temporary one. Raises MachineError when the disk is full."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        fill(temporary)
        os.replace(temporary, path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        raise _disk_error(error, path) from error


def write_file(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises MachineError when the disk is full."""
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with open(temporary, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _disk_error(error, path) from error


def _disk_error(error: Exception, path: Path) -> Exception:
    """A full disk, in whatever words the writing library told it, as one sentence; other errors as they are."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = str(error)
    if full or "No space left" in text or "enforce fail at" in text or "os error 28" in text:
        return MachineError(f"{path}: the disk is full; free some space, then go on with --resume (nothing was lost)")
    return error


def _sync(folder: Path) -> None:
    """Force a folder's files to the disk before it is renamed."""
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def save_checkpoint(run: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the training state at a step; then drop all but the newest `keep` checkpoints."""
    path = run / "checkpoints" / f"step-{step:08d}"

    def fill(folder: Path) -> None:
        torch.save(state, folder / "state.pt")
        (folder / "sha256").write_text(_digest(folder / "state.pt"))

    write_folder(path, fill)
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folder = run / "checkpoints"
    return sorted(p for p in folder.iterdir() if _STEP.fullmatch(p.name)) if folder.is_dir() else []


def load_checkpoint(run: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest checkpoint that can be read: (step, state); None when the run has none.

    Raises CheckpointError when the newest is damaged and no older one is whole.
    """
    found = checkpoints(run)
    for path in reversed(found):
        try:
            if (path / "sha256").read_text() != _digest(path / "state.pt"):
                raise ValueError("its checksum differs")
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except Exception:
            continue
        return int(_STEP.fullmatch(path.name)[1]), state  # type: ignore[index]
    if found:
        raise CheckpointError(f"{found[-1]}: damaged, and there is no older checkpoint to go back to")
    return None


def load_state(module: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put weights into a module. Raises CheckpointError when they are of another shape."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
        raise CheckpointError(f"{path}: a checkpoint of another shape: {first}") from error


def _digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(handle)


def _slow(handle: Any) -> str:
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class MetricsFile:
    """`metrics.jsonl`: one line a step or validation. On resume, lines after the checkpoint's step are dropped.

    Each line gets `seconds`: the run's time so far, over all its parts, without the steps that a resume does again.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.before, self.begun = 0.0, time.monotonic()
        lines = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    if row["step"] <= step:
                        lines.append(line)
                        self.before = row.get("seconds", self.before)
                except (ValueError, KeyError):
                    continue  # cut off by a kill
        write_file(path, "".join(line + "\n" for line in lines))

    def write(self, **values: Any) -> None:
        """Append a line; raises MachineError on a full disk."""
        values["seconds"] = round(self.before + time.monotonic() - self.begun, 2)
        try:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(values) + "\n")
        except OSError as error:
            raise _disk_error(error, self.path) from error

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
