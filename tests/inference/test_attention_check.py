"""The check's arithmetic on made-up cases, its readers on drawn scenes and COCO's form, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from attending import config, noise, processor
from PIL import Image

import pixelbert.inference.attention_check as checking
from pixelbert import cli
from pixelbert.bench.quickstart.scenes import draw_scenes
from pixelbert.errors import DataError, UsageError
from pixelbert.inference.attention import AttentionMap, Looking, Method
from pixelbert.inference.attention_check import check_attention, foreign_words, methods_of, share_on, write_check
from pixelbert.inference.named_objects import names_in, nouns_of, read_named_objects
from pixelbert.model.modeling import PixelBertForPreTraining


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Four photos of 96 x 256 with one object each, a dog or a cat, in the left or the right quarter."""
    folder = tmp_path / "photos"
    (folder / "annotations").mkdir(parents=True)
    (folder / "val2014").mkdir()
    images, objects, captions = [], [], []
    for number in range(4):
        name = f"{number}.png"
        Image.fromarray(noise(96, 256, number)).save(folder / "val2014" / name)
        images.append({"id": number, "file_name": name})
        box = [0, 0, 64, 96] if number < 2 else [192, 0, 64, 96]
        objects.append({"image_id": number, "category_id": 1 + number % 2, "bbox": box})
        caption = f"a red {'cat' if number % 2 else 'Dogs'} in the snow"
        captions += [{"image_id": number, "caption": text} for text in ("the snow", f"{caption}\n")]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    write(folder, "instances_val2014", images=images, annotations=objects, categories=categories)
    write(folder, "captions_val2014", images=images, annotations=captions)
    return folder


def write(folder: Path, name: str, **content: object) -> None:
    (folder / "annotations" / f"{name}.json").write_text(json.dumps(content))


def model() -> PixelBertForPreTraining:
    return PixelBertForPreTraining(config(visual_pool=False)).eval()


def look_at(monkeypatch, weights_of) -> None:
    """Every map becomes what `weights_of(looking, word, method)` gives."""

    def at(self, word, method):
        cells = self.photo.cells
        return AttentionMap(self.sentence.find(word), method, weights_of(self, word, method), cells)

    monkeypatch.setattr(Looking, "at", at)


def test_attention_wholly_on_the_object_is_one_over_its_share(coco, monkeypatch):
    named = {(item.sentence, str(item.image)): item for item in read_named_objects(coco)}

    def only_own_object(looking, word, method):
        """On the object for the photo's own caption; on the other quarter for a foreign one; even in layer 2."""
        cells = looking.photo.cells
        if method.layer == 2:
            return cells.even
        own = [item for (sentence, image), item in named.items() if np.array_equal(looking.photo.pixels, load(image))]
        covered = cells.covered(own[0].boxes)
        if looking.sentence.text != own[0].sentence:
            covered = covered[:, ::-1]
        return covered / covered.sum()

    look_at(monkeypatch, only_own_object)
    result = check_attention(model(), processor(), coco, methods=["attention"])
    rows = {row["method"]: row for row in result["methods"]}
    first, second = rows["attention layer 1"], rows["attention layer 2"]
    assert (first["share_on_object"], first["share_of_area"]) == (1, 0.25)
    assert (first["over_chance"], first["control"], first["over_control"]) == (4, 0, 4)
    assert first["over_chance_interval"] == [4, 4]
    assert (second["over_chance"], second["over_control"]) == (1, 0)
    assert result["figures"]["share_over_chance"] == result["figures"]["first_layer"] == 4
    assert (result["photos"], result["words"]) == (4, 4)
    assert result["methods"][-1]["over_chance"] <= result["methods"][0]["over_chance"]


def load(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_best_method_is_chosen_on_other_photos():
    """Two methods, each the best on one half by luck: what is reported is what the other half chose."""
    over = np.array([[3.0, 0.5, 3.0, 0.5], [0.5, 3.0, 0.5, 3.0]])
    photo_of = np.array([0, 1, 2, 3])
    chosen = checking._best_of_other_half(over, photo_of)
    assert chosen == [1, 0]
    assert checking._at(over, chosen, photo_of).tolist() == [0.5, 0.5, 0.5, 0.5]


def test_of_one_photo_the_best_is_chosen_on_itself():
    assert checking._best_of_other_half(np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([0, 0])) == [1, 1]


def test_the_best_has_the_largest_ratio_and_the_most_telling_most_above_its_control(coco, monkeypatch):
    """The first layer falls on the middle whatever the word; the second, less, only on the one that is named."""
    named = read_named_objects(coco)
    own = {(item.sentence, str(item.image)) for item in named}

    def weights(looking, word, method):
        photo = next(item for item in named if np.array_equal(looking.photo.pixels, load(item.image)))
        covered = looking.photo.cells.covered(photo.boxes)
        if method.layer == 1:
            return covered / covered.sum()
        right = (looking.sentence.text, str(photo.image)) in own
        return (covered if right else covered[:, ::-1]) / covered.sum() / 2 + looking.photo.cells.even / 2

    look_at(monkeypatch, weights)
    result = check_attention(model(), processor(), coco, methods=["attention"])
    figures = result["figures"]
    assert set(result["best"]) == {"attention layer 1"} and set(result["most_telling"]) == {"attention layer 2"}
    assert (figures["share_over_chance"], figures["share_over_chance_control"]) == (4, 4)
    assert (figures["most_telling"], figures["most_telling_control"]) == (2.5, 0.5)


def test_the_interval_resamples_photos_not_words():
    """Words of one photo say the same: the interval is that of the photos' means, here worked out by hand."""
    photo_of = np.repeat([0, 1, 2, 3], 25)
    value, (low, high) = checking._mean(np.repeat([0.0, 0.0, 1.0, 1.0], 25), photo_of, 0)
    assert (value, low, high) == (0.5, 0.0, 1.0)


def test_a_map_of_zeros_counts_as_chance():
    covered, even = np.array([[1.0, 0.0, 0.5, 0.0]]), np.full((1, 4), 0.25)
    assert share_on(np.zeros((1, 4)), covered, even) == 0.375
    assert share_on(np.array([[0.5, 0.0, 0.5, 0.0]]), covered, even) == 0.75


def test_foreign_words_are_of_other_pictures_and_categories(coco):
    named = read_named_objects(coco)
    others = foreign_words(named, 0)
    assert all(
        named[i].category != named[j].category and named[i].image != named[j].image for i, j in enumerate(others)
    )
    with pytest.raises(DataError, match="no other picture's caption names anything but 'dog'"):
        foreign_words(named[::2], 0)


def test_methods_of_a_model_cover_layers_and_heads():
    listed = methods_of(model())
    assert len(set(listed)) == len(listed)
    plain = [method for method in listed if method.name == "attention"]
    assert len(plain) == 3 * (1 + 4)
    assert Method("gradient-match", 3) not in listed
    assert [method.name for method in methods_of(model(), ["occlusion-word"])] == [
        "attention",
        "occlusion-word",
        "occlusion-word",
    ]
    with pytest.raises(UsageError, match="no method 'guess'"):
        methods_of(model(), ["guess"])


def test_nouns():
    nouns = nouns_of(["dog", "hot dog", "fire hydrant", "person", "wine glass", "orange"])
    assert list(names_in("A hot dog, two Dogs and a Fire hydrant", nouns)) == [
        ("hot dog", "hot dog"), ("Dogs", "dog"), ("Fire hydrant", "fire hydrant"),
    ]  # fmt: skip
    assert list(names_in("women with wine glasses on an orange couch", nouns)) == [
        ("women", "person"), ("wine glasses", "wine glass"),
    ]  # fmt: skip


def test_coco_objects(coco):
    named = read_named_objects(coco)
    assert [(item.name, item.category, item.boxes) for item in named[:2]] == [
        ("Dogs", "dog", [[0, 0, 64, 96]]), ("cat", "cat", [[0, 0, 64, 96]]),
    ]  # fmt: skip
    assert named[0].sentence == "a red Dogs in the snow"
    assert len(read_named_objects(coco, "val2014", photos=3)) == 3
    with pytest.raises(DataError, match="annotations/instances_val2017.json"):
        read_named_objects(coco, "val2017")


def test_broken_files_are_named(coco):
    write(coco, "captions_val2014", images=[], annotations=[])
    with pytest.raises(DataError, match="no caption names an object"):
        read_named_objects(coco)
    (coco / "annotations" / "captions_val2014.json").write_text("{")
    with pytest.raises(DataError, match="captions_val2014.json: is not JSON"):
        read_named_objects(coco)
    write(coco, "instances_val2014", images=[])
    with pytest.raises(DataError, match=r"instances_val2014|captions_val2014"):
        read_named_objects(coco)


def test_drawn_scenes(tmp_path):
    """Shapes and colours of the captions, with the place of the thing that has them."""
    draw_scenes(tmp_path / "scenes", train=2, val=6, test=0)
    named = read_named_objects(tmp_path / "scenes", "val")
    assert {item.image.parent.name for item in named} == {"val"}
    assert all(item.image.is_file() for item in named)
    truth = json.loads((tmp_path / "scenes" / "annotations" / "instances_val.json").read_text())
    shapes = {row["id"]: row["name"] for row in truth["categories"]}
    files = {row["id"]: row["file_name"] for row in truth["images"]}
    for item in named:
        words = item.sentence.split()
        assert item.name in words
        expected = [
            row["bbox"]
            for row in truth["annotations"]
            if files[row["image_id"]] == item.image.name and item.name in (row["color"], shapes[row["category_id"]])
        ]
        assert item.boxes == expected
    assert len({(item.image, item.category) for item in named}) == len(named) > 12


def test_the_whole_check_on_a_small_model(coco, tmp_path):
    lines: list[str] = []
    result = check_attention(model(), processor(), coco, photos=2, tell=lines.append)
    assert result["photos"] == 2
    assert {row["name"] for row in result["methods"]} == set(checking.METHODS) - {"similarity"}
    for row in result["methods"]:
        low, high = row["over_chance_interval"]
        assert low <= row["over_chance"] <= high
        assert 0 <= row["share_on_object"] <= 1
    write_check(tmp_path / "a" / "check.json", result)
    assert json.loads((tmp_path / "a" / "check.json").read_text()) == result


def test_the_command_writes_and_prints_every_method(runs, coco, tmp_path, capsys):
    run, _ = runs("pretraining")
    out = tmp_path / "check.json"
    assert cli.main(["check-attention", str(run), str(coco), "--out", str(out), "--method", "rollout"]) == 0
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert (written["run"], written["data"], written["words"]) == (run.name, "photos", 4)
    assert f"{written['figures']['share_over_chance']:.2f} times chance" in printed
    assert {row["name"] for row in written["methods"]} == {"attention", "rollout"}
    assert all(row["method"] in printed for row in written["methods"])


def test_the_command_refuses_what_is_no_pretraining_run(runs, coco, tmp_path, capsys):
    for arguments, code, sentence in (
        ([str(runs("question_answering")[0]), str(coco)], 2, "attention is checked on a pretraining run"),
        ([str(tmp_path / "none"), str(coco)], 5, "no such run folder"),
        ([str(runs("pretraining")[0]), str(tmp_path)], 3, "has no annotations/instances_*.json"),
        ([str(runs("pretraining")[0]), str(coco), "--method", "guess"], 2, "no method 'guess'"),
        ([str(runs("pretraining")[0]), str(coco), "--method", "atention"], 2, "did you mean 'attention'?"),
        ([str(runs("pretraining")[0]), str(coco), "--part", "val2041"], 3, "did you mean 'val2014'?"),
        ([str(runs("pretraining")[0]), str(coco), "--photos", "1"], 3, "take more pictures (--photos)"),
        ([str(tmp_path / "none"), str(coco), "--out", str(tmp_path)], 2, "is a folder; give a file to write"),
    ):
        assert cli.main(["check-attention", *arguments]) == code
        assert sentence in capsys.readouterr().err
