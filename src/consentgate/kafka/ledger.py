"""Reading the decision ledger back: one entry by its place, or a chain's last one."""

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.core.ledger import LedgerRecord, read_entry
from consentgate.kafka.reader import read_topic
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
    consumer = AIOKafkaConsumer(
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        **settings.client,
    )
    async with consumer:
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
    async for record in read_topic(settings, topic, partitions):
        if record.key == key:
            last = record.value
    return None if last is None else read_entry(last)
