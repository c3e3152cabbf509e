"""Transforms records in processes of their own: redaction takes far longer than a decision."""

import asyncio
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process
from multiprocessing.synchronize import Event

from consentgate.core.transform import Transformer, Work

CHUNK_RECORDS_MIN = 32
"""Fewer are not worth a process of their own."""


class PoolStopped(Exception):
    """The worker ends; nobody waits for what was to be transformed."""


class TransformPool:
    """Some processes, started when there is work for the first time, and anew when one has died."""

    def __init__(self, transformer: Transformer, processes: int | None) -> None:
        self._transformer = transformer
        self._processes = processes or os.cpu_count() or 1
        self._executor: ProcessPoolExecutor | None = None
        self._stopping: Event | None = None

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
                self._executor = None
            executor.shutdown(wait=False, cancel_futures=True)
            raise
        return [value for chunk in done for value in chunk]

    def stop(self) -> None:
        """End the processes after the record that each has in hand."""
        if self._stopping is not None:
            self._stopping.set()
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        # Not forked: a copy of this process would hold its connections and its table of subjects.
        context = get_context("spawn")
        self._stopping = context.Event()
        known = self._transformer, self._stopping
        return ProcessPoolExecutor(self._processes, context, _begin, known)


_transformer = Transformer()
_stopping: Event | None = None
"""Of a process of the pool."""


def _begin(transformer: Transformer, stopping: Event) -> None:
    global _transformer, _stopping
    _transformer, _stopping = transformer, stopping
    # The worker puts the pool away itself after a Ctrl-C, which reaches this process, too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A worker that is killed puts nothing away, and its queues stay open in here.
    parent = parent_process()
    assert parent is not None, "a process of the pool has a parent"
    connection.wait([parent.sentinel])
    os._exit(0)


def _transform(works: Sequence[Work]) -> list[bytes | None]:
    return [_transform_one(work) for work in works]


def _transform_one(work: Work) -> bytes | None:
    # Nobody waits for it any more, but the interpreter would, when the worker ends.
    if _stopping is not None and _stopping.is_set():
        raise PoolStopped
    try:
        return _transformer.value(work)
    except Exception:
        # Whatever it was, what should not be seen may still be in there.
        return None
