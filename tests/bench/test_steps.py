"""`pixelbert bench`: a real training step of each size, in a process of its own; nothing here asserts a time."""

from __future__ import annotations

import math

import pytest

from pixelbert.bench import run_bench
from pixelbert.bench.steps import SIZES, _model
from pixelbert.errors import UsageError
from pixelbert.model.backbone import sleeping_norms
from pixelbert.recipes.schema import load_recipe


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        pytest.param("small", (25, 26), marks=pytest.mark.slow),
        pytest.param("r50", (134, 135), marks=pytest.mark.slow),
        pytest.param("x152", (231, 232), marks=pytest.mark.slow),
    ],
)
def test_a_step_at_full_size(size: str, millions: tuple[int, int]) -> None:
    (row,) = run_bench([size], steps=1)
    assert "error" not in row, row
    assert math.isfinite(row["loss"]) and millions[0] < row["parameters_m"] < millions[1]
    assert row["pairs"] == row["images"] * 4 and row["peak_gib"] > 0.5


@pytest.mark.parametrize("names", [["smal"], ["r50", "x15"]])
def test_a_size_that_is_none_is_told_before_any_step(names: list[str]) -> None:
    with pytest.raises(UsageError, match=f"no size '{names[-1]}'; did you mean"):
        run_bench(names)


def test_no_residual_block_sleeps_while_it_is_timed() -> None:
    """Their branches' gradients are part of a step, whatever weights there are."""
    size = next(size for size in SIZES if size.name.startswith("r50"))
    model = _model(size, load_recipe(size.recipe))
    assert not sleeping_norms(model.pixelbert.visual.body)
