"""The signals that end a process: noted, while it puts itself away."""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ending_signals(on_signal: Callable[[], None]) -> Iterator[list[signal.Signals]]:
    """Have SIGINT and SIGTERM call `on_signal`; the first that came stands in the list."""
    received: list[signal.Signals] = []
    handled = (signal.SIGINT, signal.SIGTERM)
    loop = asyncio.get_running_loop()

    def receive(number: signal.Signals) -> None:
        if not received:
            received.append(number)
        on_signal()

    for number in handled:
        loop.add_signal_handler(number, receive, number)
    try:
        yield received
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        if signal.SIGTERM in received:
            # What is left is to exit, and another one must not make a failure of that.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def exit_on_sigterm() -> None:
    """Have SIGTERM exit with 0 while nothing is in hand yet, until `ending_signals` takes over."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
