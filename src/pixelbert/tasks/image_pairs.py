"""Statements about pictures (Section 4.2, NLVR2): true or false of two pictures, or of one (NLVR).

The label's place in the head: 0 false, 1 true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelbert.data.batches import Batch, Plan, Records
from pixelbert.errors import DataError
from pixelbert.metrics import nlvr2_scores
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.heads import PixelBertForImagesAndTextClassification
from pixelbert.model.pixels import Grid
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.recipes.schema import Phase, Recipe
from pixelbert.tasks.calibration import Stated
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.objective import Objective, by_length
from pixelbert.tasks.predicting import predict_records, record_outcome, scored_records
from pixelbert.tasks.submission import Submission, identifier, once, read_judgements, write_judgements
from pixelbert.tasks.task import Outcome, Scoring, Task, common_inputs

LABELS = ("false", "true")
UNLABELLED = -100  # a test split's records


def statement_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy summed over the statements: logits [T, 2], labels [T]."""
    return F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=UNLABELLED)


@dataclass
class StatementBatches(Inputs):
    """Builds the batch of a plan: each picture once, each statement with its one or two pictures."""

    num_images: int = 2

    def __call__(self, plan: Plan) -> Batch:
        """As `PretrainingBatches`, with image_of_text int64 [T, num_images] and labels int64 [T]."""
        records = plan.records.tolist()
        images = self.records.image_of[plan.records][:, None]
        if self.num_images == 2:
            second = np.array([self.records.second_image(record) for record in records], dtype=np.int64)
            images = np.concatenate([images, second[:, None]], axis=1)
        batch = self.images_of(images, plan.epochs)
        batch |= self.text_batch([self.records.text(record) for record in records])
        batch["labels"] = torch.tensor([label_of(self.records.target(record)) for record in records])
        batch["records"], batch["step"] = records, plan.step
        if self.sampled:
            batch["sampling_seed"] = self.sampling_seeds(plan, self.num_images)
        return batch


@dataclass(frozen=True)
class StatementLosses:
    """The weight of the one loss."""

    statement: float = 1.0


class StatementObjective(Objective):
    """Cross-entropy of true and false, all pixels unless the recipe samples them too."""

    model: PixelBertForImagesAndTextClassification

    def losses(self, batch: Batch, grid: Grid, settings: StatementLosses) -> dict[str, Tensor]:
        """statement: summed over the statements."""
        return {"statement": statement_loss(self.scores(batch, grid), batch["labels"])}

    def scores(self, batch: Batch, grid: Grid) -> Tensor:
        """Logits [T, 2]: false, true."""
        ids, mask, images = batch["input_ids"], batch["attention_mask"], batch["image_of_text"]

        def logits(rows: Tensor, length: int) -> Tensor:
            seeds = batch["sampling_seed"][rows].flatten() if "sampling_seed" in batch else None
            output = self.model(
                ids[rows, :length], attention_mask=mask[rows, :length], grid=grid, image_of_text=images[rows],
                sampling_seed=seeds,
            )  # fmt: skip
            return output.logits

        return by_length(mask, self.chunks, logits)


def label_of(target: Mapping[str, Any]) -> int:
    """1 true, 0 false, -100 when the record has no label."""
    return UNLABELLED if target.get("label") is None else int(bool(target["label"]))


def score_statements(
    records: Records, judged: Mapping[int, bool], among: Sequence[int] | None = None
) -> dict[str, float]:
    """accuracy, and consistency where the records are NLVR2's; percent. `judged`: record -> true or false; `among`: the
    records that are scored, None = all.

    Raises ValueError for a record without a judgement.
    """
    examples: list[dict[str, Any]] = []
    for record in range(records.num_records) if among is None else among:
        target = records.target(record)
        official = "set" in target  # the reader of NLVR2's files vouches for the identifier; others may look like it
        name = str(target["identifier"]) if official else f"own-{record}-0-0"
        label = str(label_of(target) == 1)
        examples.append({"identifier": name, "label": label, "record": record, "official": official})
    predictions = {e["identifier"]: judged[e["record"]] for e in examples if e["record"] in judged}
    scores = nlvr2_scores(predictions, examples)
    figures = {"accuracy": 100 * scores.accuracy}
    if all(e["official"] for e in examples):
        figures["consistency"] = 100 * scores.consistency
    return figures


# -- the task of the common loop ---------------------------------------------------------------------------------------


class ImagePairs(Task):
    """NLVR2 (Section 4.2.2), NLVR, and statements of one's own about one or two pictures."""

    name = "image_pairs"
    data = ("nlvr2", "nlvr")
    needs = "statements about pictures, true or false"
    model_class = PixelBertForImagesAndTextClassification
    beside = ("accuracy", "consistency")
    least_images = 1

    def model_settings(self, recipe: Recipe, train: Records) -> dict[str, Any]:
        """How many pictures a statement is about is the data's: one in NLVR, two in NLVR2."""
        return {
            "num_images": 2 if train.second_image(0) >= 0 else 1, "image_type": recipe.head.image_type,
            "id2label": dict(enumerate(LABELS)), "head_dropout": recipe.head.dropout,
        }  # fmt: skip

    def batches(
        self, recipe: Recipe, records: Records, processor: PixelBertProcessor, config: PixelBertConfig, train: bool
    ) -> StatementBatches:
        """Raises DataError when the statements are about another number of pictures than the model's."""
        pictures = 2 if records.second_image(0) >= 0 else 1
        if pictures != config.num_images:
            raise DataError(
                f"statement {records.record_id(0)}: is about {pictures} picture(s), the model about {config.num_images}"
            )
        common = common_inputs(recipe, records, processor, config, train)
        return StatementBatches(**common, num_images=config.num_images)

    def objective(self, model: Any, encoder_dtype: torch.dtype | None = None, chunks: int = 1) -> StatementObjective:
        """Cross-entropy."""
        return StatementObjective(model, encoder_dtype, chunks)

    def losses(self, recipe: Recipe, phase: Phase) -> StatementLosses:
        """One loss, weight 1."""
        return StatementLosses()

    def counts(self, batch: Batch, losses: StatementLosses) -> dict[str, int]:
        """Statements with a label."""
        return {"statement": int((batch["labels"] != UNLABELLED).sum())}

    def figure_names(self, recipe: Recipe) -> list[str]:
        """Accuracy; consistency too where the data is NLVR2's."""
        return ["accuracy"]

    def score(self, model: Any, batches: StatementBatches, scoring: Scoring) -> Outcome:
        """Accuracy and consistency, and a row a statement. Raises DataError for a statement without label."""
        split, records = batches.records, scored_records(batches, scoring)
        _require_labels(split, records)
        true = self._chances(model, batches, records, scoring)
        judged = {record: chance > 0.5 for record, chance in zip(records, true, strict=True)}
        figures = score_statements(split, judged, records)
        rows = [
            {"record": split.record_id(record), "statement": split.text(record), "judged": judged[record],
             "probability": round(chance, 4), "label": bool(split.target(record)["label"]),
             "right": judged[record] == bool(split.target(record)["label"]), "split_record": record}
            for record, chance in zip(records, true, strict=True)
        ]  # fmt: skip
        outcome = record_outcome(figures, rows, batches)
        outcome.stated = lambda: Stated.of_probabilities(true, [row["label"] for row in rows])
        return outcome

    def check_ids(self, records: Records, split: str) -> None:
        """A statement's identifier is there once."""
        once((identifier(records, r) for r in range(records.num_records)), "identifier", split)

    def predict(self, model: Any, batches: StatementBatches, scoring: Scoring) -> Submission:
        """NLVR2's file: a judgement of every statement."""
        split = batches.records
        true = self._chances(model, batches, range(split.num_records), scoring)
        text = write_judgements(split, [chance > 0.5 for chance in true])
        return Submission(text, lambda path: read_judgements(path, split, "the split", in_order=True), len(true))

    def score_file(self, path: Path, records: Records, split: str) -> dict[str, float]:
        """NLVR2's file: the scores of `score`."""
        self.check_labels(records)
        return score_statements(records, read_judgements(path, records, split))

    def check_labels(self, records: Records, among: Sequence[int] | None = None) -> None:
        """Every statement needs a label."""
        _require_labels(records, range(records.num_records) if among is None else among)

    def _chances(self, model: Any, batches: StatementBatches, records: Sequence[int], scoring: Scoring) -> list[float]:
        """Probability that each of these statements is true."""
        return truth_of(predict_records(self.objective(model, scoring.encoder_dtype, 4), batches, records, scoring))


def _require_labels(records: Records, among: Sequence[int]) -> None:
    for record in among:
        if records.target(record).get("label") is None:
            raise DataError(f"statement {records.record_id(record)}: has no label; `predict` goes without it")


def truth_of(logits: Tensor) -> list[float]:
    """Probability that each statement is true: logits [T, 2]."""
    return logits.float().softmax(dim=1)[:, 1].tolist()
