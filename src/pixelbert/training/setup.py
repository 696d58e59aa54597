"""From a recipe to the things a run needs: data, processor, model with its first weights, batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm

from pixelbert.data.batches import Records, join
from pixelbert.data.parts import SplitPart
from pixelbert.data.records import SPLITS, PreparedData
from pixelbert.errors import CheckpointError, DataError, UsageError
from pixelbert.model.backbone import sleeping_norms, wake_residuals
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.image_processing import multiple_for_backbone
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertPreTrainedModel
from pixelbert.model.processor import PixelBertImageProcessor, PixelBertProcessor
from pixelbert.model.tokenization import load_tokenizer, train_wordpiece, vocabulary_of
from pixelbert.model.weight_files import WeightSource, read_json
from pixelbert.model.weights import (
    load_backbone_weights,
    load_pretrained,
    load_text_weights,
    text_config_from,
    vocab_of,
)
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.run import check_answers, read_processor
from pixelbert.tasks.table import TASKS, task_of_model


@dataclass
class Parts:
    """What a run works with."""

    processor: PixelBertProcessor
    model: Any  # of the task's class
    train: Records
    val: Records
    reports: dict[str, Any] = field(default_factory=dict)  # of the foreign weights, for run.json
    calibration: Records | None = None  # training images kept out of training


def open_splits(prepared: PreparedData, recipe: Recipe) -> tuple[Records, Records]:
    """The training records and the held-out ones.

    Raises DataError for a split that is not there or too small, for data of another task, and for held-out records
    that cannot be scored.
    """
    TASKS[recipe.task].check(prepared)
    present = prepared.info["splits"]  # restval is there or not, as the data has it; other names must be right
    wanted = [name for name in recipe.data.train_splits if name in present or name not in SPLITS]
    # by the data's own names: dev is val, also where one is trained on and the other held out
    splits: dict[str, Records] = {
        prepared.own_name(name): prepared.split(name) for name in wanted or recipe.data.train_splits[:1]
    }
    val: Records = prepared.split(recipe.data.val_split)
    if (own := prepared.own_name(recipe.data.val_split)) in splits:
        splits[own], val = _held_out(prepared, recipe, val)
    train = join(list(splits.values()))
    for name, split in (("train", train), (recipe.data.val_split, val)):
        if split.num_images < 2:
            raise DataError(f"{prepared.folder}: split '{name}' has {split.num_images} image(s), at least 2 are needed")
    if recipe.validation.times:  # said now, not after hours of training
        try:
            TASKS[recipe.task].check_labels(val)
        except DataError as error:
            raise DataError(f"{prepared.folder}: split '{recipe.data.val_split}': {error}") from error
    return train, val


def check_training(prepared: PreparedData, recipe: Recipe, train: Records) -> None:
    """What a new run may not be trained on; `train` as `open_splits` gives it.

    Raises DataError for a record without an answer or label (an unanswered question would be learnt as one to which
    every answer is wrong; split train has none, `prepare` sees to that), and for a photo that is kept out of training
    and stands in another training split as well.
    """
    for name in recipe.data.train_splits:
        own = prepared.own_name(name)
        if own == "train" or own not in prepared.info["splits"]:
            continue
        try:
            TASKS[recipe.task].check_labels(prepared.split(own))
        except DataError as error:
            what = str(error).partition(";")[0]
            told = f"{prepared.folder}: split '{name}' cannot be trained on: {what}; leave it out of data.train_splits"
            raise DataError(told) from error
    count = _kept_out(train, recipe)
    for image in range(count):
        if any(row >= count for row in train.rows_of_photo(image)):
            raise DataError(
                f"{prepared.folder}: image '{train.image_id(image)}' is kept out of training to fit matches, and stands"
                " in another training split as well; leave that out of data.train_splits, or set"
                " itm.calibration_images=0"
            )


def keep_out(train: Records, recipe: Recipe) -> tuple[Records, Records | None]:
    """The records to train on, and those of the first images where the task keeps some out to be fitted afterwards.

    Of few images a fifth at the most is kept out; of fewer than 10, none.
    """
    count = _kept_out(train, recipe)
    if not count:
        return train, None
    return SplitPart(train, count, train.num_images), SplitPart(train, 0, count)


def _kept_out(train: Records, recipe: Recipe) -> int:
    count = min(TASKS[recipe.task].calibration_images(recipe), train.num_images // 5)
    return count if count >= 2 else 0


def _held_out(prepared: PreparedData, recipe: Recipe, val: Records) -> tuple[Records, Records]:
    """Of the split that is trained on and validated on: the part for training, and the first images, which are held
    out.

    Raises DataError when the recipe does not say how much is held out, when nothing would be left to train on, or the
    records have two images.
    """
    name, count = recipe.data.val_split, recipe.data.held_out_images
    if val.second_image(0) >= 0:
        raise DataError(
            f"{prepared.folder}: its records have two images, so no part of split '{name}' can be held out;"
            " leave it out of data.train_splits"
        )
    if not count:
        raise DataError(
            f"{prepared.folder}: split '{name}' is trained on; data.held_out_images says how many images to hold out"
        )
    if val.num_images <= count:
        raise DataError(
            f"{prepared.folder}: split '{name}' has {val.num_images} image(s), data.held_out_images holds out {count}"
        )
    return SplitPart(val, count, val.num_images), SplitPart(val, 0, count)


def build_parts(
    recipe: Recipe, train: Records, val: Records, *, run: Path | None = None, from_run: Path | None = None
) -> Parts:
    """Processor and model for a recipe: new, of a run that goes on, or with the weights of another run.

    Args:
        run: a run folder whose checkpoint is loaded afterwards: its processor and the shape of its model.
        from_run: another run, of the same shape; its model and vocabulary.

    Raises UsageError, DataError, CheckpointError.
    """
    if run is not None:
        processor, model = _reopen(run, recipe)
        return Parts(processor, model, train, val)
    if from_run is not None:
        processor, model, reports = _start_from(from_run, recipe, train)
    else:
        for source, hub in ((recipe.backbone.weights, "timm"), (recipe.text.weights, "hub")):
            if source:  # a file that is not there is told before a hub is asked for anything
                WeightSource.parse(source, hub)
        processor = build_processor(recipe, train)
        model, reports = build_model(recipe, processor, train)
    return Parts(processor, model, train, val, reports)


def _reopen(run: Path, recipe: Recipe) -> tuple[PixelBertProcessor, PixelBertPreTrainedModel]:
    if not (run / "config.json").is_file():  # transformers would make one up
        raise CheckpointError(f"{run}: half a run folder (no config.json)")
    try:
        config = PixelBertConfig.from_pretrained(run)
        check_answers(run, config)
        processor = read_processor(run, config)
        return processor, TASKS[recipe.task].model_class(config)
    except (OSError, ValueError, KeyError, TypeError, DataError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{run}: a damaged run folder ({reason})") from error


# What --from cannot change, by the recipe's names: the weights would not fit, or would mean something else.
_SHAPE = {
    "backbone.name": "backbone", "backbone.output": "backbone_output", "visual.pool": "visual_pool",
    "visual.projection": "visual_projection", "visual.layer_norm": "visual_layer_norm",
    "visual.position": "visual_position",
}  # fmt: skip


def _start_from(
    source: Path, recipe: Recipe, train: Records
) -> tuple[PixelBertProcessor, PixelBertPreTrainedModel, dict[str, Any]]:
    """A model of the recipe with another run's weights; a head that only one of the two has is new or left out."""
    task, loaded = TASKS[recipe.task], load_any(source)
    tokenizer = read_processor(source, loaded.config).tokenizer
    tokenizer.model_max_length = recipe.text.max_length
    old, config = loaded.config, _config(recipe, loaded.config.text_config.to_dict(), train)
    differing = [(key, getattr(old, name), getattr(config, name)) for key, name in _SHAPE.items()]
    sizes = (old.contrastive_size, config.contrastive_size)
    differing += [("contrastive_size", *sizes)] if all(sizes) else []
    for key, theirs, ours in differing:
        if theirs != ours:
            raise UsageError(f"{source}: has {key} {theirs!r}, the recipe {ours!r}; --from needs the same")
    config.image_channels, config.image_mean, config.image_std = old.image_channels, old.image_mean, old.image_std
    model = _fresh(recipe, config, train)
    weights = loaded.state_dict()
    other_count = old.num_images != config.num_images
    # a head for other answers, or for statements about another number of pictures, is no use
    if type(loaded) is not type(model) or old.id2label != config.id2label or other_count:
        dropped = ("head.", "image_type.") if other_count else ("head.",)
        weights = {name: tensor for name, tensor in weights.items() if not name.startswith(dropped)}
    keys = model.load_state_dict(weights, strict=False)
    task.start(model, loaded)
    report = {"source": str(source), "missing": keys.missing_keys, "unused": keys.unexpected_keys}
    return _processor(recipe, tokenizer), model, {"from": report}


def load_any(source: Path) -> PixelBertPreTrainedModel:
    """The trained model of a run folder, whatever its task. Raises CheckpointError where there is none."""
    if not (source / "model.safetensors").is_file():
        raise CheckpointError(f"{source}: not a run folder with a trained model (no model.safetensors)")
    names = read_json(source / "config.json").get("architectures") or ["PixelBertForPreTraining"]
    task = task_of_model(str(names[0]))
    if task is None:
        raise CheckpointError(f"{source}: holds a model of class '{names[0]}', which is none of this version's")
    loaded = load_pretrained(task.model_class, source)
    if (source / "run.json").is_file():
        check_answers(source, loaded.config)
    return loaded


def build_processor(recipe: Recipe, train: Records) -> PixelBertProcessor:
    """The run's processor; its vocabulary comes from a file, from the encoder's weights, or from the training texts."""
    vocabulary: str | Path | Sequence[str]
    if recipe.text.vocab:
        path = Path(recipe.text.vocab)
        vocabulary = path if path.exists() else vocab_of(recipe.text.vocab)
    elif recipe.text.weights:
        vocabulary = vocab_of(recipe.text.weights)
    else:
        texts = (train.text(r) for r in range(train.num_records))
        vocabulary = train_wordpiece(texts, recipe.text.vocab_size)
    tokenizer = load_tokenizer(vocabulary, max_length=recipe.text.max_length)
    if recipe.text.vocab and recipe.text.weights:
        _check_words(recipe, tokenizer)
    return _processor(recipe, tokenizer)


def _check_words(recipe: Recipe, tokenizer: Any) -> None:
    """Raises UsageError for a vocabulary that is not the weights' own: every word would get another one's vector."""
    try:
        own = load_tokenizer(vocab_of(str(recipe.text.weights)))
    except UsageError:  # these weights name no words
        return
    if vocabulary_of(own) != vocabulary_of(tokenizer):
        raise UsageError(
            f"{recipe.name}: text.vocab '{recipe.text.vocab}' is another vocabulary than that of text.weights"
            f" '{recipe.text.weights}'; leave it out"
        )


def _processor(recipe: Recipe, tokenizer: Any) -> PixelBertProcessor:
    image = recipe.image
    multiple = multiple_for_backbone(recipe.backbone.name, recipe.visual.pool)
    images = PixelBertImageProcessor(
        image.shorter, image.longer, image.square, multiple, size_divisor=image.size_divisor
    )
    return PixelBertProcessor(images, tokenizer, max_length=recipe.text.max_length)


def build_model(
    recipe: Recipe, processor: PixelBertProcessor, train: Records
) -> tuple[PixelBertPreTrainedModel, dict[str, Any]]:
    """A model of the recipe's shape with its foreign weights, and a report of each source."""
    text, backbone = recipe.text, recipe.backbone
    if text.weights:
        shape = text_config_from(text.weights)
    else:
        shape = {
            "vocab_size": len(processor.tokenizer), "hidden_size": text.hidden_size, "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads, "intermediate_size": text.intermediate_size,
            "initializer_range": text.initializer_range,
        }  # fmt: skip
    config = _config(recipe, shape, train)
    if len(processor.tokenizer) > config.text_config.vocab_size:
        raise UsageError(
            f"{recipe.name}: text.vocab has {len(processor.tokenizer):,} wordpieces, text.weights"
            f" {config.text_config.vocab_size:,} vectors for them"
        )
    try:
        model = _fresh(recipe, config, train)
    except ValueError as error:
        raise UsageError(f"{recipe.name}: {error}") from error
    reports: dict[str, Any] = {}
    visual = model.pixelbert.visual
    if text.weights:
        init = recipe.visual.type_embedding_init
        target = model if isinstance(model, PixelBertForPreTraining) else model.pixelbert
        reports["text"] = load_text_weights(target, text.weights, type_embedding_init=init).to_dict()
    if backbone.weights:
        report = load_backbone_weights(model.pixelbert, backbone.weights, statistics=backbone.statistics)
        reports["backbone"] = report.to_dict()
    elif backbone.wake_residuals:
        wake_residuals(visual.body)
    elif backbone.norm == "frozen" and not visual.is_frozen and sleeping_norms(visual.body):
        raise UsageError(
            f"{recipe.name}: backbone.norm=frozen keeps the norms of pretrained weights, and without any the residual"
            " blocks of this CNN could never learn; give backbone.weights=..., or backbone.norm=train"
        )
    if not text.type_embedding:
        torch.nn.init.zeros_(model.pixelbert.text.embeddings.token_type_embeddings.weight)
    return model, reports


def _fresh(recipe: Recipe, config: PixelBertConfig, train: Records) -> Any:
    """The task's model before any foreign weights, the same for the same seed."""
    torch.manual_seed(recipe.seed)
    model = TASKS[recipe.task].model_class(config)
    TASKS[recipe.task].prior(model, recipe, train)
    return model


def _config(recipe: Recipe, shape: dict[str, Any], train: Records) -> PixelBertConfig:
    """The recipe's model settings with an encoder of that shape. Raises UsageError where they do not go together."""
    text, backbone, visual = recipe.text, recipe.backbone, recipe.visual
    shape = shape | {"hidden_dropout_prob": text.dropout, "attention_probs_dropout_prob": text.dropout}
    if text.activation is not None:
        shape["hidden_act"] = text.activation
    try:
        config = PixelBertConfig(
            text_config=shape, backbone=backbone.name, backbone_output=backbone.output, backbone_norm=backbone.norm,
            frozen_stages=backbone.frozen_stages, visual_pool=visual.pool, visual_projection=visual.projection,
            visual_layer_norm=visual.layer_norm, visual_position=visual.position, visual_dropout=visual.dropout,
            visual_channel_dropout=visual.channel_dropout, visual_skip=visual.skip,
            num_sampled_pixels=visual.num_sampled_pixels, contrastive_size=recipe.contrastive_size,
            **TASKS[recipe.task].model_settings(recipe, train),
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"{recipe.name}: {error}") from error
    places = config.text_config.max_position_embeddings
    if text.max_length > places:
        raise UsageError(f"text.max_length is {text.max_length}, but the encoder has {places} positions")
    return config


def recompute_activations(model: Any) -> None:
    """Gradient checkpointing of CNN and encoder, by the name that this transformers has for it: v6 drops the older."""
    newer = getattr(model, "activation_checkpointing_enable", None)
    (newer or model.gradient_checkpointing_enable)()


def prepare_network(model: Any, recipe: Recipe, accelerator: Accelerator) -> None:
    """What training asks of the network beside its weights and precision: recomputation, what stays as it is."""
    visual = model.pixelbert.visual
    if recipe.backbone.norm == "sync" and accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        visual.body = convert_sync_batchnorm(visual.body)
    if recipe.train.gradient_checkpointing:
        recompute_activations(model)
    embeddings = model.pixelbert.text.embeddings
    if recipe.text.freeze_embeddings:  # half of a small model's parameters, and a dense gradient each step
        for part in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
            part.requires_grad_(False)
    if not recipe.text.type_embedding:
        embeddings.token_type_embeddings.requires_grad_(False)
