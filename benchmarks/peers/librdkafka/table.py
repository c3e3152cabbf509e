"""The consent topic as a dict, read through librdkafka."""

import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from peers.decision import permitted
from peers.task import Task, report_table


class Table:
    """Key to what may be forwarded of the person; read to its end at first, then followed."""

    def __init__(self, task: Task) -> None:
        self.persons: dict[bytes, int] = {}
        self._consumer = consumer_of(task, f"{task.output}-consent")
        tps = [TopicPartition(task.consent, p, OFFSET_BEGINNING) for p in range(task.partitions)]
        ends = {tp.partition: self._consumer.get_watermark_offsets(tp)[1] for tp in tps}
        self._consumer.assign(tps)
        began, count, waiting = time.monotonic(), 0, {p for p, end in ends.items() if end}
        while waiting:
            for message in self._consumer.consume(10_000, 0.1):
                self._apply(message)
                count += 1
                if message.offset() + 1 >= ends[message.partition()]:
                    waiting.discard(message.partition())
        report_table(count, time.monotonic() - began)

    def follow(self, timeout_seconds: float = 0) -> None:
        """Take in what is new, waiting for it for so long."""
        for message in self._consumer.consume(10_000, timeout_seconds):
            self._apply(message)

    def _apply(self, message: Message) -> None:
        fail_on_error(message)
        self.persons[message.key()] = permitted(message.value())


def consumer_of(task: Task, group: str) -> Consumer:
    """A consumer with the task's settings."""
    settings = task.settings["consumer"]
    return Consumer({"bootstrap.servers": task.servers, "group.id": group, **settings})


def fail_on_error(message: Message) -> None:
    """End the program where there is an error in the place of a message."""
    if error := message.error():
        raise SystemExit(f"{message.topic()}-{message.partition()}: {error}")
