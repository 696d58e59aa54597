"""The report of the downstream tasks and the page about several runs. The runs are made up (made_up_tasks)."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_run import make_run
from made_up_tasks import ANSWERS, IMAGES, PER_IMAGE, SCORED, TASKS, make_task_run
from test_report import Page

from pixelbert.metrics import nlvr2_scores, vqa_accuracy
from pixelbert.training.files import read_lines
from pixelbert.training.report import write_report
from pixelbert.training.report.image_pairs import confusion
from pixelbert.training.report.page import percent
from pixelbert.training.report.question_answering import best_by_question, best_constant, ceiling, confusions, worths
from pixelbert.training.report.record import RunRecord
from pixelbert.training.report.retrieval import rank_bars
from pixelbert.training.report.story import write_story

HOSTILE = '<script>alert(1)</script>"><img src=http://x onerror=y> {{ 7*7 }} & "more"'


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task with its blind model beside it; tests write nothing there but report.html."""
    folder = tmp_path_factory.mktemp("runs")
    for task in TASKS:
        make_task_run(folder / task, task)
        make_task_run(folder / f"{task}-blind", task, blind=True)
    return {task: folder / task for task in TASKS}


def rows_of(run: Path) -> list[dict[str, Any]]:
    folder = run / "validation"
    return read_lines(folder / "records.jsonl") or read_lines(folder / "ranks.jsonl")


def figures_of(run: Path) -> dict[str, float]:
    figures: dict[str, float] = json.loads((run / "validation" / "figures.json").read_text())
    return figures


def plain_space(text: str) -> str:
    return text.replace("\u202f", " ")


def flat(page: Page) -> str:
    return plain_space(page.flat)


# -- every task ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("blind", [False, True])
def test_a_page_is_whole_and_asks_nobody_for_anything(runs: dict[str, Path], task: str, blind: bool) -> None:
    path = write_report(runs[task].with_name(f"{task}-blind") if blind else runs[task])
    page = Page(path)
    assert all(link.startswith(("data:image/jpeg;base64,", "#")) for link in page.links)
    assert "http://" not in page.html and "https://" not in page.html
    assert path.stat().st_size < 2_000_000
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) and {"figures", "curves", "examples", "settings"} <= set(ids)
    for title in ("Drawn by lot", "Where it was sure and wrong"):
        assert title in page.headings
    assert ("blind model" in page.headings[0] or "· blind model" in page.flat) is blind


@pytest.mark.parametrize("task", TASKS)
def test_no_picture_is_lost_from_the_sheet(runs: dict[str, Path], task: str) -> None:
    page = Page(write_report(runs[task]))
    examples = json.loads((runs[task] / "validation" / "examples.json").read_text())["examples"]
    shown = [a for tag, a in page.tags if tag == "img" and a.get("class") == "picture"]
    assert len(shown) == sum(len(example["pictures"]) for example in examples)


@pytest.mark.parametrize("task", TASKS)
def test_without_a_blind_model_the_page_says_how_to_make_it(tmp_path: Path, task: str) -> None:
    run = make_task_run(tmp_path / "run", task)
    text = Page(write_report(run)).flat
    assert "not yet" in text and f"--out {run}-blind --blind --from runs/pretrained" in text
    assert "What the picture changed" not in text


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "missing",
    ["metrics.jsonl", "sessions.jsonl", "config.json", "validation", "validation/examples.json", "validation/examples",
     "validation/records.jsonl", "validation/ranks.jsonl", "validation/figures.json"],
)  # fmt: skip
def test_a_report_without_some_of_the_files(tmp_path: Path, task: str, missing: str) -> None:
    run = make_task_run(tmp_path / "run", task)
    make_task_run(tmp_path / "run-blind", task, blind=True)
    for folder in (run, tmp_path / "run-blind"):
        if (folder / missing).exists():
            (folder / missing).rename(tmp_path / f"away-{folder.name}")
    assert "Settings" in Page(write_report(run)).headings


@pytest.mark.parametrize("task", TASKS)
def test_rows_and_examples_of_another_make_are_left_out(tmp_path: Path, task: str) -> None:
    run = make_task_run(tmp_path / "run", task)
    name = "ranks.jsonl" if task == "retrieval" else "records.jsonl"
    odd = ['{"record": "x"}', "[1, 2]", '{"question": "?", "answer": "a", "score": 1, "given": {}}',
           '{"rank": "first"}', '{"statement": "s", "judged": null, "label": "no"}', '{"question": "cut o']  # fmt: skip
    whole = Page(write_report(run)).flat
    with open(run / "validation" / name, "a") as handle:
        handle.write("\n".join(odd))
    path = run / "validation" / "examples.json"
    sheet = json.loads(path.read_text())
    sheet["examples"] += [{"group": "lot"}, {"group": "lot", "given": 3, "best": None}, {"group": "new"}, 7]
    path.write_text(json.dumps(sheet))
    assert re.sub(r"Written.*?UTC", "", Page(write_report(run)).flat) == re.sub(r"Written.*?UTC", "", whole)


@pytest.mark.parametrize("task", TASKS)
def test_a_run_before_its_first_validation(tmp_path: Path, task: str) -> None:
    run = make_task_run(tmp_path / "run", task, steps=50)
    shutil.rmtree(run / "validation")
    text = Page(write_report(run, ended="interrupted")).flat
    assert "No validation yet" in text and "12 % done, interrupted" in text


@pytest.mark.parametrize("task", TASKS)
def test_what_people_wrote_cannot_become_code(tmp_path: Path, task: str) -> None:
    run = make_task_run(tmp_path / "run", task)
    folder = run / "validation"
    for path in (folder / "records.jsonl", folder / "ranks.jsonl"):
        if path.exists():
            path.write_text("".join(json.dumps(hostile(row)) + "\n" for row in read_lines(path)))
    sheet = json.loads((folder / "examples.json").read_text())
    sheet["examples"] = [hostile(example) for example in sheet["examples"]]
    sheet["examples"][0]["pictures"][0] = "../../secret.jpg"
    (folder / "examples.json").write_text(json.dumps(sheet))
    for page in (Page(write_report(run)), Page(write_story(tmp_path / "story.html", {HOSTILE: run}, title=HOSTILE))):
        assert "<script>alert" not in page.html and "<img src=http" not in page.html and "49 &amp;" not in page.html
        assert "<script>alert(1)</script>" in page.text
        assert "no picture" in page.flat  # the one from outside


def hostile(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its words replaced, keys of the answers too."""
    words = {
        k: HOSTILE for k in ("question", "answer", "statement", "text", "answer_type", "question_type") if k in row
    }
    return row | words | ({"given": {HOSTILE: 10}} if "given" in row else {})


def test_a_blind_model_that_has_seen_less_is_named_as_such(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "question_answering")
    make_task_run(tmp_path / "run-blind", "question_answering", blind=True, steps=100)
    text = Page(write_report(run)).flat
    assert "Not quite alike" in text and "it has seen 6,400 questions, not 25,600" in text


def test_large_pictures_stay_within_the_budget(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "retrieval")
    for picture in (run / "validation" / "examples").iterdir():
        picture.write_bytes(np.random.default_rng(0).bytes(40_000))
    path = write_report(run)
    assert path.stat().st_size < 2_000_000 and "no picture" in Page(path).flat


# -- question answering ----------------------------------------------------------------------------------------------


def test_the_score_stands_beside_blind_and_guesses(runs: dict[str, Path]) -> None:
    run = runs["question_answering"]
    text = flat(Page(write_report(run)))
    own, blind = figures_of(run), figures_of(run.with_name(f"{run.name}-blind"))
    assert f"With its pictures {own['vqa_score']:.1f} %" in text
    assert f"Blind model {blind['vqa_score']:.1f} %" in text
    assert f"{own['vqa_score'] - blind['vqa_score']:+.1f} points against the blind model" in text
    for kind in ("yes/no", "number", "other"):
        assert f"{kind} 200 {plain_space(percent(own[f'vqa_score.{kind}']))}" in text
    for kind in ("is there a", "what color is the", "how many"):
        assert f"{kind} 200 {plain_space(percent(own[f'vqa_score.question.{kind}']))}" in text


def test_an_answer_is_worth_what_the_official_script_says() -> None:
    for counts in ({"yes": 10}, {"yes": 7, "no": 3}, {"2": 1, "3": 9}, {"a": 2, "the dog": 5, "cat.": 3}):
        people = [answer for answer, n in counts.items() for _ in range(n)]
        for said, worth in worths(counts).items():
            annotation = {"question_id": 1, "question_type": "", "answer_type": "", "answers": [
                {"answer": answer, "answer_id": i} for i, answer in enumerate(people, 1)]}  # fmt: skip
            assert vqa_accuracy({1: said}, [annotation]).overall == pytest.approx(worth)


def test_guesses_and_ceiling_by_hand() -> None:
    given = [{"red": 10}, {"red": 5, "crimson": 5}, {"blue": 9, "navy": 1}, {"mauve": 10}]
    rows = [{"question": "What color?", "answer": "red", "score": 0.0, "given": g} for g in given]
    answer, worth = best_constant(rows)
    assert (answer, worth) == ("red", 50.0)
    found = ceiling(rows, ["red", "navy"])
    assert found == {"value": (100 + 100 + 30 + 0) / 4, "answers": 2, "questions": 4, "outside": 1, "share": 25.0}
    assert ceiling(rows, []) is None and ceiling([], ["red"]) is None
    assert best_by_question(rows) is None  # one wording four times tells little
    both = [{**row, "question": wording} for wording in ("What color?", "which?") for row in rows + rows]
    assert best_by_question(both) == pytest.approx(50.0)


def test_no_model_without_the_picture_beats_the_best_answer_to_each_wording(runs: dict[str, Path]) -> None:
    rows = rows_of(runs["question_answering"])
    best = best_by_question(rows)
    tables = {wording: Counter[str]() for wording in {row["question"] for row in rows}}
    for row in rows:
        tables[row["question"]].update(worths(row["given"]))
    assert best == pytest.approx(sum(table.most_common(1)[0][1] for table in tables.values()) / len(rows))
    assert best_constant(rows)[1] <= best  # type: ignore[operator]


def test_the_answer_list_sets_a_ceiling_that_the_page_tells(runs: dict[str, Path]) -> None:
    run = runs["question_answering"]
    rows = rows_of(run)
    outside = sum(not set(row["given"]) & set(ANSWERS) for row in rows)
    assert outside > 0
    text = flat(Page(write_report(run)))
    assert f"among {len(ANSWERS)} answers. {outside} of {SCORED['question_answering']} questions" in text


def test_confusions_are_counted(runs: dict[str, Path]) -> None:
    rows = rows_of(runs["question_answering"])
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row["score"] == 0:
            counts[max(row["given"], key=row["given"].get), row["answer"]] += 1
    found = confusions(rows)
    assert [c["count"] for c in found] == sorted(counts.values(), reverse=True)[:10]
    assert all(counts[c["given"], c["said"]] == c["count"] <= c["of"] for c in found)


def test_a_partly_right_answer_is_told_with_its_worth(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "question_answering")
    path = run / "validation" / "examples.json"
    sheet = json.loads(path.read_text())
    sheet["examples"][0] |= {"question": "What sport?", "answer": "tennis", "probability": 0.417, "score": 60.0,
                             "given": {"football": 8, "tennis": 2}}  # fmt: skip
    path.write_text(json.dumps(sheet))
    assert "What sport? ✓ tennis 42 % sure, worth 60 % football 8 of 10 tennis 2 of 10" in flat(Page(write_report(run)))


def test_question_types_are_counted_by_their_words_where_rows_tell_none(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "question_answering")
    path = run / "validation" / "records.jsonl"
    rows = [{k: v for k, v in row.items() if k != "question_type"} for row in read_lines(path)]
    rows[0]["question"] = "Is there another?"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = flat(Page(write_report(run)))
    assert "is there a 199 " in text and "how many 200 " in text


def test_own_questions_without_types_go_by_their_first_words(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "question_answering")
    path = run / "validation" / "records.jsonl"
    rows = [{k: v for k, v in row.items() if not k.endswith("_type")} for row in read_lines(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "figures" in line:
            line["figures"] = {"vqa_score": line["figures"]["vqa_score"]}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = Page(write_report(run))
    worth = np.mean([row["score"] for row in rows if row["question"].startswith("How many")])
    assert f"how many 200 {worth:.1f} %" in flat(page) and "By kind of answer" not in page.headings


# -- statements --------------------------------------------------------------------------------------------------------


def test_accuracy_consistency_and_confusion_are_those_of_the_file(runs: dict[str, Path]) -> None:
    run = runs["image_pairs"]
    rows, text = rows_of(run), flat(Page(write_report(run)))
    examples = [{"identifier": row["record"], "label": str(row["label"])} for row in rows]
    official = nlvr2_scores({row["record"]: row["judged"] for row in rows}, examples)
    own = figures_of(run)
    assert own == pytest.approx({"accuracy": 100 * official.accuracy, "consistency": 100 * official.consistency})
    assert f"With its pictures {own['accuracy']:.1f} %" in text
    assert f"Consistency {own['consistency']:.1f} % of sentences" in text
    groups = len({(r.split("-")[1]) for r in (row["record"] for row in rows)})
    assert f"({groups} sentences)" in text and "a coin gets 6" in text  # four pairs a sentence: 1 in 16
    table = confusion(rows)
    for row, label in zip(table, (True, False), strict=True):
        for cell, judged in zip(row["cells"], (True, False), strict=True):
            assert cell["count"] == sum(r["label"] is label and r["judged"] is judged for r in rows)
            assert f"{cell['share']:.1f} % {cell['count']}" in text


def test_a_statement_stands_with_both_pictures_and_its_probability(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "image_pairs")
    path = run / "validation" / "examples.json"
    sheet = json.loads(path.read_text())
    sheet["examples"][0] |= {"statement": "Two dogs.", "judged": False, "probability": 0.2, "label": True}
    path.write_text(json.dumps(sheet))
    assert "left right Two dogs. ✕ false 80 % sure; it is true" in flat(Page(write_report(run)))


def test_a_map_of_one_of_two_pictures_tells_which(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "image_pairs")
    folder = run / "validation"
    picture = sorted(path.relative_to(folder) for path in (folder / "examples").iterdir())[0]
    sheets = [{"method": "attention layer 1", "picture": str(picture), "side": side} for side in ("left", "right")]
    looks = [{"group": "right", "text": "two dogs", "sheets": sheets}]
    (folder / "attention.json").write_text(json.dumps({"attention": looks}), encoding="utf-8")
    page = Page(write_report(run)).html
    assert "<figcaption>left picture, attention layer 1<" in page
    assert "<figcaption>right picture, attention layer 1<" in page
    assert "part in the pooled score" not in page
    del sheets[1]["side"]  # as older runs wrote it
    sheets.append({"method": "similarity", "picture": str(picture)})
    (folder / "attention.json").write_text(json.dumps({"attention": looks}), encoding="utf-8")
    page = Page(write_report(run)).html
    assert "<figcaption>attention layer 1<" in page and "part in the pooled score" in page
    assert "nearness" not in page
    sheets[-1]["method"] = "nearness"
    (folder / "attention.json").write_text(json.dumps({"attention": looks}), encoding="utf-8")
    page = Page(write_report(run)).html
    assert "part in the pooled score" not in page and "pixel lies to the word" in page


def test_one_picture_and_no_groups(tmp_path: Path) -> None:
    """NLVR, or statements of one's own: no consistency, no left and right."""
    run = make_task_run(tmp_path / "run", "image_pairs")
    path = run / "validation" / "examples.json"
    sheet = json.loads(path.read_text())
    for example in sheet["examples"]:
        example["pictures"] = example["pictures"][:1]
    path.write_text(json.dumps(sheet))
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r', "consistency": [\d.]+', "", metrics))
    page = Page(write_report(run))
    assert "Consistency" not in page.headings and "left" not in page.flat.split()


# -- retrieval ---------------------------------------------------------------------------------------------------------


def test_recalls_ranks_and_chance_are_those_of_the_file(runs: dict[str, Path]) -> None:
    run = runs["retrieval"]
    own, text = figures_of(run), flat(Page(write_report(run)))
    blind = figures_of(run.with_name("retrieval-blind"))
    assert f"Found among {IMAGES} pictures and {IMAGES * PER_IMAGE} sentences" in text
    for k in (1, 5, 10):
        told = f"{own[f't2i_r{k}']:.1f} chance {100 * k / IMAGES:.2g} blind {blind[f't2i_r{k}']:.1f}"
        assert told in text
        assert f"{own[f'dual_i2t_r{k}']:.1f} chance" in text
    ranks = [row["rank"] for row in rows_of(run)]
    assert f"{np.median(ranks):g} median" in text and f"{np.mean(ranks):.1f} on average" in text


def test_every_rank_is_in_one_bar() -> None:
    rows = [{"rank": rank} for rank in [1, 1, 2, 5, 6, 11, 60, 120]]
    found = rank_bars(rows, 120)
    assert found is not None
    assert {b["label"]: b["count"] for b in found["bars"]} == {
        "1": 2, "2–5": 2, "6–10": 1, "11–20": 1, "21–50": 0, "51–100": 1, "101–120": 1,
    }  # fmt: skip
    assert sum(b["chance"] for b in found["bars"]) == pytest.approx(100)
    assert all(0 <= b["width"] <= 100 and 0 <= b["mark"] <= 100 for b in found["bars"])
    assert rank_bars([], 10) is None
    many = rank_bars([{"rank": 30_000}, {"rank": 1}], None)
    assert many is not None and sum(b["count"] for b in many["bars"]) == 2


def test_what_the_shortlist_costs_stands_beside_exact_scoring(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "retrieval")
    folder = run / "evaluation" / "val"
    shutil.copytree(run / "validation", folder)
    figures = figures_of(run) | {f"exact_{d}_r{k}": 40.0 + k for d in ("t2i", "i2t") for k in (1, 5, 10)}
    figures |= {f"shortlist_loss_{d}_r{k}": 1.5 for d in ("t2i", "i2t") for k in (1, 5, 10)}
    result = {
        "images": IMAGES,
        "texts": 600,
        "exact_images": 50,
        "shortlist": 20,
        "date": "2026-01-02",
        "model": "best",
    }
    (folder / "figures.json").write_text(json.dumps(result | {"figures": figures}))
    text = flat(Page(write_report(run)))
    assert "through a shortlist of 20, 120 pictures" in text
    assert "The first 50 pictures ranked by scoring every pair" in text
    assert text.count("1.5 41.0 → 39.5") == 2 and "by match score, every pair, 50 pictures 41.0" in text


def test_the_right_picture_is_marked_and_added_when_it_is_not_among_the_best(runs: dict[str, Path]) -> None:
    examples = json.loads((runs["retrieval"] / "validation" / "examples.json").read_text())["examples"]
    page = Page(write_report(runs["retrieval"]))
    marked = [a["class"].split() for tag, a in page.tags if tag == "li" and "own" in str(a.get("class")).split()
              and "label" not in a]  # fmt: skip
    marked = [classes for classes in marked if classes in (["own"], ["own", "apart"])]
    listed = [example["image"] in example["best"] for example in examples]
    bars = [tag for tag, a in page.tags if tag == "li" and a.get("class") == "own"]
    assert sum(classes == ["own", "apart"] for classes in marked) == listed.count(False) > 0
    assert len(bars) - 2 == listed.count(True)  # two bars of the headline have that class too


# -- several runs on one page ------------------------------------------------------------------------------------------


def test_the_story_tells_every_task_beside_its_blind_model(runs: dict[str, Path], tmp_path: Path) -> None:
    pretraining = make_run(tmp_path / "pretrained")
    make_run(tmp_path / "pretrained-blind", blind=True)
    out = tmp_path / "pages" / "story.html"
    out.parent.mkdir()
    write_report(pretraining)
    told = {"pretraining": pretraining, **runs, "retrieval-blind": runs["retrieval"].with_name("retrieval-blind")}
    words = {"color": {"true": 91.5, "shuffled": 21.0, "blind": 18.5, "chance": 18.0, "count": 70}}
    page = Page(write_story(out, told, title="The whole story", facts={"time": "9 min"}, words=words))
    text = flat(page)
    assert page.headings[0] == "The whole story" and "time 9 min" in text and out.stat().st_size < 2_000_000
    for task, name in (("question_answering", "vqa_score"), ("image_pairs", "accuracy"), ("retrieval", "t2i_r10")):
        own, blind = figures_of(runs[task])[name], figures_of(runs[task].with_name(f"{task}-blind"))[name]
        assert f"{own:.1f} {blind:.1f}" in text, task
    assert "masked words right 80.0 46.0" in text and "color 70 91.5 21.0 18.5 18.0" in text
    links = [link for link in page.links if not link.startswith(("data:image/jpeg;base64,", "#"))]
    assert "../pretrained/report.html" in links and all((out.parent / link).resolve().is_file() for link in links)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    wanted = {link[1:] for link in page.links if link.startswith("#")} | set(re.findall(r"url\(#([\w-]+)\)", page.html))
    assert len(ids) == len(set(ids)) and wanted <= set(ids)
    pictures = [a for tag, a in page.tags if tag == "img" and a.get("class") == "picture"]
    assert len(pictures) >= 8 + 6 + 12 + 30  # eight examples of pretraining, six of each task


def test_the_story_goes_on_without_what_is_missing(runs: dict[str, Path], tmp_path: Path) -> None:
    young = make_task_run(tmp_path / "young", "image_pairs", steps=10)
    shutil.rmtree(young / "validation")
    folders = {"lost": tmp_path / "nowhere", "young": young, "questions": runs["question_answering"]}
    text = Page(write_story(tmp_path / "story.html", folders)).flat
    assert "not a run folder" in text and "not scored yet" in text and "Questions answered right" in text
    assert "Scores" in Page(write_story(tmp_path / "empty.html", {})).headings


def test_an_unknown_task_still_gets_a_page(tmp_path: Path) -> None:
    run = make_task_run(tmp_path / "run", "image_pairs")
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("task: image_pairs", "task: of_the_future"))
    assert RunRecord.read(run).task == "of_the_future"
    assert "Settings" in Page(write_report(run)).headings
