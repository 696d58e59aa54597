"""Streaming JSON names the place where a file stops being JSON; splits, ids and files are told from their names."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelbert.data.files import open_bytes
from pixelbert.data.formats.common import (
    RowError,
    as_id,
    canonical_split,
    find_annotations,
    json_items,
    split_of_name,
)
from pixelbert.errors import DataError

CONTENT = {"info": {"x": [1, 2.5, None]}, "images": [{"a": 1}, {"b": "ü\n"}], "dataset": "x"}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_items_of_a_whole_file(tmp_path, bom, pack):
    (tmp_path / "a.json").write_bytes(pack(bom + json.dumps(CONTENT).encode()))
    assert list(json_items(tmp_path / "a.json", "images.item")) == CONTENT["images"]


@given(cut=st.integers(1, len(json.dumps(CONTENT, indent=1)) - 1))
def test_a_file_cut_anywhere_names_byte_and_line(tmp_path_factory, cut):
    text = json.dumps(CONTENT, indent=1)[:cut]
    path = tmp_path_factory.mktemp("cut") / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(json_items(path, "images.item"))
    assert str(caught.value) == f"{path}: the JSON is cut off at byte {cut} (line {text.count(chr(10)) + 1})"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b" \n", "the file is empty"),
        (b'{"images": [1,\n 2 3]}', r"line 2, column 4 \(byte 18\): not valid JSON"),
        (b'{"images": ["a",\n "\xff"]}', "line 2, byte 19: not UTF-8"),
        (b"image,text\n", r"line 1, column 1 \(byte 0\): not valid JSON"),
        (b'{"images": []} trailing', "line 1, column 16"),
        (b'{"images": [{"a": "NaN",\n "b": NaN}]}', r"line 2, column 7 \(byte 31\): not valid JSON \(NaN is no number"),
        (b'{"images": [-Infinity]}', r"line 1, column 13 \(byte 12\): not valid JSON \(-Infinity is no number"),
        (b'{"images": [1e3, 1e999]}', r"line 1, column 18 \(byte 17\): not valid JSON \(1e999 is no number"),
        (b'{"images": [' + b"1" * 5000 + b"]}", "a.json: not valid JSON"),
        (b'{"images": ' + b"[" * 100_000, r"a.json: not valid JSON \(it is nested too deeply\)"),
        (b'{"images": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", r"not valid JSON \(it is nested too deeply\)"),
    ],
)
def test_a_damaged_file(tmp_path, data, reason):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=reason):
        list(json_items(tmp_path / "a.json", "images.item"))


def test_a_gzip_file_that_is_cut_off_or_damaged(tmp_path):
    whole = gzip.compress(json.dumps({"images": list(range(10000))}).encode())
    (tmp_path / "cut.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"the gzip file is cut off at byte {len(whole) // 2}"):
        list(json_items(tmp_path / "cut.gz", "images.item"))
    (tmp_path / "bad.gz").write_bytes(whole[:1000] + bytes(200) + whole[1200:])
    with pytest.raises(DataError, match="gzip file is damaged"):
        list(json_items(tmp_path / "bad.gz", "images.item"))


def test_all_bytes_of_the_file_are_counted(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"images": ["x" * 50, *range(200000)]}).encode()))
    counted: list[int] = []
    assert len(list(json_items(path, "images.item", counted.append))) == 200001
    assert len(counted) > 3
    assert sum(counted) == path.stat().st_size


def test_urls_are_opened_and_missing_files_named():
    import fsspec

    fsspec.filesystem("memory").pipe("/box/a.json", b'{"images": [7]}')
    assert list(json_items("memory://box/a.json", "images.item")) == [7]
    with pytest.raises(DataError, match=r"memory://box/b\.json: no such file"):
        open_bytes("memory://box/b.json")
    with pytest.raises(DataError, match="cannot be opened"):
        open_bytes("nosuchscheme://a/b")


@pytest.mark.parametrize(
    ("word", "split"), [("train", "train"), ("Val ", "val"), ("dev", "val"), ("validation", "val")]
)
def test_words_for_a_split(word, split):
    assert canonical_split(word) == split


@pytest.mark.parametrize("word", ["trian", "", None, 3, "all"])
def test_an_unknown_split_is_no_split(word):
    with pytest.raises(RowError, match="did you mean|valid names|expected one of"):
        canonical_split(word)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_val2014.json", "val"),
        ("v2_train.json.gz", "train"),
        ("trainer.json", ""),
        ("dev.json", "val"),
        ("data", ""),
    ],
)
def test_split_of_a_file_name(name, split):
    assert split_of_name(name) == split


def test_a_folder_is_searched_from_the_top(tmp_path):
    for name in ("x/y/a.json", "x/b.json", ".hidden/c.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert find_annotations(tmp_path, ("*.json",), "thing") == [tmp_path / "x" / "b.json"]
    with pytest.raises(DataError, match=r"holds no thing \(\*\.csv\)"):
        find_annotations(tmp_path, ("*.csv",), "thing")
    with pytest.raises(DataError, match="no such file or folder"):
        find_annotations(tmp_path / "none", ("*.csv",), "thing")


@pytest.mark.parametrize(
    ("value", "text"), [(42, "42"), ("42", "42"), (42.0, "42"), (True, ""), (None, ""), ([], ""), (float("nan"), "")]
)
def test_ids_as_text(value, text):
    assert as_id(value) == text
