"""Performs the steps of one partition's life against Kafka, each within a bounded time."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.ledger import GENESIS, Chain, LedgerRecord
from consentgate.core.partition import (
    Abort,
    AwaitFrontier,
    Commit,
    Fence,
    Fetch,
    Pause,
    Position,
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
    WatchConsent,
)
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.consent import ConsentTopicWentBack, ConsentView
from consentgate.kafka.content import ContentSource
from consentgate.kafka.layout import Layout
from consentgate.kafka.ledger import entry_at, last_entry
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.sink import TransactionalSink

log = logging.getLogger(__name__)

STEP_SECONDS_MAX = 15.0
"""How long one step may take before its partition's producer is recycled."""

FRESH_SECONDS_MAX = 3.0
"""How long a decision waits for the consent view before the partition says that it stalls."""


@dataclass(frozen=True, slots=True)
class Clients:
    """What the transports of all partitions share."""

    settings: KafkaSettings
    layout: Layout
    source: ContentSource
    view: ConsentView
    cluster: Cluster


class Transport:
    """The hands of one `Partition`."""

    def __init__(
        self,
        clients: Clients,
        chain: Chain,
        table: ConsentTable,
        on_consent_change: Callable[[ConsentChange], None],
    ) -> None:
        self._settings = clients.settings
        self._layout = clients.layout
        self._source = clients.source
        self._view = clients.view
        self._cluster = clients.cluster
        self._chain = chain
        self._table = table
        self._on_consent_change = on_consent_change
        self._sink: TransactionalSink | None = None
        self._log_start = 0
        self.fresh_at_monotonic = time.monotonic()

    async def perform(self, step: Step[Any]) -> Any:
        """The reply to the step.

        Raises:
            StepFailed: if it did not succeed, whatever the cause.
        """
        try:
            async with asyncio.timeout(STEP_SECONDS_MAX):
                return await self._perform(step)
        except StepFailed:
            raise
        except TimeoutError:
            raise StepFailed(f"{_name(step)} took too long", timed_out=True) from None
        except ConsentTopicWentBack as error:
            raise StepFailed(str(error)) from None
        except Exception as error:
            # Whatever it was, a new producer settles it. aiokafka asserts its transaction states,
            # for one, so that a fenced producer surfaces as an AssertionError.
            raise StepFailed(f"{_name(step)} failed: {type(error).__name__}") from error

    async def _perform(self, step: Step[Any]) -> Any:  # noqa: C901, PLR0911, PLR0912
        partition = self._chain.partition
        match step:
            case ReadClock():
                return read_clock()
            case Fetch(first, records_max, wait_ms):
                return await self._source.fetch(partition, first, records_max, wait_ms)
            case ReadHighWatermarks():
                return await self._view.high_watermarks(self._table)
            case AwaitFrontier(high_watermarks):
                return await self._await_frontier(high_watermarks)
            case WatchConsent():
                return self._watch_consent()
            case ReadChanges(since, until):
                return await self._view.read_changes(self._table, since, until)
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
                return await self._read_position()
            case Seek(offset):
                # Offsets that retention has removed hold no records to seek to.
                return self._source.seek(partition, max(offset, self._log_start))
            case Pause(duration_ms):
                return await asyncio.sleep(duration_ms / 1000)
            case Retire():
                return await self._retire()
        raise AssertionError(f"no such step: {_name(step)}")

    def close(self) -> None:
        """Watch the consent no longer."""
        self._view.unlisten(self._table, self._on_consent_change)

    def _watch_consent(self) -> dict[int, int]:
        # In one step, so that no change falls between the frontier and the first one handed over.
        self._view.listen(self._table, self._on_consent_change)
        return dict(self._table.frontier)

    @property
    def _opened(self) -> TransactionalSink:
        assert self._sink is not None, "a transaction needs a fenced producer"
        return self._sink

    async def _await_frontier(self, high_watermarks: Any) -> bool:
        try:
            async with asyncio.timeout(FRESH_SECONDS_MAX):
                await self._view.await_frontier(self._table, high_watermarks)
        except TimeoutError:
            return False
        self.fresh_at_monotonic = time.monotonic()
        return True

    async def _fence(self) -> None:
        await self._retire()
        source = TopicPartition(self._chain.topic, self._chain.partition)
        self._sink = TransactionalSink(self._settings, self._chain.group, source, self._layout)
        await self._sink.start()

    async def _retire(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.retire()

    async def _read_position(self) -> Position:
        partition = self._chain.partition
        self._log_start, log_end = await self._source.range(partition)
        committed = await self._source.committed(partition)
        entry = await self._last_ledger_entry(committed)
        if entry is None:
            next_offset = self._log_start if committed is None else committed
            position = Position(next_offset, GENESIS, None)
        else:
            frontier = {int(p): offset for p, offset in entry.consent.items()}
            position = Position(entry.source.last + 1, entry.hash, frontier)
        if committed not in (None, position.next_offset):
            raise StepFailed(
                f"the committed offset {committed} does not follow the ledger, whose last entry "
                f"accounts for offsets up to {position.next_offset - 1}"
            )
        if position.next_offset > log_end:
            raise StepFailed(
                f"the content partition ends at {log_end}, before the committed offset "
                f"{position.next_offset}: it was truncated or made anew"
            )
        if position.next_offset < self._log_start:
            log.warning(
                "%s-%d: offsets %d to %d expired before they were decided",
                self._chain.topic,
                partition,
                position.next_offset,
                self._log_start - 1,
            )
        return position

    async def _last_ledger_entry(self, committed: int | None) -> LedgerRecord | None:
        """The chain's last entry: where the bookmark says, else searched for in the whole topic."""
        topic = self._layout.topics.decisions
        bookmark = None
        if committed is not None:
            partition = self._chain.partition
            found = await self._cluster.bookmarks(self._chain.group, self._chain.topic, [partition])
            offset, bookmark = found.get(partition, (None, None))
            if offset != committed:
                raise StepFailed("the committed offset is not settled yet")
        if bookmark is None:
            return await last_entry(
                self._settings, topic, self._layout.counts[topic], self._chain.key
            )
        entry = await entry_at(
            self._settings, topic, bookmark.ledger_partition, bookmark.ledger_offset
        )
        if entry is None or entry.hash != bookmark.hash:
            raise StepFailed(
                f"the ledger entry at {topic}-{bookmark.ledger_partition}@"
                f"{bookmark.ledger_offset} is not the one that was committed"
            )
        return entry


def _name(step: Step[Any]) -> str:
    return type(step).__name__
