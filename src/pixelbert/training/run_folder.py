"""The run folder: what a run starts from, and what it leaves behind, complete and movable."""

from __future__ import annotations

import datetime as dt
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

import pixelbert
from pixelbert.data.records import PreparedData
from pixelbert.errors import CheckpointError, DataError, UsageError
from pixelbert.model.modeling import PixelBertPreTrainedModel
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks import calibration
from pixelbert.tasks.run import RUN_FORMAT, answers_digest, vocabulary_digest, whole_recipe
from pixelbert.tasks.task import Outcome
from pixelbert.training.checkpoint import checkpoints
from pixelbert.training.files import clean_leftovers, take_from_folder, write_file, write_folder
from pixelbert.training.history import before
from pixelbert.training.setup import Parts

# Settings that may differ when a run goes on: they change no number.
_FREE = (
    "name", "description", "paper", "needs", "command", "expected", "train.save_minutes", "train.save_steps",
    "train.keep_checkpoints", "train.log_steps", "train.trackers", "train.features_folder", "data.workers",
)  # fmt: skip


@dataclass
class RunFolder:
    """An opened run folder: its start is written once, when processor and model are known."""

    path: Path
    recipe: Recipe
    prepared: PreparedData
    writes: bool  # nothing to write when the run goes on, nor on any process but the main one
    from_run: Path | None = None
    overrides: tuple[str, ...] = ()  # as they were given, for whoever resumes

    def write(self, parts: Parts) -> None:
        """run.json first, recipe.yaml last: a folder with a recipe.yaml is a run."""
        if not self.writes:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        run = {
            "format": RUN_FORMAT,
            "task": self.recipe.task,
            "recipe": self.recipe.name,
            "data": {"fingerprint": self.prepared.fingerprint, "folder": self.prepared.folder.name,
                     "location": self.prepared.location},
            "from": str(self.from_run) if self.from_run else None,
            "before": before(self.from_run),
            "kept_out": parts.calibration.num_images if parts.calibration is not None else 0,
            "overrides": list(self.overrides),
            "answers": answers_digest(parts.model.config),
            "vocabulary": vocabulary_digest(parts.processor),
            "weights": parts.reports,
            "versions": {"pixelbert": pixelbert.__version__, "torch": torch.__version__,
                         "transformers": transformers.__version__, "python": platform.python_version()},
            "started": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        }  # fmt: skip
        write_file(self.path / "run.json", json.dumps(run, indent=2, default=str) + "\n")
        parts.processor.save_pretrained(self.path)
        parts.model.config.architectures = [type(parts.model).__name__]
        take_from_folder(self.path / "config.json", parts.model.config.save_pretrained)
        write_file(self.path / "recipe.yaml", yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))


def open_run(
    path: Path,
    recipe: Recipe,
    prepared: PreparedData,
    *,
    resume: bool,
    from_run: str | Path | None = None,
    main: bool = True,
    overrides: Sequence[str] = (),
) -> RunFolder:
    """Check that a run may start or go on in `path`; clean up what an interrupted write left there.

    main: False on all processes but one, which then write nothing.

    Raises UsageError when the folder holds a run already (without `resume`), something else, no run (with it), or a run
    of another recipe; DataError when that was trained on other data; CheckpointError when it is damaged.
    """
    source = Path(from_run) if from_run is not None else None
    started = (path / "recipe.yaml").is_file()
    if resume and not started:
        raise UsageError(f"{path}: no run to resume; leave out --resume to start one")
    if resume:
        recorded = _check_same(path, recipe, prepared)
        if source is not None and not _same_run(source, recorded):
            raise UsageError(
                f"{path}: was started from {recorded or 'no other run'}, not from {source}; leave out --from"
            )
        source = source or recorded
    elif started and checkpoints(path):
        raise UsageError(f"{path}: holds a run already; add --resume to go on with it, or choose another folder")
    elif path.exists() and not (path / "run.json").is_file() and (path.is_file() or any(path.iterdir())):
        raise UsageError(f"{path}: exists and is no run; choose another folder")
    if main:
        for folder in (path, path / "checkpoints"):
            clean_leftovers(folder)
    return RunFolder(path, recipe, prepared, main and not resume, source, tuple(overrides))


def recorded_overrides(path: Path) -> list[str]:
    """The changes to the recipe that a run was started with; none where run.json does not tell them."""
    try:
        told = json.loads((path / "run.json").read_text(encoding="utf-8"))["overrides"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(one) for one in told] if isinstance(told, list) else []


def _same_run(one: Path, other: Path | None) -> bool:
    """Whether two paths mean one run; of one that is gone its name tells."""
    return other is not None and (one.resolve() == other.resolve() or (not other.exists() and one.name == other.name))


def _check_same(path: Path, recipe: Recipe, prepared: PreparedData) -> Path | None:
    """Whether a run goes on with the recipe and the data it began with; the run it started from, if any."""
    try:
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if run.get("format", 0) > RUN_FORMAT:
            raise CheckpointError(f"{path}: a run of a newer format ({run['format']}); update pixelbert")
        fingerprint, recorded = run["data"]["fingerprint"], run.get("from")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: a damaged run folder ({reason})") from error
    saved = whole_recipe(path)
    old, new = _flat(saved.model_dump(mode="json")), _flat(recipe.model_dump(mode="json"))
    for key in sorted(new, key=lambda key: key == "validation.select_on"):  # last: it follows from others
        if key not in _FREE and old.get(key) != new[key]:
            raise UsageError(
                f"{path}: cannot resume with a changed recipe: {key} was {old.get(key)!r}, is now {new[key]!r}"
            )
    if fingerprint != prepared.fingerprint:
        raise DataError(f"{prepared.folder}: not the data that {path} was trained on (its fingerprint differs)")
    return Path(recorded) if recorded else None


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def save_best(run: Path, model: PixelBertPreTrainedModel) -> None:
    """Put the model's weights at the top of the run folder, in one step; its config.json lies there from the start."""
    (run / calibration.FILE).unlink(missing_ok=True)  # it was measured on the weights that go now
    take_from_folder(run / "model.safetensors", lambda folder: _save_model(model, folder))


def _save_model(model: PixelBertPreTrainedModel, folder: Path) -> None:
    """Without transformers' progress bars, which would run through ours."""
    progress = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if progress:
            transformers.utils.logging.enable_progress_bar()
    readable = (folder / "config.json").stat().st_mode & 0o777  # as any file here; safetensors makes its own private
    for path in folder.glob("*.safetensors"):
        path.chmod(readable)


def save_last(run: Path, model: PixelBertPreTrainedModel, processor: PixelBertProcessor) -> None:
    """The model as it is now, in RUN/last, with its processor."""

    def fill(folder: Path) -> None:
        _save_model(model, folder)
        processor.save_pretrained(folder)

    write_folder(run / "last", fill)


def write_validation(run: Path, outcome: Outcome, attend: Callable[[Path], None] | None = None) -> None:
    """RUN/validation: figures.json, the per-record file, and examples to look at; `attend` adds attention sheets."""

    def fill(folder: Path) -> None:
        (folder / "figures.json").write_text(json.dumps(outcome.figures, indent=2) + "\n", encoding="utf-8")
        outcome.write(folder)
        if attend is not None:
            attend(folder)

    write_folder(run / "validation", fill)
