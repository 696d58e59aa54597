"""The CNN: any timm network by name, with padding kept out of every image's features.

Images of several sizes share a batch by padding on the right and at the bottom. A convolution at an image's edge
would read its neighbours' padding (batch norm's shift and earlier kernels make it non-zero), and the features
would depend on who else is in the batch. So what lies outside an image's valid area is zeroed before every
convolution or pooling with a kernel larger than 1; a valid side at stride s is ceil(side / s).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pixelbert.model.config import PixelBertConfig

# Layers that look at the whole map at once: no mask can keep padding out of them, so each image goes alone.
_GLOBAL_LAYERS = (
    "SqueezeExcite", "SEModule", "EffectiveSEModule", "EcaModule", "CecaModule", "GatherExcite", "GlobalContext",
    "GlobalResponseNorm", "GroupNorm", "GroupNorm1", "InstanceNorm2d", "CbamModule", "AdaptiveAvgPool2d", "SplitAttn",
    "SelectiveKernel", "Attention2d", "Attention", "NonLocalAttn", "BatNonLocalAttn",
)  # fmt: skip


def create_cnn(name: str, output: str = "stage") -> nn.Module:
    """A timm CNN without weights; its forward gives a list whose last item is the feature map.

    Raises ValueError with timm's nearest names when there is no such network.
    """
    if name == "resnext152_32x8d":  # timm has the class but not this size
        return ResNet(Bottleneck, [3, 8, 36, 3], cardinality=32, base_width=8, num_classes=0, global_pool="")
    if not timm.is_model(name.split(".")[0]):
        similar = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"timm has no network '{name}'" + (f"; it has {', '.join(similar)}" if similar else ""))
    if output == "head":
        return timm.create_model(name, num_classes=0, global_pool="")
    return timm.create_model(name, features_only=True, out_indices=(-1,))


class VisualBackbone(nn.Module):
    """Images -> feature maps, each image's features independent of the others in its batch."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.config = config
        self.body = create_cnn(config.backbone, config.backbone_output)
        info = self.body.feature_info
        self.stages: list[dict[str, Any]] = list(getattr(info, "info", info))
        self.channels: int = self.stages[-1]["num_chs"]
        if isinstance(getattr(self.body, "num_features", None), int):
            self.channels = self.body.num_features
        self.stride: int = self.stages[-1]["reduction"]
        self.register_buffer("mean", torch.tensor(config.image_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std).view(1, -1, 1, 1), persistent=False)
        self.mixes_globally = any(type(m).__name__ in _GLOBAL_LAYERS for m in self.body.modules())
        self._padding: _Padding | None = None
        for module in self.body.modules():
            self._guard(module)
        self.set_frozen_stages(config.frozen_stages)

    # -- padding ---------------------------------------------------------------------------------------------------

    def _guard(self, module: nn.Module) -> None:
        """Zero the padding before `module` if its kernel reaches beyond one cell."""
        kernel = getattr(module, "kernel_size", 1)
        if max(kernel) <= 1 if isinstance(kernel, tuple) else kernel <= 1:
            return
        is_max_pool = isinstance(module, nn.MaxPool2d)
        fill = float("-inf") if is_max_pool else 0.0
        module.register_forward_pre_hook(lambda _, args: (self._fill(args[0], fill), *args[1:]))
        if is_max_pool:  # -inf must not reach a 1 x 1 convolution: its gradient would be 0 * inf
            module.register_forward_hook(lambda _, args, output: self._fill(output, 0.0))

    def _fill(self, x: Tensor, value: float) -> Tensor:
        return x if self._padding is None else x.masked_fill(self._padding.outside(x.shape[-2:]), value)

    # -- forward ---------------------------------------------------------------------------------------------------

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [I, 3, H, W] RGB -> float32, scaled to 0..1, in the CNN's channel order, mean and std of its training.

        Float images pass: they are taken as normalised already.
        """
        if images.is_floating_point():
            return images
        if self.config.image_channels == "BGR":
            images = images.flip(1)
        return ((images.float() / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Feature maps with their mask.

        Args:
            images: uint8 or normalised float [I, 3, H, W], padded on the right and at the bottom.
            sizes: int64 [I, 2], each image's valid height and width; None when nothing is padded.

        Returns:
            features [I, C, h, w] and mask bool [I, h, w], True where a cell belongs to its image.
        """
        images = self.normalise(images)
        full = torch.tensor(images.shape[-2:], device=images.device)
        if sizes is None or bool((sizes.to(full.device) == full).all()):
            self._padding = None
            features = self._run(images)
            return features, features.new_ones(features.shape[0], *features.shape[-2:], dtype=torch.bool)
        sizes = sizes.to(images.device)
        if self.mixes_globally:
            return self._one_by_one(images, sizes)
        images = self._pad_to_stride(images)
        self._padding = _Padding(sizes, (images.shape[-2], images.shape[-1]))  # kept for recomputation in backward
        features = self._run(images)
        return features, ~self._padding.outside(features.shape[-2:]).squeeze(1)

    def _run(self, images: Tensor) -> Tensor:
        if self.config.backbone_output == "head" or not hasattr(self.body.feature_info, "out_indices"):
            return self.body.forward_features(images)
        return self.body(images)[-1]

    def _pad_to_stride(self, images: Tensor) -> Tensor:
        """Pad to a multiple of the stride, so that a map's side tells its stride exactly."""
        height, width = images.shape[-2:]
        return nn.functional.pad(images, (0, -width % self.stride, 0, -height % self.stride))

    def _one_by_one(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Each image without its padding, then put together: for networks that mix the whole map."""
        self._padding = None
        maps = [self._run(image[None, :, :h, :w])[0] for image, (h, w) in zip(images, sizes.tolist(), strict=True)]
        height, width = (max(m.shape[i] for m in maps) for i in (-2, -1))
        features = maps[0].new_zeros(len(maps), maps[0].shape[0], height, width)
        mask = torch.zeros(len(maps), height, width, dtype=torch.bool, device=features.device)
        for i, m in enumerate(maps):
            features[i, :, : m.shape[-2], : m.shape[-1]] = m
            mask[i, : m.shape[-2], : m.shape[-1]] = True
        return features, mask

    # -- what is trained -------------------------------------------------------------------------------------------

    def set_frozen_stages(self, stages: int) -> None:
        """Freeze the stem and the first `stages` stages (-1: nothing); batch norm as the config says."""
        names = [name for name, _ in self.body.named_parameters()]
        last = -1
        if stages >= len(self.stages) - 1:
            last = len(names) - 1
        elif stages >= 0:
            module = self.stages[stages]["module"]
            inside = [i for i, n in enumerate(names) if n.startswith((f"{module}.", f"{module.replace('.', '_')}."))]
            # a stage named after an activation (`act1`) has no parameters: the stem ends before the next stage
            after = self.stages[stages + 1]["module"]
            ahead = [i for i, n in enumerate(names) if n.startswith((f"{after}.", f"{after.replace('.', '_')}."))]
            last = inside[-1] if inside else ahead[0] - 1
        for i, parameter in enumerate(self.body.parameters()):
            parameter.requires_grad_(i > last)
        if self.config.backbone_norm == "frozen":
            for norm in self._norms():
                norm.requires_grad_(False)
        self.frozen_below = last + 1  # parameters of the CNN that get no gradient, in order
        self.train(self.training)

    def _norms(self) -> Iterator[nn.Module]:
        return (m for m in self.body.modules() if isinstance(m, _BatchNorm))

    def train(self, mode: bool = True) -> VisualBackbone:
        """Batch norm stays in evaluation mode where it is frozen or its parameters are."""
        super().train(mode)
        if mode:
            for norm in self._norms():
                parameters = list(norm.parameters())
                if self.config.backbone_norm == "frozen" or (parameters and not parameters[0].requires_grad):
                    norm.eval()
        return self

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter of the CNN is trained, so that no gradient needs to enter it."""
        return not any(p.requires_grad for p in self.body.parameters())

    def gradient_checkpointing(self, enable: bool) -> None:
        """Recompute activations in backward; timm does it stage by stage."""
        setter: Callable[[bool], None] | None = getattr(self.body, "set_grad_checkpointing", None)
        if setter is not None:
            setter(enable)


class _Padding:
    """Which cells of a map lie outside each image, for every resolution met on the way down."""

    def __init__(self, sizes: Tensor, padded: tuple[int, int]) -> None:
        self.sizes, self.padded = sizes, padded
        self._masks: dict[tuple[int, int], Tensor] = {}

    def outside(self, shape: Any) -> Tensor:
        """bool [I, 1, h, w] for a map of `shape` (h, w)."""
        height, width = int(shape[0]), int(shape[1])
        if (height, width) not in self._masks:
            rows = torch.arange(height, device=self.sizes.device)
            columns = torch.arange(width, device=self.sizes.device)
            valid_h = -(-self.sizes[:, :1] * height // self.padded[0])  # ceil(side / stride)
            valid_w = -(-self.sizes[:, 1:] * width // self.padded[1])
            inside = (rows < valid_h)[:, :, None] & (columns < valid_w)[:, None, :]
            self._masks[height, width] = ~inside[:, None]
        return self._masks[height, width]
