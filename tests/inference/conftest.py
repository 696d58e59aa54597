"""A run of every task, made when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from untrained_runs import SIZES, WIDE, make_run

from tiny_runs import tiny_data, tiny_recipe
from tiny_tasks import task_data, task_recipe


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """(run, data) of a task, each made when first asked for."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(task: str) -> tuple[Path, Path]:
        if task not in made:
            folder = tmp_path_factory.mktemp(task)
            if task == "pretraining":
                data, recipe = tiny_data(folder), tiny_recipe(*WIDE, *SIZES)
            else:
                data, recipe = task_data(folder, task), task_recipe(task, *WIDE, *SIZES)
            made[task] = make_run(folder / "run", recipe, data), data
        return made[task]

    return get
