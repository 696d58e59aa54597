"""Two trainings never write into one run folder at the same time; a dead one holds nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from pixelbert.errors import UsageError
from pixelbert.training.loop import train
from pixelbert.training.run_lock import sole_training
from tiny_runs import tiny_data, tiny_recipe


def test_a_second_training_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    data, run = tiny_data(tmp_path / "data"), tmp_path / "run"
    with sole_training(run):
        before = sorted(run.iterdir())
        for resume in (False, True):
            with pytest.raises(UsageError, match="run: another training is writing here"):
                train(tiny_recipe(), data, run, resume=resume)
        assert sorted(run.iterdir()) == before
    train(tiny_recipe("schedule.pairs=8"), data, run)  # free again


def test_a_folder_made_for_the_lock_goes_when_nothing_was_written(tmp_path: Path) -> None:
    with sole_training(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    with sole_training(tmp_path / "kept"):
        (tmp_path / "kept" / "run.json").touch()
    assert (tmp_path / "kept" / "run.json").is_file()


def _linger(pipe: int) -> None:
    os.write(pipe, b"x")
    signal.pause()


def test_a_forked_worker_does_not_hold_what_its_parent_let_go(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    with sole_training(tmp_path / "run"):
        worker = multiprocessing.get_context("fork").Process(target=_linger, args=(theirs,))
        worker.start()
        os.read(ours, 1)  # it lives
        with pytest.raises(UsageError), sole_training(tmp_path / "run"):
            pass
    try:
        with sole_training(tmp_path / "run"):  # as after a kill, with the worker left over
            assert worker.is_alive()
    finally:
        worker.kill()
        worker.join()
        os.close(ours)
        os.close(theirs)
