"""`pixelbert bench ratios`: what is called the same gives the same; nothing here looks at a clock."""

from __future__ import annotations

import json

import pytest
import torch

from pixelbert.bench import ratios
from pixelbert.cli import main


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(ratios.SMALL_TEXT, "hidden_size", 48)
    monkeypatch.setitem(ratios.SMALL_TEXT, "intermediate_size", 96)
    monkeypatch.setitem(ratios.SMALL_TEXT, "num_hidden_layers", 2)


def test_ways_that_are_called_the_same_give_the_same_numbers():
    names = []
    for way in ratios.ways(photos=2):
        names.append(way.name)
        if way.same:
            ours, plain = torch.as_tensor(way.ours()), torch.as_tensor(way.plain())
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5, msg=way.name)
    assert len(names) >= 6


def test_the_command_prints_every_way(capsys):
    assert main(["bench", "ratios", "--steps", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in rows] == [way.name for way in ratios.ways(photos=1)]
    assert all(
        row["times_as_fast"] == pytest.approx(row["plain_seconds"] / row["ours_seconds"], rel=0.2) for row in rows
    )
