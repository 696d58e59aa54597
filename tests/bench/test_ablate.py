"""Table 6: its arithmetic by hand, and rows run end to end on tiny data, stopped and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pixelbert.bench import ablate as module
from pixelbert.bench.ablate import ROWS, Ablation, AblationResult, ablate, difference, table
from pixelbert.data.prepare import prepare
from pixelbert.errors import CheckpointError, DataError, UsageError
from pixelbert.recipes.schema import load_recipe
from tiny_runs import BASE
from tiny_tasks import TASKS, task_data, write_vqa


def test_differences_are_paired_by_record() -> None:
    first = {0: {"a": 100.0, "b": 0.0, "c": 100.0, "d": 100.0}}
    second = {0: {"a": 100.0, "b": 0.0, "c": 0.0, "d": 0.0}}
    gap, error = difference(first, second)
    assert gap == 50.0 and error == pytest.approx(np.std([0, 0, 100, 100], ddof=1) / 2)


def test_seeds_that_disagree_widen_the_error() -> None:
    ones, zeros = dict.fromkeys("abcd", 100.0), dict.fromkeys("abcd", 0.0)
    gap, error = difference({0: ones, 1: zeros}, {0: zeros, 1: zeros})
    assert gap == 50.0 and error == pytest.approx(50.0)  # each record's mean is 50, the seeds' are 100 and 0


def test_rows_are_the_papers() -> None:
    for row in ROWS[1:]:
        recipe = load_recipe("pretrain-r50", row.changes())
        assert (bool(recipe.loss.mlm), bool(recipe.loss.itm)) == (row.mlm, row.itm)
        assert recipe.loss.contrastive == 0 and recipe.phases == []
        assert recipe.visual.num_sampled_pixels == (100 if row.sampled else 0)
    assert not ROWS[0].pretrained and ROWS[5].larger


def test_the_table_shows_means_and_spread_beside_the_paper() -> None:
    one = {"vqa_score": 50.0, "i2t_r1": 10.0, "t2i_r1": 20.0, "accuracy": 60.0}
    other = one | {"vqa_score": 54.0}
    text = table(AblationResult({5: {0: one, 1: other}}))
    assert "| 5 | MLM + ITM, random pixels | 71.3 / **52.0** ± 2.8 | 75.7 / **10.0** ± 0.0 |" in text
    assert "the paper finds" not in text.lower() and "held-out" not in text  # nothing to say, no empty table


def test_the_table_tells_what_the_pretraining_came_to_and_what_holds() -> None:
    one = {"vqa_score": 50.0, "i2t_r1": 10.0, "t2i_r1": 20.0, "accuracy": 60.0}
    learnt = {"itm_accuracy": 61.0, "mlm_accuracy": 70.0, "mlm_gain_shuffled": 2.0}
    claim = {"claim": "pretraining helps (5 over 1)", "rows": [5, 1], "difference": -5.8, "standard_error": 1.3}
    claims = [claim | {"figure": "vqa_score", "verdict": "fails"}, claim | {"figure": "accuracy", "verdict": "tie"}]
    pretraining = {2: {0: learnt}, 3: {0: learnt}, 5: {0: learnt, 1: learnt | {"itm_accuracy": 63.0}}}
    lines = table(AblationResult({row: {0: one} for row in (1, 2, 3, 5)}, pretraining, claims)).splitlines()
    assert "| 2 | ITM | **61.0** |  |  |" in lines  # no word was learnt there
    assert "| 3 | MLM |  | **70.0** | **2.0** |" in lines
    assert "| 5 | MLM + ITM, random pixels | **62.0** ± 1.4 | **70.0** ± 0.0 | **2.0** ± 0.0 |" in lines
    assert "| pretraining helps (5 over 1) | 5 - 1 | -5.8 (1.3) fails |  |  | -5.8 (1.3) tie |" in lines


def tiny(tmp_path: Path) -> Ablation:
    data = {task: str(task_data(tmp_path / task, task)) for task in TASKS}
    return Ablation(
        {"pairs": data["retrieval"], "vqa": data["question_answering"], "nlvr2": data["image_pairs"]},
        size="tiny", rows=(1, 5), pairs=16, examples=16, retrieval_examples=8, retrieval_images=3,
        overrides=(*BASE.split(" "), "answers.min_count=1", "ranking.negatives=3"),
    )  # fmt: skip


def test_rows_run_and_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tiny(tmp_path)
    runs: list[str] = []
    real = module._run

    stops = [2, 5]  # inside the first row, and inside the second

    def stopping(recipe: object, data: str, run: Path, *rest: object) -> dict[str, float]:
        if stops and len(runs) == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
        runs.append(str(run.relative_to(tmp_path / "out")))
        return real(recipe, data, run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_run", stopping)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ablate(tmp_path / "out", asked, say=lambda text: None)
    assert runs == [  # the two of the first row that were finished are asked for again, and give what they have
        "row-1/seed-0/vqa", "row-1/seed-0/retrieval", "row-1/seed-0/vqa", "row-1/seed-0/retrieval",
        "row-1/seed-0/nlvr2",
    ]  # fmt: skip
    result = ablate(tmp_path / "out", asked, say=lambda text: None)
    assert runs[5:] == [
        "row-5/seed-0/pretraining", "row-5/seed-0/vqa", "row-5/seed-0/retrieval", "row-5/seed-0/nlvr2",
    ]  # fmt: skip
    kept = json.loads((tmp_path / "out" / "ablation.json").read_text())
    assert set(kept["pretraining"]) == {"5"} and set(kept["pretraining"]["5"]["0"]) == set(module._OF_PRETRAINING)
    assert set(kept["figures"]) == {"1", "5"} and result.figures[5][0].keys() == {
        "vqa_score", "i2t_r1", "t2i_r1", "accuracy",
    }  # fmt: skip
    assert {(c["rows"][1], c["figure"]) for c in kept["claims"]} == {
        (1, "vqa_score"), (1, "i2t_r1"), (1, "t2i_r1"), (1, "accuracy"),
    }  # fmt: skip
    assert (tmp_path / "out" / "table.md").read_text() == result.table
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert "model.safetensors" in left and not left & {"checkpoints", "features"}, "what finished rows need no more"
    with pytest.raises(UsageError, match="another ablation .pairs: 16 there, 17 here"):
        ablate(tmp_path / "out", replace(asked, pairs=17), say=lambda text: None)
    again = ablate(tmp_path / "out", replace(asked, rows=(1,)), say=lambda text: None)
    assert again.table == result.table and len(runs) == 9  # rows of before stay


def test_rows_share_the_maps_of_a_cnn_that_stays_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = ("backbone.frozen_stages=9", "train.keep_frozen_features=true", "image.augment=none")
    asked = tiny(tmp_path)
    asked = replace(asked, overrides=(*asked.overrides, *frozen), rows=(4, 5, 1))
    kept: dict[tuple[str, str, str], set[str]] = {}
    real = module._run

    def watched(recipe: object, data: str, run: Path, *rest: object) -> dict[str, float]:
        figures = real(recipe, data, run, *rest)  # type: ignore[arg-type]
        features = {path.name for path in (tmp_path / "out 😀" / "features").iterdir()}
        kept[run.parents[1].name, run.parent.name, run.name] = features
        return figures

    monkeypatch.setattr(module, "_run", watched)
    ablate(tmp_path / "out 😀", asked, say=lambda text: None)
    first, second = (kept[row, "seed-0", "nlvr2"] for row in ("row-4", "row-5"))
    assert kept["row-4", "seed-0", "vqa"] < first
    assert kept["row-5", "seed-0", "pretraining"] == second == first, "none computed again"
    assert second < kept["row-1", "seed-0", "nlvr2"], "from random weights every task has a CNN of its own"
    assert not (tmp_path / "out 😀" / "features").exists()
    ablate(tmp_path / "out 😀", replace(asked, rows=(4, 5), seeds=(0, 1)), say=lambda text: None)
    assert kept["row-5", "seed-1", "pretraining"] == kept["row-4", "seed-1", "nlvr2"], "nor for a seed that joins later"
    assert not (tmp_path / "out 😀" / "features").exists()


def test_a_larger_row_joins_later_and_rows_without_a_common_seed_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked, runs = tmp_path / "out", replace(tiny(tmp_path), rows=(1,)), []

    def made_up(recipe: object, data: str, run: Path, *rest: object) -> dict[str, float]:
        runs.append(str(run.relative_to(out)))
        (run / "validation").mkdir(parents=True)
        name = "ranks.jsonl" if run.name == "retrieval" else "records.jsonl"
        row = {"record": "a", "image": "i", "rank": 1, "score": 50.0, "right": True}
        for file in (name, "image_ranks.jsonl"):
            (run / "validation" / file).write_text(json.dumps(row) + "\n" + json.dumps(row | {"record": "b"}) + "\n")
        return dict.fromkeys(("vqa_score", "i2t_r1", "t2i_r1", "accuracy"), 50.0)

    monkeypatch.setattr(module, "_run", made_up)
    quiet = lambda text: None  # noqa: E731
    ablate(out, asked, say=quiet)
    other_seed = ablate(out, replace(asked, rows=(5,), seeds=(1,)), say=quiet)
    assert set(other_seed.figures) == {1, 5} and other_seed.claims == []
    with pytest.raises(UsageError, match="nmae"):  # told before a row is run
        ablate(out, replace(asked, rows=(1, 6), larger=("backbone.nmae=resnet10t",)), say=quiet)
    with pytest.raises(UsageError, match="lsos"):
        ablate(out, replace(asked, rows=(1, 5), pretraining=("lsos.mlm=1",)), say=quiet)
    before = len(runs)
    larger = replace(asked, rows=(1, 6), larger=("backbone.name=resnet10t",))
    assert set(ablate(out, larger, say=quiet).figures) == {1, 5, 6}
    assert {run.split("/")[0] for run in runs[before:]} == {"row-6"}
    with pytest.raises(UsageError, match="another ablation .larger: "):
        ablate(out, replace(larger, larger=("backbone.name=resnet14t",)), say=quiet)
    assert set(ablate(out, replace(asked, rows=(5,)), say=quiet).figures) == {1, 5, 6}  # row 6's CNN is not asked for
    assert ablate(out, larger, say=quiet).claims


def test_a_damaged_record_of_an_ablation_is_told(tmp_path: Path) -> None:
    asked = tiny(tmp_path)
    (tmp_path / "out").mkdir()
    for damage in ("{", "[]", '{"asked": null}', '{"asked": [1]}'):
        (tmp_path / "out" / "ablation.json").write_text(damage)
        with pytest.raises(CheckpointError, match="ablation.json: damaged"):
            ablate(tmp_path / "out", asked, say=lambda text: None)


def test_damaged_files_of_a_row_are_told_with_what_to_delete(tmp_path: Path) -> None:
    out, asked = tmp_path / "out", replace(tiny(tmp_path), rows=(1, 5))
    first = ablate(out, asked, say=lambda text: None)
    (out / "row-x" / "seed-0").mkdir(parents=True)
    (out / "row-x" / "seed-0" / "figures.json").write_text("a note of someone's")
    for file, damage, remedy in (
        ("row-1/seed-0/figures.json", "{}", "no 'vqa_score'.; delete the file, then"),
        ("row-1/seed-0/figures.json", "[]", "delete the file, then"),
        ("row-5/seed-0/figures.json", '{"vqa_sc', "delete the file, then"),
        ("row-1/seed-0/vqa/validation/records.jsonl", '{"record": ', "delete the folder .*seed-0, then"),
        ("row-5/seed-0/retrieval/validation/ranks.jsonl", None, "delete the folder .*seed-0, then"),
    ):
        path = out / file
        before = path.read_text()
        path.unlink() if damage is None else path.write_text(damage)
        with pytest.raises(CheckpointError, match=rf"{path.name}: damaged .*{remedy} give the same command again"):
            ablate(out, asked, say=lambda text: None)
        path.write_text(before)
    (out / "row-1" / "seed-0" / "figures.json").unlink()
    assert ablate(out, asked, say=lambda text: None).table == first.table, "figures stand in each task's own file too"


def test_the_same_data_may_be_named_otherwise_and_other_data_may_not(tmp_path: Path) -> None:
    out, asked = tmp_path / "out", replace(tiny(tmp_path), rows=(1,))
    first = ablate(out, asked, say=lambda text: None)
    (tmp_path / "link").symlink_to(asked.data["vqa"])
    linked = replace(asked, data={**asked.data, "vqa": str(tmp_path / "link")})
    assert ablate(out, linked, say=lambda text: None).table == first.table
    (tmp_path / "link").unlink()
    for path in write_vqa(tmp_path / "other").glob("*questions.json"):
        path.write_text(path.read_text().replace("what is", "where is"))
    prepare("vqa", [tmp_path / "other"], tmp_path / "link")
    with pytest.raises(UsageError, match=f"holds another ablation .other data in {tmp_path / 'link'}.; choose"):
        ablate(out, linked, say=lambda text: pytest.fail("a row was started"))


def test_what_cannot_become_a_table_is_told_before_any_run(tmp_path: Path) -> None:
    data = {task: str(task_data(tmp_path / task, task)) for task in TASKS}
    named = {"pairs": data["retrieval"], "vqa": data["question_answering"], "nlvr2": data["image_pairs"]}
    sampling = ("visual.num_sampled_pixels=4",)
    for asked, told in (
        (Ablation(named, size="tiny", overrides=sampling), "row 6 needs a larger CNN"),
        (Ablation(named, size="tiny", rows=(4, 5)), "samples no pixels"),
        (Ablation(named | {"nlvr2": str(tmp_path / "no")}, size="tiny", rows=(1,)), "no"),
        (Ablation(named | {"vqa": named["nlvr2"]}, size="tiny", rows=(1,)), "prepared for"),
    ):
        with pytest.raises((UsageError, DataError), match=told):
            ablate(tmp_path / "out", asked, say=lambda text: pytest.fail("a row was started"))
        assert not (tmp_path / "out").exists()
