"""CNN weights of timm and torchvision, checked against networks that are not ours; damaged and wrong files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from tiny_models import (
    TEXT,
    random_resnet18,
    randomise,
    relative,
    snapshot,
    tiny_config,
    tiny_core,
    unchanged,
)
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from pixelbert.errors import CheckpointError, UsageError
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.weights import (
    LoadReport,
    WrongWeightsError,
    load_backbone_weights,
)


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return random_resnet18()


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
    model = tiny_core()
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
    model = tiny_core(backbone=name)
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
    model = tiny_core(backbone="efficientnet_b0")
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
        model = tiny_core(image_mean=[0, 0, 0])
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
        load_backbone_weights(tiny_core(), "timm:resnet18.tv_in1k")


@pytest.mark.parametrize("source", ["timm:resnet18.nosuch_tag", "resnet18.a1_in1", "timm:nosuchnet"])
def test_an_unknown_timm_name_suggests(source: str) -> None:
    with pytest.raises(UsageError, match="timm has no weights of that name"):
        load_backbone_weights(tiny_core(), source)


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
    model = tiny_core()
    before = snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        load_backbone_weights(model, str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert unchanged(model, before)


def test_a_file_that_is_not_there() -> None:
    for source in ("nosuch.pth", "./weights", "/no/such/folder", "file:resnet18"):
        with pytest.raises(UsageError, match="no such weights file or folder"):
            load_backbone_weights(tiny_core(), source)


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
    model = tiny_core(backbone=backbone)
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
    model = tiny_core()
    report = load_backbone_weights(model, str(tmp_path / "r34.pth"), strict=False)
    assert torch.equal(model.visual.body.layer4[1].conv2.weight, deeper.layer4[1].conv2.weight)
    assert "layer3.5.bn2.bias" in report.unused
    torch.save({k: v for k, v in deeper.state_dict().items() if not k.startswith("layer2.1.")}, tmp_path / "part.pth")
    report = load_backbone_weights(model, str(tmp_path / "part.pth"), strict=False)
    assert [key for key in report.missing if key.startswith("layer2.1.")] == report.missing
    assert len(report.missing) == 10


def test_the_report_reads_well_and_can_be_saved(resnet18: nn.Module, tmp_path: Path) -> None:
    torch.save(resnet18.state_dict(), tmp_path / "r18.pth")
    report = load_backbone_weights(tiny_core(), str(tmp_path / "r18.pth"))
    text = str(report)
    assert "r18.pth: 120 tensors loaded" in text
    assert "2 unused: fc.weight, fc.bias" in text
    assert "input: RGB, mean [123.675, 116.28, 103.53], std [58.395, 57.12, 57.375] of 0..255" in text
    assert LoadReport(**json.loads(json.dumps(report.to_dict()))) == report


def test_a_larger_network_is_told_under_joined_names_too(tmp_path: Path) -> None:
    """timm's features_only joins `stages.2` to `stages_2`."""
    state = timm.create_model("convnext_atto").state_dict()
    state["stages.2.blocks.99.gamma"] = state["stages.2.blocks.0.gamma"]
    torch.save(state, tmp_path / "larger.pth")
    with pytest.raises(WrongWeightsError, match=r"1 tensors of a larger network: stages\.2\.blocks\.99\.gamma"):
        load_backbone_weights(tiny_core(backbone="convnext_atto"), str(tmp_path / "larger.pth"))
