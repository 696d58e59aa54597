"""From a recipe to the things a run needs: data, processor, model with its first weights, batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pixelbert.data.batches import Records, join
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, UsageError
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.image_processing import ResizeRule, multiple_for_backbone
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.processor import PixelBertImageProcessor, PixelBertProcessor
from pixelbert.model.tokenization import load_tokenizer, train_wordpiece
from pixelbert.model.weights import load_backbone_weights, load_text_weights, text_config_from, vocab_of
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.pretraining import PretrainingBatches


@dataclass
class Parts:
    """What a run works with."""

    processor: PixelBertProcessor
    model: PixelBertForPreTraining
    train: Records
    val: Records
    reports: dict[str, Any] = field(default_factory=dict)  # of the foreign weights, for run.json


def open_splits(prepared: PreparedData, recipe: Recipe) -> tuple[Records, Records]:
    """The training records and the held-out ones. Raises DataError for a split that is not there or holds no text."""
    wanted = [name for name in recipe.data.train_splits if name in prepared.info["splits"]]
    if not wanted:
        prepared.split(recipe.data.train_splits[0])  # raises, naming what there is
    train, val = join([prepared.split(name) for name in wanted]), prepared.split(recipe.data.val_split)
    for name, split in (("train", train), (recipe.data.val_split, val)):
        if split.num_images < 2:
            raise DataError(f"{prepared.folder}: split '{name}' has {split.num_images} image(s), at least 2 are needed")
    return train, val


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
    image = recipe.image
    multiple = multiple_for_backbone(recipe.backbone.name, recipe.visual.pool)
    images = PixelBertImageProcessor(image.shorter, image.longer, image.square, multiple)
    tokenizer = load_tokenizer(vocabulary, max_length=recipe.text.max_length)
    return PixelBertProcessor(images, tokenizer, max_length=recipe.text.max_length)


def build_model(recipe: Recipe, processor: PixelBertProcessor) -> tuple[PixelBertForPreTraining, dict[str, Any]]:
    """A model of the recipe's shape with its foreign weights, and a report of each source."""
    text = recipe.text
    if text.weights:
        shape = text_config_from(text.weights)
    else:
        shape = {
            "vocab_size": len(processor.tokenizer), "hidden_size": text.hidden_size, "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads, "intermediate_size": text.intermediate_size,
        }  # fmt: skip
    shape |= {"hidden_dropout_prob": text.dropout, "attention_probs_dropout_prob": text.dropout}
    backbone, visual = recipe.backbone, recipe.visual
    try:
        config = PixelBertConfig(
            text_config=shape, backbone=backbone.name, backbone_output=backbone.output, backbone_norm=backbone.norm,
            frozen_stages=backbone.frozen_stages, visual_pool=visual.pool, visual_projection=visual.projection,
            visual_layer_norm=visual.layer_norm, visual_position=visual.position, visual_dropout=visual.dropout,
            num_sampled_pixels=visual.num_sampled_pixels, contrastive_size=recipe.contrastive_size,
        )  # fmt: skip
        torch.manual_seed(recipe.seed)
        model = PixelBertForPreTraining(config)
    except ValueError as error:
        raise UsageError(f"{recipe.name}: {error}") from error
    reports: dict[str, Any] = {}
    if text.weights:
        reports["text"] = load_text_weights(model, text.weights).to_dict()
    if backbone.weights:
        reports["backbone"] = load_backbone_weights(model.pixelbert, backbone.weights).to_dict()
    return model, reports


def freeze_embeddings(model: PixelBertForPreTraining) -> None:
    """Word, position and type rows stay as loaded: half of a small model's parameters, and a dense gradient each step."""
    for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
        getattr(model.pixelbert.text.embeddings, name).requires_grad_(False)


def pretraining_batches(recipe: Recipe, records: Records, processor: PixelBertProcessor, config: PixelBertConfig, train: bool) -> PretrainingBatches:
    """The builder of a run's batches; held-out ones are neither augmented nor contrasted."""
    images: Any = processor.image_processor
    rule: ResizeRule = images.rule
    grey = [round(255 * m) for m in config.image_mean]
    if config.image_channels == "BGR":
        grey.reverse()
    return PretrainingBatches(
        records, processor.tokenizer, rule, images.size_divisor, recipe.seed, images.limits, processor.max_length,
        recipe.mlm.probability, recipe.mlm.whole_word, recipe.mlm.on_negatives, recipe.itm.negative_ratio,
        augmentation=recipe.image.augment if train else "none", crop_scale=recipe.image.crop_scale,
        contrastive=train and config.contrastive_size > 0,
        constant=(grey[0], grey[1], grey[2]) if recipe.blind else None,
        without_images=train and recipe.train.keep_frozen_features,
    )  # fmt: skip
