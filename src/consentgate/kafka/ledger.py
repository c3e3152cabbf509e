"""Reading the decision ledger back: one entry by its place, or a chain's last one."""

from aiokafka import TopicPartition

from consentgate.core.ledger import LedgerRecord, read_entry
from consentgate.kafka.cursor import await_stable, open_cursor
from consentgate.kafka.settings import KafkaSettings


async def entry_at(
    settings: KafkaSettings, place: TopicPartition, offset: int
) -> LedgerRecord | None:
    """The entry at one offset; None where the topic holds no entry there.

    The offset is known to be committed, so that another partition's open transaction, which may
    begin before it, is not waited for.

    Raises:
        ValueError: if what stands there is no ledger entry, or was changed.
    """
    async with open_cursor(
        settings, place.topic, place.partition, offset, isolation_level="read_uncommitted"
    ) as cursor:
        record = await cursor.peek()
    if record is None or record.offset != offset:
        return None
    return read_entry(record.value)


async def last_entry(
    settings: KafkaSettings, topic: str, partitions: int, key: bytes
) -> LedgerRecord | None:
    """The last entry of the chain with this key; reads the whole topic.

    Raises:
        ValueError: if an entry was changed.
    """
    last: LedgerRecord | None = None
    for partition in range(partitions):
        place = TopicPartition(topic, partition)
        await await_stable(settings, place)
        async with open_cursor(settings, topic, partition) as cursor:
            while (record := await cursor.next()) is not None:
                if record.key == key:
                    entry = read_entry(record.value)
                    if last is None or entry.source.last >= last.source.last:
                        last = entry
    return last
