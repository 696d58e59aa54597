"""Broken images are found without decoding whole ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelbert.data import checks
from pixelbert.data.checks import check_all, check_header
from pixelbert.data.images import ImageLimits
from pixelbert.data.records import ImageRef
from pixelbert.errors import DataError

LIMITS = ImageLimits()


def encode(kind="JPEG", size=(120, 90), **options):
    values = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


def with_large_exif():
    exif = Image.Exif()
    exif[0x9286] = "x" * 60000
    # a thumbnail-like end marker inside the EXIF must not be taken for the picture's
    exif[0x010E] = "\udcff\udcd9".encode("utf-8", "surrogateescape").decode("latin-1")
    return encode(exif=exif, icc_profile=b"p" * 20000)


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def reason_of(path, data, limits=LIMITS, how="header"):
    path.write_bytes(data)
    (reason,) = check_all([ImageRef(str(path))], how, limits, lambda _: None)
    return reason


WHOLE = {
    "jpeg": encode(),
    "progressive": encode(progressive=True),
    "grey": encode("JPEG", quality=5),
    "large header": with_large_exif(),
    "padded": encode() + bytes(50_000),
    "png": encode("PNG"),
    "webp": encode("WEBP"),
    "gif": encode("GIF"),
    "bmp": encode("BMP"),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("how", ["header", "full"])
def test_whole_images_pass(tmp_path, name, how):
    assert reason_of(tmp_path / "a.jpg", WHOLE[name], how=how) == ""


@pytest.mark.parametrize("name", ["jpeg", "progressive", "large header", "png", "webp", "gif", "bmp"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_cut_off_images_do_not(tmp_path, name, keep):
    data = WHOLE[name]
    assert reason_of(tmp_path / "a.jpg", data[: int(len(data) * keep)]) != ""


@settings(max_examples=60)
@given(cut=st.integers(0, len(WHOLE["jpeg"]) - 3))
def test_a_jpeg_cut_anywhere_is_found(tmp_path_factory, cut):
    assert reason_of(tmp_path_factory.mktemp("cut") / "a.jpg", WHOLE["jpeg"][:cut]) != ""


def test_a_jpeg_filled_up_with_zeros_is_found(tmp_path):
    data = WHOLE["jpeg"]
    assert "cut off" in reason_of(tmp_path / "a.jpg", data[: len(data) // 2] + bytes(len(data) // 2))


def test_whole_jpegs_are_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "check_image", lambda *_: pytest.fail("decoded"))
    for name in ("jpeg", "progressive", "large header", "padded", "png", "webp"):
        assert reason_of(tmp_path / "a.jpg", WHOLE[name]) == ""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"this is a text file\n" * 5, "is not an image"),
        (b"<html><body>404</body></html>", "is not an image"),
        (png(40_000, 40_000), "has 40,000 x 40,000 pixels, more than the 89,478,485 allowed"),
        (png(0, 5), "has no pixels"),
        (b"\xff\xd8\xff" + b"a" * 100, ""),
    ],
)
def test_what_is_no_usable_image(tmp_path, data, reason):
    told = reason_of(tmp_path / "a.jpg", data)
    assert told
    assert reason in told
    assert str(tmp_path) not in told  # the caller names the file


def test_limits(tmp_path):
    data = WHOLE["jpeg"]
    small = ImageLimits(max_bytes=len(data) - 1)
    assert "bytes, more than" in reason_of(tmp_path / "a.jpg", data, small)
    for kind in ("jpeg", "png", "webp", "gif"):
        assert "120 x 90 pixels, more than" in reason_of(tmp_path / "a.jpg", WHOLE[kind], ImageLimits(max_pixels=10799))
        assert reason_of(tmp_path / "a.jpg", WHOLE[kind], ImageLimits(max_pixels=10800)) == ""


def test_an_image_inside_a_shard(tmp_path):
    data = WHOLE["jpeg"]
    (tmp_path / "a.tar").write_bytes(b"\xff\xd9" * 50 + data[:-50] + b"\xff\xd9" * 50)
    check_header(ImageRef(_shard(tmp_path, data), 100, len(data)), LIMITS)
    cut = ImageRef(str(tmp_path / "a.tar"), 100, len(data) - 50)  # end markers before and behind are not its own
    with pytest.raises(DataError, match="cut off"):
        check_header(cut, LIMITS)
    with pytest.raises(DataError, match="the shard is cut off"):
        check_header(ImageRef(str(tmp_path / "a.tar"), 100, 10**6), LIMITS)


def _shard(tmp_path, data):
    (tmp_path / "b.tar").write_bytes(bytes(100) + data + bytes(100))
    return str(tmp_path / "b.tar")


def test_answers_come_in_order_whatever_the_threads(tmp_path):
    refs = []
    for i in range(2500):
        path = tmp_path / f"{i % 7}.jpg"
        if i < 7:
            path.write_bytes(WHOLE["jpeg"] if i % 2 else b"text")
        refs.append(ImageRef(str(path)))
    done: list[int] = []
    reasons = list(check_all(refs, "header", LIMITS, done.append))
    assert [bool(r) for r in reasons] == [(i % 7) % 2 == 0 for i in range(2500)]
    assert sum(done) == 2500


def test_a_vanished_file_and_a_url(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe("/photos/a.jpg", WHOLE["jpeg"])
    refs = [ImageRef(str(tmp_path / "gone.jpg")), ImageRef("memory://photos/a.jpg"), ImageRef("memory://photos/b.jpg")]
    reasons = list(check_all(refs, "header", LIMITS, lambda _: None))
    assert [bool(r) for r in reasons] == [True, False, True]
