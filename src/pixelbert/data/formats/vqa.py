"""The official VQA v2 files: a question file, and for train and val an annotation file with ten answers a question.

Goyal et al., "Making the V in VQA matter", CVPR 2017; visualqa.org. `{"data_type", "data_subtype", "questions":
[{"image_id", "question", "question_id"}]}` and `{"annotations": [{"question_id", "image_id", "question_type",
"answer_type", "multiple_choice_answer", "answers": [{"answer", "answer_id", "answer_confidence"} x 10]}]}`.

An official score needs every question of a split, so files that do not agree are refused, not repaired.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pixelbert.data.files import OnRead
from pixelbert.data.formats.common import json_items
from pixelbert.data.formats.image_map import ImageMap
from pixelbert.data.formats.vqa_files import name_of, split_of, text_field
from pixelbert.data.records import TEST_SPLITS, BadRow, Example
from pixelbert.errors import DataError

ANSWERS = 10  # people who answered each question
IMAGE_MAPS = ("image_ids.json", "image_map.json")


class _Question(NamedTuple):
    image_id: int
    text: Any
    number: int  # its place in the file


def read(
    source: Path | str,
    *,
    annotations: Path | str | None = None,
    split: str | None = None,
    image_map: Sequence[Path | str] = (),
    notes: list[str] | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow]:
    """One example a question; id = question_id, target = ids and, with `annotations`, types and answers as they are.

    The split is `split`, else what `split_of` says. Images are called as in COCO
    (COCO_train2014_000000000025.jpg), else by any name that ends with the twelve digits; or as an image map says.

    Raises DataError naming file and record when a file is damaged, ids are repeated or missing, the two files do not
    hold the same questions, a question has other than ten answers, or questions to train on have none.
    """
    split = split or split_of(source)
    questions = _questions(source, on_read)
    examples = _Examples(source, split, image_map)
    if annotations is not None:
        for question_id, labels in _annotations(annotations, source, questions, on_read):
            yield examples.make(question_id, questions[question_id], labels)
        return
    if split in ("", "train"):
        raise DataError(f"{source}: no annotation file for these questions, and training needs answers;"
                        " give both files, or name another split (--split test)")  # fmt: skip
    if split not in TEST_SPLITS and notes is not None:
        notes.append(f"{Path(str(source)).name} has no annotation file: its questions can be answered, not scored")
    for question_id, question in questions.items():
        yield examples.make(question_id, question, {})


class _Examples:
    """Makes the examples of one question file."""

    def __init__(self, source: Path | str, split: str, image_map: Sequence[Path | str]) -> None:
        self.source, self.split = source, split
        self.map = ImageMap.given_or_beside(image_map, source, IMAGE_MAPS)
        data_type = text_field(source, "data_type") or "mscoco"
        self.dataset = "vqa" if data_type == "mscoco" else data_type
        told = re.search(r"(?:train|val|test)20\d\d", name_of(source))
        subtype = text_field(source, "data_subtype") or (told[0] if told else "")
        # test-dev is a part of the test photos
        self.subtype = re.sub(r"^test-\w+?(?=20)", "test", subtype) if data_type == "mscoco" else ""

    def make(self, question_id: int, question: _Question, labels: dict[str, Any]) -> Example | BadRow:
        number: int | None = question.image_id
        if self.map is not None:
            name, number = self.map.get(str(question.image_id)) or "", None
            if not name:
                reason = f"image_id {question.image_id} is not in {self.map.files}"
                return BadRow(str(self.source), f"question_id {question_id}", reason, self.split)
        elif self.subtype:
            name = f"COCO_{self.subtype}_{question.image_id:012d}.jpg"
        else:
            name = f"{question.image_id:012d}"
        target = {"question_id": question_id, "image_id": question.image_id, **labels}
        where = f"{self.source}: question_id {question_id}"
        return Example(str(question_id), self.split, name, str(question.image_id), question.text, where,
                       target=target, source=self.dataset, image_number=number)  # fmt: skip


def _questions(source: Path | str, on_read: OnRead | None) -> dict[int, _Question]:
    found: dict[int, _Question] = {}
    for number, question in enumerate(json_items(source, "questions.item", on_read)):
        where = f"{source}: question {number}"
        question_id = _whole_number(question, "question_id", where)
        image_id = _whole_number(question, "image_id", f"{where}: question_id {question_id}")
        if question_id in found:
            first = found[question_id].number
            raise DataError(f"{where}: question_id {question_id} is repeated; first at question {first}")
        found[question_id] = _Question(image_id, question.get("question"), number)
    return found


def _annotations(
    path: Path | str, source: Path | str, questions: dict[int, _Question], on_read: OnRead | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(question_id, labels) of every annotation. Raises DataError unless each question has exactly one."""
    waiting = dict.fromkeys(questions)
    for number, annotation in enumerate(json_items(path, "annotations.item", on_read)):
        where = f"{path}: annotation {number}"
        question_id = _whole_number(annotation, "question_id", where)
        if question_id not in questions:
            raise DataError(f"{where}: question_id {question_id} is not a question of {source}")
        if question_id not in waiting:
            raise DataError(f"{where}: question_id {question_id} is annotated twice")
        del waiting[question_id]
        image_id = questions[question_id].image_id
        if annotation.get("image_id", image_id) != image_id:
            raise DataError(f"{where}: question_id {question_id} is about image {annotation['image_id']} here,"
                            f" and about image {image_id} in {source}")  # fmt: skip
        yield question_id, _labels(annotation, f"{where}: question_id {question_id}")
    if waiting:
        more = f", and {len(waiting) - 1:,} more have none" if len(waiting) > 1 else ""
        raise DataError(f"{source}: question_id {next(iter(waiting))} has no annotation in {path}{more}")


def _labels(annotation: dict[str, Any], where: str) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for name in ("question_type", "answer_type", "multiple_choice_answer"):
        labels[name] = annotation.get(name)
        if not isinstance(labels[name], str):
            raise DataError(f"{where} has no text '{name}'")
    answers = annotation.get("answers")
    if not isinstance(answers, list) or len(answers) != ANSWERS:
        found = len(answers) if isinstance(answers, list) else "no list of"
        raise DataError(f"{where} has {found} answers, expected {ANSWERS}")
    for place, answer in enumerate(answers):
        if not isinstance(answer, dict) or not isinstance(answer.get("answer"), str):
            raise DataError(f"{where}: answer {place} is {answer!r}, which has no text 'answer'")
    kept = ("answer", "answer_id", "answer_confidence")
    return {**labels, "answers": [{key: answer[key] for key in kept if key in answer} for answer in answers]}


def _whole_number(record: Any, name: str, where: str) -> int:
    if not isinstance(record, dict):
        raise DataError(f"{where}: an object was expected, found {type(record).__name__}")
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        wrong = f" has no '{name}'" if value is None else f": {name} is {value!r}, no whole number"
        raise DataError(where + wrong)
    return value
