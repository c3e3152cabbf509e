"""What the loops over librdkafka have in common: how they end, and how they send."""

import signal
from typing import Any

from confluent_kafka import Message, Producer


class Terminated:
    """False until the process is told to end."""

    def __init__(self) -> None:
        self._told = False
        signal.signal(signal.SIGTERM, self._tell)

    def __bool__(self) -> bool:
        return self._told

    def _tell(self, *_: Any) -> None:
        self._told = True


def send(producer: Producer, topic: str, message: Message) -> None:
    """Forward a message as it is; where the queue is full, wait for it."""
    while True:
        try:
            producer.produce(
                topic,
                message.value(),
                message.key(),
                message.partition(),
                timestamp=message.timestamp()[1],
            )
        except BufferError:
            producer.poll(0.01)
        else:
            return
