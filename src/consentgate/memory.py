"""How Python and the C library look after memory, for processes that hold millions of subjects."""

import contextlib
import ctypes
import gc

THRESHOLDS = (100_000, 20, 100)
"""Containers made and not freed before a collection; then, collections before a deeper one."""

_KEPT = {
    # What mallopt(3) calls M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; the latter's largest value.
    -1: 256 << 20,
    -3: 32 << 20,
}


def collect_garbage_rarely() -> None:
    """Keep the collector from walking through millions of subjects after every few records.

    A batch makes tens of thousands of containers and frees them by their counts; what is left to
    the collector are a few cycles of the event loop's.
    """
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def keep_freed_memory() -> None:
    """Keep what is freed for the next fetch, instead of handing it back and asking for it again.

    Each fetch and each batch is some megabytes that glibc would give back to the kernel as soon as
    they are freed, to have them cleared page by page. Other C libraries do as they always do.
    """
    # Not every platform has the function, or a C library that can be asked for it.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, size_bytes in _KEPT.items():
            mallopt(parameter, size_bytes)
