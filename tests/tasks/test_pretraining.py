"""Pretraining: losses and the objective against plain computations."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memory_records import MemoryRecords, batches_of, full_of_duplicates, plan_of, random_texts, tiny_model
from pixelbert.data.batches import Batch
from pixelbert.data.images import ResizeRule
from pixelbert.model.word_pixels import inner_pieces
from pixelbert.tasks.masking import IGNORED
from pixelbert.tasks.objective import length_chunks
from pixelbert.tasks.pretraining import (
    LossSettings,
    PretrainingObjective,
    alignment_loss,
    contrastive_loss,
    hard_negatives,
    itm_loss,
    loss_counts,
    mlm_loss,
    tags_loss,
)

# -- losses ------------------------------------------------------------------------------------------------------------


def test_mlm_loss_is_the_sum_of_negative_log_likelihoods() -> None:
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(7, 11)), draw.integers(0, 11, 7)
    expected = sum(math.log(np.exp(row).sum()) - row[label] for row, label in zip(logits, labels, strict=True))
    assert mlm_loss(torch.tensor(logits), torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-6)
    assert mlm_loss(torch.zeros(0, 11), torch.zeros(0, dtype=torch.int64)).item() == 0


def test_itm_loss_is_eq_8() -> None:
    draw = np.random.default_rng(1)
    logits, match = draw.normal(size=(6, 2)), np.array([1, 0, 1, 0, 0, 1])
    score = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))  # probability of a match
    expected = -(match * np.log(score) + (1 - match) * np.log(1 - score)).sum()
    assert itm_loss(torch.tensor(logits), torch.tensor(match)).item() == pytest.approx(expected, rel=1e-6)


def test_losses_are_float32_whatever_the_logits_are() -> None:
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(4)
    assert mlm_loss(logits, labels).dtype == torch.float32
    assert mlm_loss(logits, labels).item() == pytest.approx(mlm_loss(logits.double(), labels).item(), rel=1e-6)


def unit(draw: np.random.Generator, rows: int, size: int = 5) -> np.ndarray:
    vectors = draw.normal(size=(rows, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def plain_contrastive(images: Any, texts: Any, image_of: Any, own: Any, scale: float) -> float:
    """By loops: every text against the images it is not true of, its image against the texts that are not true."""
    total = 0.0
    for text, image in enumerate(image_of):
        positive = math.exp(scale * float(np.dot(images[image], texts[text])))
        other_images = sum(
            math.exp(scale * float(np.dot(images[i], texts[text]))) for i in range(len(images)) if not own[i][text]
        )
        other_texts = sum(
            math.exp(scale * float(np.dot(images[image], texts[t]))) for t in range(len(texts)) if not own[image][t]
        )
        total -= 0.5 * math.log(positive / (positive + other_images))
        total -= 0.5 * math.log(positive / (positive + other_texts))
    return total


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 10**6), st.floats(1, 30))
def test_contrastive_loss_equals_plain_loops_with_several_positives(
    images: int, per_image: int, seed: int, scale: float
) -> None:
    draw = np.random.default_rng(seed)
    image_of = np.repeat(np.arange(images), per_image)
    own = draw.random((images, len(image_of))) < 0.15  # texts equal to one of another image
    own[image_of, np.arange(len(image_of))] = True
    own |= image_of[None] == np.arange(images)[:, None]
    vectors, texts = unit(draw, images), unit(draw, len(image_of))
    loss = contrastive_loss(
        torch.tensor(vectors), torch.tensor(texts), torch.tensor(image_of), torch.tensor(own), torch.tensor(scale)
    )
    assert loss.item() == pytest.approx(plain_contrastive(vectors, texts, image_of, own, scale), rel=1e-4, abs=1e-5)


def test_alignment_loss_is_the_contrastive_loss_of_centred_directions() -> None:
    draw = torch.Generator().manual_seed(0)
    pixels, words = torch.randn(3, 6, generator=draw), torch.randn(5, 6, generator=draw) + 4
    image_of_text = torch.tensor([0, 0, 1, 2, 2])
    own = torch.arange(3)[:, None] == image_of_text
    middle = words.mean(0)
    expected = 0.0
    for text, image in enumerate(image_of_text.tolist()):
        near = [15 * torch.cosine_similarity(pixels[i] - middle, words[text] - middle, dim=0) for i in range(3)]
        others = [15 * torch.cosine_similarity(pixels[image] - middle, words[t] - middle, dim=0) for t in range(5)]
        foreign = [near[i] for i in range(3) if i != image]
        against = [others[t] for t in range(5) if not own[image, t]]
        expected += (torch.logsumexp(torch.stack([near[image], *foreign]), 0) - near[image]) / 2
        expected += (torch.logsumexp(torch.stack([near[image], *against]), 0) - near[image]) / 2
    assert float(alignment_loss(pixels, words, image_of_text, own)) == pytest.approx(float(expected), rel=1e-5)


def test_alignment_needs_no_pooled_vectors_and_teaches_the_projection(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(4, 2))
    batch, model = batches_of(records, contrastive=True)(plan_of(records, 0, 8)), tiny_model()
    sums = PretrainingObjective(model)(batch, LossSettings(mlm=0.0, itm=0.0, align=1.0))
    assert list(sums) == ["align"]
    assert loss_counts(batch, LossSettings(mlm=0.0, itm=0.0, align=1.0)) == {"align": 8}
    sums["align"].backward()
    assert model.pixelbert.pixels.projection.weight.grad.abs().max() > 0
    assert model.pixelbert.text.encoder.layer[0].attention.self.query.weight.grad is None


def test_tags_loss_is_the_surprise_at_each_word_among_those_of_the_batch() -> None:
    scores = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    places, images, counts = torch.tensor([0, 1, 1, 2]), torch.tensor([1, 1, 0, 1]), torch.tensor([1, 2, 1])
    expected = 0.0
    for place, image in zip(places.tolist(), images.tolist(), strict=True):
        weights = [
            count * math.exp(score) for count, score in zip(counts.tolist(), scores[image].tolist(), strict=True)
        ]
        expected -= math.log(weights[place] / sum(weights))
    assert float(tags_loss(scores, places, counts, images)) == pytest.approx(expected, rel=1e-5)
    nothing_told = tags_loss(torch.zeros(2, 3), places, counts, images)
    assert float(nothing_told) == pytest.approx(-(2 * math.log(1 / 4) + 2 * math.log(2 / 4)), rel=1e-5)


def test_tags_teach_the_projection_to_speak_through_the_head_of_masked_words(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(4, 2))
    batch, model = batches_of(records, contrastive=True)(plan_of(records, 0, 8)), tiny_model()
    inner = inner_pieces(batch["caption_mask"])
    assert [ids[i].tolist() for ids, i in zip(batch["caption_ids"], inner, strict=True)] == [
        ids[1 : int(mask.sum()) - 1].tolist()
        for ids, mask in zip(batch["caption_ids"], batch["caption_mask"], strict=True)
    ]
    settings = LossSettings(mlm=0.0, itm=0.0, tags=1.0)
    sums = PretrainingObjective(model)(batch, settings)
    words = int(batch["caption_mask"].sum()) - 2 * 8
    assert list(sums) == ["tags"] and loss_counts(batch, settings) == {"tags": words}
    sums["tags"].backward()
    assert model.pixelbert.pixels.projection.weight.grad.abs().max() > 0
    assert model.mlm_head.transform.dense.weight.grad.abs().max() > 0
    assert model.pixelbert.text.encoder.layer[0].attention.self.query.weight.grad is None


def test_masked_words_of_texts_alone_are_scored_without_any_image(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(4, 2))
    batch = batches_of(records, contrastive=True, text_mlm=True)(plan_of(records, 0, 8))
    hidden = batch["text_labels"] != IGNORED
    restored = torch.where(hidden, batch["text_labels"], batch["text_ids"])
    assert torch.equal(restored, batch["caption_ids"]) and int(hidden.sum()) > 0
    model = tiny_model().eval()
    settings = LossSettings(mlm=0.0, itm=0.0, text_mlm=1.0)
    alone = model(batch["text_ids"], labels=batch["text_labels"], attention_mask=batch["caption_mask"]).mlm_logits
    expected = float(mlm_loss(alone.detach(), batch["text_labels"][hidden]))
    for chunks in (1, 3):
        sums = PretrainingObjective(model, chunks=chunks)(batch, settings)
        assert list(sums) == ["text_mlm"] and loss_counts(batch, settings) == {"text_mlm": int(hidden.sum())}
        assert sums["text_mlm"].item() == pytest.approx(expected, rel=1e-5)
    sums["text_mlm"].backward()
    assert model.pixelbert.pixels.projection.weight.grad is None


def test_contrastive_gradients_are_finite_where_nothing_is_foreign() -> None:
    images = torch.nn.functional.normalize(torch.randn(2, 4), dim=1).requires_grad_()
    texts = torch.nn.functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    image_of = torch.tensor([0, 0, 1])
    for own in (torch.ones(2, 3, dtype=torch.bool), torch.tensor([[1, 1, 1], [0, 0, 1]], dtype=torch.bool)):
        loss = contrastive_loss(images, texts, image_of, own, torch.tensor(10.0))
        loss.backward()
        assert torch.isfinite(images.grad).all() and torch.isfinite(texts.grad).all()  # type: ignore[arg-type]
    assert contrastive_loss(images, texts, image_of, torch.ones(2, 3, dtype=torch.bool), torch.tensor(1.0)).item() == 0


def test_contrastive_loss_stays_float32_under_autocast() -> None:
    draw = np.random.default_rng(0)
    args = [torch.tensor(unit(draw, 6), dtype=torch.float32), torch.tensor(unit(draw, 6), dtype=torch.float32),
            torch.arange(6), torch.eye(6, dtype=torch.bool), torch.tensor(20.0)]  # fmt: skip
    plain = contrastive_loss(*args)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive_loss(*args).item() == plain.item()


@given(st.integers(0, 10**6))
def test_hard_negatives_are_never_texts_of_the_image(seed: int) -> None:
    draw = np.random.default_rng(seed)
    own = torch.tensor(draw.random((4, 9)) < draw.choice([0.2, 0.6, 0.95]))
    rows = torch.tensor(draw.integers(0, 4, 12))
    torch.manual_seed(seed)
    images, texts = (torch.tensor(unit(draw, n), dtype=torch.float32) for n in (4, 9))
    chosen = hard_negatives(images, texts, own, rows, 20.0)
    assert chosen.shape == rows.shape
    for row, text in zip(rows.tolist(), chosen.tolist(), strict=True):
        assert not own[row, text] if text >= 0 else bool(own[row].all())
    assert hard_negatives(images, texts, own, rows[:0], 20.0).tolist() == []


def test_hard_negatives_are_likelier_the_closer_they_are() -> None:
    images = torch.tensor([[1.0, 0.0]])
    angles = torch.tensor([0.0, 0.4, 0.8, 1.6])
    texts = torch.stack([angles.cos(), angles.sin()], 1)
    own = torch.tensor([[True, False, False, False]])
    torch.manual_seed(0)
    counts = Counter(hard_negatives(images, texts, own, torch.zeros(4000, dtype=torch.int64), 3.0).tolist())
    weights = np.exp(3.0 * np.cos([0.4, 0.8, 1.6]))
    for text, share in enumerate(weights / weights.sum(), start=1):
        assert abs(counts[text] / 4000 - share) < 0.04


# -- the objective -----------------------------------------------------------------------------------------------------

ALL = LossSettings(mlm=1.0, itm=1.0, contrastive=1.0, sample_pixels=2)


def batch_of(folder: Path, size: int = 12, **settings: Any) -> Batch:
    records = MemoryRecords(folder, random_texts(6, 3), sizes=[(64, 64), (96, 64)])
    build = batches_of(records, ResizeRule(shorter=64, longer=96), contrastive=True, **settings)
    return build(plan_of(records, 0, size))


def test_the_losses_are_those_of_the_model_on_the_pairs(tmp_path: Path) -> None:
    batch, model = batch_of(tmp_path), tiny_model()
    sums = PretrainingObjective(model)(batch, LossSettings(sample_pixels=0))
    assert set(sums) == {"mlm", "itm"}
    mlm = itm = 0.0
    with torch.no_grad():
        for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):  # every pair alone, without padding
            image = int(batch["image_of_text"][i])
            height, width = batch["image_sizes"][image].tolist()
            output = model(
                batch["input_ids"][i : i + 1, :length],
                pixel_values=batch["pixel_values"][image : image + 1, :, :height, :width],
            )
            itm -= float(output.itm_logits.log_softmax(-1)[0, batch["match"][i]])
            for place in range(length):
                if (label := int(batch["labels"][i, place])) != IGNORED:
                    mlm -= float(output.mlm_logits[0, place].log_softmax(-1)[label])
    assert sums["mlm"].item() == pytest.approx(mlm, rel=1e-5)
    assert sums["itm"].item() == pytest.approx(itm, rel=1e-5)


def test_counts_are_those_of_the_predictions(tmp_path: Path) -> None:
    batch = batch_of(tmp_path)
    assert loss_counts(batch, ALL) == {"mlm": int((batch["labels"] >= 0).sum()), "itm": 12, "contrastive": 12}
    assert loss_counts(batch, LossSettings(mlm=0.0, contrastive=0.5)) == {"itm": 12, "contrastive": 12}
    batch["labels"].fill_(IGNORED)  # a count of nothing is there all the same: other ranks may count some
    assert loss_counts(batch, LossSettings()) == {"mlm": 0, "itm": 12}
    sums = PretrainingObjective(tiny_model())(batch, LossSettings())
    assert sums["mlm"].item() == 0


@pytest.mark.parametrize("chunks", [2, 3, 5, 50])
def test_texts_in_chunks_of_like_length_give_the_same_losses_and_gradients(tmp_path: Path, chunks: int) -> None:
    batch = batch_of(tmp_path)
    results = []
    for count in (1, chunks):
        model = tiny_model()
        sums = PretrainingObjective(model, chunks=count)(batch, ALL)
        sum(sums.values()).backward()  # type: ignore[union-attr]
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append(({name: value.item() for name, value in sums.items()}, gradients))
    (plain, plain_gradients), (chunked, chunked_gradients) = results
    assert chunked == pytest.approx(plain, rel=1e-5)
    assert torch.allclose(chunked_gradients, plain_gradients, rtol=1e-3, atol=1e-5 * float(plain_gradients.abs().max()))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 6))
def test_length_chunks_hold_every_text_once_with_its_longest(lengths: list[int], chunks: int) -> None:
    mask = (torch.arange(9)[None] < torch.tensor(lengths)[:, None]).long()
    parts = list(length_chunks(mask, chunks))
    assert sorted(row for rows, _ in parts for row in rows.tolist()) == list(range(len(lengths)))
    assert len(parts) <= chunks
    assert all(length == (max(lengths[row] for row in rows) if chunks > 1 else 9) for rows, length in parts)


def test_pixels_are_sampled_for_each_text(tmp_path: Path) -> None:
    batch, model, seen = batch_of(tmp_path), tiny_model(), []
    forward = model.pixelbert.forward
    model.pixelbert.forward = lambda *args, **kw: seen.append(kw.get("grid")) or forward(*args, **kw)
    objective = PretrainingObjective(model)
    objective(batch, LossSettings(sample_pixels=3))
    objective(batch, LossSettings(sample_pixels=0))
    assert [grid.pixels.shape[1] for grid in seen] == [3, 6]
    assert not torch.equal(seen[0].pixels[0], seen[0].pixels[1])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_hard_negatives_obey_the_rule_of_negatives(tmp_path: Path, share: float) -> None:
    records = full_of_duplicates(tmp_path)
    batch = batches_of(records, contrastive=True)(plan_of(records, 0, 40))
    model, seen = tiny_model(), []
    forward = model.pixelbert.forward
    model.pixelbert.forward = lambda ids, *args, **kw: seen.append((ids, kw)) or forward(ids, *args, **kw)
    torch.manual_seed(0)
    PretrainingObjective(model)(batch, LossSettings(contrastive=1.0, hard_share=share))
    ids, inputs = seen[-1]  # the text vectors come first
    replaced = 0
    for i in range(40):
        now = ids[i, : int(inputs["attention_mask"][i].sum())].tolist()
        before = batch["input_ids"][i, : int(batch["attention_mask"][i].sum())].tolist()
        if now == before:
            continue
        replaced += 1
        assert batch["match"][i] == 0
        image = int(batch["image_of_text"][i])
        lengths = batch["caption_mask"].sum(1).tolist()
        equal = [t for t in range(40) if batch["masked_caption_ids"][t, : lengths[t]].tolist() == now]
        assert any(not batch["own"][image, t] for t in equal)
    low, high = {0.0: (0, 0), 0.5: (3, 16), 1.0: (12, 20)}[share]  # of 20; the same text may be drawn again
    assert low <= replaced <= high


def test_hard_negatives_send_no_gradient_through_the_choice(tmp_path: Path) -> None:
    records = full_of_duplicates(tmp_path)
    batch = batches_of(records, contrastive=True)(plan_of(records, 0, 20))
    model = tiny_model()
    torch.manual_seed(0)
    sums = PretrainingObjective(model)(batch, LossSettings(mlm=0.0, hard_share=1.0))
    assert set(sums) == {"itm"}
    sums["itm"].backward()
    assert model.contrastive is not None
    assert model.contrastive.image.weight.grad is None
