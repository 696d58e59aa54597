"""A sentence's words and their wordpieces, matched by the places of their characters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pixelbert.errors import UsageError
from pixelbert.model.tokenization import encodable

_WORD = re.compile(r"\w+(?:['’.-]\w+)*")


@dataclass(frozen=True)
class Word:
    """A word (or several that follow one another) of a sentence: `text` as written, its characters, its pieces.

    pieces: places among the model's wordpieces, [CLS] being 0; empty where the sentence was cut off before the word.
    """

    text: str
    start: int
    end: int
    pieces: tuple[int, ...]


@dataclass(frozen=True)
class Sentence:
    """A sentence as the model reads it: `ids` int64 [1, L] with [CLS] and [SEP], and its words in order."""

    text: str
    ids: Tensor
    words: tuple[Word, ...]

    def find(self, word: str | int) -> Word:
        """The word of that place (from 0), or the first one that reads so; case does not count.

        Several words that follow one another ("fire hydrant") are found as one. Raises UsageError, which shows the
        sentence's words, when there is no such word, or when the sentence was cut off before it.
        """
        if isinstance(word, Integral):
            word = int(word)
            if not -len(self.words) <= word < len(self.words):
                raise UsageError(f"word {word}: the sentence has {len(self.words)} words; {self._shown()}")
            found = self.words[word]
        elif isinstance(word, str):
            found = self._phrase(word)
        else:
            raise UsageError(f"word {word!r}: neither a word of the sentence nor its place; {self._shown()}")
        if not found.pieces:
            raise UsageError(
                f"the word '{found.text}' lies past the {self.ids.shape[1]} wordpieces that the model reads; "
                "shorten the sentence"
            )
        return found

    def _phrase(self, phrase: str) -> Word:
        wanted = [part.casefold() for part in _WORD.findall(encodable(phrase))]
        have = [word.text.casefold() for word in self.words]
        for place in range(len(have) - len(wanted) + 1):
            if wanted and have[place : place + len(wanted)] == wanted:
                parts = self.words[place : place + len(wanted)]
                pieces = tuple(piece for part in parts for piece in part.pieces) if parts[-1].pieces else ()
                return Word(self.text[parts[0].start : parts[-1].end], parts[0].start, parts[-1].end, pieces)
        raise UsageError(f"the word '{phrase}' is not in the sentence; {self._shown()}")

    def _shown(self) -> str:
        return f"its words are: {', '.join(word.text for word in self.words)}"


def split_words(text: str) -> list[str]:
    """A sentence's words as `Sentence` counts them."""
    return _WORD.findall(text)


def read_sentence(processor: Any, text: str) -> Sentence:
    """The words and wordpieces of a sentence, cut at `processor.max_length` pieces as in training.

    Raises UsageError when there is no word in it.
    """
    text = encodable(text)
    encoded = processor.tokenizer(
        text,
        truncation=True,
        max_length=processor.max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    spans = [
        (place, start, end)
        for place, ((start, end), special) in enumerate(
            zip(encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        )
        if not special and end > start
    ]
    words = tuple(
        Word(
            match[0],
            match.start(),
            match.end(),
            tuple(place for place, start, end in spans if start < match.end() and end > match.start()),
        )
        for match in _WORD.finditer(text)
    )
    if not words:
        raise UsageError(f"the sentence '{text.strip()}' has no word in it")
    return Sentence(text, torch.tensor([encoded["input_ids"]]), words)
