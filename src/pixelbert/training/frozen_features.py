"""What the frozen part of the CNN gives for every training image, computed once and kept.

Where images have one size and are not augmented, the leading frozen steps give the same map each time an image is
seen: on a CPU that is most of a small model's step. Kept as float16 in a memory-mapped file, row by row of the training
split; computed in a fixed order, so that a resumed run sees the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timm.models._features import FeatureListNet
from timm.models.efficientnet import EfficientNetFeatures
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pixelbert.data.batches import Batch
from pixelbert.errors import UsageError
from pixelbert.model.backbone import VisualBackbone
from pixelbert.model.modeling import PixelBertModel
from pixelbert.model.pixels import Grid
from pixelbert.recipes.schema import Recipe
from pixelbert.tasks.table import TASKS
from pixelbert.training.files import write_whole
from pixelbert.training.progress import PairProgress
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


class FrozenFeatures:
    """The maps of all images behind the leading frozen steps of a model's CNN, kept in `folder`.

    A file's name holds a digest of the weights and of what the images are, so runs may share a folder.
    """

    def __init__(
        self,
        model: PixelBertModel,
        num_images: int,
        load: Callable[[list[int]], Batch],
        folder: Path,
        key: str,
        report: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        self.model, self.num_images, self.load, self.report = model, num_images, load, report
        self.folder, self.key = folder, key
        self.steps = 0
        self.maps = np.empty(0, dtype=np.float16)

    @property
    def outdated(self) -> bool:
        """Whether another number of steps is frozen now than the maps are of."""
        return frozen_steps(self.model.visual) != self.steps

    def refresh(self) -> None:
        """Have the maps for the present number of frozen steps: as before, from the file, or computed."""
        steps = frozen_steps(self.model.visual)
        if steps == self.steps:
            return
        self.steps = steps
        path = self.folder / f"frozen-{self._digest()}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, self._compute)
        self.maps = np.load(path, mmap_mode="r")

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{self.key} {self.num_images} {self.steps}".encode())
        for i, step in enumerate(steps_of(self.model.visual)[: self.steps]):
            for name, tensor in step.state_dict().items():
                digest.update(f"{i}.{name}".encode())
                digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def _compute(self, temporary: Path) -> None:
        visual, maps = self.model.visual, None
        for start in range(0, self.num_images, BATCH):
            rows = list(range(start, min(start + BATCH, self.num_images)))
            images = self.load(rows)["pixel_values"].to(visual.mean.device)
            part = run_steps(visual, images, 0, self.steps).half().cpu().contiguous().numpy()
            if maps is None:
                shape = (self.num_images, *part.shape[1:])
                maps = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            maps[rows] = part
            self.report("frozen features", rows[-1] + 1, self.num_images)
        assert maps is not None
        maps.flush()

    def grid(self, batch: Batch) -> Grid:
        """The pixels of a batch's images, through the rest of the CNN: as `PixelBertModel.encode_images`."""
        visual = self.model.visual
        rows = batch["image_rows"].cpu().numpy()
        maps = torch.from_numpy(self.maps[rows]).to(visual.mean.device).float()
        maps = maps.contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not visual.is_frozen):
            features: Tensor = run_steps(visual, maps, self.steps).float()
        mask = features.new_ones(features.shape[0], *features.shape[-2:], dtype=torch.bool)
        return self.model.pixels(features, mask)


def frozen_features(recipe: Recipe, run: Path, parts: Parts, fingerprint: str) -> FrozenFeatures:
    """For a recipe with `train.keep_frozen_features`; kept in RUN/features, or in `train.features_folder`.

    Raises UsageError where the features of an image differ from one time to the next.
    """
    visual = parts.model.pixelbert.visual
    if recipe.image.square is None or recipe.image.augment != "none":
        raise UsageError(
            "train.keep_frozen_features needs image.square and image.augment=none: features must not change"
        )
    if frozen_steps(visual) == 0:
        raise UsageError(
            "train.keep_frozen_features needs a CNN whose first stages are frozen (backbone.frozen_stages)"
        )
    task = TASKS[recipe.task]
    batches = task.batches(recipe, parts.train, parts.processor, parts.model.config, train=False)
    folder = Path(recipe.train.features_folder) if recipe.train.features_folder else run / "features"
    key = f"{fingerprint} {recipe.data.train_splits} {batches.rule} {batches.constant} {visual.compute_dtype}"
    return FrozenFeatures(
        parts.model.pixelbert, parts.train.num_images, lambda rows: batches.image_batch(rows, [0] * len(rows)), folder,
        key, PairProgress(),
    )  # fmt: skip
