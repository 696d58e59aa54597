"""Runs of seconds: prepared data of drawn noise, and a recipe of a few weights and steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from memory_records import random_texts
from pixelbert.data.prepare import prepare
from pixelbert.recipes.schema import Recipe, load_recipe

BASE = (
    "backbone.name=test_resnet backbone.norm=frozen text.hidden_size=32 text.layers=2 text.heads=2 "
    "text.intermediate_size=48 text.vocab_size=80 image.square=64 visual.num_sampled_pixels=3 contrastive_size=8 "
    "data.texts_per_image=2 data.workers=0 optim.batch_size=8 optim.micro_batch=8 optim.scale_lr=false "
    "schedule.pairs=48 schedule.warmup_steps=2 train.precision=float32 train.trackers=[] train.save_minutes=1000 "
    "train.log_steps=1000 validation.times=1 validation.exact_images=2 loss.contrastive=0 mlm.probability=0.15 "
    "text.initializer_range=0.02 visual.position=learned2d optim.cnn.lr=0.001"
)


def tiny_recipe(*changes: str) -> Recipe:
    """Six steps of eight pairs, float32, no worker, no dropout, one validation at the end."""
    return load_recipe("pretrain-tiny", [*BASE.split(" "), *changes])


def tiny_data(folder: Path, *, train: int = 9, val: int = 4, texts: int = 3, seed: int = 0) -> Path:
    """Prepared data at FOLDER/data: pictures of 64 x 64 with `texts` captions each, in train and val."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for image, captions in enumerate(random_texts(train + val, texts, seed)):
        pixels = np.random.default_rng(1000 * seed + image).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{image:03}.png")
        split = "train" if image < train else "val"
        lines += [json.dumps({"image": f"{image:03}.png", "text": text, "split": split}) for text in captions]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    prepare("jsonl", [folder / "captions.jsonl"], folder / "data")
    return folder / "data"


def losses(run: Path) -> list[dict[str, Any]]:
    """The figures of every step, without those that clocks give."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    clocks = ("seconds", "pairs_per_s", "data_wait")
    return [{name: value for name, value in row.items() if name not in clocks} for row in rows]


def step_losses(run: Path, *names: str) -> list[dict[str, float]]:
    """`names` of every training step."""
    return [{name: row[name] for name in names or ("loss",)} for row in losses(run) if row["kind"] == "train"]


def weights(run: Path, place: str = "last") -> Mapping[str, torch.Tensor]:
    """The weights in RUN/last, or the best ones (place ".")."""
    return load_file(run / place / "model.safetensors")


def same_weights(one: Path, two: Path, place: str = "last") -> bool:
    """Bit for bit."""
    a, b = weights(one, place), weights(two, place)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def widest_gap(one: Path, two: Path) -> float:
    """The largest absolute difference of any weight."""
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)
