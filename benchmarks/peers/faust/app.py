"""Faust, at least once: an agent, a dict that a task fills and follows, and a topic.

Faust's own tables would write a changelog of the consent topic first; this is faster.
"""

import asyncio

import faust
from aiokafka import AIOKafkaConsumer
from faust.types import StreamT

from peers.aiokafka.table import Table
from peers.decision import forwards
from peers.task import Task


def main(task: Task) -> None:
    """Read the table, then decide until terminated."""
    app = faust.App(
        task.output,
        broker=f"kafka://{task.servers}",
        datadir=task.directory,
        topic_partitions=task.partitions,
        key_serializer="raw",
        value_serializer="raw",
        **task.settings["app"],
    )
    posts = app.topic(task.content, key_type=bytes, value_type=bytes)
    output = app.topic(task.output, key_type=bytes, value_type=bytes)
    persons: dict[bytes, int] = {}
    is_read = asyncio.Event()

    @app.task
    async def consents() -> None:
        async with AIOKafkaConsumer(
            bootstrap_servers=task.servers, **task.settings["consumer"]
        ) as consumer:
            table = Table(consumer, persons)
            await table.read(task)
            is_read.set()
            await table.follow()

    @app.agent(posts)
    async def forward(stream: StreamT[bytes]) -> None:
        await is_read.wait()
        async for event in stream.events():
            if forwards(persons.get(event.key), event.value):
                await output.send(
                    key=event.key,
                    value=event.value,
                    partition=event.message.partition,
                    timestamp=event.message.timestamp,
                )

    faust.Worker(app, loglevel="WARNING", redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main(Task.parse())
