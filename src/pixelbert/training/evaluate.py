"""`pixelbert evaluate`: a run's figures on held-out data, beside chance and beside the blind model."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

import pixelbert
from pixelbert.data.records import PreparedData
from pixelbert.errors import CheckpointError, DataError, UsageError, nearest
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.model.weights import load_pretrained
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.pretraining_examples import write_examples
from pixelbert.tasks.pretraining_scores import HeldOut, validate, word_accuracy
from pixelbert.training import precision
from pixelbert.training.files import write_folder
from pixelbert.training.progress import PairProgress
from pixelbert.training.report import renew_report
from pixelbert.training.run_folder import word_lines
from pixelbert.training.setup import pretraining_batches


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    blind: str | Path | None = None,
    exact_images: int = 0,
    shortlist: int = 0,
    captions_per_image: int = 5,
    images: int = 0,
    model: str = "best",
) -> dict[str, Any]:
    """Score a pretraining run on a split of prepared data; writes RUN/evaluation/SPLIT/.

    Args:
        blind: the run of the blind model; adds `mlm_accuracy_blind` and `mlm_gain_blind` (same texts, same places).
        exact_images: so many images and their captions are all scored by ITM against each other; 0 leaves it out.
        shortlist: re-rank so many images per caption by ITM score; needs pooled vectors; 0 leaves it out.
        images: so many of the split's first images; 0 = all.
        model: `best` (by the recipe's measure on val) or `last`.

    Returns:
        {"figures": percent by name, "images", "texts", "minutes", ...}

    Raises CheckpointError for a damaged or unfinished run, DataError for a split that is not there.
    """
    started, folder, prepared = time.monotonic(), Path(run), PreparedData(data)
    held_out = _held_out(folder, prepared, split, images, captions_per_image, model)
    figures, words = validate(held_out, exact_images, shortlist)
    if blind is not None:
        other = _held_out(Path(blind), prepared, split, images, captions_per_image, model, must_be_blind=True)
        blind_words = other.masked_words()
        if [(w["record"], w["place"], w["word"]) for w in words] != [
            (w["record"], w["place"], w["word"]) for w in blind_words
        ]:
            raise DataError(f"{blind}: hides other words than {run}; train both with the same text settings")
        figures["mlm_accuracy_blind"] = word_accuracy(blind_words)
        figures["mlm_gain_blind"] = figures["mlm_accuracy"] - figures["mlm_accuracy_blind"]
    result = {
        "run": folder.name, "model": model, "data": prepared.folder.name, "split": split,
        "images": len(held_out.images), "texts": len(held_out.records),
        "exact_images": exact_images, "shortlist": shortlist, "figures": figures,
        "minutes": round((time.monotonic() - started) / 60, 2), "version": pixelbert.__version__,
        "date": dt.date.today().isoformat(), "machine": precision.detect().name,
    }  # fmt: skip

    def fill(target: Path) -> None:
        (target / "figures.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (target / "masked_words.jsonl").write_text(word_lines(held_out, words), encoding="utf-8")
        write_examples(target, held_out, words)

    write_folder(folder / "evaluation" / split, fill)
    renew_report(folder, lambda text: print(text, file=sys.stderr), blind=blind)
    return result


def load_run(run: Path, model: str = "best") -> tuple[Recipe, PixelBertForPreTraining, PixelBertProcessor]:
    """A run's recipe, trained model (in evaluation mode) and processor. Raises CheckpointError when one is missing."""
    if model not in ("best", "last"):
        raise UsageError(f"model is '{model}'; {nearest(model, ('best', 'last'))}")
    source = run / "last" if model == "last" else run
    if not (run / "recipe.yaml").is_file():
        raise CheckpointError(f"{run}: not a run folder (no recipe.yaml)")
    if not (source / "model.safetensors").is_file():
        raise CheckpointError(f"{run}: has no trained model yet; go on with pixelbert train --resume")
    recipe = Recipe.model_validate(yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")))
    loaded = load_pretrained(PixelBertForPreTraining, source)
    loaded.eval()
    return recipe, loaded, PixelBertProcessor.from_pretrained(run)


def _held_out(
    run: Path, prepared: PreparedData, split: str, images: int, captions: int, model: str, must_be_blind: bool = False
) -> HeldOut:
    records = prepared.split(split)
    recipe, loaded, processor = load_run(run, model)
    if must_be_blind and not recipe.blind:
        raise DataError(f"{run}: not a blind run; train one with --blind")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = precision.choose(recipe.train.precision, device)
    loaded.to(device)
    loaded.pixelbert.visual.body.to(memory_format=torch.channels_last)
    loaded.pixelbert.visual.compute_dtype = torch.bfloat16 if chosen.backbone == "bfloat16" else None
    count = min(images or records.num_images, records.num_images)
    if count < 2:
        raise DataError(f"{prepared.folder}: split '{split}' has {count} image(s), at least 2 are needed")
    batches = pretraining_batches(recipe, records, processor, loaded.config, train=False)
    return HeldOut(
        loaded, batches, list(range(count)), captions, recipe.validation.seed, recipe.validation.batch_size,
        torch.bfloat16 if chosen.encoder == "bfloat16" else None, PairProgress(),
    )  # fmt: skip
