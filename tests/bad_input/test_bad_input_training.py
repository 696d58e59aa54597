"""Wrong input to `pixelbert train`: one clear sentence, the design's exit code, earlier checkpoints intact."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input_runs import states
from transformers import BertConfig, BertModel

from pixelbert.data.prepare import prepare
from pixelbert.errors import DataError, MachineError, TrainingStopped
from pixelbert.tasks.pretraining import PretrainingBatches, PretrainingObjective
from pixelbert.training.checkpoint import checkpoint_path
from pixelbert.training.loop import train
from tiny_runs import losses, same_weights, tiny_data, tiny_recipe

# -- the command -----------------------------------------------------------------------------------------------------


def test_an_unknown_recipe_setting_or_value(command: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, line = command(recipe="pretrain-smol")
    assert code == 2 and line == "pixelbert: no recipe 'pretrain-smol'; did you mean 'pretrain-small'?"
    code, line = command("optim.clip_nrm=3")
    assert code == 2 and "did you mean 'optim.clip_norm'?" in line
    code, line = command("backbone.norm=forzen")
    assert code == 2 and "backbone.norm is 'forzen'; did you mean 'frozen'?" in line
    code, line = command("backbone.name=test_resnett")
    assert code == 2 and "timm has no network 'test_resnett'" in line
    code, line = command("text.max_length=600")
    assert code == 2 and "text.max_length is 600, but the encoder has 512 positions" in line
    code, line = command("backbone.statistics=imagnet", "backbone.weights=file.pth")
    assert code == 2 and ("imagenet" in line or "file.pth" in line)
    assert not (tmp_path / "run").exists()


def test_the_data_is_not_there_or_not_for_this(
    folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    code, line = command(data=tmp_path / "nothing")
    assert code == 3 and "nothing: not a prepared folder" in line
    code, line = command("data.train_splits=[trian]")
    assert code == 3 and "no split 'trian'; did you mean 'train'?" in line
    code, line = command("data.train_splits=[train, restvall]")
    assert code == 3 and "no split 'restvall'" in line
    code, line = command("data.val_split=test")
    assert code == 3 and "no split 'test'" in line
    copied = shutil.copytree(folder / "data", tmp_path / "data")
    facts = json.loads((copied / "prepared.json").read_text())
    (copied / "prepared.json").write_text(json.dumps(facts | {"task": "vqa"}))
    code, line = command(data=copied)
    assert code == 3 and "prepared for vqa, pretraining needs image-text pairs" in line
    assert not (tmp_path / "run").exists()


def test_a_split_of_one_image(tmp_path: Path, command: Callable[..., tuple[int, str]]) -> None:
    small = tiny_data(tmp_path / "small", train=3, val=1)
    code, line = command(data=small)
    assert code == 3 and "split 'val' has 1 image(s), at least 2 are needed" in line


def test_all_captions_alike(tmp_path: Path, command: Callable[..., tuple[int, str]]) -> None:
    tiny_data(tmp_path / "source", train=4, val=2, texts=1)
    lines = (tmp_path / "source" / "captions.jsonl").read_text().splitlines()
    same = [json.dumps(json.loads(line) | {"text": "A dog." if i % 2 else "a dog"}) for i, line in enumerate(lines)]
    (tmp_path / "source" / "captions.jsonl").write_text("\n".join(same) + "\n")
    prepare("jsonl", [tmp_path / "source" / "captions.jsonl"], tmp_path / "same")
    for workers in (0, 1):
        code, line = command(f"data.workers={workers}", data=tmp_path / "same", out=tmp_path / f"run{workers}")
        assert code == 3 and "no mismatched text can be drawn" in line


def test_a_folder_that_is_something_else(tmp_path: Path, command: Callable[..., tuple[int, str]]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    code, line = command(out=tmp_path / "photos")
    assert code == 2 and "photos: exists and is no run" in line
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]
    (tmp_path / "file").write_text("x")
    code, line = command(out=tmp_path / "file")
    assert code == 2 and "file: exists and is no run" in line
    (tmp_path / "empty").mkdir()
    assert command("schedule.pairs=8", "validation.times=0", out=tmp_path / "empty")[0] == 0


def test_a_run_that_is_there_is_not_overwritten(run: Path, command: Callable[..., tuple[int, str]]) -> None:
    before = states(run)
    code, line = command()
    assert code == 2 and "holds a run already; add --resume" in line
    assert states(run) == before


# -- weights and vocabulary -------------------------------------------------------------------------------------------


def test_frozen_norms_without_weights_would_leave_most_of_the_cnn_asleep(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """As `pretrain-x152` is without a weights file."""
    code, line = command("backbone.norm=frozen", "backbone.wake_residuals=false")
    assert code == 2 and "give backbone.weights=..., or backbone.norm=train" in line
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_that_is_not_the_weights_own(
    command: Callable[..., tuple[int, str]], tmp_path: Path, folder: Path
) -> None:
    encoder = BertModel(BertConfig(vocab_size=11, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                   intermediate_size=48))  # fmt: skip
    encoder.save_pretrained(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "runs", "sits", "."]
    weights = f"text.weights={tmp_path / 'bert'}"
    for own, given, told in (
        (None, [*words, "more"], "12 wordpieces, text.weights 11 vectors"),
        (words, [*words[:-1], "red"], "is another vocabulary than that of text.weights"),
    ):
        (tmp_path / "vocab.txt").write_text("\n".join(given) + "\n")
        if own is not None:
            (tmp_path / "bert" / "vocab.txt").write_text("\n".join(own) + "\n")
        code, line = command(weights, f"text.vocab={tmp_path / 'vocab.txt'}")
        assert code == 2 and told in line and not (tmp_path / "run").exists()


# -- while it trains -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_the_records(
    run: Path, folder: Path, command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before, forward = states(run), PretrainingObjective.forward
    records: list[int] = []

    def poisoned(self: PretrainingObjective, batch: Any, settings: Any) -> Any:
        if batch["step"] == 4:  # the fifth step
            records[:] = batch["records"]
            if where == "loss":
                with torch.no_grad():
                    self.model.itm_head.weight.fill_(float("nan"))
            else:
                sums = forward(self, batch, settings)
                return {name: value + (value - value.detach()).abs().sqrt() for name, value in sums.items()}
        return forward(self, batch, settings)

    monkeypatch.setattr(PretrainingObjective, "forward", poisoned)
    code, line = command("--resume")
    assert code == 4
    assert f"step 5: the {where} is not finite (" in line
    listed = line.rsplit("records ", 1)[1].split(", ")
    with pytest.raises(TrainingStopped):
        train(folder / "recipe.yaml", folder / "data", run, resume=True)
    assert len(listed) == len(records) == 8
    assert all(re.search(r"captions|\d", name) for name in listed) and len(set(listed)) == 8
    assert states(run) == before
    monkeypatch.undo()
    assert command("--resume")[0] == 0  # nothing was lost
    assert losses(run) == losses(folder / "whole")


def test_a_model_that_diverged_before_a_validation_stops_too(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    """One step of a huge rate: its loss is finite, the model's scores are not."""
    code, line = command("optim.text.lr=1e38", "schedule.pairs=8", "schedule.warmup_steps=0", "validation.times=1")
    assert code == 4 and "while validating, the model's scores are not finite" in line
    assert str(tmp_path / "run") in line


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_broke_after_it_was_prepared(
    tmp_path: Path, command: Callable[..., tuple[int, str]], workers: int
) -> None:
    data = tiny_data(tmp_path / "source")
    broken = tmp_path / "source" / "004.png"
    broken.write_bytes(broken.read_bytes()[:100])
    code, line = command(f"data.workers={workers}", data=data)
    assert code == 3 and str(broken) in line and "record" in line
    broken.unlink()
    code, line = command(f"data.workers={workers}", data=data, out=tmp_path / "second")
    assert code == 3 and str(broken) in line and "record" in line


def test_an_image_of_the_held_out_split_that_broke(tmp_path: Path, command: Callable[..., tuple[int, str]]) -> None:
    data = tiny_data(tmp_path / "source")
    broken = tmp_path / "source" / "010.png"  # the first nine are for training
    broken.write_text("a text file named .png")
    code, line = command(data=data)
    assert code == 3 and str(broken) in line and "record" in line


def test_a_loader_worker_that_is_killed(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel does where memory runs out."""

    def killed(self: PretrainingBatches, plan: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(PretrainingBatches, "__call__", killed)
    code, line = command("data.workers=1")
    assert code == 6 and "a loader worker was killed" in line and "data.workers" in line


# -- a full disk -----------------------------------------------------------------------------------------------------


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["torch.save", "os.fsync", "transformers.modeling_utils.safe_save_file"])
def test_a_full_disk_while_saving(
    run: Path, folder: Path, command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    before = states(run)
    with monkeypatch.context() as patch:
        patch.setattr(where, no_space)
        code, line = command("--resume")
    assert code == 6 and "the disk is full; free some space" in line and str(run) in line
    kept = {name: data for name, data in states(run).items() if "step-00000004" in name}
    assert kept == {name: data for name, data in before.items() if "step-00000004" in name}
    assert not list(run.rglob(".*.writing"))
    assert command("--resume")[0] == 0
    assert losses(run) == losses(folder / "whole") and same_weights(run, folder / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], capture_output=True)
    if not made or made.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_really_runs_full(folder: Path, small_disk: Path, command: Callable[..., tuple[int, str]]) -> None:
    """Another program fills the disk between two checkpoints."""
    run = shutil.copytree(folder / "whole", small_disk / "run")
    shutil.rmtree(checkpoint_path(run, 6))
    before = {name: data for name, data in states(run).items() if "step-00000004" in name}
    free = shutil.disk_usage(small_disk).free
    (small_disk / "other").write_bytes(np.random.default_rng(0).bytes(free - 600_000))
    code, line = command("--resume", out=run)
    assert code == 6 and "the disk is full" in line
    assert {name: data for name, data in states(run).items() if "step-00000004" in name} == before
    (small_disk / "other").unlink()
    assert command("--resume", out=run)[0] == 0
    assert losses(run) == losses(folder / "whole") and same_weights(run, folder / "whole")


def test_a_disk_full_from_the_start(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(MachineError):
            train(folder / "recipe.yaml", folder / "data", tmp_path / "run")
    train(folder / "recipe.yaml", folder / "data", tmp_path / "run")
    assert losses(tmp_path / "run") == losses(folder / "whole")


def test_errors_of_the_data_keep_their_class(folder: Path) -> None:
    with pytest.raises(DataError):
        train(tiny_recipe("data.val_split=nothing"), folder / "data", folder / "never")
    assert not (folder / "never").exists()
