"""`evaluate` on a run's own val split leaves a calibration.json; new weights take it away."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "inference"))

from untrained_runs import WIDE, make_run

from pixelbert.data.records import PreparedData
from pixelbert.errors import UsageError
from pixelbert.tasks.calibration import calibrate
from pixelbert.tasks.run import load_run
from pixelbert.tasks.task import Scoring
from pixelbert.training.evaluate import evaluate, run_on_split
from pixelbert.training.loop import train
from pixelbert.training.run_folder import save_best
from tiny_runs import tiny_data, tiny_recipe
from tiny_tasks import task_data, task_recipe


@pytest.mark.parametrize("task", ["question_answering", "retrieval"])
def test_evaluate_on_val_calibrates(tmp_path, task):
    data = task_data(tmp_path / "data", task)
    run = make_run(tmp_path / "run", task_recipe(task, *WIDE), data)
    evaluate(run, data, images=3)
    assert not (run / "calibration.json").exists()  # a part of the split is not enough
    result = evaluate(run, data)
    found = json.loads((run / "calibration.json").read_text())
    assert (found["task"], found["split"]) == (task, "val")
    assert result["calibration"].items() <= found.items()
    task_object, model, batches, scoring = run_on_split(run, PreparedData(data), "val", Scoring(), "best")
    outcome = task_object.score(model, batches, scoring)
    expected = calibrate(outcome.stated())
    assert found["temperature"] == pytest.approx(expected["temperature"], rel=1e-3)
    if task == "question_answering":  # what was found is the official score of each answer
        scores = np.array([row["score"] for row in outcome.rows]) / 100
        np.testing.assert_allclose(outcome.stated().worth, scores, atol=1e-4)
        assert found["risk_of_all"] == pytest.approx(1 - scores.mean(), abs=1e-4) and "threshold" in found
    else:
        assert found["records"] == 2 * result["texts"] and "threshold" not in found
    save_best(run, load_run(run)[1])
    assert not (run / "calibration.json").exists()


def test_training_leaves_its_best_model_calibrated(tmp_path):
    data = task_data(tmp_path / "data", "question_answering")
    recipe = task_recipe("question_answering", *WIDE, "schedule.pairs=16", "validation.times=2")
    run = train(recipe, data, tmp_path / "run").run
    found = json.loads((run / "calibration.json").read_text())
    evaluate(run, data)
    again = json.loads((run / "calibration.json").read_text())
    assert found["temperature"] == pytest.approx(again["temperature"], rel=1e-3)
    assert found["records"] == again["records"] and found["threshold"] == pytest.approx(again["threshold"], abs=1e-4)


def test_a_middle_view_is_kept_apart_and_calibrates_nothing(tmp_path):
    data = tiny_data(tmp_path / "data")
    run = make_run(tmp_path / "run", tiny_recipe(*WIDE), data)
    plain, middle = evaluate(run, data), evaluate(run, data, middle_view=True)
    assert (plain["middle_view"], middle["middle_view"]) == (False, True)
    kept = {
        name: json.loads((run / "evaluation" / name / "figures.json").read_text()) for name in ("val", "val-middle")
    }
    assert kept == {"val": plain, "val-middle": middle}
    assert "calibration" in plain and "calibration" not in middle


def test_a_middle_view_needs_pooled_vectors(tmp_path):
    data = task_data(tmp_path / "data", "question_answering")
    run = make_run(tmp_path / "run", task_recipe("question_answering", "contrastive_size=0"), data)
    with pytest.raises(UsageError, match="no pooled vectors"):
        evaluate(run, data, middle_view=True)
    assert not (run / "evaluation").exists()
