"""Freed memory on a processor: kept for the tensors of the next step instead of being returned to the system.

glibc maps every block of 32 MB and more anew and trims the heap's end. Then each step of a network touches its
hundreds of megabytes for the first time again, and the kernel clears them page by page: a third to a half of a CNN's
time, more on virtual machines. `pixelbert bench ratios` measures it. Numbers do not change; nor does the peak, where
every batch has the sizes of the last one. With images of many sizes the kept blocks fit badly and the peak rises by a
third: so whoever calls it knows that there is one size.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 1 << 20


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Keep what is freed, up to blocks of 1 GiB, for the whole process from now on. True where that could be set.

    It cannot where the C library is not glibc, and is left alone where the person has set malloc's own variables
    (`MALLOC_...`, `GLIBC_TUNABLES`).
    """
    own = any(name.startswith("MALLOC_") and value for name, value in environment.items())
    if own or "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        return False
    return _set({_MMAP_THRESHOLD: 1024 * _MIB, _TRIM_THRESHOLD: -1, _TOP_PAD: 64 * _MIB})


def _set(settings: Mapping[int, int]) -> bool:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - another C library's mallopt knows other numbers
        mallopt = library.mallopt
    except (OSError, TypeError, AttributeError):  # Windows, macOS, musl
        return False
    return all(mallopt(name, value) == 1 for name, value in settings.items())
