"""Retrieval: candidates and the loss over the hardest, against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memory_records import VOCABULARY, MemoryRecords, random_texts
from pixelbert.data.batches import Plan
from pixelbert.data.images import ResizeRule
from pixelbert.model.tokenization import load_tokenizer
from pixelbert.tasks.matching import own_keys, text_key
from pixelbert.tasks.retrieval import RetrievalBatches, hardest, retrieval_loss


def test_the_true_caption_comes_first_and_negatives_are_foreign(tmp_path: Path) -> None:
    texts = random_texts(5, 3, unique=False, words=(1, 2))
    texts[1][0] = texts[0][0]  # a caption that two images share is no negative of either
    records = MemoryRecords(tmp_path, texts)
    tokenizer = load_tokenizer(VOCABULARY)
    build = RetrievalBatches(records, tokenizer, ResizeRule(square=32), 32, 0, negatives=6)
    rows = np.arange(15)
    batch = build(Plan(0, rows, np.zeros(15, dtype=np.int64), rows))
    assert batch["candidate_ids"].shape[:2] == (15, 7)
    for record in range(15):
        own = own_keys(records, int(records.image_of[record]))
        said = [tokenizer.decode(ids, skip_special_tokens=True) for ids in batch["candidate_ids"][record]]
        assert text_key(said[0]) == text_key(records.text(record))
        assert not {text_key(text) for text in said[1:]} & own
    again = build(Plan(3, rows[:4] + 99, np.zeros(4, dtype=np.int64), rows[[7, 2, 11, 0]]))
    width = min(again["candidate_ids"].shape[2], batch["candidate_ids"].shape[2])
    assert torch.equal(
        again["candidate_ids"][0, :, :width], batch["candidate_ids"][7, :, :width]
    )  # the record's own draw


def test_the_hardest_are_the_best_scored_negatives() -> None:
    scores = torch.randn(4, 21, generator=torch.Generator().manual_seed(0))
    for row, places in zip(scores.tolist(), hardest(scores, 5).tolist(), strict=True):
        ranked = sorted(range(1, 21), key=lambda i: -row[i])
        assert places[0] == 0
        assert places[1:] == ranked[:5]
    assert hardest(scores[:, :3], 5).tolist() == [
        [0, *sorted((1, 2), key=lambda i: -row[i])] for row in scores.tolist()
    ]


def test_the_loss_is_the_softmax_over_true_and_negatives() -> None:
    scores = torch.tensor([[1.0, 0.0, -1.0], [0.0, 3.0, 0.0]])
    by_hand = sum(np.log(np.exp(row).sum()) - row[0] for row in scores.double().numpy())
    assert float(retrieval_loss(scores)) == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("contrasted", [0, 2, 6])
def test_candidates_bring_their_own_images_as_pairs(tmp_path: Path, contrasted: int) -> None:
    records = MemoryRecords(tmp_path, random_texts(6, 3, words=(2, 4)))
    tokenizer = load_tokenizer(VOCABULARY)
    plain, build = (
        RetrievalBatches(
            records, tokenizer, ResizeRule(square=32), 32, 0, negatives=6, contrastive=on, contrasted=contrasted
        )
        for on in (False, True)
    )
    plan = Plan(0, np.arange(4), np.zeros(4, dtype=np.int64), np.array([2, 9, 4, 16]))
    batch, without = build(plan), plain(plan)
    assert torch.equal(batch["candidate_ids"], without["candidate_ids"])
    assert batch["contrast_image"].shape == (4, 1 + contrasted) and "contrast_image" not in without
    rows = batch["image_rows"].tolist()
    for images in (batch, without):  # the pair's own image, whatever else came along
        own = images["image_rows"][images["image_of_text"]]
        assert own.tolist() == records.image_of[plan.records].tolist()
    by_text = {text_key(records.text(r)): int(records.image_of[r]) for r in range(records.num_records)}
    columns = batch["own"].view(len(rows), 4, 1 + contrasted)
    for pair in range(4):
        for place in range(1 + contrasted):
            said = text_key(tokenizer.decode(batch["candidate_ids"][pair, place], skip_special_tokens=True))
            assert rows[int(batch["contrast_image"][pair, place])] == by_text[said]
            assert columns[:, pair, place].tolist() == [said in own_keys(records, row) for row in rows]
