"""Truth labels: one word for true and one for false in a file."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.data.formats.labels import SPELLINGS, Labels
from pixelbert.errors import DataError

WORDS = [case(word) for pair in SPELLINGS for word in pair for case in (str.lower, str.upper, str.capitalize)]


def one_way(words):
    """The rule, said in another way: for some pair every word is one spelling of its true or one of its false."""
    words = set(words)
    return any(
        words <= {true, false}
        for pair in SPELLINGS
        for true, false in itertools.product(*([w for w in WORDS if w.lower() == word] for word in pair))
    )


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
def test_a_file_is_held_to_one_word_for_true_and_one_for_false(words):
    labels = Labels("mine.csv")
    for number, word in enumerate(words):
        assert labels.truth(word, f"line {number}") is (word.lower() in ("true", "yes", "1"))
    if one_way(words):
        labels.check()
        return
    with pytest.raises(DataError, match="mine.csv: labels are spelled in") as caught:
        labels.check()
    for word in set(words):  # each spelling with the place where it was met first
        assert f"'{word}' (line {words.index(word)})" in str(caught.value)


@pytest.mark.parametrize("value", ["maybe", "", None, 2, 1.0, ["true"], "truefalse", "t"])
def test_what_is_no_label(value):
    with pytest.raises(DataError, match=r"mine.csv: line 7: the label is .* expected true/false or yes/no or 1/0"):
        Labels("mine.csv").truth(value, "line 7")


def test_json_values():
    labels = Labels("mine.jsonl")
    assert [labels.truth(value, "line 1") for value in (True, False, "true")] == [True, False, True]
    labels.check()
    numbers = Labels("mine.jsonl")
    assert [numbers.truth(value, "line 1") for value in (1, 0, " 1 ")] == [True, False, True]
    numbers.check()
