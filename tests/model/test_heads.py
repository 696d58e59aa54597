"""The heads of the downstream tasks, against the same numbers put together by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from memory_records import head_config as config
from pixelbert.model.heads import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.model.modeling import PixelBertForPreTraining


def inputs(texts: int = 3, images: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(5, 50, (texts, 6), generator=draw),
        "pixel_values": torch.randint(0, 256, (images, 3, 64, 64), generator=draw).to(torch.uint8),
    }


def test_an_answer_is_scored_by_an_mlp_on_cls_with_binary_cross_entropy() -> None:
    answers = ["yes", "no", "red", "2"]
    model = PixelBertForQuestionAnswering(config(id2label=dict(enumerate(answers)))).eval()
    assert [tuple(p.shape) for n, p in model.head.named_parameters() if n.endswith("weight")] == [(64, 16), (4, 64)]
    targets = torch.tensor([[1.0, 0, 0.3, 0], [0, 0.9, 0, 0], [0, 0, 0, 0]])
    with torch.no_grad():
        output = model(**inputs(), labels=targets)
        cls = model.pixelbert(**inputs()).last_hidden_state[:, 0]
        hidden = (cls @ model.head[0].weight.T + model.head[0].bias).clamp(min=0)
        logits = hidden @ model.head[3].weight.T + model.head[3].bias
    chances = output.logits.sigmoid()
    by_hand = -(targets * chances.log() + (1 - targets) * (1 - chances).log()).sum() / 3
    assert torch.allclose(output.logits, logits, atol=1e-6)
    assert output.loss is not None and torch.allclose(output.loss, by_hand, atol=1e-5)
    assert [model.config.id2label[i] for i in range(4)] == answers


@pytest.mark.parametrize("image_type", [False, True])
def test_a_statement_is_judged_from_both_cls_vectors_side_by_side(image_type: bool) -> None:
    model = PixelBertForImagesAndTextClassification(config(image_type=image_type)).eval()
    batch = inputs(texts=2, images=4)
    with torch.no_grad():
        output = model(**batch, labels=torch.tensor([1, 0]))
        grid = model.pixelbert.encode_images(batch["pixel_values"])
        sides = []
        for side in range(2):
            own = grid.select(torch.tensor([side, 2 + side]))
            if image_type:
                assert model.image_type is not None
                own.pixels = own.pixels + model.image_type.weight[side]
            sides.append(model.pixelbert(batch["input_ids"], grid=own).last_hidden_state[:, 0])
        logits = model.head(torch.cat(sides, dim=1))
    assert torch.allclose(output.logits, logits, atol=1e-5)
    assert output.loss is not None
    assert torch.allclose(output.loss, F.cross_entropy(logits, torch.tensor([1, 0])), atol=1e-5)


def test_statements_may_share_pictures_and_swapping_them_matters() -> None:
    model = PixelBertForImagesAndTextClassification(config()).eval()
    batch = inputs(texts=2, images=2)
    batch["input_ids"][1] = batch["input_ids"][0]
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():  # fresh weights hardly look at the picture: pixels and weights that do, made by hand
        for layer in model.pixelbert.text.encoder.layer:
            layer.attention.output.dense.weight.copy_(torch.randn(16, 16, generator=draw))
        grid = model.pixelbert.encode_images(batch.pop("pixel_values"))
        grid.pixels = torch.randn(grid.pixels.shape, generator=draw)
        head = model.head[0]
        head.weight.copy_(torch.randn(head.weight.shape, generator=draw))
        logits = model(**batch, grid=grid, image_of_text=torch.tensor([[0, 1], [1, 0]])).logits
        alone = model(batch["input_ids"][:1], grid=grid).logits
    assert torch.allclose(logits[:1], alone, atol=1e-5)
    assert (logits[0] - logits[1]).abs().max() > 0.005


def test_one_picture_a_statement_is_the_same_head_with_one_pass() -> None:
    model = PixelBertForImagesAndTextClassification(config(num_images=1)).eval()
    assert model(**inputs(texts=2, images=2)).logits.shape == (2, 2)


def test_retrieval_starts_as_the_log_odds_of_the_match() -> None:
    pretrained = PixelBertForPreTraining(config()).eval()
    model = PixelBertForImageAndTextRetrieval(config()).eval()
    model.pixelbert.load_state_dict(pretrained.pixelbert.state_dict())
    model.start_from_itm(pretrained.itm_head.weight, pretrained.itm_head.bias)
    with torch.no_grad():
        itm = pretrained(**inputs()).itm_logits
        scores = model(**inputs()).logits
    assert torch.allclose(scores, itm[:, 1] - itm[:, 0], atol=1e-6)


def test_retrieval_loss_is_the_softmax_over_each_group_with_the_true_text_first() -> None:
    model = PixelBertForImageAndTextRetrieval(config()).eval()
    batch = inputs(texts=6, images=2)
    with torch.no_grad():
        output = model(**batch, image_of_text=torch.tensor([0, 0, 0, 1, 1, 1]), candidates=3)
    groups = output.logits.view(2, 3)
    by_hand = (torch.logsumexp(groups, dim=1) - groups[:, 0]).mean()
    assert output.loss is not None and torch.allclose(output.loss, by_hand, atol=1e-6)


@pytest.mark.parametrize(
    "cls",
    [PixelBertForQuestionAnswering, PixelBertForImagesAndTextClassification, PixelBertForImageAndTextRetrieval],
)
def test_saved_and_loaded_models_are_equal_to_the_bit(cls: type, tmp_path: Path) -> None:
    model = cls(config(id2label={0: "a", 1: "b"})).eval()
    model.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path).eval()
    theirs = again.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    assert again.config.id2label == {0: "a", 1: "b"}
