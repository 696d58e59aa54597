"""Held-out scores: the same places for any model, each score equal to the model's own on the pair alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memory_records import VOCABULARY, MemoryRecords, batches_of, random_texts, tiny_model
from pixelbert.data.images import ResizeRule, load_ref
from pixelbert.errors import DataError
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.tasks.masking import IGNORED
from pixelbert.tasks.pretraining_scores import HeldOut, figure_names, validate, word_accuracy
from pixelbert.tasks.pretraining_task import Pretraining
from pixelbert.tasks.task import Scoring

MASK = VOCABULARY.index("[MASK]")
SQUARE = ResizeRule(square=64)
RULE = ResizeRule(shorter=64, longer=160, multiple=32)  # this CNN pools by averages: see `multiple_for_backbone`


def held_out(
    folder: Path, model: PixelBertForPreTraining | None = None, *, images: int = 5, texts: int = 3,
    rule: ResizeRule = RULE, blind: bool = False, **options: Any,
) -> HeldOut:  # fmt: skip
    """Five pictures of three shapes (two of them wider than the others' grids), three captions each."""
    records = MemoryRecords(folder, random_texts(images, texts), sizes=[(64, 64), (64, 150), (128, 64)])
    batches = batches_of(records, rule, constant=(120, 110, 100) if blind else None)
    return HeldOut(model or tiny_model(), batches, list(range(images)), **options)


@pytest.fixture
def scored(tmp_path: Path) -> HeldOut:
    return held_out(tmp_path)


def pixels_of(held: HeldOut, image: int) -> torch.Tensor:
    ref = held.batches.records.image(held.images[image])
    return torch.from_numpy(load_ref(ref, held.batches.rule).copy()).permute(2, 0, 1)[None]


@torch.no_grad()
def plain_match(held: HeldOut, image: int, text: int) -> float:
    """The log-odds of a match of one pair alone: no batch, no padding, no grid kept."""
    output = held.model(torch.from_numpy(held.texts[text])[None], pixel_values=pixels_of(held, image))
    return float(output.itm_logits[0, 1] - output.itm_logits[0, 0])


# -- which texts and places ------------------------------------------------------------------------------------------


def test_some_captions_of_each_image_are_kept(tmp_path: Path) -> None:
    held = held_out(tmp_path, captions_per_image=2)
    assert held.records == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    assert held.image_of.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    records = held.batches.records
    chosen = HeldOut(tiny_model(), held.batches, [4, 1])
    assert [records.record_id(r) for r in chosen.records] == [f"record-{r}" for r in (12, 13, 14, 3, 4, 5)]
    assert chosen.image_of.tolist() == [0, 0, 0, 1, 1, 1]


def test_two_models_are_asked_the_same_words(tmp_path: Path) -> None:
    one, two = held_out(tmp_path, tiny_model(0)), held_out(tmp_path, tiny_model(1), blind=True, batch_size=2)
    asked = [[(row["record"], row["place"], row["word"]) for row in held.masked_words()] for held in (one, two)]
    assert asked[0] == asked[1]
    assert {record for record, _, _ in asked[0]} == {f"record-{r}" for r in range(15)}  # at least one a text
    other = held_out(tmp_path, seed=99)
    assert [(row["record"], row["place"], row["word"]) for row in other.masked_words()] != asked[0]


def test_the_words_asked_for_are_the_captions_own(scored: HeldOut) -> None:
    for row in scored.masked_words():
        text = scored.batches.records.text(int(row["record"].removeprefix("record-")))
        assert VOCABULARY[row["word"]] == text.split()[row["place"] - 1]


def test_masks_do_not_depend_on_the_run_s_own_masking(tmp_path: Path) -> None:
    records = MemoryRecords(tmp_path, random_texts(4, 2))
    plain, other = (
        HeldOut(tiny_model(), batches_of(records, SQUARE, **settings), [0, 1, 2, 3])
        for settings in ({}, {"mask_probability": 0.6, "whole_word": True, "seed": 7})
    )
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(plain.masked, other.masked, strict=True))


@pytest.mark.parametrize("images", [2, 3, 5, 40])
def test_shuffled_images_are_never_the_own_one(tmp_path: Path, images: int) -> None:
    records = MemoryRecords(tmp_path, random_texts(images, 1))
    held = HeldOut(tiny_model(), batches_of(records, SQUARE, constant=(0, 0, 0)), list(range(images)))
    other = held.shuffled()
    assert sorted(other) == list(range(images))
    assert (other != np.arange(images)).all()
    assert (other == held.shuffled()).all()


def test_false_captions_are_of_other_images_and_differ_from_the_own(tmp_path: Path) -> None:
    texts = [["a dog", "the cat"], ["A dog.", "red ball"], ["the cat"], ["snow", "a man"]]
    records = MemoryRecords(tmp_path, texts)
    held = HeldOut(tiny_model(), batches_of(records, SQUARE, constant=(0, 0, 0)), [0, 1, 2, 3])
    allowed = {0: {3, 5, 6}, 1: {3, 5, 6}, 2: {1, 4, 5, 6}, 3: {1, 4, 5, 6}, 4: {2, 3, 5, 6}, 5: {0, 1, 2, 3, 4},
               6: {0, 1, 2, 3, 4}}  # fmt: skip
    for text, right in allowed.items():
        assert held.false_caption(text) in right
        assert held.false_caption(text) == held.false_caption(text)


def test_too_little_to_tell_apart_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 held-out image\(s\) with 3 text\(s\): 2 are needed"):
        held_out(tmp_path, images=1)
    records = MemoryRecords(tmp_path, [["a dog"], ["A dog."], ["a dog"]])
    same = HeldOut(tiny_model(), batches_of(records, SQUARE, constant=(0, 0, 0)), [0, 1, 2])
    with pytest.raises(DataError, match="no mismatched text"):
        same.itm_accuracy()


# -- scores ----------------------------------------------------------------------------------------------------------


def test_filled_in_words_are_those_of_each_pair_alone(scored: HeldOut) -> None:
    rows = {(row["record"], row["place"]): row for row in scored.masked_words()}
    other = scored.shuffled()
    seen = 0
    with torch.no_grad():
        for text, (ids, labels) in enumerate(scored.masked):
            own = int(scored.image_of[text])
            for key, image in (("predicted", own), ("predicted_shuffled", int(other[own]))):
                output = scored.model(torch.from_numpy(ids)[None], pixel_values=pixels_of(scored, image))
                for place in np.flatnonzero(labels != IGNORED):
                    assert rows[f"record-{text}", int(place)][key] == int(output.mlm_logits[0, place].argmax())
                    seen += 1
    assert seen == 2 * len(rows)


def test_exact_scores_are_pair_by_pair(scored: HeldOut) -> None:
    scores, image_of_text = scored.exact_scores(3)
    assert scores.shape == (3, 9)
    assert image_of_text.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    plain = [[plain_match(scored, image, text) for text in range(9)] for image in range(3)]
    assert scores == pytest.approx(np.array(plain), abs=1e-4)
    everything, image_of_all = scored.exact_scores(100)
    assert everything.shape == (5, 15) and len(image_of_all) == 15
    assert everything[:3, :9] == pytest.approx(scores, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_scores_do_not_depend_on_the_batch(tmp_path: Path, batch_size: int) -> None:
    one, other = held_out(tmp_path), held_out(tmp_path, batch_size=batch_size)
    images, texts = np.repeat(np.arange(5), 15), np.tile(np.arange(15), 5)
    assert other.match_scores(images, texts) == pytest.approx(one.match_scores(images, texts), abs=1e-5)
    assert other.pooled_scores() == pytest.approx(one.pooled_scores(), abs=1e-5)
    assert other.masked_words() == one.masked_words()


@torch.no_grad()
def test_pooled_scores_are_cosines_of_the_two_vectors(scored: HeldOut) -> None:
    model = scored.model
    assert model.contrastive is not None
    pooled = scored.pooled_scores()
    assert pooled.shape == (5, 15)
    for image in range(5):
        grid = model.pixelbert.encode_images(pixels_of(scored, image))
        a = model.contrastive.image(grid.pixels[0].mean(0))
        for text in range(0, 15, 4):
            hidden = model.pixelbert.text(torch.from_numpy(scored.texts[text])[None]).last_hidden_state
            b = model.contrastive.text(hidden[0].mean(0))
            cosine = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
            assert pooled[image, text] == pytest.approx(cosine, abs=1e-5)


def test_itm_accuracy_of_a_model_made_by_hand(scored: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(images: np.ndarray, texts: np.ndarray, what: str = "") -> np.ndarray:
        asked.append((images, texts))
        own = scored.image_of[texts] == images
        return np.where(np.where(own, images < 2, texts % 2), 1.0, -1.0)  # matches: own ones of images 0 and 1

    asked: list[tuple[np.ndarray, np.ndarray]] = []
    monkeypatch.setattr(scored, "match_scores", scores)
    accuracy = scored.itm_accuracy()
    (own_images, own_texts), (images, false) = asked
    assert own_images.tolist() == scored.image_of.tolist() and own_texts.tolist() == list(range(15))
    assert images.tolist() == scored.image_of.tolist()
    assert (scored.image_of[false] != images).all()
    rejected = int((false % 2 == 0).sum())  # the others count as matches
    assert accuracy == pytest.approx(100 * (6 / 15 + rejected / 15) / 2)


def test_itm_accuracy_of_one_answer_for_all_is_a_half(scored: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (-1.0, 0.0, 1.0):  # no preference counts as a mismatch
        monkeypatch.setattr(scored, "match_scores", lambda images, texts, what, v=value: np.full(len(texts), v))
        assert scored.itm_accuracy() == 50


def test_itm_accuracy_of_the_model_itself(scored: HeldOut) -> None:
    right = []
    for text in range(15):
        right.append(plain_match(scored, int(scored.image_of[text]), text) > 0)
        right.append(plain_match(scored, int(scored.image_of[text]), scored.false_caption(text)) <= 0)
    assert scored.itm_accuracy() == pytest.approx(100 * np.mean(right))


# -- re-ranking ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shortlist", [1, 2, 4, 5, 50])
def test_re_ranking_puts_the_shortlist_in_itm_order_before_the_rest(
    scored: HeldOut, monkeypatch: pytest.MonkeyPatch, shortlist: int
) -> None:
    draw = np.random.default_rng(shortlist)
    pooled, match = draw.normal(size=(5, 15)).astype(np.float32), draw.normal(size=(5, 15)) * 10 - 30
    asked = []

    def scores(images: np.ndarray, texts: np.ndarray, what: str = "") -> np.ndarray:
        asked.extend(zip(images.tolist(), texts.tolist(), strict=True))
        return match[images, texts]

    monkeypatch.setattr(scored, "match_scores", scores)
    reranked = scored.rerank(pooled, shortlist)
    wanted = []
    for text in range(15):
        by_vectors = sorted(range(5), key=lambda image: -pooled[image, text])
        short, rest = by_vectors[:shortlist], by_vectors[shortlist:]
        wanted += [(image, text) for image in short]
        expected = sorted(short, key=lambda image: -match[image, text]) + rest
        assert np.argsort(-reranked[:, text]).tolist() == expected
    assert sorted(asked) == sorted(wanted)


def test_the_pooled_scores_are_left_as_they_are(scored: HeldOut) -> None:
    pooled = scored.pooled_scores()
    before = pooled.copy()
    scored.rerank(pooled, 2)
    assert (pooled == before).all()


# -- all together ----------------------------------------------------------------------------------------------------


def test_validation_gives_the_figures_it_names(scored: HeldOut) -> None:
    for exact, shortlist in ((0, 0), (3, 0), (3, 2)):
        figures, rows = validate(scored, exact, shortlist)
        assert list(figures) == sorted(figures, key=list(figures).index)
        assert set(figures) == set(figure_names(bool(exact), True, bool(shortlist)))
        assert all(0 <= value <= 100 for name, value in figures.items() if "gain" not in name)
    assert figures["mlm_accuracy"] == pytest.approx(100 * np.mean([row["word"] == row["predicted"] for row in rows]))
    assert figures["mlm_gain_shuffled"] == figures["mlm_accuracy"] - figures["mlm_accuracy_shuffled"]
    scores, image_of_text = scored.exact_scores(3)
    first = [scores[:, text].argmax() == image_of_text[text] for text in range(9)]
    assert figures["itm_t2i_r1"] == pytest.approx(100 * np.mean(first))


def test_a_model_without_pooled_vectors_has_no_dual_figures(tmp_path: Path) -> None:
    figures, _ = validate(held_out(tmp_path, tiny_model(contrastive_size=0)), 2, 2)
    assert set(figures) == set(figure_names(True, False))


def test_a_blind_model_gains_nothing_from_the_picture(tmp_path: Path) -> None:
    held = held_out(tmp_path, rule=SQUARE, blind=True)
    figures, rows = validate(held)
    assert figures["mlm_gain_shuffled"] == 0
    assert all(row["predicted"] == row["predicted_shuffled"] for row in rows)
    assert held.match_scores(np.zeros(15, dtype=int), np.arange(15)) == pytest.approx(
        held.match_scores(np.full(15, 4), np.arange(15)), abs=1e-6
    )


def test_of_a_blind_model_no_ranking_is_asked() -> None:
    scoring = Pretraining().blind_scoring(Scoring(exact_images=200, shortlist=20, seed=7))
    assert (scoring.exact_images, scoring.shortlist, scoring.seed) == (0, 0, 7)


def test_dropout_is_off_while_scoring(tmp_path: Path) -> None:
    model = tiny_model(text={"hidden_dropout_prob": 0.5}, visual_dropout=0.5).train()
    held = held_out(tmp_path, model)
    assert held.masked_words() == held.masked_words()
    assert (held.pooled_scores() == held.pooled_scores()).all()


def test_word_accuracy() -> None:
    rows = [{"word": 1, "predicted": 1, "predicted_shuffled": 2}, {"word": 3, "predicted": 4, "predicted_shuffled": 3}]
    assert word_accuracy([*rows, rows[0], rows[0]]) == 75
    assert word_accuracy(rows, "predicted_shuffled") == 50
    assert word_accuracy([]) == 0


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    held = held_out(tmp_path, batch_size=4, progress=lambda *args: said.append(args))
    held.itm_accuracy()
    for what in ("images", "matches", "mismatches"):
        done = [(n, total) for name, n, total in said if name == what]
        assert done == sorted(done) and done[-1][0] == done[-1][1]


# -- grids -----------------------------------------------------------------------------------------------------------


def test_grids_of_many_batches_keep_their_images(tmp_path: Path) -> None:
    """More images than one forward pass takes, of three shapes."""
    records = MemoryRecords(tmp_path, random_texts(40, 1), sizes=[(64, 64), (64, 150), (128, 64)])
    held = HeldOut(tiny_model(), batches_of(records, RULE), list(range(40)))
    chosen = [0, 31, 32, 34, 39]
    kept = held.grids.select(torch.tensor(chosen))
    for place, image in enumerate(chosen):
        alone = held.model.pixelbert.encode_images(pixels_of(held, image)).pixels[0]
        assert torch.allclose(kept.pixels[place][kept.mask[place]], alone, atol=1e-4)
