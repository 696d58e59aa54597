"""The recipes of the downstream tasks, shrunk to a network of a few weights: one step from a pretrained run, scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pixelbert.errors import UsageError
from pixelbert.recipes.schema import load_recipe, recipe_names
from pixelbert.training.evaluate import evaluate
from pixelbert.training.loop import train
from tiny_runs import tiny_data
from tiny_tasks import task_data

SHRUNK = (
    "backbone.name=test_resnet", "backbone.weights=null", "backbone.wake_residuals=true", "text.weights=null",
    "text.hidden_size=32", "text.layers=2", "text.heads=2", "text.intermediate_size=48", "text.vocab_size=80",
    "text.initializer_range=0.2", "data.workers=0", "optim.batch_size=8", "optim.micro_batch=4",
    "optim.scale_lr=false", "schedule.pairs=8", "train.precision=float32",
    "train.trackers=[]", "phases=[]", "validation.times=1", "itm.calibration_images=0", "itm.words=false",
)  # fmt: skip
DOWNSTREAM = [name for name in recipe_names() if load_recipe(name).task != "pretraining"]


def shrunk(name: str) -> list[str]:
    """Changes to a recipe; sizes of pictures stay of its own kind: all the same, or each its own."""
    recipe = load_recipe(name)
    size = ["image.square=64"] if recipe.image.square else ["image.shorter=64", "image.longer=96"]
    exact = ["validation.exact_images=3"] if recipe.task == "retrieval" else []
    held_out = ["data.held_out_images=2"] if recipe.data.held_out_images else []
    shortlist = ["validation.shortlist=2"] if recipe.validation.shortlist else []
    return [*SHRUNK, *size, *exact, *held_out, *shortlist]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def data(folder: Path) -> Callable[[str], Path]:
    """Prepared data of a task; the pictures of the pairs are of three shapes."""

    def prepared(task: str) -> Path:
        path = folder / f"data-{task}"
        if not path.exists():
            tiny_data(path) if task == "retrieval" else task_data(path, task)
            for i, picture in enumerate(sorted(path.glob("*.png"))):
                Image.open(picture).resize([(64, 64), (90, 64), (64, 128)][i % 3]).save(picture)
        return path / "data"

    return prepared


@pytest.fixture(scope="module")
def pretrained(folder: Path, data: Callable[[str], Path]) -> Callable[[str], Path]:
    """One step of pretraining at the size that a recipe starts from."""

    def run(name: str) -> Path:
        size = name.rpartition("-")[2].replace("x152", "r50")
        path = folder / f"pretrain-{size}"
        if not path.exists():
            train(f"pretrain-{size}", data("retrieval"), path, overrides=shrunk(f"pretrain-{size}"))
        return path

    return run


def test_retrieval_of_the_paper_keeps_features_of_any_size_for_training_and_scoring(
    folder: Path, data: Callable[[str], Path], pretrained: Callable[[str], Path]
) -> None:
    name, run = "retrieval-flickr30k-r50", folder / "one" / "retrieval"
    result = train(name, data("retrieval"), run, from_run=pretrained(name), overrides=shrunk(name))
    assert 0 < result.metrics["rsum"] <= 600
    stores = {path: path.stat().st_mtime_ns for path in (folder / "one" / "features").glob("frozen-*/maps.bin")}
    assert len(stores) == 2  # of train, and of val
    whole = evaluate(run, data("retrieval"), captions_per_image=3)
    folds = evaluate(run, data("retrieval"), captions_per_image=3, folds=2)
    assert {path: path.stat().st_mtime_ns for path in stores} == stores  # found, not computed again
    assert (whole["texts"], folds["folds"]) == (12, 2)
    assert (run / "evaluation" / "val-folds2" / "ranks.jsonl").exists()
    assert all(folds["figures"][key] >= value for key, value in whole["figures"].items())  # fewer to choose from
    with pytest.raises(UsageError, match="4 images cannot be cut into folds of 3"):
        evaluate(run, data("retrieval"), folds=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", DOWNSTREAM)
def test_a_recipe_takes_a_step_from_a_pretrained_run(
    name: str, folder: Path, data: Callable[[str], Path], pretrained: Callable[[str], Path]
) -> None:
    task = load_recipe(name).task
    result = train(name, data(task), folder / name, from_run=pretrained(name), overrides=shrunk(name))
    assert result.steps == 1
    assert load_recipe(name).validation.select_on in result.metrics
