"""Runs programs for a parent process, and lets none of them outlive it.

`consentgate.tools.broker` runs this file as a script, in a session of its own, between itself and
the JVM. The script imports nothing but the standard library, so that it works however the parent
found this package, and starts quickly.

Usage: watchdog.py [LOG]

On its standard input it takes requests, one JSON value a line; on its standard output it answers:

    {"run": ["java", …]}    starts a program and answers {"pid": 123}; when the program has ended,
                            however that came about, answers {"exit": status} as `Popen` counts it
    {"signal": 15}          signals the program and answers {"signalled": true}, or false if no
                            program runs

The first thing it says is {"directory": path}: a new temporary directory in which the programs
run, with their output appended to LOG (by default `program.log` in that directory).

It ends when its standard input does, when its parent is another one than at the start, or on
SIGTERM, SIGINT and SIGHUP. It then ends the program and removes the directory.
"""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The end of standard input is the first sign that the parent has ended. But a process that the
# parent forked may hold the pipe open, so every now and then the parent's id is looked at as well.
PARENT_CHECK_SECONDS = 1.0
# How long a program may take to stop by itself once it was asked to.
GRACE_SECONDS = 10.0

LOG_NAME = "program.log"

_ENDING_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
_PR_SET_PDEATHSIG = 1


class Watchdog:
    """One program at a time, started and signalled on request."""

    def __init__(self, directory: Path, log_path: Path) -> None:
        self._directory = directory
        self._log_path = log_path
        self._program: subprocess.Popen[bytes] | None = None
        self._tie_to_watchdog = _death_signal_setter()

    def handle(self, request: dict[str, Any]) -> None:
        """Carry out one request."""
        match request:
            case {"run": [*arguments]}:
                self._run(arguments)
            case {"signal": int(number)}:
                if self._program is not None:
                    self._program.send_signal(number)
                _answer({"signalled": self._program is not None})
            case _:
                raise ValueError(f"not a request: {request!r}")

    def report_exit(self) -> None:
        """Answer with the exit status if the program has ended since the last call."""
        if self._program is None or (status := self._program.poll()) is None:
            return
        self._program = None
        _answer({"exit": status})

    def end(self) -> None:
        """End the program: politely first, and then not."""
        if self._program is None:
            return
        # A stopped process would only see the termination signal once it is continued.
        self._program.send_signal(signal.SIGCONT)
        self._program.terminate()
        try:
            self._program.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()

    def _run(self, arguments: list[str]) -> None:
        assert self._program is None, "one program at a time"
        with self._log_path.open("ab") as log:
            # No thread runs here, which is what makes a function between fork and exec safe.
            self._program = subprocess.Popen(
                arguments,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._tie_to_watchdog,  # noqa: PLW1509
            )
        _answer({"pid": self._program.pid})


def _death_signal_setter() -> Callable[[], None] | None:
    """Where the kernel can do it (Linux): have a program killed when the watchdog dies itself.

    The signal is sent when the *thread* that forked ends. The watchdog has only its main thread,
    so here that is the same as the process.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    watchdog_pid = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != watchdog_pid:
            os._exit(1)  # The watchdog died before the signal was set.

    return tie


def _answer(answer: dict[str, object]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


def _serve(watchdog: Watchdog, signals: int) -> None:
    """Carry out requests until the parent is gone, or has closed its end of the pipe, or a signal.

    `signals` is where the number of each signal that came can be read, one byte each.
    """
    parent_pid = os.getppid()
    requests = sys.stdin.fileno()
    buffered = b""
    while os.getppid() == parent_pid:
        ready, _, _ = select.select([requests, signals], [], [], PARENT_CHECK_SECONDS)
        if signals in ready and _ENDING_SIGNALS.intersection(os.read(signals, 4096)):
            return
        watchdog.report_exit()
        if requests in ready:
            if not (chunk := os.read(requests, 65536)):
                return
            *lines, buffered = (buffered + chunk).split(b"\n")
            for line in lines:
                watchdog.handle(json.loads(line))


def _collect_signals() -> int:
    """Turn the signals that matter here into bytes to read from the descriptor returned.

    No handler raises anything, so the cleaning up cannot be interrupted.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in (*_ENDING_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda _number, _frame: None)
    return reader


def main() -> None:
    """Serve the parent until it is gone; then leave nothing behind."""
    signals = _collect_signals()
    directory = Path(tempfile.mkdtemp(prefix="consentgate-kafka-"))
    log_path = Path(sys.argv[1]) if len(sys.argv) > 1 else directory / LOG_NAME
    watchdog = Watchdog(directory, log_path)
    try:
        _answer({"directory": str(directory)})
        _serve(watchdog, signals)
    except BrokenPipeError:
        pass  # The parent ended before it could read an answer.
    finally:
        watchdog.end()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
