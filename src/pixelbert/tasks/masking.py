"""Masked language modelling: which word pieces are hidden, and with what (Section 3.3; 80/10/10 from BERT)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

IGNORED = -100  # label of a place without a prediction


@dataclass(frozen=True)
class Vocabulary:
    """What masking needs to know of a WordPiece vocabulary."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...]
    continuation: np.ndarray  # bool [size], True for pieces that go on a word (##ing)

    @classmethod
    def of(cls, tokenizer: object) -> Vocabulary:
        """From a transformers BERT tokenizer."""
        tokens: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
        continuation = np.zeros(max(tokens.values()) + 1, dtype=bool)
        for token, index in tokens.items():
            continuation[index] = token.startswith("##")
        special = tuple(sorted(tokenizer.all_special_ids))  # type: ignore[attr-defined]
        return cls(len(continuation), tokens["[MASK]"], special, continuation)

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """Ids that may stand in for a masked piece: all but the special ones."""
        return np.setdiff1d(np.arange(self.size), self.special_ids)


def mask_tokens(
    ids: np.ndarray,
    vocabulary: Vocabulary,
    draw: np.random.Generator,
    probability: float = 0.15,
    whole_word: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide each piece with `probability`, at least one; of those 80 % become [MASK], 10 % a random piece, 10 % stay.

    Args:
        ids: int64 [L] with [CLS] and [SEP]; special ids are never hidden.
        whole_word: draw per word, hiding all its pieces together.

    Returns:
        the ids with pieces hidden, and labels: the true id where hidden, else -100. A text without ordinary pieces
        comes back as it is, without labels.
    """
    labels = np.full_like(ids, IGNORED)
    places = np.flatnonzero(~np.isin(ids, vocabulary.special_ids))
    if len(places) == 0:
        return ids.copy(), labels
    starts = ~vocabulary.continuation[ids[places]] if whole_word else np.ones(len(places), dtype=bool)
    starts[0] = True
    word = np.cumsum(starts) - 1
    count = int(word[-1]) + 1
    hidden = draw.random(count) < probability
    if not hidden.any():
        hidden[draw.integers(count)] = True
    chosen = places[hidden[word]]
    labels[chosen] = ids[chosen]
    masked = ids.copy()
    how = draw.random(len(chosen))
    masked[chosen[how < 0.8]] = vocabulary.mask_id
    randoms = chosen[(how >= 0.8) & (how < 0.9)]
    ordinary = vocabulary.ordinary_ids
    masked[randoms] = ordinary[draw.integers(len(ordinary), size=len(randoms))]
    return masked, labels
