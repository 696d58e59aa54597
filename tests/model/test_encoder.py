"""The last layer for the first places alone: the same vectors and gradients as the whole layer, cut afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_config, tiny_core

from pixelbert.model.encoder import SDPA_FLOAT32
from pixelbert.model.heads import PixelBertForQuestionAnswering

IDS = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 4 + [0] * 5])
PICTURES = torch.randint(0, 256, (3, 3, 96, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
SIZES = torch.tensor([[96, 160], [64, 96], [96, 64]])


@pytest.mark.parametrize("attention", ["sdpa", SDPA_FLOAT32, "eager"])
@pytest.mark.parametrize("places", [1, 9, 11, 1000])
@pytest.mark.parametrize("padded", [True, False])
def test_the_first_places_are_those_of_the_whole_layer(places, padded, attention):
    core = tiny_core()
    core.set_attn_implementation(attention)
    mask = {"attention_mask": MASK, "image_sizes": SIZES} if padded else {}
    whole = core(IDS, pixel_values=PICTURES, **mask).last_hidden_state
    part = core(IDS, pixel_values=PICTURES, places=places, **mask).last_hidden_state
    assert part.shape == whole[:, :places].shape
    torch.testing.assert_close(part, whole[:, :places], rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_whole_layer():
    found = []
    for places in (1, None):
        core = tiny_core()
        out = core(IDS, attention_mask=MASK, pixel_values=PICTURES, image_sizes=SIZES, places=places)
        out.last_hidden_state[:, 0].square().sum().backward()
        found.append({name: value.grad for name, value in core.named_parameters() if value.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 50
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_dropout_falls_on_the_first_places_too():
    core = tiny_core()
    core.text.encoder.layer[-1].train()
    for module in core.text.encoder.layer[-1].modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    core.text.encoder.layer[-1].attention.self.dropout.p = 0.5
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(core(IDS, pixel_values=PICTURES, places=1).last_hidden_state)
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


def test_a_head_that_is_asked_for_attentions_still_gives_them_all():
    torch.manual_seed(0)
    model = PixelBertForQuestionAnswering(tiny_config(num_labels=4, attn_implementation="eager")).eval()
    model.set_attn_implementation("eager")
    plain = model(IDS, pixel_values=PICTURES)
    asked = model(IDS, pixel_values=PICTURES, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(plain.logits, asked.logits, rtol=1e-5, atol=1e-6)
    assert [a.shape[-2:] for a in asked.attentions] == [asked.attentions[0].shape[-2:]] * 2
    assert asked.hidden_states[-1].shape[1] == asked.attentions[0].shape[-1] > IDS.shape[1]


@pytest.mark.parametrize("places", [2, None])
def test_attention_in_float32_is_that_of_sdpa(places):
    out = {}
    for attention in ("sdpa", SDPA_FLOAT32):
        core = tiny_core()
        core.set_attn_implementation(attention)
        inputs = {"attention_mask": MASK, "pixel_values": PICTURES, "image_sizes": SIZES, "places": places}
        out[attention] = core(IDS, **inputs).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            out[attention + " autocast"] = core(IDS, **inputs).last_hidden_state
    assert torch.equal(out["sdpa"], out[SDPA_FLOAT32])
    torch.testing.assert_close(out["sdpa autocast"], out[SDPA_FLOAT32 + " autocast"], rtol=0.05, atol=0.05)
    assert not torch.equal(out["sdpa autocast"], out[SDPA_FLOAT32 + " autocast"])
