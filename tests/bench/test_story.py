"""The quickstart from drawing to report on a few scenes, its folder, and how words are counted by class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from pixelbert.bench.quickstart import chain, story
from pixelbert.errors import UsageError
from pixelbert.training.loop import TrainResult

FEW = {"train": 24, "val": 8, "test": 2}
QUICK = (
    "schedule.pairs=16",
    "optim.batch_size=8",
    "optim.micro_batch=8",
    "text.layers=1",
    "validation.times=1",
    "validation.exact_images=2",
    "train.trackers=[]",
    "train.save_steps=1",
)


def quickstart(out: Path, parallel: bool = False, **options: Any) -> tuple[dict[str, Any], str]:
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115
    options["parallel"] = parallel
    result = story.run_quickstart(out, scenes=FEW, overrides=QUICK, console=console, **options)
    return result, console.export_text()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    out = tmp_path_factory.mktemp("quick") / "start"
    return out, *quickstart(out, parallel=True)


def test_words_are_counted_by_class() -> None:
    seeing = [
        {"word": "red", "predicted": "red", "predicted_shuffled": "blue"},
        {"word": "blue", "predicted": "red", "predicted_shuffled": "blue"},
        {"word": "left", "predicted": "left", "predicted_shuffled": "left"},
        {"word": "the", "predicted": "the", "predicted_shuffled": "the"},
    ]
    blind = [
        {"word": "red", "predicted": "red"},
        {"word": "blue", "predicted": "red"},
        {"word": "left", "predicted": "a"},
    ]
    scores = story.word_scores(seeing, blind)
    assert scores["color"] == {"true": 50.0, "shuffled": 50.0, "blind": 50.0, "chance": 18.0, "count": 2}
    assert scores["place"] == {"true": 100.0, "shuffled": 100.0, "blind": 0.0, "chance": 36.0, "count": 1}
    assert scores["shape"]["count"] == scores["shape"]["true"] == 0  # and no division by nothing
    assert set(scores) == {"color", "shape", "place", "size", "number"}


def test_everything_is_there_at_the_end(told: tuple[Path, dict[str, Any], str]) -> None:
    out, result, printed = told
    assert result == json.loads((out / "quickstart.json").read_text())
    assert result["finished"]
    assert Path(result["report"]).is_file()
    runs = ["pretraining", "questions", "statements", "retrieval"]
    for run in (*runs, *(f"{run}-blind" for run in runs)):
        assert (out / run / "model.safetensors").is_file()
        assert (out / run / "calibration.json").is_file() != run.endswith("-blind")
        assert yaml.safe_load((out / run / "recipe.yaml").read_text())["blind"] == run.endswith("-blind")
    assert (out / "scenes" / "vqa" / "v2_OpenEnded_scenes_val_questions.json").is_file()
    for data in ("pairs", "questions", "statements"):
        prepared = json.loads((out / "data" / data / "prepared.json").read_text())
        assert {"train", "val"} <= set(prepared["splits"])
    seeing, blind = (masked_words(out / name) for name in ("pretraining", "pretraining-blind"))
    assert seeing == blind  # the same places of the same captions
    assert sum(scores["count"] for scores in result["words"].values()) > 0
    assert list(result["figures"]) == list(result["figures_blind"]) == runs
    for name in (*result["words"], str(out / "questions"), result["report"]):
        assert name in printed


def test_the_story_is_one_page_with_every_score(told: tuple[Path, dict[str, Any], str]) -> None:
    out, result, _ = told
    page = (out / "report.html").read_text()
    assert f"{result['figures']['questions']['vqa_score']:.1f}" in page
    for title in ("Questions", "Statements about two pictures", "Pictures by sentence"):
        assert title in page
    assert "data:image/jpeg;base64," in page and "http://" not in page.replace("http://www.w3.org", "")


def masked_words(run: Path) -> list[tuple[str, int, str]]:
    """Which places are hidden: record, place, word."""
    lines = (run / "validation" / "masked_words.jsonl").read_text().splitlines()
    return [(row["record"], row["place"], row["word"]) for row in map(json.loads, lines)]


def test_every_word_of_captions_and_questions_is_one_piece(told: tuple[Path, dict[str, Any], str]) -> None:
    from pixelbert.model.processor import PixelBertProcessor

    out, _, _ = told
    processor = PixelBertProcessor.from_pretrained(out / "questions")
    words = {w for image in _images(out) for sentence in image["sentences"] for w in sentence["tokens"]}
    asked = json.loads((out / "scenes" / "vqa" / "v2_OpenEnded_scenes_train_questions.json").read_text())["questions"]
    words |= {word for question in asked for word in question["question"].lower().rstrip("?").split()}
    assert len(words) > 30
    assert all(processor.tokenizer.tokenize(word) == [word] for word in words)


def _images(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "scenes" / "dataset_scenes.json").read_text())["images"]


def test_finished_quickstart_starts_anew_and_an_unfinished_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def train(recipe: str, data: Path, run: Path, *, resume: bool, **_: Any) -> Any:
        asked.append((run.name, resume))
        if run.name == "retrieval" and len(asked) == 4:
            raise KeyboardInterrupt
        (run / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
        (run / "validation").mkdir(exist_ok=True)
        (run / "validation" / "masked_words.jsonl").write_text("")
        return TrainResult(run, 0, 0)

    monkeypatch.setattr("pixelbert.training.loop.train", train)
    monkeypatch.setattr(story, "_report", lambda out, *_: out / "report.html")
    with pytest.raises(KeyboardInterrupt):
        quickstart(tmp_path / "start")
    drawn = (tmp_path / "start" / "scenes" / "scenes.json").stat().st_mtime_ns
    quickstart(tmp_path / "start")
    runs = ["pretraining", "questions", "statements", "retrieval"]
    blind = [(f"{run}-blind", False) for run in runs]
    assert asked[4:] == [(run, run != "retrieval") for run in runs] + blind
    assert (tmp_path / "start" / "scenes" / "scenes.json").stat().st_mtime_ns == drawn
    quickstart(tmp_path / "start", keep=False)
    assert asked[12:] == [(run, False) for run in runs] + blind
    assert sorted(p.name for p in (tmp_path / "start").iterdir()) == sorted(["quickstart.json", *runs])


def test_without_the_other_process_its_runs_are_trained_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "__spec__", type("Spec", (), {"name": "pixelbert.no_such_module"}))
    done: list[tuple[str, bool]] = []

    def train(recipe: str, data: Path, run: Path, *, blind: bool, **_: Any) -> Any:
        done.append((run.name, blind))
        return TrainResult(run, 0, 0)

    monkeypatch.setattr("pixelbert.training.loop.train", train)
    monkeypatch.setattr(story, "_masked_words", lambda run: [])
    monkeypatch.setattr(story, "_report", lambda out, *_: out / "report.html")
    quickstart(tmp_path / "start", parallel=True)
    assert [name for name, blind in done if blind] == [f"{run}-blind" for run, _, _ in chain.RUNS]


def test_another_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="holds no quickstart"):
        quickstart(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
