"""Recall and ranks: cases by eye, the reference's numbers where ties cannot matter, a plain loop on random matrices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.metrics import BothDirections, RecallScores, recall_scores, retrieval

OFFICIAL = json.loads((Path(__file__).parent / "official_retrieval_numbers.json").read_text("utf-8"))


# The second reading: the rules of the ties, one query at a time, in plain Python.


def slow_image_rank(row: Any, own_texts: list[int]) -> int:
    best = max(row[text] for text in own_texts)
    return sum(1 for text, score in enumerate(row) if text not in own_texts and score >= best)


def slow_text_rank(column: Any, own_image: int) -> int:
    return sum(1 for image, score in enumerate(column) if image != own_image and score >= column[own_image])


def slow_one(scores: list[list[float]], image_of_text: list[int], ks: tuple[int, ...]) -> list[list[float]]:
    images = range(len(scores))
    i2t = [slow_image_rank(scores[i], [t for t, owner in enumerate(image_of_text) if owner == i]) for i in images]
    t2i = [slow_text_rank([row[t] for row in scores], owner) for t, owner in enumerate(image_of_text)]
    rows = []
    for ranks in (i2t, t2i):
        ordered, middle = sorted(ranks), len(ranks) // 2
        median = ordered[middle] if len(ranks) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
        rows.append([*(100 * mean(rank < k for rank in ranks) for k in ks), int(median) + 1, mean(ranks) + 1])
    return rows


def slow_scores(
    scores: list[list[float]], image_of_text: list[int], ks: tuple[int, ...] = (1, 5, 10), fold: int | None = None
) -> RecallScores:
    fold = fold or len(scores)
    parts = []
    for first in range(0, len(scores), fold):
        texts = [t for t, owner in enumerate(image_of_text) if first <= owner < first + fold]
        part = [[row[t] for t in texts] for row in scores[first : first + fold]]
        parts.append(slow_one(part, [image_of_text[t] - first for t in texts], ks))
    i2t, t2i = ([mean(values) for values in zip(*(part[way] for part in parts), strict=True)] for way in (0, 1))
    return RecallScores(
        dict(zip(ks, i2t, strict=False)),
        dict(zip(ks, t2i, strict=False)),
        BothDirections(i2t[-2], t2i[-2]),
        BothDirections(i2t[-1], t2i[-1]),
    )


def assert_same(found: RecallScores, expected: RecallScores) -> None:
    assert found.text_retrieval == pytest.approx(expected.text_retrieval, abs=1e-9)
    assert found.image_retrieval == pytest.approx(expected.image_retrieval, abs=1e-9)
    assert found.median_rank == pytest.approx(expected.median_rank, abs=1e-9)
    assert found.mean_rank == pytest.approx(expected.mean_rank, abs=1e-9)


def test_scores_by_eye() -> None:
    # One text an image. Image 0 ties with text 1; text 0 is first with its image, text 1 ties with image 0.
    scores = recall_scores([[0.9, 0.9], [0.1, 0.9]], [0, 1])
    assert scores.text_retrieval == {1: 50.0, 5: 100.0, 10: 100.0}
    assert scores.image_retrieval == {1: 50.0, 5: 100.0, 10: 100.0}
    assert scores.median_rank == BothDirections(text_retrieval=1.0, image_retrieval=1.0)
    assert scores.mean_rank == BothDirections(text_retrieval=1.5, image_retrieval=1.5)


def test_an_image_counts_by_its_best_text_and_own_ties_cost_nothing() -> None:
    # Image 0 has texts 0, 1, 2 (two of them tied at the top), image 1 has text 3 alone, below one foreign text.
    scores = recall_scores([[0.8, 0.1, 0.8, 0.7], [0.2, 0.2, 0.9, 0.6]], [0, 0, 0, 1], ks=(1, 2))
    assert scores.text_retrieval == {1: 50.0, 2: 100.0}  # ranks 0 and 1
    # Texts: 0 first; 1 behind image 1; 2 behind image 1; 3 behind image 0.
    assert scores.image_retrieval == {1: 25.0, 2: 100.0}
    assert scores.mean_rank == BothDirections(1.5, 1.75)
    assert scores.median_rank == BothDirections(1.0, 2.0)


def test_texts_may_stand_in_any_order() -> None:
    matrix = np.array([[0.8, 0.1, 0.8, 0.7], [0.2, 0.2, 0.9, 0.6]])
    order = [3, 1, 0, 2]
    expected = recall_scores(matrix, [0, 0, 0, 1])
    assert recall_scores(matrix[:, order], [np.array([0, 0, 0, 1])[t] for t in order]) == expected


def test_a_model_that_scores_all_the_same_earns_nothing() -> None:
    scores = recall_scores(np.zeros((20, 60)), np.arange(60) % 20)
    assert scores.text_retrieval == scores.image_retrieval == {1: 0.0, 5: 0.0, 10: 0.0}
    assert scores.median_rank == scores.mean_rank == BothDirections(58.0, 20.0)  # all 57 / 19 others first
    assert scores.recall_sum == 0.0


def test_ranks_count_from_one_and_an_even_median_is_floored() -> None:
    # i2t ranks from 0 are 0, 1, 2, 3 (median 1.5): image i has i foreign texts above its own.
    matrix = [[9, 1, 1, 1], [9, 5, 1, 1], [9, 8, 5, 1], [9, 8, 7, 5]]
    scores = recall_scores(matrix, [0, 1, 2, 3], ks=(1, 2, 3, 4))
    assert scores.text_retrieval == {1: 25.0, 2: 50.0, 3: 75.0, 4: 100.0}
    assert scores.median_rank.text_retrieval == 2.0
    assert scores.mean_rank.text_retrieval == 2.5


def test_derived_numbers() -> None:
    scores = RecallScores(
        {1: 10.0, 5: 20.0, 10: 60.0}, {1: 1.0, 5: 2.0, 10: 6.0}, BothDirections(1, 1), BothDirections(1, 1)
    )
    assert scores.mean_recall == BothDirections(30.0, 3.0)
    assert scores.recall_sum == 99.0


def test_folds_by_eye() -> None:
    # Across the halves everything scores high; inside them the first half is right and the second one wrong.
    matrix = np.array([[5, 1, 9, 9], [1, 5, 9, 9], [9, 9, 1, 5], [9, 9, 5, 1]])
    whole = recall_scores(matrix, range(4), ks=(1,))
    assert whole.text_retrieval == whole.image_retrieval == {1: 0.0}
    halves = recall_scores(matrix, range(4), ks=(1,), fold_images=2)
    assert halves.text_retrieval == halves.image_retrieval == {1: 50.0}
    assert halves.median_rank == halves.mean_rank == BothDirections(1.5, 1.5)  # 1 and 2
    assert halves.recall_sum == 100.0  # not six times the mean, as the reference prints
    alone = recall_scores(matrix, range(4), ks=(1,), fold_images=1)
    assert alone.recall_sum == 200.0


def test_folds_weigh_the_same_whatever_their_texts() -> None:
    # First image: three texts, all found. Second fold: one text an image, not found.
    matrix = np.array([[3, 3, 3, 0, 0, 0], [0, 0, 0, 3, 0, 0], [0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 2, 1]])
    scores = recall_scores(matrix, [0, 0, 0, 1, 2, 3], ks=(1,), fold_images=2)
    assert scores.image_retrieval == {1: 50.0}  # of texts it would be 4 in 6


def test_scores_equal_the_reference_script() -> None:
    """Five texts an image, no ties: there the reference has one value on every machine."""
    for case in OFFICIAL:
        images, texts, prime = case["images"], 5 * case["images"], case["prime"]
        # Cubes modulo a prime of this kind are all different; the true pairs get a push of so many and a half.
        drawn = np.arange(1, images * texts + 1, dtype=np.int64).reshape(images, texts) ** 3 % prime
        owner = np.repeat(np.arange(images), 5)
        matrix = drawn + (owner[None, :] == np.arange(images)[:, None]) * (case["push"] + 0.5)
        scores = recall_scores(matrix, owner, fold_images=case["fold"])
        assert [*scores.text_retrieval.values()] == pytest.approx(case["i2t"][:3], abs=1e-9)
        assert [*scores.image_retrieval.values()] == pytest.approx(case["t2i"][:3], abs=1e-9)
        assert scores.median_rank == pytest.approx((case["i2t"][3], case["t2i"][3]), abs=1e-9)
        assert scores.mean_rank == pytest.approx((case["i2t"][4], case["t2i"][4]), abs=1e-9)


@st.composite
def tied_problems(draw: st.DrawFn) -> tuple[list[list[float]], list[int], int]:
    """Few distinct scores, so ties everywhere; any number of texts an image; a fold size that divides."""
    fold, folds = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    images = fold * folds
    owner = draw(st.permutations([*range(images), *draw(st.lists(st.integers(0, images - 1), max_size=8))]))
    values = st.sampled_from([0.0, -0.0, 0.25, 1.0, -3.0, float("-inf"), float("inf")])
    row = st.lists(values, min_size=len(owner), max_size=len(owner))
    return draw(st.lists(row, min_size=images, max_size=images)), list(owner), fold


@given(tied_problems(), st.sampled_from([1, 7, 1 << 22]))
def test_scores_equal_plain_loop(problem: tuple[list[list[float]], list[int], int], block: int) -> None:
    matrix, owner, fold = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_BLOCK_SCORES", block)  # the size of the blocks must not show
        assert_same(recall_scores(matrix, owner, (1, 2, 3)), slow_scores(matrix, owner, (1, 2, 3)))
        found = recall_scores(matrix, owner, (1, 2, 3), fold_images=fold)
        assert_same(found, slow_scores(matrix, owner, (1, 2, 3), fold))


def test_permuting_images_changes_nothing() -> None:
    draw = np.random.default_rng(4)
    matrix, owner = draw.integers(0, 30, (12, 40)), np.concatenate([np.arange(12), draw.integers(0, 12, 28)])
    order = draw.permutation(12)
    assert recall_scores(matrix[order], np.argsort(order)[owner]) == recall_scores(matrix, owner)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", "bool"])
def test_any_real_dtype_and_layout(dtype: str) -> None:
    draw = np.random.default_rng(1)
    matrix, owner = draw.integers(0, 3, (6, 18)).astype(dtype), np.arange(18) % 6
    expected = slow_scores(matrix.tolist(), owner.tolist())
    for form in (matrix, np.asfortranarray(matrix), matrix.tolist(), np.repeat(matrix, 2, axis=1)[:, ::2]):
        assert_same(recall_scores(form, owner.astype("uint16")), expected)


def test_one_thousand_images_with_ties_equal_plain_loop() -> None:
    """1,000 x 5,000 with ties put in: every rank is held against the loop for a part of the queries."""
    draw = np.random.default_rng(0)
    owner = draw.permutation(np.concatenate([np.arange(1_000), draw.integers(0, 1_000, 4_000)]))
    matrix = draw.standard_normal((1_000, 5_000), dtype=np.float32).round(2)  # some 800 distinct values
    matrix[owner, np.arange(5_000)] += 2.5
    matrix[draw.integers(0, 1_000, 300)] = 0.0  # a constant row, as a broken image gives
    matrix.flags.writeable = False
    i2t, t2i = retrieval._pessimistic_ranks(matrix, owner, 0, 1_000)
    some_images, some_texts = draw.choice(1_000, 60, replace=False), draw.choice(5_000, 200, replace=False)
    for image in some_images:
        assert i2t[image] == slow_image_rank(matrix[image].tolist(), np.flatnonzero(owner == image).tolist())
    for text in some_texts:
        assert t2i[text] == slow_text_rank(matrix[:, text].tolist(), owner[text])
    scores = recall_scores(matrix, owner)
    assert scores.text_retrieval == {k: 100 * np.count_nonzero(i2t < k) / 1_000 for k in (1, 5, 10)}
    assert scores.image_retrieval == {k: 100 * np.count_nonzero(t2i < k) / 5_000 for k in (1, 5, 10)}
    optimistic = np.sum(matrix > matrix[owner, np.arange(5_000)], axis=0)
    assert np.sum(t2i > optimistic) > 1_000  # the ties are there, and they cost


WRONG = [
    ([[1.0, 2.0], [3.0, 4.0]], [0, 0], {}, r"1 images have no text: 1"),
    (np.zeros((9, 1)), [3], {}, r"8 images have no text: 0, 1, 2, 4, 5 and 3 more"),
    ([[1.0, float("nan")], [3.0, 4.0]], [0, 1], {}, r"image 0 and text 1 is not a number"),
    ([[1.0, 2.0], [3.0, 4.0]], [0, 2], {}, r"text 1 belongs to image 2, but scores has 2 images"),
    ([[1.0, 2.0], [3.0, 4.0]], [-1, 1], {}, r"text 0 belongs to image -1"),
    ([[1.0, 2.0], [3.0, 4.0]], [0, 1, 1], {}, r"image_of_text has shape \(3,\), but scores has 2 texts"),
    ([[1.0, 2.0], [3.0, 4.0]], [0.0, 1.0], {}, r"image_of_text holds float64, not whole numbers"),
    ([[1.0, 2.0], [3.0, 4.0]], [False, True], {}, r"image_of_text holds bool"),
    ([1.0, 2.0], [0, 1], {}, r"scores has shape \(2,\)"),
    (np.zeros((0, 0)), [], {}, r"scores has shape \(0, 0\)"),
    ([["a", "b"]], [0, 0], {}, r"scores holds <U1, not real numbers"),
    ([[1j]], [0], {}, r"scores holds complex128"),
    (np.zeros((4, 4)), range(4), {"fold_images": 3}, r"fold_images is 3: 4 images cannot be cut"),
    (np.zeros((4, 4)), range(4), {"fold_images": 8}, r"fold_images is 8"),
    (np.zeros((4, 4)), range(4), {"fold_images": 0}, r"fold_images is 0"),
    (np.zeros((4, 4)), range(4), {"fold_images": 2.0}, r"fold_images is 2.0"),
    (np.zeros((4, 4)), range(4), {"ks": ()}, r"ks is \(\)"),
    (np.zeros((4, 4)), range(4), {"ks": (0, 1)}, r"ks is \(0, 1\)"),
    (np.zeros((4, 4)), range(4), {"ks": (1.5,)}, r"ks is \(1.5,\)"),
]


@pytest.mark.parametrize(("scores", "image_of_text", "options", "message"), WRONG)
def test_wrong_input_is_named(scores: Any, image_of_text: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_scores(scores, image_of_text, **options)


def test_nan_outside_the_first_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_BLOCK_SCORES", 4)
    matrix = np.zeros((4, 4))
    matrix[3, 2] = np.nan
    with pytest.raises(ValueError, match="image 3 and text 2"):
        recall_scores(matrix, range(4))


def test_metrics_load_no_deep_learning_library() -> None:
    code = (
        "import sys, pixelbert.metrics; "
        "print([name for name in ('torch', 'transformers', 'timm', 'PIL', 'pixelbert.errors') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == "[]"
