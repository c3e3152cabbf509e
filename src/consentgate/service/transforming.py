"""Transforms records in processes of their own: redaction takes far longer than a decision."""

import asyncio
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection

from consentgate.core.transform import Transformer, Work

CHUNK_RECORDS_MIN = 32
"""Fewer are not worth a process of their own."""


class TransformPool:
    """Some processes, started when there is work for the first time, and anew when one has died."""

    def __init__(self, transformer: Transformer, processes: int | None) -> None:
        self._transformer = transformer
        self._processes = processes or os.cpu_count() or 1
        self._executor: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    async def transform(self, works: Sequence[Work]) -> list[bytes | None]:
        """The transformed values in the order of the works; None for what cannot be transformed.

        Raises:
            BrokenProcessPool: if a process has died. The next call starts others.
        """
        if self._executor is None:
            self._executor = self._start()
        size = max(CHUNK_RECORDS_MIN, -(-len(works) // self._processes))
        chunks = [works[first : first + size] for first in range(0, len(works), size)]
        loop, executor = asyncio.get_running_loop(), self._executor
        try:
            done = await asyncio.gather(
                *(loop.run_in_executor(executor, _transform, chunk) for chunk in chunks)
            )
        except BrokenProcessPool:
            if self._executor is executor:
                self.stop()
            raise
        return [value for chunk in done for value in chunk]

    def stop(self) -> None:
        """End the processes, whatever they have in hand: nobody waits for it any more."""
        executor, self._executor = self._executor, None
        if self._lifeline is not None:
            self._lifeline.close()
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        # Not forked: a copy of this process would hold its connections and its table of subjects.
        context = get_context("spawn")
        theirs, self._lifeline = context.Pipe(duplex=False)
        known = self._transformer, theirs
        return ProcessPoolExecutor(self._processes, context, _begin, known)


_transformer = Transformer()
"""Of a process of the pool."""


def _begin(transformer: Transformer, lifeline: Connection) -> None:
    global _transformer  # noqa: PLW0603 - A pool hands nothing else to what it calls.
    _transformer = transformer
    # The worker puts the pool away itself after a Ctrl-C, which reaches this process, too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_pool, args=[lifeline], daemon=True).start()


def _end_with_pool(lifeline: Connection) -> None:
    # A worker that is killed puts nothing away, and its queues stay open in here. And a process
    # that is killed may leave a queue locked for ever, on which the others would wait.
    parent = parent_process()
    assert parent is not None, "a process of the pool has a parent"
    connection.wait([parent.sentinel, lifeline])
    os._exit(0)


def _transform(works: Sequence[Work]) -> list[bytes | None]:
    return [_transform_one(work) for work in works]


def _transform_one(work: Work) -> bytes | None:
    try:
        return _transformer.value(work)
    except Exception:
        # Whatever it was, what should not be seen may still be in there.
        return None
