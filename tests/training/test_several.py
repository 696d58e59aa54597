"""Runs in a row, as `ablate` and the quickstart have them: a request to stop is heeded between two of them too."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from pixelbert.training.loop import train
from pixelbert.training.several import train_on
from pixelbert.training.validation import Validator
from tiny_runs import losses, same_weights, tiny_data, tiny_recipe


def test_a_request_in_the_last_step_finishes_the_run_and_begins_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = tiny_data(tmp_path), tmp_path / "run"
    train(tiny_recipe(), data, tmp_path / "whole")
    score = Validator.__call__

    def asking(self: Validator) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return score(self)

    monkeypatch.setattr(Validator, "__call__", asking)
    with pytest.raises(KeyboardInterrupt):
        train_on(tiny_recipe(), data, run)
    assert losses(run) == losses(tmp_path / "whole") and same_weights(run, tmp_path / "whole")
    figures = train_on(tiny_recipe(), data, run)  # done: nothing is validated, nobody asks again
    assert figures == json.loads((run / "validation" / "figures.json").read_text())
