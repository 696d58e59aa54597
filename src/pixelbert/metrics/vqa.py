"""VQA accuracy by the official rules of 2021, the answer vocabulary and the training targets.

Sources: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py at a013f00 (2021-03-11), for the score;
hengyuan-hu/bottom-up-attention-vqa, tools/compute_softscore.py, for vocabulary and targets. Odd rules are kept as the
scripts have them; the comment beside each says so.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pixelbert.metrics._naming import first_few

# The reference's own tables, beside this file with their source and licence.
_TABLES = json.loads(resources.files(__package__).joinpath("vqa_normalization.json").read_text(encoding="utf-8"))
_PUNCTUATION = frozenset(_TABLES["punctuation"])
_ARTICLES = frozenset(_TABLES["articles"])
_NUMBER_WORDS: dict[str, str] = _TABLES["number_words"]
_CONTRACTIONS: dict[str, str] = _TABLES["contractions"]

_COMMA_BETWEEN_DIGITS = re.compile(r"[0-9],[0-9]")
# The reference means to spare a period that follows a digit as well, but writes `(?!<=\d)` for `(?<!\d)`: what stands
# before a period is never looked at, so "5." loses it.
_PERIOD_NOT_BEFORE_DIGIT = re.compile(r"\.(?![0-9])")
# The reference passes the flag `re.UNICODE` where `sub` takes its count, and the flag's value is 32.
_MOST_PERIODS_DELETED = 32


def normalize_answer(text: str) -> str:
    """The answer as the official script compares it: punctuation, periods, then words (`Two dogs!` -> `2 dogs`).

    This is the normalising alone. `vqa_accuracy` first turns newlines and tabs into spaces and strips the ends;
    `vqa_answer_vocabulary` does not, as its own reference does not.

    Source: `processPunctuation` and `processDigitArticle` of vqaEval.py at a013f00; tables in vqa_normalization.json.
    """
    text = _without_punctuation(text)
    text = _PERIOD_NOT_BEFORE_DIGIT.sub("", text, count=_MOST_PERIODS_DELETED)
    # Lower-casing comes first, so the four contractions written with a capital I ("Im") never match.
    words = [_NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    # Number words before articles before contractions, each once: no result is looked up again.
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Each of the 21 characters deleted or made a space; every test looks at `text` as it came in."""
    # One comma between two digits anywhere ("1,000") deletes *all* punctuation of the answer; one space beside a
    # character anywhere deletes every copy of that character. `processPunctuation` tests `inText`, edits `outText`.
    delete_all = _COMMA_BETWEEN_DIGITS.search(text) is not None
    edits: dict[str, str | int | None] = {
        character: "" if delete_all or f"{character} " in text or f" {character}" in text else " "
        for character in _PUNCTUATION.intersection(text)
    }
    return text.translate(str.maketrans(edits))


@dataclass(frozen=True)
class VqaScores:
    """Official VQA accuracies in percent, rounded to two decimals.

    Attributes:
        overall: mean over all questions (not over types).
        per_answer_type: mean over the questions of each `answer_type`.
        per_question_type: mean over the questions of each `question_type`.
        per_question: accuracy of each question id, in the order of the annotations.
    """

    overall: float
    per_answer_type: dict[str, float]
    per_question_type: dict[str, float]
    per_question: dict[int, float]


def vqa_accuracy(predictions: Mapping[int, str], annotations: Iterable[Mapping[str, Any]]) -> VqaScores:
    """VQA accuracy by the official rules of 2021.

    Args:
        predictions: answer of each question id. Ids are compared as they are: the text "1" is not the number 1.
        annotations: records of the official annotation file, each with `question_id`, `question_type`,
            `answer_type` and `answers` (ten of `answer` and `answer_id`). Not changed.

    Raises:
        ValueError: a question without a prediction, a prediction without a question, a question id annotated twice,
            a field missing or not text, no annotations.

    Source: GT-Vision-Lab/VQA, vqaEval.py `evaluate` and vqa.py `loadRes`, at a013f00.
    """
    questions = _unrepeated(annotations)
    _require_same_questions(predictions, questions)
    accuracies: dict[int, float] = {}
    by_answer_type: defaultdict[str, list[float]] = defaultdict(list)
    by_question_type: defaultdict[str, list[float]] = defaultdict(list)
    for question, annotation in questions.items():
        prediction = predictions[question]
        if not isinstance(prediction, str):
            raise ValueError(f"the prediction for question {question!r} is {prediction!r}, not text")
        accuracy = _question_accuracy(prediction, _answer_records(annotation, question))
        accuracies[question] = accuracy
        by_answer_type[_text_field(annotation, "answer_type", question)].append(accuracy)
        by_question_type[_text_field(annotation, "question_type", question)].append(accuracy)
    return VqaScores(
        overall=_percent(list(accuracies.values())),
        per_answer_type={name: _percent(values) for name, values in by_answer_type.items()},
        per_question_type={name: _percent(values) for name, values in by_question_type.items()},
        per_question={question: round(100 * accuracy, 2) for question, accuracy in accuracies.items()},
    )


def _question_accuracy(prediction: str, records: Sequence[Mapping[str, Any]]) -> float:
    """Mean over the records of min(1, equal answers among the *other* records / 3), in 0..1."""
    prediction = _clean(prediction)
    answers = [_clean(record["answer"]) for record in records]
    # Where all people agree, the reference normalises neither side: then "Yes" is not "yes".
    if len(set(answers)) > 1:
        prediction = normalize_answer(prediction)
        answers = [normalize_answer(answer) for answer in answers]
    equal = [int(answer == prediction) for answer in answers]
    # "Others": the reference leaves out every record that equals the current one in *all* fields (`item != gtAnsDatum`
    # compares dicts). With distinct answer ids that is the record itself; repeated ids lose their copies as well.
    left_out = equal
    if not _distinct_ids(records):
        left_out = [one * copies for one, copies in zip(equal, _copies(records, answers), strict=True)]
    total = sum(equal)
    return sum(min(1.0, (total - besides) / 3) for besides in left_out) / len(answers)


def _clean(answer: str) -> str:
    # Carriage returns and runs of spaces stay inside the answer: the reference replaces "\n" and "\t" only.
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _distinct_ids(records: Sequence[Mapping[str, Any]]) -> bool:
    ids = [record["answer_id"] for record in records if "answer_id" in record]
    return len(set(ids)) == len(ids)


def _copies(records: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[int]:
    """How many records equal each one in all fields. One without id (not official) has its place in the list for it."""
    full = [
        {"answer_id": ("place", place), **record, "answer": answer}
        for place, (record, answer) in enumerate(zip(records, answers, strict=True))
    ]
    return [full.count(record) for record in full]


def _percent(accuracies: Sequence[float]) -> float:
    # In the reference's order of operations; a half cent rounds as the running Python rounds it.
    return round(100 * sum(accuracies) / len(accuracies), 2)


def _numbered(annotations: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(question id, annotation) in order."""
    for number, annotation in enumerate(annotations):
        if not isinstance(annotation, Mapping):
            raise ValueError(
                f"annotation {number} is {annotation!r}, not a record: give the list under 'annotations' of the file"
            )
        if "question_id" not in annotation:
            raise ValueError(f"annotation {number} has no 'question_id'")
        yield annotation["question_id"], annotation


def _unrepeated(annotations: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    questions: dict[int, Mapping[str, Any]] = {}
    for question, annotation in _numbered(annotations):
        if question in questions:
            raise ValueError(f"question {question!r} is annotated twice")
        questions[question] = annotation
    return questions


def _require_same_questions(predictions: Mapping[int, str], questions: Mapping[int, object]) -> None:
    """Both id sets must be equal: `loadRes` of the reference asserts it."""
    if not questions:
        raise ValueError("there are no annotations to score against")
    missing = [question for question in questions if question not in predictions]
    foreign = [question for question in predictions if question not in questions]
    faults = []
    if missing:
        faults.append(f"{len(missing)} annotated questions have no prediction: {first_few(missing)}")
    if foreign:
        faults.append(f"{len(foreign)} predicted questions have no annotation: {first_few(foreign)}")
    if faults:
        raise ValueError("; ".join(faults))


def _answer_records(annotation: Mapping[str, Any], question: int) -> Sequence[Mapping[str, Any]]:
    records = annotation.get("answers")
    if not isinstance(records, Sequence) or isinstance(records, str) or not records:
        raise ValueError(f"question {question!r} has no list of 'answers'")
    for place, record in enumerate(records):
        if not isinstance(record, Mapping) or not isinstance(record.get("answer"), str):
            raise ValueError(f"answer {place} of question {question!r} is {record!r}: it has no text 'answer'")
    return records


def _text_field(annotation: Mapping[str, Any], name: str, question: int) -> str:
    value = annotation.get(name)
    if not isinstance(value, str):
        raise ValueError(f"question {question!r} has no text '{name}'")
    return value


_SOFT_SCORES = {1: 0.3, 2: 0.6, 3: 0.9}  # four people or more: 1.0


def vqa_answer_vocabulary(annotations: Iterable[Mapping[str, Any]], min_count: int = 9) -> list[str]:
    """The answers to classify over: normalised majority answers of at least `min_count` questions.

    Args:
        annotations: official records, training and validation together (`itertools.chain`), each with `question_id`
            and `multiple_choice_answer`.
        min_count: in how many distinct question ids an answer must occur.

    Returns:
        Answers from the most to the least frequent, equal counts in code point order; the order of the annotations
        does not matter. The empty string (from "the") is an answer like any other.

    Raises:
        ValueError: a record without question id or without a text `multiple_choice_answer`.

    Source: `filter_answers` of compute_softscore.py, which gives no order.
    """
    questions: defaultdict[str, set[int]] = defaultdict(set)
    for question, annotation in _numbered(annotations):
        # No cleaning before: `preprocess_answer` of the reference has none ("p-q- " -> "pq").
        questions[normalize_answer(_text_field(annotation, "multiple_choice_answer", question))].add(question)
    kept = {answer: len(ids) for answer, ids in questions.items() if len(ids) >= min_count}
    return sorted(kept, key=lambda answer: (-kept[answer], answer))


def vqa_soft_targets(
    annotations: Iterable[Mapping[str, Any]], vocabulary: Iterable[str], normalize: bool = True
) -> dict[int, dict[str, float]]:
    """Target scores of each question: 0.3, 0.6, 0.9 for one, two, three people who gave an answer, 1.0 for more.

    Args:
        annotations: official records with `question_id` and `answers`. Not changed.
        vocabulary: answers the model can give, as `vqa_answer_vocabulary` returns them.
        normalize: True counts `normalize_answer` of each answer. False counts the strings as they are, as
            the reference does against its own comment: "T-shirt" then misses the vocabulary's "t shirt".

    Returns:
        For each question id, in order, the answers of the vocabulary with a score above 0. A question whose
        answers are all outside the vocabulary stays, with an empty target.

    Raises:
        ValueError: a question id annotated twice, a record without answers or with one that is not text.

    Source: `compute_target` and `get_score` of compute_softscore.py.
    """
    known = frozenset(vocabulary)
    targets: dict[int, dict[str, float]] = {}
    for question, annotation in _unrepeated(annotations).items():
        answers = [record["answer"] for record in _answer_records(annotation, question)]
        counts = Counter(map(normalize_answer, answers) if normalize else answers)
        targets[question] = {
            answer: _SOFT_SCORES.get(count, 1.0) for answer, count in counts.items() if answer in known
        }
    return targets
