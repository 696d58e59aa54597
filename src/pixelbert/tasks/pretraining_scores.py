"""How well a pretrained model looks at the picture: masked words, matches, and retrieval on held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixelbert.data.batches import pad_ids
from pixelbert.data.draws import generator
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.tasks.held_out import HeldOutPairs, recalls
from pixelbert.tasks.masking import IGNORED, mask_tokens
from pixelbert.tasks.pretraining import PretrainingBatches

__all__ = ["HeldOut", "figure_names", "validate", "word_accuracy"]


@dataclass
class HeldOut(HeldOutPairs):
    """Held-out pairs with their masked words; two models see the same masked places (see `HeldOutPairs`)."""

    model: PixelBertForPreTraining
    batches: PretrainingBatches

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
                    ids, labels=labels, attention_mask=self._mask_of(texts[rows]), grid=self._grid_of(images[rows]),
                    places=ids.shape[1],
                )  # fmt: skip
            counts = (labels != IGNORED).sum(1).tolist()
            yield from zip(rows.tolist(), output.mlm_logits.split(counts), strict=True)


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
        figures |= recalls(scores, image_of_text, "itm")
    if held_out.model.contrastive is not None:
        pooled = held_out.pooled_scores()
        figures |= recalls(pooled, held_out.image_of, "dual")
        if shortlist:
            reranked = held_out.rerank(pooled, shortlist)
            figures |= recalls(reranked, held_out.image_of, "rerank", text_to_image_only=True)
    return figures, rows
