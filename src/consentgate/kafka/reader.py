"""Reading ranges and whole topics, committed records only, for what looks back."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.kafka.cursor import await_stable, open_cursor
from consentgate.kafka.settings import KafkaSettings


async def read_range(
    settings: KafkaSettings, tp: TopicPartition, offsets: tuple[int, int], records_max: int
) -> tuple[list[Any], int]:
    """The records from the first offset to below the second, and the offset that was reached.

    Stops after `records_max` records and leaves the rest; stops where the partition ends now.
    """
    start, end = offsets
    found: list[Any] = []
    async with open_cursor(settings, tp.topic, tp.partition, start) as cursor:
        while (record := await cursor.peek()) is not None and record.offset < end:
            if len(found) == records_max:
                return found, record.offset
            found.append(await cursor.next())
        return found, min(end, cursor.end)


async def read_topic(
    settings: KafkaSettings, topic: str, partitions: int
) -> AsyncIterator[tuple[int, Any]]:
    """Every record of the topic now, after its partition; one partition after the other."""
    for partition in range(partitions):
        async with open_cursor(settings, topic, partition) as cursor:
            while (record := await cursor.next()) is not None:
                yield partition, record


async def follow_topic(settings: KafkaSettings, topic: str) -> AsyncGenerator[Any, None]:
    """Every record of partition 0, each as soon as it is committed; never ends by itself."""
    place = TopicPartition(topic, 0)
    async with AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        **settings.client,
        **settings.consumer,
    ) as consumer:
        consumer.assign([place])
        consumer.seek(place, 0)
        while True:
            yield await consumer.getone(place)


async def follow_topics(
    settings: KafkaSettings, partitions: Mapping[str, int]
) -> AsyncGenerator[tuple[list[Any], bool, int], None]:
    """All records of some topics (name to number of partitions), then each as soon as it is there.

    They come in runs, in the order of each partition, several a second, empty ones among them.
    Beside each run: whether all that was there at the beginning has come, and when a broker last
    answered for each of the partitions (epoch milliseconds). Never ends by itself.
    """
    places = [TopicPartition(topic, p) for topic, count in partitions.items() for p in range(count)]
    async with AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        **settings.client,
        **settings.consumer,
    ) as consumer:
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        await consumer.seek_to_beginning(*places)
        behind = set(places)
        begun_ms = time.time_ns() // 1_000_000
        while True:
            fetched = await consumer.getmany(timeout_ms=200)
            for place in list(behind):
                if await consumer.position(place) >= ends[place]:
                    behind.remove(place)
            heard_ms = min(consumer.last_poll_timestamp(each) or begun_ms for each in places)
            yield [record for run in fetched.values() for record in run], not behind, heard_ms


async def count_offsets(settings: KafkaSettings, topic: str, partitions: Iterable[int]) -> int:
    """Number of offsets, markers included, between the beginning and the end of a topic now."""
    places = [TopicPartition(topic, partition) for partition in partitions]
    async with AIOKafkaConsumer(group_id=None, **settings.client) as consumer:
        starts = await consumer.beginning_offsets(places)
        ends = await consumer.end_offsets(places)
    return sum(ends[place] - starts[place] for place in places)


async def settle_topic(settings: KafkaSettings, topic: str, partitions: Iterable[int]) -> None:
    """Return when nothing is hidden any more behind transactions that are open now."""
    for partition in partitions:
        await await_stable(settings, TopicPartition(topic, partition))
