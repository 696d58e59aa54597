"""What a run saw before is told where it counts: on scoring, on fitting, and where data has an image in two splits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pixelbert.data.prepare import prepare
from pixelbert.data.records import PreparedData
from pixelbert.training.evaluate import evaluate
from pixelbert.training.history import before, leaks, recorded
from pixelbert.training.loop import train
from tiny_runs import tiny_data, tiny_recipe
from tiny_tasks import task_recipe


def test_a_run_knows_what_the_runs_before_it_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_data(tmp_path / "data", train=15, val=6)
    first = tiny_recipe("data.train_splits=[train,val]", "data.held_out_images=2", "itm.calibration_images=2")
    train(first, data, tmp_path / "first")
    assert "LEAK" not in capsys.readouterr().err
    retrieval = task_recipe("retrieval", "validation.exact_images=0", "itm.calibration_images=3")
    train(retrieval, data, tmp_path / "second", from_run=tmp_path / "first")
    told = capsys.readouterr().err
    assert f"fitted on 3 images kept out, of which {tmp_path / 'first'} was trained on 1" in told
    assert "itm.calibration_images=2 takes those" in told
    note = f"began from {tmp_path / 'first'}, which was trained on split 'val' but for its first 2 images"
    assert evaluate(tmp_path / "second", data)["note"] == note
    train(retrieval, data, tmp_path / "third", from_run=tmp_path / "second")
    assert [Path(one["run"]).name for one in before(tmp_path / "third")] == ["third", "second", "first"]
    assert evaluate(tmp_path / "third", data)["note"] == note


def test_other_data_or_a_run_that_saw_nothing_of_it_is_no_matter(tmp_path: Path) -> None:
    data, other = tiny_data(tmp_path / "data", train=15), tiny_data(tmp_path / "other", train=15, seed=3)
    recipe = tiny_recipe("itm.calibration_images=3")
    train(recipe, data, tmp_path / "first")
    train(tiny_recipe("data.train_splits=[val]", "data.held_out_images=2"), other, tmp_path / "elsewhere")
    for name in ("first", "elsewhere"):
        train(recipe, data, tmp_path / f"from-{name}", from_run=tmp_path / name)
        assert evaluate(tmp_path / f"from-{name}", data)["note"] == ""


def test_a_folder_that_tells_nothing_has_no_history(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    assert before(tmp_path) == before(tmp_path / "none") == before(None) == []


def test_of_a_source_that_kept_nothing_out_no_number_is_advised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_data(tmp_path / "data", train=15)
    train(tiny_recipe(), data, tmp_path / "first")
    capsys.readouterr()
    train(tiny_recipe("itm.calibration_images=3"), data, tmp_path / "second", from_run=tmp_path / "first")
    told = capsys.readouterr().err
    assert "was trained on 3" in told and "itm.calibration_images=0" not in told


@pytest.mark.parametrize("told", [[1], "x", {"a": 1}, [{"run": "x"}], None])
def test_a_history_of_another_make_is_left_out(told: object) -> None:
    assert recorded({"before": told}) == recorded({}) == []


def test_only_the_splits_of_the_sentence_count(tmp_path: Path) -> None:
    data = PreparedData(tiny_data(tmp_path))
    data.info["notes"] = [
        "LEAK: 1 image(s) in both train and val, for example /test/0.png", "something about test",
        "LEAK: 1,204 image(s) of train have a copy in test-dev, for example /val/0.png and /val/1.png",
    ]  # fmt: skip
    assert [len(leaks(data, split)) for split in ("", "train", "val", "test-dev", "test")] == [2, 2, 1, 1, 0]


def test_an_image_in_two_splits_is_told_when_it_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_data(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    rows.append({**rows[0], "split": "val", "text": "another text"})
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    prepare("jsonl", [tmp_path / "more.jsonl"], tmp_path / "twice")
    capsys.readouterr()
    train(tiny_recipe(), tmp_path / "twice", tmp_path / "run")
    assert "LEAK: 1 image(s) in both train and val" in capsys.readouterr().err
    evaluate(tmp_path / "run", tmp_path / "twice")
    assert "LEAK: 1 image(s) in both train and val" in capsys.readouterr().err
