"""The fit of matches: against its own optimality condition, and on pairs whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memory_records import MemoryRecords, batches_of, random_texts, tiny_model
from pixelbert.tasks.calibration import logistic_regression
from pixelbert.tasks.held_out import HeldOutPairs
from pixelbert.tasks.match_fit import fit_matches
from pixelbert.tasks.objective import match_log_odds


def test_logistic_regression_finds_the_weights_that_made_the_labels() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20_000, 2)) * [1.0, 30.0]
    chance = 1 / (1 + np.exp(-(1.5 * x[:, 0] - 0.05 * x[:, 1] + 0.7)))
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    a, w, b = logistic_regression(design, (draw.random(len(x)) < chance).astype(float), np.array([1.0, 0.0, 0.0]))
    assert (a, w, b) == pytest.approx((1.5, -0.05, 0.7), rel=0.1)


def test_it_stays_finite_where_pairs_are_told_apart_perfectly() -> None:
    x = np.array([[-2.0, 1], [-1.0, 1], [1.0, 1], [2.0, 1]])
    a, b = logistic_regression(x, np.array([0.0, 0, 1, 1]), np.array([1.0, 0.0]))
    assert np.isfinite([a, b]).all() and a > 0 and abs(b) < 1e-6


def loss(held_out: HeldOutPairs) -> float:
    """Mean cross-entropy of own captions and as many foreign ones, by the model's log-odds."""
    own, false = np.arange(len(held_out.records)), [held_out.false_caption(i) for i in range(len(held_out.records))]
    true = held_out.match_scores(held_out.image_of, own)
    foreign = held_out.match_scores(held_out.image_of, np.array(false))
    return float((np.logaddexp(0, -true) + np.logaddexp(0, foreign)).mean())


def test_the_fitted_model_is_the_weighted_sum_and_loses_less(tmp_path: Path) -> None:
    model = tiny_model(contrastive_size=8, match_fitted=True)
    batches = batches_of(MemoryRecords(tmp_path, random_texts(12, 3)))
    held_out = HeldOutPairs(model, batches, list(range(12)), 3)
    images, texts = np.repeat(np.arange(12), 3), np.arange(36)
    plain = held_out.match_scores(images, texts)
    cosine = held_out.pooled_scores()[images, texts] * model.contrastive.log_scale.exp().item()
    before = loss(held_out)
    a, w, b = fit_matches(held_out)
    assert loss(held_out) < before
    assert model.match_fit.tolist() == pytest.approx([a, w, b])
    assert held_out.match_scores(images, texts) == pytest.approx(a * plain + w * cosine + b, abs=1e-4)


def test_an_unfitted_model_says_what_its_head_says(tmp_path: Path) -> None:
    models = [tiny_model(contrastive_size=8, match_fitted=fitted) for fitted in (False, True)]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    batches = batches_of(MemoryRecords(tmp_path, random_texts(3, 2)))
    batch = batches.image_batch([0, 1], [0, 0]) | batches.text_batch(["the dog run", "red ball"])
    scores = []
    for model in models:
        with torch.no_grad():
            grid = model.eval().pixelbert.encode_images(batch["pixel_values"])
            scores.append(match_log_odds(model, batch["input_ids"], batch["attention_mask"], grid))
    assert torch.allclose(*scores)
