"""The list of bad rows, and how reasons are counted."""

import json

import pytest

from pixelbert.data.badrows import BadRows, kind_of
from pixelbert.data.records import BadRow
from pixelbert.errors import DataError


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("image 'a/b.jpg' not found in /x, /y", "image '...' not found"),
        ("image 'b.jpg' is ambiguous: /x/b.jpg and /y/b.jpg", "image '...' is ambiguous"),
        ("image '/x/b.png' has 40,000 x 40,000 pixels, more than the 89 allowed",
         "image '...' has N x N pixels, more than the N allowed"),
        ("id '7' is repeated in split train; first at a.csv: line 3", "id '...' is repeated in split train"),
        ("unknown split 'foo'; valid names: test, train", "unknown split '...'; valid names: test, train"),
    ],
)  # fmt: skip
def test_reasons_without_their_particulars(reason, kind):
    assert kind_of(reason) == kind


def test_every_row_is_written_and_counted(tmp_path):
    rows = BadRows(tmp_path / "bad.jsonl")
    for line in range(9):
        rows.add(BadRow("a.csv", f"line {line}", f"image 'ü{line}' not found in x"), split=line % 2)
    rows.close()
    written = [json.loads(line) for line in (tmp_path / "bad.jsonl").open(encoding="utf-8")]
    assert written[8] == {"file": "a.csv", "place": "line 8", "reason": "image 'ü8' not found in x"}
    assert (len(written), rows.total, dict(rows.kinds)) == (9, 9, {"image '...' not found": 9})
    assert [row.place for row in rows.first] == [f"line {k}" for k in range(5)]
    assert rows.first_of[1].place == "line 1"


def test_too_many(tmp_path):
    rows = BadRows(tmp_path / "bad.jsonl", most=1)
    rows.add(BadRow("a.csv", "line 1", "x"))
    with pytest.raises(DataError, match=r"a\.csv: line 2: y; this is bad row number 2, and --max-bad allows 1"):
        rows.add(BadRow("a.csv", "line 2", "y"))
