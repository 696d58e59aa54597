"""`Predictor`: a trained run, asked about pictures. Plain values in and out; the scores are those of `evaluate`.

Texts and scores go through the task's own batches and objective (`Inputs.text_batch`, `Objective.predict`); only where
the pixels come from differs: from `ImageGrids`, which encodes each picture once.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pixelbert.data.batches import Batch
from pixelbert.errors import UsageError
from pixelbert.inference import fillings, verbs_of_runs
from pixelbert.inference.answers import Answer, Attention, Guess, Judgement, Match, Ranked
from pixelbert.inference.grids import ImageGrids, Picture, put_together
from pixelbert.inference.texts import check_text, check_texts, common_count, whole_number
from pixelbert.model.image_processing import ImageSource
from pixelbert.model.processor import as_image_list
from pixelbert.tasks.calibration import read_calibration, scale_of
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.run import find_device, load_run, put_on_device
from pixelbert.tasks.table import TASKS
from pixelbert.tasks.task import common_inputs

if TYPE_CHECKING:
    from PIL import Image

    from pixelbert.inference.attention import AttentionMap, Looking

Images = ImageSource | Sequence[ImageSource]
Texts = str | Sequence[str]

_TEXTS_AT_ONCE = 64  # through the Transformer
_CHUNKS = 4  # groups of like length among them

_WORD = re.compile(r"[^\W_]+")


class Predictor:
    """A trained run that answers. Made by `Predictor.from_pretrained`; safe to use from several threads.

    Every verb takes one or many: a picture (path, bytes, PIL image, array or tensor; a URL when that is allowed) or a
    list of them, a text or a list. One picture goes with every text, one text with every picture, else they go by
    pairs. One of each gives one result, a list on either side a list. Errors are those of `pixelbert.errors`:
    UsageError for texts and options, BadImage (a DataError) for a picture, which it names.
    """

    def __init__(self, folder: Path, model: str, device: Any, precision: str | None, most: int, urls: bool) -> None:
        self.folder = folder
        self.recipe, self.model, self.processor = load_run(folder, model)
        dtype = put_on_device(self.model, precision or self.recipe.train.precision, find_device(device))
        task = TASKS[self.recipe.task]
        self.objective: Any = task.objective(self.model, dtype, _CHUNKS).eval()
        self.objective.encode = lambda batch: batch["grid"]
        common = common_inputs(self.recipe, None, self.processor, self.model.config, train=False)  # type: ignore[arg-type]
        self.inputs = Inputs(**common)
        self.calibration = read_calibration(folder) if model == "best" else None
        self._scale = scale_of(self.calibration)
        self._lock = threading.RLock()  # the tokenizer and the CNN change as they go
        self._grids = ImageGrids(self.objective, self.inputs, most, urls, self._lock)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str = "best",
        device: str | torch.device | None = None,
        precision: str | None = None,
        cache_megabytes: int = 256,
        allow_urls: bool = False,
    ) -> Predictor:
        """Open a run folder that `train` wrote.

        Args:
            model: `best` or `last`.
            device: None is CUDA where there is one.
            precision: as in a recipe; None is the run's own, so that answers are those of `evaluate` on this machine.
            cache_megabytes: of encoded pictures that are kept.
            allow_urls: open http and https addresses (of any host: not for a server that strangers reach).

        Raises CheckpointError for a folder that is no run, half a run or a damaged one, or of a newer format;
        UsageError for a cache of a size that is none.
        """
        if whole_number(cache_megabytes, "cache_megabytes") < 0:
            raise UsageError(f"cache_megabytes is {cache_megabytes}; 0 keeps no picture")
        return cls(Path(folder), model, device, precision, cache_megabytes * 2**20, allow_urls)

    # -- questions, statements, matches ------------------------------------------------------------------------------

    def ask(self, images: Images, questions: Texts, *, top: int = 5) -> Any:
        """`Answer` (or a list): the best answer, its calibrated probability, whether it is known, the `top` best."""
        self._require("ask")
        top = whole_number(top, "top")
        pictures, texts, one = self._pairs(images, questions, "question")
        logits, cut = self._scores([(picture,) for picture in pictures], texts)
        names = [self.model.config.id2label[i] for i in range(logits.shape[1])]
        values, places = logits.topk(min(max(1, top), len(names)), dim=1)
        chances = self._scale.probability(values.numpy())
        threshold = self._scale.threshold
        answers = []
        for row, text in enumerate(texts):
            guesses = [Guess(names[p], float(c)) for p, c in zip(places[row].tolist(), chances[row], strict=True)]
            knows = None if threshold is None else guesses[0].probability >= threshold
            best = guesses[0]
            answers.append(
                Answer(text, self.calibrated, cut[row], best.text, best.probability, knows, guesses if top else [])
            )
        return answers[0] if one else answers

    def match(self, images: Images, texts: Texts) -> Any:
        """`Match` (or a list): whether text and picture belong together, from a pretraining or a retrieval run."""
        self._require("match")
        pictures, listed, one = self._pairs(images, texts, "text")
        log_odds, cut = self._scores([(picture,) for picture in pictures], listed)
        chances = self._scale.probability(log_odds.numpy())
        found = [
            Match(text, self.calibrated, cut[row], bool(chances[row] > 0.5), float(chances[row]), float(log_odds[row]))
            for row, text in enumerate(listed)
        ]
        return found[0] if one else found

    def compare(self, left: Images, right: Images | None, statements: Texts) -> Any:
        """`Judgement` (or a list) of statements about two pictures each; of one picture: `right` None."""
        self._require("compare", one_picture=right is None)
        wanted, given = self.model.config.num_images, 1 if right is None else 2
        if wanted != given:
            raise UsageError(f"{self.folder}: judges statements about {wanted} picture(s), not {given}")
        texts = check_texts(statements, "statement")
        sides = {"image" if right is None else "left image": as_image_list(left)}
        if right is not None:
            sides["right image"] = as_image_list(right)
        counts = {f"{name}s".replace(" ", "_"): len(side) for name, side in sides.items()}
        count = common_count(**counts, statements=len(texts))
        pictures = [_repeated(self._read(side, name), count) for name, side in sides.items()]
        texts = _repeated(texts, count)
        logits, cut = self._scores(list(zip(*pictures, strict=True)), texts)
        chances = self._scale.probability((logits[:, 1] - logits[:, 0]).numpy())
        found = [
            Judgement(text, self.calibrated, cut[row], bool(chances[row] > 0.5), float(chances[row]))
            for row, text in enumerate(texts)
        ]
        one = isinstance(statements, str) and not _many(left) and not _many(right)
        return found[0] if one else found

    def rank(self, images: Images, texts: Texts) -> list[Ranked]:
        """Many pictures by one text, or many texts by one picture: best match first, equals in the order given.

        Every pair goes through the whole model; for thousands of pictures shorten the list by `image_vectors` first.
        """
        self._require("rank")
        sources, listed = as_image_list(images), check_texts(texts, "text")
        if len(sources) > 1 and len(listed) > 1:
            raise UsageError(f"{len(sources)} images and {len(listed)} texts: rank needs one image or one text")
        pictures, listed, _ = self._pairs(sources, listed, "text")
        log_odds, _ = self._scores([(picture,) for picture in pictures], listed)
        chances = self._scale.probability(log_odds.numpy())
        names = [picture.name for picture in pictures] if len(sources) > 1 or len(listed) == 1 else listed
        order = np.argsort(-log_odds.numpy(), kind="stable").tolist()
        return [Ranked(i, names[i], float(chances[i]), float(log_odds[i]), self.calibrated) for i in order]

    # -- words and attention -----------------------------------------------------------------------------------------

    def fill(self, images: Images | None, texts: Texts, *, top: int = 5) -> Any:
        """`Filling` (or a list): the likeliest wordpieces for each [MASK] or ___ of a text, with and without picture.

        images: None fills from the text alone.
        """
        self._require("fill")
        top = whole_number(top, "top")
        if images is None:
            pictures, listed, one = None, check_texts(texts, "text"), isinstance(texts, str)
        else:
            pictures, listed, one = self._pairs(images, texts, "text")
        masked = [fillings.hide(text) for text in listed]
        with self._lock:
            batch, cut = self._text_batch(masked)
            batch = fillings.with_labels(batch, self.processor.tokenizer, listed)
            alone = self.objective.words(batch)
            seen = None
            if pictures is not None:
                places = torch.arange(len(pictures), device=self._grids.device)
                grid = put_together(self._grids(pictures))
                seen = self.objective.words(batch | {"grid": grid, "image_of_text": places})
        found = fillings.read(masked, batch, self.processor.tokenizer, seen, alone, max(1, top), cut)
        return found[0] if one else found

    def attend(
        self,
        image: ImageSource,
        sentence: str,
        word: str | int | None = None,
        *,
        layer: int = 1,
        head: int | None = None,
        method: str = "attention",
    ) -> Any:
        """`Attention` for a word (a place from 0, or as written), or a list for every word of the sentence.

        layer, head: from 1; no head: all averaged. method: see `pixelbert.inference.attention.METHODS`.
        """
        return _attended(self._look(image, sentence, word, layer, head, method)[0], word)

    def attend_and_draw(
        self, image: ImageSource, sentence: str, word: str | int | None = None, **how: Any
    ) -> tuple[Any, Image.Image]:
        """What `attend` and `attention_picture` give, of one look. how: layer, head and method, as there."""
        maps, looking = self._look(image, sentence, word, **how)
        return _attended(maps, word), _drawn(maps, looking, sentence, word)

    def attention_picture(
        self,
        image: ImageSource,
        sentence: str,
        word: str | int | None = None,
        *,
        layer: int = 1,
        head: int | None = None,
        method: str = "attention",
    ) -> Image.Image:
        """The attention of a word drawn over the photo, or one sheet of all words: a PIL image. Arguments: `attend`."""
        return _drawn(*self._look(image, sentence, word, layer, head, method), sentence, word)

    def _look(
        self,
        image: ImageSource,
        sentence: str,
        word: str | int | None,
        layer: int = 1,
        head: int | None = None,
        method: str = "attention",
    ) -> tuple[list[AttentionMap], Looking]:
        from pixelbert.inference.attention import Looking, Method, Photo, cell_stride
        from pixelbert.inference.cells import Cells

        check_text(sentence, "the sentence")
        taken = self._grids.read(image, "the image")
        with self._lock:
            encoded = self._grids([taken])[0]
            pixels = self._grids.pixels(taken)
            cells = Cells(
                encoded.shape, cell_stride(self.model.pixelbert), encoded.size, (pixels.shape[0], pixels.shape[1])
            )
            grid = put_together([encoded])
            grid.shape = encoded.shape
            looking = Looking(self.model, self.processor, Photo(pixels, grid, cells), sentence)
            places = [i for i, w in enumerate(looking.sentence.words) if w.pieces] if word is None else [word]
            return [looking.at(place, Method(method, layer, head)) for place in places], looking

    def unknown_words(self, *texts: str) -> list[str]:
        """The words of texts, each once, that the vocabulary has no pieces for: the model reads them as [UNK]."""
        tokenizer = self.processor.tokenizer
        with self._lock:
            words = dict.fromkeys(word for text in texts for word in _WORD.findall(text.replace("[MASK]", " ")))
            return [word for word in words if tokenizer.unk_token in tokenizer.tokenize(word)]

    # -- vectors -----------------------------------------------------------------------------------------------------

    def image_vectors(self, images: Images) -> Any:
        """Pooled vectors of pictures alone, unit length: a list of floats, or a list of these."""
        self._require_vectors()
        pictures = self._read(as_image_list(images), "image")
        parts = []
        for start in range(0, len(pictures), _TEXTS_AT_ONCE):
            encoded = self._grids(pictures[start : start + _TEXTS_AT_ONCE])
            with self._lock, torch.no_grad(), self.objective.cast():
                parts.append(self.model.image_vectors(put_together(encoded)).float().cpu())
        found = torch.cat(parts).tolist()
        return found if _many(images) else found[0]

    def text_vectors(self, texts: Texts) -> Any:
        """Pooled vectors of texts alone, unit length, to compare with those of pictures by their inner product."""
        self._require_vectors()
        listed = check_texts(texts, "text")
        parts = []
        for start in range(0, len(listed), _TEXTS_AT_ONCE):
            with self._lock, torch.no_grad(), self.objective.cast():
                batch, _ = self._text_batch(listed[start : start + _TEXTS_AT_ONCE])
                parts.append(self.model.text_vectors(batch["input_ids"], batch["attention_mask"]).float().cpu())
        found = torch.cat(parts).tolist()
        return found[0] if isinstance(texts, str) else found

    # -- helpers -----------------------------------------------------------------------------------------------------

    @property
    def calibrated(self) -> bool:
        """Whether the probabilities were fitted on held-out records (`pixelbert evaluate` does that)."""
        return self.calibration is not None

    def _require(self, verb: str, **options: bool) -> None:
        verbs_of_runs.require(verb, self.recipe, self.folder, **options)

    def _require_vectors(self) -> None:
        if getattr(self.model, "contrastive", None) is None:
            raise UsageError(f"{self.folder}: has no pooled vectors; {verbs_of_runs.vectors_from(self.recipe)}")

    def _pairs(self, images: Images, texts: Texts, what: str) -> tuple[list[Picture], list[str], bool]:
        """Pictures and texts, one to one, and whether both were single."""
        sources, listed = as_image_list(images), check_texts(texts, what)
        count = common_count(images=len(sources), **{f"{what}s": len(listed)})
        one = not _many(images) and isinstance(texts, str)
        return _repeated(self._read(sources, "image"), count), _repeated(listed, count), one

    def _read(self, sources: Sequence[ImageSource], name: str) -> list[Picture]:
        alone = len(sources) == 1
        return [self._grids.read(s, f"the {name}" if alone else f"{name} {i + 1}") for i, s in enumerate(sources)]

    def _scores(self, pictures: Sequence[tuple[Picture, ...]], texts: Sequence[str]) -> tuple[Tensor, list[bool]]:
        """The task's scores float32 [T, ...] on the CPU of each text with its pictures, and which texts were cut."""
        parts, cut = [], []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            own = pictures[start : start + _TEXTS_AT_ONCE]
            distinct = {picture.key: picture for row in own for picture in row}
            place = {key: i for i, key in enumerate(distinct)}
            encoded = self._grids(list(distinct.values()))
            of_text = torch.tensor([[place[picture.key] for picture in row] for row in own])
            with self._lock:
                batch, some = self._text_batch(texts[start : start + _TEXTS_AT_ONCE])
                batch["image_of_text"] = self._shaped(of_text).to(self._grids.device)
                parts.append(self.objective.predict(batch | {"grid": put_together(encoded)}).cpu())
            cut += some
        return torch.cat(parts), cut

    def _shaped(self, of_text: Tensor) -> Tensor:
        """[T, n] for statements, [T] for all others."""
        return of_text if self.recipe.task == "image_pairs" else of_text[:, 0]

    def _text_batch(self, texts: Sequence[str]) -> tuple[Batch, list[bool]]:
        """The task's own text batch on the device, and whether each text was cut."""
        batch = self.inputs.text_batch(texts)
        lengths = [
            len(ids) for ids in self.processor.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        ]
        device = self._grids.device
        return {k: v.to(device) for k, v in batch.items()}, [n > self.inputs.max_length for n in lengths]


def _repeated(values: list[Any], count: int) -> list[Any]:
    """A list of one as a list of `count`; others as they are."""
    return values * count if len(values) == 1 else values


def _many(images: Any) -> bool:
    return isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4


def _attended(maps: list[AttentionMap], word: str | int | None) -> Any:
    """`Attention` of one word, or of every word."""
    from pixelbert.inference.attention import LAYERLESS

    found = [
        Attention(
            m.word.text, m.method.name, None if m.method.name in LAYERLESS else m.method.layer, m.method.head,
            _rows(m.weights, m), _rows(m.cells.rectangles, m), m.to_photo,
        )
        for m in maps
    ]  # fmt: skip
    return found if word is None else found[0]


def _drawn(maps: list[AttentionMap], looking: Looking, sentence: str, word: str | int | None) -> Image.Image:
    from pixelbert.inference.attention_pictures import picture, sheet

    pixels = looking.photo.pixels
    return sheet(maps, pixels, sentence) if word is None else picture(maps[0], pixels, sentence)


def _rows(values: np.ndarray, found: AttentionMap) -> Any:
    """The part of an array [rows, columns, ...] that belongs to the photo, as lists."""
    rows, columns = found.cells.valid_shape
    return values[:rows, :columns].tolist()
