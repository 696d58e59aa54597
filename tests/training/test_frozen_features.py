"""Kept features of the frozen CNN against fresh ones, at every number of frozen stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memory_records import tiny_config
from pixelbert.data.batches import Batch
from pixelbert.model.modeling import PixelBertModel
from pixelbert.training.frozen_features import FrozenFeatures, frozen_steps, steps_of

IMAGES = torch.randint(0, 256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def load(rows: list[int]) -> Batch:
    return {"pixel_values": IMAGES[rows]}


def model_of(name: str, **settings: object) -> PixelBertModel:
    torch.manual_seed(0)
    return PixelBertModel(tiny_config(backbone=name, **settings)).eval()


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0", "test_convnext"])
@pytest.mark.parametrize("stages", [0, 1, 2, 9])
def test_kept_features_give_the_fresh_grid_and_the_same_gradients(name: str, stages: int, tmp_path: Path) -> None:
    model = model_of(name, frozen_stages=stages)
    kept = FrozenFeatures(model, len(IMAGES), load, tmp_path, "key")
    kept.refresh()
    assert kept.steps == frozen_steps(model.visual) > 0
    rows = torch.tensor([3, 0, 4])
    fresh, again = model.encode_images(IMAGES[rows]), kept.grid({"image_rows": rows})
    scale = float(fresh.pixels.abs().max().detach())
    assert torch.allclose(fresh.pixels, again.pixels, atol=3e-3 * scale)  # kept as float16
    assert torch.equal(fresh.mask, again.mask)
    if not model.visual.is_frozen:
        gradients = []
        for grid in (fresh, again):
            model.zero_grad()
            grid.pixels.square().mean().backward()
            gradients.append([p.grad for p in model.visual.parameters() if p.requires_grad])
        for one, other in zip(*gradients, strict=True):
            assert torch.allclose(one, other, atol=0.02 * float(one.abs().max()) + 1e-7)


def test_unfreezing_computes_them_anew_and_a_second_run_finds_the_file(tmp_path: Path) -> None:
    model = model_of("test_resnet", frozen_stages=9)
    kept = FrozenFeatures(model, len(IMAGES), load, tmp_path, "key")
    kept.refresh()
    assert kept.steps == len(steps_of(model.visual))
    model.visual.set_frozen_stages(1)
    kept.refresh()
    assert 0 < kept.steps < len(steps_of(model.visual))
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 2

    def unread(rows: list[int]) -> Batch:
        raise AssertionError("the file is there")

    FrozenFeatures(model, len(IMAGES), unread, tmp_path, "key").refresh()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    with torch.no_grad():
        next(model.visual.body.parameters()).add_(1)  # other weights, other file
    FrozenFeatures(model, len(IMAGES), load, tmp_path, "key").refresh()
    FrozenFeatures(model, len(IMAGES), load, tmp_path, "other images").refresh()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_stage_whose_batch_norm_still_learns_is_not_kept() -> None:
    model = model_of("test_resnet", frozen_stages=-1, backbone_norm="train").train()
    assert frozen_steps(model.visual) == 0
    model.visual.set_frozen_stages(1)
    assert frozen_steps(model.visual) > 0
