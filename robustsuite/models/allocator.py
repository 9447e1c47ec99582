"""The C library's memory, kept between the passes of a CPU instead of being given back to the system and fetched again.

By default glibc returns large blocks at once, and each pass then pays for fresh pages: a fifth of the time of a small
network, and at some batch shapes more than half. Only speed depends on it.
"""

import ctypes
import sys
from functools import lru_cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, malloc.h
_KEPT, _LARGEST = 1 << 28, 1 << 25  # bytes at the heap's end that stay, and of a block that comes from the heap


@lru_cache(maxsize=1)
def keep_memory() -> bool:
    """Tell glibc once, for the whole process; False where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))
