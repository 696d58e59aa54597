"""NLVR2 (a sentence about two photos) and NLVR v1 (a sentence about one drawn picture of three boxes): JSON lines.

Suhr et al., "A corpus for reasoning about natural language grounded in photographs", ACL 2019, and "A corpus of
natural language for visual reasoning", ACL 2017; github.com/lil-lab/nlvr. NLVR2: `{"sentence", "label", "identifier":
"split-set-pair-sentence", "left_url", "right_url", "directory" (train), ...}`, pictures split-set-pair-img0.png (left)
and -img1.png (right). NLVR v1: `{"sentence", "label", "identifier": "n-m", "directory", ...}`, pictures
split/images/directory/split-n-m-0.png; of its six permutations of the boxes number 0 is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pixelbert.data.files import OnRead
from pixelbert.data.formats.common import as_id, find_annotations, json_lines
from pixelbert.data.formats.image_map import ImageMap
from pixelbert.data.formats.labels import Labels
from pixelbert.data.records import TEST_SPLITS, BadRow, Example
from pixelbert.errors import DataError

# The makers' names of the parts. test1 (test-P) and v1's test are public; test2 (test-U) and hidden were held back.
SPLIT_NAMES = {"train": "train", "dev": "val", "val": "val", "test1": "test", "test": "test"}
SPLIT_NAMES |= {"test2": "test-std", "hidden": "test-std"}
_ENDS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_NLVR2_ID = re.compile(r"(\w+)-(\w+)-(\w+)-\w+")
_NLVR_ID = re.compile(r"\d+-\d+")
_TRUE_FALSE = (("true", "false"),)


def locate_nlvr2(source: Path) -> list[Path]:
    """train, dev, test1 and test2 of a folder."""
    return find_annotations(source, _patterns("train", "dev", "test1", "test2"), "NLVR2 file")


def locate_nlvr(source: Path) -> list[Path]:
    """train, dev, test and hidden of a folder."""
    return find_annotations(source, _patterns("train", "dev", "test", "hidden"), "NLVR file")


def _patterns(*names: str) -> tuple[str, ...]:
    return tuple(name + end for name in names for end in _ENDS)


def read_nlvr2(
    source: Path | str,
    *,
    split: str | None = None,
    image_map: Sequence[Path | str] = (),
    notes: list[str] | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow]:
    """One example a line, of two images; id = identifier, target = {"identifier", "set", "label"}.

    The split is `split`, else the identifier's first part, else the file's name. An image map may give the pictures
    other names. Raises DataError naming the line when the file is damaged, an identifier or label is none, or some
    lines have a label and others have none.
    """
    images = ImageMap.given_or_beside(image_map, source, (f"image_map_{_stem(source)}.json", "image_map.json"))
    dataset = Path(str(source)).absolute().parent.name if images else "nlvr2"  # other photos, another set
    for place, row, label in _statements(source, split, notes, on_read):
        identifier = row["identifier"]
        match = _NLVR2_ID.fullmatch(identifier)
        if match is None:
            hint = "; is it NLVR v1? That is the format nlvr" if _NLVR_ID.fullmatch(identifier) else ""
            raise DataError(f"{source}: {place}: identifier '{identifier}' is not split-set-pair-sentence{hint}")
        part, pair_set, pair = match.groups()
        own_split = split or SPLIT_NAMES.get(part, "") or _split(source)
        names = [f"{part}-{pair_set}-{pair}-img{side}.png" for side in (0, 1)]
        files = [images.get(name) if images else name for name in names]
        if images and None in files:
            side = files.index(None)
            reason = f"{('left', 'right')[side]} image '{names[side]}' is not in {images.files}"
            yield BadRow(str(source), f"{place}, {identifier}", reason, own_split)
            continue
        left, right = (str(file) for file in files)
        text: Any = row.get("sentence")
        target = {"identifier": identifier, "set": pair_set, **label}
        yield Example(identifier, own_split, left, left, text, f"{source}: {place}, {identifier}",
                      image2=right, target=target, source=dataset)  # fmt: skip


def read_nlvr(
    source: Path | str,
    *,
    split: str | None = None,
    notes: list[str] | None = None,
    on_read: OnRead | None = None,
    **_: Any,
) -> Iterator[Example | BadRow]:
    """One example a line, of one image; id = identifier, target = {"identifier", "label"}.

    The split is `split`, else the file's name, which also begins the pictures' names. Raises DataError as `read_nlvr2`.
    """
    part = _part(source)
    for place, row, label in _statements(source, split, notes, on_read):
        identifier = row["identifier"]
        if not _NLVR_ID.fullmatch(identifier):
            hint = "; is it NLVR2? That is the format nlvr2" if _NLVR2_ID.fullmatch(identifier) else ""
            raise DataError(f"{source}: {place}: identifier '{identifier}' is not two numbers, n-m{hint}")
        name = f"{part}-{identifier}-0.png"
        folder = as_id(row.get("directory"))
        image = f"{part}/images/{folder}/{name}" if folder else name
        text: Any = row.get("sentence")
        target = {"identifier": identifier, **label}
        yield Example(identifier, split or _split(source), image, name, text,
                      f"{source}: {place}, {identifier}", target=target, source="nlvr")  # fmt: skip


def _statements(
    source: Path | str, split: str | None, notes: list[str] | None, on_read: OnRead | None
) -> Iterator[tuple[str, dict[str, Any], dict[str, bool]]]:
    """(place, row with a text "identifier", {"label": truth} or {}) of every line."""
    labels = Labels(source, _TRUE_FALSE)
    labelled: bool | None = None
    for number, row in json_lines(source, on_read):
        place = f"line {number}"
        if not isinstance(row, dict):
            raise DataError(f"{source}: {place}: an object was expected, found {type(row).__name__}")
        if not isinstance(row.get("identifier"), str):
            raise DataError(f"{source}: {place} has no text 'identifier'; found: {', '.join(row)}")
        value = row.get("label")
        if labelled is None:
            labelled = value is not None
            if not labelled:
                _unlabelled(source, split or _split_of_row(source, row), notes)
        if labelled != (value is not None):
            has = "no label, and lines before it have one" if labelled else "a label, and lines before it have none"
            raise DataError(f"{source}: {place}: {row['identifier']} has {has}")
        label = {} if value is None else {"label": labels.truth(value, f"{place}, {row['identifier']}")}
        yield place, row, label
    labels.check()


def _unlabelled(source: Path | str, split: str, notes: list[str] | None) -> None:
    if split in ("", "train"):
        raise DataError(f"{source}: line 1 has no label, and training needs one; name another split (--split test)")
    if split not in TEST_SPLITS and notes is not None:
        notes.append(f"{Path(str(source)).name} has no labels: its statements can be judged, not scored")


def _split_of_row(source: Path | str, row: dict[str, Any]) -> str:
    return SPLIT_NAMES.get(row["identifier"].partition("-")[0], "") or _split(source)


def _split(source: Path | str) -> str:
    return SPLIT_NAMES.get(_part(source), "")


def _part(source: Path | str) -> str:
    """The last of the makers' part names in the file's name (balanced_dev.json: dev), else the name without its end."""
    words = re.split(r"[^a-z0-9]+", _stem(source).lower())
    return next((word for word in reversed(words) if word in SPLIT_NAMES), _stem(source))


def _stem(source: Path | str) -> str:
    return str(source).rpartition("/")[2].partition(".")[0]
