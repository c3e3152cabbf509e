"""The topics of a benchmark: make them, fill them, watch their ends, read what is in them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.partitioner import murmur2

from peers.task import PARTITIONS

CONSENT = {"cleanup.policy": "compact"}
_FETCH_BYTES = 4_194_304
_BATCH_BYTES = 262_144
_HOLD_MS_MAX = 900_000

KeyAndValue = tuple[bytes, bytes]
Ends = Callable[[], Awaitable[list[int]]]


class Topics:
    """The topics on one broker, as an asynchronous context manager."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self._admin = AIOKafkaAdminClient(bootstrap_servers=servers)

    async def __aenter__(self) -> Self:
        await self._admin.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._admin.close()

    async def create(
        self, name: str, configs: dict[str, str] | None = None, partitions: int = PARTITIONS
    ) -> None:
        """Create a topic."""
        topic = NewTopic(name, partitions, 1, topic_configs=configs or {})
        await self._admin.create_topics([topic])

    async def delete_all_of(self, prefix: str) -> None:
        """Delete the topics whose names begin so, among them those that a contender has made."""
        names = [name for name in await self._admin.list_topics() if name.startswith(prefix)]
        await self._admin.delete_topics(names)

    async def fill(
        self,
        topic: str,
        records: Iterable[KeyAndValue],
        timestamp_ms: int | None = None,
        partitions: int = PARTITIONS,
    ) -> None:
        """Append records, each in the partition of its key, in batches."""
        async with self.producer() as producer:
            batches = [producer.create_batch() for _ in range(partitions)]
            sent = []
            for key, value in records:
                number = partition_of(key, partitions)
                if batches[number].append(key=key, value=value, timestamp=timestamp_ms) is None:
                    full, batches[number] = batches[number], producer.create_batch()
                    sent.append(await producer.send_batch(full, topic, partition=number))
                    batches[number].append(key=key, value=value, timestamp=timestamp_ms)
            for number, batch in enumerate(batches):
                sent.append(await producer.send_batch(batch, topic, partition=number))
            await asyncio.gather(*sent)

    def producer(self) -> AIOKafkaProducer:
        """A producer with batches of 256 KiB."""
        return AIOKafkaProducer(
            bootstrap_servers=self.servers, acks="all", max_batch_size=_BATCH_BYTES, linger_ms=5
        )

    @asynccontextmanager
    async def held_back(self, topic: str, partitions: int = PARTITIONS) -> AsyncIterator[None]:
        """Meanwhile, who reads committed records sees nothing of an empty topic that is filled.

        Each partition begins with a record of a transaction that stays open, and is aborted at the
        end: one record and one marker that nobody sees.
        """
        async with AIOKafkaProducer(
            bootstrap_servers=self.servers,
            transactional_id=f"{topic}-held-back",
            transaction_timeout_ms=_HOLD_MS_MAX,
        ) as producer:
            await producer.begin_transaction()
            try:
                for number in range(partitions):
                    await producer.send_and_wait(topic, b"", partition=number)
                yield
            finally:
                await producer.abort_transaction()

    async def committed(self, group: str) -> dict[int, int]:
        """The offsets that a group has committed, by the number of the partition."""
        found = await self._admin.list_consumer_group_offsets(group)
        return {tp.partition: place.offset for tp, place in found.items()}

    @asynccontextmanager
    async def ends(self, topic: str, partitions: int = PARTITIONS) -> AsyncIterator[Ends]:
        """Whom to ask where what can be read of each partition ends; markers count as well."""
        async with AIOKafkaConsumer(
            bootstrap_servers=self.servers, isolation_level="read_committed"
        ) as consumer:
            tps = partitions_of(topic, partitions)

            async def ends() -> list[int]:
                found = await consumer.end_offsets(tps)
                return [found[tp] for tp in tps]

            yield ends

    async def read(self, topic: str, partitions: int = PARTITIONS) -> AsyncIterator[ConsumerRecord]:
        """All committed records; those of one partition in their order."""
        tps = partitions_of(topic, partitions)
        async with AIOKafkaConsumer(
            bootstrap_servers=self.servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=_FETCH_BYTES,
        ) as consumer:
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
            while any([await consumer.position(tp) < ends[tp] for tp in tps]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        yield record


def partitions_of(topic: str, partitions: int = PARTITIONS) -> list[TopicPartition]:
    """All partitions, by their numbers."""
    return [TopicPartition(topic, partition) for partition in range(partitions)]


def partition_of(key: bytes, partitions: int = PARTITIONS) -> int:
    """Where every client puts it, so that consent and content of a person lie side by side."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def digest(key: bytes | None, value: bytes) -> bytes:
    """What stands for a record where outputs are compared."""
    return hashlib.md5((key or b"") + b"\0" + value).digest()
