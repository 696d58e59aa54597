"""The report: from a run folder to one page that needs nothing else. The run is made up (made_up_run)."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_up_run import BATCH, STEPS, make_run
from PIL import Image

from pixelbert.errors import CheckpointError, MachineError, UsageError
from pixelbert.recipes.schema import load_recipe
from pixelbert.training.report import reporting, write_report
from pixelbert.training.report.page import duration, percent
from pixelbert.training.report.pretraining import telling, tokens
from pixelbert.training.report.record import RunRecord, record_session

_VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """A page as a browser's parser meets it: text, attributes, and whether every tag is closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html, self.open, self.links, self.headings = path.read_text(encoding="utf-8"), [], [], []  # type: ignore[var-annotated]
        self.text, self.tags = "", []  # type: ignore[var-annotated]
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "
        self.links += [value for name, value in attrs if name in ("src", "href", "action", "data", "poster", "srcset")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
            if self.open[-1] in ("h1", "h2", "h3", "h4"):
                self.headings.append(data.strip())

    @property
    def flat(self) -> str:
        return " ".join(self.text.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests leave its files alone but for report.html."""
    return make_run(tmp_path_factory.mktemp("runs") / "scenes")


def validations(run: Path, change: Any) -> None:
    """Rewrite the validation rows of metrics.jsonl: `change(row)` edits each."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "validation":
            change(row)
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_asks_nobody_for_anything(run: Path) -> None:
    page = Page(write_report(run))
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert "http://" not in page.html and "https://" not in page.html
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", re.sub(r"url\(#plot-\d+\)", "", page.html))
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_place_to_jump_to_is_there_once(run: Path) -> None:
    page = Page(write_report(run))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([\w-]+)\)", page.html))
    assert wanted <= set(ids)


def test_the_head_tells_what_was_run(run: Path) -> None:
    text = Page(write_report(run)).flat
    for told in (
        "pretrain-tiny",
        "scenes",
        f"{STEPS * BATCH:,}",
        "time 2 min",
        "A processor",
        "2 cores",
        "float32",
        "Finished",
    ):
        assert told in text


def test_figures_stand_beside_what_guessing_gets(run: Path) -> None:
    text = Page(write_report(run)).flat
    assert "With its own picture 80.0 %" in text and "With another picture 44.0 %" in text
    assert "+36.0" in text and "93.0" in text and "a coin gets 50" in text
    assert "chance 50" in text  # R@10 of one picture in 20


def test_the_sheet_shows_picture_caption_guesses_and_matches(run: Path) -> None:
    page = Page(write_report(run))
    sheet = json.loads((run / "validation" / "examples.json").read_text())
    pictures = [a for tag, a in page.tags if tag == "img" and a.get("class") == "picture"]
    assert len(pictures) == len(sheet["examples"]) == 24
    assert page.html.count("<article") > 24
    for example, picture in zip(sheet["examples"], pictures, strict=True):
        data = base64.b64decode(str(picture["src"]).partition(",")[2])
        assert data == (run / "validation" / example["picture"]).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        assert example["match"]["false_caption"] in page.text
    for title in ("Drawn by lot", "Where the picture mattered most", "Where it was sure and wrong"):
        assert title in page.headings


def test_right_and_wrong_are_told_by_more_than_colour(run: Path) -> None:
    page = Page(write_report(run))
    icons = [a["aria-label"] for _, a in page.tags if a.get("class") == "icon"]
    chips = [str(a["class"]) for _, a in page.tags if str(a.get("class")).startswith("chip")]
    assert {"right", "wrong"} == set(icons)
    assert page.html.count("✓") + page.html.count("✕") == len(icons)
    assert len([c for c in chips if c == "chip right"]) > 1 < len([c for c in chips if c == "chip wrong"])


def test_a_long_run_with_large_pictures_stays_under_two_megabytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [r for r in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in r]
    with open(run / "metrics.jsonl", "a") as handle:
        for step in range(STEPS + 1, 20_000):
            row = json.loads(lines[step % len(lines)]) | {"step": step, "pairs": step * BATCH}
            handle.write(json.dumps(row) + "\n")
    for picture in (run / "validation" / "examples").iterdir():
        picture.write_bytes(os.urandom(90_000))
    assert write_report(run).stat().st_size < 2_000_000


def test_what_people_wrote_cannot_become_code(tmp_path: Path) -> None:
    run = make_run(tmp_path / "<b>run</b>")
    path = run / "validation" / "examples.json"
    sheet = json.loads(path.read_text())
    sheet["examples"][0]["match"]["false_caption"] = '<script>alert(1)</script> & "more"'
    sheet["examples"][0]["pieces"][0] = "<i>"
    sheet["examples"][0]["picture"] = "../../../secret.jpg"
    path.write_text(json.dumps(sheet))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"description": "</style><script>x</script>"}))
    page = Page(write_report(run))
    assert "<script>alert" not in page.html and "<script>x" not in page.html and "<b>run" not in page.html
    assert "<script>alert(1)</script>" in page.text
    assert len([1 for tag, a in page.tags if tag == "img" and a.get("class") == "picture"]) == 23


# -- runs that go on, stopped, or are old ----------------------------------------------------------------------------


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=100, validations=0)
    text = Page(write_report(run)).flat
    assert "25 % done, still going on" in text and "No validation yet" in text
    assert f"--out {run} --resume" in text
    assert "25 % done, interrupted" in Page(write_report(run, ended="interrupted")).flat


@pytest.mark.parametrize("missing", ["metrics.jsonl", "sessions.jsonl", "validation", "validation/examples.json"])
def test_a_report_without_some_of_the_files(tmp_path: Path, missing: str) -> None:
    run = make_run(tmp_path / "run")
    path = run / missing
    path.rename(tmp_path / "away")
    assert "Settings" in Page(write_report(run)).headings


def test_lines_cut_off_and_values_that_are_not_finite(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", validations=1)
    with open(run / "metrics.jsonl", "a") as handle:
        row = {"kind": "train", "step": STEPS + 1, "pairs": 26000, "loss": float("nan"), "grad_norm": float("inf")}
        handle.write(json.dumps(row) + "\n")
        handle.write('{"kind": "train", "step": 402, "pai')
    page = Page(write_report(run))
    paths = "".join(str(a.get("d")) for tag, a in page.tags if tag == "path")
    assert "nan" not in paths and "inf" not in paths
    words = re.sub(r"data:[^\"']*", "", page.html)  # a picture in base64 may spell anything
    assert "NaN" not in words and "Infinity" not in words


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        write_report(tmp_path)
    run = make_run(tmp_path / "run")
    (run / "run.json").write_text('{"format": 1, ')
    with pytest.raises(CheckpointError, match="damaged"):
        write_report(run)


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    write_report(run).write_text("the old one")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MachineError, match="disk is full"):
        write_report(run)
    assert (run / "report.html").read_text() == "the old one"
    assert not list(run.glob("*writing*")) and not list(run.glob(".*writing*"))


def test_figures_of_the_best_validation_when_the_last_is_worse(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    validations(run, lambda row: row["figures"].update(itm_accuracy=60.0 + (row["step"] == 200) * 21.5))
    text = Page(write_report(run)).flat
    assert f"after {200 * BATCH:,} pairs, where itm_accuracy was best" in text and "81.5" in text
    assert "95 %:" not in text  # the words at hand are those of the last


def test_a_loss_without_weight_is_said_to_be_untrained(tmp_path: Path) -> None:
    changes = ["contrastive_size=8", "loss.contrastive=1", "loss.itm=0", "loss.mlm=0"]
    text = Page(write_report(make_run(tmp_path / "run", overrides=changes))).flat
    assert text.count("Not trained in this run") + text.count("were not trained in this run") == 2


# -- the blind model -------------------------------------------------------------------------------------------------


def test_without_a_blind_model_the_page_says_how_to_make_it(run: Path) -> None:
    page = Page(write_report(run))
    line = shlex.join(["pixelbert", "train", f"{run}/recipe.yaml", "--data", "data/scenes"])
    assert f"{line} --out {run}-blind --blind" in page.flat
    assert (
        load_recipe(f"{run}/recipe.yaml").model_dump()
        == load_recipe("pretrain-tiny", [f"schedule.pairs={STEPS * BATCH}", "optim.text.new_lr=0.002"]).model_dump()
    )  # so the saved recipe repeats every change


def test_the_blind_model_beside_the_run_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "run-blind", blind=True)
    page = Page(write_report(run))
    assert "Blind model 46.0 %" in page.flat and "+34.0 against the blind model" in page.flat
    assert "Not quite alike" not in page.flat
    own = Page(write_report(tmp_path / "run-blind"))
    assert "blind model" in own.flat and "--blind" not in own.flat.replace(str(tmp_path), "")


def test_a_blind_model_may_be_named_and_is_compared_after_as_many_pairs(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "run", steps=200, validations=4), make_run(tmp_path / "elsewhere", blind=True)
    text = Page(write_report(run, blind=other)).flat
    assert "Blind model 45.0 %" in text and "Not quite alike" not in text  # at half of the run


def test_a_blind_model_that_is_not_alike_is_named_as_such(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "run-blind", blind=True, steps=100, overrides=["seed=3", "validation.times=1"])
    text = Page(write_report(run)).flat
    assert "Not quite alike" in text and "its seed is 3, not 0" in text and "it has seen 6,400 pairs" in text
    assert "validation.times" not in re.search(r"Not quite alike.*?\.\s", text + " ")[0]  # type: ignore[index]


def test_a_run_that_looks_is_no_blind_model(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    make_run(tmp_path / "run-blind")
    assert "not yet" in Page(write_report(run)).flat
    with pytest.raises(UsageError, match="not a blind run"):
        write_report(run, blind=tmp_path / "run-blind")


# -- when it is written ----------------------------------------------------------------------------------------------


def test_written_on_call_and_at_the_end(tmp_path: Path) -> None:
    run, notes = make_run(tmp_path / "run", steps=100), list[str]()
    with reporting(run, notes.append) as report:
        assert not (run / "report.html").exists()
        report()
        (run / "report.html").unlink()
    assert (run / "report.html").exists() and notes == []


@pytest.mark.parametrize(
    ("error", "told"),
    [(KeyboardInterrupt(), "interrupted"), (RuntimeError("step 9: not finite"), "step 9: not finite")],
)
def test_a_run_that_stops_gets_its_report_and_its_error(tmp_path: Path, error: BaseException, told: str) -> None:
    run = make_run(tmp_path / "run", steps=100)
    with pytest.raises(type(error)), reporting(run, print):
        raise error
    assert told in Page(run / "report.html").flat


def test_a_report_that_fails_stops_no_run(tmp_path: Path) -> None:
    notes: list[str] = []
    with reporting(tmp_path / "nothing", notes.append) as report:
        report()
    assert len(notes) == 2 and "not a run folder" in notes[0]


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with reporting(run, print, active=False) as report:
        report()
    assert not (run / "report.html").exists()


def test_a_blind_run_renews_the_report_of_the_run_it_belongs_to(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "not yet" in Page(write_report(run)).flat
    with reporting(make_run(tmp_path / "run-blind", blind=True), print):
        pass
    assert "not yet" not in Page(run / "report.html").flat


# -- parts -----------------------------------------------------------------------------------------------------------


def test_time_and_parts_of_a_resumed_run(tmp_path: Path) -> None:
    from pixelbert.model.precision import Capability, Precision

    run = make_run(tmp_path / "run", steps=100, validations=0)
    record_session(run, 60, STEPS, Capability("cpu", "Another processor"), Precision("bfloat16", "float32", "faster"))
    record = RunRecord.read(run)
    assert (record.step, record.steps, record.pairs, record.finished) == (100, STEPS, 100 * BATCH, False)
    assert record.seconds == 30.0
    text = Page(write_report(run)).flat
    assert "In 2 parts" in text and "Another processor" in text and "CNN bfloat16, encoder float32" in text


def test_a_run_that_told_no_time_has_it_estimated(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", validations=0)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({k: v for k, v in r.items() if k != "seconds"}) + "\n" for r in rows)
    )
    assert RunRecord.read(run).seconds == pytest.approx(STEPS * BATCH / rows[-1]["pairs_per_s"])
    assert "about 2 min" in Page(write_report(run)).flat


def evaluated(run: Path, seconds_later: float, **more: float) -> None:
    """Puts an evaluation on val into the run, so much later than its last validation."""
    folder = run / "evaluation" / "val"
    shutil.copytree(run / "validation", folder)
    figures = {"itm_accuracy": 91.25, "mlm_accuracy": 70.0, "dual_t2i_r1": 21.0, "dual_t2i_r10": 64.5, **more}
    result = {
        "model": "best",
        "images": 1000,
        "texts": 5000,
        "exact_images": 0,
        "date": "2026-01-02",
        "figures": figures,
    }
    (folder / "figures.json").write_text(json.dumps(result))
    (run / "validation" / "figures.json").write_text("{}")
    os.utime(run / "validation" / "figures.json", (1e9, 1e9))
    os.utime(folder / "figures.json", (1e9 + seconds_later, 1e9 + seconds_later))


def test_an_evaluation_that_came_later_is_what_the_page_shows(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    evaluated(run, 60, mlm_accuracy_blind=41.0)
    page = Page(write_report(run))
    assert "evaluated 2026-01-02" in page.flat and "10,000 pairs, half" in page.flat and "91.2 % ± 0.6" in page.flat
    assert "Blind model 41.0 %" in page.flat and "64.5 chance 1 " in page.flat
    assert "Evaluated on val" in page.headings


def test_an_evaluation_before_the_last_validation_stays_aside(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    evaluated(run, -60)
    page = Page(write_report(run))
    assert "93.0 % ± 2.5" in page.flat and "evaluated 2026" not in page.flat
    assert "Evaluated on val" in page.headings and "91.25" in page.flat


def test_changed_settings_are_told_beside_the_recipe(run: Path) -> None:
    text = Page(write_report(run)).flat
    assert re.search(r"Changed from the recipe pretrain-tiny.*schedule\.pairs 60000 25600", text)


def test_only_the_telling_places_are_open(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "validation" / "examples.json"
    sheet = json.loads(path.read_text())
    first = sheet["examples"][0]["masked"][0]
    rows = [(0.9, 0.9), (0.9, 0.1), (0.5, 0.4), (0.2, 0.8), (0.9, 0.88), (0.3, 0.3)]  # the last: wrong, and sure of it
    sheet["examples"][0]["masked"] = [
        {**first, "place": i, "own_true": own, "other_true": other, "own": [["x", 0.9 if i == 5 else own]]}
        for i, (own, other) in enumerate(rows)
    ]
    path.write_text(json.dumps(sheet))
    assert [m["telling"] for m in telling(sheet["examples"][0]["masked"])] == [False, True, False, True, False, True]
    assert "3 more" in Page(write_report(run)).flat


def test_phases_are_marked_where_they_begin(tmp_path: Path) -> None:
    changes = ["phases=[{until: 0.25, lr_scale: 0.5}, {until: 0.8}, {until: 1.0}]"]
    page = Page(write_report(make_run(tmp_path / "run", steps=200, validations=0, overrides=changes)))
    assert page.html.count("<title>phase 2</title>") == len([1 for tag, _ in page.tags if tag == "svg"])
    assert "phase 3" not in page.html  # the run has not come that far


def test_pieces_become_a_readable_caption() -> None:
    pieces = ["a", "man", "'", "s", "t", "-", "shirt", "(", "red", ")", "run", "##ning", ",", "dogs", "'", "ball", "."]
    found = tokens({"pieces": pieces, "masked": [{"place": 1}, {"place": 11}]})
    text = "".join((" " if t["space"] else "") + t["text"] for t in found)
    assert text == "a man's t-shirt (red) running, dogs' ball."
    assert [i for i, t in enumerate(found) if t["masked"]] == [1, 11]


@pytest.mark.parametrize(
    ("value", "told"), [(0.0, "0 %"), (0.2, "<1 %"), (0.51, "1 %"), (49.26, "49 %"), (100.0, "100 %")]
)
def test_percent(value: float, told: str) -> None:
    assert percent(value, 0) == told.replace(" ", "\u202f")


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3570, "1 h 0 min"), (4350, "1 h 12 min")]
)
def test_duration(seconds: float, told: str) -> None:
    assert duration(seconds) == told


# -- a real run ------------------------------------------------------------------------------------------------------


def test_training_leaves_a_report(tmp_path: Path) -> None:
    """The smallest run there is: drawn scenes, two steps, a validation after each; then its blind model."""
    from pixelbert.bench.quickstart.scenes import draw_scenes
    from pixelbert.data.prepare import prepare
    from pixelbert.training.evaluate import evaluate
    from pixelbert.training.loop import train

    draw_scenes(tmp_path / "scenes", train=8, val=6, test=0)
    prepare("karpathy", [tmp_path / "scenes" / "dataset_scenes.json"], tmp_path / "data")
    changes = [
        *("schedule.pairs=16", "optim.batch_size=8", "optim.micro_batch=8", "validation.times=2", "image.square=32"),
        *("text.vocab_size=80", "validation.captions_per_image=2", "validation.exact_images=3", "train.trackers=[]"),
    ]
    run = tmp_path / "run"
    train("pretrain-tiny", tmp_path / "data", run, overrides=changes)
    page = Page(run / "report.html")
    assert "Finished" in page.flat and "16" in page.flat and "not yet" in page.flat
    assert len([1 for tag, a in page.tags if tag == "img" and a.get("class") == "picture"]) == 6  # each image once
    assert "Masked-word loss" in page.headings and "Learning rates" in page.headings
    line = next(line for line in page.html.splitlines() if "--blind" in line)
    words = shlex.split(re.sub(r"<.*?>", "", line))
    assert words[:2] == ["pixelbert", "train"] and words[-1] == "--blind"
    train(words[2], words[4], words[6], blind=True)  # as the page says
    assert "Blind model" in Page(run / "report.html").flat and "not yet" not in Page(run / "report.html").flat
    assert "Not quite alike" not in Page(run / "report.html").flat
    evaluate(run, tmp_path / "data", blind=tmp_path / "run-blind")
    assert "Evaluated on val" in Page(run / "report.html").headings
