"""Lists of photos to keep out of training."""

import pytest

from pixelbert.data.formats.exclusion import flickr_id_of_url, load_exclusions
from pixelbert.errors import DataError


def test_a_plain_list_of_names_and_numbers(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text(
        "val2014/COCO_val2014_000000000042.jpg 42\n36979.jpg\n\n# a comment\n2090545563_a4e66ec76b.jpg\n123\n"
    )
    lists = load_exclusions([path])
    assert lists.coco_ids == {"42": "out.txt", "123": "out.txt"}
    assert lists.flickr_ids == {"36979": "out.txt", "2090545563": "out.txt", "123": "out.txt"}


def test_a_prefix_says_what_the_ids_are(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("[7, 8]")
    assert load_exclusions([f"coco:{path}"]).reason(coco_id="7") == "out.json"
    assert load_exclusions([f"coco:{path}"]).reason(flickr_id="7", image_id="7") == ""
    assert load_exclusions([f"flickr:{path}"]).reason(flickr_id="8") == "out.json"
    assert load_exclusions([f"image:{path}"]).reason(image_id="8") == "out.json"


KARPATHY_COCO = '{"images": [{"filename": "COCO_val2014_000000000042.jpg", "cocoid": 42, "split": "val"}]}'
OFFICIAL_COCO = '{"images": [{"id": 42, "file_name": "000000000042.jpg"}], "annotations": []}'
KARPATHY_FLICKR = '{"images": [{"filename": "36979.jpg", "split": "train"}]}'


@pytest.mark.parametrize(
    ("prefix", "content", "coco", "flickr"),
    [
        ("coco:", KARPATHY_COCO, ["42"], []),
        ("coco:", OFFICIAL_COCO, ["42"], []),
        ("flickr:", KARPATHY_FLICKR, [], ["36979"]),
        ("coco:", "000000000042.jpg\n43.jpg\nval2017/000000000044.jpg\n45\n0046\nCOCO_test2015_000000000047.jpg\n",
         ["42", "43", "44", "45", "46", "47"], []),
        ("coco:", '["000000000042.jpg", 43]', ["42", "43"], []),
        ("coco:", "42,val\n43;test\n44\tval", ["42", "43", "44"], []),
        ("flickr:", "flickr30k-images/36979.jpg\n5", [], ["36979", "5"]),
        ("", "000000000042.jpg\nval2017/000000000043.jpg\n000000000044\n", ["42", "43", "44"], []),
        ("", "42,val\n36979.jpg,test\n", ["42"], ["42", "36979"]),
        ("", "01\n", ["1"], ["01"]),
    ],
)  # fmt: skip
def test_a_photo_is_named_in_many_ways(tmp_path, prefix, content, coco, flickr):
    (tmp_path / "list").write_text(content)
    lists = load_exclusions([f"{prefix}{tmp_path / 'list'}"])
    assert (list(lists.coco_ids), list(lists.flickr_ids), lists.image_ids) == (coco, flickr, {})
    assert lists.reason(coco_id="", flickr_id="") == ""


def test_a_comma_may_stand_in_a_name_of_ones_own(tmp_path):
    (tmp_path / "list").write_text("5,dogs.jpg\nmy photo.jpg\n")
    lists = load_exclusions([tmp_path / "list"])
    assert list(lists.image_ids) == ["5,dogs.jpg", "my photo.jpg"] and not lists.coco_ids and not lists.flickr_ids


@pytest.mark.parametrize(
    ("prefix", "content", "reason"),
    [
        ("coco:", "image_id\n42\n", "line 1: 'image_id' names no COCO photo"),
        ("flickr:", "1\nCOCO_val2014_000000000042.jpg\n", "line 2: 'COCO_val2014_000000000042.jpg' names no Flickr"),
        ("coco:", '["42.jpg", "none"]', "entry 1: 'none' names no COCO photo"),
        ("coco:", '[{"id": 42}]', "entry 0 is no id or file name"),
        ("flickr:", KARPATHY_COCO, "names no photo by the ids that 'flickr:' says"),
        ("coco:", KARPATHY_FLICKR, "names no photo by the ids that 'coco:' says"),
        ("image:", KARPATHY_FLICKR, "names no photo by the ids that 'image:' says"),
    ],
)
def test_a_line_that_is_not_what_its_prefix_says(tmp_path, prefix, content, reason):
    (tmp_path / "list").write_text(content)
    with pytest.raises(DataError, match=reason):
        load_exclusions([f"{prefix}{tmp_path / 'list'}"])


def test_nothing_is_matched_by_an_unknown_id(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("5\n")
    assert load_exclusions([path]).reason(coco_id="", flickr_id="", image_id="") == ""
    assert not load_exclusions([])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"12\n\xff\xfe\n", "line 2: not UTF-8"),
        (b'{"images": [{"split": "val"}]}', "image 0 has no 'filename'"),
        (b'{"other": 1}', "has no 'images' list"),
        (b'{"images": [{"filename": "a.jpg"}, ', "cut off at byte 35"),
    ],
)
def test_a_list_that_is_none(tmp_path, content, reason):
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        load_exclusions([tmp_path / "list"])


def test_a_missing_list(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load_exclusions([tmp_path / "none.json"])


@pytest.mark.parametrize(
    ("url", "photo"),
    [
        ("http://farm9.staticflickr.com/8292/7866247804_e0486b75b8_z.jpg", "7866247804"),
        ("https://live.staticflickr.com/1/36979.jpg", "36979"),
        ("http://images.cocodataset.org/train2014/COCO_train2014_000000000790.jpg", ""),
        (None, ""),
    ],
)
def test_flickr_id_of_a_coco_address(url, photo):
    assert flickr_id_of_url(url) == photo
