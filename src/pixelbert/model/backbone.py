"""The CNN: any timm network by name, with padding kept out of every image's features.

Images of several sizes share a batch by padding on the right and at the bottom. A convolution at an image's edge
would read its neighbours' padding (batch norm's shift and earlier kernels make it non-zero), and the features
would depend on who else is in the batch. So what lies outside an image's valid area is zeroed before every
convolution or pooling with a kernel larger than 1; a valid side at stride s is ceil(side / s).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pixelbert.model.config import PixelBertConfig

# Parts of the class names of layers that look at the whole map at once (squeeze-and-excitation, attention, group
# norm, ...): no mask can keep padding out of them, so each image of a padded batch goes through alone.
_GLOBAL_LAYERS = re.compile(
    "Attn|Attention|Squeeze|SEModule|C?[Ee]caModule|EseModule|GatherExcite|Context|Response|GroupNorm|InstanceNorm"
    "|Adaptive|SelectiveKernel|Cbam|NonLocal|LiteMLA|XCA|LambdaLayer|Modulation"
)
_PLACES = re.compile("pos_embed|relative_position")  # learned for a grid of one size


def create_cnn(name: str, output: str = "stage") -> nn.Module:
    """A timm CNN without weights; its forward gives a list whose last item is the feature map.

    Raises ValueError with the nearest name when timm has no such network, and for one that is no CNN.
    """
    name = name.removeprefix("timm/")
    if name == "resnext152_32x8d":  # timm has the class but not this size
        return ResNet(Bottleneck, [3, 8, 36, 3], cardinality=32, base_width=8, num_classes=0, global_pool="")
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, [*timm.list_models(), "resnext152_32x8d"], n=1, cutoff=0.5)
        raise ValueError(f"timm has no network '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    if output == "head":
        body = timm.create_model(name, num_classes=0, global_pool="")
    else:
        body = timm.create_model(name, features_only=True, out_indices=(-1,))
    if any(_PLACES.search(part) for part, _ in body.named_parameters()):
        raise ValueError(f"'{name}' is a Transformer for pictures of one size; a CNN is needed")
    return body


def sleeping_norms(body: nn.Module) -> list[_BatchNorm]:
    """The norms whose scale is zero.

    timm starts the last norm of each residual block there, so that a block is the identity at first: good for long
    training, but a run of a thousand steps from random weights never wakes them, and frozen ones stay so.
    """
    return [m for m in body.modules() if isinstance(m, _BatchNorm) and m.affine and not m.weight.any()]


def wake_residuals(body: nn.Module) -> int:
    """Set the scale of `sleeping_norms` to one; returns how many there were."""
    asleep = sleeping_norms(body)
    for norm in asleep:
        nn.init.ones_(norm.weight)
    return len(asleep)


def _reads_past_the_edge(module: nn.Module) -> bool:
    """Whether a layer's windows overlap and get too little padding for a map's side to be ceil(side / stride): then no
    mask can tell where an image ends. TensorFlow's "same" layers pad as they go."""
    sides = [getattr(module, name, 1) for name in ("kernel_size", "stride", "padding", "dilation")]
    if "Same" in type(module).__name__ or isinstance(sides[2], str):
        return False
    if not all(isinstance(side, int) or len(side) == 2 for side in sides):  # a blur pads by itself
        return False
    pairs = zip(*((side, side) if isinstance(side, int) else side for side in sides), strict=True)
    reach = [(dilation * (kernel - 1) + 1, stride, 2 * padding) for kernel, stride, padding, dilation in pairs]
    return any(window > stride and padding < window - stride for window, stride, padding in reach)


class VisualBackbone(nn.Module):
    """Images -> feature maps, each image's features independent of the others in its batch."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__()
        self.config = config
        self.body: Any = create_cnn(config.backbone, config.backbone_output)
        if config.backbone_norm == "sync":
            self.body = convert_sync_batchnorm(self.body)
        info = self.body.feature_info
        self.stages: list[dict[str, Any]] = list(getattr(info, "info", info))
        self.channels: int = self.stages[-1]["num_chs"]
        if isinstance(getattr(self.body, "num_features", None), int):
            self.channels = self.body.num_features
        self.stride: int = self.stages[-1]["reduction"]
        self.register_buffer("mean", torch.tensor(config.image_mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std).view(1, -1, 1, 1), persistent=False)
        self.mixes_globally = any(
            _GLOBAL_LAYERS.search(type(layer).__name__) or _reads_past_the_edge(layer)
            for name, layer in self.body.named_modules()
            if not name.startswith("global_pool")  # stands behind the map
        )
        self.compute_dtype: torch.dtype | None = None  # autocast of the CNN alone; set by who runs the model
        self._padding: _Padding | None = None
        for module in self.body.modules():
            self._guard(module)
            module._is_hf_initialized = True  # transformers' own first weights would replace timm's, children first
        self.set_frozen_stages(config.frozen_stages)

    # -- padding ---------------------------------------------------------------------------------------------------

    def _guard(self, module: nn.Module) -> None:
        """Zero the padding before `module` if its kernel reaches beyond one cell."""
        kernel = getattr(module, "kernel_size", 1)
        if (max(kernel) if isinstance(kernel, tuple) else kernel) > 1:
            module.register_forward_pre_hook(self._before)  # methods, not closures: a deep copy gets its own
            if isinstance(module, nn.MaxPool2d):
                module.register_forward_hook(self._after_max_pool)

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        fill = float("-inf") if isinstance(module, nn.MaxPool2d) else 0.0
        return (self._fill(args[0], fill), *args[1:])

    def _after_max_pool(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return self._fill(output, 0.0)  # -inf must not reach a 1 x 1 convolution: its gradient would be 0 * inf

    def _fill(self, x: Tensor, value: float) -> Tensor:
        return x if self._padding is None else x.masked_fill(self._padding.outside(x.shape[-2:]), value)

    # -- forward ---------------------------------------------------------------------------------------------------

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [I, 3, H, W] RGB -> the weights' type (float32), scaled to 0..1, in the CNN's channel order, with mean
        and std of its training.

        Float images pass: they are taken as normalised already.
        """
        if images.is_floating_point():
            return images
        if self.config.image_channels == "BGR":
            images = images.flip(1)
        images = ((images.float() / 255 - self.mean) / self.std).to(next(self.body.parameters()).dtype)
        return images.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Feature maps with their mask.

        Args:
            images: uint8 or normalised float [I, 3, H, W], padded on the right and at the bottom.
            sizes: int64 [I, 2], each image's valid height and width; None when nothing is padded.

        Returns:
            features [I, C, h, w] and mask bool [I, h, w], True where a cell belongs to its image.
        """
        images = self.normalise(images)
        if sizes is None or bool((sizes == sizes.new_tensor(images.shape[-2:])).all()):
            features = self._run(images, None)
            return features, features.new_ones(features.shape[0], *features.shape[-2:], dtype=torch.bool)
        if self.mixes_globally:
            return self._one_by_one(images, sizes)
        images = self._pad_to_stride(images)
        padding = _Padding(sizes.to(images.device), (images.shape[-2], images.shape[-1]))
        features = self._run(images, padding)
        return features, ~padding.outside(features.shape[-2:]).squeeze(1)

    def _run(self, images: Tensor, padding: _Padding | None) -> Tensor:
        """The CNN's map [I, C, h, w], with `padding` kept out of it."""
        self._padding = padding
        try:
            if self.compute_dtype is None:
                features = self.body_map(images)
            else:
                with torch.autocast(images.device.type, self.compute_dtype):
                    features = self.body_map(images).float()
        finally:
            self._padding = None
        if self.gradient_checkpointing and features.requires_grad:  # backward runs the CNN again: with this padding
            features.register_hook(lambda _: setattr(self, "_padding", padding))
        return features

    def body_map(self, images: Tensor) -> Tensor:
        """timm's own forward: normalised images -> [I, C, h, w]."""
        if self.config.backbone_output == "head" or not hasattr(self.body.feature_info, "out_indices"):
            features = self.body.forward_features(images)
        else:
            features = self.body(images)[-1]
        return features.permute(0, 3, 1, 2) if "NHWC" in str(getattr(self.body, "output_fmt", "")) else features

    def _pad_to_stride(self, images: Tensor) -> Tensor:
        """Pad to a multiple of the stride, so that a map's side tells its stride exactly."""
        height, width = images.shape[-2:]
        return nn.functional.pad(images, (0, -width % self.stride, 0, -height % self.stride))

    def _one_by_one(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Each image without its padding, then put together: for networks that mix the whole map."""
        maps = [
            self._run(image[None, :, :h, :w], None)[0] for image, (h, w) in zip(images, sizes.tolist(), strict=True)
        ]
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
        parameters = list(self.body.named_parameters())
        frozen = 0 if stages < 0 else len(parameters)
        if 0 <= stages < len(self.stages) - 1:
            frozen = 1 + max(self._places(stages), default=-1)
        for i, (_, parameter) in enumerate(parameters):
            parameter.requires_grad_(i >= frozen)
        if self.config.backbone_norm == "frozen":
            for norm in self._norms():
                norm.requires_grad_(False)
        self.train(self.training)

    def _places(self, stage: int) -> list[int]:
        """Where the stage's parameters stand in the CNN; of a stage that timm names by a layer without any (an
        activation, a pool), those of the layers before it."""
        name = self.stages[stage]["module"].replace(".", "_")
        owners = [name.rpartition(".")[0].replace(".", "_") for name, _ in self.body.named_parameters()]
        if own := [i for i, owner in enumerate(owners) if f"{owner}_".startswith(f"{name}_")]:
            return own
        layers = [layer.replace(".", "_") for layer, _ in self.body.named_modules()]
        before = set(layers[: layers.index(name)]) if name in layers else set()
        return [i for i, owner in enumerate(owners) if owner in before]

    def _norms(self) -> Iterator[nn.Module]:
        return (m for m in self.body.modules() if isinstance(m, _BatchNorm))

    def train(self, mode: bool = True) -> VisualBackbone:
        """Batch norm stays in evaluation mode where it is frozen or its parameters are."""
        super().train(mode)
        for norm in self._norms():
            is_trained = self.config.backbone_norm != "frozen" and all(p.requires_grad for p in norm.parameters())
            norm.train(mode and is_trained)
        return self

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter of the CNN is trained, so that no gradient needs to enter it."""
        return not any(p.requires_grad for p in self.body.parameters())

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations are recomputed in backward; `model.gradient_checkpointing_enable()` sets it."""
        return bool(getattr(self.body, "grad_checkpointing", False))

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        if hasattr(self.body, "set_grad_checkpointing"):
            self.body.set_grad_checkpointing(enable)


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
