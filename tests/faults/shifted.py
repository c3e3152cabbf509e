"""Runs the command line with a wall clock that is off by as many seconds as a file says.

    python shifted.py FILE run -c ...

The monotonic clock goes on as it does.
"""

import sys
import time
from pathlib import Path

from consentgate.cli import main

if __name__ == "__main__":
    shift = Path(sys.argv.pop(1))
    time_ns = time.time_ns

    def shifted_ns() -> int:
        return time_ns() + int(shift.read_text() or 0) * 1_000_000_000

    time.time_ns = shifted_ns
    time.time = lambda: shifted_ns() / 1e9
    main()
