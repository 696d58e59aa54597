"""Calibration: fits against brute force, errors by hand, the threshold's rule, the file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pixelbert.errors import CheckpointError
from pixelbert.tasks.calibration import (
    Scale,
    Stated,
    calibrate,
    calibration_error,
    choose,
    fit,
    held_out_probability,
    negative_log_likelihood,
    read_calibration,
    reliability,
    risk_coverage,
    scale_of,
)


def drawn(temperature: float, shift: float, shifted: bool, count: int = 4000, seed: int = 0) -> Stated:
    """A model that states `log_odds`, while the truth is drawn from the scaled ones."""
    draw = np.random.default_rng(seed)
    log_odds = draw.normal(0, 3, count)
    chance = 1 / (1 + np.exp(-(log_odds / temperature + shift)))
    return Stated(log_odds, (draw.random(count) < chance).astype(float), shifted, shifted)


def test_fit_finds_what_the_truth_was_drawn_from():
    found = fit(drawn(2.5, -0.8, shifted=True))
    assert found.temperature == pytest.approx(2.5, rel=0.08)
    assert found.shift == pytest.approx(-0.8, abs=0.1)
    assert fit(drawn(0.5, 0.0, shifted=False)).temperature == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize("answers", [True, False])
def test_fit_is_the_best_of_a_grid(answers):
    stated = drawn(1.7, 0.6, answers, count=300)
    stated = Stated(stated.log_odds, np.clip(stated.worth * 0.9, 0, 1), answers)  # soft worths too
    found = fit(stated)
    best = negative_log_likelihood(found.probability(stated.log_odds), stated.worth)
    for temperature in np.geomspace(0.3, 6, 60):
        for shift in np.linspace(-1.5, 1.5, 31) if answers else [0.0]:
            other = Scale(temperature, shift).probability(stated.log_odds)
            assert negative_log_likelihood(other, stated.worth) > best - 2e-3  # the pseudo-record's share


@pytest.mark.parametrize(
    ("log_odds", "worth"),
    [([5.0, -5.0], [1.0, 0.0]), ([5.0, -5.0], [0.0, 1.0]), ([0.0, 0.0], [1.0, 1.0]), ([900.0], [0.0]), ([3.0], [1.0])],
)
@pytest.mark.parametrize("answers", [True, False])
def test_few_records_still_give_a_finite_scale(log_odds, worth, answers):
    found = calibrate(Stated(np.array(log_odds), np.array(worth), answers, answers))
    assert 0 < found["temperature"] <= 100 and np.isfinite(found["shift"])
    json.dumps(found, allow_nan=False)


def test_reliability_by_hand():
    rows = reliability(np.array([0.1, 0.2, 0.6, 1.0]), np.array([0.0, 1.0, 1.0, 0.5]), bins=2)
    assert rows == [
        {"count": 2, "stated": pytest.approx(0.15), "found": 0.5},
        {"count": 2, "stated": pytest.approx(0.8), "found": 0.75},
    ]
    assert calibration_error(rows) == pytest.approx((2 * 0.35 + 2 * 0.05) / 4)


def test_error_falls_on_records_the_scale_was_not_fitted_on():
    stated = drawn(3.0, -0.5, shifted=True)
    found = calibrate(stated)
    assert found["ece_before"] > 0.15 > 0.03 > found["ece_after"]
    assert found["nll_after"] < found["nll_before"]


def test_held_out_probability_leaves_the_own_fifth_out():
    stated = drawn(2.0, 0.0, shifted=False, count=50)
    rest = Stated(stated.log_odds[10:], stated.worth[10:])
    expected = fit(rest).probability(stated.log_odds[:10])
    np.testing.assert_allclose(held_out_probability(stated)[:10], expected)


def test_risk_coverage_by_hand_and_ties_go_together():
    curve = risk_coverage(np.array([0.9, 0.5, 0.5, 0.2]), np.array([1.0, 1.0, 0.0, 0.0]))
    np.testing.assert_allclose(curve["coverage"], [0.25, 0.75, 1.0])
    np.testing.assert_allclose(curve["risk"], [0.0, 1 / 3, 0.5])
    np.testing.assert_allclose(curve["threshold"], [0.9, 0.5, 0.2])


@pytest.mark.parametrize(
    ("worth", "expected"),
    [
        ([1, 1, 0, 0], ((0.8 + 0.6) / 2, 0.5, 0.0)),  # two right, then only wrong ones
        ([1, 0, 1, 0], ((0.6 + 0.4) / 2, 0.75, 1 / 3)),  # one right less none and two less one are equal: the wider
        ([1, 1, 1, 1], (0.0, 1.0, 0.0)),  # never silent
        ([0, 0, 0, 0], (1.0, 0.0, 0.0)),  # always silent
    ],
)
def test_threshold_is_where_right_less_wrong_is_most(worth, expected):
    curve = risk_coverage(np.array([0.9, 0.8, 0.6, 0.4]), np.array(worth, dtype=float))
    assert choose(curve) == pytest.approx(expected)


def test_threshold_beats_every_other_on_drawn_questions():
    stated = drawn(1.5, -1.0, shifted=True, count=500)
    found = calibrate(stated)
    p = scale_of(found).probability(stated.log_odds)
    gain = lambda least: (2 * stated.worth[p >= least] - 1).sum()  # noqa: E731
    assert all(gain(found["threshold"]) >= gain(other) for other in np.linspace(0, 1, 400))
    assert (p >= found["threshold"]).mean() == pytest.approx(found["coverage"])
    assert 1 - stated.worth[p >= found["threshold"]].mean() == pytest.approx(found["risk"])
    assert len(found["curve"]["risk"]) <= 200 and found["curve"]["coverage"][-1] == 1


def test_statements_are_never_silent_and_keep_their_verdict():
    stated = drawn(2.0, 1.0, shifted=False)
    found = calibrate(stated)
    assert "threshold" not in found and found["shift"] == 0
    p = scale_of(found).probability(stated.log_odds)
    assert ((p > 0.5) == (stated.log_odds > 0)).all()


def test_matches_are_shifted_but_never_silent():
    stated = drawn(1.0, 1.5, shifted=True)
    found = calibrate(Stated(stated.log_odds, stated.worth, shifted=True))
    assert found["shift"] == pytest.approx(1.5, abs=0.15) and "threshold" not in found


def test_what_a_fit_does_not_better_stays_as_it_is_stated():
    """Four records, of which each is told worse by a fit on the others."""
    stated = Stated(np.array([0.1, -0.1, 0.2, -0.2]), np.array([1.0, 0.0, 0.0, 1.0]), True, True)
    after = negative_log_likelihood(held_out_probability(stated), stated.worth)
    assert after > negative_log_likelihood(Scale().probability(stated.log_odds), stated.worth)
    found = calibrate(stated)
    assert (found["temperature"], found["shift"]) == (1, 0)
    assert (found["ece_after"], found["nll_after"]) == (found["ece_before"], found["nll_before"])
    better = calibrate(drawn(2.0, -1.0, True))
    assert better["temperature"] > 1.5 and better["nll_after"] < better["nll_before"]


def test_no_file_changes_nothing(tmp_path):
    assert read_calibration(tmp_path) is None
    assert scale_of(None) == Scale(1.0, 0.0, None)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"format": 1}', "damaged"),
        ('{"format": 1, "temperature": 0, "shift": 0}', "temperature"),
        ('{"format": 1, "temperature": Infinity, "shift": 0}', "temperature"),
        ('{"format": 1, "temperature": 1, "shift": 0, "threshold": "x"}', "damaged"),
        ('{"format": 99, "temperature": 1, "shift": 0}', "newer format"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, text, match):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(CheckpointError, match=match):
        read_calibration(tmp_path)
