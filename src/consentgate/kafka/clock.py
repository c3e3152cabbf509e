"""The wall clock and the monotonic clock, read together."""

import time

from consentgate.core.partition import Moment


def read_clock() -> Moment:
    """Both clocks, in milliseconds."""
    return Moment(
        unix_ms=time.time_ns() // 1_000_000, monotonic_ms=time.monotonic_ns() // 1_000_000
    )
