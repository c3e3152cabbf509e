"""librdkafka from Python: a dict for the table, and transactions.

A transaction takes in as many polls as fit into its time. No barrier, no second look before the
commit, no ledger.
"""

import time

from confluent_kafka import Producer

from peers.decision import forwards
from peers.librdkafka.sending import Terminated, send
from peers.librdkafka.table import Table, consumer_of, fail_on_error
from peers.task import Task


def main(task: Task) -> None:
    """Read the table, then decide until terminated."""
    terminated = Terminated()
    table = Table(task)
    consumer = consumer_of(task, task.output)
    producer = Producer(
        {
            "bootstrap.servers": task.servers,
            "transactional.id": task.output,
            **task.settings["producer"],
        }
    )
    producer.init_transactions()
    consumer.subscribe([task.content])
    transaction_seconds = task.settings["loop"]["transaction.ms"] / 1000
    poll_records = task.settings["loop"]["poll.records"]
    poll_seconds = task.settings["loop"]["poll.ms"] / 1000
    persons = table.persons
    begun: float | None = None
    while not terminated:
        messages = consumer.consume(poll_records, poll_seconds)
        table.follow()
        if messages and begun is None:
            producer.begin_transaction()
            begun = time.monotonic()
        for message in messages:
            fail_on_error(message)
            if forwards(persons.get(message.key()), message.value()):
                send(producer, task.output, message)
        producer.poll(0)
        if begun is not None and time.monotonic() - begun >= transaction_seconds:
            offsets = consumer.position(consumer.assignment())
            producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata())
            producer.commit_transaction()
            begun = None
    consumer.close()


if __name__ == "__main__":
    main(Task.parse())
