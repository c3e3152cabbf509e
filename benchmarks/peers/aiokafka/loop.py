"""A plain aiokafka loop, `async for` and `send()`, at least once.

No transactions, no barrier, no ledger, no headers: what somebody would write on an afternoon. A
task beside it follows the consent topic.
"""

import asyncio
import signal
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from peers.aiokafka.table import Table
from peers.decision import forwards
from peers.task import Task


async def main(task: Task) -> None:
    """Read the table, then decide until terminated."""
    me = asyncio.current_task()
    assert me is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    settings = task.settings["consumer"]
    consents = AIOKafkaConsumer(bootstrap_servers=task.servers, **settings)
    posts = AIOKafkaConsumer(
        task.content,
        bootstrap_servers=task.servers,
        group_id=task.output,
        auto_offset_reset="earliest",
        **settings,
    )
    producer = AIOKafkaProducer(bootstrap_servers=task.servers, **task.settings["producer"])
    async with consents:
        persons: dict[bytes, int] = {}
        table = Table(consents, persons)
        await table.read(task)
        follower = asyncio.create_task(table.follow())
        async with posts, producer:
            async for record in posts:
                if forwards(persons.get(record.key), record.value):
                    await producer.send(
                        task.output,
                        record.value,
                        record.key,
                        partition=record.partition,
                        timestamp_ms=record.timestamp,
                    )
        await follower


if __name__ == "__main__":
    with suppress(asyncio.CancelledError):
        asyncio.run(main(Task.parse()))
