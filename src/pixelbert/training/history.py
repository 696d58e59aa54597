"""What a run was trained on, and the runs that it began from: a fine-tuned model has seen what its pretraining saw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from pixelbert.data.batches import Records
from pixelbert.data.dividing import LEAK
from pixelbert.data.records import PreparedData
from pixelbert.recipes.schema import Recipe

_FIELDS = {"run", "fingerprint", "kept_out", "train_splits", "val_split", "held_out_images"}
Training = dict[str, Any]  # of one run: run, fingerprint, train_splits, val_split, held_out_images, kept_out


def before(source: Path | None) -> list[Training]:
    """The trainings in a run that another begins from, the last one first; what its files do not tell is left out."""
    if source is None:
        return []
    try:
        facts = json.loads((source / "run.json").read_text(encoding="utf-8"))
        recipe = yaml.safe_load((source / "recipe.yaml").read_text(encoding="utf-8"))
        own = {
            "run": str(source), "fingerprint": facts["data"]["fingerprint"], "kept_out": facts.get("kept_out"),
            **{name: recipe["data"][name] for name in ("train_splits", "val_split", "held_out_images")},
        }  # fmt: skip
        earlier = recorded(facts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return []
    return [own, *earlier]


def recorded(facts: dict[str, Any]) -> list[Training]:
    """The earlier trainings that a run.json tells; what is of another make is left out."""
    told = facts.get("before")
    rows = [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    return [one for one in rows if one.keys() >= _FIELDS and isinstance(one["train_splits"], list)]


def seen_before(trainings: list[Training], prepared: PreparedData, split: str, images: int) -> str:
    """Which of these trainings saw any of the first `images` images of a split of this data; empty where none did."""
    for one in trainings:
        if one["fingerprint"] != prepared.fingerprint:
            continue
        trained = [prepared.own_name(name) for name in one["train_splits"]]
        held_out = one["held_out_images"] if prepared.own_name(one["val_split"]) == split else 0
        if split in trained and images > held_out:
            but = f" but for its first {held_out:,} images" if held_out else ""
            return f"began from {one['run']}, which was trained on split '{split}'{but}"
    return ""


def fitted_on_seen(trainings: list[Training], prepared: PreparedData, recipe: Recipe, kept: Records | None) -> str:
    """Whether the images kept out to fit matches on were trained on before; empty where they were not."""
    if kept is None:
        return ""
    own = [prepared.own_name(name) for name in recipe.data.train_splits]
    for one in trainings:
        first = [prepared.own_name(name) for name in one["train_splits"]][:1]
        if one["fingerprint"] != prepared.fingerprint or first != own[:1] or one["kept_out"] is None:
            continue
        if (left := kept.num_images - one["kept_out"]) > 0:
            told = (
                f"matches will be fitted on {kept.num_images:,} images kept out, of which {one['run']} was trained on"
            )
            advice = f"; itm.calibration_images={one['kept_out']} takes those alone that it kept out too"
            return f"{told} {left:,}{advice if one['kept_out'] > 1 else ''}"
    return ""


def warnings(source: Path | None, prepared: PreparedData, recipe: Recipe, kept: Records | None) -> list[str]:
    """What to tell as a run starts: images in two splits, and fitting on what the run it begins from has seen."""
    return [text for text in (*leaks(prepared), fitted_on_seen(before(source), prepared, recipe, kept)) if text]


def leaks(prepared: PreparedData, split: str = "") -> list[str]:
    """The images that `prepare` found in two splits, one of them `split` where that is given."""
    told = {str(text): LEAK.match(str(text)) for text in prepared.info.get("notes", [])}
    name = prepared.own_name(split)
    return [
        f"{prepared.folder}: {text}" for text, found in told.items() if found and (not split or name in found.groups())
    ]
