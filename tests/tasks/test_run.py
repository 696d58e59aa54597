"""A run folder opened: its answers are those that its weights were trained for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "inference"))

from untrained_runs import make_run

from pixelbert.cli import main
from pixelbert.data.records import PreparedData
from pixelbert.errors import CheckpointError
from pixelbert.model.heads import PixelBertForQuestionAnswering
from pixelbert.tasks.run import load_run
from pixelbert.training.setup import build_parts, load_any, open_splits
from tiny_tasks import task_data, task_recipe


@pytest.fixture
def swapped(tmp_path: Path) -> tuple[Path, Path]:
    """(run, data): the config has another model's answers, as many as its own."""
    data = task_data(tmp_path / "data", "question_answering")
    run = make_run(tmp_path / "run", task_recipe("question_answering"), data)
    config = json.loads((run / "config.json").read_text())
    config["id2label"] = dict(zip(config["id2label"], reversed(config["id2label"].values()), strict=True))
    config["label2id"] = {answer: int(place) for place, answer in config["id2label"].items()}
    (run / "config.json").write_text(json.dumps(config))
    return run, data


def test_an_answer_list_as_long_of_another_model_is_refused(tmp_path, swapped, capsys):
    run, data = swapped
    for command in (["evaluate"], ["predict", "--split", "val", "--out", str(tmp_path / "answers.json")]):
        assert main([command[0], str(run), "--data", str(data), *command[1:]]) == 5
        told = f"pixelbert: {run}: its config.json has the answer list of another model than the one trained\n"
        assert capsys.readouterr().err.endswith(told)
    assert not (run / "evaluation").exists() and not (tmp_path / "answers.json").exists()


def test_nor_is_it_trained_on_or_begun_with(swapped):
    run, data = swapped
    recipe = task_recipe("question_answering")
    with pytest.raises(CheckpointError, match="run: its config.json has the answer list of another model"):
        build_parts(recipe, *open_splits(PreparedData(data), recipe), run=run)
    with pytest.raises(CheckpointError, match="run: its config.json has the answer list of another model"):
        load_any(run)


def test_an_earlier_run_that_tells_no_answers_is_opened(swapped):
    run, _ = swapped
    facts = json.loads((run / "run.json").read_text())
    del facts["answers"]
    (run / "run.json").write_text(json.dumps(facts))
    loaded = load_run(run)[1]
    assert load_any(run).config.id2label == loaded.config.id2label
    assert PixelBertForQuestionAnswering.from_pretrained(run).config.id2label == loaded.config.id2label
