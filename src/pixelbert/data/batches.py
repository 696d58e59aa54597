"""From records to batches: which pairs a step sees, and the loader that brings them.

The order is a function of (seed, epoch) alone. Step k of a run with batch size B sees the pairs k * B to (k + 1) * B
of an endless stream of shuffled epochs, so to resume is to go to step k.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pixelbert.data.draws import generator
from pixelbert.data.records import ImageRef
from pixelbert.errors import MachineError, PixelBertError, UsageError

Batch = dict[str, Any]


class Records(Protocol):
    """What a training set offers: one split, or several joined."""

    @property
    def num_images(self) -> int: ...
    @property
    def num_records(self) -> int: ...
    @property
    def image_of(self) -> np.ndarray: ...
    def records_of(self, image: int) -> range: ...
    def text(self, record: int) -> str: ...
    def record_id(self, record: int) -> str: ...
    def target(self, record: int) -> dict[str, Any]: ...
    def second_image(self, record: int) -> int: ...
    def image_id(self, image: int) -> str: ...
    def image(self, image: int) -> ImageRef: ...
    def image_places(self) -> list[tuple[str, int]]: ...
    def rows_of_photo(self, image: int) -> Sequence[int]: ...


class JoinedSplits:
    """Several splits as one: the paper trains on COCO's train and restval.

    A photo of two splits has a row in each; `rows_of_photo` knows them all, so that its texts in the other split are
    its own too.
    """

    def __init__(self, splits: Sequence[Records]) -> None:
        self.splits = list(splits)
        self._records = np.cumsum([0] + [s.num_records for s in splits])
        self._images = np.cumsum([0] + [s.num_images for s in splits])
        self.num_records, self.num_images = int(self._records[-1]), int(self._images[-1])
        self.image_of = np.concatenate([s.image_of + o for s, o in zip(splits, self._images[:-1], strict=True)])
        self._shared = _shared_rows(self.image_places())

    def _record(self, record: int) -> tuple[Records, int]:
        i = int(np.searchsorted(self._records, record, side="right")) - 1
        return self.splits[i], record - int(self._records[i])

    def _image(self, image: int) -> tuple[int, int]:
        i = int(np.searchsorted(self._images, image, side="right")) - 1
        return i, image - int(self._images[i])

    def records_of(self, image: int) -> range:
        i, local = self._image(image)
        inside, offset = self.splits[i].records_of(local), int(self._records[i])
        return range(inside.start + offset, inside.stop + offset)

    def text(self, record: int) -> str:
        split, local = self._record(record)
        return split.text(local)

    def record_id(self, record: int) -> str:
        split, local = self._record(record)
        return split.record_id(local)

    def target(self, record: int) -> dict[str, Any]:
        split, local = self._record(record)
        return split.target(local)

    def second_image(self, record: int) -> int:
        """The row of the record's second image among all, -1 when it has one image."""
        i = int(np.searchsorted(self._records, record, side="right")) - 1
        second = self.splits[i].second_image(record - int(self._records[i]))
        return second if second < 0 else second + int(self._images[i])

    def image_id(self, image: int) -> str:
        i, local = self._image(image)
        return self.splits[i].image_id(local)

    def image(self, image: int) -> ImageRef:
        i, local = self._image(image)
        return self.splits[i].image(local)

    def image_places(self) -> list[tuple[str, int]]:
        """File and offset of every image row."""
        return [place for split in self.splits for place in split.image_places()]

    def rows_of_photo(self, image: int) -> Sequence[int]:
        """The rows, among them `image`, that show the same photo."""
        return self._shared.get(image, (image,))


def _shared_rows(places: Sequence[tuple[str, int]]) -> dict[int, list[int]]:
    """Of each row whose place stands more than once, all rows of that place."""
    rows: dict[tuple[str, int], list[int]] = {}
    for row, place in enumerate(places):
        rows.setdefault(place, []).append(row)
    return {row: same for same in rows.values() if len(same) > 1 for row in same}


def join(splits: Sequence[Records]) -> Records:
    """One split as it is, several as one."""
    return splits[0] if len(splits) == 1 else JoinedSplits(splits)


class PairOrder:
    """The endless order of (epoch, record): texts of one image side by side, `texts_per_image` at a time."""

    def __init__(self, image_of: np.ndarray, seed: int, texts_per_image: int) -> None:
        self.image_of, self.seed, self.texts_per_image = image_of, seed, texts_per_image
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def epoch(self, epoch: int) -> np.ndarray:
        """All records once, shuffled by image group: int64 [records]."""
        if self._cached[0] != epoch:
            self._cached = (epoch, self._shuffle(epoch))
        return self._cached[1]

    def _shuffle(self, epoch: int) -> np.ndarray:
        draw = generator(self.seed, "order", epoch)
        count = len(self.image_of)
        by_image = np.lexsort((draw.random(count), self.image_of))  # each image's texts, shuffled
        images = self.image_of[by_image]
        new_image = np.r_[True, images[1:] != images[:-1]] if count else np.empty(0, dtype=bool)
        start = np.maximum.accumulate(np.where(new_image, np.arange(count), 0))
        place = np.arange(count) - start  # of a text among its image's
        group = np.cumsum(place % self.texts_per_image == 0) - 1
        keys = draw.permutation(int(group[-1]) + 1 if count else 0)
        return by_image[np.argsort(keys[group], kind="stable")]

    def pairs(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and record of the pairs at positions [start, stop) of the stream: two int64 arrays."""
        count = len(self.image_of)
        positions = np.arange(start, stop)
        epochs, places = positions // count, positions % count
        records = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            records[here] = self.epoch(int(epoch))[places[here]]
        return epochs, records


@dataclass(frozen=True)
class Plan:
    """Which pairs one micro-batch holds; all a loader worker needs to build it."""

    step: int
    positions: np.ndarray  # in the stream
    epochs: np.ndarray
    records: np.ndarray


class StepSampler(Sampler[Plan]):
    """The micro-batches of one rank from step `first` on: `rank`'s share of every step, in order.

    Raises UsageError when the ranks cannot share a step equally.
    """

    def __init__(
        self,
        order: PairOrder,
        *,
        first: int,
        last: int,
        batch_size: int,
        micro_batch: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size % ranks:
            raise UsageError(f"optim.batch_size {batch_size} cannot be shared equally by {ranks} processes")
        self.order, self.first, self.last = order, first, last
        self.batch_size, self.rank, self.ranks = batch_size, rank, ranks
        share = batch_size // ranks
        self.bounds = [(i, min(i + micro_batch, share)) for i in range(0, share, micro_batch)]

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step on this rank."""
        return len(self.bounds)

    def __len__(self) -> int:
        return (self.last - self.first) * len(self.bounds)

    def __iter__(self) -> Iterator[Plan]:
        for step in range(self.first, self.last):
            offset = step * self.batch_size + self.rank * (self.batch_size // self.ranks)
            for start, stop in self.bounds:
                epochs, records = self.order.pairs(offset + start, offset + stop)
                yield Plan(step, np.arange(offset + start, offset + stop), epochs, records)


class _Planned(Dataset[Batch]):
    """Builds the batch of a plan; the sampler's plans are its indices."""

    def __init__(self, build: Callable[[Plan], Batch]) -> None:
        self.build = build

    def __getitem__(self, plan: Plan) -> Batch:
        try:
            return self.build(plan)
        except PixelBertError as error:  # crosses the process border as a value: torch would wrap it in a traceback
            return {"error": error}


def loader(build: Callable[[Plan], Batch], sampler: Sampler[Plan], workers: int) -> Generator[Batch, None, None]:
    """Batches in the sampler's order; the same for any number of workers.

    Raises what building a batch raises, in a worker too, and MachineError when a worker is killed.
    """
    if workers:  # else the tokenizers library complains of every fork
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    data = DataLoader(
        _Planned(build),
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_start_worker if workers else None,
        prefetch_factor=4 if workers else None,
        # forked workers share the pages of what is in memory, and end when this process is killed; those of a fork
        # server, newer Pythons' default, do neither
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=torch.cuda.is_available(),
    )
    try:
        for batch in data:
            if "error" in batch:
                raise batch["error"]
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MachineError(
            "a loader worker was killed, most often for want of memory; lower data.workers (0 uses none)"
        ) from error


def _start_worker(_: int) -> None:
    """One thread each; Ctrl-C is the main process's business, which ends its workers itself."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def pad_ids(rows: Sequence[Sequence[int] | np.ndarray], value: int = 0) -> torch.Tensor:
    """Rows of unequal length -> int64 [T, L], padded on the right."""
    length = max((len(row) for row in rows), default=0)
    padded = np.full((len(rows), length), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)
