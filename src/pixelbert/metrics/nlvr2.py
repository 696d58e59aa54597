"""NLVR2 accuracy and consistency. Source: lil-lab/nlvr, nlvr2/eval/metrics.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelbert.metrics._naming import first_few


@dataclass(frozen=True)
class Nlvr2Scores:
    """NLVR2 scores as fractions in 0..1, not rounded.

    Attributes:
        accuracy: right examples / examples.
        consistency: groups with every example right / groups.
    """

    accuracy: float
    consistency: float


def nlvr2_scores(predictions: Mapping[str, bool | str], examples: Iterable[Mapping[str, Any]]) -> Nlvr2Scores:
    """NLVR2 accuracy and consistency.

    Args:
        predictions: truth value of each identifier, a bool or a word. A word counts if it is the label, letter case
            ignored; any other word is wrong. Predictions for other identifiers are ignored.
        examples: records with `identifier` (split-set-pair-sentence, "dev-850-2-0") and `label` ("True", "False").

    Raises:
        ValueError: an example without a prediction, an identifier met twice or of another form, a label
            that is neither true nor false, a prediction that is neither bool nor text, no examples.

    Source: lil-lab/nlvr, nlvr2/eval/metrics.py.
    """
    right: dict[str, bool] = {}
    missing: list[str] = []
    for number, example in enumerate(examples):
        identifier = example.get("identifier") if isinstance(example, Mapping) else None
        if not isinstance(identifier, str):
            raise ValueError(f"example {number} has no text 'identifier'")
        if identifier in right:
            raise ValueError(f"example {identifier!r} occurs twice")
        label = _truth_word(example.get("label"), "label", identifier)
        if label not in ("true", "false"):
            raise ValueError(f"the label of example {identifier!r} is {example['label']!r}, neither True nor False")
        if identifier not in predictions:
            missing.append(identifier)
        right[identifier] = (
            identifier in predictions and _truth_word(predictions[identifier], "prediction", identifier) == label
        )
    if missing:
        raise ValueError(f"{len(missing)} examples have no prediction: {first_few(missing)}")
    if not right:
        raise ValueError("there are no examples to score against")
    groups: defaultdict[tuple[str, ...], list[bool]] = defaultdict(list)
    for identifier, is_right in right.items():
        groups[_sentence_group(identifier)].append(is_right)
    return Nlvr2Scores(
        accuracy=sum(right.values()) / len(right),
        consistency=sum(map(all, groups.values())) / len(groups),
    )


def _truth_word(value: object, what: str, identifier: str) -> str:
    if not isinstance(value, (str, bool, np.bool_)):
        raise ValueError(f"the {what} of example {identifier!r} is {value!r}, neither bool nor text")
    return str(value).lower()


def _sentence_group(identifier: str) -> tuple[str, ...]:
    """(split, set, sentence number): the identifier without its third part, the pair of pictures.

    Not the sentence's text, which can stand in two groups.
    """
    parts = identifier.split("-")
    if len(parts) < 3:
        raise ValueError(f"example {identifier!r} is not named split-set-pair-sentence")
    return (*parts[:2], *parts[3:])
