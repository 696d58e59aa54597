"""The files of the drawn world: the official fields, what they say is true, and what a guess from the text gets."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pixelbert.bench.quickstart import questions as questions_module
from pixelbert.bench.quickstart.captions import captions
from pixelbert.bench.quickstart.scenes import described, draw_scenes, image_id, image_name
from pixelbert.bench.quickstart.world import (
    COLORS,
    COLUMNS,
    COUNTS,
    ROWS,
    SHAPES,
    SPLITS,
    WORD_CLASSES,
    Scene,
    Thing,
    make_scene,
    random_of,
)
from pixelbert.errors import MachineError, UsageError

COUNT = {"train": 400, "val": 120, "test": 16}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "world"
    draw_scenes(out, **COUNT, seed=0)
    return out


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def scenes(split: str) -> dict[int, Scene]:
    """The scenes of a split by image id."""
    return {image_id(scene): scene for n in range(COUNT[split]) for scene in [make_scene(split, n, seed=0)]}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Captions


def test_karpathy_file_has_the_official_fields_and_every_picture(world: Path) -> None:
    content = load(world / "dataset_scenes.json")
    assert content["dataset"] == "scenes"
    images = content["images"]
    assert Counter(image["split"] for image in images) == COUNT
    assert [image["imgid"] for image in images] == list(range(sum(COUNT.values())))
    sentids = [sentence["sentid"] for image in images for sentence in image["sentences"]]
    assert sentids == list(range(5 * len(images)))
    for image in images:
        with Image.open(world / "images" / image["filepath"] / image["filename"]) as picture:
            assert picture.size == (96, 96)
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        assert len({sentence["raw"] for sentence in image["sentences"]}) == 5
        for sentence in image["sentences"]:
            assert sentence["imgid"] == image["imgid"]
            assert sentence["tokens"] == sentence["raw"].split()
            assert 5 <= len(sentence["tokens"]) <= 14
            assert sum(word in words for word in sentence["tokens"] for words in WORD_CLASSES.values()) >= 2


def is_true(caption: str, scene: Scene) -> bool:
    """A second, independent reading of the captions: by pattern, against all things of the scene."""
    names = {name: f"(?P<{name}>{'|'.join(words)})" for name, words in PARTS.items()}
    for pattern, check in READINGS:
        match = re.fullmatch(pattern.format(**names), caption)
        if match:
            found = match.groupdict()
            first = [t for t in scene.things if fits(t, found, "")]
            second = [t for t in scene.things if fits(t, found, "2")]
            if "shape2" not in found:
                return any(check(found, scene, a, a) for a in first)
            return any(check(found, scene, a, b) for a in first for b in second if a is not b)
    raise AssertionError(f"no reading for {caption!r}")


def fits(thing: Thing, found: dict[str, str], suffix: str) -> bool:
    said = {key: found.get(key + suffix) for key in ("color", "shape", "size")}
    return all(word is None or getattr(thing, key) == word for key, word in said.items())


PARTS = {
    "color": COLORS,
    "shape": SHAPES,
    "size": ("small", "large"),
    "color2": COLORS,
    "shape2": SHAPES,
    "size2": ("small", "large"),
    "row": ROWS,
    "column": COLUMNS,
    "side": ("left", "right"),
    "height": ("above", "below"),
    "count": COUNTS,
}
READINGS = [
    ("a {size} {shape} in the {row} row", lambda f, s, a, b: ROWS[a.row] == f["row"]),
    (
        "there is a {size} {color} {shape} in the {column} column",
        lambda f, s, a, b: COLUMNS[a.column] == f["column"],
    ),
    (
        "the {shape} in the {row} row and {column} column is {color}",
        lambda f, s, a, b: (ROWS[a.row], COLUMNS[a.column]) == (f["row"], f["column"]),
    ),
    (
        "a {size} {shape} {height} a {size2} {shape2}",
        lambda f, s, a, b: a.row != b.row and (a.y < b.y) == (f["height"] == "above"),
    ),
    (
        "the {color} {shape} is to the {side} of the {color2} {shape2}",
        lambda f, s, a, b: a.column != b.column and (a.x < b.x) == (f["side"] == "left"),
    ),
    ("there is a {size} {shape} and a {size2} {shape2}", lambda f, s, a, b: True),
    ("the {shape} is {color} and the {shape2} is {color2}", lambda f, s, a, b: True),
    ("the {color} {shape} is {size}", lambda f, s, a, b: True),
    (
        "the number of shapes is {count} and there is a {color} {shape}",
        lambda f, s, a, b: COUNTS[len(s.things)] == f["count"],
    ),
]


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_true_of_their_scene_and_seldom_of_another(world: Path, split: str) -> None:
    images = [image for image in load(world / "dataset_scenes.json")["images"] if image["split"] == split]
    ordered = list(scenes(split).values())
    elsewhere = []
    for index, image in enumerate(images):
        assert image["filename"] == image_name(ordered[index])
        for sentence in image["sentences"]:
            assert is_true(sentence["raw"], ordered[index])
            elsewhere.append(is_true(sentence["raw"], ordered[index - 1]))
    assert sum(elsewhere) / len(elsewhere) < 0.1  # so a caption of another scene is a fair negative


def caption_words(split: str, count: int) -> Iterable[tuple[tuple[str, ...], str]]:
    """(the caption with one word masked, the word) for every word of many captions."""
    for number in range(count):
        for text in captions(make_scene(split, number, seed=0), random_of(0, split, number, 2)):
            words = text.split()
            for place, word in enumerate(words):
                yield (*words[:place], "[MASK]", *words[place + 1 :]), word


def test_no_masked_word_can_be_guessed_from_the_other_words() -> None:
    """Train's best guess, from the words around the mask as well as from the whole rest, is near the stated chance.

    Contexts are generalised: other words of a class are replaced by the class, so that train has seen each often.
    Contexts with the other colours and shapes kept are looked at too: a guess may leave out what is named.
    """
    class_of = {word: name for name, words in WORD_CLASSES.items() for word in words}
    chance = {"color": 1 / 5, "shape": 1 / 5, "place": 0.5, "size": 0.5, "number": 1 / 3}

    def views(context: tuple[str, ...], word: str) -> Iterable[tuple[str, ...]]:
        yield tuple(class_of.get(other, other) for other in context)
        own = class_of[word]
        yield tuple(other if class_of.get(other) == own else class_of.get(other, other) for other in context)

    seen: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for context, word in caption_words("train", 3000):
        if word in class_of:
            for view in views(context, word):
                seen[view][word] += 1
    hits, totals = Counter[tuple[str, int]](), Counter[str]()
    for context, word in caption_words("val", 600):
        if word in class_of:
            totals[class_of[word]] += 1
            for number, view in enumerate(views(context, word)):
                guess = seen[view].most_common(1)
                hits[class_of[word], number] += bool(guess) and guess[0][0] == word
    assert set(totals) == set(chance)
    for name, limit in chance.items():
        for number in (0, 1):
            assert hits[name, number] / totals[name] < limit + 0.04, (name, number)


# Questions


def vqa(world: Path, split: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    asked = load(world / "vqa" / f"v2_OpenEnded_scenes_{split}_questions.json")["questions"]
    annotated = load(world / "vqa" / f"v2_scenes_{split}_annotations.json")["annotations"]
    return list(zip(asked, annotated, strict=True))


@pytest.mark.parametrize("split", SPLITS)
def test_questions_have_the_official_fields(world: Path, split: str) -> None:
    pairs = vqa(world, split)
    assert len({question["question_id"] for question, _ in pairs}) == len(pairs)
    pictures = scenes(split)
    assert {question["image_id"] for question, _ in pairs} == set(pictures)
    for question, annotation in pairs:
        assert set(question) == {"image_id", "question", "question_id"}
        assert annotation["question_id"] == question["question_id"]
        assert annotation["image_id"] == question["image_id"]
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        votes = Counter(answer["answer"] for answer in annotation["answers"])
        assert votes[annotation["multiple_choice_answer"]] == max(votes.values())
        assert question["question"].lower().startswith(annotation["question_type"])
        assert annotation["answer_type"] in ("yes/no", "number", "other")


@pytest.mark.parametrize("split", ["train", "val"])
def test_yes_and_no_are_balanced_for_every_wording(world: Path, split: str) -> None:
    balance: Counter[str] = Counter()
    pictures: dict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
    for question, annotation in vqa(world, split):
        if annotation["answer_type"] == "yes/no":
            answer = annotation["multiple_choice_answer"]
            balance[question["question"]] += 1 if answer == "yes" else -1
            pictures[question["question"]][question["image_id"], answer] += 1
    assert len(balance) > COUNT[split] // 4
    assert set(balance.values()) == {0}
    for asked in pictures.values():  # never yes and no about one picture
        assert not {picture for picture, answer in asked if answer == "yes"} & {p for p, a in asked if a == "no"}


def test_best_answer_per_wording_gets_little(world: Path) -> None:
    """The best blind answerer: for each question string the answer that train gives most often."""
    train: dict[str, Counter[str]] = defaultdict(Counter)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for question, annotation in vqa(world, "train"):
        train[question["question"]][annotation["multiple_choice_answer"]] += 1
        kinds[annotation["question_type"]][annotation["multiple_choice_answer"]] += 1
    scores: dict[str, list[float]] = defaultdict(list)
    for question, annotation in vqa(world, "val"):
        best = train[question["question"]] or kinds[annotation["question_type"]]
        votes = sum(answer["answer"] == best.most_common(1)[0][0] for answer in annotation["answers"])
        scores[annotation["question_type"]].append(min(1.0, 0.3 * votes))
    limits = {"is the": 0.56, "is there a": 0.56, "how many": 0.45, "where is the": 0.2}
    limits |= {"what color is the": 0.27, "what shape is the": 0.27}
    for kind, limit in limits.items():
        assert sum(scores[kind]) / len(scores[kind]) < limit, kind


@pytest.mark.parametrize("split", ["train", "val"])
def test_main_answers_are_true(world: Path, split: str) -> None:
    """Each answer read off the scene again, by patterns of this test."""
    pictures = scenes(split)
    back = {said: meant for meant, said in questions_module.SYNONYMS.items()}
    for question, annotation in vqa(world, split):
        answers = {back.get(answer["answer"], answer["answer"]) for answer in annotation["answers"]}
        expected = answer_of(question["question"], pictures[question["image_id"]])
        if annotation["answer_type"] == "yes/no":
            assert annotation["multiple_choice_answer"] == expected, question
        else:
            assert answers == {expected}, question


def answer_of(question: str, scene: Scene) -> str:
    by_shape = {thing.shape: thing for thing in scene.things}
    by_color = {thing.color: thing for thing in scene.things}
    words = question.rstrip("?").split()
    match words:
        case ["What", "color", "is", "the", shape]:
            return by_shape[shape].color
        case ["What", "shape", "is", "the", color, "one"]:
            return by_color[color].shape
        case ["Where", "is", "the", _, shape]:
            return by_shape[shape].place
        case ["How", "many", "shapes", "are", "there"]:
            return str(len(scene.things))
        case ["How", "many", size, "shapes", "are", "there"]:
            return str(sum(thing.size == size for thing in scene.things))
        case ["How", "many", "shapes", "are", "in", "the", name, "row"]:
            return str(sum(ROWS[thing.row] == name for thing in scene.things))
        case ["How", "many", "shapes", "are", "in", "the", name, "column"]:
            return str(sum(COLUMNS[thing.column] == name for thing in scene.things))
        case ["Is", "there", "a", color, shape]:
            holds = any((thing.color, thing.shape) == (color, shape) for thing in scene.things)
        case ["Is", "the", shape, "in", "the", name, "row"]:
            holds = ROWS[by_shape[shape].row] == name
        case ["Is", "the", shape, "in", "the", name, "column"]:
            holds = COLUMNS[by_shape[shape].column] == name
        case ["Is", "the", shape, "above", "the", other]:
            holds = by_shape[shape].row < by_shape[other].row
        case ["Is", "the", shape, "to", "the", "left", "of", "the", other]:
            holds = by_shape[shape].column < by_shape[other].column
        case ["Is", "the", shape, word]:
            holds = word in (by_shape[shape].color, by_shape[shape].size)
        case _:
            raise AssertionError(f"no reading for {question!r}")
    return "yes" if holds else "no"


def test_some_answers_vary_and_some_synonyms_win_often_enough_for_the_vocabulary(world: Path) -> None:
    annotations = [annotation for _, annotation in vqa(world, "train")]
    votes = [Counter(answer["answer"] for answer in annotation["answers"]) for annotation in annotations]
    assert 0.05 < sum(len(vote) > 1 for vote in votes) / len(votes) < 0.5
    majority = Counter(annotation["multiple_choice_answer"] for annotation in annotations)
    assert any(majority[said] >= 9 for said in questions_module.SYNONYMS.values())
    assert min(majority[word] for word in (*COLORS, *SHAPES, "yes", "no", "0", "1", "2", "3")) >= 9


# Statements


@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("val", "dev"), ("test", "test1")])
def test_statements_have_the_official_fields_and_balance(world: Path, split: str, name: str) -> None:
    rows = lines(world / "nlvr2" / f"{name}.json")
    assert len({row["identifier"] for row in rows}) == len(rows) > 0
    groups: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    pictures = {image_name(scene): scene for scene in scenes(split).values()}
    for row in rows:
        assert ("directory" in row) == (name == "train")
        assert ("extra_validations" in row) == (name != "train")
        prefix, number, pair, sentence = row["identifier"].split("-")
        assert prefix == name
        assert row["label"] in ("True", "False")
        groups[number, sentence][row["label"]] += 1
        sides = []
        for side, key in enumerate(("left_url", "right_url")):
            copy = world / "nlvr2" / "images" / name / f"{name}-{number}-{pair}-img{side}.png"
            assert copy.read_bytes() == (world / "images" / split / row[key]).read_bytes()
            sides.append(pictures[row[key]])
        assert is_statement_true(row["sentence"], *sides) == (row["label"] == "True"), row
    assert all(labels == {"True": 2, "False": 2} for labels in groups.values())


def is_statement_true(sentence: str, left: Scene, right: Scene) -> bool:
    """A second reading of the statements."""
    text = sentence.lower().rstrip(".")
    if "more shapes" in text:
        more, less = (left, right) if "shapes in the left" in text else (right, left)
        return len(more.things) > len(less.things)
    if "same number" in text:
        return len(left.things) == len(right.things)
    if "in total" in text:
        words = text.split()
        things = [thing for scene in (left, right) for thing in scene.things]
        return sum(thing.size == words[3] for thing in things) == COUNTS.index(words[2])
    phrases = re.findall(r" a (\w+)(?: (\w+))?(?= in the |$)", text)
    shows = [[shown(scene, [w for w in phrase if w and w != "shape"]) for scene in (left, right)] for phrase in phrases]
    if text.startswith("there is"):
        if "but none" in text:
            return shows[0][0] and not shows[0][1]
        return shows[0][0] and shows[1][1]
    checks = {"the left": shows[0][0], "the right": shows[0][1], "both": all(shows[0])}
    checks |= {"neither": not any(shows[0]), "at least": any(shows[0]), "exactly": sum(shows[0]) == 1}
    return next(value for start, value in checks.items() if text.startswith(start))


def shown(scene: Scene, words: list[str]) -> bool:
    return any(set(words) <= {thing.color, thing.shape, thing.size} for thing in scene.things)


# Boxes


def test_instances_are_the_things_of_the_scene(world: Path) -> None:
    content = load(world / "annotations" / "instances_val.json")
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert sorted(names.values()) == sorted(SHAPES)
    files = {image["id"]: image["file_name"] for image in content["images"]}
    things = {(key, thing.shape): thing for key, scene in scenes("val").items() for thing in scene.things}
    assert len({annotation["id"] for annotation in content["annotations"]}) == len(things)
    assert all((world / "images" / "val" / name).is_file() for name in files.values())
    for annotation in content["annotations"]:
        thing = things.pop((annotation["image_id"], names[annotation["category_id"]]))
        left, top, width, height = annotation["bbox"]
        assert (left + width / 2, top + height / 2) == pytest.approx((thing.x, thing.y), abs=0.02)
        assert max(width, height) <= thing.diameter + 0.02
        assert 0.3 * width * height < annotation["area"] <= width * height + 0.1
        assert annotation["iscrowd"] == 0
        assert (annotation["color"], annotation["size"]) == (thing.color, thing.size)
    assert not things


# The folder


def test_same_seed_same_bytes_and_more_scenes_keep_the_first(tmp_path: Path) -> None:
    for name, train in (("one", 9), ("two", 9), ("three", 12)):
        draw_scenes(tmp_path / name, train=train, val=2, test=0, seed=5)
    one = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.*")}
    two = {path.relative_to(tmp_path / "two"): path.read_bytes() for path in (tmp_path / "two").rglob("*.*")}
    assert one == two
    draw_scenes(tmp_path / "four", train=9, val=2, test=0, seed=6)
    assert load(tmp_path / "four" / "dataset_scenes.json") != load(tmp_path / "one" / "dataset_scenes.json")
    first, more = (load(tmp_path / name / "dataset_scenes.json")["images"] for name in ("one", "three"))
    assert [image["sentences"] for image in first[:9]] == [image["sentences"] for image in more[:9]]
    for image in first[:9]:
        path = Path("images") / "train" / image["filename"]
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "three" / path).read_bytes()


def test_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelbert.bench.quickstart import scenes as module

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write_nlvr2", full)
    with pytest.raises(MachineError, match="world: the disk is full"):
        draw_scenes(tmp_path / "world", train=1, val=1, test=1)
    assert list(tmp_path.iterdir()) == []


def test_existing_folders_are_respected(tmp_path: Path) -> None:
    out = tmp_path / "world"
    out.mkdir()
    draw_scenes(out, train=1, val=0, test=0)  # an empty folder is free
    assert described(out) == {"version": 2, "seed": 0, "train": 1, "val": 0, "test": 0}
    with pytest.raises(UsageError, match="exists"):
        draw_scenes(out, train=2, val=0, test=0)
    draw_scenes(out, train=2, val=0, test=0, overwrite=True)
    assert described(out)["train"] == 2  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is not a"):
        draw_scenes(foreign, train=1, val=0, test=0, overwrite=True)
    assert described(foreign) is None


@pytest.mark.parametrize("counts", [{"train": -1}, {"val": 100_001}, {"seed": -1}])
def test_impossible_numbers_are_refused(tmp_path: Path, counts: dict[str, int]) -> None:
    asked = {"train": 0, "val": 0, "test": 0, "seed": 0} | counts
    with pytest.raises(UsageError, match=next(iter(counts))):
        draw_scenes(tmp_path / "world", **asked)
    assert list(tmp_path.iterdir()) == []


def test_karpathy_reader_reads_every_caption(world: Path) -> None:
    karpathy = pytest.importorskip("pixelbert.data.formats.karpathy")
    examples = list(karpathy.read(world / "dataset_scenes.json"))
    assert len(examples) == 5 * sum(COUNT.values())
    assert Counter(example.split for example in examples) == {split: 5 * count for split, count in COUNT.items()}
    assert all((world / "images" / example.image).is_file() for example in examples)
