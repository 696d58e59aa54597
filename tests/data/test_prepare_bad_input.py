"""Bad input: what is left out and listed, what stops `prepare`; and that a failure leaves nothing behind."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from pixelbert.data import prepare as prepare_module
from pixelbert.data.prepare import prepare
from pixelbert.data.records import PreparedData
from pixelbert.errors import DataError, MachineError


@pytest.fixture
def folder(tmp_path, tools):
    """Good photos 0.jpg ... 4.jpg, and one of each bad kind."""
    import struct
    import zlib

    folder = tmp_path / "own"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.jpg").write_bytes(tools.picture(i))
    (folder / "cut.jpg").write_bytes(tools.picture(9, (200, 150))[:5000])
    (folder / "text.jpg").write_text("a text file\n")
    (folder / "empty.jpg").write_bytes(b"")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    huge = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (folder / "huge.png").write_bytes(huge)
    return folder


def write_csv(folder, rows, header="id,image,text,split"):
    path = folder / "mine.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def listed(out):
    return [json.loads(line) for line in (out / "bad_rows.jsonl").open(encoding="utf-8")]


def left(folder):
    return sorted(p.name for p in folder.iterdir())


BAD_ROWS = [
    ("b,none.jpg,a text,train", 3, "image 'none.jpg' not found in"),
    ("c,cut.jpg,a text,train", 4, "cut.jpg' is cut off"),
    ("d,text.jpg,a text,train", 5, "text.jpg' is not an image"),
    ("e,empty.jpg,a text,train", 6, "empty.jpg' is empty"),
    ("f,huge.png,a text,train", 7, "huge.png' has 40,000 x 40,000 pixels, more than"),
    ("g,1.jpg,   ,train", 8, "the text is empty"),
    ("a,2.jpg,a text,train", 9, "id 'a' is repeated in split train; first at"),
    ("h,2.jpg,a text,trian", 10, "unknown split 'trian'; did you mean 'train'?"),
    ("i,2.jpg", 11, "has 2 fields, expected 4"),
    ("j,,a text,train", 12, "names no image"),
]


@pytest.mark.parametrize("check", ["header", "full"])
def test_every_bad_row_is_left_out_and_listed_with_file_and_line(folder, tmp_path, check):
    rows = ["a,0.jpg,first,train", *(row for row, _, _ in BAD_ROWS), "a,3.jpg,another split,val", "z,4.jpg,last,train"]
    path = write_csv(folder, rows)
    data = prepare("csv", [path], tmp_path / "out", check_images=check)
    found = {row["place"]: row for row in listed(tmp_path / "out")}
    assert sorted(found) == sorted(f"line {line}" for _, line, _ in BAD_ROWS)
    for _, line, reason in BAD_ROWS:
        assert reason in found[f"line {line}"]["reason"]
        assert found[f"line {line}"]["file"] == str(path)
    assert f"first at {path}: line 2" in found["line 9"]["reason"]
    train = data.split("train")
    assert [train.text(r) for r in range(train.num_records)] == ["first", "last"]
    assert train.num_images == 2
    assert data.info["bad_rows"]["total"] == len(BAD_ROWS)
    assert sum(data.info["bad_rows"]["kinds"].values()) == len(BAD_ROWS)


def test_the_summary_groups_and_shows_bad_rows(folder, tmp_path):
    import io

    from rich.console import Console

    path = write_csv(folder, ["a,0.jpg,x,", "b,no1.jpg,x,", "c,no2.jpg,x,", "d,1.jpg,,"])
    stream = io.StringIO()
    prepare("csv", [path], tmp_path / "out", console=Console(file=stream, width=200))
    assert "Bad rows, left out: 3" in stream.getvalue()
    assert "2 x image '...' not found" in stream.getvalue()
    assert f"{path}: line 3: image 'no1.jpg' not found in {folder}" in stream.getvalue()


def test_without_a_check_broken_images_pass_and_missing_ones_do_not(folder, tmp_path):
    path = write_csv(folder, ["a,0.jpg,x,", "b,cut.jpg,x,", "c,none.jpg,x,"])
    data = prepare("csv", [path], tmp_path / "out", check_images="none")
    assert data.info["splits"]["train"]["records"] == 2
    assert [row["place"] for row in listed(tmp_path / "out")] == ["line 4"]


def test_a_bad_image_in_a_shard_is_named_with_the_shard(tmp_path, tools):
    tar = tools.write_tar(tmp_path / "a.tar", {"good.jpg": tools.picture(), "bad.jpg": b"text"})
    path = write_csv(tmp_path, ["a,good.jpg,x,", "b,bad.jpg,x,"])
    prepare("csv", [path], tmp_path / "out", images=[tar])
    (row,) = listed(tmp_path / "out")
    assert row["reason"].startswith(f"image 'bad.jpg' in '{tar}' at byte ")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"\\u200b \\u0007"', "the text is empty"), ("null", "the text is missing"),
        ("7", "the text is no text but int"),
        ('"\\ud800"', "not valid Unicode"),
    ],
)  # fmt: skip
def test_texts_that_are_none(folder, tmp_path, text, reason):
    path = folder / "mine.jsonl"
    path.write_text('{"image": "0.jpg", "text": "good"}\n{"image": "1.jpg", "text": ' + text + "}\n")
    prepare("jsonl", [path], tmp_path / "out")
    (row,) = listed(tmp_path / "out")
    assert reason in row["reason"]
    assert row["place"] == "line 2"


def test_names_that_are_not_text(folder, tmp_path):
    path = folder / "mine.jsonl"
    path.write_text('{"image": "0.jpg", "text": "good"}\n{"image": "\\udcff.jpg", "text": "x"}\n')
    prepare("jsonl", [path], tmp_path / "out")
    assert "the name is not valid Unicode" in listed(tmp_path / "out")[0]["reason"]


def test_an_ambiguous_image_is_a_bad_row(folder, tmp_path, tools):
    for name in ("p", "q"):
        (folder / name).mkdir()
        (folder / name / "x.jpg").write_bytes(tools.picture(77))
    prepare("csv", [write_csv(folder, ["a,x.jpg,t,", "b,q/x.jpg,t,"])], tmp_path / "out")
    (row,) = listed(tmp_path / "out")
    assert row["reason"] == f"image 'x.jpg' is ambiguous: {folder}/p/x.jpg and {folder}/q/x.jpg"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("mine.csv", b"image,text\n0.jpg,caf\xe9\n", "mine.csv: line 2: byte 9 is not UTF-8"),
        ("mine.csv", b"image,caption\n0.jpg,x\n", "mine.csv: line 1: no column 'text'; found: image, caption"),
        ("mine.csv", b"image,text\nnone.jpg,x\n", "mine.csv: all 1 rows of split 'train' are bad; the first: line 2"),
        (
            "mine.csv",
            b"image,text,split\nno.jpg,x,\n0.jpg,x,\n1.jpg,,val\n",
            "all 1 rows of split 'val' are bad; the first: line 4: the text is empty",
        ),
        (
            "mine.csv",
            b"image,text,split\n0.jpg,,\n1.jpg,x,val\n",
            "all 1 rows of split 'train' are bad; the first: line 2",
        ),
        ("mine.csv", b"image,text,split\n0.jpg,x,foo\n", "no row can be used; the first: line 2: unknown split 'foo'"),
        ("dataset_x.json", b'{"images": [{"filename": "0.jpg",\n "spl', "the JSON is cut off at byte 39 (line 2)"),
        (
            "captions_train2014.json",
            b'{"images": [{"id": 1, "file_name": "0.jpg"}], ',
            "the JSON is cut off at byte 46",
        ),
        ("captions_train2014.json", b"image,text", "line 1, column 1 (byte 0): not valid JSON"),
        ("region_descriptions.json", b"[]", "image_data.json: no such file"),
        ("mine.jsonl", b'{"image": "0.jpg", "te', "line 1: the JSON is cut off in the middle"),
        ("a.tar", b"x" * 600, "a.tar: not a readable tar"),
    ],
)
def test_a_damaged_file_or_a_whole_bad_split_stops_everything(folder, tmp_path, name, content, reason):
    formats = {".csv": "csv", ".jsonl": "jsonl", ".tar": "webdataset"}
    by_name = {
        "dataset_x.json": "karpathy",
        "captions_train2014.json": "coco",
        "region_descriptions.json": "visual_genome",
    }
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare(by_name.get(name) or formats[path.suffix], [path], tmp_path / "out")
    assert reason in str(caught.value)
    assert str(folder) in str(caught.value)
    assert left(tmp_path) == ["own"]


def test_an_excluded_set_says_so(tmp_path, tools):
    images = [tools.karpathy_image("1.jpg", "train", ["x"], 1, cocoid=1)]
    path = tools.write_json(tmp_path / "dataset_coco.json", {"images": images})
    (tmp_path / "out.txt").write_text("1\n")
    with pytest.raises(DataError, match="every one was left out by the exclusion lists"):
        prepare("karpathy", [path], tmp_path / "data", exclude=[tmp_path / "out.txt"])


def test_giving_up_at_a_number_of_bad_rows(folder, tmp_path):
    path = write_csv(folder, ["a,0.jpg,x,", "b,none.jpg,x,", "c,cut.jpg,x,"])
    assert prepare("csv", [path], tmp_path / "out", max_bad=2).info["bad_rows"]["total"] == 2
    for most, line in ((1, 4), (0, 3)):
        with pytest.raises(DataError, match=rf"line {line}: .* --max-bad allows {most}"):
            prepare("csv", [path], tmp_path / "other", max_bad=most)
    assert left(tmp_path) == ["out", "own"]


HELD_OUT = [  # a row of val or test, and why it is bad; the first two rows are line 2 and 3
    ("b,none.jpg,a text,val", "line 4: image 'none.jpg' not found in"),
    ("b,cut.jpg,a text,dev", "line 4: image '.*cut.jpg' is cut off"),
    ("b,1.jpg, ,validation", "line 4: the text is empty"),  # the image has another one
    ("b,,a text,test-dev", "line 4: names no image"),
    ("v,2.jpg,a text,val", "line 4: id 'v' is repeated in split val; first at"),
]


@pytest.mark.parametrize(("row", "reason"), HELD_OUT)
def test_a_bad_pair_of_a_held_out_split_is_left_out_with_a_note(folder, tmp_path, row, reason):
    path = write_csv(folder, ["t,0.jpg,x,train", "v,1.jpg,x,val", row, "u,none.jpg,x,train"])
    data = prepare("csv", [path], tmp_path / "out")
    assert any(re.search(reason, f"{bad['place']}: {bad['reason']}") for bad in listed(tmp_path / "out"))
    name = "test-dev" if row.endswith("test-dev") else "val"
    assert data.info["bad_rows"]["splits"] == {"train": 1, name: 1}
    assert data.info["notes"] == [f"1 row was left out of split '{name}' as bad: a score is not over all of it"]


def test_rows_that_name_no_split_may_be_bad_though_some_of_them_become_val(folder, tmp_path):
    path = write_csv(folder, [f"{k},{k}.jpg,x," for k in range(5)] + [f"m{k},none{k}.jpg,x," for k in range(9)])
    data = prepare("csv", [path], tmp_path / "out", val_fraction=0.5)
    assert (data.info["bad_rows"]["total"], data.info["bad_rows"]["splits"]) == (9, {})
    assert data.info["notes"] == []


@pytest.mark.parametrize(
    ("format", "name", "content", "reason"),
    [
        ("karpathy", "dataset_x.json", {"images": [{"filename": "2.jpg", "split": "val", "sentences": []}]},
         "image 2: '2.jpg' has no sentence"),
        ("coco", "captions_val2014.json",
         {"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
          "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}, "image 1: '2.jpg' has no caption"),
        ("jsonl", "val.jsonl", '{"image": "1.jpg", "text": "x"}\n{"image": "2.jpg", "text": []}\n',
         "line 2: the list of texts is empty"),
        ("jsonl", "val.jsonl", '{"image": "1.jpg", "text": "x"}\n{"image": "2.jpg", "text": null}\n',
         "line 2: the text is missing"),
        ("jsonl", "val.jsonl", '{"image": "1.jpg", "text": "x"}\n{"image": "2.jpg", "text": ["", " "]}\n',
         "line 2: the text is empty"),
        ("csv", "val.csv", "image,text\n1.jpg,x\n2.jpg,\n", "line 3: the text is empty"),
        ("karpathy", "dataset_x.json",
         {"images": [{"filename": "2.jpg", "split": "val", "sentences": [{"raw": "", "sentid": 9}], "sentids": [9]}]},
         "image 2, sentence 0: the text is empty"),
    ],
)  # fmt: skip
def test_a_held_out_image_without_caption_stops_in_every_format(folder, tmp_path, tools, format, name, content, reason):
    if format == "karpathy":
        good = [tools.karpathy_image(f"{k}.jpg", split, ["x"], k) for k, split in enumerate(("train", "val"))]
        content = {"images": [*good, *content["images"]]}
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=f"{name}: {reason}; a score is over all of a split"):
        prepare(format, [folder / name], tmp_path / "out")
    allowed = prepare(format, [folder / name], tmp_path / "out", max_bad=2).info
    assert set(allowed["bad_rows"]["splits"]) == {"val"}


def test_a_stray_quote_does_not_swallow_rows(folder, tmp_path):
    """The quote of line 3 closes in line 6, before a comma or before anything else."""
    for closing, told in (
        ('d,4.jpg,"a text",train', "closes only in line 6"),
        ('d,4.jpg,a text",train', "closes only in line 6, over other rows"),
    ):
        rows = ["a,0.jpg,x,train", 'b,1.jpg,"x,train', "c,2.jpg,x,train", "e,3.jpg,x,train", closing]
        path = write_csv(folder, [*rows, "f,2.jpg,x,train"])
        with pytest.raises(DataError, match=f"line 3: a quote opens here and .*{told}"):
            prepare("csv", [path], tmp_path / "out")
    path = write_csv(folder, ['a,0.jpg,"two lines,\nof one text, of 4.jpg",train', "b,1.jpg,x,train"])
    assert prepare("csv", [path], tmp_path / "out").info["splits"]["train"]["records"] == 2


def test_json_that_is_nested_too_deeply_is_a_bad_row(folder, tmp_path):
    deep = '{"image": "1.jpg", "text": ' + "[" * 100_000 + "]" * 100_000 + "}"
    (folder / "mine.jsonl").write_text('{"image": "0.jpg", "text": "x"}\n' + deep + "\n")
    assert prepare("jsonl", [folder / "mine.jsonl"], tmp_path / "out").info["bad_rows"]["total"] == 1


def test_a_sample_s_json_that_is_nested_too_deeply_is_a_bad_row(tmp_path, tools):
    deep = b"[" * 100_000 + b"]" * 100_000
    one, two = (tools.picture(seed, kind="PNG") for seed in (1, 2))
    tools.write_tar(tmp_path / "a.tar", {"a.png": one, "a.txt": b"a text", "b.png": two, "b.json": deep})
    assert prepare("webdataset", [tmp_path / "a.tar"], tmp_path / "out").info["bad_rows"]["total"] == 1


def test_a_tar_without_a_sample(tmp_path, tools):
    tools.write_tar(tmp_path / "a.tar", {})
    with pytest.raises(DataError, match=r"a\.tar: holds no sample"):
        prepare("webdataset", [tmp_path / "a.tar"], tmp_path / "out")


def test_half_a_surrogate_pair_is_told_and_written(folder, tmp_path):
    rows = [{"image": "0.jpg", "text": "x"}, {"image": "1.jpg", "text": "y", "split": "\ud800"}]
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = prepare("jsonl", [folder / "mine.jsonl"], tmp_path / "out")
    assert data.info["bad_rows"]["total"] == 1
    assert "unknown split '\ud800'" in PreparedData(tmp_path / "out").info["bad_rows"]["first"][0]["reason"]


@pytest.mark.parametrize("where", ["images", "out", "source"])
def test_a_folder_whose_name_is_not_utf_8(folder, tmp_path, where):
    path = write_csv(folder, ["a,0.jpg,x,train", "b,1.jpg,y,train"])
    other = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        other.mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    out = other / "out" if where == "out" else tmp_path / "out"
    with pytest.raises(DataError, match="the name is not UTF-8"):
        prepare("csv", [other if where == "source" else path], out, images=[other] if where == "images" else ())
    assert not out.exists()


def test_one_source_need_not_be_a_list(folder, tmp_path):
    path = write_csv(folder, ["a,0.jpg,x,train", "b,1.jpg,y,train"])
    assert prepare("csv", path, tmp_path / "out").info["splits"]["train"]["records"] == 2
    assert prepare("csv", str(path), tmp_path / "too").info["splits"]["train"]["records"] == 2


def test_an_official_train_image_without_caption_is_left_out_and_listed(folder, tmp_path, tools):
    images = [{"id": k, "file_name": f"{k}.jpg"} for k in (1, 2)]
    captions = [{"id": 1, "image_id": 1, "caption": "x"}]
    path = tools.write_json(folder / "captions_train2014.json", {"images": images, "annotations": captions})
    prepare("coco", [path], tmp_path / "out")
    assert listed(tmp_path / "out") == [{"file": str(path), "place": "image 1", "reason": "'2.jpg' has no caption"}]


def test_the_old_data_stays_when_replacing_it_fails(folder, tmp_path):
    prepare("csv", [write_csv(folder, ["a,0.jpg,x,"])], tmp_path / "out")
    before = PreparedData(tmp_path / "out").fingerprint
    with pytest.raises(DataError):
        prepare("csv", [write_csv(folder, ["a,none.jpg,x,"])], tmp_path / "out", overwrite=True)
    assert PreparedData(tmp_path / "out").fingerprint == before
    assert left(tmp_path) == ["out", "own"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()])
def test_a_machine_that_refuses(folder, tmp_path, monkeypatch, error):
    def refuse(*_args, **_kwargs):
        raise error

    path = write_csv(folder, ["a,0.jpg,x,"])
    monkeypatch.setattr(prepare_module, "write_split", refuse)
    with pytest.raises(MachineError, match="disk is full|out of memory"):
        prepare("csv", [path], tmp_path / "out")
    assert left(tmp_path) == ["own"]


def _python(code, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_disk_that_is_really_full(folder, tmp_path):
    """The kernel refuses to let any file grow past 20 kB, as a full disk would."""
    rows = [f"{k},{k % 5}.jpg,{'long text ' * 20}{k}," for k in range(1000)]
    path = write_csv(folder, rows)
    child = _python(
        """
        import resource, signal, sys
        from pixelbert.data.prepare import prepare
        from pixelbert.errors import MachineError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            prepare("csv", [sys.argv[1]], sys.argv[2])
        except MachineError as error:
            print(error)
        """,
        path,
        tmp_path / "out",
    )
    told, errors = child.communicate(timeout=120)
    assert "the disk is full" in told, errors
    assert left(tmp_path) == ["own"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_half_way_nothing_looks_finished(folder, tmp_path, overwrite):
    path = write_csv(folder, ["a,0.jpg,new,"])
    if overwrite:
        prepare("csv", [write_csv(folder, ["a,0.jpg,old,"])], tmp_path / "out")
        path = write_csv(folder, ["a,0.jpg,new,"])
    child = _python(
        """
        import sys, time
        from pixelbert.data import prepare as module
        real = module._write_info
        def slow(folder, info):
            real(folder, info)  # all files are there, and only the renaming is to come
            print("half", flush=True)
            time.sleep(120)
        module._write_info = slow
        module.prepare("csv", [sys.argv[1]], sys.argv[2], overwrite=True)
        """,
        path,
        tmp_path / "out",
    )
    assert child.stdout.readline() == "half\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    hidden = [name for name in left(tmp_path) if name.startswith(".")]
    assert len(hidden) == 1
    if overwrite:
        assert PreparedData(tmp_path / "out").split("train").text(0) == "old"
    else:
        with pytest.raises(DataError, match="not a prepared folder"):
            PreparedData(tmp_path / "out")
    data = prepare("csv", [path], tmp_path / "out", overwrite=overwrite)
    assert data.split("train").text(0) == "new"
    assert left(tmp_path) == ["out", "own"]


def test_progress_off_a_terminal_is_silent_on_short_inputs(folder, tmp_path, capfd):
    prepare("csv", [write_csv(folder, ["a,0.jpg,x,"])], tmp_path / "out")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_progress_off_a_terminal_speaks_now_and_then(capfd, monkeypatch):
    from pixelbert.data import progress

    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress.Progress("reading", 8e6, "B") as bar:
        for _ in range(4):
            bar.advance(1e6)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "reading: 25 % of 8 MB, 0.1 MB/s, 93 s left",
        "reading: 50 % of 8 MB, 0.1 MB/s, 62 s left",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["csv", "mine.csv"], 0, ""),
        (["cvs", "mine.csv"], 2, "unknown format 'cvs'; did you mean 'csv'?"),
        (["csv", "none.csv"], 3, "none.csv: no such file or folder"),
        (["csv", "mine.csv", "--max-bad", "0"], 3, "mine.csv: line 3"),
        (["csv", "mine.csv", "--dry-run"], 0, ""),
    ],
)
def test_exit_codes_of_the_command(folder, tmp_path, monkeypatch, capsys, arguments, code, message):
    from pixelbert.cli import main

    write_csv(folder, ["a,0.jpg,x,", "b,none.jpg,x,"])
    monkeypatch.chdir(folder)
    assert main(["prepare", *arguments, "--out", str(tmp_path / "out")]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == (code != 0)
    assert (tmp_path / "out").exists() == (code == 0 and "--dry-run" not in arguments)
    if code == 0:
        assert "from the paper" in captured.out
