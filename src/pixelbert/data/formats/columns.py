"""What the columns of the user's own table are for, and what one of its rows says.

image, text                               pairs
image, question, answer or answers        questions (vqa)
left, right, text, label                  statements about two images (nlvr2)
image, text, label                        statements about one image (nlvr)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pixelbert.data.formats.common import NoText, RowError, as_id, canonical_split, known_split, parse_json
from pixelbert.data.formats.labels import Labels
from pixelbert.data.records import TEST_SPLITS, BadRow, Example
from pixelbert.errors import DataError
from pixelbert.metrics import normalize_answer

COLUMNS = (
    "image", "left", "right", "text", "question", "answer", "answers", "label", "id", "question_id", "answer_type",
    "question_type", "split",
)  # fmt: skip
IMAGE_COLUMNS = ("image", "left", "right")
_REQUIRED = {
    "pairs": ("image", "text"),
    "vqa": ("image", "question"),
    "nlvr2": ("left", "right", "text"),
    "nlvr": ("image", "text"),
}
_LABELS = {"pairs": (), "vqa": ("answer", "answers"), "nlvr2": ("label",), "nlvr": ("label",)}  # one of them


def task_of(have: Collection[str]) -> str:
    """The task that these columns (of ours) are for; if some are missing, the one they come nearest to."""
    pair = "image" in have and "text" in have
    answers = "answer" in have or "answers" in have
    if ("question" in have and (answers or "text" not in have)) or (answers and "text" not in have):
        return "vqa"
    if not pair and ("left" in have or "right" in have):
        return "nlvr2"
    return "nlvr" if "label" in have else "pairs"


def missing_column(have: Collection[str], split: str, task: str = "") -> tuple[str, ...]:
    """A column that is missing, or several of which one would do; () when all are there.

    Answers and labels may be missing in a table for a test split (or of rows that name their own split).
    """
    task = task or task_of(have)
    for name in _REQUIRED[task]:
        if name not in have:
            return (name,)
    return () if split in TEST_SPLITS or "split" in have else missing_labels(have, task)


def missing_labels(have: Collection[str], task: str) -> tuple[str, ...]:
    """The columns of which one would hold the task's answers or labels, when none of them is there."""
    labels: tuple[str, ...] = _LABELS[task]
    return () if any(name in have for name in labels) else labels


class OwnRows:
    """Turns the rows of one table into examples.

    title: what rows without an id are called by; the file's name without its ending when "". lacking: what to tell of a
    table that has no column with answers or labels, "" of one that has.
    """

    def __init__(self, source: Path | str, task: str, split: str, title: str = "", lacking: str = "") -> None:
        self.source, self.task, self.split, self.lacking = source, task, split, lacking
        self.title = title or stem(source)
        self.labels = Labels(source)

    def missing(self, have: Collection[str]) -> tuple[str, ...]:
        """As `missing_column`, for the table's task: a later row may lack what the first one has."""
        return missing_column(have, self.split, self.task)

    def examples(self, place: str, values: Mapping[str, Any]) -> Iterator[Example | BadRow]:
        """The examples of a row ({our column: value}): one, or for pairs one for each of its texts."""
        try:
            yield from self._examples(place, values)
        except RowError as error:
            yield BadRow(str(self.source), place, str(error), self.split_of(values), isinstance(error, NoText))

    def split_of(self, values: Mapping[str, Any]) -> str:
        """The split of a row that is bad anyway, "" when what it names is none."""
        return self.split if _blank(values.get("split")) else known_split(values["split"])

    def _examples(self, place: str, values: Mapping[str, Any]) -> list[Example]:
        image, image2 = self._images(values)
        split = self.split if _blank(values.get("split")) else canonical_split(values["split"])
        number = values.get("question_id") if self.task == "vqa" else None
        identity = as_id(values.get("id")) or as_id(number) or f"{self.title}:{place.removeprefix('line ')}"
        texts: Any = values["question" if self.task == "vqa" else "text"]
        if self.task != "pairs" or not isinstance(texts, list):
            texts = [texts]
        if not texts:
            raise NoText("the list of texts is empty")
        target = self._target(place, values, identity, image, split)
        names = [identity] if len(texts) == 1 else [f"{identity}#{k}" for k in range(len(texts))]
        where = f"{self.source}: {place}"
        return [
            Example(name, split, image, image, text, where, image2, target, self.title)
            for name, text in zip(names, texts, strict=True)
        ]

    def _images(self, values: Mapping[str, Any]) -> tuple[str, str | None]:
        sides = ("left", "right") if self.task == "nlvr2" else ("image",)
        for side in sides:
            if not isinstance(values.get(side), str) or _blank(values[side]):
                raise RowError("names no image" if side == "image" else f"names no {side} image")
        return values[sides[0]].strip(), values[sides[1]].strip() if len(sides) > 1 else None

    def _target(
        self, place: str, values: Mapping[str, Any], identity: str, image: str, split: str
    ) -> dict[str, Any] | None:
        if self.task == "pairs":
            return None
        if self.task == "vqa":
            types = {name: str(values[name]).strip() for name in ("question_type", "answer_type")
                     if not _blank(values.get(name))}  # fmt: skip
            answers = _answers(values)
            if not answers:
                self._check_unlabelled(place, split, "answer")
            return {"question_id": _number_or_text(identity), "image_id": image, **types, **answers}
        target: dict[str, Any] = {"identifier": identity}
        if not _blank(values.get("label")):
            target["label"] = self.labels.truth(values["label"], place)
        else:
            self._check_unlabelled(place, split, "label")
        return target

    def _check_unlabelled(self, place: str, split: str, what: str) -> None:
        """Rows of test splits need no label. Of another without one, it is the table's fault when no row has any."""
        if split in TEST_SPLITS:
            return
        if self.lacking:
            record = "question" if self.task == "vqa" else "statement"
            needs = f"a {record} of split '{split or 'train'}' needs one"
            raise DataError(f"{self.source}: {place}: {self.lacking}; {needs}")
        raise RowError(f"has no {what}")


def stem(source: Path | str) -> str:
    """The file's name without its ending."""
    name = str(source).rpartition("/")[2]
    return name.removesuffix(".gz").rpartition(".")[0] or name


def _answers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The answers as VQA's annotation files have them, {} when there are none."""
    given = values.get("answers")
    answers = [_answer(given) for given in _split_answers(given)] if not _blank(given) else []
    one = None if _blank(values.get("answer")) else _answer(values["answer"])
    if one is not None and not answers:
        answers = [one]
    if not answers:
        return {}
    return {
        "multiple_choice_answer": one or _most_given(answers),
        "answers": [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers, 1)],
    }


def _most_given(answers: list[str]) -> str:
    """The answer that most people gave, compared as the score compares them: of its spellings the commonest, of equal
    counts the first given."""
    counts, spellings = Counter(map(normalize_answer, answers)), Counter(answers)
    return max(answers, key=lambda answer: (counts[normalize_answer(answer)], spellings[answer]))


def _split_answers(given: Any) -> list[Any]:
    """A list, or text: a JSON list, or answers with | between them."""
    if isinstance(given, str) and given.strip().startswith("["):
        try:
            given = parse_json(given)
        except ValueError as error:
            raise RowError(f"its answers begin with '[' and are no JSON list ({error})") from error
    if isinstance(given, str):
        return given.split("|")
    return given if isinstance(given, list) else [given]


def _answer(value: Any) -> str:
    text = str(value).strip() if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""
    if not text or value != value:  # NaN, which Python's JSON reads
        raise RowError("an answer is empty" if isinstance(value, str) else f"an answer is {value!r}, no text")
    return text


def _number_or_text(identity: str) -> int | str:
    """Ids that are whole numbers are numbers in VQA's files."""
    whole = len(identity) < 20 and identity.isdecimal()
    return int(identity) if whole and str(int(identity)) == identity else identity


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)
