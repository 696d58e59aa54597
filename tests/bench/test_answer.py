"""`pixelbert bench answer`: its parts add up; nothing here asserts a time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pixelbert.cli import main
from tiny_tasks import task_data, task_recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "inference"))

from untrained_runs import make_run


def test_the_parts_are_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = task_data(tmp_path / "data", "image_pairs")
    run = make_run(tmp_path / "run", task_recipe("image_pairs"), data)
    assert main(["bench", "answer", "--run", str(run), "--steps", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["part"] for row in rows] == ["imports", "opening the run", "answer", "start and end", "all"]
    *parts, whole = rows
    assert sum(row["seconds"] for row in parts) == pytest.approx(whole["seconds"], abs=0.05)
    assert whole["processor_seconds"] > 0


def test_without_a_run_or_with_half_of_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "answer"]) == 2 and "--run RUN" in capsys.readouterr().err
    assert main(["bench", "answer", "--run", str(tmp_path)]) == 5
    assert "not a run folder" in capsys.readouterr().err
