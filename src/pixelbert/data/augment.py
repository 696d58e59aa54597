"""Parts of photos, for training and scoring: beyond the paper, off in its recipes. Never a flip: "left" stays left."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance


def random_crop(pixels: np.ndarray, draw: np.random.Generator, smallest: float) -> np.ndarray:
    """A random part of at least `smallest` of the area, aspect within 4:5 to 5:4 of the photo's: uint8 [h, w, 3]."""
    height, width = pixels.shape[:2]
    area = draw.uniform(smallest, 1.0)
    stretch = np.exp(draw.uniform(np.log(0.8), np.log(1.25)))
    h = min(height, max(1, round(height * np.sqrt(area / stretch))))
    w = min(width, max(1, round(width * np.sqrt(area * stretch))))
    top, left = int(draw.integers(height - h + 1)), int(draw.integers(width - w + 1))
    part = Image.fromarray(pixels[top : top + h, left : left + w])
    return np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))


def middle(pixels: np.ndarray) -> np.ndarray:
    """The middle six sevenths of either side, as large as the photo again: uint8 [h, w, 3]. Nothing random."""
    height, width = pixels.shape[:2]
    top, left = round(height / 14), round(width / 14)
    part = Image.fromarray(pixels[top : height - top, left : width - left])
    return np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))


def random_colour(pixels: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Brightness and contrast changed by up to a quarter; hue stays, since captions name colours."""
    image = Image.fromarray(pixels)
    image = ImageEnhance.Brightness(image).enhance(draw.uniform(0.75, 1.25))
    image = ImageEnhance.Contrast(image).enhance(draw.uniform(0.75, 1.25))
    return np.asarray(image)


def augment(pixels: np.ndarray, kind: str, draw: np.random.Generator, crop_scale: float) -> np.ndarray:
    """`none`, `crop` or `crop-colour` of a uint8 [h, w, 3] image, of the same size."""
    if kind == "none":
        return pixels
    pixels = random_crop(pixels, draw, crop_scale)
    return random_colour(pixels, draw) if kind == "crop-colour" else pixels
