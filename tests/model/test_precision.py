"""`precision: auto` is bfloat16 only where the device has it in hardware, and only where it is a gain."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_core
from torch import nn

from pixelbert.errors import UsageError
from pixelbert.model import precision
from pixelbert.model.encoder import SDPA_FLOAT32
from pixelbert.model.precision import Capability, Precision, choose, detect, in_float32, use
from pixelbert.recipes.schema import Train

AVX2 = Capability("cpu", "x", vectors="AVX2")
AVX512 = Capability("cpu", "x", vectors="AVX512")
BF16 = Capability("cpu", "x", vectors="AVX512", avx512_bf16=True)
FAST_BF16 = Capability("cpu", "x", vectors="AVX512", avx512_bf16=True, avx512_bf16_fast=True)
AMX = Capability("cpu", "x", vectors="AVX512", avx512_bf16=True, amx_bf16=True)
CUDA = Capability("cuda", "x", cuda_bf16=True)
OLD_CUDA = Capability("cuda", "x")
MPS = Capability("mps", "mps")


@pytest.mark.parametrize(
    ("found", "backbone", "encoder"),
    [
        (AVX2, "float32", "float32"),
        (AVX512, "float32", "float32"),
        (BF16, "bfloat16", "float32"),
        (FAST_BF16, "bfloat16", "bfloat16"),
        (AMX, "bfloat16", "bfloat16"),
        (CUDA, "bfloat16", "bfloat16"),
        (OLD_CUDA, "float32", "float32"),
        (MPS, "float32", "float32"),
    ],
)
def test_auto(monkeypatch, found, backbone, encoder):
    monkeypatch.setattr(precision, "detect", lambda device: found)
    chosen = choose("auto")
    assert (chosen.backbone, chosen.encoder) == (backbone, encoder)
    assert chosen.reason


@pytest.mark.parametrize("found", [AVX2, BF16, CUDA])
def test_a_name_is_obeyed_everywhere_and_slowness_is_told(monkeypatch, found):
    monkeypatch.setattr(precision, "detect", lambda device: found)
    for name, expected in {
        "float32": ("float32", "float32"),
        "bfloat16": ("bfloat16", "bfloat16"),
        "bfloat16-cnn": ("bfloat16", "float32"),
    }.items():
        chosen = choose(name)
        assert (chosen.backbone, chosen.encoder) == expected
        assert ("slow" in chosen.reason) == (found is AVX2 and name != "float32")


def test_unknown_name():
    with pytest.raises(UsageError, match="did you mean 'bfloat16'"):
        choose("bfloat17")


def test_names_are_those_of_the_recipe():
    for name in precision.NAMES:
        assert Train(precision=name).precision == name


def test_float32_looks_at_no_device():
    assert choose("float32", "no such device").encoder == "float32"


def test_detect_on_a_processor():
    import torch

    found = detect("cpu")
    assert found.device == "cpu"
    assert found.vectors == torch.backends.cpu.get_cpu_capability()
    assert found.name
    assert detect(torch.device("cpu")) == found


def test_torch_held_below_the_processor_counts(monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(precision, "_cpu_flag", lambda function, flag: True)
    assert not detect("cpu").bfloat16
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert detect("cpu").amx_bf16


def test_flags_of_the_kernel_where_torch_has_no_test(monkeypatch):
    lines = ["model name\t: Some CPU", "flags\t\t: fpu avx2 avx512_bf16 amx_tile"]
    monkeypatch.setattr(precision, "_cpuinfo", lambda: lines)
    assert precision._cpu_flag("_is_no_such_test", "avx512_bf16")
    assert not precision._cpu_flag("_is_no_such_test", "amx_bf16")
    assert not precision._cpu_flag("_is_no_such_test", "avx512")
    assert precision.processor_name() == "Some CPU"


def test_processor_name_without_proc(monkeypatch):
    monkeypatch.setattr(precision, "_cpuinfo", list)
    assert precision.processor_name()


@pytest.mark.parametrize("encoder", ["float32", "bfloat16"])
def test_a_model_computes_as_chosen(encoder):
    model = nn.Module()
    model.pixelbert = tiny_core()
    model.config, model.set_attn_implementation = model.pixelbert.config, model.pixelbert.set_attn_implementation
    dtype = use(Precision("bfloat16", encoder), model, torch.device("cpu"))
    assert dtype is (torch.bfloat16 if encoder == "bfloat16" else None)
    assert model.pixelbert.visual.compute_dtype is torch.bfloat16
    attention = model.pixelbert.text.encoder.layer[0].attention.self.config._attn_implementation
    assert attention == (SDPA_FLOAT32 if encoder == "bfloat16" else "sdpa")


def test_a_head_keeps_close_scores_apart_under_autocast():
    head = nn.Linear(1, 1, bias=False)
    head.weight.data.fill_(1.0)
    close = torch.tensor([[1.0], [1.001]])  # equal in bfloat16, whose next number after 1 is 1.0078
    with torch.autocast("cpu", torch.bfloat16):
        assert len(head(close).unique()) == 1
        assert torch.equal(in_float32(head, close), close)
