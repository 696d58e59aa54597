"""Long rankings: the cost told before, scores kept while they grow and not asked for twice; what a shortlist loses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from memory_records import MemoryRecords, batches_of, random_texts, tiny_model
from pixelbert.data.images import ResizeRule
from pixelbert.metrics import recall_scores
from pixelbert.tasks import held_out
from pixelbert.tasks.held_out import HeldOutPairs

Pairs = list[tuple[int, int]]


def pairs_of(folder: Path, images: int = 4, texts: int = 3, model: Any = None, **options: Any) -> HeldOutPairs:
    """Blind, so that no picture is drawn: the scores of pairs are given by hand where they matter."""
    records = MemoryRecords(folder, random_texts(images, texts))
    batches = batches_of(records, ResizeRule(square=64), constant=(120, 110, 100))
    return HeldOutPairs(model or tiny_model(), batches, list(range(images)), batch_size=4, **options)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Pairs]]:
    """`counted(scores, stop)`: pairs score what the matrix [images, texts] says; Ctrl-C comes at call `stop`."""

    def count(scores: np.ndarray, stop: int = 0) -> list[Pairs]:
        calls: list[Pairs] = []

        def match(_: HeldOutPairs, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
            if len(calls) + 1 == stop:
                raise KeyboardInterrupt
            calls.append(list(zip(images.tolist(), texts.tolist(), strict=True)))
            return scores[images, texts]

        monkeypatch.setattr(HeldOutPairs, "_match", match)
        monkeypatch.setattr(HeldOutPairs, "_cost", lambda self, what, pairs, *_: held_out._Cost(pairs))
        return calls

    return count


# -- kept ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_no_pair_is_scored_twice_after_a_stop(
    tmp_path: Path, counted: Callable[..., list[Pairs]], monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(held_out, "_KEPT_FROM", 10)
    true = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)

    def scored() -> np.ndarray:
        held = pairs_of(tmp_path, partial=tmp_path / "partial")
        if exact:
            return held.exact_scores(4)[0]
        return held.match_scores(np.repeat(np.arange(4), 12), np.tile(np.arange(12), 4)).reshape(4, 12)

    first = counted(true, stop=4)
    with pytest.raises(KeyboardInterrupt):
        scored()
    assert len(first) == 3 and len(list((tmp_path / "partial").iterdir())) == 1
    second = counted(true)
    assert np.array_equal(scored().astype(np.float32), true)
    asked = [pair for call in (*first, *second) for pair in call]
    assert sorted(asked) == [(image, text) for image in range(4) for text in range(12)]
    third = counted(true + 1)  # all are there now
    assert np.array_equal(scored().astype(np.float32), true) and third == []


def test_scores_of_another_model_or_other_pairs_are_not_used(
    tmp_path: Path, counted: Callable[..., list[Pairs]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "_KEPT_FROM", 5)
    texts = np.arange(12)

    def asked(images: np.ndarray, seed: int = 0) -> int:
        calls = counted(np.zeros((4, 12)))
        pairs_of(tmp_path, model=tiny_model(seed), partial=tmp_path / "partial").match_scores(images, texts)
        return sum(map(len, calls))

    assert [asked(texts // 3), asked(texts // 3)] == [12, 0]
    assert [asked(texts // 3, seed=1), asked((texts + 1) % 4)] == [12, 12]


def test_few_pairs_are_not_kept(tmp_path: Path, counted: Callable[..., list[Pairs]]) -> None:
    counted(np.zeros((4, 12)))
    pairs_of(tmp_path, partial=tmp_path / "partial").exact_scores(4)
    assert not (tmp_path / "partial").exists()


def test_the_cost_is_told_before_it_starts(
    tmp_path: Path, counted: Callable[..., list[Pairs]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = HeldOutPairs._cost
    calls = counted(np.zeros((4, 12)))
    monkeypatch.setattr(HeldOutPairs, "_cost", measured)
    told: list[tuple[str, int]] = []
    held = pairs_of(tmp_path, announce=lambda text: told.append((text, sum(map(len, calls)))))
    held.exact_scores(4)
    ((text, before),) = told
    assert text == "exact matches: 48 pairs to score, less than a minute"
    assert before <= 12  # only the batches that the time is told from


def test_few_pairs_that_take_long_are_kept(tmp_path: Path, counted: Callable[..., list[Pairs]]) -> None:
    counted(np.zeros((4, 12)))
    held = pairs_of(tmp_path, partial=tmp_path / "partial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOutPairs, "_cost", lambda self, what, pairs, *_: held_out._Cost(pairs, seconds=2.0))
        held.exact_scores(4)
    assert len(list((tmp_path / "partial").iterdir())) == 1


def test_scores_of_other_captions_are_not_used(
    tmp_path: Path, counted: Callable[..., list[Pairs]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "_KEPT_FROM", 10)
    calls = counted(np.zeros((4, 12)))
    pairs_of(tmp_path, partial=tmp_path / "partial").exact_scores(4)
    first = sum(map(len, calls))
    held = pairs_of(tmp_path, partial=tmp_path / "partial")
    held.texts[5] = held.texts[5][::-1].copy()
    held.exact_scores(4)
    assert first == 48 and sum(map(len, calls)) == 96


# -- the shortlist ---------------------------------------------------------------------------------------------------


def test_a_shortlist_can_only_find_what_is_on_it(tmp_path: Path, counted: Callable[..., list[Pairs]]) -> None:
    """Three images of one text each. The model ranks all rightly; the pooled vectors miss the first one's text."""
    match = np.array([[9.0, 1.0, 2.0], [2.0, 8.0, 1.0], [1.0, 2.0, 7.0]])
    pooled = np.array([[0.1, 0.2, 0.3], [0.8, 0.9, 0.1], [0.7, 0.5, 0.6]], dtype=np.float32)
    held = pairs_of(tmp_path, images=3, texts=1)
    own = [0, 1, 2]

    def found(scores: np.ndarray) -> tuple[float, float]:
        recalls = recall_scores(scores, own)
        return recalls.image_retrieval[1], recalls.text_retrieval[1]

    counted(match)
    assert found(held.exact_scores(3)[0]) == (100, 100)
    assert found(pooled) == (pytest.approx(200 / 3), pytest.approx(100 / 3))
    calls = counted(match)
    by_text = held.rerank(pooled, 2)  # of each text the two nearest images
    assert sorted(pair for call in calls for pair in call) == [(0, 2), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert recall_scores(by_text, own).image_retrieval[1] == pytest.approx(200 / 3)  # image 0 is not on text 0's list
    calls = counted(match)
    by_image = held.rerank(pooled, 2, by_image=True)
    # wanted are (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (2, 2); all but the first are known by now
    assert [pair for call in calls for pair in call] == [(0, 1)]
    assert recall_scores(by_image, own).text_retrieval[1] == pytest.approx(200 / 3)
    whole = held.rerank(pooled, 3)
    assert (np.argsort(-whole, axis=0) == np.argsort(-match, axis=0)).all()  # a list of all is exact scoring


# -- the middle of a photo ---------------------------------------------------------------------------------------------


def test_with_a_middle_view_a_pooled_vector_is_the_mean_of_both(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(3, 1), sizes=((70, 98), (42, 42)))
    batches, model = batches_of(records), tiny_model(contrastive_size=8)
    plain, both = (HeldOutPairs(model, batches, [2, 0, 1], middle_view=seen) for seen in (False, True))
    middles = []
    for row in (2, 0, 1):
        batch = batches.image_batch([row], [0])
        photo = Image.fromarray(batch["pixel_values"][0].permute(1, 2, 0).numpy())
        assert [[photo.height, photo.width]] == batch["image_sizes"].tolist()
        edges = (round(photo.width / 14), round(photo.height / 14))
        part = photo.crop((*edges, photo.width - edges[0], photo.height - edges[1]))
        pixels = torch.from_numpy(np.array(part.resize(photo.size, Image.Resampling.BILINEAR))).permute(2, 0, 1)[None]
        with torch.no_grad():
            middles.append(model.image_vectors(model.pixelbert.encode_images(pixels, batch["image_sizes"]))[0])
    summed = plain.pooled_vectors[0] + torch.stack(middles)
    expected = summed / summed.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(both.pooled_vectors[0], expected, rtol=1e-4, atol=1e-5)
    assert (both.pooled_vectors[0] - plain.pooled_vectors[0]).abs().max() > 1e-3
    torch.testing.assert_close(both.pooled_vectors[1], plain.pooled_vectors[1])
