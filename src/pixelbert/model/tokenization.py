"""WordPiece: from a `vocab.txt` (with `bert-base-uncased`'s vocabulary: its ids), or trained on one's own text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pixelbert.errors import DataError

if TYPE_CHECKING:
    from transformers import BertTokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LENGTH = 32  # wordpieces of a text, [CLS] and [SEP] included


def load_tokenizer(
    source: str | os.PathLike[str] | Sequence[str], *, lowercase: bool = True, max_length: int = MAX_LENGTH
) -> BertTokenizer:
    """transformers' BERT tokenizer for a vocabulary.

    source: a `vocab.txt` or a folder that holds one, one wordpiece a line, or the wordpieces themselves; the id of a
        wordpiece is its place. lowercase: also strips accents, as `bert-base-uncased` does.
    Raises DataError when the file cannot be read or is not such a vocabulary.
    """
    from transformers import BertTokenizer

    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        path = path / "vocab.txt" if path.is_dir() else path
        tokens, name = _read_vocabulary(path), str(path)
    else:
        tokens, name = list(source), "the vocabulary"
    check_vocabulary(tokens, name)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return BertTokenizer(vocab=vocabulary, do_lower_case=lowercase, model_max_length=max_length)


def _read_vocabulary(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text (byte {error.start})") from error
    # Not splitlines(): a wordpiece may itself be one of the rarer line separators.
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def check_vocabulary(tokens: Sequence[str], name: str) -> None:
    """Raises DataError unless all special tokens are there and no wordpiece is empty or repeated."""
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise DataError(f"{name}: is not a BERT vocabulary, {', '.join(missing)} missing")
    repeated = [token for token, count in Counter(tokens).items() if count > 1]
    if repeated:
        raise DataError(f"{name}: line {len(tokens) - 1 - list(reversed(tokens)).index(repeated[0]) + 1} repeats")
    if "" in tokens:
        raise DataError(f"{name}: line {list(tokens).index('') + 1} is empty")
