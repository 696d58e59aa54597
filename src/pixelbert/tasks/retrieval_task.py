"""Retrieval as a task of the common loop, and its scores: R@1, 5, 10 in both directions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixelbert.data.batches import Batch, Records
from pixelbert.errors import UsageError
from pixelbert.metrics import recall_scores
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.heads import PixelBertForImageAndTextRetrieval
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertPreTrainedModel
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.recipes.schema import Phase, Recipe
from pixelbert.tasks.held_out import HeldOutPairs, recalls
from pixelbert.tasks.match_fit import LISTED, FitsMatches
from pixelbert.tasks.record_examples import choose_rows, write_examples
from pixelbert.tasks.retrieval import RetrievalBatches, RetrievalLosses, RetrievalObjective
from pixelbert.tasks.submission import Submission, check_rankings, once, write_rankings
from pixelbert.tasks.task import Outcome, Scoring, common_inputs


class Retrieval(FitsMatches):
    """Pictures by sentence and sentences by picture (Section 4.2.3)."""

    name = "retrieval"
    data = ("pairs",)
    needs = "image-text pairs"
    model_class = PixelBertForImageAndTextRetrieval
    beside = ("rsum", "t2i_r1", "t2i_r10", "i2t_r1", "i2t_r10")
    listed = LISTED

    def start(self, model: PixelBertForImageAndTextRetrieval, source: PixelBertPreTrainedModel) -> None:
        """The head begins as pretraining's matching."""
        if isinstance(source, PixelBertForPreTraining):
            model.start_from_itm(source.itm_head.weight, source.itm_head.bias)

    def batches(
        self, recipe: Recipe, records: Records, processor: PixelBertProcessor, config: PixelBertConfig, train: bool
    ) -> RetrievalBatches:
        """With as many random candidates as the recipe says."""
        common = common_inputs(recipe, records, processor, config, train)
        contrastive, ranking = any(loss.contrastive for loss in recipe.losses), recipe.ranking
        return RetrievalBatches(
            **common, negatives=ranking.negatives, contrastive=contrastive, contrasted=ranking.contrasted
        )

    def objective(self, model: Any, encoder_dtype: torch.dtype | None = None, chunks: int = 1) -> RetrievalObjective:
        """Softmax over the hardest candidates."""
        return RetrievalObjective(model, encoder_dtype, chunks)

    def losses(self, recipe: Recipe, phase: Phase) -> RetrievalLosses:
        """Weights, and how many negatives are learnt from."""
        return RetrievalLosses(1.0, (phase.loss or recipe.loss).contrastive, recipe.ranking.hard_negatives)

    def counts(self, batch: Batch, losses: RetrievalLosses) -> dict[str, int]:
        """Pairs; of the contrastive loss also the candidates that came with their images."""
        counts = {"retrieval": len(batch["records"])}
        return counts | {"contrastive": batch["contrast_image"].numel()} if losses.contrastive else counts

    def figure_names(self, recipe: Recipe) -> list[str]:
        """The sum of the six recalls first."""
        names = [f"{direction}_r{k}" for direction in ("t2i", "i2t") for k in (1, 5, 10)]
        pooled = [f"dual_{name}" for name in names] if recipe.contrastive_size else []
        return ["rsum", *names, *pooled]

    def score(self, model: Any, batches: RetrievalBatches, scoring: Scoring) -> Outcome:
        """Recalls over the whole split, through a shortlist or exactly, and a row a text.

        `shortlist` n: n images a text and n times as many texts an image as it has captions go from the pooled vectors
        to the model. `exact_images`: without a shortlist, so many images and their texts are the whole ranking; with
        one, the same small ranking is done both ways, and the `loss` of the shortlist told. `folds` n: each n images
        with their texts are a ranking of their own, and the figures are the means (COCO 1K: 5 folds of 1,000).

        Raises UsageError as `check_scoring`.
        """
        self.check_scoring(model.config, batches.records.num_images, scoring)
        count = self.scored_images(scoring, batches.records.num_images)
        held_out = HeldOutPairs.of(model, batches, count, scoring)
        images, texts, pooled = _rankings(held_out, scoring)
        figures = _directions(images, texts, held_out.image_of, scoring.folds)
        if pooled is not None:
            figures |= recalls(pooled, held_out.image_of, "dual", folds=scoring.folds)
            if scoring.shortlist and scoring.exact_images:
                figures |= self._shortlist_loss(held_out, pooled, scoring)
        rows = _rows(held_out, images)
        of_images = _image_ranks(held_out, texts)

        def write(folder: Path) -> None:
            (folder / "image_ranks.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in of_images), encoding="utf-8"
            )
            lines = "".join(json.dumps({k: v for k, v in row.items() if k != "best_rows"}) + "\n" for row in rows)
            (folder / "ranks.jsonl").write_text(lines, encoding="utf-8")
            chosen = choose_rows(rows, lambda row: row["rank"] > 10, lambda row: row["margin"])
            write_examples(folder, batches, chosen, lambda row: row["best_rows"])

        return Outcome(figures, rows, write, len(held_out.images), len(held_out.records), held_out.stated)

    def scored_images(self, scoring: Scoring, images: int) -> int:
        """Without a shortlist, those of an exact ranking are all."""
        count = super().scored_images(scoring, images)
        return min(count, scoring.exact_images) if scoring.exact_images and not scoring.shortlist else count

    def check_scoring(self, config: PixelBertConfig, images: int, scoring: Scoring) -> None:
        """Raises UsageError for folds that do not divide the images, and for a shortlist without pooled vectors."""
        super().check_scoring(config, images, scoring)
        count = self.scored_images(scoring, images)
        if scoring.folds == 1 or (scoring.folds and count % scoring.folds):
            raise UsageError(f"{count:,} images cannot be cut into folds of {scoring.folds:,}; --images N takes N")

    def blind_scoring(self, scoring: Scoring) -> Scoring:
        """What a shortlist loses is asked of the model that sees alone."""
        return replace(scoring, exact_images=0) if scoring.shortlist else scoring

    def check_ids(self, records: Records, split: str) -> None:
        """Ids of texts and of images are there once."""
        once((records.record_id(r) for r in range(records.num_records)), "text", split)
        once((records.image_id(i) for i in range(records.num_images)), "image", split)

    def predict(self, model: Any, batches: RetrievalBatches, scoring: Scoring) -> Submission:
        """The best images of every text, and the best texts of every image; of all captions, however many."""
        self.check_scoring(model.config, batches.records.num_images, scoring)
        split = batches.records
        most = max(len(split.records_of(image)) for image in range(split.num_images))
        images, texts, _ = _rankings(HeldOutPairs.of(model, batches, split.num_images, scoring, most), scoring)
        text = write_rankings(split, images, texts)
        return Submission(text, lambda path: check_rankings(path, split, "the split"), split.num_records)

    def _shortlist_loss(self, held_out: HeldOutPairs, pooled: np.ndarray, scoring: Scoring) -> dict[str, float]:
        """The first images ranked exactly and through the shortlist; its share of all images stays the same."""
        scores, image_of = held_out.exact_scores(scoring.exact_images)
        count, texts = scores.shape
        small = pooled[:count, :texts]
        share = max(1, round(scoring.shortlist * count / (scoring.folds or len(held_out.images))))
        listed = _listed(scores, small, share, image_of)
        exact = recalls(scores, image_of, "exact")
        loss = {f"shortlist_loss_{name[6:]}": value - listed[name[6:]] for name, value in exact.items()}
        return exact | loss


def _rankings(held_out: HeldOutPairs, scoring: Scoring) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Scores [images, texts] that rank images for texts, that rank texts for images, and those of the pooled vectors.

    With folds the first two are -inf where image and text are of different folds. A shortlist needs pooled vectors.
    """
    pooled = held_out.pooled_scores() if held_out.model.contrastive is not None else None
    if not scoring.shortlist:
        scores, _ = held_out.exact_scores(len(held_out.images), scoring.folds)
        return scores, scores, pooled
    assert pooled is not None
    image_of, folds = held_out.image_of, scoring.folds or len(held_out.images)
    apart = np.arange(len(held_out.images))[:, None] // folds != image_of // folds
    inside = np.where(apart, -np.inf, pooled)
    images = held_out.rerank(inside, min(scoring.shortlist, folds))
    texts = held_out.rerank(inside, scoring.shortlist * _per_image(image_of), by_image=True)
    images[apart] = texts[apart] = -np.inf  # where a fold has fewer than the shortlist
    return images, texts, pooled


def _listed(scores: np.ndarray, pooled: np.ndarray, shortlist: int, image_of: np.ndarray) -> dict[str, float]:
    """Recalls where only the shortlist by pooled vectors is ordered by the exact scores, which are known."""

    def through(count: int, axis: int) -> np.ndarray:
        place = np.argsort(np.argsort(-pooled, axis=axis, kind="stable"), axis=axis, kind="stable")
        return np.where(place < count, scores - scores.min() + pooled.max() + 1, pooled)

    return _directions(through(shortlist, 0), through(shortlist * _per_image(image_of), 1), image_of)


def _directions(images: np.ndarray, texts: np.ndarray, image_of: np.ndarray, folds: int = 0) -> dict[str, float]:
    """Text to image from one ranking, image to text from another; `rsum` adds the six."""
    t2i = recall_scores(images, image_of.tolist(), fold_images=folds or None).image_retrieval
    i2t = recall_scores(texts, image_of.tolist(), fold_images=folds or None).text_retrieval
    figures = {f"t2i_r{k}": float(v) for k, v in t2i.items()} | {f"i2t_r{k}": float(v) for k, v in i2t.items()}
    return {"rsum": sum(figures.values())} | figures


def _per_image(image_of: np.ndarray) -> int:
    """Captions of an image, the most that one has."""
    return int(np.bincount(image_of).max())


def _image_ranks(held_out: HeldOutPairs, scores: np.ndarray) -> list[dict[str, Any]]:
    """For each image the rank of its best own text among all texts (ties with others' rank against the model)."""
    rows = []
    for image, row in enumerate(scores):
        own = held_out.image_of == image
        rank = 1 + int((row[~own] >= row[own].max()).sum())
        rows.append({"image": held_out.batches.records.image_id(held_out.images[image]), "rank": rank})
    return rows


def _rows(held_out: HeldOutPairs, scores: np.ndarray) -> list[dict[str, Any]]:
    """For each text the rank of its image (ties rank against the model), the best images, and how far the first of
    them is ahead of the second; `best_rows` are their pictures, and the text's own after them if it is not there.
    """
    split, rows = held_out.batches.records, []
    for text in range(scores.shape[1]):
        own, column = held_out.image_of[text], scores[:, text]
        best = np.argsort(-column, kind="stable")[:5]
        rank = 1 + int((np.delete(column, own) >= column[own]).sum())
        rows.append({
            "record": split.record_id(held_out.records[text]), "text": split.text(held_out.records[text]),
            "image": split.image_id(held_out.images[own]), "rank": rank,
            "best": [split.image_id(held_out.images[i]) for i in best],
            "margin": round(float(column[best[0]] - column[best[1]]), 4) if len(best) > 1 else 0.0,
            "best_rows": [held_out.images[i] for i in (*best, *([] if own in best else [own]))],
        })  # fmt: skip
    return rows
