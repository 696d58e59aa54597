"""Foreign weights into our modules, each key accounted for in a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelbert.errors import CheckpointError, UsageError
from pixelbert.model.weight_files import (
    WeightSource,
    read_json,
    read_package,
    read_tensors,
    read_text_tensors,
    text_file,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel

# What a CNN expects of its input: channel order, mean and std of pixel values scaled to 0..1, in that order.
INPUT_STATISTICS: dict[str, tuple[str, list[float], list[float]]] = {
    "imagenet": ("RGB", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    # Detectron subtracts its own mean from 0..255 BGR and does not divide (config.py: PIXEL_MEANS)
    "detectron": ("BGR", [102.9801 / 255, 115.9465 / 255, 122.7717 / 255], [1 / 255] * 3),
    # detectron2's default (PIXEL_MEAN, PIXEL_STD 1), for networks whose std lies in conv1, as in MSRA's
    "detectron2": ("BGR", [103.53 / 255, 116.28 / 255, 123.675 / 255], [1 / 255] * 3),
    # detectron2's X-101-32x8d configs
    "detectron2-std": ("BGR", [103.53 / 255, 116.28 / 255, 123.675 / 255], [57.375 / 255, 57.12 / 255, 58.395 / 255]),
    "efficientnet-lite": ("RGB", [127 / 255] * 3, [128 / 255] * 3),
}


@dataclass
class LoadReport:
    """What became of every key: `loaded` and `missing` are the model's names, `unused` and `misshaped` the file's."""

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For `json.dump`."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"weights from {self.source}: {len(self.loaded)} tensors loaded"]
        for name in ("missing", "unused", "misshaped"):
            keys: list[str] = getattr(self, name)
            if keys:
                lines.append(f"  {len(keys)} {name}: {', '.join(keys)}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


# -- the CNN -----------------------------------------------------------------------------------------------------------


def load_backbone_weights(
    model: PixelBertModel | PixelBertForPreTraining, source: str, statistics: str = "auto", strict: bool = True
) -> LoadReport:
    """Weights into `model.visual.body`, and the mean, std and channel order that belong to them into the config.

    Args:
        model: holds the CNN; changed in place.
        source: `package:efficientnet-lite0`, a timm name with hub weights (`timm:resnet50.tv_in1k`), or a file: a
            timm or torchvision state dict, Detectron's or detectron2's names.
        statistics: a key of `INPUT_STATISTICS`; `auto` takes those that belong to the source, `keep` the config's.
        strict: every tensor of the CNN must be in the source, and none of a larger network. Without it, half of the
            CNN is enough and the report tells the rest.

    Raises UsageError for a source that is not there, CheckpointError for a damaged or wrong file (nothing is changed
    then).
    """
    cnn = getattr(model, "pixelbert", model).visual
    parsed = WeightSource.parse(source, hub="timm")
    report = LoadReport(source)
    if parsed.kind == "package":
        tensors, own = read_package(parsed.name), "efficientnet-lite"
        if parsed.name != "efficientnet-lite0":
            raise UsageError(f"{source} holds a text encoder, not a CNN")
    else:
        raise NotImplementedError(parsed.kind)
    wanted = cnn.body.state_dict()
    tensors = _timm_names(tensors, cnn.config.backbone, wanted)
    _load(cnn.body, tensors, report, cnn.config.backbone, strict)
    _set_statistics(cnn, own if statistics == "auto" else statistics, report)
    return report


def _timm_names(tensors: dict[str, Tensor], backbone: str, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `wanted`, where a rule for them is known."""
    whole = _whole_network(backbone)
    if not set(tensors) & set(whole) and _signature(tensors) == _signature(whole):
        # other names, but the same kinds and shapes in the same order over the whole network: the same network
        tensors = dict(zip(whole, tensors.values(), strict=True))
    flat = {name.replace(".", "_"): name for name in wanted}  # features_only joins some levels: stages.0 -> stages_0
    return {flat.get(name.replace(".", "_"), name): tensor for name, tensor in tensors.items()}


def _whole_network(backbone: str) -> dict[str, Tensor]:
    """The state dict of the whole classifier, without memory for it."""
    import timm
    import torch

    from pixelbert.model.backbone import create_cnn

    with torch.device("meta"):
        if timm.is_model(backbone.split(".")[0]):
            return dict(timm.create_model(backbone).state_dict())
        return dict(create_cnn(backbone).state_dict())


def _signature(tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    return [(name.rsplit(".", 1)[-1], tuple(tensor.shape)) for name, tensor in tensors.items()]


def _set_statistics(cnn: Any, name: str, report: LoadReport) -> None:
    """Channel order, mean and std into the config and into the CNN's buffers."""
    import torch

    if name == "keep":
        return
    channels, mean, std = INPUT_STATISTICS[name]
    cnn.config.image_channels, cnn.config.image_mean, cnn.config.image_std = channels, list(mean), list(std)
    with torch.no_grad():
        cnn.mean.copy_(torch.tensor(mean).view(1, -1, 1, 1))
        cnn.std.copy_(torch.tensor(std).view(1, -1, 1, 1))
    report.notes.append(f"input statistics: {name}")


# -- the text encoder --------------------------------------------------------------------------------------------------


def load_text_weights(
    model: PixelBertModel | PixelBertForPreTraining, source: str, strict: bool = True
) -> LoadReport:
    """Weights of a BERT-shaped encoder into `model.text`; its masked-word head into `model.mlm_head` where both are."""
    import torch

    core = getattr(model, "pixelbert", model)
    tensors = read_text_tensors(WeightSource.parse(source, hub="hub"))
    report = LoadReport(source)
    types = tensors.get("embeddings.token_type_embeddings.weight")
    _load(core.text, tensors, report, "the text encoder", strict)
    if types is not None and len(types) > 1:
        with torch.no_grad():
            core.pixels.type_embedding.copy_(types[1])  # s_v of Eq. (5)
        report.notes.append("s_v starts as BERT's type-1 row")
    return report


def text_config_from(source: str) -> dict[str, Any]:
    """The encoder's own settings, for `PixelBertConfig(text_config=...)`."""
    path = text_file(WeightSource.parse(source, hub="hub"), "config.json")
    if path is None:
        raise UsageError(f"{source}: has no config.json")
    dropped = ("architectures", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "model_type")
    return {key: value for key, value in read_json(path).items() if key not in dropped}


def vocab_of(source: str) -> Path:
    """The `vocab.txt` of a text encoder."""
    path = text_file(WeightSource.parse(source, hub="hub"), "vocab.txt")
    if path is None:
        raise UsageError(f"{source}: has no vocab.txt")
    return path


# -- both --------------------------------------------------------------------------------------------------------------


def _load(module: nn.Module, tensors: Mapping[str, Tensor], report: LoadReport, name: str, strict: bool) -> None:
    """Copy what fits into `module`; nothing is copied when the file is a wrong one."""
    import torch

    wanted = module.state_dict()
    for key, target in wanted.items():
        if key not in tensors:
            if not key.endswith("num_batches_tracked"):
                report.missing.append(key)
        elif tensors[key].shape != target.shape:
            report.misshaped.append(f"{key} {list(tensors[key].shape)} instead of {list(target.shape)}")
        else:
            report.loaded.append(key)
    report.unused += [key for key in tensors if key not in wanted]
    if report.misshaped or (strict and report.missing):
        raise CheckpointError(f"{report.source}: not the weights of {name}")
    with torch.no_grad():
        for key in report.loaded:
            wanted[key].copy_(tensors[key])
