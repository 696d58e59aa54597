"""Foreign weights into our modules: every key accounted for in a report, a wrong file refused before it changes any."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from pixelbert.errors import CheckpointError, UsageError, nearest
from pixelbert.model.weight_files import (
    PACKAGES,
    WeightSource,
    read_json,
    read_package,
    read_tensors,
    read_text_tensors,
    text_file,
    timm_tensors,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel, PixelBertPreTrainedModel

    Model = TypeVar("Model", bound=PixelBertPreTrainedModel)

Statistics = tuple[str, Sequence[float], Sequence[float]]

# What a CNN expects of its input: channel order, mean and std of pixel values scaled to 0..1, in that order.
INPUT_STATISTICS: dict[str, Statistics] = {
    "imagenet": ("RGB", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Detectron subtracts its mean from 0..255 BGR and divides by nothing, for X-152-32x8d-IN5k too (PIXEL_MEANS)
    "detectron": ("BGR", (102.9801 / 255, 115.9465 / 255, 122.7717 / 255), (1 / 255,) * 3),
    # detectron2's defaults (PIXEL_MEAN, PIXEL_STD 1), which its X-152-32x8d-IN5k config keeps: std is part of conv1
    "detectron2": ("BGR", (103.53 / 255, 116.28 / 255, 123.675 / 255), (1 / 255,) * 3),
    # detectron2's X-101-32x8d configs
    "detectron2-std": ("BGR", (103.53 / 255, 116.28 / 255, 123.675 / 255), (57.375 / 255, 57.12 / 255, 58.395 / 255)),
    "efficientnet-lite": ("RGB", (127 / 255,) * 3, (128 / 255,) * 3),
}


@dataclass
class LoadReport:
    """What became of every key.

    `loaded` and `missing` are names of the model, `unused` names of the source, `misshaped` both with their shapes.
    """

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
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        for name in ("missing", "unused", "misshaped"):
            keys: list[str] = getattr(self, name)
            if keys:
                lines.append(f"  {len(keys)} {name}: {', '.join(keys)}")
        return "\n".join(lines + [f"  {note}" for note in self.notes])


class WrongWeightsError(CheckpointError):
    """The source holds the weights of something else; `report` lists every key."""

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report


# -- the CNN -----------------------------------------------------------------------------------------------------------


def load_backbone_weights(
    model: PixelBertModel | PixelBertForPreTraining, source: str, statistics: str = "auto", strict: bool = True
) -> LoadReport:
    """Weights into the CNN; the mean, std and channel order that belong to them into the config and the CNN's buffers.

    Args:
        model: changed in place.
        source: `package:efficientnet-lite0`, a timm name with hub weights (`timm:resnet50.tv_in1k`), or a file: a
            timm or torchvision state dict, or one with Detectron's or detectron2's names.
        statistics: a key of `INPUT_STATISTICS`; `auto` takes those that belong to the source, `keep` the config's.
        strict: every tensor of the CNN must be in the source, which must hold no larger network. Without it half of
            the CNN is enough.

    Raises UsageError for a source that is not there, CheckpointError for a damaged file, WrongWeightsError (a
    CheckpointError) for a wrong one; the model is as before then.
    """
    if statistics not in (*INPUT_STATISTICS, "auto", "keep"):
        raise UsageError(
            f"no input statistics '{statistics}'; {nearest(statistics, (*INPUT_STATISTICS, 'auto', 'keep'))}"
        )
    cnn = _core(model).visual
    backbone, parsed, own = cnn.config.backbone, WeightSource.parse(source, hub="timm"), None
    if parsed.kind == "hub" or (parsed.kind == "package" and PACKAGES[parsed.name].text):
        raise UsageError(f"{source}: a text encoder, not a CNN")
    if parsed.kind == "package":
        tensors = read_package(parsed.name)
    elif parsed.kind == "timm":
        tensors, mean, std = timm_tensors(parsed)
        own = ("RGB", mean, std)
    else:
        tensors = read_tensors(Path(parsed.name))
    names, naming = _cnn_names(tensors, backbone, cnn.body)
    values = {names[key]: tensor for key, tensor in tensors.items() if names[key]}
    if naming in ("detectron", "detectron2"):
        values.update(_affine_statistics(values, cnn.body))
    report = LoadReport(source, notes=[f"names: {naming}"])
    _load(cnn.body.state_dict(), values, names, report, f"the CNN {backbone}", strict)
    if statistics == "auto":
        _set_statistics(model, own or _statistics_of(naming, backbone), report)
    elif statistics != "keep":
        _set_statistics(model, INPUT_STATISTICS[statistics], report)
    return report


def _cnn_names(tensors: Mapping[str, Tensor], backbone: str, body: nn.Module) -> tuple[dict[str, str], str]:
    """The source's name -> the body's ("" where there is none), and which kind of names the source has."""
    flat = {key.replace(".", "_"): key for key in body.state_dict()}  # features_only joins levels: stages.0 -> stages_0
    found = _without_prefix(tensors, flat)
    if 2 * sum(name in flat.values() for name in found.values()) < len(flat):
        translated = {key: name for key in tensors if (name := _detectron_name(key)) is not None}
        if translated:
            naming = "detectron" if any(key.endswith("_w") for key in translated) else "detectron2"
            return {key: translated.get(key, "") for key in tensors}, naming
        whole = _whole_network(backbone)
        if _signature(tensors) == _signature(whole):
            in_order = zip(tensors, whole, strict=True)
            return {key: flat.get(name.replace(".", "_"), name) for key, name in in_order}, "others, mapped in order"
    return found, "timm or torchvision"


def _without_prefix(tensors: Mapping[str, Tensor], flat: Mapping[str, str]) -> dict[str, str]:
    """Each key -> its name in `flat`, without the prefix (`module.`, `backbone.`, ...) that most have in common.

    `flat` gives the wanted names by themselves with every dot as an underscore.
    """
    counts = Counter({"": 0})
    for key in tensors:
        parts = key.split(".")
        counts.update(
            "".join(f"{part}." for part in parts[:i]) for i in range(len(parts)) if "_".join(parts[i:]) in flat
        )
    prefix = counts.most_common(1)[0][0]
    bare = {key: key.removeprefix(prefix) for key in tensors}
    return {key: flat.get(name.replace(".", "_"), name) for key, name in bare.items()}


_CAFFE2_NAME = re.compile(
    r"(?:gpu_0/)?(?:(?:res_)?(?P<stem>conv1)|res(?P<stage>[2-5])_(?P<block>\d+)_branch(?P<branch>1|2a|2b|2c))_"
    r"(?P<kind>w|bn_(?:s|b|rm|riv|gamma|beta|running_mean|running_var))"
)
_DETECTRON2_NAME = re.compile(
    r"(?:.*\.)?(?:stem\.(?P<stem>conv1)|res(?P<stage>[2-5])\.(?P<block>\d+)\.(?P<branch>conv[123]|shortcut))"
    r"\.(?P<kind>weight|norm\.(?:weight|bias|running_mean|running_var))"
)
_KINDS = {
    "w": "weight",
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "riv": "running_var",
}


def _detectron_name(key: str) -> str | None:
    """timm's name for a tensor of Detectron (`res2_0_branch2a_bn_s`) or detectron2 (`res2.0.conv1.norm.bias`)."""
    match = _CAFFE2_NAME.fullmatch(key) or _DETECTRON2_NAME.fullmatch(key)
    if match is None:
        return None
    is_norm = match["kind"] not in ("w", "weight")
    kind = match["kind"].removeprefix("bn_").removeprefix("norm.")
    kind = _KINDS.get(kind, kind)
    if match["stem"]:
        return f"{'bn1' if is_norm else 'conv1'}.{kind}"
    place = f"layer{int(match['stage']) - 1}.{match['block']}"
    if match["branch"] in ("1", "shortcut"):
        return f"{place}.downsample.{int(is_norm)}.{kind}"
    number = {"2a": "1", "2b": "2", "2c": "3"}.get(match["branch"], match["branch"][-1])
    return f"{place}.{'bn' if is_norm else 'conv'}{number}.{kind}"


def _affine_statistics(values: Mapping[str, Tensor], body: nn.Module) -> dict[str, Tensor]:
    """Mean 0 and variance 1 - eps for batch norms that come as a bare scale and bias, so that they are just that."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return {
        f"{name}.running_{kind}": torch.full((norm.num_features,), value)
        for name, norm in body.named_modules()
        if isinstance(norm, _BatchNorm) and f"{name}.weight" in values
        for kind, value in (("mean", 0.0), ("var", 1.0 - norm.eps))
        if f"{name}.running_{kind}" not in values
    }


def _whole_network(backbone: str) -> dict[str, Tensor]:
    """The state dict of the whole classifier, without memory for it."""
    import timm

    from pixelbert.model.backbone import create_cnn

    with torch.device("meta"):
        is_timm = timm.is_model(backbone.split(".")[0])
        return dict((timm.create_model(backbone) if is_timm else create_cnn(backbone)).state_dict())


def _signature(tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
    """Kind (weight, bias, running_mean, ...) and shape of every tensor, in order."""
    return [(name.rsplit(".", 1)[-1], tuple(tensor.shape)) for name, tensor in tensors.items()]


def _statistics_of(naming: str, backbone: str) -> Statistics:
    """The input statistics of a file, which holds none, by its names and the network."""
    import timm

    if naming in INPUT_STATISTICS:
        return INPUT_STATISTICS[naming]
    if naming.startswith("others") and "efficientnet_lite" in backbone:
        return INPUT_STATISTICS["efficientnet-lite"]
    pretrained = timm.get_pretrained_cfg(backbone) if timm.is_model(backbone.split(".")[0]) else None
    return ("RGB", pretrained.mean, pretrained.std) if pretrained else INPUT_STATISTICS["imagenet"]


def _set_statistics(
    model: PixelBertModel | PixelBertForPreTraining, statistics: Statistics, report: LoadReport
) -> None:
    """Channel order, mean and std into the config and into the CNN's buffers."""
    channels, mean, std = statistics
    cnn = _core(model).visual
    for config in (model.config, cnn.config):
        config.image_channels, config.image_mean, config.image_std = channels, list(mean), list(std)
    with torch.no_grad():
        for buffer, value in ((cnn.get_buffer("mean"), mean), (cnn.get_buffer("std"), std)):
            buffer.copy_(torch.tensor(value).view(1, -1, 1, 1))
    shown = [
        f"[{', '.join(f'{255 * value:.4f}'.rstrip('0').rstrip('.') for value in values)}]" for values in (mean, std)
    ]
    report.notes.append(f"input: {channels}, mean {shown[0]}, std {shown[1]} of 0..255")


# -- the text encoder --------------------------------------------------------------------------------------------------

_BERT_SHAPED = ("bert", "electra")  # model types of the hub with BERT's own arithmetic
_BERT_SETTINGS = (
    "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range",
    "intermediate_size", "layer_norm_eps", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "pad_token_id", "type_vocab_size", "vocab_size",
)  # fmt: skip
_MLM_HEAD = re.compile(r"(?:.*\.)?cls\.predictions\.(?P<name>transform\..*|bias)")  # its decoder is tied


def load_text_weights(
    model: PixelBertModel | PixelBertForPreTraining,
    source: str,
    type_embedding_init: str = "bert",
    strict: bool = True,
) -> LoadReport:
    """Weights of a BERT-shaped encoder into `model.text`, its masked-word head into `mlm_head` where both have one.

    Args:
        model: changed in place.
        source: `package:minilm-l6`, a hub name (`bert-base-uncased`), a folder, or a weights file.
        type_embedding_init: s_v of Eq. (5) starts as `bert`'s type-1 row, or stays `random`.
        strict: as for `load_backbone_weights`.

    Raises UsageError for a source that is not there or whose config.json is of no BERT-shaped encoder, CheckpointError
    for a damaged file, WrongWeightsError (a CheckpointError) for a wrong one; the model is as before then.
    """
    if type_embedding_init not in ("bert", "random"):
        raise UsageError(
            f"no type_embedding_init '{type_embedding_init}'; {nearest(type_embedding_init, ('bert', 'random'))}"
        )
    core = _core(model)
    _check_described(source)
    tensors = {
        key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for key, tensor in read_text_tensors(_text_source(source)).items()
    }
    targets = core.text.state_dict()
    names = _without_prefix(tensors, {key.replace(".", "_"): key for key in targets})
    head: nn.Module | None = getattr(model, "mlm_head", None)
    if head is not None:
        targets |= {f"mlm_head.{key}": tensor for key, tensor in head.state_dict().items() if "decoder" not in key}
        names |= {key: f"mlm_head.{match['name']}" for key in tensors if (match := _MLM_HEAD.fullmatch(key))}
    values = {name: tensors[key] for key, name in names.items()}
    report = LoadReport(source)
    _load(targets, values, names, report, "the text encoder", strict, fresh=("mlm_head.",))
    types = values.get("embeddings.token_type_embeddings.weight")
    if type_embedding_init == "bert" and types is not None and len(types) > 1:
        with torch.no_grad():
            core.pixels.type_embedding.copy_(types[1])
        report.notes.append("s_v of Eq. (5) starts as BERT's type-1 row")
    return report


def text_config_from(source: str) -> dict[str, Any]:
    """The settings in the encoder's own config.json, for `PixelBertConfig(text_config=...)`.

    Raises UsageError when the source has none or is no BERT-shaped encoder, CheckpointError when it is damaged.
    """
    path = text_file(_text_source(source), "config.json")
    if path is None:
        raise UsageError(f"{source}: has no config.json, which tells the encoder's sizes")
    return {key: value for key, value in _settings(path).items() if key in _BERT_SETTINGS}


def _settings(path: Path) -> dict[str, Any]:
    """A config.json of a BERT-shaped encoder. Raises UsageError for another, CheckpointError for a damaged file."""
    settings = read_json(path)
    kind = settings.get("model_type", "bert")
    if kind not in _BERT_SHAPED or settings.get("embedding_size", settings.get("hidden_size")) != settings.get(
        "hidden_size"
    ):
        raise UsageError(
            f"{path}: an encoder of type '{kind}', which is not BERT-shaped; expected {' or '.join(_BERT_SHAPED)}"
        )
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise UsageError(f"{path}: relative positions; the text encoder has BERT's absolute ones")
    return settings


def _check_described(source: str) -> None:
    """Where a config.json is there, it is of a BERT-shaped encoder: RoBERTa's tensors have BERT's names and shapes, and
    count positions otherwise. Without a network the cache of a hub may hold the weights alone.
    """
    parsed = _text_source(source)
    try:
        path = text_file(parsed, "config.json")
    except UsageError:
        return
    if path is not None:
        _settings(path)


def vocab_of(source: str) -> Path:
    """The `vocab.txt` of a text encoder; raises UsageError when it has none."""
    path = text_file(_text_source(source), "vocab.txt")
    if path is None:
        raise UsageError(f"{source}: has no vocab.txt")
    return path


def _text_source(source: str) -> WeightSource:
    parsed = WeightSource.parse(source, hub="hub")
    if parsed.kind == "timm" or (parsed.kind == "package" and not PACKAGES[parsed.name].text):
        raise UsageError(f"{source}: a CNN, not a text encoder")
    return parsed


# -- both --------------------------------------------------------------------------------------------------------------


def _core(model: PixelBertModel | PixelBertForPreTraining) -> PixelBertModel:
    return cast("PixelBertModel", getattr(model, "pixelbert", model))


def _load(
    targets: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    names: Mapping[str, str],
    report: LoadReport,
    what: str,
    strict: bool,
    fresh: tuple[str, ...] = (),
) -> None:
    """Copy `values` into `targets`, by name, if they are the right ones. `fresh`: prefixes of what may be missing."""
    for name, target in targets.items():
        if name not in values:
            if not name.endswith("num_batches_tracked"):
                report.missing.append(name)
        elif values[name].shape != target.shape:
            report.misshaped.append(f"{name} {list(values[name].shape)} instead of {list(target.shape)}")
        else:
            report.loaded.append(name)
    report.unused = [key for key, name in names.items() if name not in targets]
    missing = [name for name in report.missing if not name.startswith(fresh)]
    # a tensor below a part that we have too, and yet not ours: the source is a larger network of the same kind
    parts = tuple({f"{name.split('.')[0]}_" for name in targets})
    unused = [key for key in report.unused if not key.endswith("position_ids")]
    larger = [key for key in unused if names[key].replace(".", "_").startswith(parts)]
    if 2 * len(report.loaded) < len(targets) and not report.misshaped:
        problem = f"{len(names)} tensors (first {_first(names)}), of which {len(report.loaded)} belong to it"
    elif report.misshaped:
        problem = f"{len(report.misshaped)} tensors of another shape: {_first(report.misshaped)}"
    elif strict and missing:
        problem = f"{len(missing)} tensors are missing: {_first(missing)}"
    elif strict and larger:
        problem = f"{len(larger)} tensors of a larger network: {_first(larger)}"
    elif broken := [name for name in report.loaded if not values[name].isfinite().all()]:
        problem = f"{len(broken)} tensors hold numbers that are infinite or not a number: {_first(broken)}"
    else:
        problem = ""
    if problem:
        raise WrongWeightsError(f"{report.source}: not the weights of {what}: {problem}", report)
    with torch.no_grad():
        for name in report.loaded:
            targets[name].copy_(values[name])


def _first(keys: Iterable[str], count: int = 3) -> str:
    names = list(keys)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def load_pretrained(cls: type[Model], folder: str | Path, fresh: Sequence[str] = ()) -> Model:
    """`cls.from_pretrained(folder)`, where anything missing, unexpected or misshaped is an error and not a warning.

    Args:
        cls: a model class of ours.
        folder: as `save_pretrained` wrote it.
        fresh: prefixes of keys that may be missing and start from random weights, or be there without use (heads).

    Raises CheckpointError for a folder that is not there, damaged, or of another shape than its config or `cls`.
    """
    import transformers

    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no model here (no config.json)")
    kind = read_json(path).get("model_type")
    if kind != cls.config_class.model_type:
        raise CheckpointError(f"{path}: a model of type '{kind}', expected '{cls.config_class.model_type}'")
    level, bars = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.set_verbosity_error()  # its table of keys would stand beside our sentence
    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = cls.from_pretrained(folder, output_loading_info=True, ignore_mismatched_sizes=True)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{folder}: cannot be loaded ({reason[0][:200] if reason else type(error).__name__})"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
    misshaped = [f"{name} {list(theirs)} instead of {list(ours)}" for name, theirs, ours in info["mismatched_keys"]]
    for problem, keys in (
        ("of another shape", misshaped),
        ("missing", info["missing_keys"]),
        ("unknown", info["unexpected_keys"]),
    ):
        wrong = sorted(key for key in keys if not key.startswith(tuple(fresh)))
        if wrong:
            raise CheckpointError(
                f"{folder}: does not fit {cls.__name__}: {len(wrong)} tensors {problem}: {_first(wrong)}"
            )
    return model
