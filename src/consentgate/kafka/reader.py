"""Reading whole topics, committed records only, for tools that look back."""

from collections.abc import AsyncIterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.unreadable import UNREADABLE_ERRORS, read_around


async def read_range(
    settings: KafkaSettings, tp: TopicPartition, offsets: tuple[int, int], records_max: int
) -> tuple[list[Any], int]:
    """The committed records from the first offset to below the second, and the offset after them.

    Reads about `records_max` records and leaves the rest. Records that the client cannot read come
    as `UnreadableRecord`.
    """
    position, end = offsets
    found: list[Any] = []
    async with _consumer(settings) as consumer:
        consumer.assign([tp])
        starts = await consumer.beginning_offsets([tp])
        position = max(position, min(starts[tp], end))
        consumer.seek(tp, position)
        while position < end and len(found) < records_max:
            try:
                fetched = await consumer.getmany(tp, timeout_ms=100, max_records=records_max)
                records, position = fetched.get(tp, []), await consumer.position(tp)
            except UNREADABLE_ERRORS:
                records, position = await read_around(consumer, tp, position)
                consumer.seek(tp, position)
            found += [record for record in records if record.offset < end]
    return found, min(position, end)


async def read_topic(settings: KafkaSettings, topic: str, partitions: int) -> AsyncIterator[Any]:
    """Every committed record that is in the topic now, partition by partition in offset order."""
    tps = [TopicPartition(topic, partition) for partition in range(partitions)]
    async with _consumer(settings) as consumer:
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        starts = await consumer.beginning_offsets(tps)
        for tp in tps:
            consumer.seek(tp, starts[tp])
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    yield record


def _consumer(settings: KafkaSettings) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        **settings.client,
        **settings.consumer,
    )
