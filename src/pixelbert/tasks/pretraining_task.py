"""Pretraining as a task of the common loop: from a recipe to batches, losses and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixelbert.data.batches import Batch, Records
from pixelbert.errors import DataError
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.recipes.schema import Phase, Recipe
from pixelbert.tasks.match_fit import FitsMatches
from pixelbert.tasks.predicting import scored_records
from pixelbert.tasks.pretraining import LossSettings, PretrainingBatches, PretrainingObjective, loss_counts
from pixelbert.tasks.pretraining_examples import write_examples
from pixelbert.tasks.pretraining_scores import HeldOut, figure_names, validate, word_accuracy
from pixelbert.tasks.task import Outcome, Scoring, common_inputs

_OTHER_WORDS = "the blind run hides other words; train both with the same text settings"


class Pretraining(FitsMatches):
    """Masked words, matches, pooled vectors (Section 3.3)."""

    name = "pretraining"
    data = ("pairs",)
    needs = "image-text pairs"
    model_class = PixelBertForPreTraining

    def batches(
        self, recipe: Recipe, records: Records, processor: PixelBertProcessor, config: PixelBertConfig, train: bool
    ) -> PretrainingBatches:
        """Held-out batches are neither augmented nor contrasted."""
        return PretrainingBatches(
            **common_inputs(recipe, records, processor, config, train),
            mask_probability=recipe.mlm.probability, whole_word=recipe.mlm.whole_word,
            heavy_share=recipe.mlm.heavy_share, heavy_probability=recipe.mlm.heavy_probability,
            mlm_on_negatives=recipe.mlm.on_negatives, negative_ratio=recipe.itm.negative_ratio,
            contrastive=train and (config.contrastive_size > 0 or _reads_captions(recipe)),
            text_mlm=train and any(loss.text_mlm for loss in recipe.losses),
        )  # fmt: skip

    def objective(self, model: Any, encoder_dtype: torch.dtype | None = None, chunks: int = 1) -> PretrainingObjective:
        """The three losses."""
        return PretrainingObjective(model, encoder_dtype, chunks)

    def losses(self, recipe: Recipe, phase: Phase) -> LossSettings:
        """Weights, share of hard negatives and sampled pixels of a phase."""
        loss = phase.loss or recipe.loss
        hard = recipe.itm.hard_share if phase.hard_share is None else phase.hard_share
        pixels = recipe.visual.num_sampled_pixels if phase.num_sampled_pixels is None else phase.num_sampled_pixels
        return LossSettings(loss.mlm, loss.itm, loss.contrastive, hard, pixels, loss.align, loss.tags, loss.text_mlm)

    def counts(self, batch: Batch, losses: LossSettings) -> dict[str, int]:
        """Masked pieces and pairs."""
        return loss_counts(batch, losses)

    def figure_names(self, recipe: Recipe) -> list[str]:
        """ITM accuracy first."""
        names = figure_names(bool(recipe.validation.exact_images), recipe.contrastive_size > 0)
        return ["itm_accuracy", *(name for name in names if name != "itm_accuracy")]

    def score(self, model: PixelBertForPreTraining, batches: PretrainingBatches, scoring: Scoring) -> Outcome:
        """Figures, and a row a masked word. Raises DataError for fewer than two images."""
        count = min(scoring.images or batches.records.num_images, batches.records.num_images)
        held_out = HeldOut.of(model, batches, count, scoring)
        figures, words = validate(held_out, scoring.exact_images, scoring.shortlist)

        def write(folder: Path) -> None:
            (folder / "masked_words.jsonl").write_text(word_lines(held_out, words), encoding="utf-8")
            write_examples(folder, held_out, words)

        return Outcome(figures, words, write, len(held_out.images), len(held_out.records), held_out.stated)

    def blind_scoring(self, scoring: Scoring) -> Scoring:
        """Its masked words are wanted, its rankings are not."""
        return replace(scoring, exact_images=0, shortlist=0)

    def check_blind(
        self, batches: PretrainingBatches, scoring: Scoring, blind: PretrainingBatches, blind_scoring: Scoring
    ) -> None:
        """Which words are hidden is drawn from the seed and the texts as wordpieces."""
        texts = [batches.records.text(record) for record in scored_records(batches, scoring)]
        pieces = zip(batches.tokenize(texts), blind.tokenize(texts), strict=True)
        if scoring.seed != blind_scoring.seed or not all(np.array_equal(own, other) for own, other in pieces):
            raise DataError(_OTHER_WORDS)

    def beside_blind(self, outcome: Outcome, blind: Outcome) -> dict[str, float]:
        """The blind model's masked words, at the same places. Raises DataError where those differ."""
        places = [[(row["record"], row["place"], row["word"]) for row in one.rows] for one in (outcome, blind)]
        if places[0] != places[1]:
            raise DataError(_OTHER_WORDS)
        accuracy = word_accuracy(blind.rows)
        return {"mlm_accuracy_blind": accuracy, "mlm_gain_blind": outcome.figures["mlm_accuracy"] - accuracy}


def _reads_captions(recipe: Recipe) -> bool:
    """Whether any phase has a loss on plain captions, pooled vectors aside."""
    return any(loss.align or loss.tags or loss.text_mlm for loss in recipe.losses)


def word_lines(held_out: HeldOut, words: list[dict[str, Any]]) -> str:
    """The masked words as JSON lines, pieces as text."""
    tokenizer, lines = held_out.batches.tokenizer, []
    for row in words:
        pieces = tokenizer.convert_ids_to_tokens([row["word"], row["predicted"], row["predicted_shuffled"]])
        lines.append(json.dumps({**row, "word": pieces[0], "predicted": pieces[1], "predicted_shuffled": pieces[2]}))
    return "".join(line + "\n" for line in lines)
