"""Tars as img2dataset writes them."""

import json

import pytest

from pixelbert.data.formats import webdataset
from pixelbert.data.records import BadRow, Example
from pixelbert.errors import DataError


def sample(key, tools, text="A cat", **meta):
    return {
        f"{key}.jpg": tools.picture(int(key)),
        f"{key}.json": json.dumps({"caption": text, "status": "success", "key": key, "width": 40, **meta}).encode(),
        f"{key}.txt": text.encode(),
    }


def test_samples_are_read_in_place(tmp_path, tools):
    members = {**sample("000000000", tools, "Eine Tür"), **sample("000000003", tools, "A dog")}
    path = tools.write_tar(tmp_path / "cc3m" / "00000.tar", members)
    rows = list(webdataset.read(path))
    assert [(r.id, r.image_id, r.split, r.text, r.source) for r in rows] == [
        ("000000000", "000000000", "", "Eine Tür", "cc3m"),
        ("000000003", "000000003", "", "A dog", "cc3m"),
    ]
    assert rows[1].where == f"{path}: sample 000000003"
    assert [r.ref.read() for r in rows] == [tools.picture(0), tools.picture(3)]


def test_caption_from_the_json_alone(tmp_path, tools):
    members = sample("1", tools, "x", caption=["one", "two"])
    del members["1.txt"]
    rows = list(webdataset.read(tools.write_tar(tmp_path / "val-0.tar", members)))
    assert [(r.id, r.text, r.split) for r in rows] == [("1#0", "one", "val"), ("1#1", "two", "val")]


def test_other_image_types_names_with_dots_and_folders(tmp_path, tools):
    members = {
        "a/b.c.txt": b"ignored: not the key's .txt",
        "a/b.PNG": tools.picture(kind="PNG"),
        "a/b.txt": b"in a folder",
        "d.webp": tools.picture(kind="WEBP"),
        "d.cls": b"3",
        "d.txt": b"\xef\xbb\xbfmarked",
    }
    rows = list(webdataset.read(tools.write_tar(tmp_path / "0.tar", members)))
    assert [(r.id, r.text) for r in rows] == [("a/b", "in a folder"), ("d", "marked")]


def test_samples_that_cannot_be_used(tmp_path, tools):
    photo = tools.picture()
    members = {
        "1.json": json.dumps({"status": "failed_to_download", "caption": "x"}).encode(),
        "2.txt": b"no image",
        "3.jpg": photo,
        "4.jpg": photo,
        "4.json": b"{",
        "5.jpg": photo,
        "5.png": photo,
        "6.jpg": photo,
        "6.txt": b"\xff\xfe",
        "7.jpg": photo,
        "7.json": b'{"caption": null}',
    }
    path = tools.write_tar(tmp_path / "0.tar", members)
    rows = list(webdataset.read(path))
    assert [(r.place, r.reason.partition(" (E")[0]) for r in rows if isinstance(r, BadRow)] == [
        ("sample 1", "has no image (status: failed_to_download)"),
        ("sample 2", "has no image"),
        ("sample 3", "has neither a .txt nor a caption in its .json"),
        ("sample 4", "its .json is not valid JSON"),
        ("sample 5", "has several images: 5.jpg, 5.png"),
        ("sample 6", "its .txt is not UTF-8 (byte 0)"),
    ]
    assert [(r.id, r.text) for r in rows if isinstance(r, Example)] == [("7", None)]  # prepare calls it a missing text


def test_tars_of_a_folder_in_order(tmp_path, tools):
    for name in ("00001.tar", "00000.tar", "00002.tar.gz", "00000_stats.json"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in webdataset.locate(tmp_path)] == ["00000.tar", "00001.tar", "00002.tar.gz"]


def test_a_tar_at_a_url(tmp_path, tools):
    import fsspec

    path = tools.write_tar(tmp_path / "00000.tar", sample("5", tools))
    fsspec.filesystem("memory").pipe("/cc/00000.tar", path.read_bytes())
    (row,) = webdataset.read("memory://cc/00000.tar")
    assert row.ref.file == "memory://cc/00000.tar"
    assert row.ref.read() == tools.picture(5)
    assert row.source == "cc"


def test_a_compressed_tar_is_refused_by_the_reader(tmp_path, tools):
    with pytest.raises(DataError, match="gzip-compressed tar cannot be read in place"):
        list(webdataset.read(tools.write_tar(tmp_path / "0.tar.gz", sample("1", tools), "w:gz")))
