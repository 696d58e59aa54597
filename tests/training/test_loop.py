"""The loop: micro-batches and processes that equal one large batch, phases, blind, best and last, trackers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pixelbert.bench.quickstart.scenes import draw_scenes
from pixelbert.data.prepare import prepare
from pixelbert.errors import CheckpointError, UsageError
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.tasks.pretraining import PretrainingBatches
from pixelbert.training.checkpoint import checkpoint_path, checkpoints
from pixelbert.training.loop import train
from pixelbert.training.plan import RunPlan
from pixelbert.training.validation import Validator
from tiny_runs import losses, same_weights, step_losses, tiny_data, tiny_recipe, weights, widest_gap

# Adam divides by the size of a gradient: its usual eps blows rounding errors of tiny gradients up to whole steps.
SMOOTH = "optim.text.eps=1e-2"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("loop"))


class Gradients(list[torch.Tensor]):
    """The gradient of every step, before clipping."""


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Gradients:
    seen, clip = Gradients(), torch.nn.utils.clip_grad_norm_

    def recording(parameters: Iterator[torch.nn.Parameter], *args: Any) -> torch.Tensor:
        listed = list(parameters)
        seen.append(torch.cat([p.grad.flatten().clone() for p in listed if p.grad is not None]))
        return clip(listed, *args)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", recording)
    return seen


# -- one step is one step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("micro", "chunks"), [(4, 1), (3, 1), (1, 1), (8, 3), (3, 2)])
def test_micro_batches_equal_one_large_batch(
    tmp_path: Path, data: Path, gradients: Gradients, micro: int, chunks: int
) -> None:
    settings = ("schedule.pairs=32", "validation.times=0", "image.augment=crop", SMOOTH)
    train(tiny_recipe(*settings), data, tmp_path / "large")
    whole = list(gradients)
    gradients.clear()
    parts = tiny_recipe(f"optim.micro_batch={micro}", f"train.length_chunks={chunks}", *settings)
    train(parts, data, tmp_path / "small")
    assert len(whole) == len(gradients) == 4
    for one, other in zip(whole, gradients, strict=True):
        assert float((one - other).abs().max()) < 1e-6 * max(1.0, float(one.abs().max()))
    assert widest_gap(tmp_path / "large", tmp_path / "small") < 1e-6
    for one, other in zip(step_losses(tmp_path / "large", "loss", "mlm", "itm"),
                          step_losses(tmp_path / "small", "loss", "mlm", "itm"), strict=True):  # fmt: skip
        assert other == pytest.approx(one, abs=2e-6)


def test_a_step_without_a_masked_word_has_no_mlm_loss(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = PretrainingBatches.__call__

    def unmasked(self: PretrainingBatches, plan: Any) -> Any:
        batch = call(self, plan)
        batch["labels"].fill_(-100)
        return batch

    monkeypatch.setattr(PretrainingBatches, "__call__", unmasked)
    train(tiny_recipe("schedule.pairs=8", "validation.times=0"), data, tmp_path / "run")
    (row,) = step_losses(tmp_path / "run", "mlm", "itm")
    assert row["mlm"] == 0 and row["itm"] > 0


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, data: Path) -> None:
    settings = ("schedule.pairs=24", "validation.times=0", SMOOTH, "text.dropout=0.1", "loss.contrastive=1")
    train(tiny_recipe(*settings), data, tmp_path / "plain")
    train(tiny_recipe(*settings, "train.gradient_checkpointing=true"), data, tmp_path / "again")
    assert step_losses(tmp_path / "again") == [pytest.approx(row, abs=1e-5) for row in step_losses(tmp_path / "plain")]
    assert widest_gap(tmp_path / "plain", tmp_path / "again") < 1e-5


def test_rates_and_losses_are_written_for_every_step(tmp_path: Path, data: Path) -> None:
    settings = tiny_recipe("loss={mlm: 0.5, itm: 2, contrastive: 0.25}", "schedule.decay_from=0.5")
    train(settings, data, tmp_path / "run")
    rows = [row for row in losses(tmp_path / "run") if row["kind"] == "train"]
    assert [(row["step"], row["pairs"]) for row in rows] == [(i, 8 * i) for i in range(1, 7)]
    plan = RunPlan(settings, 27)
    for row in rows:
        assert row["rate"] == plan.at(row["step"] - 1).rate
        assert row["loss"] == pytest.approx(0.5 * row["mlm"] + 2 * row["itm"] + 0.25 * row["contrastive"])
        assert row["grad_norm"] > 0
    assert rows[0]["rate"] == pytest.approx(1 / 3)


# -- phases ----------------------------------------------------------------------------------------------------------


def cnn_of(run: Path, step: int) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint_path(run, step) / "state.pt", weights_only=True)["model"]
    prefix = "pixelbert.visual.body."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def moved(run: Path, step: int) -> set[str]:
    """The parts of the CNN (stem, stages) that step `step` changed."""
    before, after = cnn_of(run, step - 1), cnn_of(run, step)
    return {name.split(".")[0].split("_")[0] for name in after if not torch.equal(before[name], after[name])}


def test_phases_switch_losses_and_unfreeze_stages_at_their_steps(
    tmp_path: Path, data: Path, gradients: Gradients
) -> None:
    phases = (
        "phases=[{until: 0.34, loss: {mlm: 0, itm: 0}, frozen_stages: 9},"
        "{until: 0.67, loss: {contrastive: 0}, frozen_stages: 3}, {until: 1, frozen_stages: -1, hard_share: 1}]"
    )
    settings = tiny_recipe(phases, "loss.contrastive=1", "train.save_steps=1", "train.keep_checkpoints=9")
    train(settings, data, tmp_path / "run")
    rows = [row for row in losses(tmp_path / "run") if row["kind"] == "train"]
    names = [set(row) & {"mlm", "itm", "contrastive"} for row in rows]
    assert names == [{"contrastive"}] * 3 + [{"mlm", "itm"}] * 2 + [{"mlm", "itm", "contrastive"}]
    run = tmp_path / "run"
    assert [moved(run, step) for step in (2, 3)] == [set(), set()]
    late = moved(run, 5)
    assert late and not late & {"conv1", "bn1", "layer1", "layer2"}
    assert moved(run, 4) == late
    assert moved(run, 6) > late and moved(run, 6) & {"conv1", "layer1"}
    # frozen parameters have no part in the gradient's norm
    for row, gradient in zip(rows, gradients, strict=True):
        assert row["grad_norm"] == pytest.approx(float(gradient.norm()), rel=1e-4)
    assert len(gradients[2]) < len(gradients[4]) < len(gradients[5])


def test_a_phase_scales_the_rates(tmp_path: Path, data: Path) -> None:
    phases = "phases=[{until: 0.5, lr_scale: 0}]"
    train(tiny_recipe(phases, "train.save_steps=1", "train.keep_checkpoints=9"), data, tmp_path / "run")
    assert moved(tmp_path / "run", 3) == set() != moved(tmp_path / "run", 4)
    assert [row["rate"] > 0 for row in step_losses(tmp_path / "run", "rate")] == [False] * 3 + [True] * 3


def test_kept_features_of_a_frozen_cnn_train_the_same_model(tmp_path: Path, data: Path) -> None:
    settings = ("backbone.frozen_stages=9", "schedule.pairs=24", "validation.times=0", SMOOTH)
    train(tiny_recipe(*settings), data, tmp_path / "plain")
    train(tiny_recipe(*settings, "train.keep_frozen_features=true"), data, tmp_path / "kept")
    for one, other in zip(step_losses(tmp_path / "plain"), step_losses(tmp_path / "kept"), strict=True):
        assert other == pytest.approx(one, abs=1e-2)  # they are kept in float16
    assert list((tmp_path / "features").glob("frozen-*/maps.bin"))


# -- the data --------------------------------------------------------------------------------------------------------


def test_splits_are_trained_on_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_data(tmp_path)
    lines = (tmp_path / "captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[3:9]:
        row["split"] = "restval"
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare("jsonl", [tmp_path / "captions.jsonl"], tmp_path / "more")
    texts: dict[str, list[str]] = {"plain": [], "joined": []}
    call = PretrainingBatches.__call__
    for name, folder in (("plain", data), ("joined", tmp_path / "more")):

        def recording(self: PretrainingBatches, plan: Any, name: str = name) -> Any:
            texts[name] += [self.records.text(int(record)) for record in plan.records]
            return call(self, plan)

        with monkeypatch.context() as patch:
            patch.setattr(PretrainingBatches, "__call__", recording)
            changes = ("data.train_splits=[train, restval]", "schedule.epochs=1", "optim.batch_size=27",
                       "optim.micro_batch=27", "validation.times=0")  # fmt: skip
            train(tiny_recipe(*changes), folder, tmp_path / name)
    assert sorted(texts["plain"]) == sorted(texts["joined"]) == sorted(row["text"] for row in rows[:27])


# -- what is left behind ---------------------------------------------------------------------------------------------


def test_a_run_folder_is_complete_and_loads(tmp_path: Path, data: Path) -> None:
    result = train(tiny_recipe(), data, tmp_path / "run")
    run = tmp_path / "run"
    assert (result.run, result.steps, result.pairs) == (run, 6, 48)
    assert result.metrics["itm_accuracy"] >= 0
    for place in (run, run / "last"):
        model = PixelBertForPreTraining.from_pretrained(place)
        assert model.config.architectures == ["PixelBertForPreTraining"]
        kept = weights(place, ".")
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
        processor = PixelBertProcessor.from_pretrained(place)
        assert processor.image_processor.square == 64
    assert {p.name for p in run.iterdir()} >= {
        "recipe.yaml", "run.json", "metrics.jsonl", "checkpoints", "last", "validation", "vocab.txt", "report.html",
    }  # fmt: skip
    facts = json.loads((run / "run.json").read_text())
    assert facts["data"]["fingerprint"] == json.loads((data / "prepared.json").read_text())["fingerprint"]
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == tiny_recipe().model_dump(mode="json")
    assert not list(run.rglob(".*"))


def test_the_best_model_is_kept_beside_the_last(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([60.0, 70.0, 70.0, 65.0])

    def validate(*_: Any) -> tuple[dict[str, float], list[Any]]:
        return {"itm_accuracy": 1.0, "mlm_accuracy": next(values)}, []

    monkeypatch.setattr("pixelbert.tasks.pretraining_task.validate", validate)
    monkeypatch.setattr("pixelbert.tasks.pretraining_task.write_examples", lambda *_: None)
    settings = tiny_recipe("schedule.pairs=64", "validation.times=4", "validation.select_on=mlm_accuracy",
                           "train.save_steps=1", "train.keep_checkpoints=9")  # fmt: skip
    assert train(settings, data, tmp_path / "run").metrics["mlm_accuracy"] == 65
    best, last = weights(tmp_path / "run", "."), weights(tmp_path / "run")
    for found, step in ((best, 6), (last, 8)):  # of equal values the later counts
        state = torch.load(checkpoint_path(tmp_path / "run", step) / "state.pt", weights_only=True)["model"]
        assert all(torch.equal(state[name], tensor) for name, tensor in found.items())


def test_without_validation_the_last_model_is_all_there_is(tmp_path: Path, data: Path) -> None:
    result = train(tiny_recipe("validation.times=0", "schedule.pairs=16"), data, tmp_path / "run")
    assert result.metrics == {}
    assert same_weights(tmp_path / "run" / "last", tmp_path / "run", ".")
    assert not (tmp_path / "run" / "validation").exists()


def test_checkpoints_are_saved_by_steps_and_by_time(tmp_path: Path, data: Path) -> None:
    train(tiny_recipe("train.save_steps=4", "validation.times=0"), data, tmp_path / "steps")
    assert [path.name[-1] for path in checkpoints(tmp_path / "steps")] == ["4", "6"]
    settings = tiny_recipe("train.save_minutes=0", "train.keep_checkpoints=3", "validation.times=0")
    train(settings, data, tmp_path / "time")
    assert [path.name[-1] for path in checkpoints(tmp_path / "time")] == ["4", "5", "6"]


def test_the_model_that_is_validated_does_not_drop_out_and_trains_on(tmp_path: Path, data: Path) -> None:
    """More validations change no later loss."""
    for times in (0, 6):
        settings = tiny_recipe("text.dropout=0.2", f"validation.times={times}", "backbone.norm=train")
        train(settings, data, tmp_path / str(times))
    assert step_losses(tmp_path / "0") == step_losses(tmp_path / "6")


def test_trackers(tmp_path: Path, data: Path) -> None:
    train(tiny_recipe("train.trackers=[tensorboard]", "schedule.pairs=16"), data, tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))
    with pytest.raises(UsageError, match=r"no tracker 'tensorbord'; did you mean 'tensorboard'\?"):
        train(tiny_recipe("train.trackers=[tensorbord]"), data, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_tracker_that_is_not_installed_is_said(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pixelbert.training.ranks.get_available_trackers", list)
    settings = tiny_recipe("train.trackers=[tensorboard]", "schedule.pairs=8", "validation.times=0")
    train(settings, data, tmp_path / "run")
    assert "nothing is logged to tensorboard: not installed" in capsys.readouterr().err
    assert not (tmp_path / "run" / "tensorboard").exists()


# -- blind -----------------------------------------------------------------------------------------------------------


def test_a_blind_run_sees_the_same_texts_masks_and_steps(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[dict[str, Any]]] = {"seeing": [], "blind": []}
    call = PretrainingBatches.__call__
    for kind, batches in seen.items():

        def recording(self: PretrainingBatches, plan: Any, into: list[dict[str, Any]] = batches) -> Any:
            into.append(call(self, plan))
            return into[-1]

        with monkeypatch.context() as patch:
            patch.setattr(PretrainingBatches, "__call__", recording)
            train(tiny_recipe("image.augment=crop"), data, tmp_path / kind, blind=kind == "blind")
    assert len(seen["seeing"]) == len(seen["blind"]) == 6
    for one, other in zip(seen["seeing"], seen["blind"], strict=True):
        for key, value in one.items():
            if key == "pixel_values":
                colours = other[key].flatten(2)
                assert (colours == colours[:1, :, :1]).all()
            else:
                assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
    recipes = [yaml.safe_load((tmp_path / kind / "recipe.yaml").read_text()) for kind in seen]
    assert recipes[0] | {"blind": True} == recipes[1]
    words = [(tmp_path / kind / "validation" / "masked_words.jsonl").read_text().splitlines() for kind in seen]
    asked = [[(row["record"], row["place"], row["word"]) for row in map(json.loads, lines)] for lines in words]
    assert asked[0] == asked[1]
    figures = json.loads((tmp_path / "blind" / "validation" / "figures.json").read_text())
    assert figures["mlm_gain_shuffled"] == 0


# -- from another run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first(data: Path) -> Path:
    train(tiny_recipe(), data, data.parent / "first")
    return data.parent / "first"


def test_from_another_run_takes_its_weights_and_words_and_the_recipes_settings(
    tmp_path: Path, data: Path, first: Path
) -> None:
    still = ("optim.cnn.lr=0", "optim.text.lr=0", "optim.text.new_lr=null", "optim.cnn.weight_decay=0",
             "optim.text.weight_decay=0", "validation.times=0")  # fmt: skip
    other = tiny_data(tmp_path / "other", seed=5)  # its own vocabulary would be another
    settings = tiny_recipe(*still, "image.square=96", "text.dropout=0.3", "contrastive_size=0")
    train(settings, other, tmp_path / "run", from_run=first)
    mine, theirs = weights(tmp_path / "run"), weights(first, ".")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert {name for name in theirs if name not in mine} == {n for n in theirs if n.startswith("contrastive.")}
    assert (tmp_path / "run" / "vocab.txt").read_text() == (first / "vocab.txt").read_text()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["text_config"]["hidden_dropout_prob"] == 0.3
    assert PixelBertProcessor.from_pretrained(tmp_path / "run").image_processor.square == 96
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["from"] == str(first) and len(facts["weights"]["from"]["unused"]) == 5


def test_from_a_run_without_the_head_begins_with_a_new_one(tmp_path: Path, data: Path) -> None:
    train(tiny_recipe("contrastive_size=0", "schedule.pairs=8", "validation.times=0"), data, tmp_path / "plain")
    settings = tiny_recipe("loss.contrastive=1", "schedule.pairs=8", "validation.times=0")
    train(settings, data, tmp_path / "run", from_run=tmp_path / "plain")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert sorted(facts["weights"]["from"]["missing"])[0].startswith("contrastive.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("visual.position=none", "has visual.position 'learned2d', the recipe 'none'; --from needs the same"),
        ("backbone.name=resnet10t", "has backbone.name 'test_resnet', the recipe 'resnet10t'"),
        ("contrastive_size=4", "has contrastive_size 8, the recipe 4"),
    ],
)
def test_from_a_run_of_another_shape_is_refused(
    tmp_path: Path, data: Path, first: Path, change: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(tiny_recipe(change), data, tmp_path / "run", from_run=first)
    assert not (tmp_path / "run").exists()


def test_from_a_folder_that_is_no_run_is_refused(tmp_path: Path, data: Path, first: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a run folder with a trained model"):
        train(tiny_recipe(), data, tmp_path / "run", from_run=data)
    broken = shutil.copytree(first, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((first / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="broken"):
        train(tiny_recipe(), data, tmp_path / "run", from_run=broken)
    assert not (tmp_path / "run").exists()


# -- the tiny recipe on drawn scenes ---------------------------------------------------------------------------------


def test_the_tiny_recipe_learns_on_drawn_scenes(tmp_path: Path) -> None:
    """A dozen steps of the shipped recipe with the real reader: words become likelier, figures and report are there."""
    draw_scenes(tmp_path / "scenes", train=24, val=6, test=0)
    prepare("karpathy", [tmp_path / "scenes"], tmp_path / "data")
    changes = [
        "schedule.pairs=192", "optim.batch_size=16", "optim.micro_batch=16", "optim.scale_lr=false",
        "schedule.warmup_steps=2", "train.trackers=[]", "validation.times=1", "validation.exact_images=3",
    ]  # fmt: skip
    result = train("pretrain-tiny", tmp_path / "data", tmp_path / "run", overrides=changes)
    rows = step_losses(tmp_path / "run", "mlm")
    assert len(rows) == 12
    assert np.mean([row["mlm"] for row in rows[-3:]]) < rows[0]["mlm"] - 0.5
    assert 0 <= result.metrics["mlm_accuracy"] <= 100
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000
    assert os.path.getsize(tmp_path / "run" / "model.safetensors") > 1_000_000


def test_validator_keeps_the_later_of_equal_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[str] = []
    monkeypatch.setattr("pixelbert.training.validation.save_best", lambda *_: saved.append("best"))
    monkeypatch.setattr("pixelbert.training.validation.save_last", lambda *_: saved.append("last"))
    parts: Any = type("Parts", (), {"model": None, "processor": None})()
    validator = Validator(tiny_recipe(), tmp_path, parts, None)
    for value in (0.0, 0.0, -1.0, 2.0):
        validator.keep(value)
    assert saved == ["best", "last", "best", "last", "last", "best", "last"]
    assert validator.best == 2.0


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kept"), [([], True), (["image.square=null", "image.shorter=64"], False)])
def test_freed_memory_is_kept_where_all_images_have_one_size(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, size: list[str], kept: bool
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr("pixelbert.training.loop.keep_freed", lambda: asked.append(True))
    train(tiny_recipe(), data, tmp_path / "run", overrides=["schedule.pairs=8", *size])
    assert bool(asked) is kept
