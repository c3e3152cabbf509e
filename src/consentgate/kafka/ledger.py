"""Reading the decision ledger back: an entry by its place or its content, or a chain's last one."""

from aiokafka import TopicPartition

from consentgate.core.ledger import LedgerRecord, read_entry
from consentgate.kafka.cursor import await_stable, open_cursor
from consentgate.kafka.settings import KafkaSettings

ENTRIES_READ_MAX = 20_000
"""How many entries are read through in search of one."""


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


async def entry_covering(
    settings: KafkaSettings, place: TopicPartition, key: bytes, offset: int
) -> tuple[int, LedgerRecord] | None:
    """The entry of the chain with this key that accounts for a content offset, and its own offset.

    A chain's entries stand in the order of the offsets that they account for. So the place is
    halved until little enough is left to read through, however long the ledger is.

    Raises:
        ValueError: if an entry that was read on the way was changed.
    """
    await await_stable(settings, place)
    async with open_cursor(settings, place.topic, place.partition) as whole:
        low, high = whole.start, whole.end
    while high - low > ENTRIES_READ_MAX:
        middle = (low + high) // 2
        entry = await _first_of_chain(settings, place, key, (middle, high))
        if entry is None or entry.source.first > offset:
            high = middle
        else:
            low = middle
    async with open_cursor(settings, place.topic, place.partition, low) as cursor:
        async for record in cursor.up_to(cursor.end):
            if record.key != key:
                continue
            entry = read_entry(record.value)
            if entry.source.first > offset:
                return None
            if entry.source.last >= offset:
                return record.offset, entry
    return None


async def _first_of_chain(
    settings: KafkaSettings, place: TopicPartition, key: bytes, offsets: tuple[int, int]
) -> LedgerRecord | None:
    start, end = offsets
    async with open_cursor(settings, place.topic, place.partition, start) as cursor:
        async for record in cursor.up_to(end):
            if record.key == key:
                return read_entry(record.value)
    return None
