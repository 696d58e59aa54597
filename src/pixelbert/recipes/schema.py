"""A recipe: every choice of a run, typed, in YAML files that inherit from one another.

Sizes and rates live here, paths on the command line. Unknown keys are errors with the nearest name; `key=value`
on the command line changes one setting by its dotted name.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pixelbert.errors import UsageError, nearest


class Section(BaseModel):
    """A group of settings; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Backbone(Section):
    name: str = "resnet50"
    weights: str | None = None  # a source of model/weights.py; None = random
    output: Literal["stage", "head"] = "stage"
    norm: Literal["frozen", "train", "sync"] = "frozen"
    frozen_stages: int = 1  # stem and first stage


class Text(Section):
    weights: str | None = "bert-base-uncased"
    vocab: str | None = None  # vocab.txt or a source; None = that of the weights, or trained on the data's own texts
    vocab_size: int = 2000  # when trained on the data's own texts
    max_length: int = 32
    dropout: float = 0.1
    hidden_size: int = 768  # the four sizes matter only for random weights
    layers: int = 12
    heads: int = 12
    intermediate_size: int = 3072
    freeze_embeddings: bool = False  # word, position and type rows stay as loaded (speed; beyond the paper)


class Visual(Section):
    pool: bool = True
    projection: Literal["linear", "conv3x3"] = "linear"
    layer_norm: bool = False
    position: Literal["none", "sine2d", "learned2d"] = "none"
    dropout: float = 0.0
    num_sampled_pixels: int = 100  # 0 = all


class Image(Section):
    shorter: int | None = 800
    longer: int | None = 1333
    square: int | None = None  # squeeze to N x N instead
    augment: Literal["none", "crop", "crop-colour"] = "none"  # beyond the paper; never a flip: "left" stays left
    crop_scale: float = Field(0.6, gt=0, le=1)  # smallest share of the area that a crop keeps


class Mlm(Section):
    probability: float = Field(0.15, gt=0, lt=1)
    whole_word: bool = False
    on_negatives: bool = False


class Itm(Section):
    negative_ratio: float = Field(0.5, gt=0, lt=1)
    hard_share: float = Field(0.0, ge=0, le=1)  # of the negatives, chosen by the pooled vectors


class Loss(Section):
    mlm: float = 1.0
    itm: float = 1.0
    contrastive: float = 0.0  # beyond the paper


class Data(Section):
    texts_per_image: int = Field(4, ge=1)
    train_splits: list[str] = ["train"]
    val_split: str = "val"
    workers: int = 2


class CnnOptimizer(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-2
    weight_decay: float = 5e-4
    momentum: float = 0.9


class TextOptimizer(Section):
    lr: float = 1e-4
    new_lr: float | None = None  # of modules without pretrained weights; None = lr
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6


class Optim(Section):
    cnn: CnnOptimizer = CnnOptimizer()
    text: TextOptimizer = TextOptimizer()
    no_decay: bool = True  # biases and norms without weight decay
    clip_norm: float = 10.0
    batch_size: int = 4096  # pairs a step, over all devices
    micro_batch: int = 64  # pairs a forward pass on one device
    scale_lr: bool = True  # linearly, when batch_size is changed from the recipe's own


class Schedule(Section):
    epochs: float | None = 40
    pairs: int | None = None  # instead of epochs: pairs seen
    warmup_steps: int = 1000
    warmup_start: float = 1 / 3
    decay: Literal["milestones", "linear", "cosine"] = "milestones"
    milestones: list[float] = [25, 35]  # epochs
    factor: float = 0.1
    decay_from: float = 0.0  # share of the run where linear or cosine decay begins


class Phase(Section):
    """What changes until a share of the run is over; unset values are the recipe's."""

    until: float = Field(1.0, gt=0, le=1)
    loss: Loss | None = None
    frozen_stages: int | None = None
    hard_share: float | None = None
    lr_scale: float = 1.0
    num_sampled_pixels: int | None = None


class Train(Section):
    precision: Literal["auto", "float32", "bfloat16", "bfloat16-cnn"] = "auto"
    gradient_checkpointing: bool = False
    keep_frozen_features: bool = False  # compute the CNN's frozen part once (one image size, no augmentation)
    features_folder: str | None = None  # where they are kept; None = in the run folder
    length_chunks: int = Field(1, ge=1)  # texts of a batch in groups of like length: less padding (CPU)
    save_minutes: float = 10.0
    save_steps: int | None = None
    keep_checkpoints: int = 2
    log_steps: int = 10
    trackers: list[str] = ["tensorboard"]


class Validation(Section):
    times: int = 4  # during the run, evenly spread; the last at the end
    images: int = 0  # 0 = all of the split
    captions_per_image: int = 5
    exact_images: int = 20  # images whose captions are all scored by ITM against all of them
    select_on: str = "itm_accuracy"
    batch_size: int = 256
    seed: int = 1234


class Recipe(Section):
    """A whole run."""

    name: str = ""
    description: str = ""
    paper: str = ""  # section of the paper, or what goes beyond it
    needs: str = ""  # data
    command: str = ""
    expected: str = ""
    task: Literal["pretraining"] = "pretraining"
    seed: int = 0
    backbone: Backbone = Backbone()
    text: Text = Text()
    visual: Visual = Visual()
    image: Image = Image()
    contrastive_size: int = 0
    mlm: Mlm = Mlm()
    itm: Itm = Itm()
    loss: Loss = Loss()
    data: Data = Data()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    phases: list[Phase] = []
    train: Train = Train()
    validation: Validation = Validation()
    blind: bool = False  # every image replaced by a constant


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    folder = resources.files("pixelbert.recipes")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or file, with `key=value` changes.

    Raises UsageError for an unknown recipe, key or value, with the nearest name.
    """
    values = _read(str(name))
    base_batch = _lookup(values, "optim.batch_size") or Optim().batch_size
    for override in overrides:
        _override(values, override)
    recipe = _validate(values, str(name))
    if recipe.optim.scale_lr and recipe.optim.batch_size != base_batch:
        _scale_rates(recipe, recipe.optim.batch_size / base_batch)
    return recipe


def _scale_rates(recipe: Recipe, factor: float) -> None:
    """Rates grow with the batch (linear rule); the run's report shows what came of it."""
    recipe.optim.cnn.lr *= factor
    recipe.optim.text.lr *= factor
    if recipe.optim.text.new_lr is not None:
        recipe.optim.text.new_lr *= factor
    recipe.optim.scale_lr = False  # done: the saved recipe holds the scaled rates


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The recipe's values on top of those of its parent (`extends`)."""
    path = Path(name)
    if name.endswith((".yaml", ".yml")):
        if not path.is_file():
            raise UsageError(f"{name}: no such recipe file")
        text = path.read_text(encoding="utf-8")
    elif name in recipe_names():
        text = (resources.files("pixelbert.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise UsageError(f"no recipe '{name}'; {nearest(name, recipe_names())}")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UsageError(f"{name}: not valid YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name}: a recipe is a mapping of settings")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if parent in seen:
        raise UsageError(f"{name}: extends itself through {' -> '.join(seen)}")
    return _merge(_read(str(parent), (*seen, name)), values)


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _lookup(values: dict[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        values = values.get(part, {}) if isinstance(values, dict) else {}
    return values or None


def _override(values: dict[str, Any], override: str) -> None:
    """Apply one `a.b=value`; the value is YAML."""
    key, sign, text = override.partition("=")
    if not sign:
        raise UsageError(f"'{override}': a change to the recipe is written key=value")
    *path, last = key.split(".")
    _check_key(key)
    for part in path:
        values = values.setdefault(part, {})
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"'{override}': the value is not valid YAML") from error


def _sections(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `Loss | None`."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def setting_names(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """All dotted setting names."""
    names = []
    for name, field in section.model_fields.items():
        inner = _sections(field.annotation)
        names += setting_names(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return names


def _check_key(key: str) -> None:
    names = setting_names()
    if key not in names and not any(n.startswith(f"{key}.") for n in names):
        raise UsageError(f"no setting '{key}' in a recipe; {nearest(key, names)}")


def _validate(values: dict[str, Any], name: str) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = setting_names()
            raise UsageError(f"{name}: no setting '{key}' in a recipe; {nearest(key, known)}") from error
        raise UsageError(f"{name}: {key} is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
