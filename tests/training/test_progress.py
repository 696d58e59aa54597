"""Rate and time left of a count: of what is done now, whatever was done before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Counts

import pytest

from pixelbert.data.records import PreparedData
from pixelbert.training import progress
from pixelbert.training.plan import RunPlan
from tiny_runs import tiny_data, tiny_recipe


def test_a_count_that_goes_on_or_begins_again_tells_its_own_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    told = progress.PairProgress()

    def at(seconds: float, done: int) -> str:
        now[0] = seconds
        told("features", done, 1000)
        return capsys.readouterr().err

    assert at(0, 500) == ""  # goes on where it was stopped
    assert "600/1,000  1 a second  left 6:40" in at(100, 600)
    assert at(10_000, 32) == ""  # the same count again, much later
    assert "232/1,000  2 a second  left 6:24" in at(10_100, 232)


def test_a_run_says_what_it_is_about_to_do(tmp_path: Path) -> None:
    data = PreparedData(tiny_data(tmp_path / "data", train=3))
    train, val = data.split("train"), data.split("val")
    plan = RunPlan(tiny_recipe("schedule.pairs=4000", "optim.batch_size=8"), train.num_records)
    told = progress.announcement(plan, data.folder, train, val, 0)
    assert f"{train.num_records} records of 3 images, held out (val) {val.num_records} of {val.num_images}\n" in told
    assert "\n4,000 records in 500 steps of 8: each is seen about" in told
    assert "is a lot for so few records: schedule.epochs=20" in told
    assert told + "\ngoing on after step 499" == progress.announcement(plan, data.folder, train, val, 499)
    assert "nothing is left to do" in progress.announcement(plan, data.folder, train, val, 500)
    few = RunPlan(tiny_recipe("schedule.epochs=20", "schedule.pairs=null", "optim.batch_size=8"), train.num_records)
    assert "no test" not in told
    seldom, many = (
        RunPlan(tiny_recipe("schedule.pairs=8", "optim.batch_size=8"), 800),
        Counts(num_records=800, num_images=3),
    )
    told = progress.announcement(seldom, data.folder, many, val, 0)
    assert "8 records in 1 steps of 8: one of 100 is seen" in told
    chosen = tiny_recipe("data.val_split=test1", "validation.times=2")
    there = progress.announcement(RunPlan(chosen, train.num_records, 1), data.folder, train, val, 0)
    assert "the best model is chosen on split 'test1': what it scores there is no test of it" in there
    assert "a lot" not in progress.announcement(few, data.folder, train, val, 0)
