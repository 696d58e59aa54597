"""Which pairs a step sees: every record once an epoch, grouped, shared by ranks, the same after a restart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_records import MemoryRecords, batches_of, random_texts
from pixelbert.data.batches import Batch, JoinedSplits, PairOrder, Plan, StepSampler, join, loader, pad_ids
from pixelbert.data.parts import SplitPart
from pixelbert.data.prepare import prepare
from pixelbert.data.records import ImageRef
from pixelbert.errors import DataError, UsageError
from pixelbert.tasks.matching import draw_foreign, own_keys

texts_of_images = st.lists(st.integers(1, 7), min_size=1, max_size=30)


def image_of(texts: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(texts)), texts)


# -- the order ---------------------------------------------------------------------------------------------------------


@given(texts_of_images, st.integers(1, 5), st.integers(0, 3), st.integers(0, 5))
def test_every_record_once_an_epoch_and_texts_of_an_image_together(
    texts: list[int], per_image: int, seed: int, epoch: int
) -> None:
    images = image_of(texts)
    order = PairOrder(images, seed, per_image).epoch(epoch)
    assert sorted(order) == list(range(len(images)))
    runs = [(image, len(list(run))) for image, run in groupby(images[order])]
    pieces = Counter(image for image, _ in runs)
    for image, count in enumerate(texts):
        # groups of one image may stand side by side by chance, so there are at most as many runs as groups
        assert pieces[image] <= -(-count // per_image)


def test_an_image_with_more_texts_than_a_group_comes_in_several_places() -> None:
    images = image_of([5] * 200)
    order = PairOrder(images, 0, 2).epoch(0)
    runs = [len(list(run)) for _, run in groupby(images[order])]
    assert Counter(runs)[2] > 350  # 400 groups of two and 200 of one; hardly any stand side by side
    assert Counter(runs)[1] > 170
    chosen = Counter(int(record) % 5 for _, run in groupby(order, lambda r: images[r]) for record in list(run)[:1])
    assert min(chosen.values()) > 70  # which text begins a group is drawn


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    images = image_of([3] * 20)
    one, two = PairOrder(images, 0, 2), PairOrder(images, 0, 2)
    third = one.epoch(3).copy()
    assert (two.epoch(3) == third).all()
    assert (two.epoch(4) != third).any()
    assert (PairOrder(images, 1, 2).epoch(3) != third).any()
    two.epoch(0)
    assert (two.epoch(3) == third).all()


@pytest.mark.parametrize("per_image", [1, 4])
def test_first_places_are_drawn_evenly(per_image: int) -> None:
    images = image_of([4] * 10)
    order = PairOrder(images, 0, per_image)
    first = Counter(int(images[order.epoch(epoch)[0]]) for epoch in range(500))
    assert len(first) == 10
    assert max(first.values()) < 100  # 50 expected each


@given(texts_of_images, st.integers(0, 150), st.integers(0, 90))
def test_the_stream_is_one_epoch_after_another(texts: list[int], start: int, length: int) -> None:
    images = image_of(texts)
    order = PairOrder(images, 0, 2)
    stream = [(e, int(r)) for e in range((start + length) // len(images) + 1) for r in order.epoch(e)]
    epochs, records = order.pairs(start, start + length)
    assert list(zip(epochs.tolist(), records.tolist(), strict=True)) == stream[start : start + length]


# -- steps, micro-batches, ranks ---------------------------------------------------------------------------------------


def sampler(first: int = 0, last: int = 6, **settings: Any) -> StepSampler:
    settings = {"batch_size": 12, "micro_batch": 12, **settings}
    return StepSampler(PairOrder(image_of([3] * 9), 0, 2), first=first, last=last, **settings)


def flat(plans: Iterator[Plan] | list[Plan]) -> list[tuple[int, int, int, int]]:
    return [
        (plan.step, int(position), int(epoch), int(record))
        for plan in plans
        for position, epoch, record in zip(plan.positions, plan.epochs, plan.records, strict=True)
    ]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 4, 5, 12, 100])
def test_ranks_and_micro_batches_share_the_steps(ranks: int, micro: int) -> None:
    whole = flat(iter(sampler()))
    parts = [list(sampler(micro_batch=micro, rank=rank, ranks=ranks)) for rank in range(ranks)]
    assert sorted(flat([plan for part in parts for plan in part])) == sorted(whole)
    for step in range(6):  # in order: rank 0's pairs come before rank 1's
        assert [p for part in parts for p in flat([plan for plan in part if plan.step == step])] == [
            p for p in whole if p[0] == step
        ]
    for part in parts:
        shares = sampler(micro_batch=micro, ranks=ranks)
        assert len(part) == len(shares) == 6 * shares.micro_batches
        assert max(len(plan.records) for plan in part) <= micro


def test_the_steps_are_the_stream_cut_into_batches() -> None:
    order = PairOrder(image_of([3] * 9), 0, 2)
    stream = np.concatenate([order.epoch(epoch) for epoch in range(3)])[:72]
    assert [record for *_, record in flat(iter(sampler()))] == stream.tolist()


@given(st.integers(0, 6), st.integers(1, 12))
def test_a_restart_at_any_step_goes_on_with_the_same_plans(first: int, micro: int) -> None:
    whole = [plan for plan in flat(iter(sampler(micro_batch=micro))) if plan[0] >= first]
    assert flat(iter(sampler(first, micro_batch=micro))) == whole


def test_a_step_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UsageError, match="batch_size 12 cannot be shared equally by 5 processes"):
        sampler(ranks=5)


# -- the loader --------------------------------------------------------------------------------------------------------


def same(one: Batch, two: Batch) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
        for key, value in one.items()
    )


def test_batches_are_the_same_with_and_without_workers_and_after_a_restart(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(9, 3), sizes=[(32, 32), (40, 24)])
    build = batches_of(records, augmentation="crop-colour", contrastive=True)
    for image in range(9):
        records.image(image)  # drawn before the workers look at them

    def plans(first: int) -> StepSampler:
        return StepSampler(
            PairOrder(records.image_of, 0, 2), first=first, last=5, batch_size=12, micro_batch=8, rank=0, ranks=1
        )

    plain = list(loader(build, plans(0), workers=0))
    with_workers = list(loader(build, plans(0), workers=2))
    assert len(plain) == len(with_workers) == 10
    assert all(same(a, b) for a, b in zip(plain, with_workers, strict=True))
    restarted = list(loader(build, plans(3), workers=1))
    assert all(same(a, b) for a, b in zip(plain[6:], restarted, strict=True))
    assert not same(plain[0], plain[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_a_data_error_that_names_file_and_record(tmp_path: Path, workers: int) -> None:
    records = MemoryRecords(tmp_path, random_texts(6, 2))
    for image in range(6):
        records.image(image)
    broken = tmp_path / "4.png"
    broken.write_bytes(broken.read_bytes()[:60])
    plans = StepSampler(PairOrder(records.image_of, 0, 2), first=0, last=1, batch_size=12, micro_batch=2)
    with pytest.raises(DataError) as caught:
        list(loader(batches_of(records), plans, workers))
    assert str(broken) in str(caught.value)
    assert "record-8" in str(caught.value) or "record-9" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_image_is_a_data_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = MemoryRecords(tmp_path, random_texts(3, 1))
    monkeypatch.setattr(records, "image", lambda image: ImageRef(str(tmp_path / "gone.png")))
    plans = StepSampler(PairOrder(records.image_of, 0, 1), first=0, last=1, batch_size=2, micro_batch=2)
    with pytest.raises(DataError, match=r"gone\.png.*record-"):
        list(loader(batches_of(records), plans, 0))


def test_the_loader_reads_ahead_without_losing_its_place(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(4, 2))
    plans = StepSampler(PairOrder(records.image_of, 0, 2), first=2, last=50, batch_size=4, micro_batch=4)
    steps = [batch["step"] for batch in islice(loader(batches_of(records), plans, 0), 3)]
    assert steps == [2, 3, 4]


# -- pieces ------------------------------------------------------------------------------------------------------------


def test_pad_ids() -> None:
    assert pad_ids([[1, 2, 3], [4], []]).tolist() == [[1, 2, 3], [4, 0, 0], [0, 0, 0]]
    assert pad_ids([np.array([1]), np.array([2, 3])], value=-100).tolist() == [[1, -100], [2, 3]]
    assert pad_ids([]).shape == (0, 0)
    assert pad_ids([[1]]).dtype == torch.int64


def test_joined_splits_are_one_after_another(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    one = MemoryRecords(tmp_path / "a", [["x", "y"], ["z"]])
    two = MemoryRecords(tmp_path / "b", [["u"], ["v", "w"]])
    assert join([one]) is one  # type: ignore[list-item,comparison-overlap]
    both = join([one, two])  # type: ignore[list-item]
    assert isinstance(both, JoinedSplits)
    assert (both.num_images, both.num_records) == (4, 6)
    assert both.image_of.tolist() == [0, 0, 1, 2, 3, 3]
    assert [both.text(r) for r in range(6)] == list("xyzuvw")
    assert [list(both.records_of(i)) for i in range(4)] == [[0, 1], [2], [3], [4, 5]]
    assert [both.record_id(r) for r in (2, 3, 5)] == ["record-2", "record-0", "record-2"]
    assert [both.image_id(i) for i in range(4)] == ["image-0", "image-1"] * 2
    assert [Path(both.image(i).file).parent.name for i in range(4)] == ["a", "a", "b", "b"]
    assert [list(both.rows_of_photo(i)) for i in range(4)] == [[0], [1], [2], [3]]


def test_a_photo_of_two_splits_is_known_in_both(tmp_path: Path) -> None:
    """Its captions in the other split are its own: no negatives."""
    one = MemoryRecords(tmp_path, [["a dog"], ["a cat"]])
    two = MemoryRecords(tmp_path, [["the dog"], ["the cat"], ["a bird"]])
    both = join([one, two])
    assert [list(both.rows_of_photo(i)) for i in range(5)] == [[0, 2], [1, 3], [0, 2], [1, 3], [4]]
    assert own_keys(both, 0) == own_keys(both, 2) == {"a dog", "the dog"}
    drawn = {draw_foreign(both, 0, np.random.default_rng(i)) for i in range(200)}
    assert drawn == {1, 3, 4}
    for shards in (False, True):  # in shards each split has a copy of its own
        one.image(0), one.image(1)
        rows = [("0.png", "train", "red"), ("1.png", "train", "blue"), ("0.png", "restval", "rose")]
        lines = (json.dumps({"image": i, "text": t, "split": s}) + "\n" for i, s, t in rows)
        (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        data = prepare("jsonl", [tmp_path / "rows.jsonl"], tmp_path / f"out-{shards}", shards=shards)
        trained = join([data.split("train"), data.split("restval")])
        assert [len(own_keys(trained, image)) for image in range(3)] == [2, 1, 2]
    part = SplitPart(both, 1, 4)
    assert [list(part.rows_of_photo(i)) for i in range(3)] == [[0, 2], [1], [0, 2]]
    assert part.image_places() == both.image_places()[1:4]
