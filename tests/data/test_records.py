"""Prepared data as everything else reads it."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pytest

from pixelbert.data.prepare import prepare
from pixelbert.data.records import FORMAT_VERSION, IMAGES_SCHEMA, RECORDS_SCHEMA, ImageRef, PreparedData, Split
from pixelbert.data.tables import write_batch
from pixelbert.errors import DataError


@pytest.fixture
def data(flickr, tmp_path):
    return prepare("karpathy", [flickr], tmp_path / "data")


def test_bytes_of_a_file_and_of_a_slice(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    path = str(tmp_path / "a")
    assert ImageRef(path).read() == b"0123456789"
    assert ImageRef(path, 3, 4).read() == b"3456"
    with pytest.raises(DataError, match="ends before byte 11; the shard is cut off"):
        ImageRef(path, 8, 3).read()
    with pytest.raises(DataError, match="no such file"):
        ImageRef(str(tmp_path / "none")).read()
    with pytest.raises(DataError, match="cannot be"):
        ImageRef(str(tmp_path)).read()


def test_a_split_survives_pickling_and_reads_the_same(data):
    part = data.split("train")
    again = pickle.loads(pickle.dumps(part))
    assert [again.text(r) for r in range(12)] == [part.text(r) for r in range(12)]
    assert again.image(3) == part.image(3)
    assert len(pickle.dumps(part)) < 500  # the path, not the records


def test_rows_are_the_records(data):
    part = data.split("train")
    rows = list(part.rows())
    assert [r["text"] for r in rows] == [part.text(i) for i in range(12)]
    assert rows[5] == {
        "id": "21",
        "image": 2,
        "image2": -1,
        "text": "train2_ab.jpg two",
        "target": "",
        "source": "flickr8k",
    }


def test_columns_are_not_copied(data):
    part = data.split("train")
    for column in (part.image_of, part.first_record):
        assert not column.flags.owndata
        assert not column.flags.writeable


def test_unknown_split_folder_and_version(data, tmp_path):
    with pytest.raises(DataError, match="no split 'vall'; did you mean 'val'"):
        data.split("vall")
    with pytest.raises(DataError, match="not a prepared folder"):
        PreparedData(tmp_path)
    path = data.folder / "prepared.json"
    info = json.loads(path.read_text())
    for change, message in (
        ({**info, "format": FORMAT_VERSION + 1}, "written by a newer pixelbert"),
        ({"format": 1}, "damaged"),
        ({"format": "9", "task": "pairs", "splits": {}, "fingerprint": "x"}, "damaged"),
        ({"format": None, "task": "pairs", "splits": {}, "fingerprint": "x"}, "damaged"),
        ({"format": 1, "task": "pairs", "splits": None, "fingerprint": "x"}, "damaged"),
        ({"format": 1, "task": "pairs", "splits": {}, "fingerprint": "x", "bad_rows": 5}, "damaged"),
        ([], "damaged"),
    ):
        path.write_text(json.dumps(change))
        with pytest.raises(DataError, match=message):
            PreparedData(data.folder)
    path.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        PreparedData(data.folder)


@pytest.mark.parametrize("table", ["images.arrow", "records.arrow"])
def test_a_damaged_table(data, table):
    path = data.folder / "train" / table
    whole = path.read_bytes()
    for wrong in (whole[: len(whole) // 2], b"", b"x" * 100):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match="not readable as prepared data"):
            data.split("train")
    path.unlink()
    with pytest.raises(DataError, match="not readable as prepared data"):
        data.split("train")
    write_batch(path, pa.RecordBatch.from_pydict({"other": [1]}))
    with pytest.raises(DataError, match="has columns"):
        data.split("train")


MANY = 5_600_000  # COCO and Visual Genome together have 5.6 million texts (the paper's Table 1)


def write_many(folder, rows):
    """Tables of `rows` records over 208,000 images, written from arrays."""
    folder.mkdir(parents=True)
    images = 208_000
    image = np.arange(rows) * images // rows
    text = pa.array(["a phrase of about thirty bytes"]).cast(pa.large_string())
    numbers = pa.array(np.arange(rows)).cast(pa.string()).cast(pa.large_string())

    def repeated(value, count):
        return value.take(pa.array(np.zeros(count, np.int64)))

    columns = {
        "id": numbers,
        "image": pa.array(image),
        "image2": pa.array(np.full(rows, -1)),
        "text": repeated(text, rows),
        "target": repeated(pa.array([""], pa.large_string()), rows),
        "source": repeated(pa.array(["visual_genome"], pa.large_string()), rows),
    }
    write_batch(
        folder / "records.arrow",
        pa.RecordBatch.from_arrays([columns[n] for n in RECORDS_SCHEMA.names], schema=RECORDS_SCHEMA),
    )
    places = {
        "image_id": numbers.slice(0, images),
        "file": repeated(pa.array(["shards/images-00000.tar"], pa.large_string()), images),
        "offset": pa.array(np.arange(images)),
        "length": pa.array(np.arange(images)),
        "first_record": pa.array(np.searchsorted(image, np.arange(images))),
    }
    write_batch(
        folder / "images.arrow",
        pa.RecordBatch.from_arrays([places[n] for n in IMAGES_SCHEMA.names], schema=IMAGES_SCHEMA),
    )


WORKER = """
import sys, re
from pixelbert.data.records import Split

def private():
    text = open("/proc/self/smaps_rollup").read()
    return sum(int(n) for n in re.findall(r"^Private_(?:Clean|Dirty):\\s+(\\d+) kB", text, re.M))

before = private()
part = Split(sys.argv[1])
print(private() - before, flush=True)
for line in sys.stdin:  # all workers are open before one reads, and stay open until all have read
    total = 0
    for record in range(0, part.num_records, 97):
        image = int(part.image_of[record])
        total += len(part.text(record)) + part.image(image).offset + part.records_of(image).start
    print(private() - before, total, flush=True)
"""


def private_memory(folder, workers=3):
    """kB that are each worker's own: after opening, and after reading records all over the tables."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WORKER), str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(workers)
    ]  # fmt: skip
    opened = [int(child.stdout.readline()) for child in children]
    for _ in range(2):  # at the second reading a page that one worker touched is known to have been touched by all
        for child in children:
            child.stdin.write("read\n")
            child.stdin.flush()
        answers = [child.stdout.readline().split() for child in children]
    for child in children:
        child.communicate()
    assert len({total for _, total in answers}) == 1
    return opened, [int(own) for own, _ in answers]


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's account of private memory")
def test_millions_of_records_cost_a_worker_no_memory_of_its_own(tmp_path):
    """Three workers open 5.6 million records and read all over them: what is theirs alone is that of a tenth of it."""
    own = {}
    for rows in (MANY // 10, MANY):
        folder = tmp_path / str(rows) / "train"
        write_many(folder, rows)
        size = sum(path.stat().st_size for path in folder.iterdir()) // 1024
        own[rows] = private_memory(folder)
        print(f"{rows:,} records, tables {size // 1024} MB: private kB opened {own[rows][0]}, read {own[rows][1]}")
    assert size > 500 * 1024
    assert max(own[MANY][0]) < 5 * 1024
    assert max(own[MANY][1]) - min(own[MANY // 10][1]) < 5 * 1024


def test_a_table_is_one_batch_that_can_be_mapped(tmp_path):
    write_many(tmp_path / "train", 300_000)
    part = Split(tmp_path / "train")
    assert part.num_records == 300_000
    assert part.records_of(207_999).stop == 300_000
    mapped = pa.total_allocated_bytes()
    assert part.text(299_999) == "a phrase of about thirty bytes"
    assert pa.total_allocated_bytes() == mapped
