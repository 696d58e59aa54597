"""Eq. (1) to (8): equal to BERT on text, a pair equal to itself in any batch, and saved and loaded without loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import TEXT, batch_of, random_images, randomise, relative, tiny_config, use_small_resnext
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, BertConfig, BertModel

import pixelbert
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.image_processing import ResizeRule, multiple_for_backbone
from pixelbert.model.modeling import PixelBertForPreTraining, PixelBertModel
from pixelbert.training.setup import recompute_activations

ODD = [(37, 145), (145, 37), (67, 67), (99, 131)]  # aspect ratios from 1:4 to 4:1
PHOTOS = [(480, 1920), (1920, 480), (640, 427), (333, 500)]  # the same as photos, for the processor


def tiny_model(seed: int = 0, **settings: Any) -> PixelBertModel:
    torch.manual_seed(seed)
    model = PixelBertModel(tiny_config(**settings)).eval()
    randomise(model)
    return model


def texts_of(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Word ids padded with 0 to the longest, and their mask. The padding holds a word: the mask must keep it out."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, TEXT["vocab_size"], (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return ids, mask.long()


# -- text --------------------------------------------------------------------------------------------------------------


def test_text_alone_is_transformers_bert() -> None:
    model = tiny_model()
    bert = BertModel(BertConfig(**TEXT), add_pooling_layer=False).eval()
    bert.load_state_dict(model.text.state_dict())
    ids, mask = texts_of([9, 4, 7])
    with torch.no_grad():
        ours, theirs = model(ids, mask).last_hidden_state, bert(ids, mask).last_hidden_state
    assert torch.allclose(ours[mask.bool()], theirs[mask.bool()], atol=1e-5)


def test_words_then_pixels_go_through_berts_layers() -> None:
    """Eq. (6) by hand: BERT's own layers on the words' embeddings and the pixels, one after the other."""
    model = tiny_model()
    ids, _ = texts_of([5])
    image = random_images([(96, 128)])[0][None]
    with torch.no_grad():
        grid = model.encode_images(image)
        hidden = torch.cat([model.text.embeddings(ids), grid.pixels], dim=1)
        for layer in model.text.encoder.layer:
            hidden = layer(hidden)
        output = model(ids, pixel_values=image)
    assert output.last_hidden_state.shape == (1, 5 + 2 * 2, 32)
    assert torch.allclose(output.last_hidden_state, hidden, atol=1e-5)
    assert output.attention_mask.tolist() == [[True] * 9]


# -- a pair and its batch ----------------------------------------------------------------------------------------------


def check_pair_alone_equals_pair_in_batch(model: PixelBertModel, sizes: list[tuple[int, int]]) -> None:
    images = random_images(sizes)
    ids, mask = texts_of([4 + 3 * i for i in range(len(sizes))])
    pixel_values, image_sizes = batch_of(images)
    with torch.no_grad():
        together = model(ids, mask, pixel_values, image_sizes)
        for i, image in enumerate(images):
            length = int(mask[i].sum())
            alone = model(ids[i : i + 1, :length], pixel_values=image[None])
            assert together.attention_mask[i].sum() == alone.last_hidden_state.shape[1]
            found = together.last_hidden_state[i][together.attention_mask[i]]
            assert relative(alone.last_hidden_state[0], found) < 1e-4


@pytest.mark.parametrize("backbone", ["resnet50", "resnext152_32x8d"])
def test_pair_alone_equals_pair_in_batch_at_odd_sizes(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_resnext(monkeypatch)
    check_pair_alone_equals_pair_in_batch(tiny_model(backbone=backbone), ODD)


@pytest.mark.slow
def test_pair_alone_equals_pair_in_batch_resnext152() -> None:
    check_pair_alone_equals_pair_in_batch(tiny_model(backbone="resnext152_32x8d"), [(301, 76), (76, 301), (160, 203)])


@pytest.mark.parametrize(
    ("backbone", "pool"),
    [
        ("tf_efficientnet_lite0", False),
        ("tf_efficientnet_lite0", True),
        ("resnet50_clip", True),
        ("resnet50d", True),
        ("convnext_tiny", False),
    ],
)
def test_pair_alone_equals_pair_in_batch_at_the_processors_sizes(backbone: str, pool: bool) -> None:
    rule = ResizeRule(shorter=70, longer=280, multiple=multiple_for_backbone(backbone, pool))
    sizes = [rule.target(*photo) for photo in PHOTOS]
    assert len(set(sizes)) > 2
    check_pair_alone_equals_pair_in_batch(tiny_model(backbone=backbone, visual_pool=pool), sizes)


@pytest.mark.parametrize("position", ["none", "sine2d", "learned2d"])
@pytest.mark.parametrize("projection", ["linear", "conv3x3"])
@pytest.mark.parametrize("pool", [True, False])
def test_pair_alone_equals_pair_in_batch_for_every_choice(position: str, projection: str, pool: bool) -> None:
    model = tiny_model(visual_position=position, visual_projection=projection, visual_pool=pool, visual_layer_norm=True)
    check_pair_alone_equals_pair_in_batch(model, ODD)


def test_texts_of_one_image_share_its_pixels() -> None:
    model = tiny_model()
    images = random_images([(64, 64), (64, 64)])
    ids, mask = texts_of([5, 3, 4])
    of = torch.tensor([1, 0, 1])
    with torch.no_grad():
        shared = model(ids, mask, torch.stack(images), image_of_text=of).last_hidden_state
        repeated = model(ids, mask, torch.stack([images[i] for i in of])).last_hidden_state
        grid = model.encode_images(torch.stack(images))
        given = model(ids, mask, image_of_text=of, grid=grid).last_hidden_state
    assert torch.allclose(shared, repeated, atol=1e-6)
    assert torch.equal(shared, given)


# -- sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [16, 40, 0])
def test_sampling_as_many_pixels_as_there_are_is_not_sampling(count: int) -> None:
    model = tiny_model(num_sampled_pixels=count, visual_pool=False)
    ids, mask = texts_of([5, 3])
    images = torch.stack(random_images([(128, 128)] * 2))
    with torch.no_grad():
        sampled = model(ids, mask, images, sampling_seed=torch.tensor([1, 2])).last_hidden_state
        assert torch.equal(sampled, model(ids, mask, images).last_hidden_state)


def test_sampling_does_not_depend_on_the_batch_and_never_draws_padding() -> None:
    model = tiny_model(num_sampled_pixels=6, visual_pool=False)
    ids, mask = texts_of([5, 3])
    images = random_images([(96, 64), (160, 250)])
    seeds = torch.tensor([11, 12])
    with torch.no_grad():
        together = model(ids, mask, *batch_of(images), sampling_seed=seeds)
        assert together.attention_mask[:, 5:].sum(1).tolist() == [6, 6]
        for i, image in enumerate(images):
            length = int(mask[i].sum())
            alone = model(ids[i : i + 1, :length], pixel_values=image[None], sampling_seed=seeds[i : i + 1])
            found = together.last_hidden_state[i][together.attention_mask[i]]
            assert relative(alone.last_hidden_state[0], found) < 1e-4


def test_without_positions_the_order_of_pixels_changes_nothing() -> None:
    ids, _ = texts_of([5])
    features, everything = torch.randn(1, 512, 3, 4), torch.ones(1, 3, 4, dtype=torch.bool)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    turned = features.flatten(2)[:, :, order].view(1, 512, 3, 4)
    for position, is_blind in (("none", True), ("learned2d", False), ("sine2d", False)):
        model = tiny_model(visual_position=position, visual_pool=False)
        with torch.no_grad():
            one, other = (model(ids, grid=model.pixels(f, everything)).last_hidden_state for f in (features, turned))
        assert (relative(one[:, :5], other[:, :5]) < 1e-5) == is_blind, position
        assert (relative(one[:, 5:][:, order], other[:, 5:]) < 1e-5) == is_blind, position


# -- gradients ---------------------------------------------------------------------------------------------------------


def pretraining_model(**settings: Any) -> PixelBertForPreTraining:
    torch.manual_seed(0)
    model = PixelBertForPreTraining(tiny_config(**settings)).eval()
    randomise(model.pixelbert.visual)
    return model


def pretraining_batch() -> dict[str, Tensor]:
    ids, mask = texts_of([6, 4, 5])
    labels = torch.full_like(ids, -100)
    labels[0, 2], labels[2, 1], labels[2, 3] = 7, 8, 9
    pixel_values, image_sizes = batch_of(random_images([(64, 40), (33, 96)]))
    return {
        "input_ids": ids, "attention_mask": mask, "labels": labels, "itm_labels": torch.tensor([1, 0, 1]),
        "pixel_values": pixel_values, "image_sizes": image_sizes, "image_of_text": torch.tensor([0, 1, 1]),
    }  # fmt: skip


@pytest.mark.parametrize("stages", range(-1, 6))
def test_the_loss_reaches_the_first_unfrozen_stage_and_none_below(stages: int) -> None:
    model = pretraining_model(frozen_stages=stages, backbone_norm="train").train()
    model(**pretraining_batch()).loss.backward()
    reached = {name.split(".")[0] for name, p in model.pixelbert.visual.body.named_parameters() if p.grad is not None}
    parts = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    first = 0 if stages < 0 else min(stages + 2, 6)
    assert reached == set(parts[first:])
    others = [name for name, p in model.named_parameters() if p.grad is None and ".visual." not in name]
    assert others == []


def test_gradient_checkpointing_of_the_whole_model_gives_the_same_gradients() -> None:
    model = pretraining_model(frozen_stages=0).train()  # dropout too: its state is restored for the second run
    batch = pretraining_batch()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(1)
        model(**batch).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    recompute_activations(model)
    assert any(getattr(part, "gradient_checkpointing", False) for part in model.pixelbert.text.modules())
    assert model.pixelbert.visual.gradient_checkpointing
    recomputed = gradients()
    assert plain.keys() == recomputed.keys()
    for name, value in plain.items():
        assert torch.allclose(value, recomputed[name], rtol=1e-5, atol=1e-7), name
    model.gradient_checkpointing_disable()
    assert not model.pixelbert.visual.gradient_checkpointing


# -- heads and outputs -------------------------------------------------------------------------------------------------


def test_scores_with_labels_are_those_of_the_masked_places() -> None:
    model = pretraining_model()
    batch = pretraining_batch()
    labels, itm_labels = batch.pop("labels"), batch.pop("itm_labels")
    with torch.no_grad():
        whole, masked = model(**batch), model(**batch, labels=labels)
    assert whole.loss is None
    assert whole.mlm_logits.shape == (3, 6, TEXT["vocab_size"])
    assert torch.allclose(whole.mlm_logits[labels != -100], masked.mlm_logits, atol=1e-6)
    assert torch.allclose(whole.itm_logits, model.itm_head(whole.last_hidden_state[:, 0]))
    loss = model(**batch, labels=labels, itm_labels=itm_labels).loss
    mlm = -masked.mlm_logits.log_softmax(-1)[range(3), [7, 8, 9]].mean()
    itm = -whole.itm_logits.log_softmax(-1)[range(3), itm_labels].mean()
    assert torch.allclose(loss, mlm + itm, atol=1e-5)


def test_the_skip_tells_hidden_words_the_mean_pixel_and_nothing_else() -> None:
    plain, skipping = pretraining_model(), pretraining_model(visual_skip=True)
    skipping.load_state_dict(plain.state_dict(), strict=False)
    assert not skipping.skip.weight.any()
    batch = pretraining_batch()
    batch.pop("labels"), batch.pop("itm_labels")
    with torch.no_grad():
        assert torch.equal(skipping(**batch).mlm_logits, plain(**batch).mlm_logits)  # at first nothing
        torch.nn.init.normal_(skipping.skip.weight)
        told, untold = skipping(**batch), plain(**batch)
        assert torch.equal(told.itm_logits, untold.itm_logits)
        grid = skipping.pixelbert.encode_images(batch["pixel_values"], batch.get("image_sizes"))
        means = torch.stack([cells[inside].mean(0) for cells, inside in zip(grid.pixels, grid.mask, strict=True)])
        mean = means[batch["image_of_text"]]
        own = mean @ skipping.skip.weight.T  # [T, V]
        torch.testing.assert_close(told.mlm_logits, untold.mlm_logits + own[:, None], rtol=1e-4, atol=1e-5)
        alone = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        assert torch.equal(skipping(**alone).mlm_logits, plain(**alone).mlm_logits)


def test_masked_word_scores_use_the_word_embeddings() -> None:
    model = pretraining_model()
    assert model.mlm_head.decoder.weight is model.pixelbert.text.embeddings.word_embeddings.weight
    assert model.mlm_head.decoder.bias is model.mlm_head.bias


def test_attentions_of_every_layer_cover_words_and_pixels() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    ids, mask = texts_of([6, 4])
    with torch.no_grad():
        output = model(
            ids,
            mask,
            *batch_of(random_images([(64, 130), (96, 70)])),
            output_attentions=True,
            output_hidden_states=True,
        )
        plain = model(ids, mask, *batch_of(random_images([(64, 130), (96, 70)])))
    places = 6 + 2 * 3
    assert len(output.attentions) == TEXT["num_hidden_layers"]
    for weights in output.attentions:
        assert weights.shape == (2, TEXT["num_attention_heads"], places, places)
        assert torch.allclose(weights.sum(-1), torch.ones(2, 4, places), atol=1e-5)
        outside = ~output.attention_mask[:, None, None, :].expand_as(weights)
        assert weights[outside].abs().max() < 1e-6
    assert len(output.hidden_states) == TEXT["num_hidden_layers"] + 1
    assert plain.attentions is None
    assert torch.equal(plain.last_hidden_state, output.last_hidden_state)


def test_attentions_of_the_pretraining_model_and_of_one_loaded_as_eager(tmp_path: Path) -> None:
    pretraining_model().save_pretrained(tmp_path)
    model = PixelBertForPreTraining.from_pretrained(tmp_path, attn_implementation="eager")
    batch = pretraining_batch()
    output = model(**batch, output_attentions=True)
    assert [w.shape[0] for w in output.attentions] == [3, 3]


# -- saved and loaded --------------------------------------------------------------------------------------------------


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {**model.state_dict(), **{name: b for name, b in model.named_buffers() if name.endswith((".mean", ".std"))}}


def settings_of(config: Any) -> dict[str, Any]:
    """A config without what transformers writes into it when it saves and loads."""
    written = ("_name_or_path", "architectures", "dtype", "transformers_version")
    values = {key: value for key, value in config.to_dict().items() if key not in written}
    values["text_config"] = {key: value for key, value in values["text_config"].items() if key not in written}
    return values


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"backbone": "tf_efficientnet_lite0", "backbone_output": "head", "visual_pool": False, "contrastive_size": 8},
        {"backbone": "convnext_atto", "visual_position": "learned2d", "visual_layer_norm": True},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [1 / 255] * 3, "image_channels": "BGR", "frozen_stages": 2},
    ],
)
def test_saved_and_loaded_models_are_equal_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    model = pretraining_model(**settings)
    model.save_pretrained(tmp_path)
    ids, mask = texts_of([5, 3])
    inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": torch.stack(random_images([(64, 64)] * 2))}
    for loaded in (
        PixelBertForPreTraining.from_pretrained(tmp_path),
        AutoModelForPreTraining.from_pretrained(tmp_path),
    ):
        assert type(loaded) is PixelBertForPreTraining
        assert state(loaded).keys() == state(model).keys()
        for name, value in state(model).items():
            assert torch.equal(value, state(loaded)[name]), name
        assert settings_of(loaded.config) == settings_of(model.config)
        assert loaded.mlm_head.decoder.weight is loaded.pixelbert.text.embeddings.word_embeddings.weight
        with torch.no_grad():
            assert torch.equal(loaded(**inputs).mlm_logits, model(**inputs).mlm_logits)
            assert torch.equal(loaded(**inputs).itm_logits, model(**inputs).itm_logits)


def test_the_auto_classes_know_the_config_and_the_bare_model(tmp_path: Path) -> None:
    model = pretraining_model(visual_position="sine2d")
    model.save_pretrained(tmp_path)
    assert pixelbert.PixelBertModel is PixelBertModel
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is PixelBertConfig
    assert (config.visual_position, config.text_config.hidden_size) == ("sine2d", 32)
    bare = AutoModel.from_pretrained(tmp_path)
    assert type(bare) is PixelBertModel
    for name, value in model.pixelbert.state_dict().items():
        assert torch.equal(value, bare.state_dict()[name]), name


def test_a_deep_copy_computes_the_same() -> None:
    model = pretraining_model()
    twin, batch = copy.deepcopy(model), pretraining_batch()
    with torch.no_grad():
        assert torch.equal(model(**batch).itm_logits, twin(**batch).itm_logits)


def test_a_config_with_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="visual_position is 'sine', expected one of none, sine2d, learned2d"):
        tiny_config(visual_position="sine")


def test_initial_weights_are_berts_and_the_cnn_keeps_timms() -> None:
    torch.manual_seed(0)
    model = PixelBertForPreTraining(tiny_config(visual_position="learned2d"))
    embeddings = model.pixelbert.text.embeddings.word_embeddings.weight
    assert embeddings.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.pixelbert.pixels.projection.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.pixelbert.pixels.type_embedding.std().item() == pytest.approx(0.02, rel=0.5)
    assert model.itm_head.bias.abs().max() == 0
    conv = model.pixelbert.visual.body.layer4[1].conv1.weight
    assert conv.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.05)  # kaiming, fan out
    stem = model.pixelbert.visual.body.conv1.weight
    assert stem.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)  # far from 0.02


# -- transformers' Trainer ---------------------------------------------------------------------------------------------


def test_it_trains_in_transformers_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    model = pretraining_model()
    images = random_images([(64, 64)] * 4)
    ids, mask = texts_of([5, 5, 5, 5])
    rows = [
        {
            "input_ids": ids[i], "attention_mask": mask[i], "pixel_values": images[i], "itm_labels": i % 2,
            "labels": torch.where(torch.arange(5) == 2, ids[i], -100),
        }
        for i in range(4)
    ]  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-3, report_to=[],
        use_cpu=True, save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
