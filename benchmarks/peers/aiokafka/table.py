"""The consent topic as a dict, read through aiokafka."""

import time

from aiokafka import AIOKafkaConsumer, TopicPartition

from peers.decision import permitted
from peers.task import Task, report_table


class Table:
    """Fills `persons`, key to what may be forwarded, from the topic, and then follows it."""

    def __init__(self, consumer: AIOKafkaConsumer, persons: dict[bytes, int]) -> None:
        self._consumer = consumer
        self._persons = persons

    async def read(self, task: Task) -> None:
        """Take in all that is there."""
        tps = [TopicPartition(task.consent, partition) for partition in range(task.partitions)]
        self._consumer.assign(tps)
        await self._consumer.seek_to_beginning(*tps)
        ends = await self._consumer.end_offsets(tps)
        began, count = time.monotonic(), 0
        while any([await self._consumer.position(tp) < ends[tp] for tp in tps]):
            for records in (await self._consumer.getmany(timeout_ms=100)).values():
                self._persons.update({record.key: permitted(record.value) for record in records})
                count += len(records)
        report_table(count, time.monotonic() - began)

    async def follow(self) -> None:
        """Take in what comes, for ever."""
        async for record in self._consumer:
            self._persons[record.key] = permitted(record.value)
