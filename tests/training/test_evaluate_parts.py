"""Which records `evaluate` scores, under what name it keeps them, and what is found wrong before anything is scored."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "inference"))

from untrained_runs import WIDE, make_run

from pixelbert.cli import main
from pixelbert.data.records import PreparedData
from pixelbert.errors import CheckpointError, DataError, UsageError
from pixelbert.model.modeling import PixelBertModel
from pixelbert.training.evaluate import evaluate
from pixelbert.training.loop import train
from pixelbert.training.predict import predict
from pixelbert.training.report.record import RunRecord
from pixelbert.training.setup import open_splits
from tiny_runs import tiny_data, tiny_recipe
from tiny_tasks import task_data, task_recipe

BOTH = ("data.train_splits=[train,val]", "data.held_out_images=2")  # as vqa-r50


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return task_data(tmp_path_factory.mktemp("questions"), "question_answering")


def run_of(folder: Path, data: Path, *changes: str) -> Path:
    return make_run(folder, task_recipe("question_answering", *WIDE, *changes), data)


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluation" / name / "records.jsonl").read_text().splitlines()]


def kept(run: Path, name: str) -> dict[str, Any]:
    return json.loads((run / "evaluation" / name / "figures.json").read_text())


# -- splits that were trained on ---------------------------------------------------------------------------------------


def test_of_a_val_split_that_was_trained_on_the_held_out_images_are_scored(tmp_path, data, capsys):
    run, prepared = run_of(tmp_path / "run", data, *BOTH), PreparedData(data)
    result = evaluate(run, data)
    note = "was trained on split 'val' but for its first 2 images; these are scored"
    assert capsys.readouterr().err.count(f"{run}: {note}\n") == 1
    held_out = open_splits(prepared, task_recipe("question_answering", *BOTH))[1]
    assert [row["record"] for row in rows(run, "val")] == [held_out.record_id(r) for r in range(6)]
    assert (result["images"], result["texts"], kept(run, "val")["note"]) == (2, 6, note)
    assert json.loads((run / "calibration.json").read_text())["records"] == 6
    first = evaluate(run_of(tmp_path / "other", data), data, images=2)  # the same weights, trained on train alone
    assert first["figures"] == result["figures"] and first["note"] == ""
    assert evaluate(run, data, images=2)["texts"] == 6 and not (run / "evaluation" / "val-images-2").exists()


def test_another_split_that_was_trained_on_is_told_and_calibrates_nothing(tmp_path, data, capsys):
    run = run_of(tmp_path / "run", data)
    assert evaluate(run, data, split="train")["texts"] == 27
    told = f"{run}: was trained on the records of split 'train' that are scored here\n"
    assert capsys.readouterr().err.count(told) == 1 and not (run / "calibration.json").exists()
    assert "The run was trained on the records of split" in (run / "report.html").read_text()
    evaluate(run, data)
    assert "trained on" not in capsys.readouterr().err and (run / "calibration.json").exists()


def test_of_other_data_all_is_scored_with_a_warning_and_nothing_calibrated(tmp_path, data, capsys):
    run = run_of(tmp_path / "run", data, *BOTH)
    other = shutil.copytree(data, tmp_path / "other")
    info = json.loads((other / "prepared.json").read_text())
    (other / "prepared.json").write_text(json.dumps({**info, "fingerprint": "another"}))
    for split in ("val", "train"):
        result = evaluate(run, other, split=split)
        told = f"was trained on split '{split}' of other data; whether it has seen records scored here is not known"
        assert (result["texts"], result["note"]) == ({"val": 12, "train": 27}[split], told)
        assert capsys.readouterr().err.count(told) == 1
    evaluate(run_of(tmp_path / "train alone", data), other)  # it has held out every val record, but not this val
    assert "trained on" not in capsys.readouterr().err
    assert not list(tmp_path.glob("*/calibration.json"))


def test_another_word_for_the_val_split_calibrates_too(tmp_path, data):
    run = run_of(tmp_path / "run", data)
    result = evaluate(run, data, split="dev")
    assert result["calibration"]["records"] == 12 and (run / "calibration.json").exists()
    assert [path.name for path in (run / "evaluation").iterdir()] == ["dev"]


# -- what stands where -------------------------------------------------------------------------------------------------


def test_parts_and_the_last_model_do_not_replace_the_figures_of_the_whole_split(tmp_path, data):
    run = run_of(tmp_path / "run", data)
    (run / "last").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, run / "last" / name)
    whole, few = evaluate(run, data), evaluate(run, data, images=2)
    last, both = evaluate(run, data, model="last"), evaluate(run, data, model="last", images=3)
    names = {"val": whole, "val-images-2": few, "val-last": last, "val-images-3-last": both}
    assert {path.name: kept(run, path.name) for path in (run / "evaluation").iterdir()} == names
    assert RunRecord.read(run).evaluations == names
    page = (run / "report.html").read_text()
    titles = ("val", "val, the first 2 pictures", "val, the first 3 pictures")
    assert all(f"<h3>Evaluated on {title}</h3>" in page for title in titles)
    evaluate(run, data, images=4)  # all of them
    assert kept(run, "val")["images"] == 4


def test_an_exact_ranking_of_few_images_is_a_part(tmp_path):
    data = tiny_data(tmp_path)
    run = make_run(tmp_path / "run", task_recipe("retrieval", *WIDE), data)
    evaluate(run, data, exact_images=2)
    assert not (run / "calibration.json").exists()
    evaluate(run, data, exact_images=2, shortlist=2)
    assert {path.name: kept(run, path.name)["images"] for path in (run / "evaluation").iterdir()} == {
        "val-shortlist2": 4, "val-images-2": 2,
    }  # fmt: skip


def test_a_ranking_through_a_shortlist_does_not_replace_the_exact_one(tmp_path):
    """Of a retrieval run both go by the same names; the report shows the exact one, whichever came last."""
    data = task_data(tmp_path / "data", "retrieval")
    run = tmp_path / "run"
    train(task_recipe("retrieval"), data, run)
    exact = evaluate(run, data)
    listed = evaluate(run, data, shortlist=2)
    told = {name: kept(run, name) for name in ("val", "val-shortlist2")}
    assert (told["val"]["figures"], told["val"]["shortlist"]) == (exact["figures"], 0)
    assert (told["val-shortlist2"]["figures"], told["val-shortlist2"]["shortlist"]) == (listed["figures"], 2)
    assert RunRecord.read(run).shown.folder.name == "val"
    shutil.rmtree(run / "evaluation" / "val")
    assert RunRecord.read(run).shown.folder.name == "val-shortlist2"


# -- what is wrong is told before anything is scored -------------------------------------------------------------------


@pytest.fixture
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at a picture fails."""

    def look(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a picture was encoded")

    monkeypatch.setattr(PixelBertModel, "encode_images", look)
    monkeypatch.setattr("pixelbert.training.frozen_features.FrozenFeatures.refresh", look)


@pytest.mark.usefixtures("unscored")
def test_a_wrong_blind_run_is_told_before_scoring(tmp_path, data):
    run = run_of(tmp_path / "run", data)
    seeing, others = (
        run_of(tmp_path / "seeing", data),
        run_of(tmp_path / "others", data, "blind=true", "answers.min_count=1"),
    )
    pairs = tiny_data(tmp_path / "pairs")
    retrieval = make_run(tmp_path / "retrieval", task_recipe("retrieval", "blind=true"), pairs)
    for blind, error, told in (
        (tmp_path / "none", CheckpointError, "none: no such run folder"),
        (seeing, DataError, "seeing: not a blind run; train one with --blind"),
        (retrieval, DataError, "retrieval: trained for retrieval, .*run for question_answering"),
        (others, DataError, "others: has another answer list than .*run"),
    ):
        with pytest.raises(error, match=told):
            evaluate(run, data, blind=blind)
    assert not (run / "evaluation").exists()


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize("change", ["validation.seed=7", "text.max_length=4", "text.vocab_size=60"])
def test_a_blind_run_that_hides_other_words_is_told_before_scoring(tmp_path, change):
    data = tiny_data(tmp_path)
    run, blind = (make_run(tmp_path / name, tiny_recipe(*more), data) for name, more in
                  (("run", ()), ("blind", ("blind=true", change))))  # fmt: skip
    with pytest.raises(DataError, match="blind: the blind run hides other words"):
        evaluate(run, data, blind=blind)


@pytest.mark.usefixtures("unscored")
def test_folds_and_shortlists_that_do_not_fit_are_told_before_features_are_computed(tmp_path):
    data = tiny_data(tmp_path)
    frozen = ("train.keep_frozen_features=true", "backbone.frozen_stages=9", "contrastive_size=0", "loss.contrastive=0")
    run = make_run(tmp_path / "run", task_recipe("retrieval", *frozen), data)
    with pytest.raises(UsageError, match="run: 4 images cannot be cut into folds of 3"):
        evaluate(run, data, folds=3)
    with pytest.raises(UsageError, match="run: a shortlist needs pooled vectors"):
        evaluate(run, data, shortlist=2)


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize(
    ("task", "split", "reason"),
    [("question_answering", "test-dev", "question 140: has no answers; `predict` goes without them"),
     ("image_pairs", "test-std", "statement test2-1-0-0: has no label; `predict` goes without it")],
)  # fmt: skip
def test_a_split_without_labels_is_told_with_its_data_folder(tmp_path, capsys, task, split, reason):
    folder = task_data(tmp_path / "data", task)
    run = make_run(tmp_path / "run", task_recipe(task), folder)
    (tmp_path / "file").write_text("[]" if task == "question_answering" else "")
    for what in ([str(run)], ["--predictions", str(tmp_path / "file")]):
        assert main(["evaluate", *what, "--data", str(folder), "--split", split]) == 3
        assert capsys.readouterr().err == f"pixelbert: {folder}: split '{split}': {reason}\n"


def test_rows_that_the_split_lacks_are_told(tmp_path, data, capsys):
    copy = shutil.copytree(data, tmp_path / "data")
    facts = json.loads((copy / "prepared.json").read_text())
    facts["bad_rows"] = facts["bad_rows"] | {"total": 2, "splits": {"val": 2}}
    (copy / "prepared.json").write_text(json.dumps(facts))
    run = run_of(tmp_path / "run", copy)
    told = f"{copy}: split 'dev' lacks 2 rows that were bad when it was prepared; they are in its bad_rows.jsonl\n"
    evaluate(run, copy, split="dev")
    assert told in capsys.readouterr().err
    predict(run, copy, tmp_path / "answers.json", split="dev")
    assert told in capsys.readouterr().err


def test_a_val_split_by_another_name_is_held_out_from_training_too(data):
    prepared = PreparedData(data)
    names = ("data.train_splits=[train,dev]", "data.held_out_images=2")
    same = [open_splits(prepared, task_recipe("question_answering", *changes)) for changes in (BOTH, names)]
    ids = [[split.record_id(r) for r in range(split.num_records)] for pair in same for split in pair]
    assert ids[0] == ids[2] and ids[1] == ids[3] and not set(ids[0]) & set(ids[1])


@pytest.mark.parametrize("name", ["images", "exact_images", "shortlist", "folds"])
def test_a_count_below_nothing_is_wrong_usage(tmp_path, name):
    with pytest.raises(UsageError, match=f"{name} is -1; 0 or more"):
        evaluate(tmp_path / "run", tmp_path / "data", **{name: -1})


def test_no_captions_an_image_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="captions_per_image is -1; 1 or more"):
        evaluate(tmp_path / "run", tmp_path / "data", captions_per_image=-1)


@pytest.mark.parametrize(("task", "unlabelled", "what"), [
    ("question_answering", "test-dev", "has no answers"), ("image_pairs", "test-std", "has no label"),
])  # fmt: skip
def test_records_without_answer_or_label_are_not_trained_on(tmp_path, task, unlabelled, what):
    """The targets of such a question would say that every answer is wrong."""
    folder, recipe = task_data(tmp_path, task), task_recipe(task, f"data.train_splits=[train,{unlabelled}]")
    told = f"split '{unlabelled}' cannot be trained on: .*{what}; leave it out of data.train_splits"
    with pytest.raises(DataError, match=told):
        train(recipe, folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert open_splits(PreparedData(folder), recipe), "a run of before can still be scored"


def test_a_val_split_that_is_trained_on_by_another_name_needs_images_held_out(data):
    with pytest.raises(DataError, match="split 'dev' is trained on; data.held_out_images says how many"):
        open_splits(PreparedData(data), task_recipe(
            "question_answering", "data.train_splits=[train,val]", "data.val_split=dev"
        ))  # fmt: skip


def test_of_statements_about_two_pictures_no_part_can_be_held_out_whatever_the_split_is_called(tmp_path):
    recipe = task_recipe("image_pairs", "data.train_splits=[train,val]", "data.val_split=dev")
    with pytest.raises(DataError, match="two images, so no part of split 'dev' can be held out; leave it out"):
        open_splits(PreparedData(task_data(tmp_path, "image_pairs")), recipe)
