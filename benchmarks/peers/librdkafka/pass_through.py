"""librdkafka from Python: every fourth person's records go on as they are; nothing is decided.

What consuming and sending alone cost: no table, no decoding, no transactions.
"""

from confluent_kafka import Producer

from peers.decision import in_quarter
from peers.librdkafka.sending import Terminated, send
from peers.librdkafka.table import consumer_of, fail_on_error
from peers.task import Task


def main(task: Task) -> None:
    """Pass on until terminated."""
    terminated = Terminated()
    consumer = consumer_of(task, task.output)
    producer = Producer({"bootstrap.servers": task.servers, **task.settings["producer"]})
    consumer.subscribe([task.content])
    poll_records = task.settings["loop"]["poll.records"]
    poll_seconds = task.settings["loop"]["poll.ms"] / 1000
    while not terminated:
        for message in consumer.consume(poll_records, poll_seconds):
            fail_on_error(message)
            if in_quarter(message.key()):
                send(producer, task.output, message)
        producer.poll(0)
    producer.flush()
    consumer.close()


if __name__ == "__main__":
    main(Task.parse())
