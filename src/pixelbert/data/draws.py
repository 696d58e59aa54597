"""Random draws that belong to a record: from a counter, never from global state.

Every draw is keyed by (seed, purpose, epoch, record), so the data of a step is the same for any number of loader
workers, ranks or restarts.
"""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator of its own for (seed, purpose, counters...); up to three counters."""
    key = np.array([seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(purpose.encode())], dtype=np.uint64)
    counter = np.zeros(4, dtype=np.uint64)
    counter[1 : 1 + len(counters)] = counters  # the lowest word counts the numbers drawn
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def seed_of(seed: int, purpose: str, *counters: int) -> int:
    """One number in [0, 2^31) keyed the same way."""
    return int(generator(seed, purpose, *counters).integers(2**31))
