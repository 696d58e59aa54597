"""Statements about pictures: batches and official scores, against hand-made cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memory_records import VOCABULARY, MemoryRecords
from pixelbert.data.batches import Plan
from pixelbert.data.images import ResizeRule
from pixelbert.model.tokenization import load_tokenizer
from pixelbert.tasks.image_pairs import StatementBatches, label_of, score_statements, statement_loss


class Statements(MemoryRecords):
    """Three statements: the second picture and the target of each are given."""

    def __init__(self, folder: Path, second: list[int], targets: list[dict[str, Any]]) -> None:
        super().__init__(folder, [["a dog"], ["the cat run"], ["a man"]])
        self.second, self.targets = second, targets

    def second_image(self, record: int) -> int:
        return self.second[record]

    def target(self, record: int) -> dict[str, Any]:
        return self.targets[record]


def example(identifier: str, label: bool | None) -> dict[str, Any]:
    return {"identifier": identifier, "set": identifier.split("-")[1], "label": label}  # as NLVR2's reader has it


def own(identifier: str, label: bool) -> dict[str, Any]:
    return {"identifier": identifier, "label": label}


def test_a_batch_holds_each_picture_once_and_both_places_of_every_statement(tmp_path: Path) -> None:
    records = Statements(tmp_path, [2, 0, 0], [example("a-1-0-0", True), example("a-1-1-0", False), {}])
    build = StatementBatches(records, load_tokenizer(VOCABULARY), ResizeRule(square=32), 32, 0)
    batch = build(Plan(0, np.arange(3), np.zeros(3, dtype=np.int64), np.array([0, 1, 2])))
    assert batch["image_rows"].tolist() == [0, 1, 2]
    assert batch["image_of_text"].tolist() == [[0, 2], [1, 0], [2, 0]]
    assert batch["labels"].tolist() == [1, 0, -100]
    assert batch["pixel_values"].shape == (3, 3, 32, 32)


def test_one_picture_a_statement(tmp_path: Path) -> None:
    records = Statements(tmp_path, [-1, -1, -1], [{"label": True}] * 3)
    build = StatementBatches(records, load_tokenizer(VOCABULARY), ResizeRule(square=32), 32, 0, num_images=1)
    batch = build(Plan(0, np.arange(2), np.zeros(2, dtype=np.int64), np.array([2, 0])))
    assert batch["image_of_text"].tolist() == [[1], [0]]


def test_unlabelled_statements_do_not_count_in_the_loss() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, -5.0]])
    by_hand = np.log(1 + np.exp(2.0)) + np.log(1 + np.exp(-1.0))
    assert float(statement_loss(logits, torch.tensor([1, 1, -100]))) == pytest.approx(by_hand, rel=1e-5)
    assert [label_of({"label": True}), label_of({"label": False}), label_of({})] == [1, 0, -100]


def test_scores_are_the_official_accuracy_and_consistency(tmp_path: Path) -> None:
    names = ["dev-1-0-0", "dev-1-3-0", "dev-1-0-1"]  # the reference's example without its fourth
    records = Statements(tmp_path, [0, 0, 0], [example(name, True) for name in names])
    assert score_statements(records, {0: True, 1: False, 2: True}) == {
        "accuracy": pytest.approx(100 * 2 / 3),
        "consistency": 50.0,
    }
    with pytest.raises(ValueError, match="dev-1-0-1"):
        score_statements(records, {0: True, 1: False})


def test_other_identifiers_give_accuracy_alone(tmp_path: Path) -> None:
    records = Statements(tmp_path, [-1] * 3, [own("1572-0", True), own("1572-1", False), {"label": True}])
    assert score_statements(records, {0: True, 1: True, 2: True}) == {"accuracy": pytest.approx(100 * 2 / 3)}


def test_identifiers_of_ones_own_with_three_dashes_have_no_groups(tmp_path: Path) -> None:
    names = ("a-1-2-3", "2024-01-02-3", "2024-01-03-3")
    records = Statements(tmp_path, [0, 0, 0], [own(name, True) for name in names])
    assert score_statements(records, {0: True, 1: True, 2: False}) == {"accuracy": pytest.approx(100 * 2 / 3)}
