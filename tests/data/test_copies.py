"""Copies of an image under another name, in files and in shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from pixelbert.data.copies import copies
from pixelbert.data.prepare import prepare
from pixelbert.data.records import ImageRef


def test_only_the_same_bytes_are_a_copy(tmp_path: Path) -> None:
    same, middle, end = b"x" * 500 + b"y" * 500, b"x" * 490 + b"z" * 510, b"x" * 500 + b"y" * 499 + b"z"
    contents = [same, middle, end, b"short", same, end, same + b"!", b"", b""]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}").write_bytes(content)
    (tmp_path / "shard").write_bytes(b"head" + same + b"between" + middle)
    refs = [ImageRef(str(tmp_path / f"{i}")) for i in range(len(contents))]
    refs += [ImageRef(str(tmp_path / "shard"), 4, 1000), ImageRef(str(tmp_path / "shard"), 1011, 1000)]
    refs += [ImageRef(str(tmp_path / "gone")), ImageRef("https://none.example/4")]
    assert copies(refs, np.array([0, 1, 2, 3, 7, 11, 12]), np.array([4, 5, 6, 8])) == [(0, 4), (2, 5)]
    assert copies(refs, np.array([0, 1, 2]), np.array([9, 10])) == [(0, 9), (1, 10)]
    assert copies(refs, np.array([0, 4]), np.array([4, 9])) == [(0, 9)]  # the one that both hold is told elsewhere
    assert copies(refs, np.array([], dtype=np.int64), np.array([4])) == []


def test_a_copy_in_a_held_out_split_is_told(tmp_path: Path, tools: Any) -> None:
    for name, seed in (("a.jpg", 1), ("b.jpg", 2), ("c.jpg", 3)):
        (tmp_path / name).write_bytes(tools.picture(seed))
    shutil.copy(tmp_path / "b.jpg", tmp_path / "b (1).jpg")
    rows = [("a.jpg", "train"), ("b.jpg", "train"), ("b (1).jpg", "val"), ("c.jpg", "val"), ("b (1).jpg", "test")]
    lines = (json.dumps({"image": name, "text": f"{name} {split}", "split": split}) + "\n" for name, split in rows)
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    notes = prepare("jsonl", [tmp_path / "rows.jsonl"], tmp_path / "out").info["notes"]
    place = f"for example {tmp_path / 'b.jpg'} and {tmp_path / 'b (1).jpg'}"
    assert [note for note in notes if note.startswith("LEAK")] == [
        f"LEAK: 1 image(s) of train have a copy in val, {place}",
        f"LEAK: 1 image(s) of train have a copy in test, {place}",
        f"LEAK: 1 image(s) in both val and test, for example {tmp_path / 'b (1).jpg'}",
    ]
