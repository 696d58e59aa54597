"""The losses of the downstream tasks over a batch, against the model's own mean losses and plain loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memory_records import head_config as config
from pixelbert.model.heads import (
    PixelBertForImageAndTextRetrieval,
    PixelBertForImagesAndTextClassification,
    PixelBertForQuestionAnswering,
)
from pixelbert.tasks.image_pairs import StatementLosses, StatementObjective
from pixelbert.tasks.question_answering import QuestionLosses, QuestionObjective
from pixelbert.tasks.retrieval import RetrievalLosses, RetrievalObjective


def texts(count: int, longest: int = 9) -> tuple[Tensor, Tensor]:
    """Random texts of different lengths, padded."""
    draw = torch.Generator().manual_seed(count)
    lengths = torch.randint(3, longest + 1, (count,), generator=draw)
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return torch.randint(5, 50, (count, longest), generator=draw) * mask, mask


def images(count: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(9)
    pixels = torch.randint(0, 256, (count, 3, 64, 64), generator=draw).to(torch.uint8)
    return {"pixel_values": pixels, "image_sizes": torch.full((count, 2), 64)}


@pytest.mark.parametrize("chunks", [1, 3])
def test_questions(chunks: int) -> None:
    model = PixelBertForQuestionAnswering(config(num_labels=4)).eval()
    ids, mask = texts(5)
    batch = {**images(2), "input_ids": ids, "attention_mask": mask, "image_of_text": torch.tensor([0, 0, 1, 1, 1]),
             "targets": torch.rand(5, 4)}  # fmt: skip
    with torch.no_grad():
        total = QuestionObjective(model, chunks=chunks)(batch, QuestionLosses())["vqa"]
        inputs = {key: batch[key] for key in ("attention_mask", "pixel_values", "image_of_text")}
        mean = model(ids, labels=batch["targets"], **inputs).loss
    assert float(total) == pytest.approx(5 * float(mean), rel=1e-5)


@pytest.mark.parametrize("chunks", [1, 3])
def test_statements(chunks: int) -> None:
    model = PixelBertForImagesAndTextClassification(config()).eval()
    ids, mask = texts(4)
    batch = {**images(3), "input_ids": ids, "attention_mask": mask, "labels": torch.tensor([1, 0, 0, 1]),
             "image_of_text": torch.tensor([[0, 1], [1, 2], [2, 0], [0, 0]])}  # fmt: skip
    with torch.no_grad():
        total = StatementObjective(model, chunks=chunks)(batch, StatementLosses())["statement"]
        inputs = {key: batch[key] for key in ("attention_mask", "pixel_values", "image_of_text")}
        mean = model(ids, labels=batch["labels"], **inputs).loss
    assert float(total) == pytest.approx(4 * float(mean), rel=1e-5)


@pytest.mark.parametrize("chunks", [1, 3])
def test_retrieval_learns_from_the_true_caption_and_the_hardest_negatives(chunks: int) -> None:
    model = PixelBertForImageAndTextRetrieval(config()).eval()
    with torch.no_grad():
        model.head.weight.mul_(100)  # fresh weights score all captions alike
    ids, mask = texts(2 * 8)
    batch = {**images(2), "candidate_ids": ids.view(2, 8, -1), "candidate_mask": mask.view(2, 8, -1),
             "image_of_text": torch.tensor([1, 0])}  # fmt: skip
    total = RetrievalObjective(model, chunks=chunks)(batch, RetrievalLosses(hard_negatives=3))["retrieval"]
    by_hand = 0.0
    for pair, image in enumerate((1, 0)):
        with torch.no_grad():
            scores = [
                model(
                    batch["candidate_ids"][pair, i : i + 1],
                    attention_mask=batch["candidate_mask"][pair, i : i + 1],
                    pixel_values=batch["pixel_values"][image : image + 1],
                ).logits
                for i in range(8)
            ]
        kept = torch.cat([scores[0], *sorted(scores[1:], key=lambda score: -float(score))[:3]])
        by_hand += float(torch.logsumexp(kept, 0) - kept[0])
    assert float(total.detach()) == pytest.approx(by_hand, rel=1e-4)
    total.backward()
    assert model.head.weight.grad is not None and float(model.head.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_contrastive_loss_of_retrieval_takes_the_contrasted_candidates(chunks: int) -> None:
    model = PixelBertForImageAndTextRetrieval(config(contrastive_size=8)).eval()
    ids, mask = texts(2 * 4)
    image_of = torch.tensor([[1, 0, 2], [0, 2, 1]])
    own = torch.zeros(3, 6, dtype=torch.bool)
    own[image_of.flatten(), torch.arange(6)] = True
    batch = {**images(3), "candidate_ids": ids.view(2, 4, -1), "candidate_mask": mask.view(2, 4, -1), "own": own,
             "image_of_text": image_of[:, 0], "contrast_image": image_of}  # fmt: skip
    with torch.no_grad():
        found = RetrievalObjective(model, chunks=chunks)(batch, RetrievalLosses(contrastive=1))["contrastive"]
        grid = model.pixelbert.encode_images(batch["pixel_values"])
        seen = model.image_vectors(grid)
        by_hand = 0.0
        for pair in range(2):
            for place in range(3):
                text = model.text_vectors(
                    batch["candidate_ids"][pair, place][None], batch["candidate_mask"][pair, place][None]
                )
                row = model.contrastive.log_scale.exp() * (seen @ text.T)[:, 0]
                by_hand += float(torch.logsumexp(row, 0) - row[image_of[pair, place]]) / 2  # the text among the images
        said = model.text_vectors(
            batch["candidate_ids"][:, :3].flatten(0, 1), batch["candidate_mask"][:, :3].flatten(0, 1)
        )
        scores = model.contrastive.log_scale.exp() * seen @ said.T
        for text, image in enumerate(image_of.flatten().tolist()):  # and its image among the texts not true of it
            against = torch.cat([scores[image, text][None], scores[image][~own[image]]])
            by_hand += float(torch.logsumexp(against, 0) - scores[image, text]) / 2
    assert float(found) == pytest.approx(by_hand, rel=1e-4)
