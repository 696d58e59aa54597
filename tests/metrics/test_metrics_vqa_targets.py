"""The answer vocabulary and the training targets: cases by eye, the reference's numbers, a second reading."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vqa_second_reading import M_OF_TEN, annotation, answers_to_hit_rules, slow_normalize, without

from pixelbert.metrics import vqa_answer_vocabulary, vqa_soft_targets

OFFICIAL = json.loads((Path(__file__).parent / "official_vqa_numbers.json").read_text("utf-8"))
RECORD = annotation(5, ["yes"] * 10)


def majority(question_id: int, answer: str) -> dict[str, Any]:
    return {"question_id": question_id, "multiple_choice_answer": answer}


def test_vocabulary_counts_normalised_majority_answers() -> None:
    records = [majority(n, "Two") for n in range(5)] + [majority(n, "2") for n in range(5, 9)]
    records += [majority(n, "eight cats") for n in range(20, 28)]
    assert vqa_answer_vocabulary(records) == ["2"]  # 5 + 4 = 9 are kept, 8 are not
    assert vqa_answer_vocabulary(records, min_count=8) == ["2", "8 cats"]


def test_vocabulary_counts_distinct_questions() -> None:
    records = [majority(1, "cat")] * 12 + [majority(n, "dog") for n in range(9)]
    assert vqa_answer_vocabulary(records) == ["dog"]
    # A question that gives two answers counts for both.
    assert vqa_answer_vocabulary([*records, *[majority(n, "owl") for n in range(9)]]) == ["dog", "owl"]


def test_vocabulary_keeps_the_empty_answer_and_does_not_clean() -> None:
    assert vqa_answer_vocabulary([majority(1, "the"), majority(2, "A")], 2) == [""]
    assert vqa_answer_vocabulary([majority(1, "p-q- ")], 1) == ["pq"]  # stripped it would be "p q"
    assert vqa_answer_vocabulary([majority(1, "a-b-\nc")], 1) == ["b c"]  # cleaned it would be "ab c"


def test_vocabulary_order_is_by_count_then_code_point() -> None:
    words = ["b"] * 2 + ["c"] * 3 + ["Z"] * 2 + ["é"] * 2 + ["10"] * 2
    records = [majority(n, word) for n, word in enumerate(words)]
    expected = ["c", "10", "b", "z", "é"]
    assert vqa_answer_vocabulary(records, 2) == expected
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert vqa_answer_vocabulary(iter(records), 2) == expected
    assert vqa_answer_vocabulary([]) == []


MIXED = ["yes"] * 4 + ["2"] * 3 + ["two"] * 2 + ["Yes"]


def test_targets_of_raw_strings_as_the_reference_counts_them() -> None:
    vocabulary = ["2", "t shirt", "yes"]
    records = [annotation(1, MIXED), annotation(2, ["t-shirt"] * 10)]
    assert vqa_soft_targets(records, vocabulary, normalize=False) == {1: {"yes": 1.0, "2": 0.9}, 2: {}}


def test_targets_of_normalised_strings() -> None:
    vocabulary = ["2", "t shirt", "yes"]
    records = [annotation(1, MIXED), annotation(2, ["t-shirt"] * 10), annotation(3, ["owl"] * 10)]
    assert vqa_soft_targets(records, vocabulary) == {1: {"yes": 1.0, "2": 1.0}, 2: {"t shirt": 1.0}, 3: {}}


@pytest.mark.parametrize("normalize", [True, False])
def test_target_scores_by_count(normalize: bool) -> None:
    answers = ["one x"] + ["x2"] * 2 + ["x3"] * 3 + ["x4"] * 4
    targets = vqa_soft_targets([annotation(1, answers)], ["one x", "1 x", "x2", "x3", "x4", "never"], normalize)
    assert targets == {1: {"1 x" if normalize else "one x": 0.3, "x2": 0.6, "x3": 0.9, "x4": 1.0}}


def test_targets_do_not_clean() -> None:
    record = annotation(1, ["p-q- "] * 4 + ["p-q-"] * 6)
    assert vqa_soft_targets([record], ["pq", "p q"]) == {1: {"pq": 1.0, "p q": 1.0}}
    assert vqa_soft_targets([record], ["pq", "p q", "p-q- "], normalize=False) == {1: {"p-q- ": 1.0}}


def test_vocabulary_and_targets_equal_the_reference_script() -> None:
    case = OFFICIAL["targets"]
    vocabulary = vqa_answer_vocabulary(case["annotations"], case["min_count"])
    assert sorted(vocabulary) == case["vocabulary"]
    targets = vqa_soft_targets(case["annotations"], vocabulary, normalize=False)
    assert {str(question): target for question, target in targets.items()} == case["targets"]
    assert sum(not target for target in targets.values()) > 5
    assert sum(len(target) > 1 for target in targets.values()) > 5


@given(st.lists(st.lists(answers_to_hit_rules, min_size=10, max_size=10), max_size=4), st.booleans())
def test_targets_equal_second_reading(questions: list[list[str]], normalize: bool) -> None:
    records = [annotation(n, answers) for n, answers in enumerate(questions)]
    spell = slow_normalize if normalize else str
    vocabulary = sorted({spell(answer) for answers in questions for answer in answers})[::2]
    targets = vqa_soft_targets(records, vocabulary, normalize)
    assert list(targets) == list(range(len(questions)))
    for target, answers in zip(targets.values(), questions, strict=True):
        counts = [(word, sum(spell(answer) == word for answer in answers)) for word in vocabulary]
        assert target == {word: float(M_OF_TEN[count]) for word, count in counts if count}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"question_id": 3}], r"question 3 has no text 'multiple_choice_answer'"),
        ([{"question_id": 3, "multiple_choice_answer": 2}], r"question 3 has no text 'multiple_choice_answer'"),
        ([{"multiple_choice_answer": "x"}], r"annotation 0 has no 'question_id'"),
    ],
)
def test_vocabulary_of_wrong_records(records: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqa_answer_vocabulary(records)


def test_targets_of_wrong_records() -> None:
    with pytest.raises(ValueError, match="question 5 is annotated twice"):
        vqa_soft_targets([RECORD, RECORD], ["yes"])
    with pytest.raises(ValueError, match="question 5 has no list of 'answers'"):
        vqa_soft_targets([without(RECORD, "answers")], ["yes"])
