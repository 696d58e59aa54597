"""What `train --resume` is given: another recipe, data or run, or a folder that is damaged; nothing is lost."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input_runs import SAVES, states

from pixelbert.cli import main
from pixelbert.errors import CheckpointError
from pixelbert.tasks.run import load_run, read_recipe
from pixelbert.training.checkpoint import checkpoint_path, checkpoints, load_checkpoint
from pixelbert.training.loop import train
from tiny_runs import losses, same_weights, tiny_data, tiny_recipe


def test_nothing_to_resume(tmp_path: Path, command: Callable[..., tuple[int, str]]) -> None:
    code, line = command("--resume")
    assert code == 2 and "no run to resume; leave out --resume to start one" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("optim.text.lr=0.5", "optim.text.lr was 0.001, is now 0.5"),
        ("seed=7", "seed was 0, is now 7"),
        ("schedule.pairs=96", "schedule.pairs was 48, is now 96"),
        ("phases=[{until: 0.5, lr_scale: 0.5}]", "phases was [], is now"),
    ],
)
def test_resume_with_a_changed_recipe_names_what_changed(
    run: Path, command: Callable[..., tuple[int, str]], change: str, named: str
) -> None:
    before = states(run)
    code, line = command("--resume", change)
    assert code == 2 and "cannot resume with a changed recipe" in line and named in line
    assert states(run) == before


def test_the_first_changed_setting_is_named(run: Path, command: Callable[..., tuple[int, str]]) -> None:
    _, line = command("--resume", "validation.seed=1", "seed=7", "text.dropout=0.5", "--blind")
    assert "seed was 0, is now 7" in line and "validation" not in line and "dropout" not in line


def test_settings_that_change_no_number_may_change(
    run: Path, folder: Path, command: Callable[..., tuple[int, str]]
) -> None:
    code, _ = command("--resume", "data.workers=1", "train.log_steps=3", "train.save_steps=1", "train.save_minutes=5",
                      "train.keep_checkpoints=1", "description=other words", "train.trackers=[]")  # fmt: skip
    assert code == 0
    assert losses(run) == losses(folder / "whole")
    assert same_weights(run, folder / "whole")


def test_resume_with_other_data(run: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]) -> None:
    before = states(run)
    code, line = command("--resume", data=tiny_data(tmp_path / "other", seed=3))
    assert code == 3 and "not the data that" in line and str(tmp_path / "other" / "data") in line
    assert states(run) == before


def test_a_checkpoint_of_another_shape(
    run: Path, folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    train(tiny_recipe("text.hidden_size=16", *SAVES), folder / "data", tmp_path / "narrow")
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(tmp_path / "narrow" / "checkpoints", run / "checkpoints")
    before = states(run)
    code, line = command("--resume")
    assert code == 5 and "step-00000006: a checkpoint of another shape: size mismatch for" in line
    assert states(run) == before


def test_a_damaged_newest_checkpoint_is_passed_over(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Callable[..., tuple[int, str]]
) -> None:
    run = shutil.copytree(folder / "whole", tmp_path / "run")
    state = checkpoint_path(run, 6) / "state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    found = load_checkpoint(run)
    assert found is not None and found[0] == 4
    code = main(["train", str(folder / "recipe.yaml"), "--data", str(folder / "data"), "--out", str(run), "--resume"])
    errors = capsys.readouterr().err
    assert code == 0 and re.search(r"step-00000006: damaged \(its checksum differs\); looking for an older", errors)
    assert losses(run) == losses(folder / "whole") and same_weights(run, folder / "whole")


def test_all_checkpoints_damaged(run: Path, command: Callable[..., tuple[int, str]]) -> None:
    for path in checkpoints(run):
        (path / "state.pt").write_bytes(b"")
    before = states(run)
    code, line = command("--resume")
    assert code == 5 and "damaged, and there is no older checkpoint to go back to" in line
    assert states(run) == before


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml", "config.json", "tokenizer.json", "processor_config.json"])
def test_a_damaged_run_folder(run: Path, command: Callable[..., tuple[int, str]], name: str) -> None:
    (run / name).write_text("{ not: [whole")
    before = states(run)
    code, line = command("--resume")
    assert code == 5 and str(run) in line
    assert states(run) == before


def test_a_recipe_that_is_cut_off_is_no_recipe(run: Path, command: Callable[..., tuple[int, str]]) -> None:
    """Its last line says whether the run is blind: without it a blind run would see."""
    lines = (run / "recipe.yaml").read_text().splitlines(keepends=True)
    for left in (len(lines) - 1, len(lines) // 2):
        (run / "recipe.yaml").write_text("".join(lines[:left]))
        code, error = command("--resume")
        assert (code, "recipe.yaml" in error, "damaged" in error) == (5, True, True)
        with pytest.raises(CheckpointError, match=r"damaged recipe\.yaml"):
            read_recipe(run)


@pytest.mark.parametrize("step", [4, 6])
def test_a_best_model_that_is_gone_is_put_back(
    folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str]], capsys: pytest.CaptureFixture[str], step: int
) -> None:
    run = shutil.copytree(folder / "whole", tmp_path / "run")
    if step == 4:
        shutil.rmtree(checkpoint_path(run, 6))
    (run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no trained model yet; go on with pixelbert train --resume"):
        load_run(run)
    train(tiny_recipe(*SAVES), folder / "data", run, resume=True)
    told = "its best model is gone; the model of step 6 takes its place" in capsys.readouterr().err
    assert told == (step == 6)  # at step 4 there was none yet
    load_run(run)
    assert same_weights(run, folder / "whole")


def spoil(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = checkpoints(run)[-1]
    state = torch.load(path / "state.pt", weights_only=True)
    change(state)
    torch.save(state, path / "state.pt")
    (path / "sha256").write_text(hashlib.sha256((path / "state.pt").read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state["optimizers"][1]["state"][0].update(exp_avg=torch.zeros(3)), "exp_avg has shape (3,)"),
        (lambda state: state.update(optimizers=[1, 2]), "'int' object"),
        (lambda state: state.update(best="x"), "its best value is 'x'"),
    ],
)
def test_a_state_of_another_shape_is_told_before_a_step(
    run: Path, command: Callable[..., tuple[int, str]], change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    spoil(run, change)
    code, error = command("--resume")
    assert code == 5 and "a checkpoint of another shape" in error and reason in error and len(error) < 500


def test_resume_without_the_config(run: Path, command: Callable[..., tuple[int, str]]) -> None:
    (run / "config.json").unlink()
    assert command("--resume") == (5, f"pixelbert: {run}: half a run folder (no config.json)")


def test_lines_of_the_metrics_that_are_none_are_dropped(
    folder: Path, run: Path, command: Callable[..., tuple[int, str]]
) -> None:
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": "x"}\n{"step": null}\n')
    assert command("--resume")[0] == 0
    assert losses(run) == losses(folder / "whole")


def test_resume_from_another_run_than_it_was_started_from(
    folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    shutil.copytree(folder / "whole", tmp_path / "other")
    assert command("--from", str(folder / "whole"))[0] == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    code, error = command("--from", str(tmp_path / "other"), "--resume")
    assert (code, f"was started from {folder / 'whole'}, not from {tmp_path / 'other'}" in error) == (2, True)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"from": str(tmp_path / "gone" / "whole")}))
    assert command("--from", str(folder / "whole"), "--resume")[0] == 0  # the place that is given, not the one recorded
    code, error = command("--from", str(folder / "whole"), "--resume", out=folder / "whole")
    assert (code, "was started from no other run" in error) == (2, True)


def test_a_run_that_is_made_blind_is_told_so(run: Path, command: Callable[..., tuple[int, str]]) -> None:
    code, error = command("--resume", "--blind")
    assert (code, "changed recipe: blind was False, is now True" in error) == (2, True)


def test_a_run_of_a_newer_format(run: Path, command: Callable[..., tuple[int, str]]) -> None:
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"format": 99}))
    code, line = command("--resume")
    assert code == 5 and "a run of a newer format (99)" in line
