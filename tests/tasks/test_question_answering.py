"""Questions: answer lists, soft targets and scores, against hand-made cases and the official functions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError
from pixelbert.metrics import vqa_accuracy, vqa_soft_targets
from pixelbert.model.heads import PixelBertForQuestionAnswering
from pixelbert.tasks.question_answering import (
    answer_list,
    given_answers,
    prior_odds,
    score_answers,
    soft_targets,
    vqa_loss,
)
from pixelbert.training.setup import build_model, build_parts, build_processor
from tiny_tasks import task_data, task_recipe


def ten(*answers: str) -> list[dict[str, Any]]:
    return [{"answer": answer, "answer_id": i + 1} for i, answer in enumerate(answers)]


class Questions:
    """Records in memory: their targets alone."""

    def __init__(self, targets: list[dict[str, Any]]) -> None:
        self.targets = targets
        self.num_records = len(targets)

    def target(self, record: int) -> dict[str, Any]:
        return self.targets[record]


def test_ten_answers_get_the_official_worth() -> None:
    target = {"answers": ten(*["yes"] * 4, *["2"] * 3, *["two"] * 2, "Yes")}
    worth = soft_targets(target, {"2": 0, "t shirt": 1, "yes": 2}, normalize=False)
    assert worth.tolist() == pytest.approx([0.9, 0, 1])  # the example of the reference: 3 x "2", raw strings
    worth = soft_targets(target, {"2": 0, "t shirt": 1, "yes": 2})
    assert worth.tolist() == [1, 0, 1]  # normalised, "two" is "2" and "Yes" is "yes"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["yes", "Yes!", "two", "2", "a dog", "dog", "t-shirt"]), min_size=10, max_size=10))
@pytest.mark.parametrize("normalize", [True, False])
def test_ten_answers_equal_the_official_targets(normalize: bool, answers: list[str]) -> None:
    vocabulary = ["yes", "2", "dog", "t shirt", "t-shirt"]
    annotation = {"question_id": 7, "answers": ten(*answers)}
    official = vqa_soft_targets([annotation], vocabulary, normalize)[7]
    ours = soft_targets(annotation, {a: i for i, a in enumerate(vocabulary)}, normalize)
    assert {a: pytest.approx(float(w)) for a, w in zip(vocabulary, ours, strict=True) if w} == official


@pytest.mark.parametrize(
    ("answers", "worth"),
    [(["cat"], 1), (["cat", "dog"], 1), (["cat", *["dog"] * 3], 0.75), (["cat", *["dog"] * 4], 0.6), (["dog"], 0)],
)
def test_other_numbers_of_answers_count_three_times_their_share(answers: list[str], worth: float) -> None:
    assert soft_targets({"answers": answers}, {"cat": 0})[0] == pytest.approx(worth)
    figures, each = score_answers(Questions([{"answers": answers}]), {0: "The cat."})  # type: ignore[arg-type]
    assert (figures["vqa_score"], each) == (pytest.approx(100 * worth), [pytest.approx(100 * worth)])


def test_official_data_is_scored_by_the_official_rules_and_types() -> None:
    targets = [
        {"answers": ten(*["yes"] * 10), "answer_type": "yes/no", "question_type": "is the"},
        {"answers": ten(*["cat"] * 3, *["dog"] * 7), "answer_type": "other", "question_type": "what"},
    ]
    figures, each = score_answers(Questions(targets), {0: "Yes", 1: "Cat."})  # type: ignore[arg-type]
    annotations = [{**target, "question_id": i} for i, target in enumerate(targets)]
    assert figures["vqa_score"] == vqa_accuracy({0: "Yes", 1: "Cat."}, annotations).overall == 45.0
    assert each == [0.0, 90.0]
    assert figures["vqa_score.other"] == figures["vqa_score.question.what"] == 90.0


def test_questions_of_ones_own_are_scored_by_both_types() -> None:
    targets: list[dict[str, Any]] = [
        {"answers": ["yes"], "answer_type": "closed", "question_type": "is it"},
        {"answers": ["red"], "answer_type": "open", "question_type": "what"},
        {"answers": ["no"], "question_type": "is it"},
        {"answers": ["two"], "question_type": ""},
    ]
    figures, _ = score_answers(Questions(targets), {0: "yes", 1: "blue", 2: "yes", 3: "2"})  # type: ignore[arg-type]
    assert figures == {
        "vqa_score": 50, "vqa_score.closed": 100, "vqa_score.open": 0,
        "vqa_score.question.is it": 50, "vqa_score.question.what": 0,
    }  # fmt: skip


def test_the_list_keeps_answers_of_enough_questions_most_frequent_first() -> None:
    targets: list[dict[str, Any]] = [{"multiple_choice_answer": "two", "answers": ten(*["two"] * 10)}] * 3
    targets += [{"answers": ["red", "Red", "blue"]}] * 2 + [{"answers": ["green"]}] + [{}]
    assert answer_list(targets, 2) == ["2", "red"]
    with pytest.raises(DataError, match="at least 9 of the 6 training questions with answers; answers.min_count"):
        answer_list(targets, 9)


def test_without_a_number_nine_questions_or_as_few_as_keep_four_in_five() -> None:
    def told(**counts: int) -> list[dict[str, Any]]:
        return [{"answers": [answer]} for answer, count in counts.items() for _ in range(count)]

    assert answer_list(told(yes=60, no=20, red=8, blue=9, pink=3)) == ["yes", "no", "blue"]  # 9: 89 of 100 questions
    assert answer_list(told(yes=30, no=30, red=8, blue=8, pink=7, grey=2)) == ["no", "yes", "blue", "red"]  # 8
    assert answer_list(told(yes=1, no=1, red=1)) == ["no", "red", "yes"]
    assert answer_list([*told(yes=4, no=1), {}]) == ["yes"]  # 4 of 5 is enough
    assert answer_list([*told(yes=3), {"answers": ["A dog", "dog"]}, {"answers": ["The dog!"]}]) == ["yes", "dog"]
    with pytest.raises(DataError, match="none of the training questions has an answer"):
        answer_list([{}])


def test_the_loss_is_summed_over_answers_and_questions() -> None:
    logits, targets = torch.randn(3, 4), torch.rand(3, 4)
    p = logits.double().sigmoid().numpy()
    t = targets.double().numpy()
    assert float(vqa_loss(logits, targets)) == pytest.approx(-(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(), rel=1e-5)


class Told:
    """Records with nothing but answers."""

    def __init__(self, *targets: dict[str, Any]) -> None:
        self.targets = targets
        self.num_records = len(targets)

    def target(self, record: int) -> dict[str, Any]:
        return self.targets[record]


def test_prior_odds_are_those_of_each_answers_mean_worth() -> None:
    told: Any = Told({"answers": ten("yes", "yes", *["no"] * 8)}, {"answers": ["Yes!"]}, {"answers": ["2"]}, {})
    odds = prior_odds(told, ["yes", "no", "blue"])  # yes 0.6 + 1 of four questions, no 1, blue of half a question
    assert odds.sigmoid().tolist() == pytest.approx([0.4, 0.25, 0.125])
    assert prior_odds(told, ["yes"], normalize=False).sigmoid().tolist() == pytest.approx([0.15])
    always: Any = Told({"answers": ["yes"]})
    assert prior_odds(always, ["yes"]).sigmoid().tolist() == pytest.approx([0.5]), "never 0 or 1"


def test_a_head_with_a_prior_begins_at_how_often_each_answer_is_right(tmp_path: Path) -> None:
    train = PreparedData(task_data(tmp_path, "question_answering")).split("train")

    def fresh(*changes: str) -> PixelBertForQuestionAnswering:
        recipe = task_recipe("question_answering", *changes)
        return build_model(recipe, build_processor(recipe, train), train)[0]

    model = fresh("head.prior=true")
    place = {answer: i for i, answer in model.config.id2label.items()}
    means = np.mean([soft_targets(train.target(i), place) for i in range(train.num_records)], axis=0)
    bias: Any = model.head[-1].bias
    assert bias.sigmoid().tolist() == pytest.approx(means.tolist(), abs=1e-6)
    bias = _pretrained(tmp_path, train).head[-1].bias
    assert bias.sigmoid().tolist() == pytest.approx(means.tolist(), abs=1e-6), "also on another run's weights"
    even: Any = fresh().head[-1].bias
    assert not even.any(), "the paper's head begins at even odds"


def _pretrained(folder: Path, train: Any) -> Any:
    """A model that answers, with a prior, started from a pretrained one."""
    recipe = task_recipe("pretraining")
    processor = build_processor(recipe, train)
    build_model(recipe, processor, train)[0].save_pretrained(folder / "run")
    processor.save_pretrained(folder / "run")
    recipe = task_recipe("question_answering", "head.prior=true")
    return build_parts(recipe, train, train, from_run=folder / "run").model


def test_answers_may_be_records_or_plain_strings() -> None:
    assert given_answers({"answers": ten("a", "b")}) == given_answers({"answers": ["a", "b"]}) == ["a", "b"]
    assert given_answers({}) == []
    assert Counter(given_answers({"answers": ["a", "a"]})) == {"a": 2}
