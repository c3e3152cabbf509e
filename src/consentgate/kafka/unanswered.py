"""Leaving connections that do not answer, where the client by itself would stay with them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError, KafkaTimeoutError

UNANSWERED = (KafkaError, OSError, TimeoutError)
"""What a question to a cluster raises that cannot answer it now."""


@asynccontextmanager
async def closing_unanswered(client: AIOKafkaClient) -> AsyncIterator[None]:
    """Close the client's connections where the block gives up waiting for an answer.

    aiokafka closes a connection when a request's own time is up, and asks again on a new one. But
    `end_offsets()` as a whole has no more time than its first request, and a caller may have less;
    then the request is only forgotten. The next one would wait on the same connection, and so on:
    one that a firewall no longer knows would never be left.
    """
    try:
        yield
    except (asyncio.CancelledError, KafkaTimeoutError):
        for (_, group), connection in list(client._conns.items()):
            # The group's own requests are awaited to their end.
            if group == ConnectionGroup.DEFAULT:
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
        raise
