"""Which number format each half of the network computes in: chosen from what the device has in hardware.

bfloat16 is a gain only where the hardware multiplies it. Measured on processors: with AVX512-BF16 but no AMX the CNN's
forward pass is 2 to 3 times faster in bfloat16 than in float32; the matrix products of the encoder run at twice the
speed on AMD's, and are no faster on Intel's; with AVX2 only, bfloat16 is 12 to 100 times slower. So the two halves are
chosen apart. Weights, optimizer state, attention on a processor, the heads on [CLS] and losses are float32 in every
case.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pixelbert.errors import UsageError, nearest

if TYPE_CHECKING:
    import torch

DType = Literal["float32", "bfloat16"]
NAMES = ("auto", "float32", "bfloat16", "bfloat16-cnn")
"""What the setting `precision` takes; `bfloat16-cnn` is the CNN in bfloat16 and the encoder in float32."""


@dataclass(frozen=True, slots=True)
class Capability:
    """What a device has in hardware, as far as the choice needs it."""

    device: str  # torch's device type: cpu, cuda, mps, ...
    name: str  # for people
    vectors: str = ""  # CPU: the vector instructions torch uses (AVX2, AVX512, ...)
    avx512_bf16: bool = False
    avx512_bf16_fast: bool = False  # twice the rate of float32, as AMD's have it
    amx_bf16: bool = False
    cuda_bf16: bool = False

    @property
    def bfloat16(self) -> bool:
        """Whether the device multiplies bfloat16 in hardware at all."""
        return self.avx512_bf16 or self.amx_bf16 or self.cuda_bf16


@dataclass(frozen=True, slots=True)
class Precision:
    """torch dtype names for the CNN and for the encoder (with everything after it), and why."""

    backbone: DType
    encoder: DType
    reason: str = ""


def detect(device: str | torch.device | None = None) -> Capability:
    """What `device` has in hardware; None means CUDA where there is one, else the processor."""
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        return Capability("cuda", torch.cuda.get_device_name(device), cuda_bf16=_cuda_bfloat16(device))
    if device.type != "cpu":
        return Capability(device.type, device.type)
    # ATEN_CPU_CAPABILITY can hold torch below what the processor has: then its bfloat16 kernels are out of reach too.
    vectors = torch.backends.cpu.get_cpu_capability()
    wide = vectors.startswith("AVX512")
    return Capability(
        "cpu",
        processor_name(),
        vectors=vectors,
        avx512_bf16=wide and _cpu_flag("_is_avx512_bf16_supported", "avx512_bf16"),
        avx512_bf16_fast=any("AuthenticAMD" in line for line in _cpuinfo() if line.startswith("vendor_id")),
        amx_bf16=wide and _cpu_flag("_is_amx_tile_supported", "amx_bf16"),
    )


def choose(name: str = "auto", device: str | torch.device | None = None) -> Precision:
    """The precision that a recipe's `precision: name` means on `device`. Raises UsageError for an unknown name."""
    if name not in NAMES:
        raise UsageError(f"precision '{name}' is unknown; {nearest(name, NAMES)}")
    if name == "float32":
        return Precision("float32", "float32", "asked for")
    return _choose(name, detect(device))


def _choose(name: str, found: Capability) -> Precision:
    """`choose` for a capability that is known."""
    if name != "auto":
        slow = (
            ""
            if found.bfloat16
            else f", although {found.name} does not have bfloat16 in hardware: expect it to be slow"
        )
        return Precision("bfloat16", "bfloat16" if name == "bfloat16" else "float32", "asked for" + slow)
    if found.cuda_bf16:
        return Precision("bfloat16", "bfloat16", "the GPU has bfloat16 in hardware")
    if found.amx_bf16:
        return Precision("bfloat16", "bfloat16", "the processor has AMX for bfloat16")
    if found.avx512_bf16 and found.avx512_bf16_fast:
        return Precision("bfloat16", "bfloat16", "the processor has AVX512-BF16 at twice the rate of float32")
    if found.avx512_bf16:
        return Precision(
            "bfloat16",
            "float32",
            "the processor has AVX512-BF16 at the rate of float32: faster for the CNN, no faster for the encoder",
        )
    return Precision(
        "float32", "float32", f"no bfloat16 in hardware known on this device ({found.vectors or found.device})"
    )


def use(chosen: Precision, model: Any, device: torch.device) -> torch.dtype | None:
    """Have a model of ours compute as chosen. Returns the autocast type of all behind the CNN; None is float32."""
    import torch

    from pixelbert.model.encoder import SDPA_FLOAT32

    visual = model.pixelbert.visual
    visual.body.to(memory_format=torch.channels_last)
    visual.compute_dtype = torch.bfloat16 if chosen.backbone == "bfloat16" else None
    if chosen.encoder != "bfloat16":
        return None
    if device.type == "cpu" and model.config.text_config._attn_implementation == "sdpa":
        model.set_attn_implementation(SDPA_FLOAT32)
    return torch.bfloat16


def in_float32(module: Any, vectors: torch.Tensor) -> torch.Tensor:
    """What a head makes of vectors, in float32 or finer whatever the autocast: close scores stay apart."""
    import torch

    with torch.autocast(vectors.device.type, enabled=False):
        result: torch.Tensor = module(vectors if vectors.dtype == torch.float64 else vectors.float())
    return result


def processor_name() -> str:
    """The processor's name for people, as the system gives it."""
    for line in _cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware") and value.strip():
            return value.strip()
    import platform

    return platform.processor() or platform.machine()


def _cuda_bfloat16(device: torch.device) -> bool:
    """bfloat16 in the GPU's hardware, which begins with compute capability 8.0 (ROCm devices report it themselves)."""
    import torch

    if torch.version.hip:
        return torch.cuda.is_bf16_supported()
    return torch.cuda.get_device_capability(device)[0] >= 8


def _cpu_flag(function: str, flag: str) -> bool:
    """torch's own test where this version of torch has it, else the kernel's list of flags."""
    import torch

    test: Any = getattr(torch.cpu, function, None)
    if test is not None:
        try:
            return bool(test())
        except (RuntimeError, NotImplementedError):
            pass
    return any(flag in line.split() for line in _cpuinfo() if line.startswith("flags"))


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
