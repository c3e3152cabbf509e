"""Performs the steps of one partition's life against Kafka, each within a bounded time."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

from aiokafka import TopicPartition

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.ledger import Chain
from consentgate.core.partition import (
    Abort,
    AwaitFrontier,
    Commit,
    Fence,
    Fetch,
    Pause,
    ReadChanges,
    ReadClock,
    ReadHighWatermarks,
    ReadPosition,
    Retire,
    Seek,
    Send,
    SendOffset,
    Step,
    StepFailed,
    Transform,
    Transport,
    WatchConsent,
)
from consentgate.errors import ConsentgateError
from consentgate.kafka.clients import Clients
from consentgate.kafka.connecting import denial
from consentgate.kafka.consent import ConsentTableLost
from consentgate.kafka.position import read_position
from consentgate.kafka.sink import TransactionalSink

STEP_SECONDS_MAX = 15.0
"""How long one step may take before its partition's producer is recycled."""

FRESH_SECONDS_MAX = 3.0
"""How long a decision waits for the consent view before the partition says that it stalls."""


_SECONDS_MAX: dict[type[Step[Any]], float] = {
    # Where the group's offsets are gone, the whole ledger is read.
    ReadPosition: 1_800.0,
    # Several partitions may wait for the same processes, each with a batch of some megabytes.
    Transform: 45.0,
}


class KafkaTransport(Transport):
    """The hands of one `Partition` on Kafka."""

    def __init__(
        self,
        clients: Clients,
        chain: Chain,
        table: ConsentTable,
        on_consent_change: Callable[[ConsentChange], None],
    ) -> None:
        self._clients = clients
        self._source = clients.source
        self._view = clients.view
        self._chain = chain
        self._table = table
        self._on_consent_change = on_consent_change
        self._sink: TransactionalSink | None = None
        self._is_watching = False
        self.fresh_at_monotonic = time.monotonic()
        self.excused_at_monotonic = -math.inf
        """When the consent topic was last seen to be behind for every reader."""
        self.due_at_monotonic = math.inf
        """When the step in hand has to be over."""

    async def perform(self, step: Step[Any]) -> Any:
        """The reply to the step.

        Raises:
            StepFailed: if it did not succeed, whatever the cause.
            ConsentgateError: if it must not be tried again without a person's decision.
        """
        seconds_max = _SECONDS_MAX.get(type(step), STEP_SECONDS_MAX)
        self.due_at_monotonic = time.monotonic() + seconds_max
        try:
            async with asyncio.timeout(seconds_max):
                return await self._perform(step)
        except (StepFailed, ConsentgateError):
            raise
        except TimeoutError:
            raise StepFailed(f"{_name(step)} took too long", timed_out=True) from None
        except ConsentTableLost as error:
            raise StepFailed(str(error)) from None
        except Exception as error:
            # Whatever it was, a new producer settles it. aiokafka asserts its transaction states,
            # for one, so that a fenced producer surfaces as an AssertionError.
            why = denial(error) or type(error).__name__
            raise StepFailed(f"{_name(step)} failed: {why}") from error

    async def _perform(self, step: Step[Any]) -> Any:  # noqa: C901, PLR0911, PLR0912
        partition = self._chain.partition
        match step:
            case ReadClock():
                return self._clients.clock()
            case Fetch(first, records_max, wait_ms):
                return await self._source.fetch(partition, first, records_max, wait_ms)
            case ReadHighWatermarks():
                return await self._high_watermarks()
            case AwaitFrontier(high_watermarks):
                return await self._await_frontier(high_watermarks)
            case WatchConsent():
                return self._watch_consent()
            case ReadChanges(since, until):
                return await self._view.read_changes(self._table, since, until)
            case Transform(works):
                return await self._clients.transform(works)
            case Send(outcome):
                return await self._opened.send(outcome)
            case SendOffset(outcome):
                return await self._opened.send_offset(outcome)
            case Commit():
                return await self._opened.commit()
            case Abort():
                return await self._opened.abort()
            case Fence():
                return await self._fence()
            case ReadPosition():
                return await read_position(self._clients, self._chain)
            case Seek(offset):
                return await self._source.seek(partition, offset)
            case Pause(duration_ms):
                return await asyncio.sleep(duration_ms / 1000)
            case Retire():
                return await self._retire()
        raise AssertionError(f"no such step: {_name(step)}")

    def close(self) -> None:
        """Watch the consent no longer."""
        self._unwatch()

    def _unwatch(self) -> None:
        self._view.unlisten(self._table, self._on_consent_change)
        self._is_watching = False

    def _watch_consent(self) -> dict[int, int]:
        # In one step, so that no change falls between the frontier and the first one handed over.
        self._view.listen(self._table, self._on_consent_change)
        self._is_watching = True
        return dict(self._table.frontier)

    async def _high_watermarks(self) -> dict[int, int]:
        self._refuse_lost_table()
        return await self._view.high_watermarks(self._table)

    def _refuse_lost_table(self) -> None:
        if self._is_watching and not self._view.is_listening(self._table, self._on_consent_change):
            # Another partition found that; this one has missed changes since, which only taking
            # over again finds.
            raise ConsentTableLost("the consent table was thrown away and is read anew")

    @property
    def _opened(self) -> TransactionalSink:
        assert self._sink is not None, "a transaction needs a fenced producer"
        return self._sink

    async def _await_frontier(self, high_watermarks: Any) -> str | None:
        try:
            async with asyncio.timeout(FRESH_SECONDS_MAX):
                await self._view.await_frontier(self._table, high_watermarks)
        except TimeoutError:
            behind = await self._view.why_behind(self._table, high_watermarks)
            if behind.is_anybodys:
                self.excused_at_monotonic = time.monotonic()
            return behind.why
        # It may have been thrown away, and read beyond these offsets again, meanwhile.
        self._refuse_lost_table()
        self.fresh_at_monotonic = time.monotonic()
        return None

    async def _fence(self) -> None:
        await self._retire()
        self._unwatch()
        source = TopicPartition(self._chain.topic, self._chain.partition)
        self._sink = TransactionalSink(
            self._clients.settings, self._chain.group, source, self._clients.layout
        )
        await self._sink.start()

    async def _retire(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.retire()


def _name(step: Step[Any]) -> str:
    return type(step).__name__
