"""A run folder, opened to be used: for `evaluate` and `predict`, and for the Predictor, which knows no training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from pixelbert.errors import CheckpointError, UsageError, nearest
from pixelbert.model import precision
from pixelbert.model.backbone import VisualBackbone
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.model.tokenization import vocabulary_of
from pixelbert.model.weight_files import read_json
from pixelbert.model.weights import load_pretrained
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.table import TASKS

RUN_FORMAT = 1
_LAST_SETTING = list(Recipe.model_fields)[-1]


def load_run(run: Path, model: str = "best") -> tuple[Recipe, Any, PixelBertProcessor]:
    """A run's recipe, trained model (in evaluation mode) and processor.

    model: `best` or `last`. Raises CheckpointError for a folder that is no run, is damaged, has no trained model yet,
    is of a newer format or has the answer list of another model; UsageError for another `model`.
    """
    if model not in ("best", "last"):
        raise UsageError(f"model is '{model}'; {nearest(model, ('best', 'last'))}")
    recipe = read_recipe(run)
    source = run / "last" if model == "last" else run
    if not (source / "model.safetensors").is_file():
        raise CheckpointError(f"{run}: has no trained model yet; go on with pixelbert train --resume")
    loaded = load_pretrained(TASKS[recipe.task].model_class, source)
    check_answers(run, loaded.config)
    loaded.pixelbert.pixels.rounds_maps = keeps_whole_maps(recipe, loaded.pixelbert.visual)
    loaded.eval()
    return recipe, loaded, read_processor(run, loaded.config)


def keeps_whole_maps(recipe: Recipe, visual: VisualBackbone) -> bool:
    """Whether a run keeps what its CNN, which no step trains, gives for each image; kept maps are float16."""
    return recipe.train.keep_frozen_features and recipe.least_frozen_stages >= len(visual.stages) - 1


def read_recipe(run: Path) -> Recipe:
    """The recipe of a run folder. Raises CheckpointError as `load_run` does."""
    if not run.exists():
        raise CheckpointError(f"{run}: no such run folder")
    if not (run / "recipe.yaml").is_file():
        raise CheckpointError(f"{run}: not a run folder (no recipe.yaml)")
    read_facts(run)  # before anything else: what a newer format says may mean something else by the same words
    return whole_recipe(run)


def whole_recipe(run: Path) -> Recipe:
    """The recipe.yaml of a run. Raises CheckpointError for a damaged one, also where its end is missing."""
    try:
        found = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        if isinstance(found, dict) and _LAST_SETTING not in found:  # a run writes every setting, so this one as well
            raise CheckpointError(f"{run}: a damaged recipe.yaml (it is cut off: {_LAST_SETTING} is missing)")
        return Recipe.model_validate(found)
    except (OSError, ValidationError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{run}: a damaged recipe.yaml ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The first thing that is wrong, in one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    return str(error).splitlines()[0]


def read_facts(run: Path) -> dict[str, Any]:
    """What run.json says. Raises CheckpointError when it is missing, damaged or of a newer format."""
    path = run / "run.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = facts.get("format", 0)
        newer = found > RUN_FORMAT
    except FileNotFoundError as error:
        raise CheckpointError(f"{run}: half a run folder (no run.json)") from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if newer:
        raise CheckpointError(f"{run}: a run of a newer format ({found}); update pixelbert")
    return facts


def answers_digest(config: Any) -> str:
    """Of the answers that a model's outputs stand for, in their order: its weights fit any other list as long."""
    answers = [config.id2label[place] for place in sorted(config.id2label)]
    return hashlib.sha256(json.dumps(answers).encode()).hexdigest()[:16]


def check_answers(run: Path, config: Any) -> None:
    """Raises CheckpointError when a model's config has other answers than run.json tells of; older runs tell none."""
    told = read_facts(run).get("answers")
    if told is not None and told != answers_digest(config):
        raise CheckpointError(f"{run}: its config.json has the answer list of another model than the one trained")


def vocabulary_digest(processor: PixelBertProcessor) -> str:
    """Of the wordpieces in the order of their ids: the weights fit any other list as long."""
    return hashlib.sha256("\n".join(vocabulary_of(processor.tokenizer)).encode()).hexdigest()[:16]


def read_processor(run: Path, config: PixelBertConfig) -> PixelBertProcessor:
    """The processor of a run whose model has that config.

    Raises CheckpointError where it is not whole, is damaged, or has another vocabulary than the model was trained with.
    """
    processor = _open_processor(run)
    pieces, known = len(processor.tokenizer), config.text_config.vocab_size
    told = read_facts(run).get("vocabulary") if (run / "run.json").is_file() else None  # older runs tell none
    if pieces > known or (told is not None and told != vocabulary_digest(processor)):
        raise CheckpointError(f"{run}: its tokenizer has the vocabulary of another model than the one trained")
    return processor


def _open_processor(run: Path) -> PixelBertProcessor:
    for name in ("processor_config.json", "tokenizer_config.json"):
        if not (run / name).is_file():  # transformers would look for it on the network
            raise CheckpointError(f"{run}: half a run folder (no {name})")
    if not any((run / name).is_file() for name in ("tokenizer.json", "vocab.txt")):  # it would make up an empty one
        raise CheckpointError(f"{run}: half a run folder (no tokenizer.json)")
    told = read_json(run / "processor_config.json").get("image_processor")
    if not isinstance(told, dict) or "image_processor_type" not in told:  # transformers would look for it on a hub
        raise CheckpointError(f"{run}: its processor cannot be read (processor_config.json names no image processor)")
    try:
        processor = PixelBertProcessor.from_pretrained(run)
        _check_fields(processor)
        return processor
    except Exception as error:  # the libraries behind it raise plain Exception for a damaged file, too
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{run}: its processor cannot be read ({reason[0][:200] if reason else type(error).__name__})"
        ) from error


def _check_fields(processor: PixelBertProcessor) -> None:
    """Raises TypeError for numbers that are none: the library takes over whatever the file says."""
    numbers = {
        "multiple": processor.image_processor.multiple,
        "model_max_length": processor.tokenizer.model_max_length,
    }
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}, no whole number")


def put_on_device(model: Any, wanted: str, device: torch.device) -> torch.dtype | None:
    """Move a model to its device, the CNN in the precision that `wanted` (a recipe's) means there.

    Returns the autocast type of everything behind the CNN; None is float32.
    """
    chosen = precision.choose(wanted, device)
    model.to(device)
    return precision.use(chosen, model, device)


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; None: CUDA where there is one, else the processor. Raises UsageError for another."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device '{name}' cannot be used here ({str(error).splitlines()[0]})") from error
    return device
