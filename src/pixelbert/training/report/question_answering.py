"""The report of question answering: the score beside what no picture gets, the ceiling of the answer list, mistakes."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pixelbert.metrics import normalize_answer
from pixelbert.training.report.blind import Blind, compare_blind
from pixelbert.training.report.figures import mean_interval, on_one_scale, ways
from pixelbert.training.report.part import GROUPS, Headline, Part, beside_blind, blind_bar, figure_points, own_label
from pixelbert.training.report.pictures import Pictures
from pixelbert.training.report.record import Row, RunRecord, Scored
from pixelbert.training.report.svg import Curve, Panel

SCORE = "vqa_score"
_TYPES, _CONFUSIONS = 12, 10  # the largest question types, the most frequent confusions
_REPEATED = 5  # times that a question must be asked on average for its words alone to say much

_normalize = functools.lru_cache(maxsize=100_000)(normalize_answer)


def figures(record: RunRecord, shown: Scored, blind: RunRecord | None) -> dict[str, Any]:
    """The cards at the top. What comes from single questions is left out where there are none."""
    rows, value = answered(shown.records), shown.figures.get(SCORE)
    compared = compare_blind(record, shown, blind, SCORE, "questions")
    scores = [float(row["score"]) for row in rows]
    return {
        "value": value,
        "interval": mean_interval(scores) if shown.whole else None,
        "bars": score_bars(record, value, rows, compared),
        "blind": compared,
        "whole": shown.whole,
        "questions": len(rows),
        "ceiling": ceiling(rows, record.answers),
        "answer_types": type_bars(shown, rows, compared, "answer_type", f"{SCORE}."),
        "question_types": question_types(shown, rows, compared),
        "confusions": confusions(rows),
        "four_ways": picture_changed(rows if shown.whole else [], compared),
    }


def answered(rows: Iterable[Row]) -> list[Row]:
    """The rows of records.jsonl that tell a question, the model's answer, its worth and the answers given."""
    wanted = {"question", "answer", "score", "given"}
    return [row for row in rows if row.keys() >= wanted and isinstance(row["given"], dict) and row["given"]]


def worths(given: Mapping[str, int]) -> dict[str, float]:
    """What each answer would be worth to a question, percent: min(1, 3 x the share of people who gave it).

    For ten people this is the official 30 / 60 / 90 / 100. Answers are normalised strings.
    """
    counts: Counter[str] = Counter()
    for answer, count in given.items():
        counts[_normalize(str(answer))] += int(count)
    return {answer: min(100.0, 300 * count / counts.total()) for answer, count in counts.items()}


def _worths(row: Row) -> dict[str, float]:
    """`worths` of a row, reckoned once and kept in it."""
    if "worths" not in row:
        row["worths"] = worths(row["given"])
    found: dict[str, float] = row["worths"]
    return found


# -- the score, and what no picture gets -------------------------------------------------------------------------------


def score_bars(record: RunRecord, value: float | None, rows: list[Row], blind: Blind | None) -> list[dict[str, Any]]:
    """The score side by side, percent: the model, the blind model, the best guesses that need no picture."""
    if value is None:
        return []
    bars = [{"label": own_label(record), "value": value, "kind": "own"}, *blind_bar(blind)]
    best = best_by_question(rows)
    if best is not None:
        bars.append({"label": "Best for each wording", "value": best, "kind": "commonest"})
    if rows:
        answer, worth = best_constant(rows)
        bars.append({"label": f"Always “{answer}”", "value": worth, "kind": "commonest"})
    return on_one_scale(bars)


def best_constant(rows: list[Row]) -> tuple[str, float]:
    """The one answer that would score best if given to every question, and that score in percent."""
    total = _summed(rows)
    answer, worth = min(total.items(), key=lambda item: (-item[1], item[0]))
    return answer, worth / len(rows)


def best_by_question(rows: list[Row]) -> float | None:
    """The score of the best single answer to each wording: no model without the picture can have more.

    None where wordings hardly repeat: it would say nothing.
    """
    wordings: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        wordings[str(row["question"]).strip().lower()].append(row)
    if not rows or len(rows) < _REPEATED * len(wordings):
        return None
    return sum(max(_summed(own).values()) for own in wordings.values()) / len(rows)


def _summed(rows: Iterable[Row]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for row in rows:
        for answer, worth in _worths(row).items():
            total[answer] += worth
    return total


def ceiling(rows: list[Row], answers: list[str]) -> dict[str, Any] | None:
    """What the answer list allows: the best score any model with it can have, and how many questions it leaves out."""
    if not rows or not answers:
        return None
    known = {_normalize(answer) for answer in answers}
    best = [max((worth for answer, worth in _worths(row).items() if answer in known), default=0.0) for row in rows]
    outside = sum(value == 0 for value in best)
    counts = {"answers": len(answers), "questions": len(rows), "outside": outside, "share": 100 * outside / len(rows)}
    return {"value": sum(best) / len(best), **counts}


def picture_changed(rows: list[Row], blind: Blind | None) -> list[dict[str, Any]]:
    """Of the questions that both models answered the share right with pictures alone, blind alone, both, neither."""
    if blind is None:
        return []
    other = {row["record"]: float(row["score"]) > 0 for row in answered(blind.rows) if "record" in row}
    both = [(float(row["score"]) > 0, other[row["record"]]) for row in rows if row.get("record") in other]
    labels = {"own": "right only with the picture", "both": "right with and without it",
              "other": "right only without it", "neither": "wrong either way"}  # fmt: skip
    return ways(both, labels) if both else []


# -- kinds of questions, and mistakes ----------------------------------------------------------------------------------


def type_bars(
    shown: Scored, rows: list[Row], blind: Blind | None, key: str, prefix: str, most: int = _TYPES
) -> list[dict[str, Any]]:
    """A bar for each type, the most asked first: `label`, `value`, `count`, and the `blind` model's value if known.

    The values are the figures `prefix`TYPE; where there are none, the means of the rows.
    """
    counts = Counter(str(row.get(key) or "") for row in rows)
    told = {name[len(prefix) :]: v for name, v in shown.figures.items() if name.startswith(prefix)}
    other = {name[len(prefix) :]: v for name, v in (blind.figures if blind else {}).items() if name.startswith(prefix)}
    told = {name: v for name, v in told.items() if not name.startswith("question.") and not name.endswith("_blind")}
    if not told:
        told = _means(rows, key)
        other = _means(answered(blind.rows), key) if blind else {}
    largest = sorted(told, key=lambda name: (-counts[name], name))[:most]
    return [
        {"label": name, "value": told[name], "count": counts[name] or None, "blind": other.get(name)}
        for name in largest
    ]  # fmt: skip


def question_types(shown: Scored, rows: list[Row], blind: Blind | None) -> list[dict[str, Any]]:
    """The largest question types; where the data names none, by the first two words."""
    prefix = f"{SCORE}.question."
    names = sorted((n[len(prefix) :] for n in shown.figures if n.startswith(prefix)), key=len, reverse=True)
    if names and not any(row.get("question_type") for row in rows):  # rows of an earlier version tell none
        rows = [{**row, "question_type": _longest(names, str(row["question"]).lower())} for row in rows]
    found = type_bars(shown, rows, blind, "question_type", prefix)
    if found or not rows:
        return found
    worded = [{**row, "first_words": _first_words(row)} for row in rows]
    other = [{**row, "first_words": _first_words(row)} for row in blind.rows] if blind else []
    return type_bars(shown, worded, Blind("", 0.0, 0, [], {}, other), "first_words", "no figure ")


def _longest(names: list[str], question: str) -> str:
    """The type of a question by VQA's rule: the longest of the names (longest first) that it begins with."""
    return next((name for name in names if f"{question} ".startswith(f"{name} ")), "none of the above")


def _first_words(row: Row) -> str:
    return " ".join(str(row.get("question", "")).lower().split()[:2])


def _means(rows: Iterable[Row], key: str) -> dict[str, float]:
    scores: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row.get(key):
            scores[str(row[key])].append(float(row["score"]))
    return {name: sum(values) / len(values) for name, values in scores.items()}


def confusions(rows: list[Row], most: int = _CONFUSIONS) -> list[dict[str, Any]]:
    """What was said where another answer was right, the most frequent first: `given`, `said`, `count`, `of` so many."""
    commonest = [(_commonest(row), row) for row in rows]
    asked = Counter(given for given, _ in commonest)
    wrong = Counter((given, _normalize(str(row["answer"]))) for given, row in commonest if float(row["score"]) == 0)
    ranked = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [{"given": given, "said": said, "count": n, "of": asked[given]} for (given, said), n in ranked]


def _commonest(row: Row) -> str:
    best = _worths(row)
    return max(best, key=lambda answer: best[answer])  # of equals the first given


# -- curves and examples -----------------------------------------------------------------------------------------------


def panels(record: RunRecord, blind: RunRecord | None) -> list[Panel]:
    """The score over questions seen, beside the blind run and the best constant answer; and by kind of answer."""
    rows = answered(record.shown.records) if record.shown is not None else []
    reference = [(best_constant(rows)[1], "one answer to all")] if rows else []
    last = record.validations[-1]["figures"] if record.validations else {}
    kinds = [name for name in last if name.startswith(f"{SCORE}.") and not name.startswith(f"{SCORE}.question.")]
    curves = [
        Curve(name.removeprefix(f"{SCORE}."), figure_points(record, name), colour, dots=True)
        for colour, name in enumerate(kinds[:5], start=1)
    ]
    return [beside_blind("Score", record, blind, SCORE, references=reference), Panel("By kind of answer", curves, " %")]


def example(example: Row, pictures: Pictures) -> dict[str, Any]:
    """A question with its picture, the answers given with their counts, and the model's answer."""
    given = sorted(((str(a), int(n)) for a, n in example["given"].items()), key=lambda item: -item[1])
    said = _normalize(str(example["answer"]))
    return {
        "question": str(example["question"]),
        "answer": str(example["answer"]),
        "probability": float(example["probability"]),
        "score": float(example["score"]),
        "right": float(example["score"]) > 0,
        "given": [{"answer": a, "count": n, "said": _normalize(a) == said} for a, n in given],
        "people": sum(n for _, n in given),
        "pictures": pictures.embed_all(example.get("pictures")),
        "record": str(example.get("record", "")),
    }


def headlines(cards: dict[str, Any]) -> list[Headline]:
    """The score."""
    if cards["value"] is None:
        return []
    guesses = [bar for bar in cards["bars"] if bar["kind"] == "commonest"]
    guess: dict[str, Any] = guesses[0] if guesses else {"value": None, "label": ""}
    blind = cards["blind"].accuracy if cards["blind"] else None
    return [Headline("VQA score", cards["value"], blind, guess["value"], guess["label"].lower(), main=True)]


PART = Part(
    name="question_answering",
    kind="Pixel-BERT question answering",
    title="Questions about a picture",
    what="A question is answered from the picture, with an answer out of a list.",
    unit="questions",
    texts="questions",
    losses={"vqa": "Answer loss"},
    groups=GROUPS,
    figures=figures,
    example=example,
    panels=panels,
    headlines=headlines,
)
