"""From an image's place to its pixels; messages name the file, the place in a shard and the record."""

import io

import numpy as np
import pytest
from PIL import Image

from pixelbert.data.images import check_image, describe, load_ref, read_ref
from pixelbert.data.records import ImageRef
from pixelbert.errors import DataError
from pixelbert.model.image_processing import ImageLimits, ResizeRule

SIZE = ResizeRule(None, None)


def photo(colour=(200, 100, 50), size=(30, 20)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def test_a_file_and_a_slice_of_a_shard_give_their_pixels(tmp_path):
    first, second = photo((1, 2, 3)), photo((4, 5, 6))
    (tmp_path / "a.png").write_bytes(first)
    (tmp_path / "shard.tar").write_bytes(b"x" * 100 + first + second + b"y" * 100)
    whole = ImageRef(str(tmp_path / "a.png"))
    slices = [ImageRef(str(tmp_path / "shard.tar"), 100 + place, len(first)) for place in (0, len(first))]
    assert len(first) == len(second)
    for ref, colour in [(whole, [1, 2, 3]), (slices[0], [1, 2, 3]), (slices[1], [4, 5, 6])]:
        pixels = load_ref(ref, SIZE)
        assert pixels.shape == (20, 30, 3)
        assert (pixels == colour).all()
    assert load_ref(whole, ResizeRule(square=8)).shape == (8, 8, 3)
    assert check_image(whole) == (20, 30)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"not a photo", "is not an image"),
        (photo()[:60], "damaged|cut off"),
        (None, "cannot be read"),
    ],
    ids=["empty", "text", "truncated", "missing"],
)
@pytest.mark.parametrize("loads", [True, False])
def test_messages_name_file_and_record(tmp_path, data, reason, loads):
    path = tmp_path / "photo.jpg"
    if data is not None:
        path.write_bytes(data)
    ref = ImageRef(str(path))
    with pytest.raises(DataError, match=reason) as error:
        load_ref(ref, SIZE, record="cap-7") if loads else check_image(ref, record="cap-7")
    message = str(error.value)
    assert message.startswith(f"{path} (record cap-7): ")
    assert message.count(str(path)) == 1
    assert "\n" not in message
    assert error.value.exit_code == 3


def test_a_place_in_a_shard_is_named(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(DataError, match="at byte 512: is not an image"):
        load_ref(ImageRef(str(path), 512, 100), SIZE)
    assert describe(ImageRef("a.jpg")) == "a.jpg"


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "photo.png"
    path.write_bytes(photo())
    monkeypatch.setattr(ImageRef, "read", lambda self: pytest.fail("read before its size was checked"))
    for ref in (ImageRef(str(path)), ImageRef(str(path), 0, 500)):
        with pytest.raises(DataError, match="more than the 10 allowed"):
            load_ref(ref, SIZE, ImageLimits(max_bytes=10))


def test_urls_are_read_through_fsspec():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://bucket/a.png", "wb") as file:
        file.write(photo((9, 9, 9)))
    assert (load_ref(ImageRef("memory://bucket/a.png"), SIZE) == 9).all()
    assert read_ref(ImageRef("memory://bucket/a.png")) == photo((9, 9, 9))
    with pytest.raises(DataError, match=r"memory://bucket/none\.png"):
        load_ref(ImageRef("memory://bucket/none.png"), SIZE)


def test_real_shards_of_photos(shared_data):
    """The slice that a tar's own index names decodes to the photo that tarfile extracts."""
    import tarfile

    path = shared_data / "flickr8k" / "val-00000.tar"
    with tarfile.open(path) as shard:
        for member in [member for member in shard if member.isfile()][::250]:
            file = shard.extractfile(member)
            assert file is not None
            expected = np.asarray(Image.open(file).convert("RGB"))
            pixels = load_ref(ImageRef(str(path), member.offset_data, member.size), ResizeRule(square=224))
            assert np.abs(pixels.astype(int) - expected).mean() <= 1
