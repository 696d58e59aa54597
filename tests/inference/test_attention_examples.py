"""Attention sheets of held-out examples: the right text before the right picture, in the report, never in the way."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from attending import pretraining_model
from PIL import Image

from pixelbert.data.records import PreparedData
from pixelbert.inference import attention_examples
from pixelbert.inference.attention import Method, look_all, see
from pixelbert.inference.attention_examples import write_attention
from pixelbert.inference.attention_pictures import sheet
from pixelbert.tasks.run import load_run
from pixelbert.training.evaluate import evaluate
from pixelbert.training.loop import train
from tiny_runs import tiny_data, tiny_recipe


@pytest.fixture
def evaluated(runs, tmp_path):
    """(run, data, told): a task's run, evaluated with `attend`."""

    def get(task, attend=write_attention):
        run, data = runs(task)
        copy = shutil.copytree(run, tmp_path / task)
        evaluate(copy, data, attend=attend)
        file = copy / "evaluation" / "val" / "attention.json"
        return copy, data, json.loads(file.read_text())["attention"] if file.exists() else None

    return get


@pytest.mark.parametrize(("task", "sheets"), [("pretraining", 2), ("question_answering", 1), ("image_pairs", 2)])
def test_every_example_has_its_sheets(evaluated, task, sheets):
    run, data, told = evaluated(task)
    split = PreparedData(data).split("val")
    texts = {split.text(row) for row in range(split.num_records)}
    assert 1 <= len(told) <= 3
    assert {one["text"] for one in told} <= texts
    for one in told:
        assert len(one["sheets"]) == sheets  # two methods of one picture, or two pictures
        assert [each["side"] for each in one["sheets"]] == (
            ["left", "right"] if task == "image_pairs" else [""] * sheets
        )
        for each in one["sheets"]:
            with Image.open(run / "evaluation" / "val" / each["picture"]) as picture:
                assert picture.format == "JPEG"


def test_the_sheet_is_of_the_examples_own_picture(evaluated):
    run, data, told = evaluated("question_answering")
    split, (_, model, processor) = PreparedData(data).split("val"), load_run(run, "best")
    examples = json.loads((run / "evaluation" / "val" / "examples.json").read_text())["examples"]
    rows = {split.record_id(row): row for row in range(split.num_records)}
    row = rows[examples[0]["record"]]
    photo = see(model.eval(), processor, split.image(int(split.image_of[row])).read())
    maps = look_all(model, processor, photo, split.text(row), Method())
    buffer = io.BytesIO()
    sheet(maps, photo.pixels, split.text(row), size=160, columns=len(maps) + 1).save(buffer, "JPEG", quality=72)
    with Image.open(run / "evaluation" / "val" / told[0]["sheets"][0]["picture"]) as found, Image.open(buffer) as own:
        assert told[0]["text"] == split.text(row)
        assert found.size == own.size
        assert np.abs(np.asarray(found, float) - np.asarray(own, float)).mean() < 1


def test_what_cannot_be_drawn_does_not_end_an_evaluation(evaluated, capsys):
    def broken(*_):
        raise ValueError("no ink")

    run, _, told = evaluated("question_answering", broken)
    assert told is None
    assert (run / "evaluation" / "val" / "figures.json").is_file()
    assert "the attention sheets were not drawn: no ink" in capsys.readouterr().err


def test_a_blind_run_has_nothing_to_look_at(runs, tmp_path):
    run, data = runs("question_answering")
    copy = shutil.copytree(run, tmp_path / "run")
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace("blind: false", "blind: true"))
    evaluate(copy, data, attend=write_attention)
    assert not (copy / "evaluation" / "val" / "attention.json").exists()


def test_the_report_of_a_trained_run_shows_them(tmp_path):
    data = tiny_data(tmp_path)
    train(tiny_recipe(), data, tmp_path / "run", attend=write_attention)
    told = json.loads((tmp_path / "run" / "validation" / "attention.json").read_text())["attention"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('<figure class="look"><img src="data:image/jpeg;base64,') == sum(len(o["sheets"]) for o in told)
    assert told
    assert all(f"each word of: {one['text']} (attention layer 1)" in page for one in told)


def test_beside_the_papers_method_stands_the_one_that_tells_words_apart_best():
    for settings, beside in (
        ({}, []), ({"contrastive_size": 8}, ["similarity"]),
        ({"contrastive_size": 8, "match_fitted": True, "match_words": True}, ["nearness"]),
    ):  # fmt: skip
        methods = attention_examples._methods(pretraining_model(**settings))
        assert [str(method) for method in methods] == ["attention layer 1", *beside]
