"""Which question file goes with which annotation file, and of which split they are."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pixelbert.data.files import is_url
from pixelbert.data.formats.common import find_annotations, first_key, json_items
from pixelbert.data.records import SPLIT_ALIASES
from pixelbert.errors import DataError

File = Path | str

PATTERNS = tuple(f"*{kind}.json{end}" for kind in ("questions", "annotations") for end in ("", ".gz"))
_SPLIT = re.compile(
    r"(?:^|[_.\- ])(train|restval|valid(?:ation)?|val|dev|test(?:[-_](?:dev|std|standard))?)(?:20\d\d)?(?=[_.\- ]|$)"
)


def locate(source: Path) -> list[Path]:
    """The question and annotation files of a folder, of all its splits."""
    return find_annotations(source, PATTERNS, "VQA question or annotation file")


def split_of(file: File) -> str:
    """The split that the last split word of the file's name speaks of, else that of its `data_subtype`, else "".

    test-dev2015 is test-dev; test2015, which the server takes for test-standard, is test. So
    v2_OpenEnded_mscoco_val2014_questions.json is val, and ..._train2014_dev_questions.json is val too.
    """
    return split_word(name_of(file)) or split_word(text_field(file, "data_subtype"))


def split_word(text: str) -> str:
    """The split that the last split word of a text stands for, "" when it has none."""
    words = _SPLIT.findall(text.lower())
    if not words:
        return ""
    word = words[-1].replace("_", "-")
    return SPLIT_ALIASES.get(word, word)


def text_field(file: File, name: str) -> str:
    """A text at the top of a JSON object, "" when it has none."""
    value = next(json_items(file, name), "")
    return value if isinstance(value, str) else ""


def name_of(file: File) -> str:
    """The file name without folder and without .json, .json.gz."""
    return re.sub(r"(\.json)?(\.gz)?$", "", str(file).rpartition("/")[2])


def pair_files(files: Sequence[File]) -> list[tuple[File, File | None]]:
    """Every question file with its annotation file, None when it has none (the test splits).

    What a file is, its content says. Two belong together when their names differ in the official words only
    (in the same folder first), else when their split is the same, else when no other is left. For a question file
    alone the annotation file is also looked for beside it.

    Raises DataError for a file that is neither, and for annotations without questions.
    """
    kinds = {file: _kind(file) for file in _once(files)}
    found: dict[File, File | None] = {file: None for file, kind in kinds.items() if kind == "questions"}
    rest = [file for file, kind in kinds.items() if kind == "annotations"]
    keys: tuple[Callable[[File], object], ...] = (_place_and_name, _plain_name, _split_or_itself, lambda file: "")
    for key in keys:
        waiting = [file for file, annotations in found.items() if annotations is None]
        for questions in waiting:
            same = [file for file in rest if key(file) == key(questions) and _may_pair(file, questions)]
            if len(same) == 1 and [key(file) for file in waiting].count(key(questions)) == 1:
                found[questions] = same[0]
                rest.remove(same[0])
    if rest:
        raise DataError(f"{rest[0]}: no question file goes with these annotations; give both files")
    return [(questions, annotations or _beside(questions)) for questions, annotations in found.items()]


def _once(files: Sequence[File]) -> list[File]:
    """The files, each once even when it was named twice."""
    return list({file if is_url(file) else os.path.realpath(file): file for file in files}.values())


def _kind(file: File) -> str:
    kind = first_key(file, ("questions", "annotations"))
    if not kind:
        raise DataError(f"{file}: has neither 'questions' nor 'annotations'; is it an official VQA file?")
    return kind


def _plain_name(file: File) -> str:
    name = re.sub(r"openended|multiplechoice|questions|annotations", "", name_of(file).lower())
    return re.sub(r"[_\-. ]+", "_", name).strip("_")


def _place_and_name(file: File) -> tuple[str, str]:
    return str(file).rpartition("/")[0], _plain_name(file)


def _split_or_itself(file: File) -> str:
    return split_of(file) or str(file)


def _may_pair(one: File, other: File) -> bool:
    return not split_of(one) or not split_of(other) or split_of(one) == split_of(other)


def _beside(questions: File) -> Path | None:
    if is_url(questions):
        return None
    near = [path for pattern in PATTERNS for path in Path(questions).parent.glob(pattern)]
    same = [path for path in near if _plain_name(path) == _plain_name(questions) and _kind(path) == "annotations"]
    return same[0] if len(same) == 1 else None
