"""The report's part on calibration: well-formed, its dots where the numbers are."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from pixelbert.errors import CheckpointError
from pixelbert.tasks.calibration import Stated, calibrate, read_calibration
from pixelbert.training.report.calibration import calibration_fragment


def written(run, answers: bool) -> dict:
    draw = np.random.default_rng(0)
    log_odds = draw.normal(0, 3, 400)
    worth = (draw.random(400) < 1 / (1 + np.exp(1 - log_odds / 2))).astype(float)
    found = calibrate(Stated(log_odds, worth, True, answers))
    (run / "calibration.json").write_text(json.dumps(found))
    return found


def test_no_calibration_no_part(tmp_path):
    assert calibration_fragment(tmp_path) == ""


@pytest.mark.parametrize(("answers", "charts"), [(True, 2), (False, 1)])
def test_charts_hold_the_numbers(tmp_path, answers, charts):
    found = written(tmp_path, answers)
    page = ElementTree.fromstring(calibration_fragment(tmp_path))
    pictures = page.findall(".//svg")
    assert len(pictures) == charts
    dots = [dot for dot in pictures[0].iter("circle") if dot.get("class") == "dot c1"]
    assert len(dots) == len(found["bins_after"])
    for dot, row in zip(dots, found["bins_after"], strict=True):
        assert (float(dot.get("cx")) - 44) / 276 == pytest.approx(row["stated"], abs=1e-3)
        assert (210 - float(dot.get("cy"))) / 202 == pytest.approx(row["found"], abs=1e-3)
    text = "".join(page.itertext())
    assert f"{100 * found['ece_before']:.1f} points" in text and f"by {100 * found['ece_after']:.1f} with" in text
    if answers:
        assert f"answers {100 * found['coverage']:.0f}\u202f%" in text and found["rule"] in text


def test_a_run_that_never_answers_says_so(tmp_path):
    found = calibrate(Stated(np.linspace(-1, 1, 30), np.zeros(30), shifted=True, answers=True))
    (tmp_path / "calibration.json").write_text(json.dumps(found))
    assert "says it does not know" in calibration_fragment(tmp_path)


def test_an_error_in_bins_that_rises_is_explained(tmp_path):
    """The likelihood decides whether a temperature is kept; what it does to the bins is told as it is."""
    found = written(tmp_path, False)
    assert "likelier" not in calibration_fragment(tmp_path)
    (tmp_path / "calibration.json").write_text(json.dumps({**found, "ece_after": found["ece_before"] + 0.01}))
    told = f"likelier with it all the same ({found['nll_after']:.3f} nats instead of {found['nll_before']:.3f})"
    assert told in " ".join("".join(ElementTree.fromstring(calibration_fragment(tmp_path)).itertext()).split())


@pytest.mark.parametrize("fields", [{"temperature": "x"}, {"shift": None}, {"temperature": -1.0}])
def test_a_calibration_of_no_numbers_is_damaged(tmp_path, fields):
    (tmp_path / "calibration.json").write_text(json.dumps({**written(tmp_path, False), **fields}))
    with pytest.raises(CheckpointError, match="damaged .its temperature, shift or threshold is not a number"):
        read_calibration(tmp_path)
