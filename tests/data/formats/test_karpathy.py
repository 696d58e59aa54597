"""Karpathy's split files, read row by row."""

import pytest

from pixelbert.data.formats import karpathy
from pixelbert.data.formats.exclusion import Exclusions, load_exclusions
from pixelbert.data.records import BadRow, Example, Excluded
from pixelbert.errors import DataError, UsageError


@pytest.fixture
def coco(tmp_path, tools):
    entry = tools.karpathy_image
    images = [
        entry("COCO_val2014_000000000042.jpg", "restval", ["A cat. ", "The cat."], 1, filepath="val2014", cocoid=42),
        entry("COCO_train2014_000000000009.jpg", "train", ["A dog."], 3, filepath="train2014", cocoid=9),
        entry("COCO_val2014_000000000139.jpg", "val", ["A room."], 4, filepath="val2014", cocoid=139),
        entry("COCO_val2014_000000000285.jpg", "test", ["A bear."], 5, filepath="val2014", cocoid=285),
    ]
    return tools.write_json(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})


def test_coco_entry_gives_path_ids_and_split(coco):
    rows = list(karpathy.read(coco))
    assert rows[0] == Example(
        id="1",
        split="restval",
        image="val2014/COCO_val2014_000000000042.jpg",
        image_id="42",
        text="A cat. ",
        where=f"{coco}: image 0, sentence 0",
        source="coco",
    )
    assert [(r.id, r.split) for r in rows] == [
        ("1", "restval"), ("2", "restval"), ("3", "train"), ("4", "val"), ("5", "test")
    ]  # fmt: skip


def test_restval_becomes_train_only_on_request(coco):
    assert [r.split for r in karpathy.read(coco, merge_restval=True)] == ["train", "train", "train", "val", "test"]


def test_flickr_entry_is_named_by_its_file(tmp_path, tools):
    images = [tools.karpathy_image("1000092795.jpg", "train", ["Two men."], 0)]
    path = tools.write_json(tmp_path / "dataset_flickr30k.json.gz", {"images": images, "dataset": "flickr30k"})
    (row,) = karpathy.read(path)
    assert (row.image, row.image_id, row.source) == ("1000092795.jpg", "1000092795.jpg", "flickr30k")
    assert list(karpathy.read(tmp_path)) == [row]  # a folder is searched


def test_a_folder_with_two_sets_is_not_guessed(coco, tools):
    tools.write_json(coco.parent / "dataset_flickr30k.json", {"images": []})
    with pytest.raises(UsageError, match=r"dataset_coco\.json, dataset_flickr30k\.json"):
        list(karpathy.read(coco.parent))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"split": "trian"}, "unknown split 'trian'; did you mean 'train'?"),
        ({"split": None}, "split is None, expected one of train, restval, val, test, test-dev, test-std"),
        ({"filename": ""}, "has no 'filename'"),
        ({"sentences": "none"}, "'a.jpg' has no list of 'sentences'"),
        ({"sentences": []}, "'a.jpg' has no sentence"),
    ],
)
def test_an_entry_that_cannot_be_used_is_a_bad_row(tmp_path, tools, change, reason):
    good = tools.karpathy_image("b.jpg", "train", ["fine"], 7)
    wrong = {**tools.karpathy_image("a.jpg", "train", ["x"], 1), **change}
    path = tools.write_json(tmp_path / "dataset_x.json", {"images": [good, wrong, 5]})
    rows = list(karpathy.read(path))
    assert isinstance(rows[0], Example)
    split = "train" if "split" not in change else ""
    assert rows[1] == BadRow(str(path), "image 1", reason, split, captionless=change == {"sentences": []})
    assert rows[2] == BadRow(str(path), "image 2", "an object was expected, found int")


def test_tokens_stand_in_for_a_missing_sentence(tmp_path, tools):
    image = tools.karpathy_image("a.jpg", "val", [None], 0)
    image["sentences"][0]["tokens"] = ["two", "cats"]
    (row,) = karpathy.read(tools.write_json(tmp_path / "dataset_x.json", {"images": [image]}))
    assert row.text == "two cats"


def test_the_official_captions_file_is_recognised(tmp_path, tools):
    path = tools.write_json(tmp_path / "dataset.json", {"images": [{"id": 1, "file_name": "a.jpg"}]})
    with pytest.raises(DataError, match="use the format 'coco'"):
        list(karpathy.read(path))


@pytest.mark.parametrize("content", [{}, {"images": []}, [], {"annotations": [1]}])
def test_a_file_without_images_is_refused(tmp_path, tools, content):
    with pytest.raises(DataError, match="has no 'images' list"):
        list(karpathy.read(tools.write_json(tmp_path / "dataset_x.json", content)))


def test_exclusion_guards_training_splits_only(coco):
    lists = Exclusions(coco_ids={"42": "COCO val", "139": "COCO val"})
    rows = list(karpathy.read(coco, exclude=lists))
    assert rows[0] == Excluded("COCO val", 2)
    assert [r.id for r in rows[1:]] == ["3", "4", "5"]


def test_flickr30k_photos_are_found_in_coco_by_the_official_captions(coco, tools, tmp_path):
    flickr = [tools.karpathy_image("777.jpg", "train", ["x"], 0)]
    flickr30k = tools.write_json(tmp_path / "other" / "dataset_flickr30k.json", {"images": flickr})
    notes: list[str] = []
    assert len(list(karpathy.read(coco, exclude=load_exclusions([flickr30k]), notes=notes))) == 5
    assert notes[0].startswith("4 photos of dataset_coco.json could not be compared with Flickr30K")
    official = {"images": [{"id": 9, "file_name": "x.jpg", "flickr_url": "http://farm9.x.com/8292/777_e04b_z.jpg"}]}
    tools.write_json(tmp_path / "annotations" / "captions_train2014.json", official)
    rows = list(karpathy.read(coco, exclude=load_exclusions([flickr30k])))
    assert Excluded("Flickr30K", 1) in rows
    assert [r.id for r in rows if isinstance(r, Example)] == ["1", "2", "4", "5"]


def test_a_set_never_excludes_itself(tmp_path, tools):
    images = [tools.karpathy_image("777.jpg", "train", ["x"], 0)]
    path = tools.write_json(tmp_path / "dataset_flickr30k.json", {"images": images})
    assert [r.id for r in karpathy.read(path, exclude=load_exclusions([path]))] == ["0"]
