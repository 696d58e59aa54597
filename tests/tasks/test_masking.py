"""Masking: how often, with what, never special pieces, whole words, the same for the same draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_records import VOCABULARY
from pixelbert.data.draws import generator
from pixelbert.model.tokenization import load_tokenizer
from pixelbert.tasks.masking import IGNORED, Vocabulary, mask_tokens

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = {PAD, UNK, CLS, SEP, MASK}
ORDINARY = range(5, len(VOCABULARY))


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.of(load_tokenizer(VOCABULARY))


def sentence(*ids: int) -> np.ndarray:
    return np.array([CLS, *ids, SEP])


def within(count: int, total: int, share: float) -> bool:
    """Whether a binomial count lies within five standard deviations of its mean."""
    return abs(count - share * total) < 5 * math.sqrt(total * share * (1 - share))


def test_the_vocabulary_is_read_from_the_tokenizer(vocabulary: Vocabulary) -> None:
    assert vocabulary.size == len(VOCABULARY)
    assert vocabulary.mask_id == MASK
    assert set(vocabulary.special_ids) == SPECIAL
    assert [VOCABULARY[i] for i in np.flatnonzero(vocabulary.continuation)] == ["##s", "##ning"]
    assert vocabulary.ordinary_ids.tolist() == list(ORDINARY)


def test_fifteen_percent_are_hidden_and_eighty_ten_ten_of_them(vocabulary: Vocabulary) -> None:
    # long texts, so that "at least one" hardly ever matters
    ids = sentence(*(5 + np.arange(200) % len(ORDINARY)))
    hidden = masked = kept = changed = 0
    replacements = []
    for i in range(300):
        out, labels = mask_tokens(ids, vocabulary, generator(0, "test", i))
        places = np.flatnonzero(labels != IGNORED)
        hidden += len(places)
        masked += int((out[places] == MASK).sum())
        kept += int((out[places] == ids[places]).sum())
        other = places[(out[places] != MASK) & (out[places] != ids[places])]
        changed += len(other)
        replacements += out[other].tolist()
        assert (labels[places] == ids[places]).all()
        assert (out[labels == IGNORED] == ids[labels == IGNORED]).all()
    assert within(hidden, 300 * 200, 0.15)
    assert within(masked, hidden, 0.8)
    # a random piece is the piece itself once in as many times as there are pieces
    same = 0.1 / len(ORDINARY)
    assert within(kept, hidden, 0.1 + same)
    assert within(changed, hidden, 0.1 - same)
    assert set(replacements) == set(ORDINARY)  # every ordinary piece, no special one
    counts = np.bincount(replacements)[5:]
    assert counts.max() < 2.5 * counts.mean()


@given(st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=12), st.integers(0, 2**31), st.booleans())
def test_at_least_one_piece_and_never_a_special_one(
    vocabulary: Vocabulary, middle: list[int], seed: int, whole: bool
) -> None:
    ids = sentence(*middle)
    before = ids.copy()
    out, labels = mask_tokens(ids, vocabulary, generator(seed, "test"), whole_word=whole)
    assert (ids == before).all()
    places = np.flatnonzero(labels != IGNORED)
    assert not set(ids[places]) & SPECIAL
    assert (labels[places] == ids[places]).all()
    assert len(places) >= 1 or not set(middle) - SPECIAL
    assert not set(out[places].tolist()) & (SPECIAL - {MASK})


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_short_texts_lose_one_piece_where_the_draw_hides_none(vocabulary: Vocabulary, length: int) -> None:
    ids = sentence(*(5 + np.arange(length)))
    draws = (generator(1, "test", i) for i in range(1500))
    counts = [int((mask_tokens(ids, vocabulary, draw)[1] != IGNORED).sum()) for draw in draws]
    none = 0.85**length  # then one is chosen all the same
    expected = 0.15 * length + none
    assert min(counts) == 1
    assert np.mean(counts) == pytest.approx(expected, abs=5 * np.std(counts) / math.sqrt(len(counts)) + 1e-9)


def test_the_forced_piece_is_any_of_them(vocabulary: Vocabulary) -> None:
    ids = sentence(*range(5, 10))
    places = [
        int(np.flatnonzero(labels != IGNORED)[0])
        for i in range(1000)
        for labels in [mask_tokens(ids, vocabulary, generator(2, "test", i), probability=1e-9)[1]]
    ]
    assert all(within(places.count(place), 1000, 0.2) for place in range(1, 6))


def test_whole_words_hide_all_their_pieces(vocabulary: Vocabulary) -> None:
    run, s, ning, dog, on = (VOCABULARY.index(w) for w in ("run", "##s", "##ning", "dog", "on"))
    ids = sentence(dog, run, ning, s, on, dog, s)
    words = [[1], [2, 3, 4], [5], [6, 7]]
    hidden = np.zeros(4)
    for i in range(1500):
        _, labels = mask_tokens(ids, vocabulary, generator(3, "test", i), whole_word=True)
        for word, places in enumerate(words):
            flags = set((labels[places] != IGNORED).tolist())
            assert len(flags) == 1, "a word is hidden in part"
            hidden[word] += flags.pop()
    each = 0.15 + 0.85**4 / 4
    assert all(within(int(count), 1500, each) for count in hidden)


def test_a_continuation_without_its_beginning_is_a_word(vocabulary: Vocabulary) -> None:
    s, dog = VOCABULARY.index("##s"), VOCABULARY.index("dog")
    _, labels = mask_tokens(sentence(s, dog), vocabulary, generator(0, "test"), probability=0.999999, whole_word=True)
    assert (labels[1:3] == [s, dog]).all()


def test_a_text_without_ordinary_pieces_stays_as_it_is(vocabulary: Vocabulary) -> None:
    for ids in (sentence(), sentence(UNK, UNK)):
        out, labels = mask_tokens(ids, vocabulary, generator(0, "test"))
        assert (out == ids).all()
        assert (labels == IGNORED).all()


def test_the_same_draw_gives_the_same_mask_and_another_another(vocabulary: Vocabulary) -> None:
    ids = sentence(*(5 + np.arange(20)))
    first = mask_tokens(ids, vocabulary, generator(0, "mask", 3, 7))
    again = mask_tokens(ids, vocabulary, generator(0, "mask", 3, 7))
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    others = [generator(1, "mask", 3, 7), generator(0, "mask", 4, 7), generator(0, "mask", 3, 8)]
    assert any((mask_tokens(ids, vocabulary, other)[1] != first[1]).any() for other in others[:1])
    assert all((mask_tokens(ids, vocabulary, other)[0] != first[0]).any() for other in others)
