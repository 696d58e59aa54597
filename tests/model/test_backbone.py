"""The CNN: timm's own features, padding kept out of them, and what is trained."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from tiny_models import batch_of, random_images, randomise, relative, use_small_resnext
from torch import nn

from pixelbert.model.backbone import VisualBackbone, create_cnn, wake_residuals
from pixelbert.model.config import PixelBertConfig

ODD = [(37, 145), (145, 37), (67, 67), (99, 131)]  # aspect ratios from 1:4 to 4:1
MULTIPLES = [(32, 128), (128, 32), (64, 64), (96, 128)]  # as the processor gives them: multiples of the stride


def visual(backbone: str, seed: int = 0, **settings: object) -> VisualBackbone:
    torch.manual_seed(seed)
    net = VisualBackbone(PixelBertConfig(backbone=backbone, **{"frozen_stages": -1, **settings}))
    randomise(net.body, seed)
    return net.eval()


def same_weights(net: VisualBackbone, **arguments: object) -> nn.Module:
    """timm's own network of that name, made by timm alone, with the weights of `net`."""
    with torch.device("meta"):
        timms = timm.create_model(net.config.backbone, **arguments)
    timms.load_state_dict(net.body.state_dict(), assign=True)
    return timms.eval()


# -- timm's features ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", (67, 97)),
        ("resnet50", (67, 97)),
        ("tf_efficientnet_lite0", (64, 96)),
        ("resnet50_clip", (64, 96)),
        ("resnet50d", (64, 96)),
        ("convnext_atto", (64, 96)),
        ("regnety_002", (65, 97)),
        ("densenet121", (64, 96)),
        ("mobilenetv3_small_050", (64, 96)),
    ],
)
def test_grid_without_padding_is_timms_own(name: str, size: tuple[int, int]) -> None:
    net = visual(name)
    timms = same_weights(net, features_only=True, out_indices=(-1,))
    images = torch.stack(random_images([size, size]))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        features, mask = net(images)
        expected = timms((images / 255.0 - mean) / std)[-1]
    assert features.shape[1] == net.channels
    assert relative(expected, features) < 1e-5
    assert mask.shape == expected[:, 0].shape
    assert mask.all()


def test_a_network_that_gives_channels_last_maps_is_turned() -> None:
    net = visual("mambaout_femto")
    timms = same_weights(net, features_only=True, out_indices=(-1,))
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert relative(timms(images)[-1].permute(0, 3, 1, 2), net(images)[0]) < 1e-5


def test_head_output_is_timms_forward_features() -> None:
    net = visual("tf_efficientnet_lite0", backbone_output="head")
    timms = same_weights(net, num_classes=0)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = net(images)[0]
        assert features.shape == (1, 1280, 2, 3)
        assert relative(timms.forward_features(images), features) < 1e-5
    assert net.channels == 1280


def test_resnext152_has_120_million_parameters_and_timms_block() -> None:
    with torch.device("meta"):
        cnn = create_cnn("resnext152_32x8d")
    assert round(sum(p.numel() for p in cnn.parameters()) / 1e6, 2) == 120.32
    assert [len(stage) for stage in (cnn.layer1, cnn.layer2, cnn.layer3, cnn.layer4)] == [3, 8, 36, 3]
    assert cnn.layer1[0].conv2.groups == 32
    assert cnn.layer1[0].conv2.out_channels == 32 * 8
    strides = [cnn.layer2[0].conv1.stride, cnn.layer2[0].conv2.stride]
    assert strides == [(1, 1), (2, 2)]  # as Detectron's X-152 with STRIDE_1X1 False


@pytest.mark.parametrize(("name", "close"), [("resnet50_nosuch", "resnet50"), ("resnet5O", "resnet50")])
def test_an_unknown_network_names_a_similar_one(name: str, close: str) -> None:
    with pytest.raises(ValueError, match=f"timm has no network '{name}'; did you mean '{close}.*'"):
        create_cnn(name)


def test_a_transformer_is_no_cnn() -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="'vit_tiny_patch16_224' is a Transformer"):
        create_cnn("vit_tiny_patch16_224")


def test_a_name_as_the_hub_has_it() -> None:
    with torch.device("meta"):
        assert create_cnn("timm/resnet18.a1_in1k").feature_info[-1]["num_chs"] == 512


def test_images_take_the_type_of_the_weights() -> None:
    net = visual("test_resnet").to(torch.bfloat16)
    features, _ = net(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert features.dtype == torch.bfloat16 and torch.isfinite(features).all()


def test_normalisation_takes_mean_std_and_channel_order_from_the_config() -> None:
    net = visual("resnet18", image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.25, 1.0], image_channels="BGR")
    image = torch.tensor([51, 102, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert torch.allclose(
        net.normalise(image).flatten(), torch.tensor([(1.0 - 0.1) / 0.5, (0.4 - 0.2) / 0.25, 0.2 - 0.3])
    )
    ready = torch.randn(1, 3, 4, 4)
    assert net.normalise(ready) is ready


# -- padding -----------------------------------------------------------------------------------------------------------


def check_alone_equals_batch(net: VisualBackbone, sizes: list[tuple[int, int]], must_leak: bool = True) -> None:
    """Each image's features alone, against its place in a batch; and that they would differ without the hooks."""
    images = random_images(sizes)
    batch, valid = batch_of(images)
    with torch.no_grad():
        features, mask = net(batch, valid)
        unguarded = net._run(net._pad_to_stride(net.normalise(batch)), None)
        leaks = []
        for i, image in enumerate(images):
            alone, _ = net(image[None])
            height, width = alone.shape[-2:]
            assert mask[i].sum() == height * width
            assert mask[i, :height, :width].all()
            assert relative(alone[0], features[i, :, :height, :width]) < 1e-4
            leaks.append(relative(alone[0], unguarded[i, :, :height, :width]))
    if must_leak:
        assert max(leaks) > 1e-2  # or this test could not fail


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnetv2_18", "efficientnet_lite0"])
def test_alone_equals_batch_at_odd_sizes(name: str) -> None:
    check_alone_equals_batch(visual(name), ODD)


def test_alone_equals_batch_at_odd_sizes_resnext152_class(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_resnext(monkeypatch)
    check_alone_equals_batch(visual("resnext152_32x8d"), ODD)


@pytest.mark.slow
def test_alone_equals_batch_at_odd_sizes_resnext152() -> None:
    check_alone_equals_batch(visual("resnext152_32x8d"), ODD)


@pytest.mark.parametrize(
    "name", ["tf_efficientnet_lite0", "resnet50_clip", "resnet50d", "convnext_tiny", "resnetblur50"]
)
def test_alone_equals_batch_at_multiples_of_the_stride(name: str) -> None:
    check_alone_equals_batch(visual(name), MULTIPLES)


@pytest.mark.parametrize(
    "name",
    [
        "regnety_002",
        "legacy_seresnet18",
        "efficientnet_b0",
        "convnextv2_atto",
        "hgnet_tiny",
        "hgnetv2_b0",
    ],
)
def test_networks_that_look_at_the_whole_map_or_past_its_edge_take_images_one_by_one(name: str) -> None:
    net = visual(name)
    assert net.mixes_globally
    check_alone_equals_batch(net, MULTIPLES, must_leak=not name.startswith("hgnetv2"))  # that one leaks little


def test_plain_networks_take_the_batch_at_once() -> None:
    for name in (
        "resnet50",
        "tf_efficientnet_lite0",
        "resnet50_clip",
        "resnet50d",
        "convnext_atto",
        "resnext152_32x8d",
    ):
        with torch.device("meta"):
            assert not VisualBackbone(PixelBertConfig(backbone=name)).mixes_globally
    with torch.device("meta"):  # its convolutions are not padded at all
        assert VisualBackbone(PixelBertConfig(backbone="inception_v3")).mixes_globally


def test_a_cell_is_valid_if_any_of_its_image_is() -> None:
    _, mask = visual("resnet18")(torch.zeros(3, 3, 70, 100), torch.tensor([[33, 100], [70, 1], [32, 64]]))
    assert mask.shape == (3, 3, 4)
    assert [m.nonzero().max(0).values.tolist() for m in mask] == [[1, 3], [2, 0], [0, 1]]


def test_equal_sizes_smaller_than_the_padded_tensor_are_masked_too() -> None:
    net = visual("resnet18")
    images = random_images([(40, 50), (40, 50)])
    batch, sizes = batch_of([*images, torch.zeros(3, 64, 64, dtype=torch.uint8)])
    with torch.no_grad():
        features, mask = net(batch[:2], sizes[:2])
        alone, _ = net(images[0][None])
    assert mask.sum() == 2 * 2 * 2
    assert relative(alone[0], features[0, :, :2, :2]) < 1e-4


@pytest.mark.parametrize("name", ["resnet18", "resnet26"])  # 3 x 3 and 1 x 1 convolutions behind the stem's pool
def test_gradients_of_a_padded_batch_are_the_sum_of_those_alone(name: str) -> None:
    net = visual(name, backbone_norm="train").double()  # float64: what is left is leakage, not rounding
    pixel_values, sizes = batch_of(random_images([(33, 70), (64, 40)]))
    pixel_values = pixel_values.double() / 128 - 1
    weights = [torch.randn(2, 3).double(), torch.randn(2, 2).double()]
    for image, (h, w), weight in zip(pixel_values, sizes.tolist(), weights, strict=True):
        (net(image[None, :, :h, :w])[0][0] * weight).sum().backward()
    alone = {name: p.grad.clone() for name, p in net.named_parameters()}
    net.zero_grad()
    features, _ = net(pixel_values, sizes)
    ((features[0, :, :2, :3] * weights[0]).sum() + (features[1, :, :2, :2] * weights[1]).sum()).backward()
    for name, parameter in net.named_parameters():
        assert relative(alone[name], parameter.grad) < 1e-9, name


def test_no_padding_is_remembered_after_a_batch() -> None:
    net, images = visual("resnet18"), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = net.body(images)[-1]
        net(images, torch.tensor([[33, 96], [64, 40]]))
        assert torch.equal(net.body(images)[-1], before)


def test_a_deep_copy_masks_by_its_own_sizes() -> None:
    net = visual("resnet18")
    twin = copy.deepcopy(net)
    images = random_images([(33, 70), (64, 40)])
    with torch.no_grad():
        net(images[1][None])  # the original has no padding now
        check_alone_equals_batch(twin, [(33, 70), (64, 100)])


# -- what is trained ---------------------------------------------------------------------------------------------------


# The first CNN parameter that is trained, for each value of frozen_stages: written by hand from the networks' layouts.
FIRST_TRAINED = {
    "resnet50": ["conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", None, None],
    "tf_efficientnet_lite0": ["conv_stem", "blocks.1.0", "blocks.2.0", "blocks.3.0", "blocks.5.0", None, None],
}


@pytest.mark.parametrize("name", list(FIRST_TRAINED))
@pytest.mark.parametrize("stages", range(-1, 6))
def test_gradients_reach_the_first_unfrozen_stage_and_none_below(name: str, stages: int) -> None:
    net = visual(name, backbone_norm="train", frozen_stages=stages)
    first = FIRST_TRAINED[name][stages + 1]
    assert net.is_frozen == (first is None)
    if first is None:
        assert not any(p.requires_grad for p in net.body.parameters())
        return
    net(torch.randn(1, 3, 64, 64))[0].sum().backward()
    names = [key for key, _ in net.body.named_parameters()]
    start = next(i for i, key in enumerate(names) if key.startswith(first + "."))
    for i, (key, parameter) in enumerate(net.body.named_parameters()):
        assert (parameter.grad is not None) == (i >= start), key
        if i >= start and parameter.ndim > 1:
            assert parameter.grad.abs().sum() > 0, key


def test_stages_without_weights_of_their_own_end_where_they_stand() -> None:
    """timm names VGG's stages by activations and pools."""
    for stages, frozen in ((0, 2), (1, 4), (2, 8), (5, 16), (-1, 0)):
        net = visual("vgg11", frozen_stages=stages)
        assert [p.requires_grad for p in net.body.parameters()] == [False] * frozen + [True] * (16 - frozen)


def test_stages_can_be_unfrozen_later() -> None:
    net = visual("resnet18", backbone_norm="train", frozen_stages=9).train()
    assert net.is_frozen
    net.set_frozen_stages(2)
    trained = {name.split(".")[0] for name, p in net.body.named_parameters() if p.requires_grad}
    assert trained == {"layer3", "layer4"}
    assert net.body.layer3[0].bn1.training
    assert not net.body.layer2[0].bn1.training


@pytest.mark.parametrize("norm", ["frozen", "train", "sync"])
def test_batch_norm_is_frozen_where_the_config_says(norm: str) -> None:
    net = visual("resnet18", backbone_norm=norm, frozen_stages=1).train()
    before = copy.deepcopy(net.body.state_dict())
    features = net(torch.randn(2, 3, 64, 64))[0]
    features.sum().backward()
    changed = {key.split(".")[0] for key, value in net.body.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == (set() if norm == "frozen" else {"layer2", "layer3", "layer4"})
    norms = [m for m in net.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    trained = [m for m in norms if m.weight.requires_grad]
    assert len(trained) == (0 if norm == "frozen" else len(norms) - 5)  # stem and layer1 hold five
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms) == (norm == "sync")
    assert not any(m.training for m in net.eval().modules())


# -- gradient checkpointing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "resnext152_32x8d", "convnext_atto"])
def test_gradient_checkpointing_gives_the_same_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_resnext(monkeypatch)
    net = visual(name, frozen_stages=0)
    batches = [batch_of(random_images(sizes)) for sizes in ([(32, 96), (64, 32)], [(64, 64), (32, 64)])]

    def gradients() -> dict[str, torch.Tensor]:
        net.zero_grad()
        outputs = [net(*batch)[0] for batch in batches]  # the second batch passes before the first one's backward
        sum((output.square() * (i + 1)).sum() for i, output in enumerate(outputs)).backward()
        return {key: p.grad.clone() for key, p in net.named_parameters() if p.grad is not None}

    runs = []
    convolutions = [m for m in net.body.modules() if isinstance(m, nn.Conv2d)]
    convolutions[len(convolutions) // 2].register_forward_hook(lambda *_: runs.append(1))
    plain, runs_plain = gradients(), len(runs)
    net.gradient_checkpointing = True
    assert net.gradient_checkpointing
    recomputed = gradients()
    assert len(runs) > 2 * runs_plain  # it was run again in backward
    assert plain.keys() == recomputed.keys()
    for key, value in plain.items():
        assert torch.allclose(value, recomputed[key], rtol=1e-5, atol=1e-6 * float(value.abs().max())), key
    net.gradient_checkpointing = False
    assert not net.gradient_checkpointing


def test_residual_blocks_that_start_as_the_identity_can_be_woken() -> None:
    body = create_cnn("resnet18")
    asleep = [m for m in body.modules() if isinstance(m, torch.nn.BatchNorm2d) and not m.weight.any()]
    assert wake_residuals(body) == len(asleep) == 8 and all((m.weight == 1).all() for m in asleep)
    assert wake_residuals(body) == 0
