"""Texts with hidden words: where the places are, and the model's guesses for them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pixelbert.data.batches import Batch
from pixelbert.errors import UsageError
from pixelbert.inference.answers import Filling, Guess, Place
from pixelbert.tasks.masking import IGNORED

_HOLE = re.compile(r"_{2,}|\[mask\]", re.IGNORECASE)


def hide(text: str) -> str:
    """The text with [MASK] for every ___. Raises UsageError when there is nothing to fill."""
    masked, count = _HOLE.subn("[MASK]", text)
    if not count:
        raise UsageError(f"the text '{text}' has no [MASK] (or ___) to fill")
    return masked


def with_labels(batch: Batch, tokenizer: Any, texts: Sequence[str]) -> Batch:
    """The batch with `labels`: 0 at the hidden places, else -100. Raises UsageError for one that was cut away."""
    hidden = batch["input_ids"] == tokenizer.mask_token_id
    for row, text in enumerate(texts):
        if int(hidden[row].sum()) < len(_HOLE.findall(text)):
            length = batch["input_ids"].shape[1]
            raise UsageError(f"a hidden word of '{text[:60]}' lies past the {length} wordpieces that the model reads")
    return batch | {"labels": batch["input_ids"].new_full(hidden.shape, IGNORED).masked_fill(hidden, 0)}


def read(
    masked: Sequence[str], batch: Batch, tokenizer: Any, seen: Tensor | None, alone: Tensor, top: int, cut: list[bool]
) -> list[Filling]:
    """The `top` guesses of every place: logits [places, V] with the pictures (None without) and of the texts alone."""
    counts = (batch["labels"] != IGNORED).sum(1).tolist()
    without = _guesses(alone, tokenizer, top)
    with_picture = without if seen is None else _guesses(seen, tokenizer, top)
    fillings, start = [], 0
    for row, count in enumerate(counts):
        own = range(start, start + count)
        places = [Place(with_picture[i] if seen is not None else [], without[i]) for i in own]
        filled = _filled(masked[row], [with_picture[i][0].text for i in own])
        fillings.append(Filling(masked[row], False, cut[row], filled, places))
        start += count
    return fillings


def _filled(masked: str, pieces: Sequence[str]) -> str:
    """The text with a piece in every hole; one that continues a word (##s) goes without the space before it."""
    first, *rest = masked.split("[MASK]")
    for piece, after in zip(pieces, rest, strict=True):
        first = (first.rstrip() + piece.removeprefix("##") if piece.startswith("##") else first + piece) + after
    return first


def _guesses(logits: Tensor, tokenizer: Any, top: int) -> list[list[Guess]]:
    values, ids = logits.softmax(-1).cpu().topk(min(top, logits.shape[-1]))
    return [
        [Guess(piece, chance) for piece, chance in zip(tokenizer.convert_ids_to_tokens(row), chances, strict=True)]
        for row, chances in zip(ids.tolist(), values.tolist(), strict=True)
    ]
