"""A recipe: every choice of a run, typed, in YAML files that inherit from one another.

Sizes and rates live here, paths on the command line. Unknown keys are errors with the nearest name; `key=value`
on the command line changes one setting by its dotted name.
"""

from __future__ import annotations

import logging
import os
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pixelbert.errors import UsageError, nearest

_log = logging.getLogger("pixelbert")


class Section(BaseModel):
    """A group of settings; unknown names are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class Backbone(Section):
    name: str = "resnet50"
    weights: str | None = None  # a source of model/weights.py; None = random
    statistics: str = "auto"  # mean, std and channel order of the CNN's own training: those of the weights, or named
    output: Literal["stage", "head"] = "stage"
    norm: Literal["frozen", "train", "sync"] = "frozen"
    wake_residuals: bool = False  # random weights: no residual block starts as the identity (short runs)
    frozen_stages: int = Field(default=1, ge=-1)  # stem and first stage


class Text(Section):
    weights: str | None = "bert-base-uncased"
    vocab: str | None = None  # vocab.txt or a source; None = that of the weights, or trained on the data's own texts
    vocab_size: int = Field(default=2000, gt=5)  # when trained on the data's own texts
    max_length: int = Field(default=32, ge=3)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    hidden_size: int = Field(default=768, gt=0)  # this and the next four matter only for random weights
    layers: int = Field(default=12, gt=0)
    heads: int = Field(default=12, gt=0)
    intermediate_size: int = Field(default=3072, gt=0)
    initializer_range: float = Field(default=0.02, gt=0)  # std of random weights; 0.02 is BERT's, for 768 wide
    activation: Literal["gelu", "relu"] | None = None  # None = that of the weights; GELU for random ones
    type_embedding: bool = True  # False: s_w is zero, as the paper leaves it out
    freeze_embeddings: bool = False  # word, position and type rows stay as loaded (speed; beyond the paper)


class Visual(Section):
    pool: bool = True
    projection: Literal["linear", "conv3x3"] = "linear"
    layer_norm: bool = False
    position: Literal["none", "sine2d", "learned2d"] = "none"
    type_embedding_init: Literal["bert", "random"] = "bert"  # s_v starts as BERT's type-1 row
    dropout: float = Field(default=0.0, ge=0, lt=1)
    channel_dropout: float = Field(default=0.0, ge=0, lt=1)  # of an image's whole channels, before the projection
    skip: bool = False  # the mean pixel adds word scores of its own to those of hidden words (beyond the paper)
    num_sampled_pixels: int = Field(default=100, ge=0)  # 0 = all


class Image(Section):
    shorter: int | None = Field(default=800, gt=0)
    longer: int | None = Field(default=1333, gt=0)
    square: int | None = Field(default=None, gt=0)  # squeeze to N x N instead
    size_divisor: int = Field(default=64, ge=1)  # images of different sizes are padded to a multiple
    augment: Literal["none", "crop", "crop-colour"] = "none"  # beyond the paper; never a flip: "left" stays left
    crop_scale: float = Field(default=0.6, gt=0, le=1)  # smallest share of the area that a crop keeps


class Mlm(Section):
    probability: float = Field(default=0.15, gt=0, lt=1)
    whole_word: bool = False
    heavy_share: float = Field(default=0.0, ge=0, le=1)  # of the texts, with `heavy_probability`: pictures must tell
    heavy_probability: float = Field(default=0.85, gt=0, lt=1)
    on_negatives: bool = False


class Itm(Section):
    negative_ratio: float = Field(default=0.5, gt=0, lt=1)
    hard_share: float = Field(default=0.0, ge=0, le=1)  # of the negatives, chosen by the pooled vectors
    calibration_images: int = Field(default=0, ge=0)  # kept out, a fifth at most, for fitting the match's log-odds
    words: bool = False  # these also ask how well each word is found among the pixels (beyond the paper)


class Loss(Section):
    mlm: float = Field(default=1.0, ge=0)
    itm: float = Field(default=1.0, ge=0)
    contrastive: float = Field(default=0.0, ge=0)  # beyond the paper
    align: float = Field(default=0.0, ge=0)  # mean pixel and mean word embedding of a pair (beyond the paper)
    tags: float = Field(default=0.0, ge=0)  # a caption's words from the mean pixel alone (beyond the paper)
    text_mlm: float = Field(default=0.0, ge=0)  # hidden words of captions without their image (beyond the paper)


class Head(Section):
    dropout: float = Field(default=0.5, ge=0, lt=1)  # of the heads of the downstream tasks
    sample_pixels: bool = False  # visual.num_sampled_pixels while fine-tuning too (beyond the paper)
    image_type: bool = False  # a vector of its own for the left and the right picture (beyond the paper)
    prior: bool = False  # the head begins at each answer's frequency among the training questions (beyond the paper)


class Answers(Section):
    # an answer is in the list when so many questions have it; None = 9, less where that loses a fifth of the questions
    min_count: int | None = Field(default=None, ge=1)
    normalize: bool = True  # answers of other people count for a target after the official normalisation


class Ranking(Section):
    negatives: int = Field(default=20, ge=1)  # random captions scored beside each true one
    hard_negatives: int = Field(default=5, ge=1)  # so many of them are learnt from
    contrasted: int = Field(default=0, ge=0)  # so many come with their own images into loss.contrastive, as pairs


class Data(Section):
    texts_per_image: int = Field(default=4, ge=1)
    train_splits: list[str] = Field(default=["train"], min_length=1)
    val_split: str = "val"
    held_out_images: int = Field(default=0, ge=0)  # of val_split where it is trained on too: its first so many are not
    workers: int = Field(default=2, ge=0)


class CnnOptimizer(Section):
    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=1e-2, ge=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)


_Beta = Annotated[float, Field(ge=0, lt=1)]


class TextOptimizer(Section):
    lr: float = Field(default=1e-4, ge=0)
    new_lr: float | None = Field(default=None, ge=0)  # of modules without pretrained weights; None = lr
    weight_decay: float = Field(default=1e-2, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0)


class Optim(Section):
    cnn: CnnOptimizer = CnnOptimizer()
    text: TextOptimizer = TextOptimizer()
    cnn_params: Literal["backbone", "visual"] = "backbone"  # visual: the projection of pixels learns like the CNN too
    no_decay: bool = True  # biases and norms without weight decay
    clip_norm: float = Field(default=10.0, gt=0)  # of all gradients together
    batch_size: int = Field(default=4096, gt=0)  # pairs a step, over all devices
    micro_batch: int = Field(default=64, gt=0)  # pairs a forward pass on one device
    scale_lr: bool = True  # linearly, when batch_size is changed from the recipe's own


class Schedule(Section):
    epochs: float | None = Field(default=40, gt=0)
    pairs: int | None = Field(default=None, gt=0)  # instead of epochs: pairs seen
    warmup_steps: int = Field(default=1000, ge=0)
    warmup_start: float = Field(default=1 / 3, ge=0, le=1)
    decay: Literal["milestones", "linear", "cosine"] = "milestones"
    milestones: list[float] = [25, 35]  # epochs
    factor: float = Field(default=0.1, ge=0)
    decay_from: float = Field(default=0.0, ge=0, lt=1)  # share of the run where linear or cosine decay begins

    @model_validator(mode="before")
    @classmethod
    def _pairs_instead_of_epochs(cls, values: Any) -> Any:
        """Whoever names pairs alone need not unset the epochs."""
        if isinstance(values, dict) and values.get("pairs") is not None and "epochs" not in values:
            return {**values, "epochs": None}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if (self.epochs is None) == (self.pairs is None):
            raise ValueError("give either epochs or pairs")
        return self


class Phase(Section):
    """What changes until a share of the run is over; unset values are the recipe's."""

    until: float = Field(default=1.0, gt=0, le=1)
    loss: Loss | None = None
    frozen_stages: int | None = Field(default=None, ge=-1)
    hard_share: float | None = Field(default=None, ge=0, le=1)
    lr_scale: float = Field(default=1.0, ge=0)
    num_sampled_pixels: int | None = Field(default=None, ge=0)


class Train(Section):
    precision: Literal["auto", "float32", "bfloat16", "bfloat16-cnn"] = "auto"
    gradient_checkpointing: bool = False
    keep_frozen_features: bool = False  # compute the CNN's frozen part once; images of any size where all is frozen
    feature_views: int = Field(default=1, ge=1)  # of each image, the others augmented: kept features need a few
    features_folder: str | None = None  # where they are kept for all runs; None = `features` beside the run folder
    length_chunks: int = Field(default=1, ge=1)  # texts of a batch in groups of like length: less padding (CPU)
    save_minutes: float = Field(default=10.0, ge=0)
    save_steps: int | None = Field(default=None, gt=0)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_steps: int = Field(default=10, gt=0)
    trackers: list[str] = ["tensorboard"]


class Validation(Section):
    times: int = Field(default=4, ge=0)  # during the run, evenly spread; the last at the end
    images: int = Field(default=0, ge=0)  # the first of the split; 0 = all
    captions_per_image: int = Field(default=5, ge=1)
    exact_images: int = Field(default=20, ge=0)  # images whose captions are all scored by ITM against all of them
    shortlist: int = Field(default=0, ge=0)  # retrieval: images a text that go from pooled vectors to the model
    select_on: str = ""  # the figure whose highest value makes the best model; empty = the task's own
    batch_size: int = Field(default=256, gt=0)
    seed: int = 1234


# Of each task the figure that chooses the best model.
MAIN_FIGURE = {
    "pretraining": "itm_accuracy", "question_answering": "vqa_score", "image_pairs": "accuracy", "retrieval": "rsum",
}  # fmt: skip


class Recipe(Section):
    """A whole run."""

    name: str = ""
    description: str = ""
    paper: str = ""  # section of the paper, or what goes beyond it
    needs: str = ""  # data
    command: str = ""
    expected: str = ""
    task: Literal["pretraining", "question_answering", "image_pairs", "retrieval"] = "pretraining"
    seed: int = Field(default=0, ge=0, lt=2**63)
    backbone: Backbone = Backbone()
    text: Text = Text()
    visual: Visual = Visual()
    image: Image = Image()
    contrastive_size: int = Field(default=0, ge=0)  # width of the pooled vectors; 0 = none
    mlm: Mlm = Mlm()
    itm: Itm = Itm()
    loss: Loss = Loss()
    head: Head = Head()
    answers: Answers = Answers()
    ranking: Ranking = Ranking()
    data: Data = Data()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    phases: list[Phase] = []
    train: Train = Train()
    validation: Validation = Validation()
    blind: bool = False  # every image replaced by a constant

    @model_validator(mode="after")
    def _complete_phases(self) -> Recipe:
        """Loss weights that a phase leaves unset are the recipe's."""
        for phase in self.phases:
            if phase.loss is not None:
                unset = {name: value for name, value in self.loss if name not in phase.loss.model_fields_set}
                phase.loss = Loss(**dict(phase.loss) | unset)
        return self

    @model_validator(mode="after")
    def _own_figure(self) -> Recipe:
        """The figure that chooses the best model, where none is named."""
        if not self.validation.select_on:
            self.validation.select_on = MAIN_FIGURE[self.task]
            # a blind run's matches are chance: by them any of its models may be the best
            if self.blind and self.task == "pretraining" and any(loss.mlm or loss.text_mlm for loss in self.losses):
                self.validation.select_on = "mlm_accuracy"
        return self

    @property
    def losses(self) -> list[Loss]:
        """The weights outside of phases, and those of every phase that has its own."""
        return [self.loss, *(phase.loss for phase in self.phases if phase.loss is not None)]

    @property
    def least_frozen_stages(self) -> int:
        """So few frozen stages of the CNN that no step trains more of it."""
        phases = [phase.frozen_stages for phase in self.phases if phase.frozen_stages is not None]
        return min([self.backbone.frozen_stages, *phases])

    @model_validator(mode="after")
    def _goes_together(self) -> Recipe:
        untils = [phase.until for phase in self.phases]
        if sorted(set(untils)) != untils:
            raise ValueError(f"the phases' `until` must grow, not {', '.join(map(str, untils))}")
        hard = [self.itm.hard_share, *(phase.hard_share or 0.0 for phase in self.phases)]
        if not all(any(weight for _, weight in loss) for loss in self.losses):
            raise ValueError("at least one loss needs a weight")
        if not self.contrastive_size and (any(loss.contrastive for loss in self.losses) or any(hard)):
            raise ValueError("the contrastive loss and hard negatives need contrastive_size, their vectors' width")
        if self.train.feature_views > 1 and (self.image.augment == "none" or not self.train.keep_frozen_features):
            raise ValueError("train.feature_views needs image.augment and train.keep_frozen_features")
        if self.validation.shortlist and not self.contrastive_size:
            raise ValueError("validation.shortlist needs contrastive_size, the width of the pooled vectors")
        if self.itm.words and not (self.itm.calibration_images and self.contrastive_size):
            raise ValueError("itm.words is weighed on shortlists: it needs itm.calibration_images and contrastive_size")
        if self.mlm.on_negatives and any(hard):
            raise ValueError("mlm.on_negatives and hard negatives do not go together: those are chosen after masking")
        if self.data.val_split in self.data.train_splits and not self.data.held_out_images:
            told = f"data.val_split '{self.data.val_split}' is trained on: it must be held out, or some images of it"
            raise ValueError(f"{told} (data.held_out_images)")
        if self.validation.images == 1:
            raise ValueError("validation.images is 1, but nothing can be told apart with fewer than 2")
        return self


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    folder = resources.files("pixelbert.recipes")
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str | Path | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of that name or file, or a copy of a recipe, with `key=value` changes.

    A changed optim.batch_size scales the rates that are not given too, and says so. Raises UsageError for an unknown
    recipe, key or value, with the nearest name.
    """
    given = isinstance(name, Recipe)
    values = name.model_dump(mode="json") if isinstance(name, Recipe) else _read(str(name))
    shown = name.name or "recipe" if isinstance(name, Recipe) else str(name)
    before = None if given and not overrides else _validate(values, shown)
    for override in overrides:
        values = _override(values, override)
    recipe = _validate(values, shown)
    if before is not None and recipe.optim.scale_lr and recipe.optim.batch_size != before.optim.batch_size:
        _scale_rates(recipe, before.optim.batch_size, {name for one in overrides for name in _settings_in(one)})
    return recipe


def _settings_in(override: str) -> list[str]:
    """The dotted names of all settings that a change gives: `optim.text={lr: 1}` gives optim.text.lr."""
    key, _, text = override.partition("=")

    def names(prefix: str, value: Any) -> list[str]:
        if not isinstance(value, dict):
            return [prefix]
        return [name for inner, one in value.items() for name in names(f"{prefix}.{inner}", one)]

    return names(key, yaml.safe_load(text))


def _scale_rates(recipe: Recipe, own_batch: int, given: set[str]) -> None:
    """Rates grow with the batch (linear rule), except those `given` on the command line."""
    optim = recipe.optim
    factor, scaled = optim.batch_size / own_batch, []
    for group, name in (("cnn", "lr"), ("text", "lr"), ("text", "new_lr")):
        section, key = getattr(optim, group), f"optim.{group}.{name}"
        rate = getattr(section, name)
        if rate is not None and key not in given:
            setattr(section, name, rate * factor)
            scaled.append(f"{key} is now {rate * factor:.4g}")
    if scaled:
        _log.warning(
            "optim.batch_size is %d instead of the recipe's %d: %s (optim.scale_lr=false leaves the rates alone)",
            optim.batch_size, own_batch, ", ".join(scaled),
        )  # fmt: skip


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """The recipe's values on top of those of its parent (`extends`: a recipe, or a file seen from this one)."""
    if name in seen:
        raise UsageError(f"{name}: extends itself through {' -> '.join(seen)}")
    is_file = name.endswith((".yaml", ".yml"))
    if is_file and not Path(name).is_file():
        raise UsageError(f"{name}: no such recipe file")
    if not is_file and name not in recipe_names():
        raise UsageError(f"no recipe '{name}'; {nearest(name, recipe_names())}")
    source = Path(name) if is_file else resources.files("pixelbert.recipes") / f"{name}.yaml"
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: not valid YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name}: a recipe is a mapping of settings")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if is_file and str(parent).endswith((".yaml", ".yml")):
        parent = os.path.normpath(Path(name).parent / str(parent))
    return _on_top(_read(str(parent), (*seen, name)), values)


def _on_top(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`change` merged into `base`; where it names epochs or pairs alone, the other one goes."""
    merged, schedule = _merge(base, change), change.get("schedule")
    if isinstance(schedule, dict):
        for one, other in (("epochs", "pairs"), ("pairs", "epochs")):
            if schedule.get(one) is not None and schedule.get(other) is None:
                merged["schedule"][other] = None
    return merged


def _merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    """The values with one `a.b=value`, which is YAML; a section given as a whole keeps its other settings."""
    key, sign, text = override.partition("=")
    if not sign:
        raise UsageError(f"'{override}': a change to the recipe is written key=value")
    _check_key(key)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"'{override}': the value is not valid YAML") from error
    for part in reversed(key.split(".")):
        value = {part: value}
    return _on_top(values, value)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `Loss | None` or `list[Phase]`."""
    options = typing.get_args(annotation) or (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def setting_names(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """All dotted setting names; a list of sections is one setting."""
    names = []
    for name, field in section.model_fields.items():
        inner = None if typing.get_origin(field.annotation) is list else _section_of(field.annotation)
        names += setting_names(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return names


def settings_called(key: str, names: Sequence[str]) -> list[str]:
    """The dotted names that end with a bare one: `lr` -> optim.cnn.lr, optim.text.lr."""
    return [name for name in names if name.endswith(f".{key}")]


def _is_section(key: str) -> bool:
    return any(name.startswith(f"{key}.") for name in setting_names())


def _check_key(key: str) -> None:
    names = setting_names()
    if key not in names and not _is_section(key):
        raise UsageError(f"no setting '{key}' in a recipe; {_nearest_setting(key, names)}")


def _nearest_setting(key: str, names: Sequence[str]) -> str:
    """The nearest dotted name; of a bare name also where it belongs: `lr` -> optim.cnn.lr, optim.text.lr."""
    ends = settings_called(key, names)
    return f"did you mean {' or '.join(repr(name) for name in ends)}?" if ends else nearest(key, names)


def _validate(values: dict[str, Any], name: str) -> Recipe:
    """Raises UsageError that names the first wrong setting, with the nearest valid name or value."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
    place, given = [str(part) for part in first["loc"]], first["input"]
    key, reason = ".".join(place), first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        raise UsageError(f"{name}: no setting '{key}' in a recipe; {_nearest_setting(*_known(place))}")
    if first["type"] == "literal_error":
        valid = [choice for choice in _choices(place) if isinstance(choice, str)]
        raise UsageError(f"{name}: {key} is {given!r}; {nearest(str(given), valid)}")
    if first["type"] == "value_error":
        raise UsageError(f"{name}: {key + ': ' if key else ''}{reason}")
    raise UsageError(f"{name}: {key} is {given!r}: {reason[0].lower()}{reason[1:]}")


def _known(place: Sequence[str]) -> tuple[str, list[str]]:
    """An unknown name as far as it can be compared, and the names beside it."""
    for depth, part in enumerate(place):
        if part.isdigit():  # inside of a list of sections
            inner = _section_of(Recipe.model_fields[place[0]].annotation)
            assert inner is not None
            return ".".join(place[depth + 1 :]), setting_names(inner)
    return ".".join(place), setting_names()


def _choices(place: Sequence[str]) -> tuple[Any, ...]:
    """The values that the setting at this place takes."""
    section: type[BaseModel] = Recipe
    for part in place:
        field = section.model_fields.get(part)
        if field is None:  # a place in a list, or a branch of an `x | None`
            continue
        inner = _section_of(field.annotation)
        if inner is None:
            branches = typing.get_args(field.annotation)
            nested = [value for branch in branches for value in typing.get_args(branch)]
            return (*branches, *nested)
        section = inner
    return ()
