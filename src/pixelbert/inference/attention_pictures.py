"""Attention drawn over the photo: one word a picture, or every word of a sentence on one sheet.

Pillow does the drawing. The colours run from dark violet over red to pale yellow in OKLab (Ottosson 2020) with
lightness growing evenly, so that equal steps of heat look equal, also in grey print. Heat is told in multiples of an
even spread: 1 is what every cell would get if the photo were looked at evenly.
"""

from __future__ import annotations

import io
import math
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixelbert.data.files import check_output
from pixelbert.errors import UsageError, nearest
from pixelbert.inference.attention import AttentionMap
from pixelbert.inference.cells import Cells

STYLES = ("smooth", "cells")
_INK, _PALE, _PAPER = (32, 30, 38), (120, 116, 126), (255, 255, 255)
_VEIL, _GLOW = 0.3, 0.8  # how far the photo fades where nobody looks, and how far heat covers it where all look
_GAP, _NARROWEST = 12, 340


def overlay(
    found: AttentionMap,
    pixels: np.ndarray,
    *,
    style: str = "smooth",
    most: float | None = None,
    size: int | None = None,
) -> Image.Image:
    """The heat of one word over the photo, nothing else: RGB of the photo's shape.

    Args:
        pixels: the photo, uint8 [H, W, 3]: `Photo.pixels`.
        style: `smooth`, or `cells` with every cell's true edges.
        most: the heat (see `heat_of`) that gets the brightest colour; None: the map's own highest.
        size: the longer edge in pixels; None: as large as the photo.
    """
    shape = _fitted(pixels.shape[:2], size)
    most = most or highest([found])
    heat = spread(found, shape, style) / most
    photo = np.asarray(Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.LANCZOS), np.float32)
    grey = photo @ np.array([0.299, 0.587, 0.114], np.float32)
    faded = (1 - _VEIL) * (0.4 * photo + 0.6 * grey[..., None])
    heat = heat.clip(0, 1)
    amount = (_GLOW * heat**0.7)[..., None].astype(np.float32)  # low heat already shows, but through it the photo
    mixed = (1 - amount) * (faded + (photo - faded) * heat[..., None]) + amount * colours()[(heat * 255).astype(int)]
    return Image.fromarray(np.clip(np.rint(mixed), 0, 255).astype(np.uint8))


def heat_of(found: AttentionMap) -> np.ndarray:
    """float64 [rows, columns]: each cell's weight as a multiple of what it has in an even map; 0 on padding."""
    return found.weights * found.cells.valid.sum()


def highest(maps: Sequence[AttentionMap]) -> float:
    """The highest heat of some maps; at least 1, so that no map of zeros divides by it."""
    return max(1.0, *(float(heat_of(found).max()) for found in maps))


def spread(found: AttentionMap, shape: tuple[int, int], style: str = "smooth") -> np.ndarray:
    """The heat of every pixel of the photo drawn at `shape` (height, width): float64 of that shape.

    The cells are laid out at the size the network saw, then what lies past the photo's edge is cut off. Raises
    UsageError for another style.
    """
    if style not in STYLES:
        raise UsageError(f"no style '{style}'; {nearest(style, STYLES)}")
    heat, cells = heat_of(found), found.cells
    if style == "cells":
        return heat[_cell_of(cells, 0, shape[0])[:, None], _cell_of(cells, 1, shape[1])[None]]
    rows, columns = cells.valid_shape
    seen = Image.fromarray(heat[:rows, :columns].astype(np.float32))
    # A box in cells, fractions and all: Pillow resamples just the part of the last cells that lies in the photo.
    box = (0.0, 0.0, cells.resized[1] / cells.stride, cells.resized[0] / cells.stride)
    smooth = seen.resize(shape[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(smooth, np.float64).clip(0)


def _cell_of(cells: Cells, axis: int, length: int) -> np.ndarray:
    """The row (or column) of the cell under each of `length` pixels along an edge of the drawn photo."""
    middles = (np.arange(length) + 0.5) * (cells.resized[axis] / length)
    return np.minimum((middles // cells.stride).astype(int), cells.valid_shape[axis] - 1)


@lru_cache(maxsize=1)
def colours() -> np.ndarray:
    """float32 [256, 3], sRGB 0..255: OKLab lightness from 0.28 to 0.93 in even steps, hue from violet to yellow."""
    t = np.linspace(0, 1, 256)
    lightness, hue = 0.28 + 0.65 * t, np.radians(-60 + 165 * t)
    chroma = 0.10 + 0.11 * np.sin(np.pi * t)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_rgb @ (to_lms @ lab) ** 3).clip(0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (255 * curved.T).astype(np.float32)


# -- pictures with words on them ---------------------------------------------------------------------------------------


def picture(
    found: AttentionMap, pixels: np.ndarray, sentence: str, *, style: str = "smooth", size: int = 640
) -> Image.Image:
    """One word: the overlay, the sentence with the word marked, and a thin legend. `size`: the photo's longer edge."""
    return _page([found], [overlay(found, pixels, style=style, size=size)], sentence, 1, marked=found)


def sheet(
    maps: Sequence[AttentionMap],
    pixels: np.ndarray,
    sentence: str,
    *,
    style: str = "smooth",
    size: int = 260,
    columns: int | None = None,
    one_scale: bool = False,
) -> Image.Image:
    """Every word's overlay beside the others, after the photo itself; beneath each its word and highest heat.

    size: the longer edge of each, in pixels. one_scale: the brightest colour is the highest heat of all words, so that
    they compare (and one word of a single bright cell can darken all others), not each word's own.

    Raises UsageError when there is no map.
    """
    if not maps:
        raise UsageError("a sheet needs at least one word's map")
    shape = _fitted(pixels.shape[:2], size)
    photo = Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.LANCZOS)
    most = highest(maps) if one_scale else None
    panels = [photo, *(overlay(found, pixels, style=style, most=most, size=size) for found in maps)]
    return _page(maps, panels, sentence, columns, one_scale=one_scale)


def write_png(path: str | Path, image: Image.Image) -> None:
    """The picture as PNG, whole or not at all."""
    path = Path(path)
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.write_bytes(png(image))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def png(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


# Beyond ASCII: fonts that many systems have; Pillow's own has no such letters.
_WIDE_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "arial.ttf")
_PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u00df", "''\"\"--.s")


def _drawable(sentence: str) -> tuple[str, Callable[[float], Any]]:
    """The sentence as it can be drawn, every character in its place, and the font of a size.

    Without a font for letters beyond ASCII, these are drawn as the letters they are made from, others as a mark.
    """
    if sentence.isascii():
        return sentence, ImageFont.load_default
    for name in _WIDE_FONTS:
        try:
            ImageFont.truetype(name, 17)
        except OSError:
            continue
        return sentence, partial(ImageFont.truetype, name)
    letters = (unicodedata.normalize("NFKD", c.translate(_PLAIN))[0] for c in sentence)
    return "".join(c if c.isascii() else "?" for c in letters), ImageFont.load_default


def _page(
    maps: Sequence[AttentionMap],
    panels: Sequence[Image.Image],
    sentence: str,
    columns: int | None,
    marked: AttentionMap | None = None,
    one_scale: bool = True,
) -> Image.Image:
    """Panels in rows under the sentence, the legend at the bottom; several panels have their word beneath.

    A column is as wide as its caption at the least, and the page as wide as a sentence wants, also for slivers.
    """
    sentence = re.sub(r"\s", " ", sentence)  # one line; every character keeps its place
    sentence, fonts = _drawable(sentence)
    text, small = fonts(17), fonts(13)
    names = ["the photo", *(f"{_drawable(found.word.text)[0]}   {_told(found)}" for found in maps)]
    caption = 0 if marked else 22
    wide, high = max([panels[0].width, *(_length(name, small) for name in names if caption)]), panels[0].height
    columns = columns or _columns(len(panels), (high, wide))
    rows = math.ceil(len(panels) / columns)
    page_wide = max(columns * (wide + _GAP) + _GAP, _NARROWEST)
    lines = _lines(sentence, text, page_wide - 2 * _GAP)
    top = _GAP + 24 * len(lines) + 4
    page = Image.new("RGB", (page_wide, top + rows * (high + caption + _GAP) + 52), _PAPER)
    draw = ImageDraw.Draw(page)
    span = (marked.word.start, marked.word.end) if marked else (0, 0)
    for number, (start, line) in enumerate(lines):
        _write(draw, (_GAP, _GAP + 24 * number), line, text, (span[0] - start, span[1] - start))
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        x, y = _GAP + column * (wide + _GAP), top + row * (high + caption + _GAP)
        page.paste(panel, (x, y))
        if caption:
            draw.text((x, y + high + 3), names[number], fill=_INK if number else _PALE, font=small)
    most = f"{highest(maps):.1f} x even" if one_scale else "each word's highest, x even"
    empty = not any(found.weights.any() for found in maps)
    end = _legend(page, str(maps[0].method), "found nothing" if empty else most, small)
    return page.crop((0, 0, page_wide, end))


def _told(found: AttentionMap) -> str:
    """The highest heat of a map; a map of zeros has found nothing."""
    return f"{float(heat_of(found).max()):.1f}" if found.weights.any() else "nothing"


def _length(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> int:
    return math.ceil(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text, font=font))


def _legend(page: Image.Image, method: str, most: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> int:
    """A thin bar of the colours at the bottom: from 0 to the highest heat, in multiples of an even spread.

    The method stands at its right, or beneath where that is too narrow. Returns where the page ends.
    """
    draw, y = ImageDraw.Draw(page), page.height - 44
    length = min(180, (page.width - 2 * _GAP) // 3)
    bar = Image.fromarray(colours().astype(np.uint8)[None].repeat(8, 0)).resize((length, 8))
    left = _GAP + 14
    page.paste(bar, (left, y + 5))
    draw.text((_GAP, y), "0", fill=_PALE, font=font)
    draw.text((left + length + 6, y), most, fill=_PALE, font=font)
    end, start = left + length + 6 + _length(most, font) + 16, page.width - _GAP - _length(method, font)
    beside = end < start
    draw.text((start, y) if beside else (_GAP, y + 19), method, fill=_PALE, font=font)
    return page.height - (18 if beside else 0)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    line: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    marked: tuple[int, int],
) -> None:
    """A line of text with the characters from `marked[0]` to `marked[1]` on a tinted ground."""
    start, end = max(0, marked[0]), min(len(line), marked[1])
    if start < end:
        left = at[0] + draw.textlength(line[:start], font=font)
        right = at[0] + draw.textlength(line[:end], font=font)
        draw.rounded_rectangle((left - 1, at[1] - 1, right + 1, at[1] + 22), 4, fill=(255, 214, 130))
    draw.text(at, line, fill=_INK, font=font)


def _lines(sentence: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[tuple[int, str]]:
    """The sentence in lines that fit, each with the place of its first character."""
    lines, start, end = [], 0, 0
    for place in [*(i for i, letter in enumerate(sentence) if letter == " "), len(sentence)]:
        if end > start and _length(sentence[start:place], font) > width:
            lines.append((start, sentence[start:end]))
            start = end + 1
        end = place
    return [*lines, (start, sentence[start:])]


def _columns(panels: int, shape: tuple[int, int]) -> int:
    """So many panels a row that the sheet is about half wider than high."""
    return max(1, min(panels, round(math.sqrt(1.5 * panels * (shape[0] + 22) / shape[1]))))


def _fitted(shape: Sequence[int], size: int | None) -> tuple[int, int]:
    """(height, width) with the longer edge `size`."""
    scale = size / max(shape) if size else 1.0
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
