"""Quix Streams, exactly once: a filter over a dict, and a topic.

The dict is filled before the application runs, and followed by a thread beside it. The join that
Quix Streams brings itself (`join_asof`) goes by event times and keeps its table on disk; a dict
parses each consent record once, and takes in a withdrawal while posts from before it still wait.
"""

import threading

from quixstreams import Application

from peers.decision import forwards
from peers.librdkafka.table import Table
from peers.task import Task


def main(task: Task) -> None:
    """Read the table, then decide until terminated."""
    table = Table(task)
    threading.Thread(target=follow, args=(table,), daemon=True).start()
    settings = task.settings
    app = Application(
        broker_address=task.servers,
        consumer_group=task.output,
        auto_offset_reset="earliest",
        state_dir=task.directory,
        consumer_extra_config=settings["consumer"],
        producer_extra_config=settings["producer"],
        loglevel="WARNING",
        **settings["application"],
    )
    posts = app.topic(task.content, key_deserializer="bytes", value_deserializer="bytes")
    output = app.topic(task.output, key_serializer="bytes", value_serializer="bytes")
    stream = app.dataframe(posts)
    persons = table.persons
    stream = stream.filter(
        lambda value, key, _timestamp, _headers: forwards(persons.get(key), value), metadata=True
    )
    stream.to_topic(output)
    app.run()


def follow(table: Table) -> None:
    """Keep the table up to date."""
    while True:
        table.follow(0.1)


if __name__ == "__main__":
    main(Task.parse())
