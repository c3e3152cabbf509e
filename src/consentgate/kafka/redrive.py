"""Appending to the content topic again, together with the note of what has been appended.

Both are one transaction, so that after a crash neither is there without the other.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from aiokafka import TopicPartition
from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    RecordListTooLargeError,
)
from aiokafka.structs import OffsetAndMetadata

from consentgate.core.gate import Output
from consentgate.core.partition import StepFailed
from consentgate.core.quarantine import Progress
from consentgate.errors import BrokerUnavailable, ConfigError, Superseded
from consentgate.kafka.connecting import denial
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.sink import TransactionalProducer, all_of

STEP_SECONDS_MAX = 60.0
"""How long the brokers may take for a transaction, or for a start."""

METADATA_BYTES_MAX = 4_096
"""What a broker keeps with an offset (`offset.metadata.max.bytes`), by default."""


def redrive_group(group: str) -> str:
    """The consumer group whose offsets of the quarantine topic tell what has been redriven."""
    return f"{group}-redrive"


def progress_of(
    committed: OffsetAndMetadata | None, group: str, place: TopicPartition, end: int
) -> Progress:
    """What has been redriven of a partition of the quarantine that ends at the offset `end`.

    Raises:
        ConfigError: if that cannot be told.
    """
    if committed is None:
        return Progress()
    progress = Progress.decode(committed.metadata)
    where, whose = f"{place.topic}-{place.partition}", redrive_group(group)
    remedy = f"Delete the offsets of the group {whose} to begin from nothing."
    if progress is None:
        raise ConfigError(
            f"{where}: what the group {whose} has committed at offset {committed.offset} does not "
            f"say which records were redriven, so somebody else has committed it. {remedy}"
        )
    if committed.offset > end:
        raise ConfigError(
            f"{where} ends at offset {end}, before the offset {committed.offset} that the group "
            f"{whose} has committed, so the topic was made anew. {remedy}"
        )
    return progress


class RedriveSink(TransactionalProducer):
    """Appends records, and commits what has been redriven, in one transaction after the other."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        quarantine: str,
        content: Sequence[TopicPartition],
    ) -> None:
        source = TopicPartition(quarantine, 0)
        # No input partition is named like this, so that it fences no worker.
        super().__init__(settings, f"{group}/redrive", redrive_group(group), source, content)

    async def write(
        self,
        outputs: Mapping[TopicPartition, Sequence[Output]],
        place: TopicPartition,
        committed: OffsetAndMetadata,
    ) -> None:
        """Append, and commit what has been redriven of one partition of the quarantine.

        Raises:
            BrokerUnavailable: if another transaction must not follow.
        """
        await self.begin()
        await all_of(*(self._send(to, those) for to, those in outputs.items()))
        await self._producer.send_offsets_to_transaction({place: committed}, self._group)
        if await self.commit():
            # The client may have sent the end of the transaction twice, and the second one would
            # end the next transaction in its midst.
            raise BrokerUnavailable(f"the connection was lost. {_AGAIN}")


_AGAIN = "The same command goes on where this one stopped."


class Redrive:
    """One run of redriving; an async context manager. It fences the one that ran before."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        quarantine: str,
        content: Sequence[TopicPartition],
    ) -> None:
        self._group = group
        self._quarantine = quarantine
        self._sink = RedriveSink(settings, group, quarantine, content)

    async def __aenter__(self) -> Self:
        """Begin: what an earlier run has left open is aborted.

        Raises:
            BrokerUnavailable: if the brokers do not answer.
            ConfigError: if they refuse this user.
        """
        try:
            async with self._errors(), asyncio.timeout(STEP_SECONDS_MAX):
                await self._sink.start()
        except BaseException:
            await self._sink.retire()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End; what is not committed will be aborted."""
        await self._sink.retire()

    async def write(
        self,
        outputs: Mapping[TopicPartition, Sequence[Output]],
        partition: int,
        next_offset: int,
        progress: Progress,
    ) -> None:
        """Append records that stood in one partition of the quarantine, all below `next_offset`.

        On return they are committed, and with them the progress. After an error nobody knows
        whether they are, and this must not be used any more.

        Raises:
            Superseded: if another run has begun since.
            ConfigError: if the broker refuses a record, or this user.
            BrokerUnavailable: if the brokers do not answer.
        """
        committed = OffsetAndMetadata(next_offset, _metadata(progress))
        place = TopicPartition(self._quarantine, partition)
        async with self._errors(), asyncio.timeout(STEP_SECONDS_MAX):
            await self._sink.write(outputs, place, committed)

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except (ProducerFenced, InvalidProducerEpoch):
            raise Superseded(
                f"another redrive of the group {self._group} has begun, so this one has ended; or "
                f"its transaction took longer than kafka.transaction.timeout.ms. {_AGAIN}"
            ) from None
        except _TOO_LARGE as error:
            raise ConfigError(
                f"the content topic takes no record of this size ({type(error).__name__}): raise "
                f"its max.message.bytes. {_AGAIN}"
            ) from None
        except (KafkaError, OSError, TimeoutError, StepFailed) as error:
            if (denied := denial(error)) is not None:
                raise ConfigError(f"{denied}. {_AGAIN}") from None
            raise BrokerUnavailable(
                f"the brokers did not do it ({str(error) or type(error).__name__}). {_AGAIN}"
            ) from None


_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


def _metadata(progress: Progress) -> str:
    text = progress.encode()
    if len(text) > METADATA_BYTES_MAX:
        raise ConfigError(
            "what has been redriven lies in too many pieces to be kept: redrive what lies between "
            "them, without --since, --until and --partition"
        )
    return text
