"""Appending records that somebody else made: fixtures, demonstrations, tests."""

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidTimestampError, KafkaError

from consentgate.errors import BrokerUnavailable, ConfigError
from consentgate.kafka.connecting import denial
from consentgate.kafka.settings import KafkaSettings

PENDING_MAX = 10_000
"""How many records may await their acknowledgement."""


class Appender:
    """An idempotent producer that waits for all in-sync replicas; an async context manager."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._pending: list[asyncio.Future[object]] = []
        self._producer = AIOKafkaProducer(
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            max_batch_size=256 << 10,
            max_request_size=8 << 20,
            **settings.client,
        )

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            BrokerUnavailable: if no broker answers.
        """
        try:
            await self._producer.start()
        except (KafkaError, OSError) as error:
            await self._producer.stop()
            raise BrokerUnavailable(
                f"no broker answered at {self._settings.bootstrap_servers} ({type(error).__name__})"
            ) from None
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Disconnect; what was not flushed may or may not have been appended."""
        await self._producer.stop()

    async def append(  # noqa: PLR0913 - The parts of a record.
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        partition: int | None = None,
    ) -> None:
        """Append one record; the time is now where none is given."""
        if len(self._pending) >= PENDING_MAX:
            await self.flush()
        if key is None and value is None:
            # A plain send refuses a record without key and value; a batch takes it.
            batch = self._producer.create_batch()
            batch.append(timestamp=timestamp_ms, key=None, value=None, headers=list(headers))
            sent = await self._producer.send_batch(batch, topic, partition=partition or 0)
        else:
            sent = await self._producer.send(
                topic, value, key, partition, timestamp_ms, list(headers)
            )
        self._pending.append(sent)

    async def flush(self) -> None:
        """Return when every record so far has been acknowledged.

        Raises:
            ConfigError: if the broker has refused one.
        """
        pending, self._pending = self._pending, []
        results = await asyncio.gather(*pending, return_exceptions=True)
        for result in results:
            if isinstance(result, KafkaError):
                why = denial(result) or type(result).__name__
                if isinstance(result, InvalidTimestampError):
                    why = (
                        "its timestamp is further from now than message.timestamp.before.max.ms "
                        "or message.timestamp.after.max.ms of its topic allow; correct the one "
                        "or the other"
                    )
                raise ConfigError(f"the broker refused a record: {why}")
            if isinstance(result, BaseException):
                raise result
