"""Checkpoints and files: whole or not at all, checked when read, passed over when damaged; a full disk said clearly."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pixelbert.errors import CheckpointError, MachineError
from pixelbert.training.checkpoint import (
    MetricsFile,
    checkpoint_path,
    checkpoints,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from pixelbert.training.files import clean_leftovers, take_from_folder, write_file, write_folder, write_whole


def fill_with(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "a" / "text").write_text(text)

    return fill


def failing(error: BaseException) -> Callable[[Path], None]:
    """Writes half of it, then fails."""

    def fill(path: Path) -> None:
        (path / "half" if path.is_dir() else path).write_text("half")
        raise error

    return fill


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file data/3"),
    RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
]  # fmt: skip


# -- files and folders -----------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_folder(tmp_path / "deep" / "out", fill_with("one"))
    write_folder(tmp_path / "deep" / "out", fill_with("two"))
    assert names(tmp_path) == ["deep", "deep/out", "deep/out/a", "deep/out/a/text"]
    assert (tmp_path / "deep/out/a/text").read_text() == "two"


@pytest.mark.parametrize("error", [*FULL, ValueError("something"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [True, False])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, error: BaseException, before: bool) -> None:
    if before:
        write_folder(tmp_path / "folder", fill_with("one"))
        write_file(tmp_path / "file", "one")
        write_file(tmp_path / "model", "one")
    listed = names(tmp_path)
    expected: type[BaseException] = MachineError if error in FULL else type(error)
    for write, name in ((write_folder, "folder"), (write_whole, "file"), (take_from_folder, "model")):
        with pytest.raises(expected) as caught:
            write(tmp_path / name, failing(error))
        if error in FULL:
            assert str(tmp_path / name) in str(caught.value) and "the disk is full" in str(caught.value)
    assert names(tmp_path) == listed
    if before:
        assert (tmp_path / "folder/a/text").read_text() == (tmp_path / "file").read_text() == "one"


def test_one_file_is_taken_from_what_a_library_writes(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        for name in ("model.bin", "config.json"):
            (folder / name).write_text(f"new {name}")

    (tmp_path / "config.json").write_text("old")
    take_from_folder(tmp_path / "model.bin", fill)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"config.json": "old", "model.bin": "new model.bin"}


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.rename", "os.replace"])
def test_a_disk_that_is_full_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    write_folder(tmp_path / "out", fill_with("one"))
    write_file(tmp_path / "file", "one")
    with monkeypatch.context() as patch:
        patch.setattr(where, no_space)
        if where != "os.replace":
            with pytest.raises(MachineError):
                write_folder(tmp_path / "out", fill_with("two"))
        if where != "pathlib.Path.rename":
            with pytest.raises(MachineError):
                write_file(tmp_path / "file", "two")
    assert names(tmp_path) == ["file", "out", "out/a", "out/a/text"]
    assert (tmp_path / "out/a/text").read_text() == (tmp_path / "file").read_text() == "one"


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "out", fill_with("one"))
    rename = Path.rename

    def second_fails(path: Path, target: Path) -> Path:
        if path.name == ".out.writing":
            no_space()
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_fails)
        with pytest.raises(MachineError):
            write_folder(tmp_path / "out", fill_with("two"))
    assert names(tmp_path) == ["out", "out/a", "out/a/text"]
    assert (tmp_path / "out/a/text").read_text() == "one"


def test_leftovers_of_a_killed_process_are_cleaned_up(tmp_path: Path) -> None:
    for name in (".last.writing", ".step-00000004.writing", ".gone.old", ".kept.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    (tmp_path / ".report.html.writing").write_text("half")
    (tmp_path / "kept").mkdir()
    (tmp_path / ".hidden").write_text("not ours")
    clean_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "gone", "gone/x", "kept"]
    clean_leftovers(tmp_path / "missing")


# -- checkpoints -----------------------------------------------------------------------------------------------------


def state(value: float) -> dict[str, Any]:
    return {"model": {"weight": torch.full((2, 3), value)}, "optimizers": [], "best": value}


def steps(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in checkpoints(run)]


def test_the_newest_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (3, 10, 200):
        assert save_checkpoint(tmp_path, step, state(step), keep=2) == checkpoint_path(tmp_path, step)
    assert steps(tmp_path) == [10, 200]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0] == 200 and torch.equal(loaded[1]["model"]["weight"], torch.full((2, 3), 200.0))
    save_checkpoint(tmp_path, 201, state(1), keep=1)
    assert steps(tmp_path) == [201]


def test_a_run_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step-00000007.writing").mkdir()
    (tmp_path / "checkpoints" / "notes.txt").write_text("")
    assert load_checkpoint(tmp_path) is None


def damage(path: Path, kind: str) -> None:
    data = (path / "state.pt").read_bytes()
    if kind == "cut":
        (path / "state.pt").write_bytes(data[: len(data) // 2])
    elif kind == "flipped":
        (path / "state.pt").write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    elif kind == "no state":
        (path / "state.pt").unlink()
    elif kind == "no sum":
        (path / "sha256").unlink()
    else:
        (path / "state.pt").write_bytes(b"")


@pytest.mark.parametrize("kind", ["cut", "flipped", "no state", "no sum", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(tmp_path: Path, kind: str) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state(step), keep=3)
    damage(checkpoint_path(tmp_path, 3), kind)
    said: list[str] = []
    loaded = load_checkpoint(tmp_path, said.append)
    assert loaded is not None and loaded[0] == 2
    assert len(said) == 1 and "step-00000003: damaged" in said[0] and "\n" not in said[0]
    for step in (1, 2):
        damage(checkpoint_path(tmp_path, step), kind)
    with pytest.raises(CheckpointError, match="step-00000003: damaged, and there is no older checkpoint"):
        load_checkpoint(tmp_path)


def test_a_pickle_of_anything_else_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "evil"),)

    save_checkpoint(tmp_path, 1, {"model": {}, "evil": Evil()}, keep=1)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "evil").exists()


def test_going_on_from_an_older_checkpoint_drops_the_damaged_one(tmp_path: Path) -> None:
    for step in (10, 20):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    damage(checkpoint_path(tmp_path, 20), "cut")
    save_checkpoint(tmp_path, 15, state(15), keep=2)
    assert steps(tmp_path) == [10, 15]
    save_checkpoint(tmp_path, 20, state(20), keep=2)
    assert steps(tmp_path) == [15, 20]


def test_a_step_may_be_saved_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, state(1), keep=2)
    save_checkpoint(tmp_path, 5, state(2), keep=2)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[1]["best"] == 2


@pytest.mark.parametrize("where", ["torch.save", "fsync"])
@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_while_saving_leaves_the_earlier_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    save_checkpoint(tmp_path, 1, state(1), keep=1)

    def full(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch if where == "torch.save" else os, where.removeprefix("torch."), full)
        with pytest.raises(MachineError, match=r"step-00000002: the disk is full; free some space.*--resume"):
            save_checkpoint(tmp_path, 2, state(2), keep=1)
    assert names(tmp_path / "checkpoints") == ["step-00000001", "step-00000001/sha256", "step-00000001/state.pt"]
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None and loaded[0] == 1


# -- putting a state back --------------------------------------------------------------------------------------------


def network(width: int = 3) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    model = nn.Linear(width, 2)
    return model, [torch.optim.AdamW(model.parameters(), lr=0.1)]


def trained(width: int = 3) -> dict[str, Any]:
    model, optimizers = network(width)
    model(torch.ones(1, width)).sum().backward()
    optimizers[0].step()
    return {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "best": 12.5}


def test_a_state_is_put_back_into_model_and_optimizers(tmp_path: Path) -> None:
    saved, (model, optimizers) = trained(), network()
    assert restore(tmp_path, 1, saved, model, optimizers) == 12.5
    assert torch.equal(model.state_dict()["weight"], saved["model"]["weight"])
    assert torch.equal(optimizers[0].state_dict()["state"][0]["exp_avg"], saved["optimizers"][0]["state"][0]["exp_avg"])


@pytest.mark.parametrize("kind", ["shape", "missing", "unknown", "optimizer", "optimizers", "no best", "other"])
def test_a_checkpoint_of_another_shape_is_one_sentence(tmp_path: Path, kind: str) -> None:
    saved = trained(4 if kind == "shape" else 3)
    if kind == "missing":
        del saved["model"]["bias"]
    elif kind == "unknown":
        saved["model"]["more"] = torch.zeros(1)
    elif kind == "optimizer":
        saved["optimizers"][0]["param_groups"][0]["params"].append(2)
    elif kind == "optimizers":
        saved["optimizers"] *= 2
    elif kind == "no best":
        del saved["best"]
    elif kind == "other":
        saved = {"state": 1}
    with pytest.raises(CheckpointError, match=r"step-00000009: a checkpoint of another shape: .+") as caught:
        restore(tmp_path, 9, saved, *network())
    assert "\n" not in str(caught.value)
    if kind == "shape":
        assert "weight" in str(caught.value)


# -- metrics ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for step in (1, 2, 3):
        file.write(kind="train", step=step, loss=0.1 * step)
        file.write(kind="validation", step=step, figures={"itm_accuracy": 50.0 + step})
    return tmp_path / "metrics.jsonl"


def test_lines_after_the_checkpoint_are_dropped_on_resume(metrics: Path) -> None:
    with open(metrics, "a") as handle:
        handle.write('{"kind": "train", "step": 4, "lo')  # cut off by a kill
    file = MetricsFile(metrics, 2)
    kept = [("train", 1), ("validation", 1), ("train", 2), ("validation", 2)]
    assert [(row["kind"], row["step"]) for row in file.rows()] == kept
    assert file.last_figures() == {"itm_accuracy": 52.0}
    assert [row["loss"] for row in file.rows() if row["kind"] == "train"] == [0.1, 0.2]  # to the last digit
    file.write(kind="train", step=3)
    assert len(file.rows()) == 5


def test_time_goes_on_where_the_checkpoint_was(metrics: Path) -> None:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for row in rows:
        row["seconds"] = 100.0 * row["step"]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = MetricsFile(metrics, 2)
    file.write(kind="train", step=3)
    assert 200 <= file.rows()[-1]["seconds"] < 230


def test_a_new_run_starts_with_an_empty_file(metrics: Path) -> None:
    file = MetricsFile(metrics, 0)
    assert file.rows() == [] and metrics.read_text() == ""
    assert file.last_figures() == {}


def test_other_processes_read_and_do_not_write(metrics: Path) -> None:
    before = metrics.read_text()
    file = MetricsFile(metrics, 1, writes=False)
    file.write(kind="train", step=2)
    assert metrics.read_text() == before


def test_a_full_disk_while_writing_a_line(metrics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = MetricsFile(metrics, 3)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", no_space)
        with pytest.raises(MachineError, match=r"metrics\.jsonl: the disk is full"):
            file.write(kind="train", step=4)
    assert len(file.rows()) == 6
