"""Rankings in folds and of images with any number of captions, on scores made by hand; what 5,000 images take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memory_records import MemoryRecords, batches_of, random_texts, tiny_model
from pixelbert.data.images import ResizeRule
from pixelbert.errors import UsageError
from pixelbert.metrics import recall_scores
from pixelbert.model.pixels import Grid
from pixelbert.tasks.grids import Grids
from pixelbert.tasks.held_out import HeldOutPairs
from pixelbert.tasks.retrieval_task import Retrieval
from pixelbert.tasks.task import Scoring

CAPTIONS = [1, 3, 2, 5, 1, 2]  # of six images
IMAGE_OF = np.repeat(np.arange(6), CAPTIONS)
FOLD = np.arange(6)[:, None] // 2 == IMAGE_OF // 2  # [images, texts], three folds of two


def batches(folder: Path):  # type: ignore[no-untyped-def]
    texts = random_texts(1, 14)[0]
    own = [texts[end - count : end] for count, end in zip(CAPTIONS, np.cumsum(CAPTIONS), strict=True)]
    return batches_of(MemoryRecords(folder, own), ResizeRule(square=64), constant=(120, 110, 100))


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What the model says of every pair; `asked` collects the pairs it is asked for."""
    matrix = np.random.default_rng(3).normal(size=(6, 14)).astype(np.float32)

    def match(_: HeldOutPairs, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        asked.extend(zip(images.tolist(), texts.tolist(), strict=True))
        return matrix[images, texts]

    asked.clear()
    monkeypatch.setattr(HeldOutPairs, "_match", match)
    return matrix


asked: list[tuple[int, int]] = []


def by_hand(scores: np.ndarray, folds: int) -> dict[str, float]:
    """Mean over the folds of the recalls of each alone."""
    found = []
    for first in range(0, 6, folds):
        texts = np.flatnonzero(IMAGE_OF // folds == first // folds)
        one = recall_scores(scores[first : first + folds][:, texts], (IMAGE_OF[texts] - first).tolist())
        found.append({f"t2i_r{k}": v for k, v in one.image_retrieval.items()}
                     | {f"i2t_r{k}": v for k, v in one.text_retrieval.items()})  # fmt: skip
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


@pytest.mark.parametrize("folds", [0, 2, 3])
def test_each_fold_is_a_ranking_of_its_own(tmp_path: Path, scores: np.ndarray, folds: int) -> None:
    model = tiny_model(contrastive_size=0)
    outcome = Retrieval().score(model, batches(tmp_path), Scoring(folds=folds, batch_size=4))
    expected = by_hand(scores, folds or 6)
    assert {name: outcome.figures[name] for name in expected} == pytest.approx(expected)
    assert outcome.figures["rsum"] == pytest.approx(sum(expected.values()))
    inside = np.arange(6)[:, None] // (folds or 6) == IMAGE_OF // (folds or 6)
    assert set(asked) == set(zip(*map(np.ndarray.tolist, np.nonzero(inside)), strict=True))  # no other pair
    assert outcome.texts == 14 and len(outcome.rows) == 14
    for text, row in enumerate(outcome.rows):  # a row tells the rank inside its fold
        own, column = IMAGE_OF[text], scores[inside[:, text], text]
        assert row["rank"] == 1 + int((column > scores[own, text]).sum())


@pytest.mark.parametrize("shortlist", [1, 2, 50])
def test_a_shortlist_is_of_the_fold_alone(tmp_path: Path, scores: np.ndarray, shortlist: int) -> None:
    model, data = tiny_model(), batches(tmp_path)
    outcome = Retrieval().score(model, data, Scoring(folds=2, shortlist=shortlist, batch_size=4))
    if shortlist >= 2:  # the whole fold: as exact
        expected = by_hand(scores, 2)
        assert {name: outcome.figures[name] for name in expected} == pytest.approx(expected)
    assert all(0 <= outcome.figures[f"dual_t2i_r{k}"] <= 100 for k in (1, 5, 10))
    of_texts = [(image, text) for image, text in asked if FOLD[image, text]]
    assert {text for _, text in of_texts} == set(range(14))


def test_few_captions_are_taken_of_each_image_when_told(tmp_path: Path, scores: np.ndarray) -> None:
    outcome = Retrieval().score(
        tiny_model(contrastive_size=0), batches(tmp_path), Scoring(captions_per_image=2, batch_size=4)
    )
    assert outcome.texts == 1 + 2 + 2 + 2 + 1 + 2


@pytest.mark.parametrize("folds", [1, 4, 7])
def test_folds_that_do_not_divide_the_images_are_refused(tmp_path: Path, folds: int) -> None:
    with pytest.raises(UsageError, match=f"6 images cannot be cut into folds of {folds}; --images N takes N"):
        Retrieval().score(tiny_model(), batches(tmp_path), Scoring(folds=folds))


@pytest.mark.slow
def test_the_grids_of_five_thousand_photos_at_the_papers_size_take_2_gib() -> None:
    """COCO's test photos at 800 x 1333, upright and across: 13 x 21 cells of 768."""

    def part(i: int) -> Grid:
        height, width = (13, 21) if i % 2 else (21, 13)
        mask = torch.zeros(32, 21, 21, dtype=torch.bool)
        mask[:, :height, :width] = True
        return Grid(torch.ones(32, 441, 768), mask.flatten(1), (21, 21))

    grids = Grids((part(i) for i in range(157)), 157 * 32)
    assert grids.cells.dtype == torch.float16
    assert grids.cells.numel() * 2 < 2.1e9 * 157 * 32 / 5000
    batch = grids.select(torch.tensor([0, 5000, 40]))
    assert batch.pixels.shape == (3, 273, 768) and batch.mask.all()
