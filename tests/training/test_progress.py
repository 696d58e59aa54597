"""Rate and time left of a count: of what is done now, whatever was done before."""

from __future__ import annotations

import pytest

from pixelbert.training import progress


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
