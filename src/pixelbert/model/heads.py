"""The heads of the downstream tasks (Section 4.2), each on the [CLS] vector: one small class a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import ModelOutput

from pixelbert.model.config import PixelBertConfig
from pixelbert.model.contrastive import ContrastiveHead
from pixelbert.model.modeling import PixelBertModel, PixelBertPreTrainedModel, PooledVectors
from pixelbert.model.precision import in_float32
from pixelbert.model.word_pixels import WordPixels


@dataclass
class PixelBertHeadOutput(ModelOutput):
    """logits of the head; loss (a mean) when labels were given; hidden_states and attentions when asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def cls_alone(config: PixelBertConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `PixelBertModel` with [CLS] alone asked for, unless hidden states or attentions are."""
    asked = ("output_hidden_states", "output_attentions")
    whole = any(inputs.get(name) or getattr(config, name, False) for name in asked)
    return inputs if whole else {"places": 1, **inputs}


class PixelBertForQuestionAnswering(PixelBertPreTrainedModel):
    """An answer among a list, by an MLP on [CLS] with binary cross-entropy; the list is `config.id2label`."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.pixelbert = PixelBertModel(config)
        size = config.hidden_size
        self.head = nn.Sequential(
            nn.Linear(size, 4 * size),
            nn.ReLU(),
            nn.Dropout(config.head_dropout),
            nn.Linear(4 * size, config.num_labels),
        )
        self.post_init()

    @torch.no_grad()
    def start_from_prior(self, odds: Tensor) -> None:
        """Begin at each answer's log-odds [answers] whatever is asked: the last bias."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        last.bias.copy_(odds)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> PixelBertHeadOutput:
        """logits [T, answers]. `labels` [T, answers] are soft targets in 0..1. `inputs` as in `PixelBertModel`."""
        output = self.pixelbert(input_ids, **cls_alone(self.config, inputs))
        logits = in_float32(self.head, output.last_hidden_state[:, 0])
        loss = None
        if labels is not None:  # summed over answers, mean over questions
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum") / len(labels)
        return PixelBertHeadOutput(loss, logits, output.hidden_states, output.attentions)


class PixelBertForImagesAndTextClassification(PixelBertPreTrainedModel):
    """A statement about `config.num_images` pictures, true or false: one pass a picture, their [CLS] put together."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.pixelbert = PixelBertModel(config)
        size = config.num_images * config.hidden_size
        self.image_type = nn.Embedding(config.num_images, config.hidden_size) if config.image_type else None
        self.head = nn.Sequential(
            nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size), nn.Dropout(config.head_dropout),
            nn.Linear(size, config.num_labels),
        )  # fmt: skip
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_of_text: Tensor | None = None,
        grid: Any = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> PixelBertHeadOutput:
        """logits [T, labels].

        Args:
            image_of_text: int64 [T, num_images], which images each statement is about; None: its pictures follow one
                another (left of the first statement, right of the first, left of the second, ...).
            labels: int64 [T].

        The other arguments are those of `PixelBertModel`.
        """
        texts, count = input_ids.shape[0], self.config.num_images
        if grid is None:
            assert pixel_values is not None
            grid = self.pixelbert.encode_images(pixel_values, image_sizes)
        if image_of_text is None:
            image_of_text = torch.arange(texts * count, device=input_ids.device).view(texts, count)
        copies = grid.select(image_of_text.flatten())  # statement by statement, picture by picture
        if self.image_type is not None:
            copies.pixels = copies.pixels + self.image_type.weight.repeat(texts, 1)[:, None]
        repeat = lambda x: None if x is None else x.repeat_interleave(count, dim=0)  # noqa: E731
        kwargs = cls_alone(self.config, kwargs)
        output = self.pixelbert(repeat(input_ids), attention_mask=repeat(attention_mask), grid=copies, **kwargs)
        logits = in_float32(self.head, output.last_hidden_state[:, 0].reshape(texts, -1))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return PixelBertHeadOutput(loss, logits, output.hidden_states, output.attentions)


class PixelBertForImageAndTextRetrieval(PooledVectors, PixelBertPreTrainedModel):
    """How well a text fits an image: one score on [CLS], started from the ITM head.

    With `config.contrastive_size` it keeps pooled vectors: they give the shortlist of a large ranking (beyond the
    paper).
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = ["mlm_head", "itm_head"]

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.pixelbert = PixelBertModel(config)
        self.head = nn.Linear(config.hidden_size, 1)
        self.contrastive = ContrastiveHead(config) if config.contrastive_size else None
        if config.match_fitted:
            self.register_buffer("match_fit", torch.tensor([1.0, 0.0, 0.0]))  # of [CLS], of the cosine, constant
        self.word_pixels = WordPixels(config) if config.match_fitted and config.match_words else None
        self.post_init()

    def match_scores(self, cls: Tensor) -> Tensor:
        """Log-odds of a match [T], from the [CLS] vectors [T, d]."""
        return in_float32(self.head, cls)[:, 0]

    @torch.no_grad()
    def start_from_itm(self, weight: Tensor, bias: Tensor) -> None:
        """Score = log-odds of the ITM head: its match row minus its mismatch row. weight [2, d], bias [2]."""
        self.head.weight.copy_(weight[1:] - weight[:1])
        self.head.bias.copy_(bias[1:] - bias[:1])

    def forward(self, input_ids: Tensor, candidates: int | None = None, **inputs: Any) -> PixelBertHeadOutput:
        """logits [T], higher fits better. `inputs` as in `PixelBertModel`.

        With `candidates` n the texts come in groups of n, the true one first, and `loss` is the softmax cross-entropy
        over each group.
        """
        output = self.pixelbert(input_ids, **cls_alone(self.config, inputs))
        logits = in_float32(self.head, output.last_hidden_state[:, 0])[:, 0]
        loss = None
        if candidates is not None:
            groups = logits.float().view(-1, candidates)
            loss = F.cross_entropy(groups, groups.new_zeros(len(groups), dtype=torch.long))
        return PixelBertHeadOutput(loss, logits, output.hidden_states, output.attentions)
