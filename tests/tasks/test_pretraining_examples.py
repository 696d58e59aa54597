"""The sheet's examples: who is chosen, and that what is told of them is what the model says of each alone."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from memory_records import MemoryRecords, batches_of, random_texts, tiny_model
from pixelbert.tasks.masking import IGNORED
from pixelbert.tasks.pretraining_examples import SheetSize, choose, describe, thumbnail, write_examples
from pixelbert.tasks.pretraining_scores import HeldOut

SIZE = SheetSize(lot=5, helped=3, failed=4)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    records = MemoryRecords(tmp_path_factory.mktemp("pictures"), random_texts(30, 2, words=(4, 9)))
    return HeldOut(tiny_model(), batches_of(records), list(range(30)), captions_per_image=2, batch_size=7)


@pytest.fixture(scope="module")
def words(held_out: HeldOut) -> list[dict[str, Any]]:
    """Masked words of a made-up model that is right with its own picture half of the time, so every group is full."""
    rows = held_out.masked_words()
    draw = np.random.default_rng(0)
    for row in rows:
        row["predicted"] = row["word"] if draw.random() < 0.5 else row["word"] - 1
        row["predicted_shuffled"] = row["word"] if draw.random() < 0.3 else row["word"] - 1
    return rows


def test_groups_are_what_they_say(held_out: HeldOut, words: list[dict[str, Any]]) -> None:
    chosen = choose(held_out, words, SIZE)
    assert Counter(group for _, group in chosen) == {"lot": 5, "helped": 3, "failed": 4}
    images = [held_out.image_of[text] for text, _ in chosen]
    assert len(set(images)) == len(images)
    for text, group in chosen:
        own = [w for w in words if w["record"] == f"record-{text}"]
        right = [(w["predicted"] == w["word"], w["predicted_shuffled"] == w["word"]) for w in own]
        if group == "helped":
            assert (True, False) in right
        if group == "failed":
            assert any(not mine for mine, _ in right)


def test_the_lot_does_not_depend_on_the_model(held_out: HeldOut, words: list[dict[str, Any]]) -> None:
    perfect = [{**w, "predicted": w["word"], "predicted_shuffled": w["word"]} for w in words]
    mine = [text for text, group in choose(held_out, words, SIZE) if group == "lot"]
    others = choose(held_out, perfect, SIZE)
    assert mine == [text for text, group in others if group == "lot"]
    assert len(others) == 5  # nobody was helped, nobody failed


def test_chosen_groups_begin_with_the_most_telling(held_out: HeldOut, words: list[dict[str, Any]]) -> None:
    chosen = choose(held_out, words, SIZE)
    told = describe(held_out, [c for c in chosen if c[1] == "helped"])
    worth = [max(m["own_true"] - m["other_true"] for m in example["masked"]) for example in told]
    assert worth == sorted(worth, reverse=True)
    told = describe(held_out, [c for c in chosen if c[1] == "failed"])
    worth = [max(m["own"][0][1] - m["own_true"] for m in example["masked"]) for example in told]
    assert worth == sorted(worth, reverse=True)


def test_few_images_give_a_short_sheet(held_out: HeldOut, words: list[dict[str, Any]]) -> None:
    assert len(choose(held_out, words, SheetSize(lot=1000, helped=6, failed=6))) == 30  # each image once, by lot


@torch.no_grad()
def alone(held_out: HeldOut, text: int, image: int) -> torch.Tensor:
    """Probabilities [masked, V] of one text beside one image, in a pass of its own."""
    ids, labels = held_out.masked[text]
    pixels = held_out.batches.image_batch([image], [0])
    output = held_out.model(
        torch.from_numpy(ids)[None], pixel_values=pixels["pixel_values"], image_sizes=pixels["image_sizes"]
    )
    return output.mlm_logits[0][labels != IGNORED].softmax(-1)


def test_guesses_are_those_of_each_pair_alone(held_out: HeldOut) -> None:
    texts = [3, 20, 41, 8]
    to_id = held_out.batches.tokenizer.get_vocab()
    for text, example in zip(texts, describe(held_out, [(t, "lot") for t in texts]), strict=True):
        ids, labels = held_out.masked[text]
        places = np.flatnonzero(labels != IGNORED)
        own = int(held_out.image_of[text])
        assert example["image"] == f"image-{own}" and example["record"] == f"record-{text}"
        assert [m["place"] for m in example["masked"]] == (places - 1).tolist()
        for name, image in (("own", own), ("other", int(held_out.shuffled()[own]))):
            chances = alone(held_out, text, image)
            for masked, row, place in zip(example["masked"], chances, places, strict=True):
                assert masked["true"] == example["pieces"][masked["place"]]
                assert to_id[masked["true"]] == labels[place]
                assert (
                    masked["shown"] is None if ids[place] == to_id["[MASK]"] else to_id[masked["shown"]] == ids[place]
                )
                best = row.topk(3)
                assert [to_id[piece] for piece, _ in masked[name]] == best.indices.tolist()
                assert [p for _, p in masked[name]] == pytest.approx(best.values.tolist(), rel=1e-4)
                assert masked[f"{name}_true"] == pytest.approx(float(row[labels[place]]), rel=1e-4)


def test_match_is_told_of_the_plain_caption_and_a_false_one(held_out: HeldOut) -> None:
    text = 13
    match = describe(held_out, [(text, "lot")])[0]["match"]
    image, false = np.array([held_out.image_of[text]]), held_out.false_caption(text)
    for name, caption in (("own", text), ("false", false)):
        odds = held_out.match_scores(image, np.array([caption]))[0]
        assert match[name] == pytest.approx(1 / (1 + np.exp(-odds)))
    assert match["false_caption"] == held_out.batches.records.text(held_out.records[false])


def test_pictures_are_those_the_model_saw(held_out: HeldOut, words: list[dict[str, Any]], tmp_path: Path) -> None:
    write_examples(tmp_path, held_out, words, SIZE)
    sheet = json.loads((tmp_path / "examples.json").read_text())
    assert (sheet["images"], sheet["captions"], len(sheet["examples"])) == (30, 60, 12)
    for example in sheet["examples"]:
        for name, image in (("picture", example["image"]), ("other_picture", None)):
            with Image.open(tmp_path / example[name]) as picture:
                assert picture.size == (32, 32)
                if image is not None:
                    row = int(image.removeprefix("image-"))
                    seen = held_out.batches.image_batch([row], [0])["pixel_values"][0].permute(1, 2, 0).numpy()
                    assert np.abs(np.asarray(picture.convert("RGB")).astype(int).mean() - seen.mean()) < 4
    assert len(list((tmp_path / "examples").iterdir())) == 24


def test_an_image_padded_in_the_batch_is_shown_without_padding(tmp_path: Path) -> None:
    from pixelbert.data.images import ResizeRule

    records = MemoryRecords(tmp_path, random_texts(4, 1), sizes=((40, 90),))
    batches = batches_of(records, ResizeRule(shorter=20, longer=100), size_divisor=64)
    held_out = HeldOut(tiny_model(), batches, [0, 1, 2, 3], captions_per_image=1)
    write_examples(tmp_path, held_out, held_out.masked_words())
    with Image.open(tmp_path / "examples" / "00.jpg") as picture:
        assert picture.size == (45, 20)


@pytest.mark.parametrize("shape", [(1200, 900), (40, 30), (20, 2000), (1, 1)])
def test_a_thumbnail_keeps_within_its_limits(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)  # the worst case for JPEG
    data = thumbnail(noise, 336, 40_000)
    assert len(data) <= 40_000
    with Image.open(io.BytesIO(data)) as picture:
        assert max(picture.size) <= min(336, max(shape))
        if min(shape) > 10:
            assert picture.width / picture.height == pytest.approx(shape[1] / shape[0], rel=0.15)
