"""Reading the decision ledger back: one entry by its place, or a chain's last one."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.core.ledger import LedgerRecord, read_entry
from consentgate.kafka.settings import KafkaSettings


async def entry_at(
    settings: KafkaSettings, topic: str, partition: int, offset: int
) -> LedgerRecord | None:
    """The entry at one place; None where the topic holds no entry there.

    Raises:
        ValueError: if what stands there is no ledger entry, or was changed.
        TimeoutError: if the topic does not answer.
    """
    tp = TopicPartition(topic, partition)
    async with _reader(settings) as consumer:
        consumer.assign([tp])
        starts = await consumer.beginning_offsets([tp])
        ends = await consumer.end_offsets([tp])
        if not starts[tp] <= offset < ends[tp]:
            return None
        consumer.seek(tp, offset)
        async with asyncio.timeout(10):
            record = await consumer.getone(tp)
        return read_entry(record.value) if record.offset == offset else None


async def last_entry(
    settings: KafkaSettings, topic: str, partitions: int, key: bytes
) -> LedgerRecord | None:
    """The last entry of the chain with this key; reads the whole topic.

    Raises:
        ValueError: if it was changed.
    """
    last: bytes | None = None
    async with _reader(settings) as consumer:
        tps = [TopicPartition(topic, partition) for partition in range(partitions)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        starts = await consumer.beginning_offsets(tps)
        for tp in tps:
            consumer.seek(tp, starts[tp])
        while any([await consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    if record.key == key:
                        last = record.value
    return None if last is None else read_entry(last)


def _reader(settings: KafkaSettings) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        **settings.client,
        **settings.consumer,
    )
