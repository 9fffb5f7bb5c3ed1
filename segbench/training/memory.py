"""How a process that trains on a CPU gets its memory. Does nothing where the C library is not glibc. Imports no torch.

By itself glibc hands freed memory back to the system, and each page of the next tensor is then a page fault, and
zeroed: half of a training step with large logits (docs/performance.md).
"""

import contextlib
import ctypes
import os
import sys

LARGEST = 32 * 2**20  # bytes of the blocks that glibc can keep, by its own limit
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of its malloc.h


def keep_freed() -> None:
    """Keep what tensors up to `LARGEST` free for the tensors that come."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        with contextlib.suppress(AttributeError):  # another C library
            libc.mallopt(M_MMAP_THRESHOLD, LARGEST)
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def in_huge_pages() -> None:
    """Let processes that start from here on ask for larger blocks in pages of 2 MiB, where the system has them."""
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
