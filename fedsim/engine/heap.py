"""Freed memory stays with the process.

glibc gives blocks of more than a few MiB back to the kernel as soon as they are freed. On CPUs
torch frees and asks for such blocks in every layer, and each page that comes back costs a fault:
a quarter of the time of small networks' training, half of their evaluation (`benchmarks/heap.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Hold up to 1 GiB of freed memory for the next request, from now on in this process.

    Whoever sets `MALLOC_TRIM_THRESHOLD_` or `MALLOC_MMAP_THRESHOLD_` has decided otherwise.

    Returns:
        Whether it is so; not with another C library than glibc.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = (_TRIM_THRESHOLD, _MMAP_THRESHOLD)
    return all(mallopt(setting, _KEPT_BYTES) == 1 for setting in settings)


def give_freed_memory_back() -> None:
    """Return what is free to the kernel, once: after reading data, which takes more than training.

    Does nothing with another C library than glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
