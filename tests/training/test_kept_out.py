"""Training photos kept out to fit the matches on, and photos augmented in a few ways whose features are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memory_records import MemoryRecords, batches_of, random_texts, tiny_config
from pixelbert.data.batches import Plan
from pixelbert.data.images import ResizeRule
from pixelbert.data.prepare import prepare
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, UsageError
from pixelbert.model.modeling import PixelBertModel
from pixelbert.recipes.schema import load_recipe
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.pretraining_task import Pretraining
from pixelbert.tasks.table import TASKS
from pixelbert.training.frozen_features import FrozenFeatures
from pixelbert.training.loop import train
from pixelbert.training.setup import check_training, keep_out, open_splits
from tiny_runs import BASE, tiny_data, tiny_recipe, weights
from tiny_tasks import picture


def test_photos_kept_out_are_never_trained_on_and_the_fit_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, seen = tiny_data(tmp_path, train=15), set()
    real = Inputs.images_of

    def watched(self: Inputs, images: np.ndarray, epochs: np.ndarray) -> object:
        seen.update((self.records.image_id(int(i)), self.records.num_images) for i in images.ravel())
        return real(self, images, epochs)

    monkeypatch.setattr(Inputs, "images_of", watched)
    run = train(tiny_recipe("itm.calibration_images=3"), data, tmp_path / "run").run
    split = PreparedData(data).split("train")
    assert {name for name, _ in seen} == {split.image_id(i) for i in range(3, split.num_images)}
    fit = weights(run)["match_fit"]
    assert fit.shape == (3,) and not torch.equal(fit, torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(fit, weights(run, ".")["match_fit"])


def test_every_validation_is_of_a_model_fitted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the best is chosen among equals."""
    fits, score = [], Pretraining.score

    def watched(self: Pretraining, model: Any, *rest: Any) -> Any:
        fits.append(model.match_fit.clone())
        return score(self, model, *rest)

    monkeypatch.setattr(Pretraining, "score", watched)
    recipe = tiny_recipe("itm.calibration_images=3", "validation.times=3")
    train(recipe, tiny_data(tmp_path, train=15), tmp_path / "run")
    assert len(fits) == 3 and all(not torch.equal(fit, torch.tensor([1.0, 0.0, 0.0])) for fit in fits)
    assert not torch.equal(fits[0], fits[1]) and not torch.equal(fits[1], fits[2])


@pytest.mark.parametrize(("images", "kept_out"), [(9, 0), (10, 2), (14, 2), (15, 3), (60, 4)])
def test_of_few_photos_a_fifth_is_kept_out_and_of_very_few_none(tmp_path: Path, images: int, kept_out: int) -> None:
    records = MemoryRecords(tmp_path, random_texts(images, 1), sizes=((8, 8),))
    left, kept = keep_out(records, tiny_recipe("itm.calibration_images=4"))
    assert (kept.num_images if kept is not None else 0) == kept_out
    assert left.num_images == images - kept_out


def test_without_photos_kept_out_the_head_stays_as_it_is(tmp_path: Path) -> None:
    run = train(tiny_recipe("itm.calibration_images=4"), tiny_data(tmp_path), tmp_path / "run").run
    assert torch.equal(weights(run)["match_fit"], torch.tensor([1.0, 0.0, 0.0]))


def test_a_task_without_matches_keeps_nothing_out() -> None:
    recipe = load_recipe("pretrain-tiny", [*BASE.split(" "), "itm.calibration_images=3", "task=question_answering"])
    assert TASKS[recipe.task].calibration_images(recipe) == 0


def test_kept_views_are_the_views_computed_afresh(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(4, 2), sizes=((40, 40),))
    images = batches_of(records, ResizeRule(square=64), augmentation="crop", views=3)
    model = PixelBertModel(tiny_config(backbone="test_resnet", frozen_stages=9)).eval()
    kept = FrozenFeatures(model, images, tmp_path / "features", "views")
    kept.refresh()
    rows = torch.tensor([0, 5, 11])
    views, shown = np.divmod(rows.numpy(), 4)
    batch = images.image_batch(shown.tolist(), views.tolist())
    with torch.no_grad():
        found, fresh = kept.grid({"image_rows": rows}), model.encode_images(batch["pixel_values"])
    scale = fresh.pixels.abs().max()
    assert (found.pixels - fresh.pixels).abs().max() < 2e-3 * scale
    assert (fresh.pixels[1] - kept.grid({"image_rows": rows[1:2] % 4}).pixels[0]).abs().max() > 2e-3 * scale


def test_views_need_augmentation_and_kept_features() -> None:
    with pytest.raises(UsageError, match="feature_views needs"):
        tiny_recipe("train.feature_views=3")


def test_an_epoch_shows_one_view_and_view_0_is_the_photo_itself(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(4, 2), sizes=((40, 40),))
    plain = batches_of(records)
    viewed = batches_of(records, augmentation="crop", views=3)
    rows, seen, cropped = np.arange(8), set(), list[bool]()
    for epoch in range(20):
        batch = viewed(Plan(0, rows, np.full(8, epoch), rows))
        views, images = np.divmod(batch["image_rows"].numpy(), 4)
        assert sorted(images) == [0, 1, 2, 3]
        assert images[batch["image_of_text"].numpy()].tolist() == records.image_of.tolist()
        seen.update(views.tolist())
        again = viewed.image_batch(images.tolist(), views.tolist())["pixel_values"]
        assert torch.equal(batch["pixel_values"], again)
        first = plain.image_batch(images.tolist(), [0] * 4)["pixel_values"]
        same = np.array([torch.equal(a, b) for a, b in zip(again, first, strict=True)])
        assert same[views == 0].all()  # a crop may happen to be the whole, so the others are looked at together
        cropped.extend(~same[views > 0])
    assert seen == {0, 1, 2} and np.mean(cropped) > 0.8


def test_a_photo_that_stands_in_two_training_splits_is_not_kept_out_of_one_alone(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "text": f"photo {i} of {split}", "split": split}
            for split, photos in (("train", range(15)), ("restval", (1, 20, 21))) for i in photos]  # fmt: skip
    for i in range(22):
        picture(tmp_path / f"{i}.png", i)
    rows += [{"image": f"{i}.png", "text": f"photo {i}", "split": "val"} for i in (18, 19)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare("jsonl", [tmp_path / "own.jsonl"], tmp_path / "data")
    both, one = (
        tiny_recipe("itm.calibration_images=3", f"data.train_splits={splits}")
        for splits in ("[train,restval]", "[train]")
    )
    left, kept = keep_out(open_splits(prepared, one)[0], one)
    assert (left.num_images, kept.num_images if kept else 0) == (12, 3)
    check_training(prepared, one, open_splits(prepared, one)[0])
    with pytest.raises(DataError, match="image '1.png' is kept out of training to fit matches, and stands in another"):
        check_training(prepared, both, open_splits(prepared, both)[0])
