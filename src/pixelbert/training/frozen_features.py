"""What the frozen part of the CNN gives for every image of a split, computed once and kept for all runs.

Images that are not augmented give the same map each time they are seen. Two cases:
- the whole CNN is frozen (retrieval, Section 4.2): kept is what it gives behind the 2 x 2 max pool, which has no
  parameters, each image at its own size; the projection and all behind it stay trainable;
- its leading steps are frozen and images have one size: kept is what those steps give; the others go on from there.

Kept as float16 (`MapStore`), computed in a fixed order, so that a resumed run sees the same bits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from timm.models._features import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pixelbert.data.batches import Batch, Plan, Records, loader
from pixelbert.errors import MachineError, UsageError
from pixelbert.model.backbone import VisualBackbone
from pixelbert.model.modeling import PixelBertModel
from pixelbert.model.pixels import Grid
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.inputs import Inputs
from pixelbert.tasks.predicting import RecordSampler
from pixelbert.tasks.run import keeps_whole_maps
from pixelbert.tasks.table import TASKS
from pixelbert.tasks.task import Progress, Scoring, silent
from pixelbert.training.files import is_disk_full
from pixelbert.training.map_store import MapStore
from pixelbert.training.progress import PairProgress, note
from pixelbert.training.setup import Parts

BATCH = 32  # images a forward pass


def steps_of(visual: VisualBackbone) -> list[nn.Module]:
    """Modules that one after the other give the map; the whole CNN as one where its parts are not known."""
    if isinstance(visual.body, FeatureListNet):
        return list(visual.body.values())
    if isinstance(visual.body, EfficientNetFeatures):
        return [visual.body.conv_stem, visual.body.bn1, *visual.body.blocks]
    return [visual.body]


def frozen_steps(visual: VisualBackbone) -> int:
    """How many leading steps of the CNN are frozen, so that their output can be kept; 0 when none."""

    def changes(step: nn.Module) -> bool:
        norms = any(isinstance(m, _BatchNorm) and m.training for m in step.modules())
        return norms or any(p.requires_grad for p in step.parameters())

    steps = steps_of(visual)
    return next((i for i, step in enumerate(steps) if changes(step)), len(steps))


def run_steps(visual: VisualBackbone, x: Tensor, first: int, last: int | None = None) -> Tensor:
    """Steps `first` to `last` of the CNN on images of one size, normalised before step 0: [I, C, h, w]."""
    x = visual.normalise(x) if first == 0 else x
    with torch.autocast(x.device.type, visual.compute_dtype, enabled=visual.compute_dtype is not None):
        for step in steps_of(visual)[first:last]:
            x = visual.body_map(x) if step is visual.body else step(x)
    return x


@dataclass
class _Load:
    """A loader worker's part: the images that a plan names by their row."""

    images: Inputs

    def __call__(self, plan: Plan) -> Batch:
        views, images = np.divmod(plan.records, self.images.records.num_images)
        return self.images.image_batch(images.tolist(), views.tolist())


class FrozenFeatures:
    """The maps of all images behind the leading frozen steps of a model's CNN, kept in `folder`.

    A store's name holds a digest of the weights and of what the images are (their files' sizes and times of change,
    too), so runs may share a folder.

    Args:
        images: gives the images of its records, and says whether all are one constant (blind).
        key: what the images are.
        report, announce: progress; what a person must know before it starts.
        workers: processes that decode images.
    """

    def __init__(
        self,
        model: PixelBertModel,
        images: Inputs,
        folder: Path,
        key: str,
        report: Progress = silent,
        announce: Callable[[str], None] = lambda text: None,
        workers: int = 0,
    ) -> None:
        self.model, self.images, self.folder, self.key = model, images, folder, key
        self.report, self.announce, self.workers = report, announce, workers
        self.count = images.records.num_images * images.views  # or fewer: the first ones
        self.steps = 0
        self.store: MapStore | None = None

    @property
    def outdated(self) -> bool:
        """Whether another number of steps is frozen now than the maps are of."""
        return frozen_steps(self.model.visual) != self.steps

    @property
    def _whole(self) -> bool:
        return self.steps == len(steps_of(self.model.visual))

    def refresh(self) -> None:
        """Have the maps for the present number of frozen steps: as before, from the store, or computed.

        A computation that was stopped goes on where it was; of several processes one computes, the others wait. Raises
        MachineError when the disk has too little space.
        """
        if not self.outdated:
            return
        self.steps = frozen_steps(self.model.visual)
        self.store = MapStore(self.folder / f"frozen-{self._digest()}")
        if len(self.store) < self.count:
            with self.store.appending(self.announce):
                self._fill(self.store)

    def _digest(self) -> str:
        visual = self.model.visual
        digest = hashlib.sha256(f"{self.key} {self.steps} {visual.config.image_channels}".encode())
        digest.update(f"{self._whole and self.model.pixels.pool is not None}".encode())
        for buffer in (visual.mean, visual.std):
            digest.update(buffer.cpu().numpy().tobytes())
        for i, step in enumerate(steps_of(visual)[: self.steps]):
            for name, tensor in step.state_dict().items():
                digest.update(f"{i}.{name}".encode())
                digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    # -- computing --------------------------------------------------------------------------------------------------

    def _fill(self, store: MapStore) -> None:
        try:
            if self.images.constant is not None and self.images.rule.square is not None and self.count > len(store):
                first = len(store)  # blind, one size: one map is all there is
                one = next(self._maps(self.images.image_batch([0], [0])))
                store.append([one, *[first] * (self.count - first - 1)])
                return
            self._fill_all(store)
        except OSError as error:
            if is_disk_full(error):
                raise MachineError(f"{self._full(store)}; {_MORE_SPACE}; what is there is kept") from error
            raise

    def _fill_all(self, store: MapStore) -> None:
        done, told = len(store), False
        rows = RecordSampler(range(done, self.count), BATCH)
        same: dict[tuple[int, int], int] = {}  # blind: of each size the first image that has it
        with closing(loader(_Load(self.images), rows, self.workers)) as stream:
            for batch in stream:
                store.append(self._new_maps(batch, len(store), same))
                if not told:
                    self._tell(store, done)
                    told = True
                self.report("frozen features", len(store), self.count)

    def _new_maps(self, batch: Batch, first: int, same: dict[tuple[int, int], int]) -> list[np.ndarray | int]:
        """The maps of a batch whose first image has row `first`; of a blind run each size is computed once."""
        if self.images.constant is None:
            return list(self._maps(batch))
        sizes = [(int(h), int(w)) for h, w in batch["image_sizes"]]
        new = [i for i, size in enumerate(sizes) if size not in same and size not in sizes[:i]]
        same |= {sizes[i]: first + i for i in new}
        some = {name: batch[name][new] for name in ("pixel_values", "image_sizes")}
        computed = dict(zip(new, self._maps(some) if new else (), strict=True))
        return [computed.get(i, same[size]) for i, size in enumerate(sizes)]

    @torch.no_grad()
    def _maps(self, batch: Batch) -> Iterator[np.ndarray]:
        """float16 [h, w, C] of each image. Portraits and landscapes go apart: together they are padded to squares."""
        visual, sizes = self.model.visual, batch["image_sizes"]
        values, maps = batch["pixel_values"].to(visual.mean.device), [np.empty(0)] * len(sizes)
        if not self._whole:
            yield from _numpy(run_steps(visual, values, 0, self.steps))
            return
        upright = sizes[:, 0] > sizes[:, 1]
        for group in (upright.nonzero()[:, 0], (~upright).nonzero()[:, 0]):
            if not len(group):
                continue
            height, width = sizes[group].amax(0).tolist()
            some = values[group.to(values.device), :, :height, :width]
            features, mask = self.model.pixels.pooled(*visual(some, sizes[group].to(values.device)))
            for i, one, own in zip(group.tolist(), _numpy(features), mask.cpu().numpy(), strict=True):
                maps[i] = one[: own.any(1).sum(), : own.any(0).sum()]
        yield from maps

    # -- what a person must know --------------------------------------------------------------------------------------

    def _tell(self, store: MapStore, before: int) -> None:
        """The size on disk, judged by the images computed so far. Raises MachineError when it is not free."""
        total = self._total(store)
        there = f"; {before:,} are there already" if before else ""
        self.announce(f"features of the frozen CNN: {self.count:,} images, {_size(total)} in {store.folder}{there}")
        free = shutil.disk_usage(store.folder).free
        if total - store.bytes > free:
            raise MachineError(f"{self._full(store)}, {_size(free)} are free; {_MORE_SPACE}")

    def _total(self, store: MapStore) -> float:
        if self.images.constant is not None:
            return store.bytes
        return store.bytes / max(1, len(store)) * self.count

    def _full(self, store: MapStore) -> str:
        return (
            f"{store.folder}: too little space on this disk for the features of {self.count:,} images,"
            f" {_size(self._total(store))} in all"
        )

    # -- using ------------------------------------------------------------------------------------------------------

    def grid(self, batch: Batch) -> Grid:
        """The pixels of a batch's images, through what is not frozen: as `PixelBertModel.encode_images`."""
        assert self.store is not None
        visual = self.model.visual
        maps, inside = self.store.read(batch["image_rows"].cpu().numpy())
        features = torch.from_numpy(maps).to(visual.mean.device).float().permute(0, 3, 1, 2)  # channels last in memory
        mask = torch.from_numpy(inside).to(visual.mean.device)
        if self._whole:
            return self.model.pixels.embed(features, mask)
        features = run_steps(visual, features, self.steps).float()
        return self.model.pixels(features, mask.new_ones(features.shape[0], *features.shape[-2:]))


_MORE_SPACE = (
    "free some, choose another folder with train.features_folder, or go without (train.keep_frozen_features=false)"
)


def _numpy(maps: Tensor) -> np.ndarray:
    """[I, C, h, w] -> float16 [I, h, w, C]."""
    return maps.permute(0, 2, 3, 1).half().cpu().numpy()


def _size(count: float) -> str:
    return f"about {count / 2**30:.1f} GiB" if count > 2**29 else f"about {max(1, round(count / 2**20)):,} MiB"


# -- for a run ---------------------------------------------------------------------------------------------------------


def frozen_features(recipe: Recipe, run: Path, parts: Parts, fingerprint: str) -> FrozenFeatures:
    """Of the training images, for a recipe with `train.keep_frozen_features`; in `train.features_folder`, else beside
    the run, where other runs find them.

    Raises UsageError where the features of an image differ from one time to the next.
    """
    visual = parts.model.pixelbert.visual
    if recipe.image.augment != "none" and recipe.train.feature_views == 1:
        raise UsageError(
            "train.keep_frozen_features needs image.augment=none, or a few augmented views of each image"
            " (train.feature_views): features must not change"
        )
    if frozen_steps(visual) == 0:
        raise UsageError(
            "train.keep_frozen_features needs a CNN whose first stages are frozen (backbone.frozen_stages)"
        )
    if recipe.image.square is None and not keeps_whole_maps(recipe, visual):
        raise UsageError(
            "train.keep_frozen_features needs image.square, or a CNN that stays frozen as a whole"
            " (backbone.frozen_stages)"
        )
    batches = TASKS[recipe.task].batches(recipe, parts.train, parts.processor, parts.model.config, train=True)
    without = f" without {recipe.data.held_out_images}" if recipe.data.held_out_images else ""
    kept_out = parts.calibration.num_images if parts.calibration is not None else 0
    without += f" without the first {kept_out}" if kept_out else ""
    key = f"{fingerprint} {recipe.data.train_splits}{without}"
    return _features(recipe, run, parts.model.pixelbert, batches, key)


def scoring_encoder(
    recipe: Recipe, run: Path, model: PixelBertModel, batches: Inputs, fingerprint: str, split: str, scoring: Scoring
) -> Callable[[Batch], Grid] | None:
    """What gives the pixels of held-out images from kept features, where the recipe keeps them and the CNN never
    learns; `batches` then load no images. None: they are computed each time, also where the disk has no space for more.
    """
    if not keeps_whole_maps(recipe, model.visual):
        return None
    model.visual.set_frozen_stages(recipe.least_frozen_stages)  # a model that was loaded does not know it
    features = _features(recipe, run, model, batches, f"{fingerprint} {[split]}")
    features.announce = scoring.announce
    if scoring.images and batches.records.second_image(0) < 0:  # a second image may be any of the split
        features.count = min(scoring.images, features.count)
    try:
        features.refresh()
    except MachineError as error:
        scoring.announce(f"{error}; this time they are computed and not kept")
        return None
    batches.without_images = True
    return features.grid


def _features(recipe: Recipe, run: Path, model: PixelBertModel, batches: Inputs, key: str) -> FrozenFeatures:
    folder = Path(recipe.train.features_folder) if recipe.train.features_folder else run.absolute().parent / "features"
    if batches.views > 1:
        key += f" {batches.views} views {batches.augmentation} {batches.crop_scale} {batches.seed}"
    key = f"{key} {batches.rule} {batches.constant} {model.visual.compute_dtype}"
    if batches.constant is None or batches.rule.square is None:  # else no image is looked at
        key += f" {_files_digest(batches.records)}"
    return FrozenFeatures(model, batches, folder, key, PairProgress(), note, recipe.data.workers)


def _files_digest(records: Records) -> str:
    """Of the image files' sizes and times of change: other pictures of the same names have other maps."""
    digest, seen = hashlib.sha256(), dict[str, str]()
    for image in range(records.num_images):
        ref = records.image(image)
        if ref.file not in seen:
            seen[ref.file] = _change(ref.file)
        digest.update(f"{seen[ref.file]} {ref.offset} {ref.length};".encode())
    return digest.hexdigest()


def _change(file: str) -> str:
    """What changes with a file's content; nothing is asked of a URL."""
    try:
        stat = os.stat(file)
    except (OSError, ValueError):
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"
