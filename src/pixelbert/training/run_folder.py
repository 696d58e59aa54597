"""The run folder: what a run starts from, and what it leaves behind, complete and movable."""

from __future__ import annotations

import datetime
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

import pixelbert
from pixelbert.data.records import PreparedData
from pixelbert.errors import CheckpointError, DataError, UsageError
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.pretraining_examples import write_examples
from pixelbert.tasks.pretraining_scores import HeldOut
from pixelbert.training.checkpoint import checkpoints, write_file, write_folder

RUN_FORMAT = 1

# Settings that may differ when a run goes on: they change no number.
_FREE = ("name", "description", "paper", "needs", "command", "expected", "train.save_minutes", "train.save_steps",
         "train.keep_checkpoints", "train.log_steps", "train.trackers", "data.workers", "train.features_folder")  # fmt: skip


@dataclass
class RunFolder:
    """An opened run folder: its start is written once, when processor and model are known."""

    path: Path
    recipe: Recipe
    prepared: PreparedData
    resume: bool
    processor: PixelBertProcessor | None = None
    model: PixelBertForPreTraining | None = None

    def write(self, processor: PixelBertProcessor, config: PixelBertConfig, reports: dict[str, Any]) -> None:
        """recipe.yaml, run.json, config and processor; on resume they are there already."""
        if self.resume:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        processor.save_pretrained(self.path)
        config.save_pretrained(self.path)
        run = {
            "format": RUN_FORMAT,
            "task": self.recipe.task,
            "recipe": self.recipe.name,
            "data": {"fingerprint": self.prepared.fingerprint, "folder": self.prepared.folder.name,
                     "location": self.prepared.location},
            "weights": reports,
            "versions": {"pixelbert": pixelbert.__version__, "torch": torch.__version__,
                         "transformers": transformers.__version__, "python": platform.python_version()},
            "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }  # fmt: skip
        write_file(self.path / "run.json", json.dumps(run, indent=2, default=str) + "\n")
        write_file(self.path / "recipe.yaml", yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))


def open_run(
    path: Path, recipe: Recipe, prepared: PreparedData, *, resume: bool, from_run: str | Path | None
) -> RunFolder:
    """Check that a run may start or go on in `path`, and load what it starts from.

    Raises UsageError when the folder holds a run already (without `resume`), holds none (with it), or its recipe
    differs; DataError when it was trained on other data; CheckpointError when it is damaged.
    """
    folder = RunFolder(path, recipe, prepared, resume)
    started = (path / "recipe.yaml").is_file()
    if resume:
        if not started:
            raise UsageError(f"{path}: no run to resume; leave out --resume to start one")
        _check_same(path, recipe, prepared)
        folder.processor = PixelBertProcessor.from_pretrained(path)
    elif started and checkpoints(path):
        raise UsageError(f"{path}: holds a run already; add --resume to go on with it, or choose another folder")
    if from_run is not None and not resume:
        source = Path(from_run)
        if not (source / "model.safetensors").is_file():
            raise CheckpointError(f"{source}: not a run folder with a trained model (no model.safetensors)")
        folder.processor = PixelBertProcessor.from_pretrained(source)
        from pixelbert.model.weights import load_pretrained

        folder.model = load_pretrained(PixelBertForPreTraining, source)
    return folder


def _check_same(path: Path, recipe: Recipe, prepared: PreparedData) -> None:
    try:
        saved = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: a damaged run folder ({error})") from error
    if run.get("format", 0) > RUN_FORMAT:
        raise CheckpointError(f"{path}: a run of a newer format ({run['format']}); update pixelbert")
    old, new = _flat(saved), _flat(recipe.model_dump(mode="json"))
    for key in sorted(old.keys() | new.keys()):
        if key not in _FREE and old.get(key) != new.get(key):
            raise UsageError(
                f"{path}: cannot resume with a changed recipe: {key} was {old.get(key)!r}, is now {new.get(key)!r}"
            )
    if run["data"]["fingerprint"] != prepared.fingerprint:
        raise DataError(f"{prepared.folder}: not the data that {path} was trained on (its fingerprint differs)")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def save_best(run: Path, model: PixelBertForPreTraining) -> None:
    """Put the model's weights at the top of the run folder, in one step."""

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)

    staged = run / ".best"
    write_folder(staged, fill)
    for name in ("config.json", "model.safetensors"):
        (staged / name).replace(run / name)
    staged.rmdir() if not any(staged.iterdir()) else None


def save_last(run: Path, model: PixelBertForPreTraining, processor: PixelBertProcessor) -> None:
    """The model as it is now, in RUN/last, with its processor."""

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    write_folder(run / "last", fill)


def word_lines(held_out: HeldOut, words: list[dict[str, Any]]) -> str:
    """The masked words as JSON lines, pieces as text."""
    tokenizer, lines = held_out.batches.tokenizer, []
    for row in words:
        pieces = tokenizer.convert_ids_to_tokens([row["word"], row["predicted"], row["predicted_shuffled"]])
        lines.append(json.dumps({**row, "word": pieces[0], "predicted": pieces[1], "predicted_shuffled": pieces[2]}))
    return "".join(line + "\n" for line in lines)


def write_validation(run: Path, held_out: HeldOut, figures: dict[str, float], words: list[dict[str, Any]]) -> None:
    """RUN/validation: figures.json, masked_words.jsonl, and examples to look at."""

    def fill(folder: Path) -> None:
        (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        (folder / "masked_words.jsonl").write_text(word_lines(held_out, words), encoding="utf-8")
        write_examples(folder, held_out, words)

    write_folder(run / "validation", fill)
