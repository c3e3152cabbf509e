"""Walking along one partition, committed records only, as far as it goes now."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from operator import attrgetter
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.kafka.decoded import hand_on_decoded_records
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.unreadable import UNREADABLE_ERRORS, read_around

RECORDS_MAX = 10_000

STABLE_CHECK_SECONDS = 0.05


class Cursor:
    """A position in a partition between its first offset and the end that it had when opened.

    Records that the client cannot read come as `UnreadableRecord`.
    """

    def __init__(self, consumer: AIOKafkaConsumer, tp: TopicPartition, start: int, end: int):
        self.topic = tp.topic
        self.partition = tp.partition
        self.start = start
        self.end = end
        self._consumer = consumer
        self._tp = tp
        self._position = start
        self._buffer: deque[Any] = deque()

    async def peek(self) -> Any | None:
        """The next record; None at the end."""
        while not self._buffer and self._position < self.end:
            await self._fill()
        return self._buffer[0] if self._buffer else None

    async def next(self) -> Any | None:
        """The next record, and go past it; None at the end."""
        if not self._buffer and await self.peek() is None:
            return None
        return self._buffer.popleft()

    async def below(self, offset: int) -> list[Any]:
        """All records from here to below `offset`, and go there."""
        return [record async for run in self.runs_up_to(offset) for record in run]

    async def up_to(self, offset: int) -> AsyncIterator[Any]:
        """The same, one at a time."""
        async for run in self.runs_up_to(offset):
            for record in run:
                yield record

    async def runs_up_to(self, offset: int) -> AsyncIterator[list[Any]]:
        """The same, in runs as they are fetched: far less is to be awaited."""
        async for run in self.while_at_most(offset - 1, attrgetter("offset")):
            yield [record for _, record in run]

    async def while_at_most(
        self, limit: int, measure: Callable[[Any], int | None]
    ) -> AsyncIterator[list[tuple[int | None, Any]]]:
        """The next records with their measures, up to the first beyond the limit, and go there.

        They come in runs as they are fetched. A record without a measure is passed, too.
        """
        while await self.peek() is not None:
            run: list[tuple[int | None, Any]] = []
            while self._buffer:
                measured = measure(self._buffer[0])
                if measured is not None and measured > limit:
                    yield run
                    return
                run.append((measured, self._buffer.popleft()))
            yield run

    def place(self, record: Any) -> str:
        """Where the record stands, as topic-partition@offset."""
        return f"{self.topic}-{self.partition}@{record.offset}"

    async def _fill(self) -> None:
        try:
            fetched = await self._consumer.getmany(
                self._tp, timeout_ms=100, max_records=RECORDS_MAX
            )
            records = fetched.get(self._tp, [])
            self._position = await self._consumer.position(self._tp)
        except UNREADABLE_ERRORS:
            records, self._position = await read_around(self._consumer, self._tp, self._position)
            self._consumer.seek(self._tp, self._position)
        self._buffer.extend(record for record in records if record.offset < self.end)


async def await_stable(settings: KafkaSettings, tp: TopicPartition) -> None:
    """Return when every transaction has ended that is open in the partition now.

    What a transaction of somebody else began before lies behind it for readers of committed
    records, although it was committed long ago.
    """
    async with _consumer(settings, "read_uncommitted") as everything:
        end = (await everything.end_offsets([tp]))[tp]
    async with _consumer(settings, "read_committed") as committed:
        # Nobody tells when a transaction ends; one asks.
        while (await committed.end_offsets([tp]))[tp] < end:  # noqa: ASYNC110
            await asyncio.sleep(STABLE_CHECK_SECONDS)


@asynccontextmanager
async def open_cursor(
    settings: KafkaSettings,
    topic: str,
    partition: int,
    start: int = 0,
    isolation_level: str = "read_committed",
) -> AsyncIterator[Cursor]:
    """A cursor at `start`, or at the first offset that is left after it."""
    tp = TopicPartition(topic, partition)
    async with _consumer(settings, isolation_level) as consumer:
        hand_on_decoded_records(consumer)
        consumer.assign([tp])
        # The end first: what is appended from here on is for another walk.
        end = (await consumer.end_offsets([tp]))[tp]
        first = (await consumer.beginning_offsets([tp]))[tp]
        position = max(first, start)
        consumer.seek(tp, position)
        yield Cursor(consumer, tp, position, end)


def _consumer(settings: KafkaSettings, isolation_level: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level=isolation_level,
        **settings.client,
        **settings.consumer,
    )
