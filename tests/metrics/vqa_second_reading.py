"""The VQA rules read a second time, slowly and in another way, and random records made to hit every rule.

Character by character, no pattern, no translation table, the small tables written out again.
"""

from __future__ import annotations

import json
import random
from fractions import Fraction
from importlib import resources
from typing import Any

from hypothesis import strategies as st

TABLES = json.loads(resources.files("pixelbert.metrics").joinpath("vqa_normalization.json").read_text("utf-8"))


def annotation(
    question_id: int, answers: list[str], answer_type: str = "other", question_type: str = "what is"
) -> dict[str, Any]:
    """A record of the official annotation file; the majority answer is the first one here."""
    records = [{"answer": answer, "answer_confidence": "yes", "answer_id": n} for n, answer in enumerate(answers, 1)]
    return {
        "question_id": question_id,
        "image_id": 1,
        "question_type": question_type,
        "answer_type": answer_type,
        "multiple_choice_answer": answers[0],
        "answers": records,
    }


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}


def slow_normalize(text: str) -> str:
    padded = ["start", *text, "end"]  # neither end is a space
    triples = zip(padded, padded[1:], padded[2:], strict=False)
    comma_rule = any(b == "," and a in set("0123456789") and c in set("0123456789") for a, b, c in triples)
    without = ""
    for character in text:
        if character not in PUNCTUATION:
            without += character
            continue
        beside = [{a, c} for a, b, c in zip(padded, padded[1:], padded[2:], strict=False) if b == character]
        if not comma_rule and not any(" " in neighbours for neighbours in beside):
            without += " "
    kept, deleted = "", 0
    for place, character in enumerate(without):
        following = without[place + 1 : place + 2]
        if character == "." and deleted < 32 and (following == "" or following not in "0123456789"):
            deleted += 1
        else:
            kept += character
    words, word = [], ""
    for character in kept.lower() + " ":
        if not character.isspace():
            word += character
        elif word:
            words.append(word)
            word = ""
    result = []
    for one in words:
        digits = NUMBERS.get(one, one)
        if digits not in ("a", "an", "the"):
            result.append(TABLES["contractions"].get(digits, digits))
    return " ".join(result)


_SPACES = [" ", " ", "  ", "\n", "\t", "\r", "\u00a0", "\u3000", "\x1c", "\u2028"]
_WORDS = ["cat", "Dog", "x", "b", "a", "An", "THE", "É", "İ", "ß", "none", "Two", "ten", "1", "07", "3", "lets", "Im"]
_ODD = [".", "..", "." * 31, "." * 33, "1,2", ",3", "4,", "1,a", "'", ":", "%", "$", "\u200b", "٣"]
_CONTRACTED = sorted(TABLES["contractions"])
fragments = st.one_of(
    st.sampled_from(list(PUNCTUATION)),
    st.sampled_from(_SPACES),
    st.sampled_from(_WORDS),
    st.sampled_from(_ODD),
    st.sampled_from(_CONTRACTED + [key.upper() for key in _CONTRACTED]),
    st.text(max_size=3),
)
answers_to_hit_rules = st.lists(fragments, max_size=12).map("".join)


def random_answer(draw: random.Random, longest: int = 10) -> str:
    """The same fragments drawn fast, for thousands at a time."""
    pools = (PUNCTUATION, PUNCTUATION, _SPACES, _SPACES, _WORDS, _WORDS, _ODD, _CONTRACTED)
    return "".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(longest + 1)))


M_OF_TEN = [Fraction(n, 10) for n in (0, 3, 6, 9, 10, 10, 10, 10, 10, 10, 10)]


def slow_accuracy(prediction: str, answers: list[str]) -> Fraction:
    """By the table of m of ten, not by leaving records out."""

    def clean(text: str) -> str:
        return "".join(" " if c in "\n\t" else c for c in text).strip()

    cleaned = [clean(answer) for answer in answers]
    guess = clean(prediction)
    if any(answer != cleaned[0] for answer in cleaned):
        return M_OF_TEN[[slow_normalize(answer) for answer in cleaned].count(slow_normalize(guess))]
    return M_OF_TEN[cleaned.count(guess)]


def random_questions(seed: int, count: int) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """Questions whose ten answers are few strings in many spellings, and predictions that are one of them or near."""
    draw = random.Random(seed)
    predictions, annotations = {}, []
    for question in range(count):
        stem = random_answer(draw, 4)
        spellings = [
            stem,
            stem.upper(),
            f"the {stem}",
            f" {stem}\n",
            f"{stem}.",
            stem.replace(" ", "-"),
            random_answer(draw, 4),
        ]
        chosen = draw.sample(spellings, draw.randint(1, 4))
        answers = [draw.choice(chosen) for _ in range(10)]
        kinds = (
            draw.choice(["yes/no", "number", "other"]),
            draw.choice(["what", "is the", "how many", "none of the above"]),
        )
        annotations.append(annotation(question, answers, *kinds))
        predictions[question] = draw.choice([draw.choice(answers), draw.choice(spellings), slow_normalize(stem)])
    return predictions, annotations
