"""A small run, whole and as if killed, and the command that goes on with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from bad_input_runs import SAVES

from pixelbert.cli import main
from pixelbert.training.checkpoint import checkpoint_path
from pixelbert.training.loop import train
from tiny_runs import tiny_data, tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data, recipe.yaml, and `whole`: a run of six steps with checkpoints at 4 and 6."""
    folder = tmp_path_factory.mktemp("bad")
    tiny_data(folder)
    recipe = tiny_recipe(*SAVES)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    train(recipe, folder / "data", folder / "whole")
    return folder


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """The run as if killed after step 4, whose loss at step 5 was written too."""
    run = shutil.copytree(folder / "whole", tmp_path / "run")
    shutil.rmtree(checkpoint_path(run, 6))
    return run


@pytest.fixture
def command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`pixelbert train`: its exit code and the last line of stderr; there is never a traceback."""

    def call(*arguments: str, recipe: str = str(folder / "recipe.yaml"), data: Path = folder / "data",
             out: Path = tmp_path / "run") -> tuple[int, str]:  # fmt: skip
        capsys.readouterr()
        code = main(["train", recipe, "--data", str(data), "--out", str(out), *arguments])
        lines = capsys.readouterr().err.strip().splitlines()
        assert "Traceback" not in "\n".join(lines)
        return code, lines[-1] if lines else ""

    return call
