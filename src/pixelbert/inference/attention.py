"""Where the network looks for a word: maps over the photo's cells, by the paper's method (Figure 3) and others.

`look` (one word) and `look_all` (every word) take a model with any of the heads, its processor, a photo and a sentence,
and give plain `AttentionMap`s. Nothing of the model is switched meanwhile. The heads of the network are those of
transformers' BERT; the walk through its layers stands in `encode`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pixelbert.errors import UsageError, nearest
from pixelbert.inference.cells import Cells
from pixelbert.inference.sentence_words import Sentence, Word, read_sentence
from pixelbert.inference.texts import whole_number
from pixelbert.model.image_processing import ImageSource, decode_image
from pixelbert.model.pixels import Grid, mean_over

#: Method -> what it shows. The first is the paper's.
METHODS: dict[str, str] = {
    "attention": "attention from the word's pieces to the pixels, in one layer",
    "rollout": "attention followed through the layers from the first to the one named (Abnar and Zuidema 2020)",
    "gradient-match": "attention in one layer, weighted by how much the match score grows with it",
    "gradient-word": "the word hidden; attention in one layer, weighted by how much the word's own score grows with it",
    "occlusion-match": "how much the match score falls when a cell is taken away",
    "occlusion-word": "the word hidden; how much its log-probability falls when a cell is taken away",
    "similarity": "each cell's part in the pooled score of photo and word, as far as it is above the cells' mean",
    "nearness": "how near each cell's pixel is to the word's embedding, as far as it is above the cells' mean",
}
_OCCLUSIONS_AT_ONCE = 64
#: Methods that look at no layer of the Transformer; these, and rollout, at no single head.
LAYERLESS = ("occlusion-match", "occlusion-word", "similarity", "nearness")

#: Hidden vectors [T, S, d] and the mean [T, d] of the pixels that they saw -> a score [T].
Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """How to look. `layer` and `head` count from 1; no head: all heads averaged.

    `rollout` knows no single head; occlusion, similarity and nearness neither layer nor head.

    occlude: cells a side that occlusion takes away together.
    """

    name: str = "attention"
    layer: int = 1
    head: int | None = None
    occlude: int = 1

    def __str__(self) -> str:
        if self.name in ("similarity", "nearness"):
            return self.name
        if self.name.startswith("occlusion"):
            return f"{self.name} {self.occlude}x{self.occlude}"
        return f"{self.name} layer {self.layer}" + ("" if self.head is None else f" head {self.head}")


@dataclass(frozen=True)
class AttentionMap:
    """Where the network looks for one word.

    weights: float64 [rows, columns], not negative, 0 on padding, sum 1; all 0 where the method found nothing (taking
        any cell away only helped, say).
    to_photo: for the method `attention`, the part of the word's whole attention that goes to the photo, the rest
        staying among the words; None for the others.
    """

    word: Word
    method: Method
    weights: np.ndarray
    cells: Cells
    to_photo: float | None = None


@dataclass(frozen=True)
class Photo:
    """A photo as the network sees it: its pixels uint8 [H, W, 3] for drawing, its grid of one, where the cells lie."""

    pixels: np.ndarray
    grid: Grid
    cells: Cells


def look(
    model: Any, processor: Any, photo: Photo | ImageSource, sentence: str, word: str | int, method: Method | None = None
) -> AttentionMap:
    """Where the network looks in a photo for one word of a sentence.

    Args:
        model: `PixelBertForPreTraining` or another of the heads, in evaluation mode, on any device.
        processor: the `PixelBertProcessor` that belongs to it.
        photo: what `see` gave, or a path, bytes, a PIL image or an array.
        word: as in `Sentence.find`: a word or several in a row, or a place from 0.
        method: None: the paper's, attention in the first layer, heads averaged.

    Raises UsageError for a word that is not there, a layer or head that is out of range or means nothing to the method,
    a method that the model's head cannot give; BadImage for a photo that cannot be read.
    """
    looking = Looking(model, processor, photo, sentence)
    return looking.at(word, method or Method())


def look_all(
    model: Any, processor: Any, photo: Photo | ImageSource, sentence: str, method: Method | None = None
) -> list[AttentionMap]:
    """`look` for every word of the sentence that the model reads, in order."""
    looking = Looking(model, processor, photo, sentence)
    places = [place for place, word in enumerate(looking.sentence.words) if word.pieces]
    return [looking.at(place, method or Method()) for place in places]


def see(model: Any, processor: Any, image: ImageSource) -> Photo:
    """Decode, resize and encode a photo once, to look at it for several sentences. Raises BadImage."""
    core = core_of(model)
    pixels = decode_image(image, limits=processor.image_processor.limits)
    batch = processor(images=pixels)
    with torch.no_grad():
        grid = core.encode_images(batch["pixel_values"].to(core.device))
    height, width = batch["image_sizes"][0].tolist()
    return Photo(
        pixels, grid, Cells(grid.shape, cell_stride(core), (height, width), (pixels.shape[0], pixels.shape[1]))
    )


def core_of(model: Any) -> Any:
    """The `PixelBertModel` inside a head, or the model itself."""
    return getattr(model, "pixelbert", model)


def cell_stride(core: Any) -> int:
    """Pixels of the resized photo that a cell of the grid is wide and high."""
    return int(core.visual.stride) * (2 if core.config.visual_pool else 1)


# -- the encoder, with its attention in hand ---------------------------------------------------------------------------


def encode(core: Any, ids: Tensor, grid: Grid, keep: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """Eq. (1) to (3) with every layer's attention kept: what transformers gives with `eager` attention.

    The layers are walked through here rather than by switching `attn_implementation`, which would change the model
    under the feet of other threads. With gradients enabled, they reach the attention of every layer.

    Args:
        ids: int64 [T, L], texts without padding. grid: of T images, or of one for all texts.
        keep: bool [T, N], the pixels that may be looked at; None: the grid's own mask.

    Returns:
        hidden [T, L + N, d] and for each layer the attention [T, heads, L + N, L + N], rows summing to 1.
    """
    words = core.text.embeddings(ids)  # Eq. (4)
    hidden = torch.cat([words, grid.pixels.to(words.dtype).expand(len(ids), -1, -1)], dim=1).detach()  # Eq. (6)
    hidden.requires_grad_(torch.is_grad_enabled())
    keep = (grid.mask if keep is None else keep).expand(len(ids), -1)
    keep = torch.cat([keep.new_ones(ids.shape), keep], dim=1)
    attentions = []
    for layer in core.text.encoder.layer:
        context, attention = _attend(layer.attention.self, hidden, keep)
        attentions.append(attention)
        hidden = layer.attention.output(context, hidden)
        hidden = layer.output(layer.intermediate(hidden), hidden)
    return hidden, attentions


def _attend(block: Any, hidden: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """What one layer gathers, [T, S, d], and its attention; keep bool [T, S] tells which places may be looked at."""
    query, key, value = (
        part(hidden).unflatten(-1, (block.num_attention_heads, -1)).transpose(1, 2)
        for part in (block.query, block.key, block.value)
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    attention = scores.masked_fill(~keep[:, None, None], float("-inf")).softmax(-1)
    return (attention @ value).transpose(1, 2).flatten(2), attention


# -- the methods -------------------------------------------------------------------------------------------------------


class Looking:
    """One sentence before one photo, to ask for several words and methods; what they share is computed once.

    The arguments and errors are those of `look`.
    """

    def __init__(self, model: Any, processor: Any, photo: Photo | ImageSource, sentence: str) -> None:
        if model.training:
            raise UsageError("the model is in training mode; call model.eval() first")
        self.model, self.core = model, core_of(model)
        self.sentence: Sentence = read_sentence(processor, sentence)
        self.photo = photo if isinstance(photo, Photo) else see(model, processor, photo)
        self._ids = self.sentence.ids.to(self.core.device)
        self._mask_id = processor.tokenizer.mask_token_id
        self._word_gradients = lru_cache(maxsize=1)(self._compute_word_gradients)

    def at(self, word: str | int, method: Method) -> AttentionMap:
        """Where the network looks for one word."""
        self._check(method)
        found = self.sentence.find(word)
        weights = self._raw(found, method).detach().double().cpu().numpy().reshape(self.photo.cells.shape)
        weights = np.where(self.photo.cells.valid, weights, 0.0).clip(0.0)
        total = float(weights.sum())
        to_photo = total if method.name == "attention" else None
        return AttentionMap(found, method, weights / total if total > 0 else weights, self.photo.cells, to_photo)

    def _check(self, method: Method) -> None:
        if method.name not in METHODS:
            raise UsageError(f"no method '{method.name}'; {nearest(str(method.name), METHODS)}")
        text = self.core.config.text_config
        for name, value, most in (
            ("layer", method.layer, text.num_hidden_layers),
            ("head", method.head, text.num_attention_heads),
        ):
            if value is None and name == "head":
                continue
            if not 1 <= whole_number(value, name) <= most:
                raise UsageError(f"{name} {value}: the model has {name}s 1 to {most}")
        if method.name in LAYERLESS and method.layer != 1:
            raise UsageError(f"the method '{method.name}' looks at no layer; leave the layer out")
        if method.head is not None and method.name in (*LAYERLESS, "rollout"):
            raise UsageError(f"the method '{method.name}' looks at no single head; leave the head out")
        if method.name == "gradient-match" and method.layer == text.num_hidden_layers:
            raise UsageError(
                f"gradient-match in layer {method.layer}, the last: there [CLS] alone reaches the match score, and no"
                " word's attention has a gradient; choose a layer below"
            )
        if method.occlude < 1:
            raise UsageError(f"occlude {method.occlude}: at least 1 cell a side is taken away")

    def _raw(self, word: Word, method: Method) -> Tensor:
        """The method's values for every cell, [N], of any sign and sum."""
        if method.name == "occlusion-match":
            return self._falls(self._ids, self._match_score(), method.occlude)
        if method.name == "occlusion-word":
            return self._falls(self._hidden(word), self._word_score(word), method.occlude)
        if method.name == "similarity":
            return self._similarity(word)
        if method.name == "nearness":
            return self._nearness(word)
        if method.name == "rollout":
            return self._rows(self._followed[method.layer - 1], word)
        layers = {
            "attention": lambda: self._attentions,
            "gradient-match": lambda: self._match_gradients,
            "gradient-word": lambda: self._word_gradients(word),
        }[method.name]()
        of_heads = self._rows(layers[method.layer - 1], word)
        return of_heads.mean(0) if method.head is None else of_heads[method.head - 1]

    def _rows(self, attention: Tensor, word: Word) -> Tensor:
        """Attention [..., S, S] -> from the word's pieces, their mean, to the pixels [..., N]."""
        return attention[..., list(word.pieces), self._ids.shape[1] :].mean(-2)

    @cached_property
    def _attentions(self) -> list[Tensor]:
        """[heads, S, S] of each layer."""
        with torch.no_grad():
            return [attention[0] for attention in encode(self.core, self._ids, self.photo.grid)[1]]

    @cached_property
    def _followed(self) -> list[Tensor]:
        """Rollout up to each layer, [S, S]; half stays where it is, for the residual connection."""
        followed, steps = torch.eye(self._attentions[0].shape[-1], device=self._ids.device), []
        for attention in self._attentions:
            followed = 0.5 * attention.mean(0) @ followed + 0.5 * followed
            steps.append(followed)
        return steps

    @cached_property
    def _match_gradients(self) -> list[Tensor]:
        return self._weighted(self._ids, self._match_score())

    def _compute_word_gradients(self, word: Word) -> list[Tensor]:
        return self._weighted(self._hidden(word), self._word_score(word))

    def _weighted(self, ids: Tensor, score: Score) -> list[Tensor]:
        """Each layer's attention times the part of its gradient that raises the score, [heads, S, S]."""
        with torch.enable_grad():
            grid = self.photo.grid
            hidden, attentions = encode(self.core, ids, grid)
            gradients = torch.autograd.grad(score(hidden, mean_over(grid.pixels, grid.mask)).sum(), attentions)
        return [(a.detach() * g.clamp(min=0))[0] for a, g in zip(attentions, gradients, strict=True)]

    @torch.no_grad()
    def _similarity(self, word: Word) -> Tensor:
        """The pooled score is linear in the mean pixel, so it is the mean of a part for each cell; [N], mean 0.

        The text is the word alone: no other word of the sentence, whose objects lie elsewhere, comes into it.
        """
        head = getattr(self.model, "contrastive", None)
        if head is None:
            raise UsageError(
                "the method 'similarity' needs a model with pooled vectors: "
                "train with contrastive_size=256 loss.contrastive=1"
            )
        alone = torch.cat([self._ids[:, :1], self._ids[:, list(word.pieces)], self._ids[:, -1:]], dim=1)
        text = head.text_vectors(self.core(alone).last_hidden_state, torch.ones_like(alone))[0]
        grid = self.photo.grid
        parts = head.image(grid.pixels[0]).float() @ text
        return parts - parts[grid.mask[0]].mean()

    @torch.no_grad()
    def _nearness(self, word: Word) -> Tensor:
        """Cosines of the cells' pixels with the word's embedding, what goes into the Transformer; [N], mean 0.

        Pixels come to lie where their words do by the loss `align`. Directions start at the middle of all embeddings
        where the model knows it (`WordPixels`).
        """
        words, grid = self.core.text.embeddings(self._ids)[0, list(word.pieces)].float(), self.photo.grid
        known = getattr(self.model, "word_pixels", None)
        middle = words.new_zeros(words.shape[-1]) if known is None else known.middle
        words, pixels = (normalize(x - middle, dim=-1) for x in (words, grid.pixels[0].float()))
        nearness = (pixels @ words.T).mean(-1)
        return nearness - nearness[grid.mask[0]].mean()

    def _falls(self, ids: Tensor, score: Score, side: int) -> Tensor:
        """The fall of a score for each cell, [N]: the mean over the squares taken away that hold the cell."""
        grid = self.photo.grid
        squares = _squares(self.photo.cells, side).to(ids.device)
        masks = torch.cat([grid.mask, grid.mask & ~squares])  # the whole photo first
        with torch.no_grad():
            scores = torch.cat([
                score(
                    encode(self.core, ids.expand(len(part), -1), grid, part)[0],
                    mean_over(grid.pixels.expand(len(part), -1, -1), part),
                )
                for part in masks.split(_OCCLUSIONS_AT_ONCE)
            ]).float()  # fmt: skip
        weights = squares.float()
        return (weights * (scores[0] - scores[1:])[:, None]).sum(0) / weights.sum(0).clamp(min=1)

    def _hidden(self, word: Word) -> Tensor:
        """The sentence with [MASK] in place of the word's pieces, [1, L]."""
        ids = self._ids.clone()
        ids[:, list(word.pieces)] = self._mask_id
        return ids

    def _word_score(self, word: Word) -> Score:
        return lambda hidden, mean_pixel: word_score(self.model, hidden, mean_pixel, self._ids, word)

    def _match_score(self) -> Score:
        """How well sentence and photo fit, [T]: log-odds, score, or the answer's logit."""
        model, kind = self.model, type(self.model).__name__
        if hasattr(model, "itm_head"):
            return lambda hidden, _: model.itm_head(hidden[:, 0]) @ hidden.new_tensor([-1.0, 1.0])
        if kind == "PixelBertForImageAndTextRetrieval":
            return lambda hidden, _: model.head(hidden[:, 0])[:, 0]
        if kind == "PixelBertForQuestionAnswering":
            with torch.no_grad():
                hidden, _ = encode(self.core, self._ids, self.photo.grid)
                answer = int(model.head(hidden[0, 0]).argmax())  # the one given to the whole photo
            return lambda hidden, _: model.head(hidden[:, 0])[:, answer]
        raise UsageError(f"methods of the match score need a match, retrieval or answer head, which {kind} lacks")


def _squares(cells: Cells, side: int) -> Tensor:
    """Every square of `side` x `side` cells of the photo (less where it is not that large): bool [squares, N]."""
    rows, columns = cells.valid_shape
    high, wide = min(side, rows), min(side, columns)
    squares = torch.zeros(rows - high + 1, columns - wide + 1, *cells.shape, dtype=torch.bool)
    for i in range(rows - high + 1):
        for j in range(columns - wide + 1):
            squares[i, j, i : i + high, j : j + wide] = True
    return squares.flatten(2).flatten(0, 1)


def word_score(model: Any, hidden: Tensor, mean_pixel: Tensor, ids: Tensor, word: Word) -> Tensor:
    """The log-probability of a hidden word, [T]: the mean over its pieces.

    hidden: [T, S, d] from `encode` with the word hidden; mean_pixel: [T, d], of the pixels it saw; ids: int64 [1, L]
    with the word itself. Raises UsageError for a model without a head for hidden words.
    """
    if not hasattr(model, "mlm_head"):
        raise UsageError(
            "methods that hide the word need a pretraining run (pixelbert train pretrain-small), "
            f"not {type(model).__name__}"
        )
    pieces = list(word.pieces)
    scores = model.word_scores(hidden[:, pieces], mean_pixel[:, None]).float().log_softmax(-1)
    return scores.gather(-1, ids[:, pieces, None].expand(len(scores), -1, -1))[..., 0].mean(-1)
