"""The files that evaluation servers take, and what is wrong with other files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_records import MemoryRecords
from pixelbert.errors import DataError
from pixelbert.tasks.image_pairs import ImagePairs
from pixelbert.tasks.question_answering import QuestionAnswering
from pixelbert.tasks.submission import (
    check_rankings,
    read_answers,
    read_judgements,
    write_answers,
    write_judgements,
    write_rankings,
)

SPLIT = "data/vqa, split 'val'"


class Told(MemoryRecords):
    """Records in memory with targets."""

    def __init__(self, folder: Path, targets: list[dict[str, Any]]) -> None:
        super().__init__(folder, [[f"text {i}"] for i in range(len(targets))])
        self.targets = targets

    def target(self, record: int) -> dict[str, Any]:
        return self.targets[record]


@pytest.fixture
def questions(tmp_path: Path) -> Told:
    return Told(tmp_path, [{"question_id": number} for number in (262148000, 7, 42)])


@pytest.fixture
def statements(tmp_path: Path) -> Told:
    return Told(tmp_path, [{"identifier": f"test1-0-{n}-0"} for n in range(3)])


def test_the_vqa_file_is_a_list_of_every_question_in_order(tmp_path: Path, questions: Told) -> None:
    path = tmp_path / "answers.json"
    path.write_text(write_answers(questions, ["yes", "café", ""]), encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == [
        {"question_id": 262148000, "answer": "yes"}, {"question_id": 7, "answer": "café"},
        {"question_id": 42, "answer": ""},
    ]  # fmt: skip
    assert read_answers(path, questions, SPLIT, in_order=True) == {0: "yes", 1: "café", 2: ""}


def test_questions_of_ones_own_are_called_by_their_own_ids(tmp_path: Path) -> None:
    own = Told(tmp_path, [{"question_id": "own:2"}, {}])
    rows = json.loads(write_answers(own, ["a", "b"]))
    assert [row["question_id"] for row in rows] == ["own:2", "record-1"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "line 1: not valid JSON"),
        ("{}", "no list of"),
        ('[{"question_id": 7}]', "entry 0: is .* which has no 'question_id' and 'answer'"),
        ('[{"question_id": 7.5, "answer": "a"}]', "entry 0: question_id is 7.5, no number"),
        ('[{"question_id": true, "answer": "a"}]', "entry 0: question_id is True, no number"),
        ('[{"question_id": 7, "answer": 2}]', "entry 0: question_id 7: the answer is 2, no text"),
        ('[{"question_id": "7", "answer": "a"}]',
         "entry 0: question_id 7 is none of data/vqa, split 'val'; it is text, those are numbers"),
        (f'[{{"question_id": "{"1" * 5000}", "answer": "a"}}]', "is none of data/vqa, split 'val'"),
        ('[{"question_id": 8, "answer": "a"}]',
         "entry 0: question_id 8 is none of data/vqa, split 'val'; is the file of another split"),
        ('[{"question_id": 7, "answer": "a"}, {"question_id": 7, "answer": "a"}]',
         "entry 1: question_id 7 is there twice; first at entry 0"),
        ('[{"question_id": 7, "answer": "a"}]',
         "question_id 262148000 of data/vqa, split 'val' has no prediction, nor have 1 more"),
    ],
)  # fmt: skip
def test_answers_of_another_split_or_form_are_refused(
    tmp_path: Path, questions: Told, content: str, reason: str
) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(DataError, match=reason) as caught:
        read_answers(path, questions, SPLIT)
    assert str(caught.value).startswith(str(path))


def test_order_matters_to_a_file_of_ours_alone(tmp_path: Path, questions: Told) -> None:
    path = tmp_path / "answers.json"
    rows = json.loads(write_answers(questions, ["a", "b", "c"]))
    path.write_text(json.dumps([rows[0], rows[2], rows[1]]))
    assert read_answers(path, questions, SPLIT) == {0: "a", 1: "b", 2: "c"}
    with pytest.raises(DataError, match="entry 1: is question_id 42, expected 7"):
        read_answers(path, questions, SPLIT, in_order=True)


def test_the_nlvr2_file_is_what_its_own_script_reads(tmp_path: Path, statements: Told) -> None:
    path = tmp_path / "judged.csv"
    path.write_text(write_judgements(statements, [True, False, True]))
    lines = [line.strip().split(",") for line in path.read_text().splitlines()]
    assert lines == [["test1-0-0-0", "True"], ["test1-0-1-0", "False"], ["test1-0-2-0", "True"]]
    assert read_judgements(path, statements, SPLIT, in_order=True) == {0: True, 1: False, 2: True}


def test_an_identifier_with_a_comma_survives(tmp_path: Path) -> None:
    own = Told(tmp_path, [{"identifier": "left, right"}])
    text = write_judgements(own, [True])
    assert next(csv.reader([text])) == ["left, right", "True"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("test1-0-0-0\n", "line 1: has 1 fields, expected identifier,prediction"),
        ("test1-0-0-0,perhaps\n", "line 1: test1-0-0-0: the prediction is 'perhaps', neither True nor False"),
        ("test1-0-0-0, True\n", "line 1: test1-0-0-0: the prediction is ' True', neither True nor False"),
        ("identifier,prediction\n", "line 1: identifier: the prediction is 'prediction'"),
        ("dev-0-0-0,true\n", "line 1: identifier dev-0-0-0 is none of .*; is the file of another split"),
        ("test1-0-1-0,true\ntest1-0-1-0,true\n", "line 2: identifier test1-0-1-0 is there twice; first at line 1"),
        ("test1-0-1-0,true\n\ntest1-0-2-0,FALSE\n", "identifier test1-0-0-0 of .* has no prediction$"),
    ],
)
def test_judgements_of_another_split_or_form_are_refused(
    tmp_path: Path, statements: Told, content: str, reason: str
) -> None:
    path = tmp_path / "judged.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=reason):
        read_judgements(path, statements, SPLIT)


@pytest.mark.parametrize("more", [1, 20_000])
def test_a_quote_that_is_never_closed_is_told_with_its_line(tmp_path: Path, statements: Told, more: int) -> None:
    """Short of the csv module's limit on a field and beyond it."""
    path = tmp_path / "judged.csv"
    path.write_text("test1-0-0-0,True\n" + '"test1-0-1-0,True\n' + "test1-0-2-0,True\n" * more)
    with pytest.raises(DataError, match=r"judged\.csv: line 2: not valid CSV \("):
        read_judgements(path, statements, SPLIT)


def test_rankings_hold_the_ten_best_of_both_directions(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, [["a", "b"]] * 12)
    draw = np.random.default_rng(0)
    images, texts = draw.normal(size=(12, 24)), draw.normal(size=(12, 24))
    path = tmp_path / "ranked.json"
    path.write_text(write_rankings(records, images, texts))
    check_rankings(path, records, SPLIT)
    found = json.loads(path.read_text())
    assert [row["text"] for row in found["images_of_text"]] == [f"record-{t}" for t in range(24)]
    for t, row in enumerate(found["images_of_text"]):
        assert row["images"] == [f"image-{i}" for i in sorted(range(12), key=lambda i: -images[i, t])[:10]]
    for i, row in enumerate(found["texts_of_image"]):
        assert row["image"] == f"image-{i}"
        assert row["texts"] == [f"record-{t}" for t in sorted(range(24), key=lambda t: -texts[i, t])[:10]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: found.pop("texts_of_image"), "has no list 'texts_of_image'"),
        (lambda found: found["images_of_text"].reverse(), "images_of_text 0: is text record-2, expected record-0"),
        (lambda found: found["images_of_text"].pop(), "text record-2 of .* has no prediction"),
        (lambda found: found["images_of_text"][1]["images"].pop(), "text record-1: ranks .*, expected 3 images"),
        (lambda found: found["texts_of_image"][2].update(texts=["x", "y", "z"]),
         "image image-2: ranks .*, expected 3 texts"),
        (lambda found: found["texts_of_image"][0].update(texts=["record-1"] * 3), "image image-0: ranks"),
    ],
)  # fmt: skip
def test_rankings_that_are_not_whole_are_refused(tmp_path: Path, change: Any, reason: str) -> None:
    records = MemoryRecords(tmp_path, [["a"]] * 3)
    found = json.loads(write_rankings(records, np.eye(3), np.eye(3)))
    change(found)
    path = tmp_path / "ranked.json"
    path.write_text(json.dumps(found))
    with pytest.raises(DataError, match=reason):
        check_rankings(path, records, SPLIT)


def test_two_records_of_one_id_are_told(tmp_path: Path) -> None:
    """A mix of two data sets of one's own may have them."""
    same = Told(tmp_path, [{"question_id": 100}, {"question_id": 7}, {"question_id": 100}])
    path = tmp_path / "answers.json"
    path.write_text(write_answers(same, ["a", "b", "c"]))
    with pytest.raises(DataError, match=f"question_id 100 is twice in {SPLIT}; a predictions file"):
        read_answers(path, same, SPLIT)
    for task, key in ((QuestionAnswering(), "question_id"), (ImagePairs(), "identifier")):
        with pytest.raises(DataError, match=f"{key} 100 is twice in {SPLIT}"):
            task.check_ids(Told(tmp_path, [{key: 100}, {key: 7}, {key: 100}]), SPLIT)
        task.check_ids(Told(tmp_path, [{key: 100}, {key: 7}]), SPLIT)
