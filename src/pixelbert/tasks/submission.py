"""The files that evaluation servers take: written from a model's answers, read again, and held against their split.

VQA 2.0 takes a JSON list of {"question_id", "answer"}; NLVR2's own script reads CSV lines `identifier,prediction`, True
or False, without a header. Rankings have no official form: ours is JSON.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pixelbert.data.batches import Records
from pixelbert.errors import DataError

RANKED = 10  # so many images of each text, and texts of each image


@dataclass(frozen=True)
class Submission:
    """What a model answers to a split.

    text: the whole file. check: raises DataError unless the file at a path holds every record of the split once, of the
    right types and in the split's order. records: how many.
    """

    text: str
    check: Callable[[Path], object]
    records: int


@dataclass(frozen=True)
class _Entry:
    """What a predictions file says about one record. place: where, for messages."""

    place: str
    key: Hashable
    value: Any


# -- answers -----------------------------------------------------------------------------------------------------------


def question_id(records: Records, record: int) -> int | str:
    """A question's id as its annotation file has it: a number in official files."""
    number: int | str = records.target(record).get("question_id", records.record_id(record))
    return number


def write_answers(records: Records, answers: Sequence[str]) -> str:
    """VQA's file: an answer for every question of a split, in its order; a question a line."""
    rows = [{"question_id": question_id(records, r), "answer": answer} for r, answer in enumerate(answers)]
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n"


def read_answers(path: Path, records: Records, split: str, in_order: bool = False) -> dict[int, str]:
    """record -> answer, from VQA's file. `split` names the records in messages.

    Raises DataError naming file and entry when it is damaged, or not of these questions, each once.
    """
    rows = _json(path)
    if not isinstance(rows, list):
        raise DataError(f'{path}: no list of {{"question_id", "answer"}}, as VQA\'s server takes it')
    entries = []
    for number, row in enumerate(rows):
        place = f"entry {number}"
        if not isinstance(row, dict) or "question_id" not in row or "answer" not in row:
            raise DataError(f"{path}: {place}: is {_short(row)}, which has no 'question_id' and 'answer'")
        key, answer = row["question_id"], row["answer"]
        if isinstance(key, bool) or not isinstance(key, (int, str)):
            raise DataError(f"{path}: {place}: question_id is {_short(key)}, no number")
        if not isinstance(answer, str):
            raise DataError(f"{path}: {place}: question_id {key}: the answer is {_short(answer)}, no text")
        entries.append(_Entry(place, key, answer))
    wanted = [question_id(records, record) for record in range(records.num_records)]
    return dict(enumerate(_matched(path, entries, wanted, "question_id", split, in_order)))


# -- statements --------------------------------------------------------------------------------------------------------


def identifier(records: Records, record: int) -> str:
    """A statement's identifier."""
    return str(records.target(record).get("identifier", records.record_id(record)))


def write_judgements(records: Records, judged: Sequence[bool]) -> str:
    """NLVR2's file: `identifier,True` or `identifier,False` for every statement of a split, in its order."""
    stream = io.StringIO()
    rows = ([identifier(records, record), str(bool(value))] for record, value in enumerate(judged))
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def read_judgements(path: Path, records: Records, split: str, in_order: bool = False) -> dict[int, bool]:
    """record -> judgement, from NLVR2's file. Raises DataError as `read_answers`."""
    entries = []
    for number, row in _csv_rows(path):
        place = f"line {number}"
        if len(row) != 2:
            raise DataError(f"{path}: {place}: has {len(row)} fields, expected identifier,prediction")
        truth = {"true": True, "false": False}.get(row[1].rstrip().lower())  # the official script strips the line alone
        if truth is None:
            raise DataError(f"{path}: {place}: {row[0]}: the prediction is {_short(row[1])}, neither True nor False")
        entries.append(_Entry(place, row[0].lstrip(), truth))
    wanted = [identifier(records, record) for record in range(records.num_records)]
    return dict(enumerate(_matched(path, entries, wanted, "identifier", split, in_order)))


# -- rankings ----------------------------------------------------------------------------------------------------------


def write_rankings(records: Records, for_texts: np.ndarray, for_images: np.ndarray) -> str:
    """For every text its ten best images, and for every image its ten best texts, best first; a record a line.

    for_texts, for_images: scores [images, texts] of a whole split, higher is better; of equal scores the first comes
    first.
    """
    texts = [records.record_id(record) for record in range(records.num_records)]
    images = [records.image_id(image) for image in range(records.num_images)]
    by_text = [{"text": text, "images": [images[i] for i in _best(for_texts[:, t])]} for t, text in enumerate(texts)]
    by_image = [{"image": image, "texts": [texts[t] for t in _best(for_images[i])]} for i, image in enumerate(images)]

    def lines(rows: list[dict[str, Any]]) -> str:
        return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]"

    return f'{{"images_of_text": {lines(by_text)},\n"texts_of_image": {lines(by_image)}}}\n'


def _best(scores: np.ndarray) -> list[int]:
    return [int(place) for place in np.argsort(-scores, kind="stable")[:RANKED]]


def check_rankings(path: Path, records: Records, split: str) -> None:
    """Raises DataError unless the file ranks images for every text and texts for every image, as `write_rankings`."""
    found = _json(path)
    texts = [records.record_id(record) for record in range(records.num_records)]
    images = [records.image_id(image) for image in range(records.num_images)]
    for table, key, ranked, own, others in (
        ("images_of_text", "text", "images", texts, images), ("texts_of_image", "image", "texts", images, texts)
    ):  # fmt: skip
        rows = found.get(table) if isinstance(found, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path}: has no list '{table}' of '{key}' and '{ranked}'")
        entries = [_Entry(f"{table} {i}", str(row.get(key)), row.get(ranked)) for i, row in enumerate(rows)]
        known, count = set(others), min(RANKED, len(others))
        for name, best in zip(own, _matched(path, entries, own, key, split, True), strict=True):
            as_told = isinstance(best, list) and len(best) == count and all(isinstance(other, str) for other in best)
            if not as_told or len(known.intersection(best)) != count:
                raise DataError(f"{path}: {key} {name}: ranks {_short(best)}, expected {count} {ranked} of {split}")


# -- what they share ---------------------------------------------------------------------------------------------------


def once(ids: Iterable[Hashable], what: str, split: str) -> None:
    """Raises DataError where two records of a split have one id: a predictions file could not tell them apart."""
    seen: set[Hashable] = set()
    for own in ids:
        if own in seen:
            raise DataError(f"{what} {own} is twice in {split}; a predictions file cannot tell the two apart")
        seen.add(own)


def _matched(
    path: Path, entries: Sequence[_Entry], wanted: Sequence[Hashable], what: str, split: str, in_order: bool
) -> list[Any]:
    """The entries' values in the order of `wanted`. Raises DataError unless each of these has exactly one entry."""
    once(wanted, what, split)
    places: Mapping[Hashable, int] = {key: place for place, key in enumerate(wanted)}
    found: dict[int, _Entry] = {}
    for entry in entries:
        place = places.get(entry.key)
        if place is None:
            key = entry.key
            as_text = isinstance(key, str) and len(key) < 20 and key.isdecimal() and int(key) in places
            hint = "it is text, those are numbers" if as_text else "is the file of another split?"
            raise DataError(f"{path}: {entry.place}: {what} {entry.key} is none of {split}; {hint}")
        if place in found:
            raise DataError(f"{path}: {entry.place}: {what} {entry.key} is there twice; first at {found[place].place}")
        if in_order and place != len(found):
            raise DataError(f"{path}: {entry.place}: is {what} {entry.key}, expected {wanted[len(found)]}")
        found[place] = entry
    missing = [key for place, key in enumerate(wanted) if place not in found]
    if missing:
        more = f", nor have {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise DataError(f"{path}: {what} {missing[0]} of {split} has no prediction{more}")
    return [found[place].value for place in range(len(wanted))]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8") from error


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of every row that is not blank."""
    rows = csv.reader(io.StringIO(_text(path)), strict=True)
    while True:
        line = rows.line_num + 1  # where the next row begins
        try:
            row = next(rows, None)
        except csv.Error as error:  # a quote that is never closed swallows the rest of the file
            raise DataError(f"{path}: line {line}: not valid CSV ({error})") from error
        if row is None:
            return
        if row:
            yield line, row


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}: not valid JSON ({error.msg})") from error
    except RecursionError as error:
        raise DataError(f"{path}: not valid JSON (it is nested too deeply)") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{path}: not valid JSON ({error})") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
