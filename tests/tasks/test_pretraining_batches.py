"""Pretraining's batches: negatives by the rules, batches that belong to their records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_records import VOCABULARY, MemoryRecords, batches_of, full_of_duplicates, plan_of, random_texts
from pixelbert.data.batches import Batch, PairOrder, Plan, StepSampler
from pixelbert.data.draws import generator
from pixelbert.data.images import ResizeRule
from pixelbert.errors import DataError
from pixelbert.tasks.masking import IGNORED
from pixelbert.tasks.matching import draw_foreign, is_negative, text_key
from pixelbert.tasks.pretraining import PretrainingBatches

PAD, UNK, CLS, SEP, MASK = range(5)


def shown_texts(build: PretrainingBatches, plan: Plan) -> tuple[list[str], Batch]:
    """The texts that a batch shows, before masking, and the batch."""
    shown: list[list[str]] = []
    tokenize = build.tokenize
    build.tokenize = lambda texts: shown.append(list(texts)) or tokenize(texts)  # type: ignore[method-assign,func-returns-value]
    batch = build(plan)
    build.tokenize = tokenize  # type: ignore[method-assign]
    return shown[0], batch


# -- which pairs are negative ------------------------------------------------------------------------------------------


@given(st.integers(0, 10**12), st.integers(0, 200))
def test_every_even_run_of_pairs_is_half_negative(start: int, length: int) -> None:
    length -= length % 2
    assert sum(is_negative(place, 0.5) for place in range(start, start + length)) == length // 2


@given(st.integers(0, 10**9), st.sampled_from([0.1, 0.25, 0.3, 0.75]))
def test_other_ratios_are_spread_evenly(start: int, ratio: float) -> None:
    count = sum(is_negative(place, ratio) for place in range(start, start + 100))
    assert abs(count - 100 * ratio) <= 1


@pytest.mark.parametrize("size", [2, 6, 10])
def test_half_of_every_step_is_negative_across_epochs_and_for_every_split(tmp_path: Path, size: int) -> None:
    records = MemoryRecords(tmp_path, random_texts(5, 3))  # 15 records: epochs end inside steps
    build = batches_of(records, without_images=True)
    matches: dict[tuple[int, int], dict[int, int]] = {}
    for ranks, micro in ((1, size), (1, 1), (2, 3)):
        for rank in range(ranks):
            for plan in StepSampler(
                PairOrder(records.image_of, 0, 2), first=0, last=12, batch_size=size, micro_batch=micro, rank=rank,
                ranks=ranks,
            ):  # fmt: skip
                for position, match in zip(plan.positions.tolist(), build(plan)["match"].tolist(), strict=True):
                    matches.setdefault((ranks, micro), {})[position] = match
    one, *others = matches.values()
    assert all(other == one for other in others)
    for start in range(0, 12 * size, size):
        assert sum(one[place] for place in range(start, start + size)) == size // 2


def test_records_are_positive_and_negative_in_turn_over_epochs(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(6, 4))
    order = PairOrder(records.image_of, 0, 4)
    negative = np.zeros(24)
    for epoch in range(200):
        for place, record in enumerate(order.epoch(epoch)):
            negative[record] += is_negative(24 * epoch + place, 0.5)
    assert negative.min() > 60
    assert negative.max() < 140


# -- which text a negative gets ----------------------------------------------------------------------------------------


def test_negatives_are_never_a_text_of_the_image_nor_equal_to_one(tmp_path: Path) -> None:
    records = full_of_duplicates(tmp_path)
    build = batches_of(records, without_images=True)
    plan = plan_of(records, 0, 20 * records.num_records)
    shown, batch = shown_texts(build, plan)
    drawn = Counter()
    for text, record, match in zip(shown, plan.records.tolist(), batch["match"].tolist(), strict=True):
        image = int(records.image_of[record])
        own = [records.text(r) for r in records.records_of(image)]
        if match:
            assert text == records.text(record)
        else:
            plain = {" ".join(t.lower().replace(".", " ").split()) for t in own}
            assert " ".join(text.lower().replace(".", " ").split()) not in plain
            drawn[text] += 1
    assert len(drawn) >= 7


def test_negatives_are_drawn_evenly_from_all_foreign_texts(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(5, 2))
    counts = Counter(draw_foreign(records, 2, generator(0, "test", i)) for i in range(1600))
    assert set(counts) == {0, 1, 2, 3, 6, 7, 8, 9}
    assert max(counts.values()) < 270 and min(counts.values()) > 140  # 200 expected


def test_the_one_foreign_text_among_thousands_is_found(tmp_path: Path) -> None:
    texts = [["a dog"]] * 3000 + [["a cat"]]
    records = MemoryRecords(tmp_path, texts)
    assert {draw_foreign(records, 5, generator(0, "test", i)) for i in range(20)} == {3000}
    # and from the other side every record will do
    assert len({draw_foreign(records, 3000, generator(0, "test", i)) for i in range(20)}) > 15


def test_negatives_may_be_drawn_among_some_records_only(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(5, 2))
    among = np.array([2, 3, 4, 9])
    assert {draw_foreign(records, 1, generator(0, "test", i), among) for i in range(50)} == {4, 9}


@pytest.mark.parametrize("texts", [[["a dog"], ["A dog."]], [["a dog", "a cat"]], [["a dog"]] * 400])
def test_data_without_any_foreign_text_is_a_data_error(tmp_path: Path, texts: list[list[str]]) -> None:
    records = MemoryRecords(tmp_path, texts)
    with pytest.raises(DataError, match=r"image image-0: no mismatched text"):
        draw_foreign(records, 0, generator(0, "test"))
    with pytest.raises(DataError, match="no mismatched text"):
        batches_of(records, without_images=True)(plan_of(records, 0, 4))


def test_text_key() -> None:
    assert text_key("A  Dog, running.") == text_key("a dog running") != text_key("a dog runs")
    assert text_key("!!!") != text_key("???")
    assert text_key("Straße") == text_key("STRASSE")
    assert text_key("A café.") == text_key("a cafe") != text_key("a cave")  # as an uncased tokenizer reads them


# -- batches -----------------------------------------------------------------------------------------------------------


def ids_of(texts: list[str]) -> list[list[int]]:
    return [[CLS, *(VOCABULARY.index(w) for w in text.split()), SEP] for text in texts]


def test_a_batch_holds_what_it_says(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(6, 3), sizes=[(32, 32), (40, 20)])
    build = batches_of(records, ResizeRule(shorter=32, longer=64))
    plan = plan_of(records, 4, 14)
    shown, batch = shown_texts(build, plan)
    images = records.image_of[plan.records]
    rows = batch["image_rows"].tolist()
    assert sorted(set(images)) == sorted(rows)
    assert [rows[i] for i in batch["image_of_text"].tolist()] == images.tolist()
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["pixel_values"].shape == (len(rows), 3, 64, 32)
    assert batch["image_sizes"].tolist() == [[32, 32] if row % 2 == 0 else [64, 32] for row in rows]
    assert batch["records"] == plan.records.tolist()
    for i, true in enumerate(ids_of(shown)):
        length = len(true)
        ids, labels = batch["input_ids"][i].tolist(), batch["labels"][i].tolist()
        assert batch["attention_mask"][i].tolist() == [1] * length + [0] * (len(ids) - length)
        assert ids[length:] == [PAD] * (len(ids) - length)
        assert labels[0] == labels[length - 1] == IGNORED and set(labels[length:]) <= {IGNORED}
        changed = [place for place in range(length) if ids[place] != true[place]]
        hidden = [place for place in range(length) if labels[place] != IGNORED]
        if batch["match"][i]:
            assert hidden and set(changed) <= set(hidden)
            assert [labels[place] for place in hidden] == [true[place] for place in hidden]
        else:
            assert not hidden  # no loss, although masked


def test_negatives_are_masked_as_often_as_positives(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(20, 4, words=(6, 12)))
    build = batches_of(records, without_images=True)
    batch = build(plan_of(records, 0, 2400))
    masks, words = (batch["input_ids"] == MASK).sum(1).numpy(), batch["attention_mask"].sum(1).numpy() - 2
    match = batch["match"].numpy() == 1
    shares = [masks[kind].sum() / words[kind].sum() for kind in (match, ~match)]
    assert abs(shares[0] - shares[1]) < 0.02
    assert min(shares) > 0.11
    assert (batch["labels"][torch.tensor(~match)] == IGNORED).all()


def test_mlm_on_negatives_by_option(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(5, 2))
    batch = batches_of(records, without_images=True, mlm_on_negatives=True)(plan_of(records, 0, 20))
    assert ((batch["labels"] != IGNORED).sum(1) > 0).all()


def test_long_texts_are_cut(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(3, 2, words=(20, 25)))
    batch = batches_of(records, without_images=True, max_length=10)(plan_of(records, 0, 6))
    assert batch["input_ids"].shape == (6, 10)
    assert (batch["input_ids"][:, -1] == SEP).all()


def unpadded(batch: Batch) -> list[dict[str, Any]]:
    """What each pair of a batch holds, without what depends on the others."""
    rows = []
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        image = int(batch["image_of_text"][i])
        height, width = batch["image_sizes"][image].tolist()
        caption = int(batch["caption_mask"][i].sum())
        rows.append({
            "record": batch["records"][i], "ids": batch["input_ids"][i, :length].tolist(),
            "labels": batch["labels"][i, :length].tolist(), "match": int(batch["match"][i]),
            "seed": int(batch["sampling_seed"][i]), "image": int(batch["image_rows"][image]),
            "pixels": batch["pixel_values"][image, :, :height, :width].tolist(),
            "caption": batch["caption_ids"][i, :caption].tolist(),
            "masked": batch["masked_caption_ids"][i, :caption].tolist(),
        })  # fmt: skip
    return rows


def test_a_pair_is_the_same_in_any_batch(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(5, 3), sizes=[(24, 32), (32, 32), (40, 32)])
    build = batches_of(records, ResizeRule(shorter=24, longer=48), augmentation="crop-colour", contrastive=True)
    whole = unpadded(build(plan_of(records, 0, 40)))  # over two ends of epochs
    for size in (1, 4, 7):
        parts = [build(plan_of(records, start, min(40, start + size))) for start in range(0, 40, size)]
        assert [row for part in parts for row in unpadded(part)] == whole


def test_draws_change_with_the_epoch_and_with_the_seed(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(4, 1, words=(8, 9)))
    plans = [Plan(0, np.arange(4), np.full(4, epoch), np.arange(4)) for epoch in (0, 1)]
    build = batches_of(records, augmentation="crop")
    first, second = (build(plan) for plan in plans)
    other = batches_of(records, augmentation="crop", seed=1)(plans[0])
    for batch in (second, other):
        assert not torch.equal(batch["sampling_seed"], first["sampling_seed"])
        assert not torch.equal(batch["pixel_values"], first["pixel_values"])
        assert batch["input_ids"].tolist() != first["input_ids"].tolist()


def test_texts_of_an_image_share_its_picture_and_draw_their_own_pixels(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(3, 4))
    batch = batches_of(records)(plan_of(records, 0, 12, per_image=4))
    assert batch["pixel_values"].shape[0] == 3
    assert len(set(batch["sampling_seed"].tolist())) == 12


def test_own_tells_which_captions_are_true_of_which_image(tmp_path: Path) -> None:
    records = full_of_duplicates(tmp_path)
    build = batches_of(records, without_images=True, contrastive=True)
    plan = plan_of(records, 0, 60)
    batch = build(plan)
    for row, image in enumerate(batch["image_rows"].tolist()):
        mine = {records.text(r).lower().replace(".", " ").strip() for r in records.records_of(image)}
        mine = {" ".join(text.split()) for text in mine}
        for column, record in enumerate(plan.records.tolist()):
            text = " ".join(records.text(record).lower().replace(".", " ").split())
            assert bool(batch["own"][row, column]) == (text in mine)
    assert batch["caption_ids"].shape == batch["masked_caption_ids"].shape == batch["caption_mask"].shape
    assert (
        batch["caption_ids"][0, : int(batch["caption_mask"][0].sum())].tolist()
        == ids_of([records.text(int(plan.records[0])).lower().replace(".", " .")])[0]
    )


@pytest.mark.parametrize("rule", [ResizeRule(square=32), ResizeRule(shorter=24, longer=48)])
def test_blind_changes_the_pictures_and_nothing_else(tmp_path: Path, rule: ResizeRule) -> None:
    records = MemoryRecords(tmp_path, random_texts(5, 3), sizes=[(24, 32), (40, 32)])
    settings: dict[str, Any] = {"contrastive": True, "augmentation": "crop-colour"}
    plan = plan_of(records, 0, 24)
    seeing = batches_of(records, rule, **settings)(plan)
    blind = batches_of(records, rule, constant=(120, 110, 100), **settings)(plan)
    assert seeing.keys() == blind.keys()
    for key, value in seeing.items():
        if key != "pixel_values":
            assert torch.equal(value, blind[key]) if isinstance(value, torch.Tensor) else value == blind[key]
    for image, (height, width) in zip(blind["pixel_values"], blind["image_sizes"].tolist(), strict=True):
        assert (image[:, :height, :width] == torch.tensor([120, 110, 100]).view(3, 1, 1)).all()
    assert not torch.equal(seeing["pixel_values"], blind["pixel_values"])


# -- texts hidden nearly whole -----------------------------------------------------------------------------------------


def test_the_asked_share_of_the_texts_is_hidden_heavily_and_the_others_are_as_without(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(40, 5))
    plan = plan_of(records, 0, 200)
    hidden = {}
    for share in (0.0, 0.5, 1.0):
        build = batches_of(
            records, without_images=True, mlm_on_negatives=True, heavy_share=share, heavy_probability=0.999999
        )
        batch = build(plan)
        hidden[share] = batch["labels"] != IGNORED
        words = batch["attention_mask"].sum(1) - 2
        whole = hidden[share].sum(1) == words
        if share == 1:
            assert whole.all()
        if share == 0.5:
            heavy = whole
    assert 70 <= heavy.sum() <= 130
    assert torch.equal(hidden[0.5][~heavy], hidden[0.0][~heavy])
