"""Which figures of a blind run stand beside a run's: of the same records, and of models as old."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from made_up_run import make_run
from test_report import Page, evaluated

from pixelbert.training.report import write_report


def test_the_blind_model_is_compared_on_the_captions_it_was_evaluated_on(tmp_path: Path) -> None:
    """Its validation is of other captions; what it came to before it was trained on says nothing."""
    run, blind = make_run(tmp_path / "run"), make_run(tmp_path / "run-blind", blind=True)
    evaluated(run, 60)
    evaluated(blind, -60, mlm_accuracy=39.0)
    assert "Blind model 46.0 %" in Page(write_report(run)).flat
    shutil.rmtree(blind / "evaluation")
    evaluated(blind, 60, mlm_accuracy=42.5, itm_accuracy=50.1)
    path = blind / "evaluation" / "val" / "figures.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": "last"}))
    page = Page(write_report(run)).flat
    assert "Blind model 42.5 %" in page and "Not quite alike" not in page
    path.write_text(json.dumps(json.loads(path.read_text()) | {"texts": 2000}))
    assert "Blind model 46.0 %" in Page(write_report(run)).flat, "of other captions"


def test_a_validation_after_as_many_pairs_goes_before_an_evaluation_after_fewer(tmp_path: Path) -> None:
    run, blind = make_run(tmp_path / "run"), make_run(tmp_path / "run-blind", blind=True)
    evaluated(run, 60)
    evaluated(blind, 60, mlm_accuracy=42.5)
    rows = [json.loads(line) for line in (blind / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["kind"] == "validation")
    first["figures"]["itm_accuracy"] = 99.0  # so its best is of fewer pairs
    (blind / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(write_report(run)).flat
    assert "Blind model 46.0 %" in page and "pairs, not" not in page
