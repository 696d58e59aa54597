"""A real training step at the paper's full sizes, each in a process of its own: its time and its peak memory.

`pixelbert bench` runs it. Random weights and drawn noise serve: neither time nor memory depends on what they show.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from pixelbert.errors import UsageError, nearest

#: The shape of MiniLM-L6.
SMALL_TEXT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


@dataclass(frozen=True)
class Size:
    """One row of the bench: a recipe's network at its full image size."""

    name: str
    recipe: str
    height: int
    width: int
    images: int = 1
    texts_per_image: int = 4


SIZES = (
    Size("small: EfficientNet-Lite0 + MiniLM-L6 shape, 224 x 224", "small", 224, 224, images=8),
    Size("r50: ResNet-50 + bert-base, 800 x 1333", "pretrain-r50", 800, 1333),
    Size("x152: ResNeXt-152 32x8d + bert-base, 600 x 1000", "pretrain-x152", 600, 1000),
)


def run_bench(names: list[str] | None = None, steps: int = 2) -> list[dict[str, Any]]:
    """Rows of {size, pairs, parameters, seconds_per_step, pairs_per_second, peak_gib, loss} on this machine.

    names: of SIZES, up to the colon; None: all. Raises UsageError for another.
    """
    known = {size.name.partition(":")[0]: size for size in SIZES}
    for name in names or ():
        if name not in known:
            raise UsageError(f"no size '{name}'; {nearest(name, known)}")
    rows = []
    for size in [known[name] for name in dict.fromkeys(names or known)]:
        command = [sys.executable, "-m", "pixelbert.bench.steps", json.dumps(asdict(size)), str(steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]
            rows.append({"size": size.name, "error": last})
        else:
            rows.append({"size": size.name, **json.loads(done.stdout.splitlines()[-1])})
    return rows


def measure(size: Size, steps: int) -> dict[str, Any]:
    """Train `steps` steps after one that warms up; the median step counts."""
    import statistics

    import torch

    from pixelbert.model import precision
    from pixelbert.model.memory import keep_freed
    from pixelbert.recipes.schema import load_recipe
    from pixelbert.tasks.pretraining import LossSettings, PretrainingObjective, loss_counts
    from pixelbert.training.optimizers import build_optimizers
    from pixelbert.training.setup import recompute_activations

    if size.recipe == "small":  # as training does where all images have one size
        keep_freed()
    recipe = load_recipe("pretrain-r50" if size.recipe == "small" else size.recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = precision.choose("auto", device)
    model = _model(size, recipe).to(device).train()
    dtype = precision.use(chosen, model, device)
    if recipe.train.gradient_checkpointing and size.recipe != "small":
        recompute_activations(model)
    objective = PretrainingObjective(model, dtype)
    optimizers, settings = build_optimizers(model, recipe.optim), LossSettings(sample_pixels=100)
    batch = _batch(size, model.config.text_config.vocab_size, device)
    counts, times, loss = loss_counts(batch, settings), [], 0.0
    for _ in range(steps + 1):
        started = time.perf_counter()
        sums = objective(batch, settings)
        total = sum(sums[name] / counts[name] for name in counts)
        assert isinstance(total, torch.Tensor)
        total.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loss = total.item()
        times.append(time.perf_counter() - started)
    pairs, seconds = size.images * size.texts_per_image, statistics.median(times[1:])
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else _peak_gib()
    return {
        "device": precision.detect(device).name, "precision": f"{chosen.backbone} CNN, {chosen.encoder} encoder",
        "parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 2), "images": size.images,
        "pairs": pairs, "seconds_per_step": round(seconds, 2), "pairs_per_second": round(pairs / seconds, 2),
        "peak_gib": round(peak, 2), "loss": round(loss, 3),
    }  # fmt: skip


def _model(size: Size, recipe: Any) -> Any:
    from pixelbert.model.backbone import wake_residuals
    from pixelbert.model.config import PixelBertConfig
    from pixelbert.model.modeling import PixelBertForPreTraining

    if size.recipe == "small":
        return PixelBertForPreTraining(
            PixelBertConfig(SMALL_TEXT, backbone="tf_efficientnet_lite0", visual_pool=False, num_sampled_pixels=20)
        )
    model = PixelBertForPreTraining(PixelBertConfig(backbone=recipe.backbone.name))
    wake_residuals(model.pixelbert.visual.body)  # its frozen norms have no pretrained weights here
    return model


def _batch(size: Size, vocabulary: int, device: Any) -> dict[str, Any]:
    """Texts of 20 pieces, every sixth hidden, half of them mismatched; images of noise."""
    import torch

    draw = torch.Generator().manual_seed(0)
    texts = size.images * size.texts_per_image
    ids = torch.randint(1000, vocabulary, (texts, 20), generator=draw)
    labels = torch.where(torch.arange(20) % 6 == 1, ids, -100)
    match = torch.arange(texts) % 2
    labels[match == 0] = -100
    batch = {
        "pixel_values": torch.randint(
            0, 256, (size.images, 3, size.height, size.width), generator=draw, dtype=torch.uint8
        ),
        "image_sizes": torch.tensor([[size.height, size.width]] * size.images),
        "image_of_text": torch.arange(texts) // size.texts_per_image,
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "match": match,
        "sampling_seed": torch.arange(texts),
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _peak_gib() -> float:
    """The process's largest resident size."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


if __name__ == "__main__":
    print(json.dumps(measure(Size(**json.loads(sys.argv[1])), int(sys.argv[2]))))
