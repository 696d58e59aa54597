"""`pixelbert predict`: whole files of any split, whose scores are those of `evaluate`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pixelbert import metrics
from pixelbert.cli import main
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, MachineError, UsageError
from pixelbert.tasks import held_out, submission
from pixelbert.training.evaluate import evaluate
from pixelbert.training.loop import train
from pixelbert.training.predict import predict, score_predictions
from tiny_runs import tiny_recipe
from tiny_tasks import TASKS, task_data, task_recipe

UNLABELLED = {"question_answering": "test-dev", "image_pairs": "test-std"}
# Weights so large, and so little trained, that records get different answers; small batches of pairs.
CHANGES = ("text.initializer_range=0.2", "optim.text.lr=0.0001", "answers.min_count=1", "validation.batch_size=16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predict")


@pytest.fixture(scope="module")
def runs(folder: Path) -> Mapping[str, tuple[Path, Path]]:
    """task -> (run, data)."""
    made = {}
    for task in TASKS:
        data = task_data(folder / task, task)
        train(task_recipe(task, *CHANGES), data, folder / task / "run")
        _decide(folder / task / "run" / "model.safetensors")
        made[task] = (folder / task / "run", data)
    return made


def _decide(path: Path) -> None:
    """A few steps on noise leave one answer to everything: weights under which [CLS] and head tell records apart."""
    tensors, draw = load_file(path), torch.Generator().manual_seed(3)
    for name, tensor in tensors.items():
        if re.search(r"^head\..*weight|word_embeddings|attention\.(output\.dense|self\.value)\.weight", name):
            tensors[name] = torch.randn(tensor.shape, generator=draw)
    save_file(tensors, path, metadata={"format": "pt"})


def test_answers_scored_by_the_metric_are_what_evaluate_says(
    tmp_path: Path, runs: Mapping[str, tuple[Path, Path]]
) -> None:
    run, data = runs["question_answering"]
    told = predict(run, data, tmp_path / "answers.json", split="val")
    rows = json.loads((tmp_path / "answers.json").read_text())
    val = PreparedData(data).split("val")
    assert told["records"] == len(rows) == 12
    assert [row["question_id"] for row in rows] == [val.target(r)["question_id"] for r in range(12)]
    answers = {row["question_id"]: row["answer"] for row in rows}
    assert len(set(answers.values())) > 1
    official = metrics.vqa_accuracy(answers, [val.target(r) for r in range(12)])
    figures = evaluate(run, data)["figures"]
    assert figures["vqa_score"] == official.overall
    assert figures["vqa_score.number"] == official.per_answer_type["number"]
    again = score_predictions(tmp_path / "answers.json", data)
    assert (again["figures"], again["texts"]) == (figures, 12)


def test_judgements_scored_by_the_metric_are_what_evaluate_says(
    tmp_path: Path, runs: Mapping[str, tuple[Path, Path]]
) -> None:
    run, data = runs["image_pairs"]
    predict(run, data, tmp_path / "judged.csv", split="dev")
    lines = [line.split(",") for line in (tmp_path / "judged.csv").read_text().splitlines()]
    val = PreparedData(data).split("val")
    examples = [{**val.target(r), "label": str(val.target(r)["label"])} for r in range(val.num_records)]
    assert [line[0] for line in lines] == [example["identifier"] for example in examples]
    assert {line[1] for line in lines} == {"True", "False"}
    official = metrics.nlvr2_scores(dict(lines), examples)
    figures = evaluate(run, data)["figures"]
    assert figures == {"accuracy": 100 * official.accuracy, "consistency": 100 * official.consistency}
    assert score_predictions(tmp_path / "judged.csv", data, split="val")["figures"] == figures


@pytest.mark.parametrize("shortlist", [0, 2])
def test_rankings_give_the_recall_that_evaluate_says(
    tmp_path: Path, runs: Mapping[str, tuple[Path, Path]], shortlist: int
) -> None:
    run, data = runs["retrieval"]
    predict(run, data, tmp_path / "ranked.json", split="val", shortlist=shortlist)
    found, val = json.loads((tmp_path / "ranked.json").read_text()), PreparedData(data).split("val")
    scores = np.zeros((2, val.num_images, val.num_records))  # a matrix that has each ranking's order
    place = {val.record_id(r): r for r in range(val.num_records)} | {val.image_id(i): i for i in range(val.num_images)}
    for row in found["images_of_text"]:
        scores[0, [place[image] for image in row["images"]], place[row["text"]]] = np.arange(len(row["images"]), 0, -1)
    for row in found["texts_of_image"]:
        scores[1, place[row["image"]], [place[text] for text in row["texts"]]] = np.arange(len(row["texts"]), 0, -1)
    figures = evaluate(run, data, shortlist=shortlist)["figures"]
    t2i = metrics.recall_scores(scores[0], val.image_of.tolist()).image_retrieval
    i2t = metrics.recall_scores(scores[1], val.image_of.tolist()).text_retrieval
    assert {k: figures[f"t2i_r{k}"] for k in (1, 5, 10)} == t2i
    assert {k: figures[f"i2t_r{k}"] for k in (1, 5, 10)} == i2t


@pytest.mark.parametrize("task", UNLABELLED)
def test_splits_without_labels_are_answered_and_not_scored(
    tmp_path: Path, runs: Mapping[str, tuple[Path, Path]], task: str
) -> None:
    run, data = runs[task]
    split = UNLABELLED[task]
    told = predict(run, data, tmp_path / "new" / "file", split=split)
    assert told["records"] == PreparedData(data).split(split).num_records
    with pytest.raises(DataError, match="`predict` goes without"):
        evaluate(run, data, split=split)
    with pytest.raises(DataError, match="`predict` goes without"):
        score_predictions(tmp_path / "new" / "file", data, split=split)
    with pytest.raises(DataError, match=r"file: .* is none of .*data, split 'val'; is the file of another split\?"):
        score_predictions(tmp_path / "new" / "file", data)


def test_a_file_that_fails_its_check_is_not_written(
    tmp_path: Path, runs: Mapping[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = runs["question_answering"]
    (tmp_path / "answers.json").write_text("an older file")
    write = submission.write_answers
    other = "pixelbert.tasks.question_answering.write_answers"
    monkeypatch.setattr(other, lambda *args: write(*args).replace("140", "150"))
    with pytest.raises(DataError, match=r"entry 0: is question_id 150, expected 140"):
        predict(run, data, tmp_path / "answers.json", split="test-dev")
    assert [path.name for path in tmp_path.iterdir()] == ["answers.json"]
    assert (tmp_path / "answers.json").read_text() == "an older file"


def test_a_long_ranking_goes_on_after_a_stop(
    tmp_path: Path, runs: Mapping[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = runs["retrieval"]
    predict(run, data, tmp_path / "whole.json", split="val")
    monkeypatch.setattr(held_out, "_KEPT_FROM", 10)
    monkeypatch.setattr(held_out.HeldOutPairs, "_cost", lambda self, what, pairs, *_: held_out._Cost(pairs))
    match, calls = held_out.HeldOutPairs._match, list[list[tuple[int, int]]]()

    def stopped(self: held_out.HeldOutPairs, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        calls.append(list(zip(images.tolist(), texts.tolist(), strict=True)))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return match(self, images, texts)

    monkeypatch.setattr(held_out.HeldOutPairs, "_match", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict(run, data, tmp_path / "ranked.json", split="val")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".ranked.json.partial", "whole.json"]
    predict(run, data, tmp_path / "ranked.json", split="val")
    scored = [pair for number, call in enumerate(calls) if number != 2 for pair in call]
    assert sorted(scored) == [(image, text) for image in range(4) for text in range(12)]  # none of them twice
    assert (tmp_path / "ranked.json").read_text() == (tmp_path / "whole.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ranked.json", "whole.json"]


def test_a_place_that_cannot_be_written_is_told_before_any_answer(
    tmp_path: Path, runs: Mapping[str, tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = runs["question_answering"]

    def refused(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    answers = "pixelbert.tasks.question_answering.predict_records"
    monkeypatch.setattr(answers, lambda *_: pytest.fail("something was answered"))
    monkeypatch.setattr(Path, "touch", refused)
    for call in (
        lambda: predict(run, data, tmp_path / "made" / "answers.json", split="test-dev"),
        lambda: evaluate(run, data),
    ):
        with pytest.raises(MachineError, match="cannot be written to"):
            call()


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_commands(
    tmp_path: Path, runs: Mapping[str, tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = runs["image_pairs"]
    out = tmp_path / "judged.csv"
    command = ["predict", str(run), "--data", str(data), "--split", "test-std", "--out", str(out)]
    assert main(command) == 0
    assert f"{out}: 6 records of test-std" in capsys.readouterr().out
    assert main(["evaluate", "--predictions", str(out), "--data", str(data)]) == 3
    error = capsys.readouterr().err
    assert error == (
        f"pixelbert: {out}: line 1: identifier test2-1-0-0 is none of {data}, split 'val';"
        " is the file of another split?\n"
    )
    assert main([*command[:5], "val", *command[6:]]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--predictions", str(out), "--data", str(data), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["figures"]) == {"accuracy", "consistency"}
    assert main(["evaluate", "--data", str(data)]) == 2
    assert main(["evaluate", str(run), "--predictions", str(out), "--data", str(data)]) == 2


def test_what_cannot_be_predicted(tmp_path: Path, runs: Mapping[str, tuple[Path, Path]]) -> None:
    run, data = runs["question_answering"]
    _, pairs = runs["retrieval"]
    with pytest.raises(DataError, match="no split 'tset'; did you mean 'test-dev'"):
        predict(run, data, tmp_path / "x", split="tset")
    with pytest.raises(DataError, match="prepared for pairs, question_answering needs questions with answers"):
        predict(run, pairs, tmp_path / "x", split="val")
    with pytest.raises(UsageError, match="is a folder; give a file to write"):
        predict(run, data, tmp_path, split="val")
    train(tiny_recipe("validation.times=0"), pairs, tmp_path / "run")
    with pytest.raises(UsageError, match="a run of pretraining answers nothing"):
        predict(tmp_path / "run", pairs, tmp_path / "x", split="val")
    with pytest.raises(UsageError, match="predictions of retrieval cannot be scored without their run"):
        score_predictions(tmp_path / "x", pairs)
    plain = task_recipe("retrieval", "contrastive_size=0", "loss.contrastive=0", "validation.times=0")
    train(plain, pairs, tmp_path / "plain")
    with pytest.raises(UsageError, match="a shortlist needs pooled vectors"):
        predict(tmp_path / "plain", pairs, tmp_path / "x", split="val", shortlist=2)
    assert not (tmp_path / "x").exists()
