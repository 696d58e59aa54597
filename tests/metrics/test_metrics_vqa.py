"""VQA scores: each official rule as a case to check by eye, then a second, slow reading of them on random input."""

from __future__ import annotations

import copy
import itertools
import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vqa_second_reading import (
    TABLES,
    annotation,
    answers_to_hit_rules,
    random_answer,
    random_questions,
    slow_accuracy,
    slow_normalize,
    without,
)

from pixelbert.metrics import normalize_answer, vqa_accuracy, vqa_answer_vocabulary, vqa_soft_targets

# Inputs made by chance, results by the reference scripts themselves: cases and numbers only.
OFFICIAL = json.loads((Path(__file__).parent / "official_vqa_numbers.json").read_text("utf-8"))


def one_score(prediction: str, answers: list[str]) -> float:
    return vqa_accuracy({7: prediction}, [annotation(7, answers)]).overall


# --- normalize_answer ------------------------------------------------------------------------------------------------

NORMALIZED = [
    # The examples of the rules.
    ("Two dogs!", "2 dogs"),
    ("T-shirt", "t shirt"),
    ("a-b-c", "b c"),
    ("a-b- c", "ab c"),
    ("3/4 of 1,000", "34 of 1000"),
    ("5.", "5"),
    ("3.5", "3.5"),
    ("..5", ".5"),
    ("dont", "don't"),
    ("Im", "im"),
    ("." * 33 + "x", ".x"),
    ("1,000", "1000"),
    ("1, 2", "1 2"),
    ("1,2", "12"),
    ("red,blue", "red blue"),
    ("3/4", "3 4"),
    ("U.S.", "us"),
    ("The", ""),
    ("-", ""),
    ("(left) side", "left side"),
    # Punctuation: deleted where any copy of it has a space beside it, on either side, anywhere; else a space.
    ("x/y", "x y"),
    ("x/ y/z", "x yz"),
    ("x /y/z", "x yz"),
    ("x-y/ z", "x y z"),  # each character on its own: "-" has no space beside it, "/" has
    ("x - y", "x y"),
    ("-x", "x"),
    ("x-y-", "x y"),  # the end of the answer is not a space
    ("x-\ty-z", "x y z"),  # nor is a tab, a newline, a carriage return or a no-break space
    ("x-\ny-z", "x y z"),
    ("x-\ry-z", "x y z"),
    ("x-\u00a0y-z", "x y z"),
    ("x--y", "x y"),
    ("x-/y-z", "x y z"),  # a character that becomes a space is none for its neighbour,
    ("x-/ y-z", "x y z"),  # and one that goes brings no space near: the tests look at the answer as it came in
    # One comma between digits anywhere deletes all punctuation.
    ("1,2 a-b", "12 ab"),
    ("x-y 1,0", "xy 10"),
    ("1,x-y", "1 x y"),
    ("1 ,2-3", "1 2 3"),  # no digit-comma-digit: "," goes for the space beside it, "-" becomes a space
    # What is not in the table stays.
    ("rock'n'roll", "rock'n'roll"),
    ("7:30", "7:30"),
    ("50%", "50%"),
    ("$5 & #1*", "$5 & #1*"),
    ("x|y~z^w", "x|y~z^w"),
    # Periods: deleted unless a digit follows, at most 32.
    (".5", ".5"),
    ("5.a", "5a"),
    ("1.2.3", "1.2.3"),
    ("a.m.", "am"),
    ("x. 5", "x 5"),
    ("3.-5", "3 5"),
    ("." * 32, ""),
    ("." * 33, "."),
    ("." * 40 + "5", "." * 8 + "5"),
    (".1" * 40 + "." * 3, ".1" * 40),  # periods that stay are not counted
    # Words: numbers, then articles, then contractions, after lower-casing, each once.
    ("NONE", "0"),
    ("zero one two three four five", "0 1 2 3 4 5"),
    ("six seven eight nine ten eleven", "6 7 8 9 10 eleven"),
    ("a cat, an owl, the dog", "cat owl dog"),
    ("A AN THE", ""),
    ("twenty-one", "twenty 1"),
    ("isnt", "isn't"),
    ("ISNT", "isn't"),
    ("id've", "id've"),
    ("I'm", "i'm"),
    ("let's", "let's"),
    ("she's", "she's"),
    ("lets", "lets"),
    ("its", "its"),
    ("somebody'd", "somebodyd"),
    ("somebodyd", "somebodyd"),
    ("ow's'at", "'ow's'at"),
    ("wont.", "won't"),
    ("won-t", "won t"),
    ("don.t", "don't"),  # the period goes first, then "dont" is in the table
    # Whitespace as str.split takes it.
    ("", ""),
    (" \t\n\r\u00a0\u3000 ", ""),
    ("red  \u3000 car\rblue", "red car blue"),
    ("ÉCOLE", "école"),
    # No cleaning before: the reference of the vocabulary has none.
    ("p-q- ", "pq"),
    ("p-q-", "p q"),
    ("a-b-\nc", "b c"),
    ("a-b- c", "ab c"),
]


@pytest.mark.parametrize(("text", "expected"), NORMALIZED, ids=[ascii(text)[:30] for text, _ in NORMALIZED])
def test_normalize_answer_by_eye(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_tables_have_the_official_sizes() -> None:
    sizes = {name: len(TABLES[name]) for name in ("punctuation", "articles", "number_words", "contractions")}
    assert sizes == {"punctuation": 21, "articles": 3, "number_words": 12, "contractions": 120}


@pytest.mark.parametrize("key", TABLES["contractions"])
def test_contractions_apply_once_and_never_with_a_capital(key: str) -> None:
    expected = key.lower() if key != key.lower() else TABLES["contractions"][key]
    assert normalize_answer(key) == expected


def test_normalize_answer_equals_the_reference_script() -> None:
    assert len(OFFICIAL["normalize"]) >= 400
    assert [normalize_answer(text) for text, _ in OFFICIAL["normalize"]] == [out for _, out in OFFICIAL["normalize"]]


@given(answers_to_hit_rules)
def test_normalize_answer_equals_second_reading(text: str) -> None:
    assert normalize_answer(text) == slow_normalize(text)


def test_normalize_answer_equals_second_reading_on_thousands() -> None:
    draw = random.Random(0)
    texts = [random_answer(draw, 14) for _ in range(10_000)]
    texts += [
        f"{a}{p}{b}{q}{c}" for a, b, c in itertools.product(["", " ", "1", "x"], repeat=3) for p in ",-." for q in ",/."
    ]
    assert [text for text in texts if normalize_answer(text) != slow_normalize(text)] == []
    # The draw hits what it is meant to hit.
    assert sum(normalize_answer(text) == "" for text in texts) > 50
    assert sum(text.count(".") > 32 for text in texts) > 500
    assert sum("." in normalize_answer(text) for text in texts if text.count(".") > 32) > 100


# --- vqa_accuracy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matching", "percent"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (7, 100), (9, 100), (10, 100)]
)
def test_score_of_m_of_ten(matching: int, percent: float) -> None:
    assert one_score("cat", ["cat"] * matching + [f"dog {n}" for n in range(10 - matching)]) == percent


SCORED = [
    # (what, prediction, ten answers, percent)
    ("all agree: nothing is normalised", "Yes", ["yes"] * 10, 0),
    ("one differs: all is normalised", "Yes", ["yes"] * 9 + ["no"], 100),
    ("all agree after cleaning", "a red", ["red", "red\n", " red"] * 3 + ["red"], 0),
    ("cleaning reaches the prediction too", "\tred\n", ["red"] * 10, 100),
    ("a newline inside becomes a space", "red\ncar", ["red car"] * 10, 100),
    ("so does a tab", "red\tcar", ["red car"] * 10, 100),
    ("and a tab beside punctuation", "ab c", ["a-b-\tc"] * 4 + ["x"] * 6, 100),
    ("a run of spaces stays a run", "red  car", ["red car"] * 10, 0),
    ("a carriage return inside stays", "red\rcar", ["red car"] * 10, 0),
    ("but is stripped at the end", "red\r", ["red"] * 10, 100),
    ("so is a no-break space", "\u00a0red\u3000", ["red"] * 10, 100),
    ("three of ten", "Cat.", ["cat"] * 3 + ["dog"] * 7, 90),
    ("all agree: articles count", "the cat", ["cat"] * 10, 0),
    ("all agree: punctuation counts", "t shirt", ["t-shirt"] * 10, 0),
    ("all agree on a form the prediction has", "T-Shirt", ["T-Shirt"] * 10, 100),
    ("case makes answers differ", "red", ["red"] * 5 + ["Red"] * 5, 100),
    ("four of ten in another form", "red", ["The RED."] * 4 + ["blue"] * 6, 100),
    ("number words on both sides", "two", ["Two"] * 2 + ["2"] * 8, 100),
    ("empty equals article", "the", [""] * 4 + ["cat"] * 6, 100),
    ("but not where all ten are empty", "the", [""] * 10, 0),
    ("empty prediction, all ten empty", " \n", [""] * 10, 100),
    ("cleaning comes before the space test", "p q", ["p-q- "] * 4 + ["x"] * 6, 100),
    ("a newline beside punctuation is a space after cleaning", "ab c", ["a-b-\nc"] * 4 + ["x"] * 6, 100),
]


@pytest.mark.parametrize(
    ("prediction", "answers", "percent"), [case[1:] for case in SCORED], ids=[c[0] for c in SCORED]
)
def test_score_by_eye(prediction: str, answers: list[str], percent: float) -> None:
    assert one_score(prediction, answers) == percent


def test_report_by_eye() -> None:
    annotations = [
        annotation(1, ["yes"] * 10, "yes/no", "is the"),  # 100
        annotation(2, ["2"] * 3 + ["3"] * 7, "number", "how many"),  # 90
        annotation(3, ["4"] * 10, "number", "how many"),  # 0
        annotation(4, ["red"] + ["blue"] * 9, "other", "what color"),  # 30
        annotation(5, ["cat"] * 2 + ["dog"] * 8, "other", "is the"),  # 60
        annotation(6, ["cat"] * 2 + ["dog"] * 8, "other", "what color"),  # 60
    ]
    scores = vqa_accuracy({6: "cat", 5: "cat", 4: "red", 3: "four", 2: "two", 1: "yes"}, annotations)
    assert scores.per_question == {1: 100.0, 2: 90.0, 3: 0.0, 4: 30.0, 5: 60.0, 6: 60.0}
    assert scores.per_answer_type == {"yes/no": 100.0, "number": 45.0, "other": 50.0}
    assert scores.per_question_type == {"is the": 80.0, "how many": 45.0, "what color": 45.0}
    assert scores.overall == 56.67  # 340 / 6


def test_overall_is_over_questions_not_types() -> None:
    annotations = [annotation(n, ["x"] * 10, "other") for n in range(3)] + [annotation(9, ["yes"] * 10, "yes/no")]
    assert vqa_accuracy({0: "-", 1: "-", 2: "-", 9: "yes"}, annotations).overall == 25.0


def test_any_number_of_answers_uses_the_same_formula() -> None:
    # One left out, two others equal: 2/3. With fewer than four answers nobody gets full marks.
    assert one_score("x", ["x", "x", "x"]) == 66.67
    assert one_score("x", ["x"]) == 0.0
    assert one_score("x", ["x", "x", "x", "x"]) == 100.0


def test_left_out_goes_by_all_fields_of_a_record() -> None:
    # Ten equal records with one id leave each other out, as `!=` on dicts does in the reference.
    same = annotation(1, ["yes"] * 10)
    for record in same["answers"]:
        record["answer_id"] = 1
    assert vqa_accuracy({1: "yes"}, [same]).overall == 0.0
    # A confidence that differs makes two kinds: 5 others of the other kind remain.
    for record in same["answers"][:5]:
        record["answer_confidence"] = "no"
    assert vqa_accuracy({1: "yes"}, [same]).overall == 100.0
    # Records with no id at all are told apart by their place.
    for record in same["answers"]:
        del record["answer_id"], record["answer_confidence"]
    assert vqa_accuracy({1: "yes"}, [same]).overall == 100.0


def test_vqa_accuracy_equals_the_reference_script() -> None:
    for case in OFFICIAL["evaluations"]:
        predictions = {int(question): answer for question, answer in case["predictions"].items()}
        scores = vqa_accuracy(predictions, case["annotations"])
        assert {str(question): value for question, value in scores.per_question.items()} == case["per_question"]
        assert scores.overall == pytest.approx(case["overall"], abs=1e-9)
        assert scores.per_answer_type == pytest.approx(case["per_answer_type"], abs=1e-9)
        assert scores.per_question_type == pytest.approx(case["per_question_type"], abs=1e-9)


def test_vqa_accuracy_equals_second_reading_on_thousands() -> None:
    predictions, annotations = random_questions(seed=1, count=3_000)
    scores = vqa_accuracy(predictions, annotations)
    slow = {
        record["question_id"]: slow_accuracy(
            predictions[record["question_id"]], [a["answer"] for a in record["answers"]]
        )
        for record in annotations
    }
    assert scores.per_question == {question: float(100 * value) for question, value in slow.items()}
    assert set(scores.per_question.values()) == {0.0, 30.0, 60.0, 90.0, 100.0}

    def is_rounded_mean(value: float, of: list[Fraction]) -> bool:
        exact = 100 * sum(of, Fraction()) / len(of)
        return abs(Fraction(value) - exact) <= Fraction(5_000_001, 1_000_000_000) and round(value, 2) == value

    assert is_rounded_mean(scores.overall, list(slow.values()))
    for field, report in (("answer_type", scores.per_answer_type), ("question_type", scores.per_question_type)):
        assert set(report) == {record[field] for record in annotations}
        for name, value in report.items():
            assert is_rounded_mean(value, [slow[r["question_id"]] for r in annotations if r[field] == name])


@given(st.lists(answers_to_hit_rules, min_size=10, max_size=10), st.data())
def test_one_question_equals_second_reading(answers: list[str], data: st.DataObject) -> None:
    prediction = data.draw(st.one_of(st.sampled_from(answers), answers_to_hit_rules))
    assert one_score(prediction, answers) == float(100 * slow_accuracy(prediction, answers))


def test_order_does_not_matter_and_nothing_is_changed() -> None:
    predictions, annotations = random_questions(seed=2, count=50)
    before = copy.deepcopy((predictions, annotations))
    scores = vqa_accuracy(predictions, iter(annotations))
    assert vqa_accuracy(predictions, annotations) == scores  # twice on the same annotations: none was rewritten
    turned = vqa_accuracy(dict(reversed(predictions.items())), annotations[::-1])
    assert turned.per_question == scores.per_question
    assert turned.overall == pytest.approx(scores.overall, abs=0.011)
    vqa_answer_vocabulary(annotations, 1)
    vqa_soft_targets(annotations, ["x"])
    assert (predictions, annotations) == before


RECORD = annotation(5, ["yes"] * 10)
WRONG = [
    ({5: "yes"}, [RECORD, annotation(6, ["no"] * 10)], r"1 annotated questions have no prediction: 6"),
    ({5: "yes", 8: "no"}, [RECORD], r"1 predicted questions have no annotation: 8"),
    ({"5": "yes"}, [RECORD], r"no prediction: 5; .* no annotation: '5'"),  # an id is compared as it is
    (dict.fromkeys(range(10, 18), "x") | {5: ""}, [RECORD], r"8 .*: 10, 11, 12, 13, 14 and 3 more"),
    ({5: "yes"}, [RECORD, RECORD], r"question 5 is annotated twice"),
    ({5: None}, [RECORD], r"prediction for question 5 is None, not text"),
    ({5: 2}, [RECORD], r"prediction for question 5 is 2, not text"),
    ({}, [], r"no annotations"),
    ({5: "yes"}, [without(RECORD, "question_id")], r"annotation 0 has no 'question_id'"),
    ({5: "yes"}, [without(RECORD, "answer_type")], r"question 5 has no text 'answer_type'"),
    ({5: "yes"}, [without(RECORD, "question_type")], r"question 5 has no text 'question_type'"),
    ({5: "yes"}, [without(RECORD, "answers")], r"question 5 has no list of 'answers'"),
    ({5: "yes"}, [{**RECORD, "answers": []}], r"question 5 has no list of 'answers'"),
    ({5: "yes"}, [{**RECORD, "answers": "yes"}], r"question 5 has no list of 'answers'"),
    ({5: "yes"}, [{**RECORD, "answers": ["yes"] * 10}], r"answer 0 of question 5"),
    ({5: "yes"}, [{**RECORD, "answers": [{"answer": 2, "answer_id": 1}]}], r"answer 0 of question 5"),
    ({5: "yes"}, {"annotations": [RECORD]}, r"annotation 0 is 'annotations'.*list under 'annotations'"),
]


@pytest.mark.parametrize(("predictions", "annotations", "message"), WRONG)
def test_wrong_input_is_named(predictions: Any, annotations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqa_accuracy(predictions, annotations)
