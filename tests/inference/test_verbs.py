"""The verbs on a run: what they print for people and as JSON, and that both are the Predictor's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from pixelbert import cli
from pixelbert.inference.predictor import Predictor
from pixelbert.inference.shown import bar, percent


@pytest.fixture
def photos(tmp_path):
    paths = [str(tmp_path / f"{name}.png") for name in ("left", "right")]
    for seed, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    return paths


def run_verb(capsys, *arguments: str) -> str:
    assert cli.main(list(arguments)) == 0
    return capsys.readouterr().out


CASES = [
    ("question_answering", "ask", lambda a, b: (a, "what is the dog"), ["%"]),
    ("retrieval", "match", lambda a, b: (a, "a dog"), ["belong together", "%"]),
    ("image_pairs", "compare", lambda a, b: (a, b, "the dog is red"), ["true", "false", "%"]),
    ("pretraining", "fill", lambda a, b: (a, "a ___ dog"), ["with the picture", "without", "%"]),
    ("pretraining", "attend", lambda a, b: (a, "a red dog"), ["red", "x even", "on the photo"]),
]


@pytest.mark.parametrize(("task", "verb", "arguments", "words"), CASES, ids=[case[1] for case in CASES])
def test_verb_prints_what_the_predictor_says(runs, photos, capsys, task, verb, arguments, words):
    run, given = runs(task)[0], arguments(*photos)
    printed = run_verb(capsys, verb, str(run), *given)
    assert all(word in printed for word in words)
    found = json.loads(run_verb(capsys, verb, str(run), *given, "--json"))
    result = getattr(Predictor.from_pretrained(run), verb)(*given)
    expected = [one.to_dict() for one in result] if isinstance(result, list) else result.to_dict()
    assert json.dumps(found)[:40] == json.dumps(expected)[:40]
    assert flat(found) == pytest.approx(flat(expected), abs=1e-4)


@pytest.mark.parametrize(("task", "verb"), [("question_answering", "ask"), ("retrieval", "match")])
def test_several_texts_are_answered_in_their_order(runs, photos, capsys, task, verb):
    run, texts = str(runs(task)[0]), ["what is the dog", "a cat"]
    together = json.loads(run_verb(capsys, verb, run, photos[0], *texts, "--json"))
    alone = [json.loads(run_verb(capsys, verb, run, photos[0], text, "--json")) for text in texts]
    assert [one["text"] for one in together] == texts
    assert flat(together) == pytest.approx(flat(alone), abs=1e-4)
    printed = run_verb(capsys, verb, run, photos[0], *texts)
    first, second = (printed.index(f"{text}\n") for text in texts)
    assert first == 0 and printed.count("%") >= 2 and "%" in printed[first:second] and "%" in printed[second:]


def flat(value) -> list[float]:
    """All numbers of a result in order."""
    if isinstance(value, dict):
        return [x for inner in value.values() for x in flat(inner)]
    if isinstance(value, list):
        return [x for inner in value for x in flat(inner)]
    return [float(value)] if isinstance(value, (int, float)) else []


def test_rank_prints_the_best_first(runs, photos, capsys):
    found = json.loads(run_verb(capsys, "rank", str(runs("retrieval")[0]), *photos, "--text", "a dog", "--json"))
    assert found[0]["log_odds"] >= found[1]["log_odds"]
    assert {row["name"] for row in found} == set(photos)
    printed = run_verb(capsys, "rank", str(runs("retrieval")[0]), photos[0], "--text", "a dog", "--text", "a cat")
    assert "a dog" in printed and "a cat" in printed


def test_attend_finds_out_before_it_looks_whether_it_can_write(tmp_path, capsys):
    (tmp_path / "file").touch()
    for out, told in (
        (tmp_path, "is a folder"),
        (tmp_path / "a.jpg", "what is written is PNG"),
        (tmp_path / "file" / "a.png", "is a file"),
    ):
        assert cli.main(["attend", str(tmp_path / "no-run"), "photo.jpg", "a dog", "--out", str(out)]) == 2
        assert told in capsys.readouterr().err


def test_attend_writes_its_picture(runs, photos, tmp_path, capsys):
    out = tmp_path / "pictures" / "dog.png"
    run_verb(capsys, "attend", str(runs("pretraining")[0]), photos[0], "a dog", "--word", "dog", "--out", str(out))
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 64


def test_timing_goes_to_stderr(runs, photos, capsys):
    assert cli.main(["match", str(runs("retrieval")[0]), photos[0], "a dog", "--json", "--timing"]) == 0
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert all(word in captured.err for word in ("imports", "opening the run", "answer"))


def test_an_uncalibrated_run_says_so(runs, photos, capsys):
    assert "not calibrated" in run_verb(capsys, "match", str(runs("retrieval")[0]), photos[0], "a dog")
    assert "not calibrated" in run_verb(capsys, "rank", str(runs("retrieval")[0]), *photos, "--text", "a dog")


def test_words_that_the_model_cannot_read_are_told(runs, photos, capsys):
    run = str(runs("retrieval")[0])
    known = run_verb(capsys, "match", run, photos[0], "a dog")
    assert "vocabulary" not in known
    printed = run_verb(capsys, "match", run, photos[0], "a \u732b with a dog, \u732b \u732a")
    assert "not in the run's vocabulary: \u732b, \u732a" in printed
    assert "vocabulary" not in run_verb(capsys, "match", run, photos[0], "\u732b", "--json")
    assert "vocabulary" not in run_verb(capsys, "fill", str(runs("pretraining")[0]), photos[0], "a [MASK] and ___")


def test_a_run_that_does_not_know_says_so(runs, photos, capsys, tmp_path):
    import shutil

    run = shutil.copytree(runs("question_answering")[0], tmp_path / "run")
    facts = {"format": 1, "temperature": 1.0, "shift": 0.0, "threshold": 1.0}
    (run / "calibration.json").write_text(json.dumps(facts))
    assert run_verb(capsys, "ask", str(run), photos[0], "what").startswith("I do not know")


@pytest.mark.parametrize(
    ("probability", "filled", "told"),
    [(0.0, 0, "< 1 %"), (1.0, 24, "> 99 %"), (0.5, 12, "50 %"), (0.004, 0, "< 1 %"), (0.25, 6, "25 %")],
)
def test_bars_and_percent(probability, filled, told):
    assert bar(probability).count("█") == filled and len(bar(probability)) == 24
    assert percent(probability) == told
