"""What every test shares: no network, one thread a process, and the data folder that may or may not be there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before anything imports torch or transformers. A test never reaches for the network; and tests run beside
# each other (xdist) or beside a training run, so one thread each is also the fastest.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import HealthCheck, settings

settings.register_profile("pixelbert", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pixelbert")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos and annotations; a test that asks for it is skipped where there is none.

    `PIXELBERT_SHARED_DATA` names it; without that, `shared/data` beside the repository is looked at.
    """
    folder = Path(os.environ.get("PIXELBERT_SHARED_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set PIXELBERT_SHARED_DATA)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test marked `gpu` is skipped, not failed, when it is asked for where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
