"""The sheet of examples, and where the network looked for some of them, as plain values for the template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixelbert.training.report.part import Part
from pixelbert.training.report.pictures import MOST_LOOK_BYTES, MOST_PICTURE_BYTES, Pictures
from pixelbert.training.report.record import RunRecord, read_looks, read_sheet


def sheet(
    record: RunRecord, part: Part, most_bytes: int = MOST_PICTURE_BYTES, most: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Groups of examples with their pictures embedded; a picture beyond the page's budget, or missing, is left out.

    most: so many of each group at the most, none of one that is not named; None takes all. An example that lacks what
    its task's have is left out too.
    """
    folder = _folder(record)
    own = record.shown is not None and record.shown.whole and folder == record.shown.folder
    last = record.validations[-1]["pairs"] if record.validations else 0
    pictures, groups, found = Pictures(folder, most_bytes), [], read_sheet(folder).get("examples", [])
    for key, (title, rule) in part.groups.items():
        examples: list[dict[str, Any]] = []
        for example in found:
            if most is not None and len(examples) >= most.get(key, 0):
                break
            try:
                if example["group"] == key:
                    examples.append(part.example(example, pictures))
            except (KeyError, TypeError, IndexError, ValueError, AttributeError):
                continue
        if examples:
            groups.append({"key": key, "title": title, "rule": rule, "examples": examples})
    return {"sheet": groups, "sheet_pairs": record.shown.pairs if own and record.shown is not None else last}


def looks(record: RunRecord, most_bytes: int = MOST_LOOK_BYTES) -> list[dict[str, Any]]:
    """Attention sheets of some examples: `group`, `text`, `sheets` (`method`, `picture` embedded); [] without any."""
    folder = _folder(record)
    pictures, found = Pictures(folder, most_bytes), []
    for one in read_looks(folder):
        try:
            sheets = [{**each, "picture": pictures.embed(each["picture"])} for each in one["sheets"]]
            sheets = [each for each in sheets if each["picture"] and each["method"]]
            if sheets:
                found.append({"group": str(one["group"]), "text": str(one["text"]), "sheets": sheets})
        except (KeyError, TypeError):
            continue
    return found


def _folder(record: RunRecord) -> Path:
    """Where the examples lie: with the figures that are shown, else with the last validation."""
    folders = [record.path / "validation"]
    if record.shown is not None:
        folders.insert(0, record.shown.folder)
    return next((f for f in folders if read_sheet(f)), folders[-1])
