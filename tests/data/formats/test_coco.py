"""The official COCO captions files, read row by row."""

import pytest

from pixelbert.data.formats import coco
from pixelbert.data.formats.exclusion import Exclusions
from pixelbert.data.records import BadRow, Example, Excluded
from pixelbert.errors import DataError

IMAGES = [
    {"id": 9, "file_name": "COCO_train2014_000000000009.jpg", "flickr_url": "http://x.com/1/555_ab_z.jpg"},
    {"id": 25, "file_name": "COCO_train2014_000000000025.jpg"},
]
CAPTIONS = [
    {"id": 1, "image_id": 9, "caption": "A tray of food."},
    {"id": 2, "image_id": 25, "caption": "A giraffe."},
    {"id": 3, "image_id": 9, "caption": "Lunch."},
]


@pytest.mark.parametrize("order", [["images", "annotations"], ["annotations", "images"]])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_captions_meet_their_photos_in_either_order(tmp_path, tools, order, suffix):
    content = {"images": IMAGES, "annotations": CAPTIONS}
    path = tools.write_json(tmp_path / f"captions_train2014.json{suffix}", {k: content[k] for k in order})
    rows = list(coco.read(path))
    assert rows[1] == Example(
        "2", "train", "COCO_train2014_000000000025.jpg", "25", "A giraffe.", f"{path}: annotation 1", source="coco"
    )
    assert [r.id for r in rows] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "option", "split"),
    [
        ("captions_train2014.json", None, "train"),
        ("captions_val2017.json", None, "val"),
        ("captions_val2014.json", "train", "train"),
        ("mine.json", None, ""),
        ("captions_dev.json", None, "val"),
    ],
)
def test_the_split_comes_from_the_option_or_the_name(tmp_path, tools, name, option, split):
    path = tools.write_json(tmp_path / name, {"images": IMAGES, "annotations": CAPTIONS})
    assert {r.split for r in coco.read(path, split=option)} == {split}


def test_both_files_of_a_folder_are_found(tmp_path, tools):
    for name in ("captions_val2014.json", "captions_train2014.json", "instances_val2014.json"):
        tools.write_json(tmp_path / "annotations" / name, {})
    assert [p.name for p in coco.locate(tmp_path)] == ["captions_train2014.json", "captions_val2014.json"]


def test_rows_that_cannot_be_used(tmp_path, tools):
    images = [*IMAGES, {"id": 30}, {**IMAGES[0], "file_name": "other.jpg"}]
    captions = [*CAPTIONS, {"id": 4, "image_id": 77, "caption": "x"}, "text"]
    path = tools.write_json(tmp_path / "captions_train2014.json", {"images": images, "annotations": captions})
    assert [r for r in coco.read(path) if isinstance(r, BadRow)] == [
        BadRow(str(path), "image 2", "has no 'id' or no 'file_name'", "train"),
        BadRow(str(path), "image 3", "id '9' is repeated with another file_name", "train"),
        BadRow(str(path), "annotation 3", "image_id '77' is not in the file's list of images", "train"),
        BadRow(str(path), "annotation 4", "an object was expected, found str", "train"),
    ]


def test_an_image_without_caption_is_a_bad_row(tmp_path, tools):
    images = [{"id": 7, "file_name": "seven.jpg"}, *IMAGES, {"id": 8, "file_name": "out.jpg"}]
    captions = [*CAPTIONS[:1], {"id": 2, "image_id": 25, "caption": " "}]  # an empty one is told by its own place
    path = tools.write_json(tmp_path / "captions_train2014.json", {"images": images, "annotations": captions})
    rows = list(coco.read(path, exclude=Exclusions(coco_ids={"8": "why"})))
    assert [r.id for r in rows if isinstance(r, Example)] == ["1", "2"]
    assert rows[2:] == [BadRow(str(path), "image 0", "'seven.jpg' has no caption", "train", captionless=True)]
    assert [r.split for r in coco.read(path, split="val") if isinstance(r, BadRow)] == ["val", "val"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"annotations": CAPTIONS}, "has no 'images' list"),
        ({"images": IMAGES}, "has no 'annotations'"),
        ({"images": IMAGES, "annotations": [{"id": 1, "image_id": 9, "category_id": 3}]}, "holds objects"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path, tools, content, reason):
    with pytest.raises(DataError, match=reason):
        list(coco.read(tools.write_json(tmp_path / "captions_train2014.json", content)))


@pytest.mark.parametrize(
    "lists",
    [Exclusions(coco_ids={"9": "why"}), Exclusions(flickr_ids={"555": "why"}), Exclusions(image_ids={"9": "why"})],
)
def test_photos_are_excluded_by_each_of_their_ids(tmp_path, tools, lists):
    content = {"images": IMAGES, "annotations": CAPTIONS}
    path = tools.write_json(tmp_path / "captions_train2014.json", content)
    rows = list(coco.read(path, exclude=lists))
    assert [r.id for r in rows if isinstance(r, Example)] == ["2"]
    assert rows[-1] == Excluded("why", 2)
    assert len(list(coco.read(path, exclude=lists, split="val"))) == 3  # no leak in a held-out split
