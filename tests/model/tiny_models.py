"""Small random models for the tests of the model folder, built in code; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from pixelbert.model import backbone
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.modeling import PixelBertModel

TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}


def tiny_config(**settings: Any) -> PixelBertConfig:
    """A 2-layer, 32-wide Pixel-BERT over a ResNet-18, unless told otherwise."""
    return PixelBertConfig(text_config=dict(TEXT), **{"backbone": "resnet18", "num_sampled_pixels": 0, **settings})


def tiny_core(**settings: Any) -> PixelBertModel:
    """The bare model of `tiny_config`, the same one each time."""
    torch.manual_seed(0)
    return PixelBertModel(tiny_config(**settings)).eval()


def random_resnet18() -> nn.Module:
    """torchvision's network with random weights: a source, and the judge of what we loaded from it."""
    torch.manual_seed(1)
    network = torchvision.models.resnet18(weights=None).eval()
    randomise(network)
    return network


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether the weights are those of the snapshot."""
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def small_resnext(name: str, output: str = "stage") -> nn.Module:
    """ResNeXt-152 32x8d's own class and block, four blocks deep: stands in where the full network is slow."""
    narrow = (32, 64, 128, 256)
    return ResNet(Bottleneck, [1, 1, 1, 1], 0, cardinality=32, base_width=8, global_pool="", channels=narrow)


def use_small_resnext(monkeypatch: Any) -> None:
    """`resnext152_32x8d` builds the small one for the length of a test."""
    original = backbone.create_cnn
    monkeypatch.setattr(
        backbone,
        "create_cnn",
        lambda name, output="stage": small_resnext(name) if name == "resnext152_32x8d" else original(name, output),
    )


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Vectors (norms, biases, layer scales) away from their neutral start, so that padding would show."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim <= 1:
            base = 1.0 if name.endswith(("weight", "gamma")) else 0.2
            parameter.copy_(base + 0.3 * torch.randn(parameter.shape, generator=generator))
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.copy_(0.5 * torch.randn(part.running_mean.shape, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.running_var.shape, generator=generator))


def random_images(sizes: list[tuple[int, int]], seed: int = 0) -> list[Tensor]:
    """uint8 [3, h, w] each."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8) for h, w in sizes]


def batch_of(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Images of several sizes padded to the largest, with their sizes. The padding is noise: no model may read it."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = sizes.max(0).values.tolist()
    generator = torch.Generator().manual_seed(99)
    batch = torch.randint(0, 256, (len(images), 3, height, width), generator=generator, dtype=torch.uint8)
    for slot, image in zip(batch, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value of `a`."""
    return float((a - b).detach().abs().max() / a.detach().abs().max())
