"""How long threads spin: OpenMP itself tells what it was given."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pixelbert.model.threads import sleep_soon


def told(**settings: str) -> str:
    """What GNU's OpenMP says of itself when a verb imports torch; empty where torch has another."""
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **settings}
    command = [sys.executable, "-m", "pixelbert", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = [line.strip() for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    if not lines:
        pytest.skip("torch has another OpenMP")
    return lines[0]


def test_threads_soon_sleep():
    assert "'20000'" in told()


def test_the_persons_own_choice_stands():
    own = {"OMP_WAIT_POLICY": "ACTIVE"}
    sleep_soon(own)
    assert own == {"OMP_WAIT_POLICY": "ACTIVE"}
    assert "'7'" in told(GOMP_SPINCOUNT="7")
