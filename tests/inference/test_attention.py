"""Attention maps against transformers' own attention, hand-made cases, and what each method must do by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attending import config, noise, pretraining_model, processor, seen

from pixelbert.errors import UsageError
from pixelbert.inference.attention import LAYERLESS, METHODS, Method, encode, look, look_all, see
from pixelbert.inference.sentence_words import read_sentence
from pixelbert.model.heads import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.model.image_processing import BadImage
from pixelbert.model.pixels import Grid

SENTENCE = "The dogs in a Redcap, running"


@pytest.fixture(scope="module")
def model():
    return pretraining_model()


@pytest.fixture(scope="module")
def read():
    return processor()


@pytest.fixture(scope="module")
def photo(model):
    return seen(model)


def test_attention_is_that_of_transformers(read):
    """In float64, as sharp attention makes much of the last digits of float32."""
    pictures = [noise(100, 230), noise(100, 130)]  # the second is padded
    batch = read(images=pictures, text=["a dog in the snow", "the cat in a fire"])
    assert batch["attention_mask"].all()
    model = pretraining_model()
    with torch.no_grad():
        grid = model.pixelbert.encode_images(batch["pixel_values"], batch["image_sizes"])
        grid.pixels = grid.pixels.double()
        model.double()
        hidden, attentions = encode(model.pixelbert, batch["input_ids"], grid)
        model.set_attn_implementation("eager")
        expected = model(batch["input_ids"], grid=grid, output_attentions=True)
    assert not grid.mask.all()
    assert torch.allclose(hidden, expected.last_hidden_state, atol=1e-8)
    assert len(attentions) == len(expected.attentions) == 3
    for ours, theirs in zip(attentions, expected.attentions, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)
        assert ours.std() > 0.01  # not all alike


def test_the_map_of_a_word_is_the_mean_row_of_its_pieces(model, read, photo):
    ids = read(text=SENTENCE)["input_ids"]
    attention = encode(model.pixelbert, ids, photo.grid)[1][1][0].detach()  # layer 2: [heads, S, S]
    pieces = [
        place for place, token in enumerate(read.tokenizer.convert_ids_to_tokens(ids[0])) if token in ("dog", "##s")
    ]
    for head in (None, 3):
        rows = attention.mean(0) if head is None else attention[head - 1]
        expected = rows[pieces, ids.shape[1] :].mean(0)
        found = look(model, read, photo, SENTENCE, "dogs", Method(layer=2, head=head))
        assert found.word.pieces == tuple(pieces)
        assert found.to_photo == pytest.approx(float(expected.sum()), rel=1e-5)
        assert np.allclose(found.weights.flatten(), expected / expected.sum(), atol=1e-6)


def test_words_and_their_pieces(read):
    sentence = read_sentence(read, SENTENCE)
    assert [word.text for word in sentence.words] == ["The", "dogs", "in", "a", "Redcap", "running"]
    tokens = read.tokenizer.convert_ids_to_tokens(sentence.ids[0])
    pieces = [[tokens[piece] for piece in word.pieces] for word in sentence.words]
    assert pieces == [["the"], ["dog", "##s"], ["in"], ["a"], ["red", "##cap"], ["run", "##ning"]]
    assert sentence.find("REDCAP") == sentence.find(4) == sentence.words[4]
    assert [tokens[piece] for piece in sentence.find("in a redcap").pieces] == ["in", "a", "red", "##cap"]


def test_several_words_are_found_as_one(read):
    sentence = read_sentence(read, "a red fire, fire hydrant in the dog's snow")
    found = sentence.find("Fire  Hydrant")
    assert (found.text, found.start) == ("fire hydrant", sentence.text.index("fire hydrant"))
    assert sentence.find("fire").start == 6  # the first
    assert sentence.find("dog's").text == "dog's"


def test_errors_name_what_there_is(model, read, photo):
    with pytest.raises(
        UsageError, match="'bird' is not in the sentence; its words are: The, dogs, in, a, Redcap, running"
    ):
        look(model, read, photo, SENTENCE, "bird")
    with pytest.raises(UsageError, match="word 6: the sentence has 6 words"):
        look(model, read, photo, SENTENCE, 6)
    with pytest.raises(UsageError, match="'  ' is not in the sentence"):
        look(model, read, photo, SENTENCE, "  ")
    with pytest.raises(UsageError, match="layer 4: the model has layers 1 to 3"):
        look(model, read, photo, SENTENCE, "dogs", Method(layer=4))
    with pytest.raises(UsageError, match="layer 0: the model has layers 1 to 3"):
        look(model, read, photo, SENTENCE, "dogs", Method(layer=0))
    with pytest.raises(UsageError, match="head 5: the model has heads 1 to 4"):
        look(model, read, photo, SENTENCE, "dogs", Method(head=5))
    with pytest.raises(UsageError, match="no method 'rolout'; did you mean 'rollout'"):
        look(model, read, photo, SENTENCE, "dogs", Method("rolout"))
    with pytest.raises(UsageError, match="has no word in it"):
        look(model, read, photo, " ... ", "dogs")
    with pytest.raises(BadImage):
        look(model, read, b"no photo", SENTENCE, "dogs")


def test_a_word_past_the_end_is_an_error_and_no_part_of_all_words(model, photo):
    short = processor(max_length=5)
    with pytest.raises(UsageError, match="'Redcap' lies past the 5 wordpieces"):
        look(model, short, photo, SENTENCE, "redcap")
    assert [found.word.text for found in look_all(model, short, photo, SENTENCE)] == ["The", "dogs"]


def test_a_model_in_training_mode_is_refused(read, photo):
    with pytest.raises(UsageError, match=r"model.eval\(\)"):
        look(pretraining_model().train(), read, photo, SENTENCE, "dogs")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_a_map_and_leaves_the_model_as_it_was(read, name):
    model = pretraining_model(contrastive_size=8)
    photo = seen(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)  # a model for use: gradients must still reach the attention
    found = look(model, read, photo, SENTENCE, "redcap", Method(name, layer=1 if name in LAYERLESS else 2))
    assert found.weights.shape == photo.cells.shape
    assert found.weights.min() >= 0
    assert found.weights.sum() == pytest.approx(1)
    assert (found.to_photo is not None) == (name == "attention")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config.text_config._attn_implementation != "eager"


def test_a_layer_or_head_that_means_nothing_to_a_method_is_told(model, read, photo):
    """Else the picture would name a head that was never looked at."""
    for method, told in (
        (Method("rollout", 2, head=1), "'rollout' looks at no single head"),
        (Method("occlusion-word", head=1), "'occlusion-word' looks at no single head"),
        (Method("nearness", layer=2), "'nearness' looks at no layer"),
        (Method("gradient-match", layer=3), "the last: there .CLS. alone reaches the match score"),
    ):
        with pytest.raises(UsageError, match=told):
            look(model, read, photo, SENTENCE, "dogs", method)


def test_rollout_of_one_layer_is_its_attention(model, read, photo):
    plain = look(model, read, photo, SENTENCE, "dogs")
    followed = look(model, read, photo, SENTENCE, "dogs", Method("rollout", layer=1))
    assert np.allclose(plain.weights, followed.weights, atol=1e-6)


def test_gradients_are_those_of_transformers_own_graph(read, photo):
    eager = pretraining_model()
    eager.set_attn_implementation("eager")
    ids = read(text=SENTENCE)["input_ids"]
    output = eager(ids, grid=photo.grid, output_attentions=True)
    (mismatch, match), attention = output.itm_logits[0], output.attentions[1]
    (gradient,) = torch.autograd.grad(match - mismatch, attention)
    expected = (attention.detach() * gradient.clamp(min=0))[0].mean(0)[[2, 3], ids.shape[1] :].mean(0)
    found = look(pretraining_model(), read, photo, SENTENCE, "dogs", Method("gradient-match", layer=2))
    assert found.word.pieces == (2, 3)
    assert np.allclose(found.weights.flatten(), expected / expected.sum(), atol=1e-5)


@pytest.mark.parametrize(("side", "skip"), [(1, False), (2, False), (1, True)])
def test_occlusion_is_the_fall_of_the_words_log_probability(read, side, skip):
    model = pretraining_model(visual_skip=skip)
    if skip:
        torch.nn.init.normal_(model.skip.weight)
    photo = seen(model)
    ids = read(text=SENTENCE)["input_ids"]
    hidden = ids.clone()
    hidden[0, [2, 3]] = read.tokenizer.mask_token_id
    rows, columns = photo.cells.shape

    def log_probability(mask: torch.Tensor) -> float:
        with torch.no_grad():
            grid = Grid(photo.grid.pixels, mask.reshape(1, -1), photo.grid.shape)
            scores = model(hidden, grid=grid).mlm_logits[0].log_softmax(-1)
        return float((scores[2, ids[0, 2]] + scores[3, ids[0, 3]]) / 2)

    falls: dict[tuple[int, int], list[float]] = {}
    for i in range(rows - side + 1):
        for j in range(columns - side + 1):
            mask = torch.ones(rows, columns, dtype=torch.bool)
            mask[i : i + side, j : j + side] = False
            fall = log_probability(torch.ones(rows, columns, dtype=torch.bool)) - log_probability(mask)
            for cell in np.argwhere(~mask.numpy()):
                falls.setdefault((int(cell[0]), int(cell[1])), []).append(fall)
    expected = np.array([[np.mean(falls[i, j]) for j in range(columns)] for i in range(rows)]).clip(0)
    found = look(model, read, photo, SENTENCE, "dogs", Method("occlusion-word", occlude=side))
    assert (expected > 0).sum() > 0
    assert np.allclose(found.weights, expected / expected.sum(), atol=1e-3)


def test_similarity_parts_add_up_to_the_pooled_score(read):
    """The cells' parts, before the mean is taken off, are the pooled score of photo and word."""
    model = pretraining_model(contrastive_size=8)
    photo = see(model, read, noise(100, 230))
    with torch.no_grad():
        text = model.text_vectors(*(read(text="dogs")[name] for name in ("input_ids", "attention_mask")))[0]
        cells = model.contrastive.image(photo.grid.pixels[0])
        pooled = model.contrastive.image(photo.grid.pixels[0].mean(0))
    assert float((cells @ text).mean()) == pytest.approx(float(pooled @ text), rel=1e-4)
    expected = (cells @ text - pooled @ text).clamp(min=0).numpy()
    found = look(model, read, photo, SENTENCE, "dogs", Method("similarity"))
    assert np.allclose(found.weights.flatten(), expected / expected.sum(), atol=1e-5)


@pytest.mark.parametrize("known", [False, True])
def test_nearness_is_the_cosine_of_pixels_with_the_words_embedding(read, known):
    model = pretraining_model(contrastive_size=8, match_fitted=known, match_words=known)
    photo = see(model, read, noise(100, 230))
    middle = torch.zeros(model.config.hidden_size)
    if known:
        middle = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
        model.word_pixels.middle.copy_(middle)
    sentence = read_sentence(read, SENTENCE)
    with torch.no_grad():
        pieces = model.pixelbert.text.embeddings(sentence.ids)[0, list(sentence.find("dogs").pieces)] - middle
        cells = photo.grid.pixels[0] - middle
        near = torch.stack([torch.cosine_similarity(pieces, cell, dim=1).mean() for cell in cells])
    expected = (near - near.mean()).clamp(min=0).numpy()
    found = look(model, read, photo, SENTENCE, "dogs", Method("nearness"))
    assert np.allclose(found.weights.flatten(), expected / expected.sum(), atol=1e-5)


def test_methods_for_the_heads_that_have_what_they_need(read, photo):
    retrieval = PixelBertForImageAndTextRetrieval(config()).eval()
    answers = PixelBertForQuestionAnswering(config(id2label={0: "yes", 1: "no", 2: "snow"})).eval()
    for other in (retrieval, answers):
        for name in ("attention", "rollout", "gradient-match", "occlusion-match", "nearness"):
            found = look(other, read, photo, SENTENCE, "dogs", Method(name))
            assert found.weights.sum() == pytest.approx(0 if not found.weights.any() else 1), name
        with pytest.raises(UsageError, match="need a pretraining run"):
            look(other, read, photo, SENTENCE, "dogs", Method("gradient-word"))
        with pytest.raises(UsageError, match="pooled vectors"):
            look(other, read, photo, SENTENCE, "dogs", Method("similarity"))
    pairs = PixelBertForImagesAndTextClassification(config()).eval()
    with pytest.raises(UsageError, match="a match, retrieval or answer head"):
        look(pairs, read, photo, SENTENCE, "dogs", Method("occlusion-match"))
