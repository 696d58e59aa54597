"""Held-out images with their captions, and all that is scored from pairs of them: matches, recall, shortlists."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pixelbert.data.batches import Batch, pad_ids
from pixelbert.data.draws import generator
from pixelbert.errors import DataError
from pixelbert.metrics import recall_scores
from pixelbert.model.pixels import Grid
from pixelbert.model.word_pixels import inner_pieces
from pixelbert.tasks.calibration import Stated
from pixelbert.tasks.grids import Grids
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.matching import draw_foreign
from pixelbert.tasks.objective import finite, match_log_odds, word_similarity
from pixelbert.tasks.task import Progress, Scoring, silent

_KEPT_FROM, _LONG = 20_000, 60.0  # pairs, seconds; what is less of both is scored again after a stop
_EXACT, _OF_A_TEXT, _OF_AN_IMAGE = "exact matches", "re-ranking images of a text", "re-ranking texts of an image"
_RANKINGS = (_EXACT, _OF_A_TEXT, _OF_AN_IMAGE)
_Held = TypeVar("_Held", bound="HeldOutPairs")
_IMAGES = 32  # a forward pass of the CNN


@dataclass
class HeldOutPairs:
    """Held-out images with their captions, their grids computed once, and every score of a pair.

    `images` rows of the split; `records` its captions kept, `image_of` their place among `images`. All draws are keyed
    by `seed`, so two models see the same shuffled images and the same false captions. The model is put into evaluation
    mode. `partial`: a folder where the scores of long rankings are kept while they grow, to go on after a stop.
    `encode`: the pixels of images by their rows, instead of the CNN's (see `Scoring`). `middle_view`: an image's pooled
    vector is the mean of its own and that of its middle. A network trained on random crops has seen things larger than
    they stand in whole photos; the middle shows them at that size.

    Raises DataError when there are fewer than two images: nothing could be told apart.
    """

    model: Any
    batches: Inputs
    images: list[int]
    captions_per_image: int = 5
    seed: int = 1234
    batch_size: int = 256
    encoder_dtype: torch.dtype | None = None
    progress: Progress = silent
    partial: Path | None = None
    announce: Callable[[str], None] = field(default=lambda text: None)
    encode: Callable[[Batch], Grid] | None = None
    middle_view: bool = False
    records: list[int] = field(init=False)
    image_of: np.ndarray = field(init=False)

    @classmethod
    def of(
        cls: type[_Held], model: Any, batches: Any, count: int, scoring: Scoring, captions_per_image: int | None = None
    ) -> _Held:
        """The first `count` images of a split, scored as `scoring` says."""
        return cls(
            model, batches, list(range(count)), captions_per_image or scoring.captions_per_image, scoring.seed,
            scoring.batch_size, scoring.encoder_dtype, scoring.progress, scoring.partial, scoring.announce,
            scoring.encode, scoring.middle_view,
        )  # fmt: skip

    def __post_init__(self) -> None:
        split = self.batches.records
        kept = [list(split.records_of(i))[: self.captions_per_image] for i in self.images]
        self.records = [r for rows in kept for r in rows]
        self.image_of = np.repeat(np.arange(len(kept)), [len(rows) for rows in kept])
        self._rows = np.array(self.records, dtype=np.int64)
        self._ranked = np.empty(0, dtype=np.int64), np.empty(0)  # pairs ranked, image * texts + text, and their scores
        if len(self.images) < 2 or not self.records:
            raise DataError(f"{len(self.images)} held-out image(s) with {len(self.records)} text(s): 2 are needed")
        self.texts = self.batches.tokenize([split.text(r) for r in self.records])
        self.model.eval()
        self.device = next(self.model.parameters()).device
        self.grids = Grids(self._encoded(), len(self.images))

    @torch.no_grad()
    def _encoded(self) -> Iterator[Grid]:
        for start in range(0, len(self.images), _IMAGES):
            chosen = self.images[start : start + _IMAGES]
            with self._cast():
                yield self._encode(chosen)
            self.progress("images", start + len(chosen), len(self.images))

    def _encode(self, chosen: list[int]) -> Grid:
        if self.encode is not None:
            return self.encode({"image_rows": torch.tensor(chosen)})
        batch = self.batches.image_batch(chosen, [0] * len(chosen))
        grid: Grid = self.model.pixelbert.encode_images(
            batch["pixel_values"].to(self.device), batch["image_sizes"].to(self.device)
        )
        return grid

    def shuffled(self) -> np.ndarray:
        """Another image for each image: a random cycle, so none keeps its own."""
        order = generator(self.seed, "shuffle").permutation(len(self.images))
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)
        return other

    # -- matches -----------------------------------------------------------------------------------------------------

    def itm_accuracy(self) -> float:
        """Percent right over every (image, own caption) and (image, random caption of another image), unmasked."""
        own, foreign = self.matches
        return 100.0 * float(((own > 0).mean() + (foreign <= 0).mean()) / 2)

    @cached_property
    def matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-odds float64 [texts] of each text's image with it, and with a random caption of another image."""
        false = np.array([self.false_caption(i) for i in range(len(self.records))])
        own = self.match_scores(self.image_of, np.arange(len(self.records)), "matches")
        return own, self.match_scores(self.image_of, false, "mismatches")

    def stated(self) -> Stated:
        """`matches`, text by text: as many true ones as false ones."""
        log_odds = np.stack(self.matches, axis=1)
        return Stated(log_odds.ravel(), np.tile([1.0, 0.0], len(log_odds)), shifted=True)

    def false_caption(self, i: int) -> int:
        """A random caption of another image, not equal to one of this image's own: its place among `records`."""
        draw = generator(self.seed, "val-negative", self.records[i])
        image = self.images[self.image_of[i]]
        return self._places[draw_foreign(self.batches.records, image, draw, self._rows)]

    @cached_property
    def _places(self) -> dict[int, int]:
        """Of each record kept its place among `records`."""
        return {record: place for place, record in enumerate(self.records)}

    def match_scores(self, images: np.ndarray, texts: np.ndarray, what: str = "pairs") -> np.ndarray:
        """Log-odds of a match, float64, of the pairs (image, text), places among `images` and `records`.

        With `partial`, a long scoring is kept as it grows: after a stop only pairs without a score are scored.
        """
        lengths = np.array([len(self.texts[t]) for t in texts])
        middle = np.argsort(lengths, kind="stable")[len(texts) // 2 :][: self.batch_size]
        cost = self._cost(what, len(texts), images[middle], texts[middle])
        scores = self._kept((len(texts),), cost, what, images, texts)
        missing = np.flatnonzero(np.isnan(scores))
        self._announce(what, len(missing), cost)
        for rows in self._by_length(lengths[missing], what):
            scores[missing[rows]] = self._match(images[missing[rows]], texts[missing[rows]])
        return np.array(scores, dtype=np.float64)

    @torch.no_grad()
    def _match(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        ids = pad_ids([self.texts[t] for t in texts]).to(self.device)
        with self._cast():
            cosine = None
            if self.model.config.match_fitted and self.model.contrastive is not None:
                of_images, of_texts = self.pooled_vectors
                cosine = (of_images[images] * of_texts[texts]).sum(-1)
            scores = match_log_odds(self.model, ids, self._mask_of(texts), self._grid_of(images), cosine)
        return finite(scores.float().cpu()).double().numpy()

    @torch.no_grad()
    def word_scores(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """float64, of the pairs (image, text): how well each text's words are found among the image's pixels."""
        scores = np.empty(len(texts))
        for rows in self._by_length([len(self.texts[t]) for t in texts], "words"):
            ids, mask = pad_ids([self.texts[t] for t in texts[rows]]).to(self.device), self._mask_of(texts[rows])
            scores[rows] = word_similarity(self.model, ids, mask, self._grid_of(images[rows])).cpu().numpy()
        return scores

    @torch.no_grad()
    def learn_words(self) -> None:
        """Give the model's `word_pixels` what these texts and images say of words: how rare each is, and how well it is
        usually found."""
        pieces, total = [], torch.zeros(self.model.config.hidden_size, dtype=torch.float64)
        for rows in self._by_length([len(t) for t in self.texts], "words"):
            ids, inner = pad_ids([self.texts[t] for t in rows]).to(self.device), inner_pieces(self._mask_of(rows))
            total += self.model.pixelbert.text.embeddings(ids)[inner].float().sum(0).cpu()
            pieces.append(ids[inner])
        found = torch.cat(pieces)
        self.model.word_pixels.count(found, len(self.texts), total / max(len(found), 1))
        middle = torch.tensor([[1 + len(found) // (2 * len(self.texts))]], device=self.device)  # of an average text
        every = torch.arange(self.model.config.text_config.vocab_size, device=self.device)[:, None]
        alone = self.model.pixelbert.text.embeddings(every, position_ids=middle)[:, 0]
        self.model.word_pixels.expect(alone, (self._grid_of(part) for part in self._image_parts()))

    def _cost(self, what: str, pairs: int, images: np.ndarray, texts: np.ndarray) -> _Cost:
        """What scoring so many pairs takes, told from one batch of middling length, these images and texts; of a few
        pairs that are no ranking it is not measured."""
        if not pairs or (what not in _RANKINGS and pairs < _KEPT_FROM):
            return _Cost(pairs)
        few = max(1, min(len(texts), pairs // 8))
        self._match(images[: min(8, few)], texts[: min(8, few)])  # the first call is slower than the others
        started = time.monotonic()
        self._match(images[:few], texts[:few])
        return _Cost(pairs, (time.monotonic() - started) / few)

    def _announce(self, what: str, pairs: int, cost: _Cost) -> None:
        """Before it starts: how many pairs are still to be scored, and the time that makes likely."""
        if pairs and cost.seconds is not None:
            self.announce(f"{what}: {pairs:,} pairs to score, {_duration(pairs * cost.seconds / 60)}")

    def _kept(self, shape: tuple[int, ...], cost: _Cost, what: str, *arrays: np.ndarray) -> np.ndarray:
        """A place for scores float32, NaN where there is none yet: a file when they cost much and `partial` is given.

        `what` and `arrays` say which pairs they are.
        """
        if self.partial is None or not cost.is_much:
            return np.full(shape, np.nan, dtype=np.float32)
        digest = hashlib.sha256(
            f"{what} {shape} {self.seed} {self.captions_per_image} {self.middle_view} {self.records}".encode()
        )
        for array in (*arrays, self.image_of, *self.texts):
            digest.update(f"{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        for part in self.grids.cells.split(1 << 20):
            digest.update(part.cpu().numpy().tobytes())
        for name, tensor in self.model.state_dict().items():  # scores of another model are of no use
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        self.partial.mkdir(parents=True, exist_ok=True)
        path = self.partial / f"{digest.hexdigest()[:16]}.npy"
        if not path.exists():
            temporary = path.with_suffix(".writing.npy")
            np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)[...] = np.nan
            temporary.rename(path)
        return np.load(path, mmap_mode="r+")

    # -- retrieval ---------------------------------------------------------------------------------------------------

    def exact_scores(self, count: int, fold: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """ITM scores float32 [images, texts] of the first `count` images and all their captions kept, and
        `image_of_text`.

        With `fold` each so many images are scored with their own captions alone, and -inf stands elsewhere. With
        `partial`, only blocks of pairs that have no score yet are scored after a stop.
        """
        count, what = min(count, len(self.images)), _EXACT
        texts = np.flatnonzero(self.image_of < count)
        blocks = list(self._blocks(count, texts, fold or count))
        cost = self._cost(what, sum(b.size for b in blocks), *blocks[len(blocks) // 2].pairs(texts))
        scores = self._kept((count, len(texts)), cost, what, np.array([fold]))
        left = [b for b in blocks if np.isnan(scores[b.images, b.places]).any()]
        total, done = sum(b.size for b in left), 0
        self._announce(what, total, cost)
        for block in left:
            match = self._match(*block.pairs(texts))
            scores[block.images, block.places] = match.reshape(-1, len(block.places))
            done += block.size
            self.progress(what, done, total)
        result = np.array(scores)
        result[np.isnan(result)] = -np.inf
        return result, self.image_of[texts]

    def _blocks(self, count: int, texts: np.ndarray, fold: int) -> Iterator[_Block]:
        """All pairs of `count` images with `texts`, inside each `fold` images: texts of like length, little padding."""
        lengths = np.array([len(self.texts[t]) for t in texts])
        wide = max(1, round(self.batch_size**0.5))
        high = max(1, self.batch_size // wide)
        for first in range(0, count, fold):
            last = min(first + fold, count)
            own = np.flatnonzero((self.image_of[texts] >= first) & (self.image_of[texts] < last))
            own = own[np.argsort(lengths[own], kind="stable")]
            for column in range(0, len(own), wide):
                for row in range(first, last, high):
                    yield _Block(slice(row, min(row + high, last)), own[column : column + wide])

    def pooled_scores(self) -> np.ndarray:
        """Cosine of the pooled vectors, float32 [images, texts]."""
        images, texts = self.pooled_vectors
        return (images @ texts.T).cpu().numpy()

    @cached_property
    @torch.no_grad()
    def pooled_vectors(self) -> tuple[Tensor, Tensor]:
        """Unit vectors float32 of all images and of all texts alone, each computed once."""
        with self._cast():
            images = torch.cat([self.model.image_vectors(self._grid_of(p)).float() for p in self._image_parts()])
            if self.middle_view:
                images = F.normalize(images + self._middles(), dim=-1)
            texts = torch.empty(len(self.texts), images.shape[1], device=self.device)
            for rows in self._by_length([len(t) for t in self.texts], "text vectors"):
                ids = pad_ids([self.texts[i] for i in rows]).to(self.device)
                texts[rows] = self.model.text_vectors(ids, self._mask_of(rows)).float()
        return images, texts

    def _middles(self) -> Tensor:
        """Pooled vectors of the images' middles."""
        found = []
        for start in range(0, len(self.images), _IMAGES):
            batch = self.batches.middle_batch(self.images[start : start + _IMAGES])
            sizes = batch["image_sizes"].to(self.device)
            grid = self.model.pixelbert.encode_images(batch["pixel_values"].to(self.device), sizes)
            found.append(self.model.image_vectors(grid).float())
            self.progress("middles", start + len(sizes), len(self.images))
        return torch.cat(found)

    def rerank(self, pooled: np.ndarray, shortlist: int, by_image: bool = False) -> np.ndarray:
        """Scores [images, texts] where the best by pooled vectors stand first, in the order of their match scores.

        Of each text its `shortlist` best images; with `by_image`, of each image its `shortlist` best texts.
        """
        axis = 1 if by_image else 0
        shortlist = min(shortlist, pooled.shape[axis])
        best = np.argpartition(-pooled, shortlist - 1, axis=axis)  # [shortlist, texts] or [images, shortlist]
        best = best[:, :shortlist] if by_image else best[:shortlist]
        if by_image:
            images, texts = np.repeat(np.arange(pooled.shape[0]), shortlist), best.ravel()
        else:
            images, texts = best.ravel(), np.tile(np.arange(pooled.shape[1]), shortlist)
        what = _OF_AN_IMAGE if by_image else _OF_A_TEXT
        match = self._once(images, texts, what).reshape(best.shape)
        scores = pooled.astype(np.float64)
        lift = 1 + scores.max() - match.min()
        np.put_along_axis(scores, best, match + lift, axis=axis)
        return scores

    def _once(self, images: np.ndarray, texts: np.ndarray, what: str) -> np.ndarray:
        """`match_scores` of pairs for a ranking; those of an earlier ranking are not scored again."""
        pairs = images * len(self.records) + texts
        before, scores = self._ranked
        place = np.searchsorted(before, pairs)
        known = np.zeros(len(pairs), dtype=bool)
        known[place < len(before)] = before[place[place < len(before)]] == pairs[place < len(before)]
        match = np.empty(len(pairs))
        match[known] = scores[place[known]]
        match[~known] = self.match_scores(images[~known], texts[~known], what)
        pairs, scores = np.concatenate([before, pairs[~known]]), np.concatenate([scores, match[~known]])
        order = np.argsort(pairs)
        self._ranked = pairs[order], scores[order]
        return match

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _by_length(self, lengths: Sequence[int] | np.ndarray, what: str) -> Iterator[np.ndarray]:
        """Rows in batches of like length, so that little is padded."""
        order = np.argsort(lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]
            self.progress(what, min(start + self.batch_size, len(order)), len(order))

    def _image_parts(self) -> list[np.ndarray]:
        """The images' places in batches."""
        return np.array_split(np.arange(len(self.images)), -(-len(self.images) // self.batch_size))

    def _mask_of(self, texts: Sequence[int] | np.ndarray) -> Tensor:
        return pad_ids([np.ones_like(self.texts[i]) for i in texts]).to(self.device)

    def _grid_of(self, images: np.ndarray) -> Grid:
        return self.grids.select(torch.from_numpy(np.ascontiguousarray(images)).to(self.device))

    def _cast(self) -> Any:
        return torch.autocast(self.device.type, self.encoder_dtype) if self.encoder_dtype else nullcontext()


@dataclass(frozen=True)
class _Cost:
    """Of scoring some pairs: how many, and the seconds that one takes where they were measured."""

    pairs: int
    seconds: float | None = None

    @property
    def is_much(self) -> bool:
        """Whether the scores are worth keeping while they grow."""
        return self.pairs >= _KEPT_FROM or self.pairs * (self.seconds or 0.0) >= _LONG


@dataclass(frozen=True)
class _Block:
    """Some images with some texts: `images` rows, and `places` columns, of a matrix of scores."""

    images: slice
    places: np.ndarray

    @property
    def size(self) -> int:
        """Pairs."""
        return (self.images.stop - self.images.start) * len(self.places)

    def pairs(self, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image and text of every pair, image by image; `texts` of all columns."""
        images = np.arange(self.images.start, self.images.stop)
        return np.repeat(images, len(self.places)), np.tile(texts[self.places], len(images))


def _duration(minutes: float) -> str:
    if minutes < 1.5:
        return "less than a minute" if minutes < 0.75 else "about a minute"
    return f"about {round(minutes)} minutes" if minutes < 120 else f"about {minutes / 60:.1f} hours"


def recalls(
    scores: np.ndarray, image_of_text: np.ndarray, name: str, text_to_image_only: bool = False, folds: int = 0
) -> dict[str, float]:
    """R@1, 5, 10 in percent, named `NAME_t2i_r1` and so on, of scores [images, texts]; `folds`: images of each."""
    found = recall_scores(scores, image_of_text.tolist(), fold_images=folds or None)
    figures = {f"{name}_t2i_r{k}": float(v) for k, v in found.image_retrieval.items()}
    if not text_to_image_only:
        figures |= {f"{name}_i2t_r{k}": float(v) for k, v in found.text_retrieval.items()}
    return figures
