"""Threads that wait for one another on a processor: they soon sleep instead of spinning.

By itself OpenMP has a thread spin 300,000 rounds at each barrier. Where other programs want the cores too, what is
waited for then does not get to run (`pixelbert bench ratios` measures what it costs). With 20,000 rounds threads on
cores of their own are as fast as ever.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

_ROUNDS = "20000"


def sleep_soon(environment: MutableMapping[str, str] = os.environ) -> None:
    """Say so to GNU's OpenMP, which reads it when torch is first imported; a person's own choice stands."""
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment["GOMP_SPINCOUNT"] = _ROUNDS
