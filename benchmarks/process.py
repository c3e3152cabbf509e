"""A contender as a process: started, watched from outside, ended."""

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from contenders import HERE

_STOP_SECONDS_MAX = 20
_STALLED_SECONDS_MAX = 90
_SETTLED_SECONDS = 2
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A contender did not do what it should; the message says what."""


class Usage(NamedTuple):
    """CPU seconds so far, and peak memory in MB."""

    cpu_seconds: float
    peak_rss_mb: float


class Running:
    """A process with its output in files."""

    def __init__(self, process: "subprocess.Popen[bytes]", stdout: Path, stderr: Path) -> None:
        self._process = process
        self._stdout = stdout
        self._stderr = stderr

    def usage(self) -> Usage:
        """What the process has used. Raises `Failed` if it has ended."""
        if self._process.poll() is not None:
            tail = " | ".join(self.stderr.splitlines()[-5:])
            raise Failed(f"ended by itself with {self._process.returncode}: {tail}")
        return usage_of(self._process.pid)

    def usage_with_children(self) -> Usage:
        """What it and the processes that it has started have used; memory is the sum of the peaks.

        Raises `Failed` if it has ended.
        """
        own = self.usage()
        others = [usage_of(pid) for pid in _descendants(self._process.pid)]
        seconds = own.cpu_seconds + sum(usage.cpu_seconds for usage in others)
        return Usage(seconds, own.peak_rss_mb + sum(usage.peak_rss_mb for usage in others))

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has logged so far."""
        return self._stderr.read_text(errors="replace")


@contextmanager
def running(command: Sequence[str], directory: Path) -> Iterator[Running]:
    """Start a contender, and end it afterwards."""
    stdout, stderr = directory / "stdout", directory / "stderr"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=err,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(HERE)},
        )
    try:
        yield Running(process, stdout, stderr)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def usage_of(pid: int) -> Usage:
    """What a process has used; Linux only, zeros elsewhere."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return Usage(0, 0)
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    seconds = (int(stat[11]) + int(stat[12])) / _TICKS_PER_SECOND
    return Usage(seconds, int(peak.split()[1]) / 1024)


def _descendants(pid: int) -> Iterator[int]:
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = thread.read_text().split()
        except OSError:
            continue
        for child in children:
            yield int(child)
            yield from _descendants(int(child))


class Progress:
    """Says when an output is complete, and raises where it does not get further."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._count = 0
        self._since = time.monotonic()

    def is_complete(self, count: int) -> bool:
        """Whether none of the expected records is missing, and none has come for a while.

        Raises `Failed` where some are missing for too long.
        """
        now = time.monotonic()
        if count != self._count:
            self._count, self._since = count, now
        still = now - self._since
        if count < self._expected and still > _STALLED_SECONDS_MAX:
            raise Failed(f"stands still at {count:,} of {self._expected:,} records")
        return count >= self._expected and still > _SETTLED_SECONDS
