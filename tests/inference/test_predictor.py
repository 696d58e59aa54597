"""Predictor: the same answers as `evaluate`, one by one as in batches, from several threads; plain values."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from untrained_runs import SIZES, WIDE, make_run

import pixelbert
from pixelbert.data.records import PreparedData
from pixelbert.inference.predictor import Predictor
from pixelbert.tasks.calibration import calibrate, scale_of
from pixelbert.tasks.task import Scoring
from pixelbert.training.evaluate import run_on_split
from pixelbert.training.loop import train
from tiny_runs import tiny_data, tiny_recipe
from tiny_tasks import task_data, task_recipe

NEAR = 1e-4
QUESTIONS = ["what is the man", "what is the small green dog under the tree", "cat", "what is the dog"]


def noise(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


PICTURES = [noise(1, 50, 90), noise(2), noise(3, 100, 40), noise(4, 64, 128)]


@pytest.fixture(scope="module")
def predictors(runs):
    made: dict[str, Predictor] = {}
    return lambda task: made.setdefault(task, Predictor.from_pretrained(runs(task)[0]))


def scored(runs, task):
    """Records of the val split, and the outcome of scoring them as `evaluate` does."""
    run, data = runs(task)
    found, model, batches, scoring = run_on_split(run, PreparedData(data), "val", Scoring(), "best")
    return batches.records, found.score(model, batches, scoring)


# -- the same as evaluate ----------------------------------------------------------------------------------------------


def test_ask_agrees_with_evaluate(runs, predictors):
    split, outcome = scored(runs, "question_answering")
    images = [split.image(int(split.image_of[row["split_record"]])).read() for row in outcome.rows]
    answers = predictors("question_answering").ask(images, [row["question"] for row in outcome.rows])
    assert [a.answer for a in answers] == [row["answer"] for row in outcome.rows]
    assert [a.probability for a in answers] == pytest.approx([row["probability"] for row in outcome.rows], abs=NEAR)
    assert len({round(a.probability, 3) for a in answers}) > 2  # they differ, so that agreeing means something


def test_they_agree_where_evaluate_reads_kept_features(tmp_path):
    """Kept maps are float16, and what `ask` computes anew is rounded alike."""
    data = task_data(tmp_path / "data", "question_answering")
    kept = ("train.keep_frozen_features=true", "backbone.frozen_stages=9")
    made = make_run(tmp_path / "run", task_recipe("question_answering", *WIDE, *SIZES, *kept), data)
    split, outcome = scored(lambda task: (made, data), "question_answering")
    assert list((tmp_path / "features").iterdir())
    images = [split.image(int(split.image_of[row["split_record"]])).read() for row in outcome.rows]
    answers = Predictor.from_pretrained(made).ask(images, [row["question"] for row in outcome.rows])
    assert [a.probability for a in answers] == pytest.approx([row["probability"] for row in outcome.rows], abs=6e-5)


def test_compare_agrees_with_evaluate(runs, predictors):
    split, outcome = scored(runs, "image_pairs")
    records = [row["split_record"] for row in outcome.rows]
    left = [split.image(int(split.image_of[r])).read() for r in records]
    right = [split.image(split.second_image(r)).read() for r in records]
    judged = predictors("image_pairs").compare(left, right, [row["statement"] for row in outcome.rows])
    assert [j.true for j in judged] == [row["judged"] for row in outcome.rows]
    assert [j.probability for j in judged] == pytest.approx([row["probability"] for row in outcome.rows], abs=NEAR)
    assert len({round(j.probability, 3) for j in judged}) > 2


@pytest.mark.parametrize("task", ["retrieval", "pretraining"])
def test_match_agrees_with_evaluate(runs, predictors, task):
    split, outcome = scored(runs, task)
    own = outcome.stated().log_odds[::2]  # every second is of a false caption
    records = [r for image in range(split.num_images) for r in split.records_of(image)]
    images = [split.image(int(split.image_of[r])).read() for r in records]
    found = predictors(task).match(images, [split.text(r) for r in records])
    np.testing.assert_allclose([m.log_odds for m in found], own, atol=NEAR)


def test_match_agrees_with_evaluate_where_words_are_looked_up_among_the_pixels(tmp_path):
    data = tiny_data(tmp_path / "data", train=15)
    made = train(tiny_recipe("itm.calibration_images=3", "itm.words=true", *SIZES), data, tmp_path / "run").run
    predictor = Predictor.from_pretrained(made)
    assert predictor.model.word_pixels.weight != 0
    split, outcome = scored(lambda task: (made, data), "pretraining")
    records = [r for image in range(split.num_images) for r in split.records_of(image)]
    images = [split.image(int(split.image_of[r])).read() for r in records]
    found = predictor.match(images, [split.text(r) for r in records])
    np.testing.assert_allclose([m.log_odds for m in found], outcome.stated().log_odds[::2], atol=NEAR)


def test_rank_agrees_with_evaluate(runs, predictors):
    split, outcome = scored(runs, "retrieval")
    images = [split.image(i).read() for i in range(split.num_images)]
    for row in outcome.rows[:3]:
        ranking = predictors("retrieval").rank(images, row["text"])
        assert [split.image_id(r.index) for r in ranking] == row["best"]


def test_fill_agrees_with_the_model_itself(runs, predictors):
    predictor = predictors("pretraining")
    filling = predictor.fill(PICTURES[1], "a ___ dog", top=3)
    inputs = predictor.processor(images=PICTURES[1], text="a [MASK] dog")
    with torch.no_grad():
        logits = predictor.model(**inputs).mlm_logits[0, 2]
        alone = predictor.model(inputs["input_ids"]).mlm_logits[0, 2].softmax(-1).max()
    chances, ids = logits.softmax(-1).topk(3)
    assert [g.text for g in filling.places[0].guesses] == predictor.processor.tokenizer.convert_ids_to_tokens(ids)
    assert [g.probability for g in filling.places[0].guesses] == pytest.approx(chances.tolist(), abs=NEAR)
    assert filling.places[0].without[0].probability == pytest.approx(float(alone), abs=NEAR)


# -- many as one by one ------------------------------------------------------------------------------------------------


def test_mixed_sizes_give_the_same_as_one_by_one(predictors):
    predictor = predictors("question_answering")
    together = predictor.ask(PICTURES, QUESTIONS)
    for picture, question, answer in zip(PICTURES, QUESTIONS, together, strict=True):
        alone = predictor.ask(picture, question)
        assert alone.answer == answer.answer
        for one, other in zip(alone.guesses, answer.guesses, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=NEAR)


def test_many_texts_go_in_several_batches(predictors):
    texts = [f"{'dog ' * (i % 7)}cat {i}" for i in range(150)]
    predictor = predictors("retrieval")
    many = predictor.match(PICTURES[0], texts)
    for place in (0, 63, 64, 149):
        assert many[place].text == texts[place]
        assert many[place].log_odds == pytest.approx(predictor.match(PICTURES[0], texts[place]).log_odds, abs=NEAR)


def test_one_with_many_and_pairs(predictors):
    predictor = predictors("retrieval")
    assert [m.text for m in predictor.match(PICTURES, "dog")] == ["dog"] * 4
    rows = predictor.match(PICTURES[:2], ["dog", "cat"])
    assert rows[1].log_odds == pytest.approx(predictor.match(PICTURES[1], "cat").log_odds, abs=NEAR)
    assert isinstance(predictor.match([PICTURES[0]], "dog"), list)
    assert not isinstance(predictor.match(PICTURES[0], "dog"), list)


def test_left_and_right_are_not_the_same(predictors):
    compare = predictors("image_pairs").compare
    there, back = compare(PICTURES[0], PICTURES[1], "a dog"), compare(PICTURES[1], PICTURES[0], "a dog")
    assert abs(there.probability - back.probability) > NEAR
    both = compare(PICTURES[0], [PICTURES[1], PICTURES[2]], "a dog")
    assert both[0].probability == pytest.approx(there.probability, abs=NEAR)


# -- what a picture may be ---------------------------------------------------------------------------------------------


def test_every_kind_of_picture_gives_the_same(predictors, tmp_path):
    image = Image.fromarray(PICTURES[1])
    image.save(tmp_path / "photo.png")
    kinds = [tmp_path / "photo.png", str(tmp_path / "photo.png"), (tmp_path / "photo.png").read_bytes(), image,
             PICTURES[1], torch.from_numpy(PICTURES[1]).permute(2, 0, 1)]  # fmt: skip
    found = {round(m.log_odds, 5) for m in predictors("retrieval").match(kinds, "dog")}
    assert len(found) == 1


def test_a_url_is_opened_only_when_allowed(runs, monkeypatch):
    data = io.BytesIO()
    Image.fromarray(PICTURES[1]).save(data, "PNG")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: io.BytesIO(data.getvalue()))
    run = runs("retrieval")[0]
    with pytest.raises(pixelbert.errors.UsageError, match="allow_urls"):
        Predictor.from_pretrained(run).match("https://example.org/a.png", "dog")
    opened = Predictor.from_pretrained(run, allow_urls=True)
    assert opened.match("https://example.org/a.png", "dog") == opened.match(PICTURES[1], "dog")


# -- the cache ---------------------------------------------------------------------------------------------------------


def encodings(predictor, monkeypatch) -> list[int]:
    """Filled with the number of pictures of every pass of the CNN from now on."""
    seen: list[int] = []
    whole = predictor.objective.encode_images
    monkeypatch.setattr(
        predictor.objective, "encode_images", lambda batch: seen.append(len(batch["image_sizes"])) or whole(batch)
    )
    return seen


def test_a_picture_is_encoded_once_whatever_it_comes_as(runs, monkeypatch):
    predictor = Predictor.from_pretrained(runs("retrieval")[0])
    seen = encodings(predictor, monkeypatch)
    predictor.match([PICTURES[1]] * 3, ["a", "b", "c"])
    predictor.match(PICTURES[1].copy(), "d")
    predictor.rank(PICTURES[1], ["a", "b"])
    assert seen == [1]
    predictor.match([PICTURES[0], noise(9)], "dog")
    assert sum(seen) == 3


def test_the_cache_keeps_to_its_bound(runs, monkeypatch):
    predictor = Predictor.from_pretrained(runs("retrieval")[0])
    one = predictor._grids([predictor._grids.read(noise(1), "")])[0].bytes
    predictor._grids.most_bytes = 2 * one
    seen = encodings(predictor, monkeypatch)
    pictures = [noise(i) for i in range(10, 14)]
    predictor.match(pictures, "dog")
    assert predictor._grids._bytes <= 2 * one and len(predictor._grids._kept) == 2
    predictor.match([pictures[3], pictures[2]], "cat")  # the last two are still there
    assert sum(seen) == 4
    predictor.match(pictures[0], "cat")
    assert sum(seen) == 5


def test_no_cache_gives_the_same(runs, predictors):
    without = Predictor.from_pretrained(runs("retrieval")[0], cache_megabytes=0)
    found, kept = without.match(PICTURES, "dog"), predictors("retrieval").match(PICTURES, "dog")
    assert [m.log_odds for m in found] == pytest.approx([m.log_odds for m in kept], abs=NEAR)
    assert not without._grids._kept
    for size, told in ((-1, "0 keeps no picture"), ("x", "not a whole number"), (None, "not a whole number")):
        with pytest.raises(pixelbert.errors.UsageError, match=told):
            Predictor.from_pretrained(runs("retrieval")[0], cache_megabytes=size)


def test_threads_get_their_own_answers(runs):
    predictor = Predictor.from_pretrained(runs("question_answering")[0], cache_megabytes=0)
    jobs = [(PICTURES[i % 4], QUESTIONS[(i // 4) % 4]) for i in range(16)]
    expected = [predictor.ask(*job) for job in jobs]
    gate = threading.Barrier(4)

    def work(start: int):
        gate.wait()
        return [(i, predictor.ask(*jobs[i])) for i in range(start, 16, 4)]

    with ThreadPoolExecutor(4) as pool:
        for i, answer in (pair for part in pool.map(work, range(4)) for pair in part):
            assert answer.answer == expected[i].answer
            assert answer.probability == pytest.approx(expected[i].probability, abs=NEAR)


# -- probabilities -----------------------------------------------------------------------------------------------------


def test_the_runs_calibration_is_used(runs, tmp_path):
    import shutil

    run = shutil.copytree(runs("question_answering")[0], tmp_path / "run")
    plain = Predictor.from_pretrained(run).ask(PICTURES[0], QUESTIONS[0])
    assert not plain.calibrated and plain.knows is None and plain.said == plain.answer
    calibration = calibrate(scored(runs, "question_answering")[1].stated())
    for threshold, knows in ((1.0, False), (0.0, True)):
        (run / "calibration.json").write_text(json.dumps(calibration | {"threshold": threshold}))
        answer = Predictor.from_pretrained(run).ask(PICTURES[0], QUESTIONS[0])
        assert answer.calibrated and answer.knows is knows
        assert answer.said == (answer.answer if knows else "I do not know")
        log_odds = np.log(plain.probability / (1 - plain.probability))
        assert answer.probability == pytest.approx(float(scale_of(calibration).probability(log_odds)), abs=1e-5)


def test_a_blind_run_sees_nothing(runs, tmp_path):
    import shutil

    run = shutil.copytree(runs("retrieval")[0], tmp_path / "run")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("\nblind: false", "\nblind: true"))
    log_odds = [m.log_odds for m in Predictor.from_pretrained(run).match([noise(1), noise(2)], "dog")]
    assert log_odds[0] == pytest.approx(log_odds[1], abs=1e-6)


# -- values ------------------------------------------------------------------------------------------------------------


def test_results_are_plain(predictors):
    found = [
        predictors("question_answering").ask(PICTURES[0], "cat"),
        predictors("image_pairs").compare(PICTURES[0], PICTURES[1], "cat"),
        predictors("retrieval").match(PICTURES[0], "cat"),
        predictors("retrieval").rank(PICTURES, "cat")[0],
        predictors("pretraining").fill(PICTURES[0], "a ___"),
        predictors("pretraining").attend(PICTURES[0], "a red dog", "dog"),
    ]
    for result in found:
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()


def test_guesses_come_best_first_and_as_many_as_wanted(predictors):
    answer = predictors("question_answering").ask(PICTURES[0], "cat", top=2)
    chances = [guess.probability for guess in answer.guesses]
    assert len(chances) == 2 and chances == sorted(chances, reverse=True)
    assert (answer.answer, answer.probability) == (answer.guesses[0].text, chances[0])


def test_fill_with_several_texts_and_places(predictors):
    fill = predictors("pretraining").fill
    both = fill(PICTURES[:2], ["a ___ dog [MASK]", "the __"], top=2)
    assert [len(f.places) for f in both] == [2, 1]
    alone = fill(PICTURES[1], "the [MASK]", top=2).places[0].guesses
    for one, other in zip(both[1].places[0].guesses, alone, strict=True):
        assert (one.text, one.probability) == (other.text, pytest.approx(other.probability, abs=NEAR))
    assert "[MASK]" not in both[0].filled
    assert fill(None, "a ___").places[0].guesses == []


def test_a_cut_text_says_so(predictors):
    long = " ".join(["dog"] * 60)
    assert predictors("retrieval").match(PICTURES[0], long).cut
    assert not predictors("retrieval").match(PICTURES[0], "dog").cut


def test_vectors_are_those_that_evaluate_ranks_by(runs, predictors):
    from pixelbert.tasks.held_out import HeldOutPairs

    run, data = runs("retrieval")
    _, model, batches, _ = run_on_split(run, PreparedData(data), "val", Scoring(), "best")
    held_out = HeldOutPairs(model, batches, list(range(4)))
    predictor, split = predictors("retrieval"), batches.records
    images = np.array(predictor.image_vectors([split.image(i).read() for i in range(4)]))
    texts = np.array(predictor.text_vectors([split.text(r) for r in held_out.records]))
    np.testing.assert_allclose(images @ texts.T, held_out.pooled_scores(), atol=NEAR)
    assert isinstance(predictor.text_vectors("dog")[0], float)
    assert isinstance(predictor.image_vectors(PICTURES[0])[0], float)


def test_attend_lies_over_the_photo(predictors):
    predictor = predictors("pretraining")
    everything = predictor.attend(PICTURES[3], "a red dog")
    assert [a.word for a in everything] == ["a", "red", "dog"]
    dog = predictor.attend(PICTURES[3], "a red dog", "dog", layer=2, head=1)
    assert (dog.layer, dog.head) == (2, 1)
    assert sum(map(sum, dog.weights)) == pytest.approx(1)
    assert dog.boxes[0][0][:2] == [0, 0] and dog.boxes[-1][-1][2:] == [128, 64]
    assert predictor.attention_picture(PICTURES[3], "a red dog", "dog").size[0] > 128
