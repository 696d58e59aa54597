"""How well a pretrained model looks at the picture: masked words, matches, and retrieval on held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pixelbert.data.batches import pad_ids
from pixelbert.data.draws import generator
from pixelbert.errors import DataError
from pixelbert.metrics import recall_scores
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.pixels import Grid
from pixelbert.tasks.masking import IGNORED, mask_tokens
from pixelbert.tasks.matching import draw_foreign
from pixelbert.tasks.pretraining import PretrainingBatches


class Progress(Protocol):
    """Told how many of how many are done."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def silent(what: str, done: int, total: int) -> None:
    """Reports nothing."""


@dataclass
class HeldOut:
    """Held-out images with their captions, their grids computed once, and everything scored from them.

    `images` rows of the split; `records` its captions kept, `image_of` their place among `images`. All draws are keyed
    by `seed`, so two models see the same masked places, the same shuffled images and the same false captions. The model
    is put into evaluation mode.

    Raises DataError when there are fewer than two images: nothing could be told apart.
    """

    model: PixelBertForPreTraining
    batches: PretrainingBatches
    images: list[int]
    captions_per_image: int = 5
    seed: int = 1234
    batch_size: int = 256
    encoder_dtype: torch.dtype | None = None
    progress: Progress = silent
    records: list[int] = field(init=False)
    image_of: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        split = self.batches.records
        kept = [list(split.records_of(i))[: self.captions_per_image] for i in self.images]
        self.records = [r for rows in kept for r in rows]
        self.image_of = np.repeat(np.arange(len(kept)), [len(rows) for rows in kept])
        self._rows = np.array(self.records, dtype=np.int64)
        if len(self.images) < 2 or not self.records:
            raise DataError(f"{len(self.images)} held-out image(s) with {len(self.records)} text(s): 2 are needed")
        self.texts = self.batches.tokenize([split.text(r) for r in self.records])
        self.model.eval()
        self.device = next(self.model.parameters()).device
        self.grid = self._grids()

    @torch.no_grad()
    def _grids(self) -> Grid:
        parts, step = [], 32
        for start in range(0, len(self.images), step):
            chosen = self.images[start : start + step]
            batch = self.batches.image_batch(chosen, [0] * len(chosen))
            with self._cast():
                parts.append(self.model.pixelbert.encode_images(
                    batch["pixel_values"].to(self.device), batch["image_sizes"].to(self.device)
                ))  # fmt: skip
            self.progress("images", start + len(chosen), len(self.images))
        return stack_grids(parts)

    # -- masked words ------------------------------------------------------------------------------------------------

    def shuffled(self) -> np.ndarray:
        """Another image for each image: a random cycle, so none keeps its own."""
        order = generator(self.seed, "shuffle").permutation(len(self.images))
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)
        return other

    def masked_words(self) -> list[dict[str, Any]]:
        """One row per masked place: record, place, true piece, the pieces filled in with the true and another image."""
        other = self.shuffled()
        with_true = self._fill(self.image_of, "masked words")
        with_other = self._fill(other[self.image_of], "masked words, images shuffled")
        split, rows = self.batches.records, []
        for i, (_, labels) in enumerate(self.masked):
            for n, place in enumerate(np.flatnonzero(labels != IGNORED)):
                rows.append({
                    "record": split.record_id(self.records[i]), "place": int(place), "word": int(labels[place]),
                    "predicted": int(with_true[i][n]), "predicted_shuffled": int(with_other[i][n]),
                })  # fmt: skip
        return rows

    @cached_property
    def masked(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each text the ids with pieces hidden, and the labels: the true piece where hidden, else -100."""
        draws = (generator(self.seed, "val-mask", record) for record in self.records)
        # always 15 %, 80/10/10, single pieces
        return [mask_tokens(ids, self.batches.vocabulary, d) for ids, d in zip(self.texts, draws, strict=True)]

    def _fill(self, images: np.ndarray, what: str) -> list[np.ndarray]:
        filled: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(self.texts)
        for text, logits in self.word_logits(np.arange(len(self.texts)), images, what):
            filled[text] = logits.argmax(-1).cpu().numpy()
        return filled

    @torch.no_grad()
    def word_logits(self, texts: np.ndarray, images: np.ndarray, what: str = "words") -> Iterator[tuple[int, Tensor]]:
        """(place in `texts`, logits [masked, V] of its masked pieces) of the pairs (text, image), in any order."""
        masked = [self.masked[int(text)] for text in texts]
        for rows in self._by_length([len(ids) for ids, _ in masked], what):
            labels = pad_ids([masked[i][1] for i in rows], IGNORED).to(self.device)
            ids = pad_ids([masked[i][0] for i in rows]).to(self.device)
            with self._cast():
                output = self.model(
                    ids, labels=labels, attention_mask=self._mask_of(texts[rows]), grid=self._grid_of(images[rows])
                )
            counts = (labels != IGNORED).sum(1).tolist()
            yield from zip(rows.tolist(), output.mlm_logits.split(counts), strict=True)

    # -- matches -----------------------------------------------------------------------------------------------------

    def itm_accuracy(self) -> float:
        """Percent right over every (image, own caption) and (image, random caption of another image), unmasked."""
        false = np.array([self.false_caption(i) for i in range(len(self.records))])
        own = self.match_scores(self.image_of, np.arange(len(self.records)), "matches")
        foreign = self.match_scores(self.image_of, false, "mismatches")
        return 100.0 * float(((own > 0).mean() + (foreign <= 0).mean()) / 2)

    def false_caption(self, i: int) -> int:
        """A random caption of another image, not equal to one of this image's own: its place among `records`."""
        draw = generator(self.seed, "val-negative", self.records[i])
        image = self.images[self.image_of[i]]
        return self._places[draw_foreign(self.batches.records, image, draw, self._rows)]

    @cached_property
    def _places(self) -> dict[int, int]:
        """Of each record kept its place among `records`."""
        return {record: place for place, record in enumerate(self.records)}

    @torch.no_grad()
    def match_scores(self, images: np.ndarray, texts: np.ndarray, what: str = "pairs") -> np.ndarray:
        """ITM log-odds float64 of the pairs (image, text), places among `images` and `records`."""
        scores = np.empty(len(texts))
        for rows in self._by_length([len(self.texts[t]) for t in texts], what):
            chosen = texts[rows]
            ids = pad_ids([self.texts[t] for t in chosen]).to(self.device)
            with self._cast():
                output = self.model.pixelbert(
                    ids, attention_mask=self._mask_of(chosen), grid=self._grid_of(images[rows])
                )
                logits = self.model.itm_head(output.last_hidden_state[:, 0]).float().cpu().double()
            scores[rows] = (logits[:, 1] - logits[:, 0]).numpy()
        return scores

    # -- retrieval ---------------------------------------------------------------------------------------------------

    def exact_scores(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """ITM scores [images, texts] of the first `count` images and all their captions kept, and `image_of_text`."""
        texts = np.flatnonzero(self.image_of < count)
        count = min(count, len(self.images))
        images = np.repeat(np.arange(count), len(texts))
        scores = self.match_scores(images, np.tile(texts, count), "exact matches")
        return scores.reshape(count, len(texts)), self.image_of[texts]

    @torch.no_grad()
    def pooled_scores(self) -> np.ndarray:
        """Cosine of the pooled vectors, float32 [images, texts]."""
        with self._cast():
            places = np.array_split(np.arange(len(self.images)), -(-len(self.images) // self.batch_size))
            images = torch.cat([self.model.image_vectors(self._grid_of(part)).float() for part in places])
            texts = torch.empty(len(self.texts), images.shape[1], device=self.device)
            for rows in self._by_length([len(t) for t in self.texts], "text vectors"):
                ids = pad_ids([self.texts[i] for i in rows]).to(self.device)
                texts[rows] = self.model.text_vectors(ids, self._mask_of(rows)).float()
        return (images.float() @ texts.T).cpu().numpy()

    def rerank(self, pooled: np.ndarray, shortlist: int) -> np.ndarray:
        """For every text its `shortlist` best images by pooled vectors, put in order by ITM score, before the rest."""
        shortlist = min(shortlist, len(self.images))
        best = np.argpartition(-pooled, shortlist - 1, axis=0)[:shortlist]  # [shortlist, texts]
        texts = np.tile(np.arange(pooled.shape[1]), shortlist)
        match = self.match_scores(best.ravel(), texts, "re-ranking").reshape(best.shape)
        scores = pooled.astype(np.float64)
        lift = 1 + scores.max() - match.min()
        np.put_along_axis(scores, best, match + lift, axis=0)
        return scores

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _by_length(self, lengths: Sequence[int], what: str) -> Iterator[np.ndarray]:
        """Rows in batches of like length, so that little is padded."""
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]
            self.progress(what, min(start + self.batch_size, len(order)), len(order))

    def _mask_of(self, texts: Sequence[int] | np.ndarray) -> Tensor:
        return pad_ids([np.ones_like(self.texts[i]) for i in texts]).to(self.device)

    def _grid_of(self, images: np.ndarray) -> Grid:
        return self.grid.select(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))

    def _cast(self) -> Any:
        return torch.autocast(self.device.type, self.encoder_dtype) if self.encoder_dtype else nullcontext()


def stack_grids(parts: Sequence[Grid]) -> Grid:
    """Grids of several batches as one; cells beyond a part's own are masked, in raster order of the largest."""
    height, width = max(p.shape[0] for p in parts), max(p.shape[1] for p in parts)
    pixels, masks = [], []
    for part in parts:
        h, w = part.shape
        images, size = part.pixels.shape[0], part.pixels.shape[-1]
        full = part.pixels.new_zeros(images, height, width, size)
        full[:, :h, :w] = part.pixels.view(images, h, w, size)
        mask = part.mask.new_zeros(images, height, width)
        mask[:, :h, :w] = part.mask.view(images, h, w)
        pixels.append(full.flatten(1, 2))
        masks.append(mask.flatten(1))
    return Grid(torch.cat(pixels), torch.cat(masks), (height, width))


def word_accuracy(rows: Sequence[dict[str, Any]], key: str = "predicted") -> float:
    """Percent of masked places filled right."""
    return 100.0 * sum(row[key] == row["word"] for row in rows) / max(1, len(rows))


def figure_names(exact: bool, pooled: bool, shortlist: bool = False) -> list[str]:
    """The names of the figures that `validate` gives, with and without its three options."""
    names = ["mlm_accuracy", "mlm_accuracy_shuffled", "itm_accuracy", "mlm_gain_shuffled"]
    for name, wanted, directions in (
        ("itm", exact, ("t2i", "i2t")),
        ("dual", pooled, ("t2i", "i2t")),
        ("rerank", pooled and shortlist, ("t2i",)),
    ):
        names += [f"{name}_{direction}_r{k}" for direction in directions for k in (1, 5, 10) if wanted]
    return names


def validate(
    held_out: HeldOut, exact_images: int = 0, shortlist: int = 0
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The figures of a validation, percent, and the masked words one by one."""
    rows = held_out.masked_words()
    figures = {
        "mlm_accuracy": word_accuracy(rows),
        "mlm_accuracy_shuffled": word_accuracy(rows, "predicted_shuffled"),
        "itm_accuracy": held_out.itm_accuracy(),
    }
    figures["mlm_gain_shuffled"] = figures["mlm_accuracy"] - figures["mlm_accuracy_shuffled"]
    if exact_images:
        scores, image_of_text = held_out.exact_scores(exact_images)
        figures |= _recalls(scores, image_of_text, "itm")
    if held_out.model.contrastive is not None:
        pooled = held_out.pooled_scores()
        figures |= _recalls(pooled, held_out.image_of, "dual")
        if shortlist:
            reranked = held_out.rerank(pooled, shortlist)
            figures |= _recalls(reranked, held_out.image_of, "rerank", text_to_image_only=True)
    return figures, rows


def _recalls(
    scores: np.ndarray, image_of_text: np.ndarray, name: str, text_to_image_only: bool = False
) -> dict[str, float]:
    recalls = recall_scores(scores, image_of_text.tolist())
    figures = {f"{name}_t2i_r{k}": float(v) for k, v in recalls.image_retrieval.items()}
    if not text_to_image_only:
        figures |= {f"{name}_i2t_r{k}": float(v) for k, v in recalls.text_retrieval.items()}
    return figures
