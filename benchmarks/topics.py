"""The topics of a benchmark: make them, fill them, watch their ends, read what is in them."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from peers.task import PARTITIONS

CONSENT = {"cleanup.policy": "compact"}
_FETCH_BYTES = 4_194_304

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

    async def create(self, name: str, configs: dict[str, str] | None = None) -> None:
        """Create a topic."""
        topic = NewTopic(name, PARTITIONS, 1, topic_configs=configs or {})
        await self._admin.create_topics([topic])

    async def delete_all_of(self, prefix: str) -> None:
        """Delete the topics whose names begin so, among them those that a contender has made."""
        names = [name for name in await self._admin.list_topics() if name.startswith(prefix)]
        await self._admin.delete_topics(names)

    async def fill(
        self, topic: str, records: Iterable[KeyAndValue], timestamp_ms: int | None = None
    ) -> None:
        """Append records, each in the partition of its key."""
        async with self.producer() as producer:
            for key, value in records:
                await producer.send(topic, value, key, timestamp_ms=timestamp_ms)
            await producer.flush()

    def producer(self) -> AIOKafkaProducer:
        """A producer with batches of 256 KiB."""
        return AIOKafkaProducer(
            bootstrap_servers=self.servers, acks="all", max_batch_size=262_144, linger_ms=5
        )

    @asynccontextmanager
    async def ends(self, topic: str) -> AsyncIterator[Ends]:
        """Whom to ask where what can be read of each partition ends; markers count as well."""
        async with AIOKafkaConsumer(
            bootstrap_servers=self.servers, isolation_level="read_committed"
        ) as consumer:
            tps = partitions_of(topic)

            async def ends() -> list[int]:
                found = await consumer.end_offsets(tps)
                return [found[tp] for tp in tps]

            yield ends

    async def read(self, topic: str) -> AsyncIterator[ConsumerRecord]:
        """All committed records; those of one partition in their order."""
        tps = partitions_of(topic)
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


def partitions_of(topic: str) -> list[TopicPartition]:
    """All partitions, by their numbers."""
    return [TopicPartition(topic, partition) for partition in range(PARTITIONS)]


def digest(key: bytes | None, value: bytes) -> bytes:
    """What stands for a record where outputs are compared."""
    return hashlib.md5((key or b"") + b"\0" + value).digest()
