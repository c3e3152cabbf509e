"""One input partition's transactional producer, for one life: after any doubt a new one."""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.conn import CloseReason
from aiokafka.errors import InvalidTimestampError
from aiokafka.structs import OffsetAndMetadata

from consentgate.core.gate import BatchOutcome, Output
from consentgate.core.ledger import Bookmark, LedgerEntry
from consentgate.core.partition import StepFailed
from consentgate.kafka.clock import read_clock
from consentgate.kafka.guards import OWN_BYTES
from consentgate.kafka.layout import Layout
from consentgate.kafka.settings import KafkaSettings

BATCH_BYTES = OWN_BYTES
"""Size of a produced record batch, for which each topic has room; a larger record travels alone."""

REQUEST_BYTES_MAX = 8 << 20

CLOCK_SKEW_MS_MAX = 1_000

RETIRE_SECONDS_MAX = 2.0


class TransactionalProducer:
    """What sends records and commits offsets of `source`, in one transaction after the other."""

    def __init__(
        self,
        settings: KafkaSettings,
        transactional_id: str,
        group: str,
        source: TopicPartition,
        outputs: Sequence[TopicPartition],
    ) -> None:
        self._group = group
        self._source = source
        self._written_to = outputs
        self._lost_connections = 0
        self._producer = AIOKafkaProducer(
            transactional_id=transactional_id,
            max_batch_size=BATCH_BYTES,
            max_request_size=REQUEST_BYTES_MAX,
            **settings.client,
            **settings.producer,
        )
        self._notice_lost_connections()

    def _notice_lost_connections(self) -> None:
        client = self._producer.client
        on_closed = client._on_connection_closed

        def count(connection: Any, reason: CloseReason | None) -> None:
            # One that the client closes by itself had nothing under way for minutes.
            if reason is not CloseReason.IDLE_DROP:
                self._lost_connections += 1
            on_closed(connection, reason)

        client._on_connection_closed = count

    async def start(self) -> None:
        """Fence whoever wrote for this partition before, and settle what they left open."""
        await self._producer.start()
        await self._settle_leftovers()

    async def _settle_leftovers(self) -> None:
        """Abort what a broker calls ended and has not ended in every partition.

        Kafka leaves markers out for partitions that have no leader at the moment, as when all
        their replicas are down (KAFKA-20734). What was written there would be committed by the next
        transaction of this producer. So its first one is empty, and aborted, everywhere.
        """
        await self._refuse_leaderless_outputs()
        await self._producer.begin_transaction()
        for output in self._written_to:
            self._producer._txn_manager.maybe_add_partition_to_txn(output)
        offset = OffsetAndMetadata(0, "")  # Whatever it is, it is not committed.
        await self._producer.send_offsets_to_transaction({self._source: offset}, self._group)
        await self._producer.abort_transaction()
        await self._refuse_leaderless_outputs()
        # What was sent on one may still arrive, and end the next transaction in its midst.
        self._refuse_lost_connections("while a new producer began")

    async def _refuse_leaderless_outputs(self) -> None:
        # There the marker of the abort would be left out, too.
        for output in self._written_to:
            await self._producer.partitions_for(output.topic)
        await self._producer.client.force_metadata_update()
        for output in self._written_to:
            if self._producer.client.cluster.leader_for_partition(output) in (None, -1):
                raise StepFailed(f"{output.topic}-{output.partition} has no leader")

    async def begin(self) -> None:
        """Begin a transaction.

        Raises:
            StepFailed: if the producer must not be used any more.
        """
        self._refuse_lost_connections("between two transactions")
        await self._producer.begin_transaction()

    async def commit(self) -> bool:
        """Commit; True where the producer must not be used again, though it was committed.

        When this raises or is cancelled, the transaction's end is not known.
        """
        self._refuse_lost_connections("during the transaction")
        await self._producer.commit_transaction()
        return self._lost_connections > 0

    async def abort(self) -> bool:
        """Abort; True where the producer must not be used again, as when this raises."""
        await self._producer.abort_transaction()
        return self._lost_connections > 0

    def _refuse_lost_connections(self, when: str) -> None:
        # A broker that went away may have called the transaction before committed and have left all
        # of its markers out (as in `_settle_leftovers`). What was written then would share the fate
        # of the next one, where that writes to the same partition, and that of the one after it
        # elsewhere. So all of it is aborted, and done again.
        if self._lost_connections:
            raise StepFailed(f"the connection was lost {when}")

    async def retire(self) -> None:
        """Drop the producer, bounded in time; an open transaction is left to the next fence."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(RETIRE_SECONDS_MAX):
                await self._producer.stop()
                return
        sender = self._producer._sender.sender_task
        if sender is not None:
            sender.cancel()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(RETIRE_SECONDS_MAX):
                await self._producer.client.close()

    async def _send(self, to: TopicPartition, outputs: Sequence[Output]) -> list[Any]:
        acknowledgements = [
            await self._producer.send_batch(batch, to.topic, partition=to.partition)
            for batch in self._batches(outputs)
        ]
        # A send that failed and that nobody awaited would not keep the commit from succeeding.
        return await all_of(*acknowledgements)

    def _batches(self, outputs: Iterable[Output]) -> Iterator[Any]:
        batch = None
        for timestamp_ms, key, value, headers in outputs:
            if batch is None:
                batch = self._producer.create_batch()
            record = {"timestamp": timestamp_ms, "key": key, "value": value, "headers": headers}
            if batch.append(**record) is None:
                yield batch
                batch = self._producer.create_batch()
                batch.append(**record)
        if batch is not None:
            yield batch


class TransactionalSink(TransactionalProducer):
    """Writes one input partition's outcomes, each in a transaction with its source offset."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        source: TopicPartition,
        layout: Layout,
    ) -> None:
        self._layout = layout
        self._outputs = layout.outputs(source.partition)
        self._ledger_offset = -1
        # As unambiguous as the key of the ledger: neither groups nor topics have a slash.
        transactional_id = f"{group}/{source.topic}-{source.partition}"
        super().__init__(settings, transactional_id, group, source, self._outputs.all())

    async def send(self, outcome: BatchOutcome) -> None:
        """Begin a transaction and write the outcome; every record is acknowledged on return.

        Raises:
            StepFailed: if this machine's clock and the broker's disagree.
        """
        await self.begin()
        sent_ms = read_clock().unix_ms
        try:
            entry, *_ = await all_of(
                self._send(self._outputs.decisions, [_output(outcome.entry)]),
                self._send(self._outputs.training, outcome.training),
                self._send(self._outputs.quarantine, outcome.quarantine),
                self._send(self._outputs.retractions, outcome.retractions),
            )
        except InvalidTimestampError:
            raise StepFailed(
                "the broker refuses a record for its time; is this machine's clock right?"
            ) from None
        self._ledger_offset = entry[0].offset
        if self._ledger_offset < 0:
            raise StepFailed("the broker did not say where the ledger entry is")
        check_clock(sent_ms, entry[0].timestamp)

    async def send_offset(self, outcome: BatchOutcome) -> None:
        """Put the next source offset, and a bookmark for a successor, into the transaction."""
        bookmark = Bookmark(
            ledger_partition=self._outputs.decisions.partition,
            ledger_offset=self._ledger_offset,
            hash=outcome.entry.hash,
            scope=self._layout.scope,
            partitions=self._layout.settled_counts,
        )
        offset = OffsetAndMetadata(outcome.batch.next_offset, bookmark.encode())
        await self._producer.send_offsets_to_transaction({self._source: offset}, self._group)


async def all_of(*awaitables: Any) -> list[Any]:
    """The results of all, after all have ended; the first failure is raised."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _output(entry: LedgerEntry) -> Output:
    return Output(read_clock().unix_ms, entry.key, entry.value, [])


def check_clock(sent_ms: int, appended_ms: int) -> None:
    """Compare with the broker's clock, which has stamped a record since `sent_ms`.

    Raises:
        StepFailed: if this machine's clock and the broker's disagree.
    """
    acknowledged_ms = read_clock().unix_ms
    if appended_ms < 0:
        return
    early = sent_ms - CLOCK_SKEW_MS_MAX - appended_ms
    late = appended_ms - CLOCK_SKEW_MS_MAX - acknowledged_ms
    if early > 0 or late > 0:
        skew_ms = max(early, late) + CLOCK_SKEW_MS_MAX
        raise StepFailed(f"this machine's clock and the broker's differ by {skew_ms} ms")
