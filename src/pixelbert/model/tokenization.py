"""WordPiece: from a `vocab.txt` (with `bert-base-uncased`'s vocabulary: its ids), or trained on one's own text."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelbert.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import BertTokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 32  # wordpieces of a text, [CLS] and [SEP] included
MAX_WORD = 100  # characters; BERT reads a longer word as [UNK]
MAX_ALPHABET = 1000  # characters in a trained vocabulary; rarer ones become [UNK]
PREFIX = "##"

Pair = tuple[str, str]


def load_tokenizer(
    source: str | os.PathLike[str] | Sequence[str], *, lowercase: bool | None = None, max_length: int = MAX_LENGTH
) -> BertTokenizer:
    """transformers' BERT tokenizer for a vocabulary.

    source: a `vocab.txt` or a folder that holds one, one wordpiece a line, or the wordpieces themselves; the id of a
        wordpiece is its place.
    lowercase: also strips accents, as `bert-base-uncased` does. None: what `tokenizer_config.json` beside the file
        says (`do_lower_case`), True without one.
    Raises DataError when the file cannot be read or is not such a vocabulary.
    """
    from transformers import BertTokenizer

    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        path = path / "vocab.txt" if path.is_dir() else path
        tokens, name = _read_vocabulary(path), str(path)
        lowercase = _says_lowercase(path.parent) if lowercase is None else lowercase
    else:
        tokens, name = list(source), "the vocabulary"
    check_vocabulary(tokens, name)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase is not False, model_max_length=max_length)


def _says_lowercase(folder: Path) -> bool:
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return bool(settings.get("do_lower_case", True))
    except FileNotFoundError:
        return True
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as JSON settings ({error})") from error


def _read_vocabulary(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    # Not splitlines(): a wordpiece may itself be one of the rarer line separators.
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def check_vocabulary(tokens: Sequence[str], name: str) -> None:
    """Raises DataError unless all special tokens are there and no wordpiece is empty or repeated."""
    place: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if token == "" or token in place:
            wrong = f"repeats line {place[token]}" if token else "is empty"
            raise DataError(f"{name}: line {line} {wrong}, so it is not a vocabulary of one wordpiece a line")
        place[token] = line
    missing = [token for token in SPECIAL_TOKENS if token not in place]
    if missing:
        raise DataError(f"{name}: is not a BERT vocabulary, it lacks {', '.join(missing)}")


def vocabulary_of(tokenizer: Any) -> list[str]:
    """The wordpieces of a tokenizer in the order of their ids: the lines of its `vocab.txt`."""
    ids: dict[str, int] = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: control characters, zero-width and other spaces."""
    return all(unicodedata.category(character) in ("Cc", "Cf", "Zs", "Zl", "Zp") for character in text)


def encodable(text: str) -> str:
    """The text with halves of surrogate pairs (which JSON can smuggle in) replaced: tokenizers take UTF-8 only."""
    return text.encode("utf-8", "replace").decode("utf-8")


def train_wordpiece(
    texts: Iterable[str], vocab_size: int = 2000, min_frequency: int = 2, *, lowercase: bool = True
) -> list[str]:
    """A WordPiece vocabulary of one's own text: special tokens at 0..4, characters, then merged wordpieces.

    The pair of neighbouring wordpieces that occurs most often becomes one wordpiece, again and again, until there are
    `vocab_size` of them or no pair occurs `min_frequency` times (as the `tokenizers` library trains WordPiece). That
    library breaks ties by the order of a randomly seeded hash map, so its vocabulary differs from run to run;
    here the alphabet breaks them, and the same texts in any order give the same vocabulary on every machine.

    Normalisation and word splitting are BERT's. Characters that occur less than `min_frequency` times are left out.
    Raises DataError when there is no text, UsageError when `vocab_size` cannot hold the characters.
    """
    if min_frequency < 1:
        raise UsageError(f"min_frequency must be at least 1, not {min_frequency}")
    words = count_words(texts, lowercase=lowercase)
    if not words:
        raise DataError("there is no text to train a vocabulary on")
    alphabet = _alphabet(words, min_frequency)
    tokens = [*SPECIAL_TOKENS, *alphabet]
    if len(tokens) > vocab_size:
        raise UsageError(f"vocab_size is {vocab_size}, but the text's characters alone need {len(tokens)}")
    merges = _Merges(words, set(alphabet))
    known = set(tokens)
    while len(tokens) < vocab_size and (pair := merges.most_frequent(min_frequency)) is not None:
        merged = pair[0] + pair[1].removeprefix(PREFIX)
        merges.apply(pair, merged)
        if merged not in known:
            known.add(merged)
            tokens.append(merged)
    return tokens


def count_words(texts: Iterable[str], *, lowercase: bool = True) -> Counter[str]:
    """How often each word occurs, after BERT's normalisation and splitting at spaces and punctuation."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer, splitter = BertNormalizer(lowercase=lowercase), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(encodable(text))))
    return Counter({word: count for word, count in words.items() if len(word) <= MAX_WORD})


def _alphabet(words: Counter[str], min_frequency: int) -> list[str]:
    """The characters as wordpieces; one that occurs inside words can both begin and continue a word."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        if len(word) > 1:
            inside.update(word)
    kept = sorted((c for c in counts if counts[c] >= min_frequency), key=lambda c: (-counts[c], c))[:MAX_ALPHABET]
    return sorted(kept) + sorted(PREFIX + c for c in kept if c in inside)


class _Merges:
    """Words as rows of wordpieces, and how often each pair of neighbours occurs, kept up to date over merges."""

    def __init__(self, words: Counter[str], alphabet: set[str]) -> None:
        self.rows: list[list[str]] = []
        self.row_counts: list[int] = []
        self.counts: Counter[Pair] = Counter()
        self.rows_with: defaultdict[Pair, set[int]] = defaultdict(set)
        for word in sorted(words):
            row = [word[0], *(PREFIX + character for character in word[1:])]
            if alphabet.issuperset(row):  # others are [UNK] as a whole
                self.rows.append(row)
                self.row_counts.append(words[word])
                self._add(len(self.rows) - 1, 1)
        # A heap of (-count, pair). Entries are not removed when a count changes: a stale one is known by its count.
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def _add(self, index: int, sign: int) -> None:
        row = self.rows[index]
        for pair in itertools.pairwise(row):
            self.counts[pair] += sign * self.row_counts[index]
            if sign > 0:
                self.rows_with[pair].add(index)

    def most_frequent(self, min_frequency: int) -> Pair | None:
        """The pair that occurs most, the first by alphabet among equals; None when none occurs often enough."""
        while self.heap:
            count, pair = heapq.heappop(self.heap)
            if -count == self.counts[pair]:
                return pair if -count >= min_frequency else None
        return None

    def apply(self, pair: Pair, merged: str) -> None:
        """Replace the pair by the merged wordpiece in every word."""
        changed: set[Pair] = set()
        for index in sorted(self.rows_with.pop(pair)):
            row = self.rows[index]
            changed.update(itertools.pairwise(row))
            self._add(index, -1)
            self.rows[index] = row = _replace(row, pair, merged)
            self._add(index, 1)
            changed.update(itertools.pairwise(row))
        for other in changed:
            if self.counts[other] > 0:
                heapq.heappush(self.heap, (-self.counts[other], other))


def _replace(row: list[str], pair: Pair, merged: str) -> list[str]:
    """The row with every occurrence of the pair, from the left, as one wordpiece."""
    replaced: list[str] = []
    place = 0
    while place < len(row):
        if place + 1 < len(row) and (row[place], row[place + 1]) == pair:
            replaced.append(merged)
            place += 2
        else:
            replaced.append(row[place])
            place += 1
    return replaced
