"""Every task's part of the report, by the task's name in a recipe."""

from __future__ import annotations

from pixelbert.training.report import image_pairs, pretraining, question_answering, retrieval
from pixelbert.training.report.part import Part
from pixelbert.training.report.record import RunRecord

PARTS: dict[str, Part] = {
    part.name: part for part in (pretraining.PART, question_answering.PART, image_pairs.PART, retrieval.PART)
}


def part_of(record: RunRecord) -> Part:
    """The part of a run's task; pretraining's, which leaves out what is not there, for a task of another version."""
    return PARTS.get(record.task, pretraining.PART)
