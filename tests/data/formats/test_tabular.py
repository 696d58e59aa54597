"""The user's own CSV and JSONL."""

import csv
import gzip

import pytest

from pixelbert.data.formats import tabular
from pixelbert.data.records import BadRow, Example
from pixelbert.errors import DataError, UsageError


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def pairs(rows):
    return [(r.image, r.text) for r in rows if isinstance(r, Example)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("sep", [",", ";", "\t"])
def test_csv_with_any_delimiter_line_end_and_mark(tmp_path, pack, bom, end, sep):
    lines = [f"image{sep}text", f"a.jpg{sep}Grün", f'a.jpg{sep}"two{sep} parts"', "", f"b.jpg{sep}last"]
    path = write(tmp_path / "mine.csv", pack(bom + end.join(lines).encode()))
    assert pairs(tabular.read_csv(path)) == [("a.jpg", "Grün"), ("a.jpg", f"two{sep} parts"), ("b.jpg", "last")]


def test_a_row_becomes_an_example(tmp_path):
    path = write(tmp_path / "mine.csv", "id,image,note,text,split\nx7,a/b.jpg,hm,A cat,dev\n,c.jpg,,A dog,\n")
    assert list(tabular.read_csv(path)) == [
        Example("x7", "val", "a/b.jpg", "a/b.jpg", "A cat", f"{path}: line 2", source="mine"),
        Example("mine:3", "", "c.jpg", "c.jpg", "A dog", f"{path}: line 3", source="mine"),
    ]


def test_columns_of_other_names(tmp_path):
    path = write(tmp_path / "a.csv", "file;caption;image\nreal.jpg;A cat;decoy\n")
    columns = {"image": "file", "text": "caption"}
    assert pairs(tabular.read_csv(path, columns=columns)) == [("real.jpg", "A cat")]
    path = write(tmp_path / "a.jsonl", '{"file": "real.jpg", "caption": "A cat"}\n')
    assert pairs(tabular.read_jsonl(path, columns=columns)) == [("real.jpg", "A cat")]
    with pytest.raises(UsageError, match="unknown column 'img'; did you mean 'image'"):
        list(tabular.read_csv(path, columns={"img": "x"}))


def test_columns_in_capitals(tmp_path):
    path = write(tmp_path / "a.csv", "Image;TEXT\nreal.jpg;A cat\n")
    assert pairs(tabular.read_csv(path)) == [("real.jpg", "A cat")]
    path = write(tmp_path / "b.csv", "Image;image;Text\ndecoy.jpg;real.jpg;A cat\n")  # the exact name is the one
    assert pairs(tabular.read_csv(path)) == [("real.jpg", "A cat")]
    path = write(tmp_path / "a.jsonl", '{"Image": "real.jpg", "Question": "Who?", "Answer": "a cat"}\n')
    assert tabular.task_of_jsonl(path) == "vqa"
    assert pairs(tabular.read_jsonl(path)) == [("real.jpg", "Who?")]
    path = write(tmp_path / "c.csv", "Image;Image;text\na.jpg;b.jpg;A cat\n")
    with pytest.raises(DataError, match="two columns are called 'image'"):
        list(tabular.read_csv(path))


def test_the_delimiter_can_be_said(tmp_path):
    path = write(tmp_path / "a.csv", "image:text\na.jpg:x, y\n")
    assert pairs(tabular.read_csv(path, delimiter=":")) == [("a.jpg", "x, y")]
    with pytest.raises(UsageError, match="not one character"):
        list(tabular.read_csv(path, delimiter="::"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image,caption\na.jpg,x\n", "line 1: no column 'text'; found: image, caption"),
        ("image,text,text\n", "line 1: two columns are called 'text'"),
        ("image,text\n", "has a header and no row"),
        ("", "the file is empty"),
        (b"image,text\na.jpg,caf\xe9\n", "line 2: byte 9 is not UTF-8"),
        ("image,text\na.jpg,ä\n".encode("utf-16"), "line 1: the text is UTF-16"),
        ('image,text\na.jpg,x\nb.jpg,"never closed\nc.jpg,x\n', "line 3: not valid CSV"),
        ("image,text\ra.jpg,x\r", "bare carriage return"),
    ],
)
def test_a_csv_that_cannot_be_read(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        list(tabular.read_csv(write(tmp_path / "mine.csv", text)))


def test_a_header_that_is_no_csv(tmp_path):
    path = write(tmp_path / "mine.csv", "image,text," + "x" * (1 << 24) + "y\na.jpg,one,\n")
    for read in (tabular.task_of_csv, lambda path: list(tabular.read_csv(path))):
        with pytest.raises(DataError, match=r"mine\.csv: line 1: not valid CSV"):
            read(path)


def test_a_long_column_of_another_name_is_no_matter(tmp_path):
    path = write(tmp_path / "mine.csv", "image,text," + "x" * 200_000 + "\na.jpg,one,\n")
    csv.field_size_limit(1 << 17)  # Python's own, which another reader may have left
    assert tabular.task_of_csv(path) == "pairs"
    assert pairs(tabular.read_csv(path)) == [("a.jpg", "one")]


def test_csv_rows_that_cannot_be_used(tmp_path):
    rows = ["image,text,split", 'a.jpg,"two\nlines",', "b.jpg", ",no image,", 'c.jpg,"he said "hi"",', "d.jpg,x,trian"]
    text = "\n".join([*rows, "e.jpg,good,test"])
    path = write(tmp_path / "mine.csv", text)
    rows = list(tabular.read_csv(path))
    assert rows[0].text == "two\nlines"
    assert rows[-1].split == "test"
    assert rows[-1].where == f"{path}: line 8"
    bad = [(r.place, r.reason) for r in rows if isinstance(r, BadRow)]
    assert bad[0] == ("line 4", "has 1 fields, expected 3")  # the record before it takes two lines
    assert bad[1] == ("line 5", "names no image")
    assert bad[2][0] == "line 6"
    assert bad[2][1].startswith("not valid CSV")
    assert bad[3] == ("line 7", "unknown split 'trian'; did you mean 'train'?")


@pytest.mark.parametrize(
    ("name", "option", "split"),
    [("val.csv", None, "val"), ("my_test.csv", None, "test"), ("train.csv", None, ""), ("test_photos.csv", None, ""),
     ("val.csv", "train", "train"), ("dev.csv.gz", None, "val")],
)  # fmt: skip
def test_the_split_of_a_file_without_the_column(tmp_path, name, option, split):
    path = write(tmp_path / name, "image,text\na.jpg,x\n")
    assert [r.split for r in tabular.read_csv(path, split=option)] == [split]


def test_jsonl_with_one_text_or_several(tmp_path):
    lines = (
        '{"image": "a.jpg", "text": ["one", "two"], "id": 7}\n\n{"text": "three", "image": "b.jpg", "split": "val"}\n'
    )
    rows = list(tabular.read_jsonl(write(tmp_path / "mine.jsonl", lines)))
    assert [(r.id, r.split, r.image, r.text) for r in rows] == [
        ("7#0", "", "a.jpg", "one"),
        ("7#1", "", "a.jpg", "two"),
        ("mine:3", "val", "b.jpg", "three"),
    ]


def test_jsonl_rows_that_cannot_be_used(tmp_path):
    lines = [
        '{"image": "a.jpg", "text": "good"}', "not json", "[1]", '{"image": "b.jpg"}', '{"image": 7, "text": "x"}',
        '{"image": "c.jpg", "text": []}', '{"image": "d.jpg", "text": "x", "split": 1}',
        '{"image": "e.jpg", "text": "x"}',
    ]  # fmt: skip
    path = write(tmp_path / "mine.jsonl", "\n".join(lines))
    rows = list(tabular.read_jsonl(path))
    assert pairs(rows) == [("a.jpg", "good"), ("e.jpg", "x")]
    bad = [(r.place, r.reason.partition(" (")[0]) for r in rows if isinstance(r, BadRow)]
    assert bad == [
        ("line 2", "not valid JSON"),
        ("line 3", "an object was expected, found list"),
        ("line 4", "no column 'text'; found: image"),
        ("line 5", "names no image"),
        ("line 6", "the list of texts is empty"),
        ("line 7", "split is 1, expected one of train, restval, val, test, test-dev, test-std"),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the file is empty"),
        ('{"picture": "a.jpg", "text": "x"}\n', "line 1: no column 'image'; found: picture, text"),
        ('{"image": "a.jpg", "text": "x"}\n{"image": "b.jp', "line 2: the JSON is cut off in the middle"),
        (b'{"image": "a.jpg", "text": "x"}\n{"image": "\xff"}', "line 2: byte 11 is not UTF-8"),
    ],
)
def test_a_jsonl_that_cannot_be_read(tmp_path, text, reason):
    with pytest.raises(DataError, match=reason):
        list(tabular.read_jsonl(write(tmp_path / "mine.jsonl", text)))


def test_files_of_a_folder(tmp_path):
    for name in ("b.csv", "a.csv.gz", "c.jsonl", "d.tsv", "e.txt"):
        write(tmp_path / name, "x")
    assert [p.name for p in tabular.locate_csv(tmp_path)] == ["a.csv.gz", "b.csv", "d.tsv"]
    assert [p.name for p in tabular.locate_jsonl(tmp_path)] == ["c.jsonl"]
