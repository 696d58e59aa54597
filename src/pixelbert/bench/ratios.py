"""What each way of saving work brings, as ratios in one run: `pixelbert bench ratios`.

Both ways take turns, round after round in one process, so that other work on the machine slows them alike; the medians
are compared. The network has the small size's shape with random weights, the batch 8 photos of noise with 4 texts each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pixelbert.bench.apart import Apart, busy_cores
from pixelbert.bench.images import draw_photos, pillow_load
from pixelbert.bench.steps import SMALL_TEXT
from pixelbert.model import precision
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.image_processing import ResizeRule, load_image
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.threads import sleep_soon
from pixelbert.tasks.pretraining import LossSettings, PretrainingObjective

_TEXTS = 4  # of a photo


@dataclass(frozen=True)
class Way:
    """Two ways to the same end: `ours`, `plain`. `same`: they give the same numbers, up to rounding."""

    name: str
    ours: Callable[[], Any]
    plain: Callable[[], Any]
    same: bool = True


def run_ratios(rounds: int = 5, photos: int = 8) -> list[dict[str, Any]]:
    """Rows of {way, times_as_fast, ours_seconds, plain_seconds, same_numbers} on this machine."""
    rows = []
    for way in ways(photos):
        ours, plain = _times(way, rounds)
        rows.append({
            "way": way.name, "times_as_fast": round(plain / ours, 2), "ours_seconds": round(ours, 4),
            "plain_seconds": round(plain, 4), "same_numbers": "yes" if way.same else "no",
        })  # fmt: skip
    return rows


def _times(way: Way, rounds: int) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):  # the first round warms up
        for found, run in zip(times, (way.ours, way.plain), strict=True):
            started = time.perf_counter()
            run()
            found.append(time.perf_counter() - started)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def ways(photos: int = 8) -> Iterator[Way]:
    """The comparisons, in order."""
    model, batch = small_model(), batch_of_noise(photos)
    with torch.no_grad():
        grid = model.pixelbert.encode_images(batch["pixel_values"]).select(batch["image_of_text"])
    core, ids, mask = model.pixelbert, batch["input_ids"], batch["attention_mask"]

    def cls(places: int | None) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad():
                output: Tensor = core(ids, attention_mask=mask, grid=grid, places=places).last_hidden_state
            return output[:, 0]

        return run

    yield Way("scoring pairs: the last layer for [CLS] alone", cls(1), cls(None))
    yield Way("pretraining: texts of like length together", step(model, batch, chunks=2), step(model, batch))
    single = {**batch, "pixel_values": batch["pixel_values"].repeat_interleave(_TEXTS, 0)}
    single |= {
        "image_sizes": batch["image_sizes"].repeat_interleave(_TEXTS, 0),
        "image_of_text": torch.arange(len(ids)),
    }
    yield Way("pretraining: one CNN pass for 4 texts of a photo", step(model, batch), step(model, single))
    kept = model.pixelbert.encode_images(batch["pixel_values"], batch["image_sizes"])
    kept.pixels = kept.pixels.detach()
    yield Way("pretraining: maps of the frozen CNN kept", step(model, batch, grid=kept), step(model, batch))
    yield Way("pretraining: 20 of 49 pixels", step(model, batch, pixels=20), step(model, batch), same=False)
    if precision.choose().backbone == "bfloat16":
        yield Way("the CNN in bfloat16", encode(model, batch, torch.bfloat16), encode(model, batch, None), same=False)
    many = 8 * photos  # as in training, where a map is too large to be kept otherwise
    with Apart("cnn-keeping", many) as keeping, Apart("cnn", many) as returning:
        yield Way("the CNN over many photos, freed memory kept", keeping, returning)
    sleeping: dict[str, str] = {}
    sleep_soon(sleeping)
    with Apart("step", photos, sleeping) as ours, Apart("step", photos) as spinning, busy_cores():
        yield Way("pretraining beside other programs: threads that soon sleep", ours, spinning)
    rule, files = ResizeRule(square=224), draw_photos(photos)
    yield Way(
        "a JPEG of 640 x 480 to 224 x 224, beside Pillow",
        lambda: [load_image(file, rule) for file in files],
        lambda: [pillow_load(file, rule) for file in files],
        same=False,
    )


def small_model() -> PixelBertForPreTraining:
    """The small size's shape, random weights."""
    torch.manual_seed(0)
    config = PixelBertConfig(
        {**SMALL_TEXT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        backbone="tf_efficientnet_lite0", visual_pool=False, frozen_stages=9,
    )  # fmt: skip
    return PixelBertForPreTraining(config).eval()


def batch_of_noise(photos: int) -> dict[str, Any]:
    """Texts of 8 to 24 pieces, every sixth hidden, half of them mismatched; photos of noise."""
    draw, texts = torch.Generator().manual_seed(0), photos * _TEXTS
    lengths = torch.randint(8, 25, (texts, 1), generator=draw)
    mask = (torch.arange(24) < lengths).long()
    ids = torch.randint(1000, 30000, (texts, 24), generator=draw) * mask
    match = torch.arange(texts) % 2
    hidden = (torch.arange(24) % 6 == 1) & mask.bool() & (match == 1)[:, None]
    return {
        "pixel_values": torch.randint(0, 256, (photos, 3, 224, 224), generator=draw, dtype=torch.uint8),
        "image_sizes": torch.tensor([[224, 224]] * photos),
        "image_of_text": torch.arange(texts) // _TEXTS,
        "input_ids": ids, "attention_mask": mask, "labels": torch.where(hidden, ids, -100), "match": match,
        "sampling_seed": torch.arange(texts),
    }  # fmt: skip


def step(
    model: PixelBertForPreTraining, batch: dict[str, Any], chunks: int = 1, grid: Any = None, pixels: int = 0
) -> Callable[[], float]:
    """Both of the paper's losses and their gradients; gives the summed loss."""
    objective = PretrainingObjective(model, chunks=chunks)
    if grid is not None:
        objective.encode = lambda _: grid

    def run() -> float:
        total = torch.stack(list(objective(batch, LossSettings(sample_pixels=pixels)).values())).sum()
        total.backward()
        model.zero_grad()
        return total.item()

    return run


def encode(model: PixelBertForPreTraining, batch: dict[str, Any], dtype: torch.dtype | None) -> Callable[[], Tensor]:
    """The CNN's pass over a batch's photos, in `dtype` (None: float32)."""
    visual = model.pixelbert.visual
    visual.body.to(memory_format=torch.channels_last)

    def run() -> Tensor:
        visual.compute_dtype = dtype
        with torch.no_grad():
            pixels: Tensor = model.pixelbert.encode_images(batch["pixel_values"]).pixels
        visual.compute_dtype = None
        return pixels

    return run
