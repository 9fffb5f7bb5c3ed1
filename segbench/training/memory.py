"""How a process asks the system for memory."""

import contextlib
import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed() -> None:
    """Keep what tensors free for the tensors that come; does nothing where the C library is not glibc.

    By itself glibc hands blocks of 32 MiB and more back at once. Each page of the next one is then a page fault, and
    zeroed: half of a training step on a CPU, where logits are large (docs/performance.md).
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):  # another C library
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
