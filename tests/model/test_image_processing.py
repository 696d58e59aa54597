"""Pixels against Pillow's own, or against pictures small enough to write down."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin, features

from pixelbert.errors import DataError
from pixelbert.model import image_processing
from pixelbert.model.image_processing import (
    BadImage,
    ImageLimits,
    ResizeRule,
    decode_image,
    load_image,
    resize,
)

AVIF = pytest.param("AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="a Pillow without AVIF"))
ONE_LEVEL = 1.0  # of 255, on average over an image: how near to Pillow every pixel path must stay


def draw_photo(height=240, width=320, seed=0):
    """Soft gradients, hard edges, thin lines and grain: what photos have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 200 / width, y * 200 / height, (x + y) * 100 / (height + width)], axis=2)
    image = Image.fromarray((base + rng.normal(0, 6, base.shape)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        cx, cy, r = rng.integers(0, width), rng.integers(0, height), rng.integers(3, max(4, height // 5))
        draw.ellipse([cx - r, cy - r, cx + r, cy + r], fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
        draw.line([cx, 0, cy, height], fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return image


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def pillow_resized(data, rule):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    height, width = rule.target(image.height, image.width)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def difference(a, b):
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


# ---- JPEG against Pillow

JPEGS = {
    "4:4:4": {"subsampling": 0, "quality": 92},
    "4:2:2": {"subsampling": 1, "quality": 75},
    "4:2:0": {"subsampling": 2, "quality": 64, "optimize": True},
    "progressive": {"progressive": True, "quality": 80},
    "restarts": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(240, 320), (97, 131), (8, 8), (1, 1), (3, 200)], ids=str)
def test_jpeg_equals_pillow(options, mode, size):
    data = encode(draw_photo(*size).convert(mode), "JPEG", **options)
    assert difference(decode_image(data), pillow(data)) <= ONE_LEVEL


def test_jpeg_without_the_fast_decoder(monkeypatch):
    data = encode(draw_photo(), "JPEG")
    fast = decode_image(data)
    monkeypatch.setattr(image_processing, "simplejpeg", None)
    assert difference(fast, decode_image(data)) <= ONE_LEVEL


RULES = [
    ResizeRule(),
    ResizeRule(600, 1000, multiple=64),
    ResizeRule(square=224),
    ResizeRule(64, None),
    ResizeRule(None, 100),
    ResizeRule(32, 48, multiple=32),
    ResizeRule(square=8),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("size", [(240, 320), (333, 83), (50, 201), (224, 224)], ids=str)
def test_loaded_pixels_equal_pillows(rule, size):
    data = encode(draw_photo(*size, seed=size[0]), "JPEG", quality=90)
    assert difference(load_image(data, rule), pillow_resized(data, rule)) <= ONE_LEVEL


def test_real_photos_equal_pillows(shared_data):
    files = sorted((shared_data / "coco-sample").glob("*2014/*.jpg"))[::10]
    assert files
    for file in files:
        data = file.read_bytes()
        for rule in (ResizeRule(), ResizeRule(square=224), ResizeRule(square=56)):
            assert difference(load_image(data, rule), pillow_resized(data, rule)) <= ONE_LEVEL, (file.name, rule)


def test_an_image_of_the_right_size_is_not_resized():
    data = encode(draw_photo(224, 224), "JPEG")
    assert np.array_equal(load_image(data, ResizeRule(square=224)), decode_image(data))
    pixels = decode_image(data)
    assert resize(pixels, (224, 224)) is pixels


# ---- EXIF orientation

STORED = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
UPRIGHT = {  # what a viewer shows for the stored rows 0 40 80 / 120 160 200
    1: [[0, 40, 80], [120, 160, 200]],
    2: [[80, 40, 0], [200, 160, 120]],
    3: [[200, 160, 120], [80, 40, 0]],
    4: [[120, 160, 200], [0, 40, 80]],
    5: [[0, 120], [40, 160], [80, 200]],
    6: [[120, 0], [160, 40], [200, 80]],
    7: [[200, 80], [160, 40], [120, 0]],
    8: [[80, 200], [40, 160], [0, 120]],
}


def exif(orientation):
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_by_hand(orientation, kind):
    image = Image.fromarray(STORED).convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode_image(encode(image, kind, exif=exif(orientation), **options))
    assert pixels[..., 0].tolist() == UPRIGHT[orientation]


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpegs(orientation, fast, monkeypatch):
    if not fast:
        monkeypatch.setattr(image_processing, "simplejpeg", None)
    data = encode(draw_photo(120, 200), "JPEG", exif=exif(orientation))
    assert difference(decode_image(data), pillow(data)) <= ONE_LEVEL
    rule = ResizeRule(60, None)
    assert difference(load_image(data, rule), pillow_resized(data, rule)) <= ONE_LEVEL


def test_orientation_of_an_opened_pil_image():
    image = Image.open(io.BytesIO(encode(Image.fromarray(STORED).convert("RGB"), "PNG", exif=exif(6))))
    assert decode_image(image)[..., 0].tolist() == UPRIGHT[6]


def test_impossible_orientation_is_ignored():
    for orientation in (0, 9, 255):
        data = encode(Image.fromarray(STORED).convert("RGB"), "PNG", exif=exif(orientation))
        assert decode_image(data)[..., 0].tolist() == UPRIGHT[1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored():
    data = encode(draw_photo(40, 60), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode_image(data).shape == (40, 60, 3)


# ---- colours


def png(width, height, depth, colour, rows, *chunks):
    """A PNG written by hand, for what Pillow cannot write."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\x00" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunk(*c) for c in chunks) + data + chunk(b"IEND", b"")


GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6


def u16(*values):
    return struct.pack(f">{len(values)}H", *values)


@pytest.mark.parametrize(
    "data, expected",
    [
        (png(2, 1, 16, GREY, [u16(0xFFFF, 0x4050)]), [[255] * 3, [64] * 3]),
        (png(2, 1, 16, RGB, [u16(0xFFFF, 0, 0x4050, 0x8000, 0x0100, 0x00FF)]), [[255, 0, 64], [128, 1, 0]]),
        (png(1, 1, 16, RGBA, [u16(0xFF00, 0, 0, 0xFFFF)]), [[255, 0, 0]]),
        (png(2, 1, 16, GREY_ALPHA, [u16(0x1000, 0xFFFF, 0x1000, 0)]), [[16] * 3, [255] * 3]),
        (png(2, 1, 8, RGBA, [bytes([10, 20, 30, 255, 10, 20, 30, 0])]), [[10, 20, 30], [255, 255, 255]]),
        (png(2, 1, 8, GREY_ALPHA, [bytes([10, 255, 10, 0])]), [[10] * 3, [255] * 3]),
        (png(8, 1, 1, GREY, [bytes([0b10100000])]), [[255] * 3, [0] * 3, [255] * 3] + [[0] * 3] * 5),
        (png(4, 1, 2, GREY, [bytes([0b00011011])]), [[0] * 3, [85] * 3, [170] * 3, [255] * 3]),
        (png(2, 1, 8, GREY, [bytes([7, 9])], (b"tRNS", u16(9))), [[7] * 3, [255] * 3]),
        (png(2, 1, 8, RGB, [bytes([7, 8, 9, 1, 2, 3])], (b"tRNS", u16(1, 2, 3))), [[7, 8, 9], [255, 255, 255]]),
        (png(2, 1, 8, 3, [bytes([0, 1])], (b"PLTE", bytes([9, 8, 7, 6, 5, 4]))), [[9, 8, 7], [6, 5, 4]]),
        (
            png(2, 1, 8, 3, [bytes([0, 1])], (b"PLTE", bytes([9, 8, 7, 6, 5, 4])), (b"tRNS", bytes([255, 0]))),
            [[9, 8, 7], [255, 255, 255]],
        ),
    ],
    ids=[
        "grey16",
        "rgb16",
        "rgba16",
        "la16",
        "rgba",
        "la",
        "1-bit",
        "2-bit",
        "grey-trns",
        "rgb-trns",
        "palette",
        "p-trns",
    ],
)
def test_png_colours_by_hand(data, expected):
    assert decode_image(data)[0].tolist() == expected


def test_half_transparent_is_half_white():
    data = png(1, 1, 8, RGBA, [bytes([0, 100, 200, 128])])
    alpha = 128 / 255
    expected = [alpha * c + (1 - alpha) * 255 for c in (0, 100, 200)]
    assert np.abs(decode_image(data)[0, 0] - expected).max() <= 1


def test_grey_is_scaled_and_not_clipped_when_it_has_16_bits():
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    for kind in ("PNG", "TIFF"):
        pixels = decode_image(encode(Image.fromarray(ramp), kind))
        assert np.array_equal(pixels, np.repeat((ramp // 256)[..., None], 3, axis=2))


@pytest.mark.parametrize("kind, tolerance", [("JPEG", 12), ("TIFF", 1)])
def test_cmyk_keeps_its_colours(kind, tolerance):
    colours = [(230, 30, 40), (20, 200, 60), (250, 250, 250), (10, 10, 10)]
    image = Image.new("RGB", (64, 16))
    for index, colour in enumerate(colours):
        image.paste(colour, (16 * index, 0, 16 * index + 16, 16))
    options = {"quality": 95} if kind == "JPEG" else {}
    data = encode(image.convert("CMYK"), kind, **options)  # Pillow writes the Adobe marker and inverts
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    pixels = decode_image(data)
    for index, colour in enumerate(colours):
        assert np.abs(pixels[8, 16 * index + 8].astype(int) - colour).max() <= tolerance


def test_ycck_jpeg_equals_pillow():
    data = encode(draw_photo(40, 60).convert("CMYK"), "JPEG")
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    ycck = data[: marker + 11] + b"\x02" + data[marker + 12 :]
    pixels = decode_image(ycck)
    assert np.array_equal(pixels, pillow(ycck)) and not np.array_equal(pixels, pillow(data))


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (20, 10), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    kinds = {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}
    if int(features.version("pil").split(".")[0]) >= 11:  # older ones write it damaged
        kinds["MPO"] = {}  # several JPEGs in one file, as some phones write
    for kind, options in kinds.items():
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        tolerance = 2 if kind == "MPO" else 0
        assert np.abs(decode_image(data).astype(int) - [255, 0, 0]).max() <= tolerance, kind


def test_transparent_gif_is_laid_on_white():
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    image.putpixel((0, 0), (200, 0, 0, 255))
    assert decode_image(encode(image, "GIF"))[0, :2].tolist() == [[200, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["BMP", "PPM", "JPEG2000", "TIFF", "WEBP", AVIF])
def test_other_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(draw_photo(32, 48), kind, **options)
    assert np.array_equal(decode_image(data), pillow(data))


# ---- what an image may come as


def test_every_kind_of_source_gives_the_same(tmp_path):
    image = draw_photo(30, 50)
    pixels = np.asarray(image)
    path = tmp_path / "photo.png"
    image.save(path)
    sources = [
        path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes()), image, pixels,
        pixels.transpose(2, 0, 1), torch.from_numpy(pixels.copy()), torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        pixels.astype(np.int64), pixels / 255, (pixels / 255).astype(np.float32), pixels.astype(np.uint16) * 257,
    ]  # fmt: skip
    for source in sources:
        result = decode_image(source)
        assert np.array_equal(result, pixels) and result.flags.c_contiguous, type(source)


# ---- bad input: one clear sentence, exit code 3


def test_a_bad_image_is_wrong_data():
    assert issubclass(BadImage, DataError) and issubclass(BadImage, ValueError) and BadImage.exit_code == 3


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "is empty"),
        (b"This is no photo but a note.\n" * 20, "not an image"),
        (b"\xff\xd8\xff", "not an image|damaged|cut off"),
        (b"\x89PNG\r\n\x1a\n", "not an image|damaged|cut off"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
    ],
    ids=["empty", "text", "jpeg-start", "png-start", "svg", "eps"],
)
def test_files_that_are_no_images(tmp_path, data, reason):
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(BadImage, match=reason) as error:
        decode_image(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut", "cut-and-closed"])
def test_truncated_jpeg(options, share, end):
    data = encode(draw_photo(), "JPEG", **options)
    with pytest.raises(BadImage, match=r"cut off|damaged|not an image"):
        decode_image(data[: int(len(data) * share)] + end)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", AVIF])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_others(kind, share):
    data = encode(draw_photo(), kind)
    with pytest.raises(BadImage):
        decode_image(data[: int(len(data) * share)])


def test_truncated_jpeg_without_the_fast_decoder(monkeypatch):
    monkeypatch.setattr(image_processing, "simplejpeg", None)
    data = encode(draw_photo(), "JPEG")
    with pytest.raises(BadImage, match="damaged or cut off"):
        decode_image(data[: len(data) // 2])


def test_stray_bytes_in_a_jpeg_do_no_harm():
    image = draw_photo(40, 60)
    data = encode(image, "JPEG")
    start_of_scan = data.index(b"\xff\xda")
    stray = data[:start_of_scan] + b"\x00\x00\x00" + data[start_of_scan:] + b"trailing notes"
    assert np.array_equal(decode_image(stray), decode_image(data))


@pytest.fixture
def no_decoding(monkeypatch):
    """Fails when anything is decoded: limits are for the header."""

    def refuse(*_, **__):
        raise AssertionError("decoded before its size was checked")

    for plugin in (PngImagePlugin.PngImageFile, Image.Image):
        monkeypatch.setattr(plugin, "load", refuse)
    monkeypatch.setattr(image_processing, "_decode_jpeg", refuse)


def test_40000_by_40000_png_is_refused_by_its_header(no_decoding):
    data = png(40_000, 40_000, 8, RGB, [b""])
    with pytest.raises(BadImage, match=r"1,600,000,000 pixels, more than the 89,478,485 allowed"):
        decode_image(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_format_is_measured_before_decoding(no_decoding):
    limits = ImageLimits(max_pixels=1000)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"):
        with pytest.raises(BadImage, match="allowed"):
            decode_image(IMAGES[kind], limits=limits)
    with pytest.raises(BadImage, match="10,000 x 9,500 pixels"):
        decode_image(png(10_000, 9_500, 8, RGB, [b""]))


IMAGES = {kind: encode(draw_photo(40, 60), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")}


def test_limits_hold_for_pil_images_and_arrays_too():
    limits = ImageLimits(max_pixels=1000)
    for source in (draw_photo(40, 60), np.zeros((40, 60, 3), np.uint8), torch.zeros(3, 40, 60)):
        with pytest.raises(BadImage, match="60 x 40 pixels, more than the 1,000 allowed"):
            decode_image(source, limits=limits)


def test_too_many_bytes(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(IMAGES["PNG"])
    size = len(IMAGES["PNG"])
    assert decode_image(path, limits=ImageLimits(max_bytes=size)).shape == (40, 60, 3)
    for source in (path, IMAGES["PNG"]):
        with pytest.raises(BadImage, match=f"{size:,} bytes, more than the {size - 1:,} allowed"):
            decode_image(source, limits=ImageLimits(max_bytes=size - 1))


def test_a_thin_image_cannot_be_blown_up():
    with pytest.raises(BadImage, match="would be resized to"):
        load_image(np.zeros((1, 20_000, 3), np.uint8), ResizeRule(800, None))


def test_paths_that_cannot_be_read(tmp_path):
    for source, reason in (
        (tmp_path / "none.jpg", "No such file"),
        (tmp_path, "directory"),
        ("https://example.org/a.jpg", "URL"),
    ):
        with pytest.raises(BadImage, match=reason):
            decode_image(source)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(IMAGES)),
    damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_pixels_or_bad_image(kind, damage):
    data = bytearray(IMAGES[kind])
    for place, value in damage:
        data[int(place * (len(data) - 1))] = value
    try:
        pixels = decode_image(bytes(data), limits=ImageLimits(max_pixels=10**6))
    except BadImage:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


@pytest.mark.parametrize(
    "size, target", [((50, 70), (120, 30)), ((300, 200), (7, 5)), ((1, 40), (3, 9)), ((9, 1), (2, 2))]
)
def test_resize_equals_pillow(size, target):
    pixels = np.asarray(draw_photo(*size))
    expected = np.asarray(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR))
    result = resize(pixels, target)
    assert np.abs(result.astype(int) - expected).max() <= 2 and difference(result, expected) <= 0.5
