"""Reading the decision ledger back: one entry by its place, or a chain's last one."""

from aiokafka import TopicPartition

from consentgate.core.ledger import LedgerRecord, read_entry
from consentgate.kafka.reader import read_range, read_topic
from consentgate.kafka.settings import KafkaSettings


async def entry_at(
    settings: KafkaSettings, place: TopicPartition, offset: int
) -> LedgerRecord | None:
    """The entry at one offset; None where the topic holds no entry there.

    Raises:
        ValueError: if what stands there is no ledger entry, or was changed.
    """
    records, _ = await read_range(settings, place, (offset, offset + 1), records_max=1)
    return read_entry(records[0].value) if records else None


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
