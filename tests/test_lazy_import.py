"""`import pixelbert` is light, and its public names are all there."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pixelbert

HEAVY = ("torch", "torchvision", "transformers", "timm", "pyarrow", "accelerate", "typer", "rich", "pydantic", "PIL")


def loaded_after(statement: str) -> set[str]:
    """The heavy packages that a fresh Python has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_check_itself_sees_an_import():
    assert "pydantic" in loaded_after("import pydantic")


@pytest.mark.parametrize(
    "statement",
    ["import pixelbert", "import pixelbert.metrics", "import pixelbert; pixelbert.metrics.normalize_answer('a')"],
)
def test_import_loads_nothing_heavy(statement):
    assert not loaded_after(statement)


def test_import_of_all_names_at_once():
    code = "from pixelbert import *; print(PixelBertConfig.model_type, metrics.__name__, prepare.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pixelbert", "pixelbert.metrics", "prepare"]


@pytest.mark.parametrize("name", pixelbert.__all__)
def test_every_public_name_exists_and_is_listed(name):
    assert getattr(pixelbert, name) is not None
    assert name in dir(pixelbert)


def test_a_public_name_is_the_thing_in_its_module():
    from pixelbert.model.config import PixelBertConfig

    assert pixelbert.PixelBertConfig is PixelBertConfig
    assert pixelbert.metrics is sys.modules["pixelbert.metrics"]


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'pixelbert' has no attribute 'PixelBird'"):
        _ = pixelbert.PixelBird
