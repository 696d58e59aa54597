"""docs/measurements.yaml: every run behind the results can be started, and needs what it uses."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from pixelbert.recipes.schema import load_recipe

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))
measure = pytest.importorskip("measure")
make_results = sys.modules["make_results"]
JOBS = measure.load_jobs()
TRAININGS = [name for name, job in JOBS.items() if job["run"].startswith("pixelbert train")]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_command_is_one_that_recipes_allow(name: str) -> None:
    words = shlex.split(JOBS[name]["run"])
    load_recipe(words[2], [word for word in words if "=" in word])


def made_by(folder: str) -> str:
    """The job whose command writes this folder."""
    return next(n for n, job in JOBS.items() if f"--out {folder} " in f"{job['run']} ")


@pytest.mark.parametrize("name", list(JOBS))
def test_a_job_needs_the_jobs_whose_folders_it_reads(name: str) -> None:
    words = shlex.split(JOBS[name]["run"])
    read = [words[i + 1] for i, word in enumerate(words) if word in ("--data", "--from")]
    if words[1] == "evaluate":
        read += [words[2], *(words[i + 1] for i, word in enumerate(words) if word == "--blind")]
    needed = set(measure.with_needs(JOBS, [name]))
    assert {made_by(folder) for folder in read} <= needed


def test_a_training_with_a_checkpoint_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = "pixelbert train vqa-small --data data/x --out runs/x --from runs/y data.workers=0"
    assert measure.command_of(run) == shlex.split(run)
    (tmp_path / "runs/x/checkpoints/step-00000010").mkdir(parents=True)
    assert measure.command_of(run) == [*shlex.split(run.replace(" --from runs/y", "")), "--resume"]


def test_a_command_s_table_is_kept_with_how_it_came_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DOCS", tmp_path)
    (tmp_path / "table.md").write_text("| a |\n|---|\n| 1 |\n", encoding="utf-8")
    measure.keep_table({"from": str(tmp_path / "table.md"), "to": "kept.md", "note": "two rows"}, "pixelbert x", 3.5)
    kept = (tmp_path / "kept.md").read_text(encoding="utf-8")
    assert kept.startswith("| a |\n|---|\n| 1 |\n\n3.5 minutes, ") and kept.endswith("; two rows:\n\n    pixelbert x\n")
    page = "before\n<!-- table: kept.md -->\nold\n<!-- end -->\n<!-- table: other.md -->\n<!-- end -->\n"
    monkeypatch.setattr(make_results, "DOCS", tmp_path)
    made = make_results.render(page, [])
    assert f"<!-- table: kept.md -->\n{kept}<!-- end -->" in made and "old" not in made and "Not run yet." in made
    assert make_results.render(made, []) == made


def test_an_interrupted_job_keeps_the_minutes_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    measure.save(measure.SPENT, {"job": 12.0})
    assert measure.run_all({"job": {"run": "true"}}, ["job"], 1) == 0
    assert measure.load(measure.STATE)["job"]["minutes"] == pytest.approx(12.0, abs=0.5)
    assert measure.load(measure.SPENT) == {}


def test_the_page_says_how_a_figure_stands_to_what_was_asked() -> None:
    def figure(value: float, note: str, name: str = "a.b") -> dict[str, object]:
        how = {"command": "c", "minutes": 1, "machine": "m", "commit": "1", "date": "d"}
        return {"name": name, "value": value, "unit": "percent", "note": note, **how}

    told = {
        (66.0, "floor 66, aim 75; one core"): "above the floor of 66, aim 75",
        (75.0, "floor 66, aim 75"): "reaches the aim of 75",
        (65.9, "floor 66, aim 75"): "**below the floor of 66**, aim 75",
        (61.0, "aim 62"): "below the aim of 62",
        (1.1, "floor 1.05"): "above the floor of 1.05",
        (4.1, "at most 5; busy"): "within 5",
        (5.1, "at most 5"): "**more than 5**",
    }  # fmt: skip
    assert {key: make_results.verdict(figure(*key)) for key in told} == told
    figures = [figure(66.0, "floor 66, aim 75; one core"), figure(0.5, "one core", "a.b_blind")]
    row = "| `a.b` | **66.00** percent | 0.50 |  | above the floor of 66, aim 75 |"
    assert make_results.glance(figures).splitlines()[2:] == [row]
    page = "<!-- targets -->\n<!-- end -->\n<!-- figures: z.* a.* -->\n<!-- end -->\n"
    last = figure(2.0, "aim 1", "z.z")
    assert make_results.render(page, [*figures, last]).splitlines()[3].startswith("| `z.z` |")
    assert "| `a.b` | **66.00** percent | above the floor of 66, aim 75 |" in make_results.table(figures, "a.*")
