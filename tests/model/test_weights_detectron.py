"""Detectron's files: names, affine norms, input; pickles that hold more than arrays."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    random_images,
    randomise,
    relative,
    small_resnext,
    snapshot,
    tiny_core,
    unchanged,
    use_small_resnext,
)
from torch import Tensor
from torch.nn import functional

from pixelbert.errors import CheckpointError, UsageError
from pixelbert.model import weight_files
from pixelbert.model.backbone import create_cnn
from pixelbert.model.modeling import PixelBertModel
from pixelbert.model.weights import (
    _detectron_name,
    load_backbone_weights,
)

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
    model = tiny_core(backbone="resnext152_32x8d")
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
    model = tiny_core(backbone="resnext152_32x8d")
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
    model = tiny_core(backbone="resnext152_32x8d")
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
    model, path = tiny_core(), tmp_path / "weights.pkl"
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
        load_backbone_weights(tiny_core(), str(tmp_path / "weights.pth"))
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
