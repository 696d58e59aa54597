"""Freed memory stays with the process: seen by the pages that have to be cleared anew."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from pixelbert.model import memory

# Blocks of 48 MB, as the CNN's maps of 64 photos: glibc maps each anew, 12,288 pages of 4 KiB a time.
_FAULTS = """
import resource, torch
from pixelbert.model import memory
if {kept}:
    memory.keep_freed({{}})
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(12 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""


def faults(kept: bool) -> int:
    done = subprocess.run([sys.executable, "-c", _FAULTS.format(kept=kept)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can be told")
def test_blocks_are_used_again_without_new_pages():
    assert faults(kept=True) < 100 < faults(kept=False)


@pytest.mark.parametrize("own", [{"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}])
def test_the_persons_own_settings_stand(own, monkeypatch):
    monkeypatch.setattr(memory, "_set", lambda _: pytest.fail("set against the person's own"))
    assert memory.keep_freed(own) is False


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_another_c_library_is_left_alone(error, monkeypatch):
    def refuse(_):
        raise error

    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    assert memory.keep_freed({}) is False
