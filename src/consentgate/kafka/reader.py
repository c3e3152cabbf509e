"""Reading whole topics, committed records only, for tools that look back."""

from collections.abc import AsyncIterator
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.kafka.settings import KafkaSettings


async def read_topic(settings: KafkaSettings, topic: str, partitions: int) -> AsyncIterator[Any]:
    """Every committed record that is in the topic now, partition by partition in offset order."""
    tps = [TopicPartition(topic, partition) for partition in range(partitions)]
    consumer = AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        **settings.client,
        **settings.consumer,
    )
    async with consumer:
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        starts = await consumer.beginning_offsets(tps)
        for tp in tps:
            consumer.seek(tp, starts[tp])
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    yield record
