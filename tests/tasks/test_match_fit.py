"""The fit of matches: against its own optimality condition, and on pairs whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from memory_records import MemoryRecords, batches_of, random_texts, tiny_model
from pixelbert.errors import UsageError
from pixelbert.recipes.schema import load_recipe
from pixelbert.tasks import match_fit
from pixelbert.tasks.calibration import logistic_regression, softmax_regression
from pixelbert.tasks.held_out import HeldOutPairs
from pixelbert.tasks.match_fit import fit_matches
from pixelbert.tasks.objective import match_log_odds
from pixelbert.tasks.pretraining_task import Pretraining
from pixelbert.tasks.task import Scoring


def test_logistic_regression_finds_the_weights_that_made_the_labels() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20_000, 2)) * [1.0, 30.0]
    chance = 1 / (1 + np.exp(-(1.5 * x[:, 0] - 0.05 * x[:, 1] + 0.7)))
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    a, w, b = logistic_regression(design, (draw.random(len(x)) < chance).astype(float), np.array([1.0, 0.0, 0.0]))
    assert (a, w, b) == pytest.approx((1.5, -0.05, 0.7), rel=0.1)


def test_it_stays_finite_where_pairs_are_told_apart_perfectly() -> None:
    x = np.array([[-2.0, 1], [-1.0, 1], [1.0, 1], [2.0, 1]])
    a, b = logistic_regression(x, np.array([0.0, 0, 1, 1]), np.array([1.0, 0.0]))
    assert np.isfinite([a, b]).all() and a > 0 and abs(b) < 1e-6


def test_softmax_regression_finds_the_weights_that_made_the_choices() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20_000, 5, 2)) * [1.0, 30.0]
    chance = np.exp(x @ [1.5, -0.05])
    chance /= chance.sum(1, keepdims=True)
    right = (draw.random((len(x), 1)) < chance.cumsum(1)).argmax(1)
    assert softmax_regression(x, right, np.array([1.0, 0.0])) == pytest.approx([1.5, -0.05], rel=0.1)


def test_of_two_choices_softmax_is_logistic_regression_on_their_difference() -> None:
    draw = np.random.default_rng(1)
    x, right, start = draw.normal(size=(50, 2, 3)), draw.integers(0, 2, 50), np.array([1.0, 0.0, 0.5])
    logistic = logistic_regression(x[:, 1] - x[:, 0], right.astype(float), start)
    assert softmax_regression(x, right, start) == pytest.approx(logistic, abs=1e-8)


def test_choices_that_differ_in_nothing_leave_the_weights_where_they_start() -> None:
    x = np.broadcast_to(np.arange(6.0).reshape(3, 1, 2), (3, 4, 2))
    assert softmax_regression(x, np.array([0, 3, 1]), np.array([1.0, 0.0])) == pytest.approx([1.0, 0.0])


def loss(held_out: HeldOutPairs) -> float:
    """Mean cross-entropy of own captions and as many foreign ones, by the model's log-odds."""
    own, false = np.arange(len(held_out.records)), [held_out.false_caption(i) for i in range(len(held_out.records))]
    true = held_out.match_scores(held_out.image_of, own)
    foreign = held_out.match_scores(held_out.image_of, np.array(false))
    return float((np.logaddexp(0, -true) + np.logaddexp(0, foreign)).mean())


def test_the_fitted_model_is_the_weighted_sum_and_loses_less(tmp_path: Path) -> None:
    model = tiny_model(contrastive_size=8, match_fitted=True)
    batches = batches_of(MemoryRecords(tmp_path, random_texts(12, 3)))
    held_out = HeldOutPairs(model, batches, list(range(12)), 3)
    images, texts = np.repeat(np.arange(12), 3), np.arange(36)
    plain = held_out.match_scores(images, texts)
    cosine = held_out.pooled_scores()[images, texts] * model.contrastive.log_scale.exp().item()
    before = loss(held_out)
    a, w, _, b = fit_matches(held_out)
    assert loss(held_out) < before
    assert model.match_fit.tolist() == pytest.approx([a, w, b])
    assert held_out.match_scores(images, texts) == pytest.approx(a * plain + w * cosine + b, abs=1e-4)


def test_an_unfitted_model_says_what_its_head_says(tmp_path: Path) -> None:
    models = [tiny_model(contrastive_size=8, match_fitted=fitted) for fitted in (False, True)]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    batches = batches_of(MemoryRecords(tmp_path, random_texts(3, 2)))
    batch = batches.image_batch([0, 1], [0, 0]) | batches.text_batch(["the dog run", "red ball"])
    scores = []
    for model in models:
        with torch.no_grad():
            grid = model.eval().pixelbert.encode_images(batch["pixel_values"])
            scores.append(match_log_odds(model, batch["input_ids"], batch["attention_mask"], grid))
    assert torch.allclose(*scores)


def test_a_ranking_task_takes_the_proportion_from_shortlists_and_the_rest_from_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a brute-force search: no other proportion makes the own photo of a shortlist likelier."""
    model = tiny_model(contrastive_size=8, match_fitted=True)
    held_out = HeldOutPairs(model, batches_of(MemoryRecords(tmp_path, random_texts(12, 3))), list(range(12)), 3)
    images, texts = np.repeat(np.arange(12), 36), np.tile(np.arange(36), 12)
    plain = held_out.match_scores(images, texts).reshape(12, 36)
    cosine = held_out.pooled_scores() * model.contrastive.log_scale.exp().item()
    a, w, _, b = fit_matches(held_out, 5)

    def likelihood(own: float, pooled: float) -> float:
        total = 0.0
        for text, image in enumerate(held_out.image_of):
            best = np.argsort(-cosine[:, text], kind="stable")[:5]
            if image in best:
                z = own * plain[:, text] + pooled * cosine[:, text]
                total += z[image] - np.logaddexp.reduce(z[best])
        return total - ((own - 1) ** 2 + pooled**2) / 2

    best = max((likelihood(x, y), x, y) for x in np.linspace(-3, 3, 61) for y in np.linspace(-3, 3, 61))
    assert np.arctan2(w, a) == pytest.approx(np.arctan2(best[2], best[1]), abs=0.1)
    assert held_out.match_scores(images[:36], texts[:36]) == pytest.approx(a * plain[0] + w * cosine[0] + b, abs=1e-4)
    assert not np.allclose(fit_matches(held_out), [a, w, 0.0, b])


def test_words_found_among_the_pixels_join_the_sum(tmp_path: Path) -> None:
    model = tiny_model(contrastive_size=8, match_fitted=True, match_words=True)
    records = MemoryRecords(tmp_path, random_texts(12, 3))
    held_out = HeldOutPairs(model, batches_of(records), list(range(12)), 3)
    images, texts = np.repeat(np.arange(12), 3), np.arange(36)
    plain = held_out.match_scores(images, texts)
    cosine = held_out.pooled_scores()[images, texts] * model.contrastive.log_scale.exp().item()
    before = loss(held_out)
    a, w, v, b = fit_matches(held_out)
    assert loss(held_out) < before and v != 0.0
    words = held_out.word_scores(images, texts)
    assert held_out.match_scores(images, texts) == pytest.approx(a * plain + w * cosine + v * words + b, abs=1e-4)
    ids = np.concatenate([text[1:-1] for text in held_out.texts])
    share = {piece: ((ids == piece).sum() + 1) / len(ids) for piece in set(ids.tolist())}
    whole = -np.mean([sum(np.log(share[piece]) for piece in text[1:-1].tolist()) for text in held_out.texts])
    assert model.word_pixels.rarity[ids[0]].item() == pytest.approx(-np.log(share[ids[0]]) / whole, rel=1e-5)
    middle = torch.tensor([[1 + len(ids) // 72]])  # the place in the middle of an average text
    with torch.no_grad():
        word = model.pixelbert.text.embeddings(torch.tensor([[ids[0]]]), position_ids=middle)[0]
        found = [model.word_pixels.best(word, held_out.grids.select(torch.tensor([i]))).item() for i in range(12)]
    assert model.word_pixels.usual[ids[0]].item() == pytest.approx(np.mean(found), abs=1e-4)


def test_with_words_a_fitted_model_is_saved_whole_and_scores_a_pair_as_in_a_batch(tmp_path: Path) -> None:
    model = tiny_model(contrastive_size=8, match_fitted=True, match_words=True)
    batches = batches_of(MemoryRecords(tmp_path, random_texts(6, 2), sizes=((32, 32), (64, 32), (32, 96))))
    held_out = HeldOutPairs(model, batches, list(range(6)), 2)
    fit_matches(held_out)
    model.save_pretrained(tmp_path / "run")
    again = type(model).from_pretrained(tmp_path / "run").eval()
    texts = ["the dog run", "red ball on the small table in the street near a tree", "a cat"]
    with torch.no_grad():
        together = batches.image_batch([0, 1, 2], [0] * 3) | batches.text_batch(texts)
        grid = again.pixelbert.encode_images(together["pixel_values"], together["image_sizes"])
        scores = match_log_odds(again, together["input_ids"], together["attention_mask"], grid)
        for i, text in enumerate(texts):
            one = batches.image_batch([i], [0]) | batches.text_batch([text])
            grid = model.pixelbert.encode_images(one["pixel_values"], one["image_sizes"])
            alone = match_log_odds(model, one["input_ids"], one["attention_mask"], grid)
            assert alone.item() == pytest.approx(scores[i].item(), rel=1e-4, abs=1e-4)


def test_words_are_weighed_on_shortlists_whatever_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in pretraining, whose other features are weighed on random pairs."""
    monkeypatch.setattr(match_fit, "LISTED", 5)
    batches = batches_of(MemoryRecords(tmp_path, random_texts(12, 3)))
    for words, shortlist in ((False, 0), (True, 5)):
        model = tiny_model(contrastive_size=8, match_fitted=True, match_words=words)
        told = Pretraining().finish(model, batches, Scoring(captions_per_image=3))
        assert (" of words" in told) == words
        found = model.match_fit.tolist()
        fit = fit_matches(HeldOutPairs(model, batches, list(range(12)), 3), shortlist)
        assert found == pytest.approx([fit.own, fit.pooled, fit.constant])


@pytest.mark.parametrize("change", ["itm.calibration_images=0", "contrastive_size=0"])
def test_words_need_pictures_kept_out_and_shortlists(change: str) -> None:
    both = ("itm.calibration_images=3", "loss.contrastive=0", "itm.words=true")
    assert load_recipe("pretrain-tiny", both).itm.words
    with pytest.raises(UsageError, match=r"it needs itm\.calibration_images and contrastive_size"):
        load_recipe("pretrain-tiny", [*both, change])
