"""Statements about pictures (Section 4.2, NLVR2): true or false of two pictures, or of one (NLVR).

The label's place in the head: 0 false, 1 true.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelbert.data.batches import Batch, Plan, Records
from pixelbert.metrics import nlvr2_scores
from pixelbert.model.heads import PixelBertForImagesAndTextClassification
from pixelbert.model.pixels import Grid
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.objective import Objective, length_chunks

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
        return batch


@dataclass(frozen=True)
class StatementLosses:
    """The weight of the one loss."""

    statement: float = 1.0


class StatementObjective(Objective):
    """Cross-entropy of true and false, all pixels."""

    model: PixelBertForImagesAndTextClassification

    def losses(self, batch: Batch, grid: Grid, settings: StatementLosses) -> dict[str, Tensor]:
        """statement: summed over the statements."""
        total: Any = 0.0
        for rows, length in length_chunks(batch["attention_mask"], self.chunks):
            logits = self.model(
                batch["input_ids"][rows, :length],
                attention_mask=batch["attention_mask"][rows, :length],
                grid=grid,
                image_of_text=batch["image_of_text"][rows],
            ).logits
            total = total + statement_loss(logits, batch["labels"][rows])
        return {"statement": total}


def label_of(target: Mapping[str, Any]) -> int:
    """1 true, 0 false, -100 when the record has no label."""
    return UNLABELLED if target.get("label") is None else int(bool(target["label"]))


def score_statements(records: Records, judged: Mapping[int, bool]) -> dict[str, float]:
    """accuracy, and consistency where the records have NLVR2's identifiers; percent. `judged`: record -> true or false.

    Raises ValueError for a record without a judgement.
    """
    examples: list[dict[str, Any]] = []
    for record in range(records.num_records):
        target = records.target(record)
        identifier = str(target.get("identifier", ""))
        official = identifier.count("-") == 3
        name = identifier if official else f"own-{record}-0-0"
        label = str(label_of(target) == 1)
        examples.append({"identifier": name, "label": label, "record": record, "official": official})
    predictions = {e["identifier"]: judged[e["record"]] for e in examples if e["record"] in judged}
    scores = nlvr2_scores(predictions, examples)
    figures = {"accuracy": 100 * scores.accuracy}
    if all(e["official"] for e in examples):
        figures["consistency"] = 100 * scores.consistency
    return figures
