"""NLVR2 and NLVR v1: JSON lines to examples."""

import json

import pytest

from pixelbert.data.formats import nlvr
from pixelbert.data.records import BadRow, Example
from pixelbert.errors import DataError


def statement(identifier, label="True", **more):
    row = {"sentence": "Two dogs.", "identifier": identifier, "left_url": "http://a/b.jpg", **more}
    return row if label is None else {**row, "label": label}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_statement_has_two_images(tmp_path):
    path = write(tmp_path / "dev.json", [statement("dev-850-2-0", "False")])
    assert list(nlvr.read_nlvr2(path)) == [
        Example(
            "dev-850-2-0", "val", "dev-850-2-img0.png", "dev-850-2-img0.png", "Two dogs.",
            f"{path}: line 1, dev-850-2-0", image2="dev-850-2-img1.png",
            target={"identifier": "dev-850-2-0", "set": "850", "label": False}, source="nlvr2",
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "identifier", "option", "split"),
    [
        ("train.json", "train-1-0-0", None, "train"), ("test1.json", "test1-1-0-0", None, "test"),
        ("test2.json", "test2-1-0-0", None, "test-std"), ("balanced_dev.json", "dev-1-0-0", None, "val"),
        ("dev.json", "mine-1-0-0", None, "val"), ("any.json", "mine-1-0-0", None, ""),
        ("dev.json", "dev-1-0-0", "train", "train"),
    ],
)  # fmt: skip
def test_the_split_is_the_identifiers(tmp_path, name, identifier, option, split):
    path = write(tmp_path / name, [statement(identifier)])
    assert [row.split for row in nlvr.read_nlvr2(path, split=option)] == [split]


@pytest.mark.parametrize(
    ("true", "false"), [("True", "False"), ("true", "false"), ("TRUE", "FALSE"), (True, False), ("tRUE", "false")]
)
def test_labels_in_any_case_or_as_booleans(tmp_path, true, false):
    rows = [statement(f"dev-1-{k}-0", label) for k, label in enumerate((true, false, false, true))]
    found = [row.target["label"] for row in nlvr.read_nlvr2(write(tmp_path / "dev.json", rows))]
    assert found == [True, False, False, True]


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (["True", "yes"], "line 2, dev-1-1-0: the label is 'yes', expected true/false"),
        (["True", 1], "line 2, dev-1-1-0: the label is 1, expected true/false"),
        (["True", "False", "true", "TRUE"], "labels are spelled in 4 ways: 'True' .line 1, dev-1-0-0., 'False'"),
        (["True", None], "line 2: dev-1-1-0 has no label, and lines before it have one"),
        ([None, "True"], "line 2: dev-1-1-0 has a label, and lines before it have none"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, reason):
    path = write(tmp_path / "dev.json", [statement(f"dev-1-{k}-0", label) for k, label in enumerate(labels)])
    with pytest.raises(DataError, match=reason) as caught:
        list(nlvr.read_nlvr2(path))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_without_labels_is_for_prediction(tmp_path):
    path = write(tmp_path / "test2.json", [statement("test2-1-0-0", None)])
    notes = []
    (row,) = nlvr.read_nlvr2(path, notes=notes)
    assert (row.target, notes) == ({"identifier": "test2-1-0-0", "set": "1"}, [])
    path = write(tmp_path / "dev.json", [statement("dev-1-0-0", None)])
    list(nlvr.read_nlvr2(path, notes=notes))
    assert notes == ["dev.json has no labels: its statements can be judged, not scored"]
    path = write(tmp_path / "train.json", [statement("train-1-0-0", None)])
    with pytest.raises(DataError, match="line 1 has no label, and training needs one"):
        list(nlvr.read_nlvr2(path))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (json.dumps(statement("12-3")), "line 1: identifier '12-3' is not split-set-.*; is it NLVR v1"),
        (json.dumps(statement("dev-1-0")), "line 1: identifier 'dev-1-0' is not split-set-pair-sentence$"),
        ('{"sentence": "x", "label": "True"}', "line 1 has no text 'identifier'; found: sentence, label"),
        ('["x"]', "line 1: an object was expected, found list"),
        ("no json", "line 1: not valid JSON"),
        ('{"identifier": "dev-1', "line 1: the JSON is cut off in the middle"),
    ],
)
def test_lines_that_are_refused(tmp_path, line, reason):
    path = tmp_path / "dev.json"
    path.write_text(line)
    with pytest.raises(DataError, match=reason):
        list(nlvr.read_nlvr2(path))


def test_a_map_gives_the_pictures_other_names(tmp_path):
    path = write(tmp_path / "dev.json", [statement("dev-1-0-0"), statement("dev-1-1-0")])
    beside = tmp_path / "image_map_dev.json"
    beside.write_text('{"dev-1-0-img0.png": "a.jpg", "dev-1-0-img1.png": "b.jpg", "dev-1-1-img0.png": "a.jpg"}')
    good, bad = nlvr.read_nlvr2(path)
    assert (good.image, good.image2, good.image_id, good.source) == ("a.jpg", "b.jpg", "a.jpg", tmp_path.name)
    assert bad == BadRow(str(path), "line 2, dev-1-1-0", f"right image 'dev-1-1-img1.png' is not in {beside}", "val")


def test_nlvr_of_one_picture(tmp_path):
    path = write(tmp_path / "hidden.json", [statement("32-1", "false", directory="4"), statement("5-0", "true")])
    one, two = nlvr.read_nlvr(path)
    assert (one.image, one.image2, one.split) == ("hidden/images/4/hidden-32-1-0.png", None, "test-std")
    assert one.target == {"identifier": "32-1", "label": False}
    assert two.image == "hidden-5-0-0.png"
    assert [row.split for row in nlvr.read_nlvr(path, split="train")] == ["train", "train"]
    with pytest.raises(DataError, match="is not two numbers, n-m; is it NLVR2"):
        list(nlvr.read_nlvr(write(tmp_path / "dev.json", [statement("dev-1-0-0")])))


def test_files_of_a_folder(tmp_path):
    for name in ("train.json", "dev.jsonl", "test1.json.gz", "test.json", "hidden.json", "image_map_dev.json"):
        (tmp_path / name).write_text("x")
    assert [p.name for p in nlvr.locate_nlvr2(tmp_path)] == ["dev.jsonl", "test1.json.gz", "train.json"]
    assert [p.name for p in nlvr.locate_nlvr(tmp_path)] == ["dev.jsonl", "hidden.json", "test.json", "train.json"]
