"""The processor's tensors against its parts, and its folder against transformers' Auto classes."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

import pixelbert
from pixelbert.errors import DataError, UsageError
from pixelbert.model.image_processing import BadImage, ResizeRule, load_image
from pixelbert.model.processor import PixelBertImageProcessor, PixelBertProcessor
from pixelbert.model.tokenization import load_tokenizer, train_wordpiece

TEXTS = ["a dog runs", "two red dogs run through the deep snow", "snow"]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(train_wordpiece(TEXTS * 3, 200))


@pytest.fixture
def processor(tokenizer):
    return PixelBertProcessor(PixelBertImageProcessor(shorter=40, longer=70), tokenizer)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_texts_are_padded_to_the_longest(processor, tokenizer):
    batch = processor(text=TEXTS)
    assert sorted(batch) == ["attention_mask", "input_ids"]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
    expected = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert batch["input_ids"].shape == (3, max(map(len, expected)))
    for ids, mask, alone in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), expected, strict=True):
        rest = len(ids) - len(alone)
        assert ids == alone + [tokenizer.pad_token_id] * rest
        assert mask == [1] * len(alone) + [0] * rest


def test_texts_are_cut_to_32_wordpieces(processor):
    ids = processor(text="dog " * 100)["input_ids"][0].tolist()
    assert len(ids) == 32
    assert (ids[0], ids[-1]) == (2, 3)
    assert processor(text="dog " * 100, max_length=7)["input_ids"].shape == (1, 7)
    assert processor(text="dog", padding="max_length")["input_ids"].shape == (1, 32)


def test_images_of_several_sizes(processor):
    pictures = [picture(100, 150), picture(50, 20), picture(40, 60)]
    batch = processor(images=pictures)
    rule = ResizeRule(40, 70)
    assert batch["image_sizes"].tolist() == [list(rule.target(*p.shape[:2])) for p in pictures]
    assert batch["image_sizes"].tolist() == [[40, 60], [70, 28], [40, 60]]
    assert batch["pixel_values"].shape == (3, 3, 128, 64)
    assert batch["pixel_values"].dtype == torch.uint8
    for source, pixels, (h, w) in zip(pictures, batch["pixel_values"], batch["image_sizes"].tolist(), strict=True):
        assert np.array_equal(pixels[:, :h, :w].permute(1, 2, 0).numpy(), load_image(source, rule))
        assert int(pixels[:, h:].sum()) == int(pixels[:, :, w:].sum()) == 0


def test_images_of_one_size_are_not_padded(processor):
    assert processor(images=[picture(40, 60), picture(80, 120)])["pixel_values"].shape == (2, 3, 40, 60)


def test_every_way_to_give_images(processor, tmp_path):
    image = Image.fromarray(picture(40, 60))
    path = tmp_path / "a.png"
    image.save(path)
    expected = processor(images=image)
    tensor = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    for source in (path, str(path), path.read_bytes(), np.asarray(image), tensor, [image], (path,), tensor[None]):
        batch = processor(images=source, text="a dog")
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
        assert torch.equal(batch["image_sizes"], expected["image_sizes"])
        assert batch["input_ids"].shape[0] == 1


def test_numpy_out(processor):
    batch = processor(images=picture(40, 60), text="a dog", return_tensors="np")
    assert {name: type(value) for name, value in batch.items()} == dict.fromkeys(
        processor.model_input_names, np.ndarray
    )
    assert batch["pixel_values"].dtype == np.uint8


@pytest.mark.parametrize(
    "arguments",
    [{}, {"text": []}, {"images": []}, {"text": [3]}, {"text": "a", "return_tensors": "tf"}],
    ids=["nothing", "no-texts", "no-images", "number", "tf"],
)
def test_senseless_calls(processor, arguments):
    with pytest.raises(UsageError):
        processor(**arguments)


def test_a_bad_image_is_named(processor, tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not a photo")
    with pytest.raises(DataError, match="notes.jpg: is not an image"):
        processor(images=[picture(4, 4), path])
    with pytest.raises(BadImage, match="image 2: is empty"):
        processor(images=[picture(4, 4), b""])
    with pytest.raises(BadImage, match=r"none\.jpg: cannot be read"):
        processor(images=str(tmp_path / "none.jpg"))


def test_limits_are_the_processors_own(tokenizer):
    processor = PixelBertProcessor(PixelBertImageProcessor(max_pixels=1000), tokenizer)
    with pytest.raises(BadImage, match="60 x 40 pixels, more than the 1,000 allowed"):
        processor(images=picture(40, 60))


def test_half_a_surrogate_pair_does_not_stop_a_batch(processor):
    assert processor(text=["a dog \ud83d"])["input_ids"].shape[0] == 1


def test_round_trip(processor, tmp_path):
    pictures = [picture(100, 150), picture(50, 20)]
    expected = processor(images=pictures, text=TEXTS)
    processor.max_length = 9
    written = processor.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.rpartition("/")[2] for path in written)
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for loaded in (PixelBertProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is pixelbert.PixelBertProcessor
        assert loaded.max_length == 9
        assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
        assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
        batch = loaded(images=pictures, text=TEXTS, max_length=32)
        for name, tensor in expected.items():
            assert torch.equal(batch[name], tensor), name
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    for path in again.iterdir():
        if path.name != "tokenizer_config.json":  # there transformers notes that it was loaded from a folder
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert load_tokenizer(tmp_path)(TEXTS)["input_ids"] == AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"]


def test_image_processor_alone(tmp_path):
    original = PixelBertImageProcessor(square=224, multiple=32, max_bytes=1000, enlarge=False)
    original.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["square"] == 224
    for loaded in (PixelBertImageProcessor.from_pretrained(tmp_path), AutoImageProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is PixelBertImageProcessor
        assert loaded.to_dict() == original.to_dict()
        assert loaded.rule == ResizeRule(square=224, multiple=32, enlarge=False)
    assert PixelBertImageProcessor.from_pretrained(tmp_path, square=None, shorter=60).rule.shorter == 60
    with io.BytesIO() as file:
        Image.fromarray(picture(30, 40)).save(file, "PNG")
        assert PixelBertImageProcessor(square=8)(file.getvalue())["pixel_values"].shape == (1, 3, 8, 8)


def test_senseless_settings(tokenizer):
    for arguments in ({"shorter": 0}, {"size_divisor": 0}, {"max_bytes": 0}, {"shorter": 9, "longer": 3}):
        with pytest.raises(UsageError):
            PixelBertImageProcessor(**arguments)
    with pytest.raises(UsageError, match="max_length"):
        PixelBertProcessor(PixelBertImageProcessor(), tokenizer, max_length=2)


def test_a_full_disk_leaves_the_earlier_files(processor, tmp_path, monkeypatch):
    processor.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    processor.image_processor.shorter = 50

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pixelbert.model.processor.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        processor.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("edges", [(None, 900, None), (None, None, None), (64, None, None), (None, 150, None)])
def test_an_edge_without_a_bound_stays_without_one(tmp_path, tokenizer, edges):
    shorter, longer, square = edges
    PixelBertProcessor(PixelBertImageProcessor(shorter, longer, square), tokenizer).save_pretrained(tmp_path)
    assert PixelBertProcessor.from_pretrained(tmp_path).image_processor.rule == ResizeRule(shorter, longer, square)
