"""A folder is written whole or not at all."""

import errno
import os
import time
from pathlib import Path

import pytest

from pixelbert.data import output
from pixelbert.data.output import new_folder
from pixelbert.errors import MachineError, UsageError


def write(out, content="new", overwrite=False):
    with new_folder(out, overwrite=overwrite, marker="done.json") as folder:
        assert folder.parent == out.absolute().parent
        (folder / "data.txt").write_text(content)
        (folder / "done.json").write_text("{}")


def left(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir())


def test_it_appears_at_the_end(tmp_path):
    with new_folder(tmp_path / "a" / "out", overwrite=False, marker="done.json") as folder:
        (folder / "done.json").write_text("{}")
        assert not (tmp_path / "a" / "out").exists()
    assert left(tmp_path / "a") == ["out"]
    assert left(tmp_path / "a" / "out") == ["done.json"]  # no lock file stays
    assert (tmp_path / "a" / "out").stat().st_mode & 0o777 == 0o777 & ~output._umask()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_after_an_error(tmp_path, error):
    def fail():
        with new_folder(tmp_path / "out", overwrite=False, marker="done.json") as folder:
            (folder / "data.txt").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert left(tmp_path) == []


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(output, "_exchange", lambda *_: False)
    write(tmp_path / "out", "old")
    with pytest.raises(UsageError, match="give --overwrite"):
        write(tmp_path / "out")
    assert (tmp_path / "out" / "data.txt").read_text() == "old"
    write(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "data.txt").read_text() == "new"
    assert left(tmp_path) == ["out"]


def test_the_old_folder_stays_when_the_new_one_fails(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(ValueError), new_folder(tmp_path / "out", overwrite=True, marker="done.json"):
        raise ValueError
    assert (tmp_path / "out" / "data.txt").read_text() == "old"
    assert left(tmp_path) == ["out"]


def test_a_folder_below_a_file_is_a_wrong_command(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file/a/b: \S+/file is a file, not a folder"):
        write(tmp_path / "file" / "a" / "b")


def test_only_a_folder_of_ours_is_ever_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("dear")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="not a prepared folder"):
            write(tmp_path / "photos", overwrite=overwrite)
        with pytest.raises(UsageError, match="not a folder"):
            write(tmp_path / "file", overwrite=overwrite)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "dear"
    write(tmp_path / "empty")
    assert (tmp_path / "empty" / "data.txt").exists()


def test_leftovers_of_killed_runs_go_and_running_ones_stay(tmp_path):
    stale = tmp_path / ".out.tmp-stale"
    other = tmp_path / ".another.tmp-x"
    for folder in (stale, other):
        folder.mkdir()
        (folder / ".lock").write_text("")
    for name, age in ((".out.tmp-nolock", 3600), (".out.tmp-justmade", 0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with new_folder(tmp_path / "out", overwrite=False, marker="done.json") as running:
        assert not stale.exists()
        write(tmp_path / "out", "second")  # another run for the same place, finished first
        assert running.exists()
        (running / "done.json").unlink(missing_ok=True)
        with pytest.raises(UsageError):  # so this one must not replace it
            output._check_target(tmp_path / "out", False, "done.json")
        (tmp_path / "out" / "done.json").unlink()
        (tmp_path / "out" / "data.txt").unlink()
    assert left(tmp_path) == [".another.tmp-x", ".out.tmp-justmade", "out"]


def test_a_run_killed_between_the_two_renames_is_repaired(tmp_path):
    old = tmp_path / ".out.old-x"
    old.mkdir()
    (old / "done.json").write_text("{}")
    with pytest.raises(ValueError), new_folder(tmp_path / "out", overwrite=True, marker="done.json"):
        raise ValueError
    assert left(tmp_path) == ["out"]
    assert left(tmp_path / "out") == ["done.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path, code):
    with (
        pytest.raises(MachineError, match="the disk is full"),
        new_folder(tmp_path / "out", overwrite=False, marker="done.json"),
    ):
        raise OSError(code, os.strerror(code))
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(MachineError, match="cannot be written"):
        write(Path("/proc/none/out"))
