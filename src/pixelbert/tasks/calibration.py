"""Probabilities that mean what they say: temperature on held-out records, and when to say «I do not know».

A model states a number for each record; what was found there is its worth, 0 to 1. What the number means is the task's:

- a question: the chance that the best answer is right, exactly its expected official worth (an answer that two of ten
  people gave is worth 0.6). The head is one sigmoid an answer, trained on that worth; the largest of thousands is
  stated too high, so a shift is fitted beside the temperature;
- a statement about pictures: the chance that it is true;
- a match: the chance that text and picture belong together, when as many texts are another picture's as its own. Here
  too a shift: training on hard negatives moves all log-odds (measured: docs/predictor.md), and the verdict with them.

Statements get a temperature alone: their verdict at one half stays what `evaluate` counts. Temperature scaling: Guo et
al. 2017. Pure NumPy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixelbert.errors import CheckpointError

FILE = "calibration.json"
FORMAT = 1
BINS = 15
FEW = 50  # records; fewer say little, and whoever reads the figures is told
RULE = "answers while one more of them is more often right than wrong on the held-out questions"
_FOLDS = 5
_LARGEST = 100.0  # temperature; a model whose log-odds say nothing would have none
_CURVE = 200  # points kept of the risk-coverage curve


@dataclass(frozen=True)
class Stated:
    """What a model stated of held-out records: log_odds float64 [N], and the worth found, float64 [N] within 0..1.

    shifted: a shift is fitted beside the temperature. answers: the log-odds are those of the best of many answers, so
    silence is possible.
    """

    log_odds: np.ndarray
    worth: np.ndarray
    shifted: bool = False
    answers: bool = False

    @classmethod
    def of_probabilities(cls, probability: Any, worth: Any, shifted: bool = False, answers: bool = False) -> Stated:
        """From probabilities as a float32 sigmoid gives them: 0 and 1 are taken as far as float32 can tell."""
        p = np.clip(np.asarray(probability, dtype=np.float64), 1e-38, 1 - 2**-25)
        return cls(np.log(p) - np.log1p(-p), np.asarray(worth, dtype=np.float64), shifted, answers)


@dataclass(frozen=True)
class Scale:
    """From log-odds to a probability: sigmoid(log_odds / temperature + shift). `threshold`: below it one is silent."""

    temperature: float = 1.0
    shift: float = 0.0
    threshold: float | None = None

    def probability(self, log_odds: Any) -> np.ndarray:
        """float64, of the shape of `log_odds`."""
        return _sigmoid(np.asarray(log_odds, dtype=np.float64) / self.temperature + self.shift)


def fit(stated: Stated) -> Scale:
    """The temperature (and where wanted the shift) under which what was found is likeliest: least NLL, by Newton.

    One pseudo-record for temperature 1 and shift 0 keeps the fit finite where a few records are told apart perfectly.
    """
    x = stated.log_odds[:, None]
    if stated.shifted:
        x = np.concatenate([x, np.ones_like(x)], axis=1)
    theta = logistic_regression(x, stated.worth, np.array([1.0, 0.0])[: x.shape[1]])
    shift = float(theta[1]) if stated.shifted else 0.0
    return Scale(1 / max(float(theta[0]), 1 / _LARGEST), shift)


def logistic_regression(x: np.ndarray, worth: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Weights float64 [k] of features x [N, k] under which `worth` [N] within 0..1 is likeliest, by Newton.

    One pseudo-record pulls the weights towards `start`, so they stay finite where all is told apart perfectly.
    """

    def loss(theta: np.ndarray) -> float:
        z = x @ theta
        return float((np.logaddexp(0, z) - worth * z).sum())

    def slopes(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = _sigmoid(x @ theta)
        return x.T @ (p - worth), x.T @ (x * (p * (1 - p))[:, None])

    return _newton(loss, slopes, start)


def softmax_regression(x: np.ndarray, right: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Weights float64 [k] of features x [N, choices, k] under which the choices `right` int64 [N] are likeliest.

    By Newton; one pseudo-record pulls the weights towards `start`.
    """
    own = x[np.arange(len(x)), right]

    def loss(theta: np.ndarray) -> float:
        return float((np.logaddexp.reduce(x @ theta, axis=1) - own @ theta).sum())

    def slopes(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = x @ theta
        p = np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))
        mean = np.einsum("nc,nck->nk", p, x)
        return (mean - own).sum(0), np.einsum("nc,ncj,nck->jk", p, x, x) - mean.T @ mean

    return _newton(loss, slopes, start)


def _newton(
    loss: Callable[[np.ndarray], float],
    slopes: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    start: np.ndarray,
) -> np.ndarray:
    """Where `loss` + half the squared distance from `start` is least; `slopes`: gradient and Hessian of the loss."""

    def pulled(theta: np.ndarray) -> float:
        return loss(theta) + float(((theta - start) ** 2).sum()) / 2

    theta = start.copy()
    for _ in range(100):
        gradient, hessian = slopes(theta)
        step = np.linalg.solve(hessian + np.eye(len(theta)), gradient + theta - start)
        before = pulled(theta)
        while pulled(theta - step) > before and np.abs(step).max() > 1e-12:
            step = step / 2
        theta = theta - step
        if np.abs(step).max() < 1e-9:
            break
    return theta


def negative_log_likelihood(probability: np.ndarray, worth: np.ndarray) -> float:
    """Mean over the records, in nats; a worth between 0 and 1 counts for both sides."""
    p = np.clip(probability, 1e-12, 1 - 1e-12)
    return float(-(worth * np.log(p) + (1 - worth) * np.log(1 - p)).mean())


# -- how far it can be trusted -----------------------------------------------------------------------------------------


def reliability(probability: np.ndarray, worth: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Of each of `bins` equal ranges of probability that holds records: `count`, mean `stated`, mean worth `found`."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    rows = []
    for number in np.unique(place):
        inside = place == number
        rows.append({
            "count": int(inside.sum()), "stated": float(probability[inside].mean()),
            "found": float(worth[inside].mean()),
        })  # fmt: skip
    return rows


def calibration_error(rows: list[dict[str, float]]) -> float:
    """Expected calibration error, 0 to 1: |stated - found| of the bins, weighted by their counts."""
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["stated"] - row["found"]) for row in rows) / total


def held_out_probability(stated: Stated) -> np.ndarray:
    """Each record's probability under a scale fitted on the other four fifths of the records; float64 [N].

    The fifths are runs of neighbours, so that the texts of one picture stay together.
    """
    folds = np.array_split(np.arange(len(stated.worth)), min(_FOLDS, len(stated.worth)))
    result = np.empty(len(stated.worth))
    for fold in folds:
        rest = np.setdiff1d(np.arange(len(stated.worth)), fold)
        scale = fit(Stated(stated.log_odds[rest], stated.worth[rest], stated.shifted)) if len(rest) else Scale()
        result[fold] = scale.probability(stated.log_odds[fold])
    return result


# -- when to be silent -------------------------------------------------------------------------------------------------


def risk_coverage(probability: np.ndarray, worth: np.ndarray) -> dict[str, np.ndarray]:
    """Answering only the surest: `coverage` (share answered), `risk` (1 - their mean worth), `threshold` of each step.

    Ascending coverage; records of equal probability are answered together.
    """
    order = np.argsort(-probability, kind="stable")
    p, w = probability[order], worth[order]
    ends = np.flatnonzero(np.r_[p[:-1] != p[1:], True])
    answered = ends + 1
    return {
        "coverage": answered / len(p), "risk": 1 - np.cumsum(w)[ends] / answered, "threshold": p[ends],
    }  # fmt: skip


def choose(curve: Mapping[str, np.ndarray]) -> tuple[float, float, float]:
    """(threshold, coverage, risk) where right answers less wrong ones are most; of equal places the widest.

    A wrong answer costs what a right one gains, silence nothing (Chow 1970 with these costs). Where every place on the
    curve loses, nothing is answered: (1.0, 0.0, 0.0). The threshold lies halfway to the next record's probability.
    """
    gain = np.round(curve["coverage"] * (1 - 2 * curve["risk"]), 12)
    best = len(gain) - 1 - int(np.argmax(gain[::-1]))
    if gain[best] < 0:
        return 1.0, 0.0, 0.0
    thresholds = curve["threshold"]
    below = float(thresholds[best + 1]) if best + 1 < len(thresholds) else 0.0
    threshold = (float(thresholds[best]) + below) / 2 if below else 0.0
    return threshold, float(curve["coverage"][best]), float(curve["risk"][best])


# -- the file in the run folder ----------------------------------------------------------------------------------------


def calibrate(stated: Stated) -> dict[str, Any]:
    """All that RUN/calibration.json says but where it was measured: scale, errors, bins, curve, threshold.

    `ece_before`, `nll_before`: as the model states it; `ece_after`, `nll_after`: each record under a scale fitted
    without it (`held_out_probability`), so that the gain is not the fit's own. Where the likelihood gains nothing, as
    with a handful of records, what the model states stays as it is: temperature 1, no shift. The error in bins does not
    decide: of some hundred records it is mostly noise.
    """
    scale, plain, after = fit(stated), Scale(), held_out_probability(stated)
    before = plain.probability(stated.log_odds)
    if negative_log_likelihood(after, stated.worth) >= negative_log_likelihood(before, stated.worth):
        scale, after = plain, before
    bins_before, bins_after = reliability(before, stated.worth), reliability(after, stated.worth)
    result: dict[str, Any] = {
        "format": FORMAT, "records": len(stated.worth), "temperature": scale.temperature, "shift": scale.shift,
        "ece_before": calibration_error(bins_before), "ece_after": calibration_error(bins_after),
        "nll_before": negative_log_likelihood(before, stated.worth),
        "nll_after": negative_log_likelihood(after, stated.worth),
        "bins_before": bins_before, "bins_after": bins_after,
    }  # fmt: skip
    if stated.answers:
        curve = risk_coverage(scale.probability(stated.log_odds), stated.worth)
        threshold, coverage, risk = choose(curve)
        kept = np.unique(np.linspace(0, len(curve["risk"]) - 1, _CURVE).round().astype(int))
        result |= {
            "threshold": threshold, "coverage": coverage, "risk": risk, "risk_of_all": float(curve["risk"][-1]),
            "rule": RULE, "curve": {name: values[kept].tolist() for name, values in curve.items()},
        }  # fmt: skip
    return result


def read_calibration(run: Path) -> dict[str, Any] | None:
    """RUN/calibration.json, None without one. Raises CheckpointError when it is damaged or of a newer format."""
    path = run / FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] > FORMAT:
            raise CheckpointError(f"{path}: of a newer format ({found['format']}); update pixelbert")
        scale = (found["temperature"], found["shift"], found.get("threshold") or 0.0)
        numbers = all(isinstance(value, (int, float)) for value in scale)
        if not numbers or not np.isfinite(scale).all() or found["temperature"] <= 0:
            raise ValueError("its temperature, shift or threshold is not a number that can be used")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); write it anew with pixelbert evaluate") from error
    return found


def scale_of(found: Mapping[str, Any] | None) -> Scale:
    """The scale that a calibration says; none changes nothing and is never silent."""
    return Scale() if found is None else Scale(found["temperature"], found["shift"], found.get("threshold"))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
