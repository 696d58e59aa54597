"""NLVR2 accuracy and consistency: cases by eye, the reference's numbers, and a second reading on random groups."""

from __future__ import annotations

import copy
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.metrics import Nlvr2Scores, nlvr2_scores

OFFICIAL = json.loads((Path(__file__).parent / "official_nlvr2_numbers.json").read_text("utf-8"))


def example(identifier: str, label: bool | str = "True", sentence: str = "There is a dog.") -> dict[str, Any]:
    return {"identifier": identifier, "label": label, "sentence": sentence}


def test_scores_by_eye() -> None:
    examples = [example("dev-1-0-0"), example("dev-1-3-0"), example("dev-1-0-1"), example("dev-2-0-0")]
    predictions = {"dev-1-0-0": "True", "dev-1-3-0": "False", "dev-1-0-1": "True", "dev-2-0-0": "True"}
    # Groups: (1, sentence 0) no, (1, sentence 1) yes, (2, sentence 0) yes.
    assert nlvr2_scores(predictions, examples) == Nlvr2Scores(accuracy=3 / 4, consistency=2 / 3)


def test_groups_go_by_identifier_not_by_sentence() -> None:
    # One text in two sets, and two texts under one number: the identifier decides both.
    two_groups = [example("dev-1-0-0", sentence="same"), example("dev-2-0-0", sentence="same")]
    assert nlvr2_scores({"dev-1-0-0": True, "dev-2-0-0": False}, two_groups).consistency == 1 / 2
    one_group = [example("dev-1-0-0", sentence="this"), example("dev-1-1-0", sentence="that")]
    assert nlvr2_scores({"dev-1-0-0": True, "dev-1-1-0": False}, one_group).consistency == 0.0
    # The split is part of the name.
    splits = [example("dev-1-0-0"), example("test1-1-0-0")]
    assert nlvr2_scores({"dev-1-0-0": True, "test1-1-0-0": False}, splits).consistency == 1 / 2


def test_groups_weigh_the_same() -> None:
    examples = [example(f"dev-1-{pair}-0") for pair in range(4)] + [example("dev-2-0-0")]
    predictions = {one["identifier"]: one["identifier"] != "dev-2-0-0" for one in examples}
    assert nlvr2_scores(predictions, examples) == Nlvr2Scores(accuracy=4 / 5, consistency=1 / 2)


@pytest.mark.parametrize(
    ("prediction", "label", "right"),
    [
        ("True", "True", True),
        ("true", "True", True),
        ("FALSE", "False", True),
        ("tRuE", "true", True),
        (True, "True", True),
        (False, "False", True),
        (False, "True", False),
        (np.True_, "True", True),
        (True, True, True),
        ("false", False, True),
        ("False", "True", False),
        ("yes", "True", False),  # any other word is wrong, whatever it means
        ("1", "True", False),
        ("", "False", False),
        (" True", "True", False),  # letter case is ignored, spaces are not
        ("True\n", "True", False),
    ],
)
def test_one_prediction(prediction: bool | str, label: bool | str, right: bool) -> None:
    scores = nlvr2_scores({"dev-0-0-0": prediction}, [example("dev-0-0-0", label)])
    assert scores == Nlvr2Scores(accuracy=float(right), consistency=float(right))


def test_predictions_for_other_examples_are_ignored() -> None:
    predictions = {"dev-0-0-0": True, "dev-0-1-0": "False", "test1-5-0-0": "nonsense"}
    assert nlvr2_scores(predictions, [example("dev-0-0-0")]) == Nlvr2Scores(1.0, 1.0)


def test_scores_equal_the_reference_script() -> None:
    for case in OFFICIAL:
        scores = nlvr2_scores(case["predictions"], case["examples"])
        assert scores == Nlvr2Scores(case["accuracy"], case["consistency"])


names = st.tuples(st.sampled_from(["dev", "test1"]), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2))


@given(st.dictionaries(names, st.tuples(st.booleans(), st.sampled_from(["True", "false", "TRUE", "no"])), min_size=1))
def test_scores_equal_second_reading(drawn: dict[tuple[str, int, int, int], tuple[bool, str]]) -> None:
    examples = [example("-".join(map(str, name)), str(label)) for name, (label, _) in drawn.items()]
    predictions = {"-".join(map(str, name)): word for name, (_, word) in drawn.items()}
    before = copy.deepcopy((predictions, examples))
    scores = nlvr2_scores(predictions, iter(examples))
    right = {
        name: {"True": True, "TRUE": True, "false": False}.get(word) is label for name, (label, word) in drawn.items()
    }
    wrong_groups = {(name[0], name[1], name[3]) for name in drawn if not right[name]}
    all_groups = {(name[0], name[1], name[3]) for name in drawn}
    assert scores.accuracy == float(Fraction(sum(right.values()), len(drawn)))
    assert scores.consistency == float(Fraction(len(all_groups) - len(wrong_groups), len(all_groups)))
    assert (predictions, examples) == before


@pytest.mark.parametrize(
    ("predictions", "examples", "message"),
    [
        (
            {"dev-0-0-0": True},
            [example("dev-0-0-0"), example("dev-0-1-0")],
            r"1 examples have no prediction: 'dev-0-1-0'",
        ),
        ({"x": True, "y": True}, [example("dev-0-0-0")], r"1 examples have no prediction: 'dev-0-0-0'"),
        ({"dev-0-0-0": True}, [example("dev-0-0-0")] * 2, r"example 'dev-0-0-0' occurs twice"),
        (
            {"dev-0-0-0": True},
            [example("dev-0-0-0", "yes")],
            r"label of example 'dev-0-0-0' is 'yes', neither True nor",
        ),
        ({"dev-0-0-0": True}, [{"identifier": "dev-0-0-0"}], r"label of example 'dev-0-0-0' is None"),
        ({"dev-0-0-0": 1}, [example("dev-0-0-0")], r"prediction of example 'dev-0-0-0' is 1, neither bool nor text"),
        ({"dev-0-0-0": None}, [example("dev-0-0-0")], r"prediction of example 'dev-0-0-0' is None"),
        ({"12-0": True}, [example("12-0")], r"example '12-0' is not named split-set-pair-sentence"),
        ({}, [{"label": "True"}], r"example 0 has no text 'identifier'"),
        ({}, ["dev-0-0-0"], r"example 0 has no text 'identifier'"),
        ({}, [], r"no examples"),
    ],
)
def test_wrong_input_is_named(predictions: Any, examples: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nlvr2_scores(predictions, examples)
