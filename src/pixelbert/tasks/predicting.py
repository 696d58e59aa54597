"""Scores of held-out records, one after the other: what `evaluate` and `predict` share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from pixelbert.data.batches import Batch, Plan, loader
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.objective import Objective, finite
from pixelbert.tasks.record_examples import choose_rows, write_examples
from pixelbert.tasks.task import Outcome, Scoring


class RecordSampler(Sampler[Plan]):
    """These records in this order, `size` at a time: neighbours share their image, so it is encoded once."""

    def __init__(self, records: Sequence[int], size: int) -> None:
        self.records, self.size = np.asarray(records, dtype=np.int64), size

    def __len__(self) -> int:
        return -(-len(self.records) // self.size)

    def __iter__(self) -> Iterator[Plan]:
        for step, start in enumerate(range(0, len(self.records), self.size)):
            records = self.records[start : start + self.size]
            yield Plan(step, np.arange(start, start + len(records)), np.zeros_like(records), records)


def scored_records(batches: Inputs, scoring: Scoring) -> list[int]:
    """The records that are scored: all, or those of the split's first images."""
    split = batches.records
    if not scoring.images:
        return list(range(split.num_records))
    return [record for image in range(min(scoring.images, split.num_images)) for record in split.records_of(image)]


def predict_records(objective: Objective, batches: Inputs, records: Sequence[int], scoring: Scoring) -> Tensor:
    """Float32 scores [records, K] of these records. The model is put into evaluation mode."""
    objective.eval()
    objective.encode = scoring.encode
    device = next(objective.parameters()).device
    parts: list[Tensor] = []
    done = 0
    with closing(loader(batches, RecordSampler(records, scoring.batch_size), scoring.workers)) as stream:
        for batch in stream:
            parts.append(finite(objective.predict(on_device(batch, device)).cpu()))
            done += len(parts[-1])
            scoring.progress("records", done, len(records))
    return torch.cat(parts)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def record_outcome(figures: dict[str, float], rows: list[dict[str, Any]], batches: Inputs) -> Outcome:
    """The outcome of a task with one row a record: written as `records.jsonl`, with pictures of some of them."""
    split = batches.records

    def pictures(row: dict[str, Any]) -> list[int]:
        record = row["split_record"]
        return [i for i in (int(split.image_of[record]), split.second_image(record)) if i >= 0]

    def write(folder: Path) -> None:
        lines = "".join(json.dumps(_told(row), ensure_ascii=False) + "\n" for row in rows)
        (folder / "records.jsonl").write_text(lines, encoding="utf-8")
        write_examples(folder, batches, choose_rows(rows, lambda row: not row["right"]), pictures)

    images = {image for row in rows for image in pictures(row)}
    return Outcome(figures, rows, write, len(images), len(rows))


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "split_record"}
