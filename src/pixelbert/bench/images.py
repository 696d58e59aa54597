"""How fast encoded photos become pixels, beside Pillow: `python -m pixelbert.bench.images [FOLDER]`.

Every way is timed in turn over the same photos, round after round in one process and thread, so that other work on
the machine slows all of them alike; the median round counts. Without a folder it draws its photos.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pixelbert.model.image_processing import ResizeRule, decode_image, load_image

Way = Callable[[bytes], np.ndarray]
RULES = {
    "800 / 1333": ResizeRule(),
    "600 / 1000": ResizeRule(600, 1000),
    "224 x 224": ResizeRule(square=224),
}


def draw_photos(count: int = 20, height: int = 480, width: int = 640) -> list[bytes]:
    """JPEGs of soft noise at several scales: as costly to decode as photos are."""
    rng = np.random.default_rng(0)
    photos = []
    for _ in range(count):
        pixels = np.zeros((height, width, 3))
        for scale in (4, 16, 64):
            coarse = rng.integers(0, 256, (height // scale, width // scale, 3), dtype=np.uint8)
            pixels += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 3.0
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=85)
        photos.append(file.getvalue())
    return photos


def pillow_decode(data: bytes) -> np.ndarray:
    """uint8 [h, w, 3] by Pillow alone."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_load(data: bytes, rule: ResizeRule) -> np.ndarray:
    """uint8 [h, w, 3] by Pillow alone, resized by the rule."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    height, width = rule.target(image.height, image.width)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def measure(ways: dict[str, Way], photos: Sequence[bytes], rounds: int) -> dict[str, float]:
    """Median milliseconds a photo of each way, the ways taking turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first round warms up
        for name, way in ways.items():
            start = time.perf_counter()
            for photo in photos:
                way(photo)
            times[name].append((time.perf_counter() - start) / len(photos) * 1000)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def deviation(way: Way, reference: Way, photos: Sequence[bytes]) -> tuple[float, float]:
    """Mean and largest mean difference from the reference over the photos, in levels of 255."""
    values = [float(np.abs(way(photo).astype(int) - reference(photo)).mean()) for photo in photos]
    return statistics.fmean(values), max(values)


def report(photos: Sequence[bytes], rounds: int) -> str:
    """The table that the command prints."""
    pairs: list[tuple[str, Way, Way]] = [("decode", decode_image, pillow_decode)]
    for name, rule in RULES.items():
        pairs.append((name, partial(load_image, rule=rule), partial(pillow_load, rule=rule)))
    lines = [f"{len(photos)} photos, {rounds} rounds, one thread", ""]
    lines.append(f"{'':12} {'Pillow ms':>10} {'ours ms':>9} {'ratio':>6} {'mean diff':>10} {'largest':>8}")
    for name, ours, pillow in pairs:
        times = measure({"pillow": pillow, "ours": ours}, photos, rounds)
        mean, largest = deviation(ours, pillow, photos)
        ratio = times["pillow"] / times["ours"]
        lines.append(f"{name:12} {times['pillow']:10.2f} {times['ours']:9.2f} {ratio:6.2f} {mean:10.4f} {largest:8.4f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, help="JPEGs to use, looked for at any depth")
    parser.add_argument("--photos", type=int, default=50, help="at most so many (default 50)")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.folder is None:
        photos = draw_photos()
    else:
        files = sorted(options.folder.rglob("*.jpg"))
        if not files:
            parser.error(f"{options.folder}: no *.jpg in it")
        step = max(1, len(files) // options.photos)
        photos = [file.read_bytes() for file in files[::step][: options.photos]]
    print(report(photos, options.rounds))


if __name__ == "__main__":
    main()
