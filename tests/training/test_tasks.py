"""The downstream tasks on the common loop: each trains, resumes to the same bits, starts from a run, is scored."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelbert.data.prepare import prepare
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError
from pixelbert.model.modeling import PixelBertModel
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.predicting import predict_records
from pixelbert.tasks.run import load_run
from pixelbert.tasks.table import TASKS as TABLE
from pixelbert.tasks.task import Scoring
from pixelbert.training.evaluate import evaluate
from pixelbert.training.loop import train
from pixelbert.training.setup import build_parts, open_splits
from tiny_runs import losses, same_weights, tiny_data, tiny_recipe
from tiny_tasks import TASKS, task_data, task_recipe
from training_jobs import interrupted_at, run_job, train_until_killed

every_task = pytest.mark.parametrize("task", TASKS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def data(folder: Path) -> Mapping[str, Path]:
    """Prepared data of every task."""
    return {task: task_data(folder / task, task) for task in TASKS}


@pytest.fixture(scope="module")
def pretrained(folder: Path, data: Mapping[str, Path]) -> Path:
    """A pretraining run on the pairs, with vectors large enough that weights make a difference."""
    run = folder / "pretrained"
    train(tiny_recipe("text.initializer_range=0.2"), data["retrieval"], run)
    return run


def whole_recipe(task: str) -> Recipe:
    """Six steps with all that could go astray: dropout, accumulation, augmentation, momentum, two validations."""
    return task_recipe(
        task, "text.initializer_range=0.2", "text.dropout=0.1", "head.dropout=0.2", "image.augment=crop-colour",
        "optim.micro_batch=3", "optim.cnn={name: sgd, lr: 0.01, momentum: 0.9}", "train.save_steps=2",
        "validation.times=2",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(folder: Path, data: Mapping[str, Path], pretrained: Path) -> Callable[..., Path]:
    """The whole run of a task from the pretraining run, trained when it is first asked for."""

    def run(task: str, blind: bool = False) -> Path:
        path = folder / f"{task}{'-blind' if blind else ''}"
        if not (path / "last").exists():
            train(whole_recipe(task), data[task], path / "run", from_run=pretrained, blind=blind)
            (path / "last").mkdir(parents=True)
        return path / "run"

    return run


# -- the loop --------------------------------------------------------------------------------------------------------


@every_task
def test_a_stopped_or_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, task: str, data: Mapping[str, Path], pretrained: Path, runs: Callable[..., Path]
) -> None:
    whole = runs(task)
    recipe, run = whole_recipe(task), tmp_path / "run"
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        train(recipe, data[task], run, from_run=pretrained)
    killed = run_job(partial(train_until_killed, resume=True), recipe, data[task], run, "line written", 5)
    assert killed == -signal.SIGKILL
    train(recipe, data[task], run, resume=True)
    assert losses(run) == losses(whole)
    assert [row["step"] for row in losses(run) if row["kind"] == "train"] == list(range(1, 7))
    assert same_weights(run, whole) and same_weights(run, whole, ".")
    assert (run / "config.json").read_text() == (whole / "config.json").read_text()  # the answer list too


@pytest.mark.parametrize("task", ["question_answering", "image_pairs"])
def test_what_the_text_tells_is_learnt(tmp_path: Path, task: str) -> None:
    """Each question has one answer, each statement one label, whatever the picture: a few dozen steps find out."""
    if task == "question_answering":
        data = write_questions(tmp_path, ["yes", "two", "red"], by_picture=False)
    else:
        tiny_data(tmp_path)
        rows = [{"image": f"{i:03}.png", "text": f"the dog is {word}", "label": word == "red",
                 "split": "train" if i < 9 else "val"} for i in range(13) for word in ("red", "blue")]  # fmt: skip
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = prepare("jsonl", [tmp_path / "own.jsonl"], tmp_path / "own").folder
    recipe = task_recipe(task, "text.initializer_range=0.1", "schedule.pairs=400", "backbone.frozen_stages=9",
                         "head.dropout=0", "data.texts_per_image=3")  # fmt: skip
    assert train(recipe, data, tmp_path / "run").metrics[TABLE[task].figure_names(recipe)[0]] == 100


# -- first weights ---------------------------------------------------------------------------------------------------


def parts_of(recipe: Recipe, data: Path, source: Path | None = None) -> Any:
    """The model before its first step."""
    return build_parts(recipe, *open_splits(PreparedData(data), recipe), from_run=source).model


@every_task
def test_from_pretraining_takes_its_weights(task: str, data: Mapping[str, Path], pretrained: Path) -> None:
    recipe = task_recipe(task)
    model, source = parts_of(recipe, data[task], pretrained), load_run(pretrained)[1]
    ours, theirs = model.state_dict(), source.state_dict()
    shared = [name for name in theirs if name.startswith("pixelbert.")]
    assert shared
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)
    if task == "retrieval":  # the log-odds of a match, and the pooled vectors
        cls = torch.randn(5, source.config.hidden_size)
        assert torch.allclose(model.match_scores(cls), source.match_scores(cls), atol=1e-5)
        assert torch.equal(model.contrastive.image.weight, source.contrastive.image.weight)


def test_a_head_for_other_answers_is_new_and_one_for_the_same_is_kept(
    tmp_path: Path, data: Mapping[str, Path], runs: Callable[..., Path]
) -> None:
    source = runs("question_answering")
    trained = load_run(source)[1]
    again = parts_of(task_recipe("question_answering"), data["question_answering"], source)
    assert again.config.id2label == trained.config.id2label
    assert all(torch.equal(a, b) for a, b in zip(again.head.parameters(), trained.head.parameters(), strict=True))
    other = parts_of(task_recipe("question_answering", "answers.min_count=1"), data["question_answering"], source)
    assert other.config.num_labels > trained.config.num_labels
    swapped = write_questions(tmp_path, ["blue", "green", "black"])
    fresh = parts_of(task_recipe("question_answering"), swapped, source)
    assert fresh.config.num_labels == trained.config.num_labels  # as many answers, but others
    assert not torch.equal(next(fresh.head.parameters()), next(trained.head.parameters()))
    assert torch.equal(fresh.pixelbert.text.embeddings.word_embeddings.weight,
                       trained.pixelbert.text.embeddings.word_embeddings.weight)  # fmt: skip


def write_questions(folder: Path, answers: list[str], by_picture: bool = True) -> Path:
    """Prepared questions of one's own about the pictures of `tiny_data`: train and val; or answered by the question."""
    tiny_data(folder)
    rows = [
        {"image": f"{i:03}.png", "question": f"what is {q}", "answer": answers[(i * by_picture + q) % len(answers)],
         "split": "train" if i < 9 else "val"}
        for i in range(13) for q in range(3)
    ]  # fmt: skip
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return prepare("jsonl", [folder / "own.jsonl"], folder / "own").folder


# -- scores ----------------------------------------------------------------------------------------------------------


@every_task
def test_the_blind_run_stands_beside(task: str, data: Mapping[str, Path], runs: Callable[..., Path]) -> None:
    run, blind = runs(task), runs(task, blind=True)
    result = evaluate(run, data[task], blind=blind)
    figures, alone = result["figures"], evaluate(blind, data[task])["figures"]
    assert result["task"] == task
    beside = [name for name in TABLE[task].beside if name in figures]
    assert beside
    for name in beside:
        assert figures[f"{name}_blind"] == alone[name]
        assert figures[f"{name}_gain_blind"] == pytest.approx(figures[name] - alone[name])
    if task != "retrieval":  # what is said without a picture depends on the text alone
        rows = [json.loads(line) for line in (blind / "evaluation/val/records.jsonl").read_text().splitlines()]
        said: dict[str, set[Any]] = {}
        for row in rows:
            said.setdefault(row.get("question", row.get("statement")), set()).add(row["probability"])
        assert len(said) < len(rows)
        assert all(max(values) - min(values) <= 2e-4 for values in said.values())


def test_a_blind_run_with_other_answers_is_refused(
    tmp_path: Path, data: Mapping[str, Path], runs: Callable[..., Path]
) -> None:
    other = task_recipe("question_answering", "answers.min_count=1", "validation.times=0")
    train(other, data["question_answering"], tmp_path / "blind", blind=True)
    with pytest.raises(DataError, match="blind: has another answer list than .*run"):
        evaluate(runs("question_answering"), data["question_answering"], blind=tmp_path / "blind")


def test_answers_outside_the_list_stay_in_the_score(data: Mapping[str, Path], runs: Callable[..., Path]) -> None:
    run = runs("question_answering")
    result = evaluate(run, data["question_answering"])
    listed = set(load_run(run)[1].config.id2label.values())
    rows = [json.loads(line) for line in (run / "evaluation/val/records.jsonl").read_text().splitlines()]
    outside = [row for row in rows if not listed & set(row["given"])]
    assert len(rows) == 12 and len(outside) == 1  # the one question that is answered by words of its own
    assert [row["score"] for row in outside] == [0]
    assert {row["question_type"] for row in rows} == {"what is"}
    assert result["figures"]["vqa_score"] == pytest.approx(sum(row["score"] for row in rows) / 12, abs=0.01)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each pass through the CNN has."""
    seen: list[int] = []
    encode = PixelBertModel.encode_images

    def counting(self: PixelBertModel, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(pixel_values))
        return encode(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(PixelBertModel, "encode_images", counting)
    return seen


def test_records_of_one_image_share_its_pass_through_the_cnn(
    tmp_path: Path, data: Mapping[str, Path], runs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, retrieval, seen = runs("question_answering"), runs("retrieval"), counted(monkeypatch)
    evaluate(run, data["question_answering"])
    assert seen == [4]  # twelve questions about four pictures
    seen.clear()
    recipe = task_recipe("question_answering", "data.texts_per_image=3", "optim.batch_size=9", "optim.micro_batch=9",
                         "schedule.pairs=27", "validation.times=0")  # fmt: skip
    train(recipe, data["question_answering"], tmp_path / "run")
    assert seen == [3, 3, 3]
    seen.clear()
    evaluate(retrieval, data["retrieval"])
    assert seen == [4]  # twelve captions, each scored with every picture


def test_two_statements_about_a_pair_encode_its_pictures_once(
    data: Mapping[str, Path], runs: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = runs("image_pairs"), counted(monkeypatch)
    evaluate(run, data["image_pairs"])
    assert seen == [8]  # eight statements about four pairs


@pytest.mark.parametrize("task", ["question_answering", "image_pairs"])
def test_scores_in_chunks_are_those_of_each_record_alone(
    task: str, data: Mapping[str, Path], runs: Callable[..., Path]
) -> None:
    recipe, model, processor = load_run(runs(task))
    records = PreparedData(data[task]).split("val")
    batches = TABLE[task].batches(recipe, records, processor, model.config, train=False)
    chosen = list(range(records.num_records))
    together = predict_records(TABLE[task].objective(model, chunks=4), batches, chosen, Scoring())
    alone = predict_records(TABLE[task].objective(model), batches, chosen, Scoring(batch_size=1))
    assert together.shape == (len(chosen), model.config.num_labels)
    assert torch.allclose(together, alone, atol=1e-4)
    assert float(together.std(0).max()) > 10 * 1e-4  # the records do differ


@pytest.mark.parametrize("typed", [False, True])
def test_a_head_for_another_number_of_pictures_begins_anew(folder: Path, data: Mapping[str, Path], typed: bool) -> None:
    table = folder / f"one-{typed}.jsonl"
    rows = [{"image": f"images/{part}-1-{k}-img0.png", "text": "the dog", "label": k % 2 == 0, "split": split}
            for part, split in (("train", "train"), ("dev", "val")) for k in range(4)]  # fmt: skip
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = prepare("jsonl", [table], folder / f"one-{typed}", images=[folder / "image_pairs"])
    recipe = task_recipe("image_pairs", f"head.image_type={str(typed).lower()}")
    made = {}
    for count, prepared in ((2, PreparedData(data["image_pairs"])), (1, one)):
        splits = open_splits(prepared, recipe)
        made[count] = build_parts(recipe, *splits), splits
        made[count][0].model.save_pretrained(folder / f"saved-{count}-{typed}")
        made[count][0].processor.save_pretrained(folder / f"saved-{count}-{typed}")
    for source, target in ((2, 1), (1, 2)):
        parts = build_parts(recipe, *made[target][1], from_run=folder / f"saved-{source}-{typed}")
        weights, old = parts.model.state_dict(), made[source][0].model.state_dict()
        name = "pixelbert.pixels.projection.weight"
        assert parts.model.config.num_images == target
        assert torch.equal(weights[name], old[name])
        new = [key for key in weights if key.startswith(("head.", "image_type."))]
        assert (
            all(key in parts.reports["from"]["missing"] for key in new) and any("image_type" in k for k in new) == typed
        )
