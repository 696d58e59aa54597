"""Kept features of the frozen CNN against fresh ones: at every number of frozen stages, at sizes of one's own."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memory_records import MemoryRecords, batches_of, random_texts, tiny_config
from pixelbert.data.batches import Batch
from pixelbert.data.images import ResizeRule
from pixelbert.errors import MachineError
from pixelbert.model.modeling import PixelBertModel
from pixelbert.tasks.pretraining import PretrainingBatches
from pixelbert.training import frozen_features, map_store
from pixelbert.training.evaluate import evaluate
from pixelbert.training.frozen_features import FrozenFeatures, frozen_steps, steps_of
from tiny_tasks import picture, task_data, task_recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "inference"))

from untrained_runs import WIDE, make_run

SQUARE, OWN_SIZES = ResizeRule(square=64), ResizeRule(shorter=64, longer=160)
SIZES = [(64, 64), (64, 150), (150, 64), (128, 64), (70, 99)]


def images(folder: Path, rule: ResizeRule = SQUARE, count: int = 5, **settings: Any) -> PretrainingBatches:
    records = MemoryRecords(folder, random_texts(count, 1), sizes=SIZES)
    return batches_of(records, rule, **settings)


def model_of(name: str = "test_resnet", **settings: object) -> PixelBertModel:
    """Random weights with batch statistics of noise: maps of a real CNN's size, which pictures make a difference to."""
    torch.manual_seed(0)
    model = PixelBertModel(tiny_config(backbone=name, **settings))
    norms = [m for m in model.visual.body.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
        torch.nn.init.ones_(norm.weight)
    model.visual.body.train()
    with torch.no_grad():
        model.visual(torch.randint(0, 256, (4, 3, 96, 96), generator=torch.Generator().manual_seed(1)).to(torch.uint8))
        model.pixels.projection.weight.normal_(std=0.1)
    return model.eval()


def kept_of(model: PixelBertModel, batches: PretrainingBatches, folder: Path, key: str = "", **more: Any) -> Any:
    features = FrozenFeatures(model, batches, folder / "features", key, **more)
    features.refresh()
    return features


def fresh(model: PixelBertModel, batches: PretrainingBatches, rows: list[int]) -> Any:
    batch = batches.image_batch(rows, [0] * len(rows))
    return model.encode_images(batch["pixel_values"], batch["image_sizes"])


@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0", "test_convnext"])
@pytest.mark.parametrize("stages", [0, 1, 2, 9])
def test_kept_features_give_the_fresh_grid_and_the_same_gradients(name: str, stages: int, tmp_path: Path) -> None:
    model, batches, rows = model_of(name, frozen_stages=stages), images(tmp_path), [3, 0, 4]
    kept = kept_of(model, batches, tmp_path)
    assert kept.steps == frozen_steps(model.visual) > 0
    one, other = fresh(model, batches, rows), kept.grid({"image_rows": torch.tensor(rows)})
    scale = float(one.pixels.detach().abs().max())
    assert float((one.pixels[0] - one.pixels[1]).detach().abs().max()) > 0.1 * scale  # pictures make a difference
    assert torch.allclose(one.pixels, other.pixels, atol=1e-2 * scale)  # kept as float16
    assert torch.equal(one.mask, other.mask)
    gradients = []
    for grid in (one, other):
        model.zero_grad()
        grid.pixels.square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0  # the projection learns in any case
    a, b = (torch.cat([gradient.flatten() for gradient in all_of_them]) for all_of_them in gradients)
    assert float((a - b).norm()) < 0.2 * float(a.norm())  # deep random networks make much of float16's rounding


@pytest.mark.parametrize(("pool", "projection"), [(True, "linear"), (False, "conv3x3")])
def test_a_frozen_cnn_is_kept_at_each_image_s_own_size(
    pool: bool, projection: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_features, "BATCH", 5)
    settings = {"visual_pool": pool, "visual_projection": projection, "visual_position": "learned2d"}
    model = model_of("resnet18", frozen_stages=9, **settings)
    batches = images(tmp_path, OWN_SIZES, count=12)  # more than one forward pass takes
    kept = kept_of(model, batches, tmp_path)
    shapes = {tuple(place) for place in kept.store.places[:, 1:3].tolist()}
    assert len(shapes) > 2
    for rows in ([0, 1, 2], [11, 3], [1, 6, 11]):
        one, other = fresh(model, batches, rows), kept.grid({"image_rows": torch.tensor(rows)})
        assert one.mask.sum(1).tolist() == other.mask.sum(1).tolist()
        scale = float(one.pixels.detach().abs().max())
        for a, b, own, theirs in zip(one.pixels, other.pixels, one.mask, other.mask, strict=True):
            assert torch.allclose(a[own], b[theirs], atol=3e-3 * scale)
        assert not one.mask.all() or rows == [1, 6, 11]  # the first two mix sizes


def test_unfreezing_computes_them_anew_and_a_second_run_finds_them(tmp_path: Path) -> None:
    model, batches, folder = model_of(frozen_stages=9), images(tmp_path), tmp_path / "features"
    kept = kept_of(model, batches, tmp_path, "key")
    assert kept.steps == len(steps_of(model.visual))
    model.visual.set_frozen_stages(1)
    kept.refresh()
    assert 0 < kept.steps < len(steps_of(model.visual))
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.bin")}
    assert len(files) == 4

    class Unread(PretrainingBatches):
        def image_batch(self, *_: Any) -> Batch:
            raise AssertionError("they are there")

    kept_of(model, Unread(**_fields(batches)), tmp_path, "key")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.bin")} == files
    with torch.no_grad():
        next(model.visual.body.parameters()).add_(1)  # other weights, other maps
    kept_of(model, batches, tmp_path, "key")
    kept_of(model, batches, tmp_path, "other images")
    assert len(list(folder.iterdir())) == 4


def _fields(batches: PretrainingBatches) -> dict[str, Any]:
    return {name: getattr(batches, name) for name, field in batches.__dataclass_fields__.items() if field.init}


def test_a_stage_whose_batch_norm_still_learns_is_not_kept() -> None:
    model = model_of(frozen_stages=-1, backbone_norm="train").train()
    assert frozen_steps(model.visual) == 0
    model.visual.set_frozen_stages(1)
    assert frozen_steps(model.visual) > 0


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "features").glob("*/*.bin"))]


def test_a_stopped_computation_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_features, "BATCH", 4)
    model, batches = model_of(frozen_stages=9), images(tmp_path, OWN_SIZES, count=14)
    kept_of(model, batches, tmp_path)
    whole = contents(tmp_path)

    asked: list[int] = []
    other = tmp_path / "other"

    class Stopped(PretrainingBatches):
        def image_batch(self, images: Any, epochs: Any) -> Batch:
            asked.extend(images)
            if images[0] == 8 and stop:
                raise KeyboardInterrupt
            return super().image_batch(images, epochs)

    stop = True
    with pytest.raises(KeyboardInterrupt):
        kept_of(model, Stopped(**_fields(batches)), other)
    with open(next((other / "features").glob("*/maps.bin")), "ab") as file:
        file.write(b"half of a map")  # what a kill leaves
    asked.clear()
    stop = False
    said: list[str] = []
    kept_of(model, Stopped(**_fields(batches)), other, announce=said.append)
    assert asked == list(range(8, 14))
    assert contents(other) == whole
    assert len(said) == 1 and "14 images" in said[0] and "MiB" in said[0] and "8 are there already" in said[0]


def test_a_map_that_did_not_reach_the_disk_is_computed_again(tmp_path: Path) -> None:
    model, batches = model_of("resnet18", frozen_stages=9), images(tmp_path, OWN_SIZES)
    maps, mask = kept_of(model, batches, tmp_path).store.read(range(5))
    path = next((tmp_path / "features").glob("*/maps.bin"))
    os.truncate(path, path.stat().st_size - 10)
    again, mask_again = kept_of(model, batches, tmp_path).store.read(range(5))
    assert (mask == mask_again).all()
    assert np.allclose(maps, again, atol=2e-3 * float(maps.max()))  # not in the same batch, so not to the last bit


@pytest.mark.parametrize(("rule", "sizes"), [(SQUARE, 1), (OWN_SIZES, 5)])
def test_a_blind_run_computes_each_size_once(
    rule: ResizeRule, sizes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_features, "BATCH", 5)
    model, batches = model_of("resnet18", frozen_stages=9), images(tmp_path, rule, count=13, constant=(120, 110, 100))
    passed: list[int] = []
    model.visual.register_forward_pre_hook(lambda _, args: passed.append(len(args[0])))
    kept = kept_of(model, batches, tmp_path)
    assert sum(passed) == sizes
    assert len(kept.store) == 13 and len({int(start) for start in kept.store.places[:, 0]}) == sizes
    one, other = fresh(model, batches, [12, 4]), kept.grid({"image_rows": torch.tensor([12, 4])})
    assert torch.allclose(
        one.pixels[one.mask], other.pixels[other.mask], atol=3e-3 * float(one.pixels.detach().abs().max())
    )


def test_too_small_a_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = model_of(frozen_stages=9), images(tmp_path, OWN_SIZES, count=40)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(frozen_features.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(MachineError, match=r"too little space .* 40 images, about 1 MiB in all, .* free; free some,"):
        kept_of(model, batches, tmp_path)


def test_a_disk_that_fills_up_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_features, "BATCH", 4)
    model, batches = model_of(frozen_stages=9), images(tmp_path, OWN_SIZES, count=10)
    sync, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:  # the maps of the second four
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(map_store.os, "fsync", full)
    with pytest.raises(MachineError, match="what is there is kept"):
        kept_of(model, batches, tmp_path)
    monkeypatch.setattr(map_store.os, "fsync", sync)
    said: list[str] = []
    kept_of(model, batches, tmp_path, announce=said.append)
    assert "4 are there already" in said[0]


def test_the_store_gives_back_what_was_put_in(tmp_path: Path) -> None:
    store, draw = map_store.MapStore(tmp_path / "store"), np.random.default_rng(0)
    maps = [draw.normal(size=(h, w, 3)).astype(np.float16) for h, w in ((2, 5), (4, 1), (3, 3))]
    with store.appending(print):
        store.append(maps[:2])
        store.append([0, maps[2], 3])
    again = map_store.MapStore(tmp_path / "store")
    assert len(again) == 5 and again.bytes == sum(m.nbytes for m in maps)
    values, mask = again.read([4, 0, 1, 2])
    assert values.shape == (4, 4, 5, 3)
    for i, expected in enumerate((maps[2], maps[0], maps[1], maps[0])):
        height, width = expected.shape[:2]
        assert (values[i, :height, :width] == expected).all() and mask[i, :height, :width].all()
        assert mask[i].sum() == height * width


@pytest.mark.parametrize("mended", [False, True])
def test_other_pictures_of_the_same_names_have_maps_of_their_own(tmp_path: Path, mended: bool) -> None:
    """Also where the data stays as it was prepared."""
    data = task_data(tmp_path / "data", "question_answering")
    kept = ("train.keep_frozen_features=true", "backbone.frozen_stages=9")
    run = make_run(tmp_path / "run", task_recipe("question_answering", *WIDE, *kept), data)
    before = evaluate(run, data)["figures"]
    rows = (run / "evaluation" / "val" / "records.jsonl").read_text()
    if mended:
        for path in (tmp_path / "data" / "images").iterdir():
            picture(path, int(path.stem) + 50)
    assert evaluate(run, data)["figures"].keys() == before.keys()
    assert ((run / "evaluation" / "val" / "records.jsonl").read_text() == rows) is not mended
    assert len(list((tmp_path / "features").iterdir())) == 1 + mended
