"""Bad input to the Predictor and its verbs: one sentence that names what is wrong, exception and exit code."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pixelbert import cli
from pixelbert.errors import CheckpointError, DataError, UsageError
from pixelbert.inference.predictor import Predictor
from pixelbert.model.processor import PixelBertProcessor
from pixelbert.model.tokenization import load_tokenizer, vocabulary_of
from pixelbert.recipes.schema import load_recipe

PHOTO = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictors(runs):
    made: dict[str, Predictor] = {}
    return lambda task: made.setdefault(task, Predictor.from_pretrained(runs(task)[0]))


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.fixture
def broken(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return str(tmp_path / "broken.jpg")


# -- run folders -------------------------------------------------------------------------------------------------------


def spoil(runs, tmp_path, change):
    run = shutil.copytree(runs("retrieval")[0], tmp_path / "run")
    change(run)
    return run


def newer(run):
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"format": 99}))


def cut_weights(run):
    data = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(data[: len(data) // 2])


def no_vocabulary(run):
    for name in ("tokenizer.json", "vocab.txt"):
        (run / name).unlink()


def set_field(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def another_vocabulary(run):
    """As long as the run's own, two of its words changed places."""
    processor = PixelBertProcessor.from_pretrained(run)
    words = vocabulary_of(processor.tokenizer)
    words[-1], words[-2] = words[-2], words[-1]
    PixelBertProcessor(processor.image_processor, load_tokenizer(words)).save_pretrained(run)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda run: shutil.rmtree(run), "no such run folder"),
        (lambda run: (run / "recipe.yaml").unlink(), "not a run folder"),
        (lambda run: (run / "run.json").unlink(), "half a run folder .no run.json"),
        (lambda run: (run / "run.json").write_text("{"), "damaged"),
        (newer, "newer format .99.; update pixelbert"),
        (lambda run: (run / "recipe.yaml").write_text("task: pixels"), "damaged recipe.yaml"),
        (lambda run: (run / "model.safetensors").unlink(), "has no trained model yet"),
        (lambda run: (run / "config.json").unlink(), "no config.json"),
        (cut_weights, "cannot be loaded"),
        (lambda run: (run / "tokenizer_config.json").unlink(), "half a run folder .no tokenizer_config.json"),
        (lambda run: (run / "processor_config.json").unlink(), "half a run folder .no processor_config.json"),
        (lambda run: (run / "processor_config.json").write_text("{"), "processor_config.json: not valid JSON"),
        (lambda run: (run / "processor_config.json").write_text("{}"), "names no image processor"),
        (lambda run: (run / "tokenizer.json").write_text("{"), "processor cannot be read"),
        (no_vocabulary, "half a run folder .no tokenizer.json"),
        (another_vocabulary, "its tokenizer has the vocabulary of another model"),
        (lambda run: (run / "calibration.json").write_text("{"), "calibration.json: damaged"),
        (
            lambda run: set_field(run / "tokenizer_config.json", model_max_length="x"),
            "model_max_length is 'x', no whole",
        ),
    ],
)
def test_folders_that_cannot_be_opened(runs, tmp_path, change, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        Predictor.from_pretrained(spoil(runs, tmp_path, change))
    assert str(tmp_path / "run") in str(caught.value) and "\n" not in str(caught.value)


def test_other_options_of_opening(runs):
    with pytest.raises(UsageError, match="did you mean 'best'"):
        Predictor.from_pretrained(runs("retrieval")[0], model="bets")
    with pytest.raises(UsageError, match="device 'gpu'"):
        Predictor.from_pretrained(runs("retrieval")[0], device="gpu")
    with pytest.raises(UsageError, match="precision"):
        Predictor.from_pretrained(runs("retrieval")[0], precision="float31")


# -- a head that is not there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "verb", "arguments", "other"),
    [
        ("pretraining", "ask", (PHOTO, "dog"), "question_answering"),
        ("pretraining", "compare", (PHOTO, PHOTO, "dog"), "image_pairs"),
        ("question_answering", "match", (PHOTO, "dog"), "retrieval"),
        ("question_answering", "rank", (PHOTO, "dog"), "retrieval"),
        ("retrieval", "fill", (PHOTO, "a ___"), "pretraining"),
    ],
)
def test_a_run_without_the_head_says_which_recipe_trains_it(runs, predictors, task, verb, arguments, other):
    with pytest.raises(UsageError, match="has no head for .* train one with: pixelbert train ") as caught:
        getattr(predictors(task), verb)(*arguments)
    command = str(caught.value).partition("pixelbert train ")[2].split()
    recipe, own = load_recipe(command[0]), load_recipe("pretrain-tiny")
    assert recipe.task == other and recipe.backbone.name == own.backbone.name
    assert command[0] == "nlvr2-tiny" or other != "image_pairs"  # two pictures, as `compare` has
    source = [] if other == "pretraining" else ["--from", str(runs(task)[0])]
    assert command[1:] == ["--data", "DATA", "--out", "RUN2", *source]


def test_a_run_without_vectors_says_how_to_get_them(predictors):
    with pytest.raises(UsageError, match="has no pooled vectors; train with: .*contrastive_size"):
        predictors("question_answering").image_vectors(PHOTO)


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "match"),
    [
        ("", "the question is empty"),
        (" \n", "the question is empty"),
        ("\u200b\ufeff\x07", "the question is empty"),
        ("dog " * 10_000, "the question has 10,000 words, more than the 256 that are taken"),
        ("dog," * 10_000, "the question has 40,000 letters, more than the 4,096 that are taken"),
        (["dog", ""], "question 2 is empty"),
        ([], "the list of questions is empty"),
        (["dog", 3], "question 2 is a int, not a string"),
        (b"a dog", "is a bytes, not a string"),
        (None, "the question is a NoneType"),
    ],
)
def test_questions_that_are_none(predictors, question, match):
    with pytest.raises(UsageError, match=match):
        predictors("question_answering").ask(PHOTO, question)


def test_lists_that_do_not_fit(predictors):
    with pytest.raises(UsageError, match="2 images and 3 questions"):
        predictors("question_answering").ask([PHOTO, PHOTO], ["a", "b", "c"])
    with pytest.raises(UsageError, match="2 left images, 3 right images and 1 statements"):
        predictors("image_pairs").compare([PHOTO] * 2, [PHOTO] * 3, "a")
    with pytest.raises(UsageError, match="rank needs one image or one text"):
        predictors("retrieval").rank([PHOTO] * 2, ["a", "b"])
    with pytest.raises(UsageError, match="judges statements about 2 picture"):
        predictors("image_pairs").compare(PHOTO, None, "a")


def test_nothing_to_fill(predictors):
    with pytest.raises(UsageError, match="the text 'a dog' has no .MASK. .or ___. to fill"):
        predictors("pretraining").fill(PHOTO, "a dog")
    with pytest.raises(UsageError, match="lies past the 32 wordpieces"):
        predictors("pretraining").fill(PHOTO, "dog " * 60 + "___")


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_that_are_none(predictors, photo, broken, tmp_path):
    ask = predictors("question_answering").ask
    (tmp_path / "text.txt").write_text("not a photo")
    for source, match in (
        (broken, "broken.jpg: "),
        (str(tmp_path / "text.txt"), "text.txt: is not an image"),
        (str(tmp_path / "missing.jpg"), "missing.jpg: cannot be read .No such file"),
        (b"", "the image: is empty"),
        (7, "the image: is a int"),
        (io.BytesIO(b"x"), "the image: is a BytesIO"),
        ("a\0b.jpg", "is no name of a file"),
        ("a\ud800.jpg", "is no name of a file"),
        ([PHOTO, b"x"], "image 2: is not an image"),
        ("https://example.org/a.jpg", "https://example.org/a.jpg: is a URL"),
    ):
        with pytest.raises((DataError, UsageError), match=match):
            ask(source, "dog")
    with pytest.raises(UsageError, match="the list of images is empty"):
        ask([], "dog")


def test_of_two_pictures_the_broken_one_is_named(predictors, photo, broken):
    compare = predictors("image_pairs").compare
    with pytest.raises(DataError, match="broken.jpg: "):
        compare(photo, broken, "a dog")
    with pytest.raises(DataError, match="the right image: is empty"):
        compare(photo, b"", "a dog")
    with pytest.raises(DataError, match="the left image: is not an image"):
        compare(b"GIF", photo, "a dog")


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"word": "cat"}, "the word 'cat' is not in the sentence; its words are: a, red, dog"),
        ({"word": "dog", "layer": 3}, "layer 3: the model has layers 1 to 2"),
        ({"word": "dog", "layer": 0}, "layer 0"),
        ({"word": "dog", "head": 3}, "head 3: the model has heads 1 to 2"),
        ({"word": "dog", "method": "atention"}, "did you mean 'attention'"),
        ({"word": "dog", "method": None}, "no method 'None'"),
        ({"word": "dog", "layer": "1"}, "layer '1': not a whole number"),
        ({"word": "dog", "layer": 1.5}, "layer 1.5: not a whole number"),
        ({"word": "dog", "layer": None}, "layer None: not a whole number"),
        ({"word": 1.0}, "word 1.0: neither a word of the sentence nor its place"),
        ({"word": ["dog"]}, "neither a word of the sentence nor its place"),
    ],
)
def test_attend_out_of_range(predictors, options, match):
    with pytest.raises(UsageError, match=match):
        predictors("pretraining").attend(PHOTO, "a red dog", **options)


def test_numpy_counts_are_counts_and_others_are_none(predictors):
    found = predictors("pretraining").attend(PHOTO, "a red dog", np.int64(1), layer=np.int64(2))
    assert found.word == "red" and found.layer == 2
    assert len(predictors("question_answering").ask(PHOTO, "dog", top=np.int64(2)).guesses) == 2
    for ask in (lambda: predictors("question_answering").ask(PHOTO, "dog", top="a"),
                lambda: predictors("pretraining").fill(PHOTO, "a ___", top=1.5)):  # fmt: skip
        with pytest.raises(UsageError, match="top .*: not a whole number"):
            ask()


def test_sentences_of_two_lines_and_slivers_are_drawn(predictors):
    picture = predictors("pretraining").attention_picture
    assert picture(PHOTO, "a red\n dog", "dog").size == picture(PHOTO, "a red  dog", "dog").size
    assert picture(np.zeros((3000, 2, 3), np.uint8), "a red dog", "dog").height > 0


@pytest.mark.parametrize("name", ["", "FOLDER"])
def test_a_picture_needs_the_name_of_a_file(runs, photo, tmp_path, capsys, name):
    run, out = runs("pretraining")[0], str(tmp_path) if name else ""
    assert cli.main(["attend", str(run), photo, "a dog", "--word", "dog", "--out", out]) == 2
    assert "give a file to write" in capsys.readouterr().err


def test_a_text_that_is_cut_is_read_without_a_warning(predictors, caplog, capsys):
    assert predictors("question_answering").ask(PHOTO, "dog " * 60).cut
    assert not caplog.records and not capsys.readouterr().err


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["ask", "NOWHERE", "PHOTO", "dog?"], 5, "NOWHERE: no such run folder"),
        (["ask", "RUN", "PHOTO", ""], 2, "the question is empty"),
        (["ask", "RUN", "BROKEN", "dog?"], 3, "BROKEN: "),
        (["match", "RUN", "PHOTO", "dog"], 2, "RUN: has no head for matches"),
        (["compare", "RUN", "dog"], 2, "compare: 0 pictures given"),
        (["rank", "RUN", "PHOTO"], 2, "missing option '--text'"),
        (["attend", "RUN", "PHOTO", "a dog", "--word", "cat"], 2, "its words are: a, dog"),
    ],
)
def test_exit_code_and_sentence(runs, photo, broken, capsys, arguments, code, sentence):
    names = {"RUN": str(runs("question_answering")[0]), "PHOTO": photo, "BROKEN": broken}
    assert cli.main([names.get(argument, argument) for argument in arguments]) == code
    printed = capsys.readouterr().err
    for name, value in names.items():
        sentence = sentence.replace(name, value)
    assert sentence in printed and printed.count("\n") == 1 and "Traceback" not in printed
