"""Durations as a histogram that can be merged, and its percentiles.

The buckets are fixed, so that histograms of several processes and days add up. A duration keeps
its six leading bits: below 64 ms it is exact, and above it is taken for the longest of its bucket,
which is too long by less than one part in 32 (3.2 %), never too short.
"""

from collections.abc import Mapping

_KEPT_BITS = 6


def bucket(duration_ms: int) -> int:
    """The longest duration of the bucket that this one is in; what is negative counts as 0."""
    shift = max(0, duration_ms.bit_length() - _KEPT_BITS)
    return max(0, duration_ms) | ((1 << shift) - 1)


def nearest_rank(histogram: Mapping[int, int], percent: int) -> int | None:
    """The duration that `percent` of all do not exceed, by nearest rank; None where there is none.

    `histogram` holds durations (or the longest ones of buckets) and how often each came.
    """
    rank = -(-sum(histogram.values()) * percent // 100)
    for duration_ms in sorted(histogram):
        rank -= histogram[duration_ms]
        if rank <= 0:
            return duration_ms
    return None
