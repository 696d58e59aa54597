"""Stopped or killed at any step, a run goes on to the same bits."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from pixelbert.recipes.schema import Recipe
from pixelbert.training import frozen_features
from pixelbert.training.checkpoint import checkpoints
from pixelbert.training.loop import train
from pixelbert.training.map_store import MapStore
from pixelbert.training.validation import Validator
from tiny_runs import losses, same_weights, tiny_data, tiny_recipe, weights
from training_jobs import command_line, interrupted_at, run_job, train_until_killed

PHASES = (
    "phases=[{until: 0.3, loss: {mlm: 0, itm: 0}, frozen_stages: 9}, {until: 0.6, hard_share: 0.5, frozen_stages: 2},"
    "{until: 0.9, lr_scale: 0.5, num_sampled_pixels: 2}]"
)


def recipe(*changes: str, precision: str = "float32") -> Recipe:
    """Ten steps with all that could go astray: dropout, accumulation, augmentation, phases, momentum, validation."""
    return tiny_recipe(
        "text.dropout=0.1", "visual.dropout=0.1", "image.augment=crop-colour", "loss.contrastive=1", PHASES,
        "optim.micro_batch=3", "optim.cnn={name: sgd, lr: 0.01, momentum: 0.9}", "schedule.pairs=80",
        "train.save_steps=2", "validation.times=3", "validation.images=3", f"train.precision={precision}", *changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole(data: Path) -> dict[str, Path]:
    """Runs that nothing stopped, by precision."""
    runs = {}
    for precision in ("float32", "bfloat16"):
        runs[precision] = data.parent / f"whole-{precision}"
        train(recipe(precision=precision), data, runs[precision])
    return runs


def assert_same(run: Path, whole: Path) -> None:
    """The same losses line by line, the same weights to the bit, nothing left lying about."""
    assert losses(run) == losses(whole)
    assert [row["step"] for row in losses(run) if row["kind"] == "train"] == list(range(1, 11))
    assert same_weights(run, whole) and same_weights(run, whole, ".")
    hidden = [path.name for path in run.rglob(".*")]
    assert hidden == []
    figures = [(path / "validation" / "figures.json").read_text() for path in (run, whole)]
    assert figures[0] == figures[1]


def stop(settings: Recipe, data: Path, run: Path, step: int, number: int = signal.SIGINT, **options: Any) -> None:
    with interrupted_at(step, number), pytest.raises(KeyboardInterrupt):
        train(settings, data, run, **options)


# -- stopped ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path, data: Path, whole: dict[str, Path], precision: str, workers: int
) -> None:
    settings = recipe(f"data.workers={workers}", precision=precision)
    stop(settings, data, tmp_path / "run", 3)
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000003"]
    stop(settings, data, tmp_path / "run", 7, signal.SIGTERM, resume=True)
    train(settings, data, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", whole[precision])


@pytest.mark.parametrize("step", [1, 2, 4, 5, 6, 8, 9])
def test_at_every_other_step(tmp_path: Path, data: Path, whole: dict[str, Path], step: int) -> None:
    """3 and 7 are above: into every phase, and right before and after each switch."""
    stop(recipe("train.save_steps=null"), data, tmp_path / "run", step)
    assert len(checkpoints(tmp_path / "run")) == 1
    train(recipe("train.save_steps=4", "train.keep_checkpoints=1"), data, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", whole["float32"])


#: What `pretrain-small` has and the recipe above has not, together.
SMALL = (
    "image.augment=crop", "train.keep_frozen_features=true", "train.feature_views=3", "backbone.frozen_stages=2",
    "loss={mlm: 2, itm: 1, contrastive: 1, align: 0.5, tags: 1, text_mlm: 2}", "visual.skip=true",
    "visual.channel_dropout=0.3", "mlm.probability=0.25", "mlm.heavy_share=0.5", "itm.calibration_images=3",
    "itm.words=true",
    "phases=[{until: 0.2, loss: {mlm: 0, itm: 0}}, {until: 0.5}, {until: 0.8, hard_share: 0.25, frozen_stages: 1},"
    " {until: 1.0, frozen_stages: 1, num_sampled_pixels: 0}]",
)  # fmt: skip


@pytest.mark.parametrize("norm", ["frozen", "train"])
def test_with_all_that_the_small_recipe_has(tmp_path: Path, norm: str) -> None:
    data, settings = tiny_data(tmp_path / "data", train=15), recipe(*SMALL, f"backbone.norm={norm}")
    train(settings, data, tmp_path / "whole")
    for step in (1, 4, 9):
        stop(settings, data, tmp_path / "run", step, resume=step > 1)
    train(settings, data, tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_request_while_features_are_computed_stops_at_once_and_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = tiny_data(tmp_path / "data", train=15), recipe(*SMALL, "train.save_steps=null")
    monkeypatch.setattr(frozen_features, "BATCH", 4)
    append, calls = MapStore.append, list[int]()

    def watched(self: MapStore, maps: Any) -> None:
        append(self, maps)
        calls.append(len(maps))
        if len(calls) == asked_at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MapStore, "append", watched)
    for asked_at, saved in ((2, []), (12, ["step-00000005"])):  # in the first phase, and as the third begins
        with pytest.raises(KeyboardInterrupt):
            train(settings, data, tmp_path / "a" / "run", resume=asked_at > 2)
        assert len(calls) == asked_at
        assert [path.name for path in checkpoints(tmp_path / "a" / "run")] == saved
    train(settings, data, tmp_path / "a" / "run", resume=True)
    stopped, asked_at = calls.copy(), 0
    calls.clear()
    train(settings, data, tmp_path / "b" / "run")
    assert stopped == calls  # each batch of features once
    assert_same(tmp_path / "a" / "run", tmp_path / "b" / "run")


def test_a_request_in_the_last_step_lets_the_run_end(tmp_path: Path, data: Path, whole: dict[str, Path]) -> None:
    with interrupted_at(10):
        assert train(recipe(), data, tmp_path / "run").steps == 10
    assert_same(tmp_path / "run", whole["float32"])


def test_a_second_request_stops_at_once(tmp_path: Path, data: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)

    def again(self: Validator) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second request did not stop it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validator, "__call__", again)
        stop(recipe("train.save_steps=1"), data, tmp_path / "run", 3)  # step 3 validates
    assert [path.name[-1] for path in checkpoints(tmp_path / "run")] == ["1", "2"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_finished_run_may_be_resumed_and_stays_as_it_is(tmp_path: Path, data: Path, whole: dict[str, Path]) -> None:
    run = shutil.copytree(whole["float32"], tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    result = train(recipe(), data, run, resume=True)
    assert (result.steps, result.pairs) == (10, 80)
    assert result.metrics == [row for row in losses(run) if row["kind"] == "validation"][-1]["figures"]
    assert {path: path.read_bytes() for path in run.rglob("*.safetensors")} == before
    assert_same(run, whole["float32"])


def test_a_run_may_be_moved_and_its_own_recipe_file_used(tmp_path: Path, data: Path, whole: dict[str, Path]) -> None:
    stop(recipe(), data, tmp_path / "here" / "run", 5)
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "here" / "run").rename(tmp_path / "elsewhere" / "moved")
    train(moved / "recipe.yaml", data, moved, resume=True)
    assert_same(moved, whole["float32"])


def test_a_run_goes_on_with_the_changes_it_was_started_with(tmp_path: Path, data: Path) -> None:
    import yaml

    from pixelbert.errors import UsageError

    name, run = tmp_path / "ten.yaml", tmp_path / "run"
    name.write_text(yaml.safe_dump(recipe("schedule.pairs=48").model_dump(mode="json")))
    changes = ["schedule.pairs=80", "optim.batch_size=4"]
    train(name, data, tmp_path / "whole", overrides=changes, blind=True)
    with interrupted_at(3), pytest.raises(KeyboardInterrupt):
        train(name, data, run, overrides=changes, blind=True)
    with pytest.raises(UsageError, match="schedule.pairs was 80, is now 40"):
        train(name, data, run, resume=True, overrides=["schedule.pairs=40"])
    with interrupted_at(9), pytest.raises(KeyboardInterrupt):
        train(name, data, run, resume=True)
    train(name, data, run, resume=True, overrides=changes[:1])
    assert losses(run) == losses(tmp_path / "whole") and same_weights(run, tmp_path / "whole")
    assert len([row for row in losses(run) if row["kind"] == "train"]) == 20


def test_of_equal_models_the_later_is_the_best(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixelbert.tasks.pretraining_task.validate", lambda *_: ({"itm_accuracy": 50.0}, []))
    monkeypatch.setattr("pixelbert.training.validation.write_validation", lambda *_: None)
    train(recipe(), data, tmp_path / "run")
    best, last = weights(tmp_path / "run", "."), weights(tmp_path / "run")
    assert all((best[name] == value).all() for name, value in last.items())


def test_the_best_model_is_remembered(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best comes before the stop: what follows is worse and must not replace it."""
    figures = iter([60.0, 70.0, 65.0])
    call = Validator.__call__

    def given(self: Validator) -> dict[str, float]:
        with monkeypatch.context() as patch:
            patch.setattr("pixelbert.tasks.pretraining_task.validate", lambda *_: ({"itm_accuracy": next(figures)}, []))
            patch.setattr("pixelbert.training.validation.write_validation", lambda *_: None)
            return call(self)

    monkeypatch.setattr(Validator, "__call__", given)
    stop(recipe(), data, tmp_path / "run", 8)  # after the second validation at step 7
    best = weights(tmp_path / "run", ".")
    assert losses(tmp_path / "run")[-2]["figures"] == {"itm_accuracy": 70.0}
    assert train(recipe(), data, tmp_path / "run", resume=True).metrics == {"itm_accuracy": 65.0}
    assert all((weights(tmp_path / "run", ".")[name] == value).all() for name, value in best.items())
    last = weights(tmp_path / "run")
    assert any((last[name] != value).any() for name, value in best.items())


# -- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "step", "left"),
    [
        ("run.json written", 0, None),
        ("line written", 1, None),
        ("line written", 5, 4),
        ("checkpoint half written", 4, 2),
        ("checkpoint not yet renamed", 4, 2),
        ("checkpoint saved", 6, 6),
        ("best replaced", 3, 2),
        ("last taken away", 3, 2),
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, data: Path, whole: dict[str, Path], where: str, step: int, left: int | None
) -> None:
    run = tmp_path / "run"
    settings = recipe("data.workers=2")
    assert run_job(train_until_killed, settings, data, run, where, step) == -signal.SIGKILL
    found = checkpoints(run)
    assert (int(found[-1].name[5:]) if found else None) == left
    train(settings, data, run, resume=where != "run.json written")
    assert_same(run, whole["float32"])


def test_a_run_killed_before_its_first_checkpoint_may_also_be_started_anew(
    tmp_path: Path, data: Path, whole: dict[str, Path]
) -> None:
    assert run_job(train_until_killed, recipe(), data, tmp_path / "run", "line written", 1) == -signal.SIGKILL
    train(recipe(), data, tmp_path / "run")
    assert_same(tmp_path / "run", whole["float32"])


# -- from the command line -------------------------------------------------------------------------------------------


def test_the_command_line_stops_with_130_and_says_how_to_go_on(
    tmp_path: Path, data: Path, whole: dict[str, Path]
) -> None:
    import yaml

    (tmp_path / "ten.yaml").write_text(yaml.safe_dump(recipe().model_dump(mode="json")))
    arguments = ["train", str(tmp_path / "ten.yaml"), "--data", str(data), "--out", str(tmp_path / "run")]
    assert run_job(command_line, [*arguments, "data.workers=2"], tmp_path / "stderr", 5) == 130
    *_, last = (tmp_path / "stderr").read_text().strip().splitlines()
    assert last.startswith("pixelbert: interrupted; to continue: ")
    command = shlex.split(last.removeprefix("pixelbert: interrupted; to continue: "))
    assert command == ["pixelbert", *arguments, "data.workers=2", "--resume"]
    assert run_job(command_line, command[1:], tmp_path / "stderr") == 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()
    assert_same(tmp_path / "run", whole["float32"])
