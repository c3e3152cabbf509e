"""The content topic: the group's consumer, one batch of one partition at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from consentgate.core.gate import Batch
from consentgate.core.partition import StepFailed
from consentgate.kafka.connecting import denial
from consentgate.kafka.decoded import hand_on_decoded_records
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.unanswered import closing_unanswered
from consentgate.kafka.unreadable import UNREADABLE_ERRORS, UnreadableRecord, read_around

NEVER_MS = 2**31 - 1

REBALANCE_TIMEOUT_MS = 60_000
"""How long the group waits for a member to give its partitions up; well beyond a transaction."""

METADATA_AGE_MS_MAX = 10_000
"""How long a member may believe that the topic has no partitions, or fewer than it has.

So it is where it starts before the broker knows a new topic, or has a leader for it.
"""

POLL_GRACE_SECONDS = 0.2
"""How much longer than asked for a poll may take. One that a rebalance catches would wait for the
new assignment, which in turn waits for the partitions to be given up."""

PartitionsListener = Callable[[Collection[int]], Awaitable[None]]


class ContentSource:
    """A member of the consumer group on the content topic; it never commits offsets itself."""

    def __init__(
        self,
        settings: KafkaSettings,
        group: str,
        topic: str,
        on_assigned: PartitionsListener,
        on_revoked: PartitionsListener,
    ) -> None:
        self._topic = topic
        self._consumer = AIOKafkaConsumer(
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            partition_assignment_strategy=(RangePartitionAssignor,),
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            # The client leaves the group for ever when nobody has fetched for so long, as it is
            # with a stand-by, a stall or a long bootstrap. Progress is watched elsewhere.
            max_poll_interval_ms=NEVER_MS,
            **{"metadata_max_age_ms": METADATA_AGE_MS_MAX, **settings.client},
            **settings.consumer,
            **settings.group,
        )
        self._listener = _Listener(self._consumer, on_assigned, on_revoked)
        # On connections of their own, and so independent of what the fetches see.
        self._watermarks = AIOKafkaConsumer(
            group_id=None, isolation_level="read_uncommitted", **settings.client
        )
        self._stable = AIOKafkaConsumer(
            group_id=None, isolation_level="read_committed", **settings.client
        )
        self._sought: dict[int, tuple[int, int]] = {}
        self._high_watermarks: dict[int, int] = {}
        self._stable_ends: dict[int, int] = {}

    async def start(self) -> None:
        """Connect and join the group."""
        await self._watermarks.start()
        await self._stable.start()
        await self._consumer.start()
        hand_on_decoded_records(self._consumer)
        self._consumer.subscribe([self._topic], listener=self._listener)

    async def stop(self) -> None:
        """Leave the group and disconnect."""
        await self._consumer.stop()
        await self._watermarks.stop()
        await self._stable.stop()

    async def range(self, partition: int) -> tuple[int, int]:
        """The first offset that the log still holds, and the last stable offset."""
        tp = self._at(partition)
        async with closing_unanswered(self._consumer._client):
            starts = await self._consumer.beginning_offsets([tp])
            ends = await self._consumer.end_offsets([tp])
        return starts[tp], ends[tp]

    async def seek(self, partition: int, offset: int) -> None:
        """Fetch the partition from this offset on, or from the first one that is left after it."""
        tp = self._at(partition)
        log_start, _ = await self.range(partition)
        first_left = max(offset, log_start)
        self._consumer.seek(tp, first_left)
        self._consumer.resume(tp)
        self._sought[partition] = (offset, first_left)

    async def fetch(self, partition: int, first: int, records_max: int, wait_ms: int) -> Batch:
        """What comes from `first` on; an empty batch where nothing came within `wait_ms`.

        Raises:
            KafkaError: if the partition cannot be fetched, or is no longer this member's.
            StepFailed: if the consumer does not stand there, because somebody else has moved it.
        """
        tp = self._at(partition)
        sought, first_left = self._sought.get(partition, (first, first))
        start = first_left if sought == first else first
        if await self._consumer.position(tp) != start:
            # What lies in between would be taken for offsets without a record.
            raise StepFailed("the consumer does not stand where this partition has got to")
        try:
            async with asyncio.timeout(wait_ms / 1000 + POLL_GRACE_SECONDS):
                fetched = await self._consumer.getmany(
                    tp, timeout_ms=wait_ms, max_records=records_max
                )
        except TimeoutError:
            # It may have moved over markers alone.
            self._consumer.seek(tp, start)
            return Batch(first, first, ())
        except UNREADABLE_ERRORS:
            records, next_offset = await read_around(self._consumer, tp, start)
            if len(records) > records_max:
                next_offset = records[records_max].offset
                records = records[:records_max]
            self._consumer.seek(tp, next_offset)
            readable = [r for r in records if not isinstance(r, UnreadableRecord)]
            unreadable = [r.offset for r in records if isinstance(r, UnreadableRecord)]
            batch = Batch(first, next_offset, readable, unreadable)
        else:
            next_offset = await self._consumer.position(tp)
            batch = Batch(first, next_offset, fetched.get(tp, ()))
        return batch

    async def refresh_ends(self) -> None:
        """Read where the partitions end that this member has."""
        assigned = list(self._consumer.assignment())
        async with closing_unanswered(self._watermarks._client):
            ends = await self._watermarks.end_offsets(assigned)
        async with closing_unanswered(self._stable._client):
            stable = await self._stable.end_offsets(assigned)
        self._high_watermarks = {tp.partition: offset for tp, offset in ends.items()}
        self._stable_ends = {tp.partition: offset for tp, offset in stable.items()}

    def high_watermark(self, partition: int) -> int | None:
        """The high watermark as of the last refresh; None before the first one."""
        return self._high_watermarks.get(partition)

    def can_be_read(self, partition: int, first: int) -> bool:
        """Whether there was something to be read from `first` on, as of the last refresh.

        What an open transaction hides is not there yet.
        """
        return first < self._stable_ends.get(partition, 0)

    def is_member(self) -> bool:
        """Whether the group counts on this member now."""
        generation: int = self._consumer._coordinator.generation
        return generation > 0

    def is_broken(self) -> bool:
        """Whether a task has ended without which the client does nothing any more."""
        # The client takes a cancellation of its fetching for a wish to close.
        fetches = not self._consumer._fetcher._fetch_task.done()
        return not fetches or any(map(_has_failed, self._group_tasks()))

    def denied(self) -> str | None:
        """Which right the group has refused to this member, so that a task has ended."""
        ended = (task for task in self._group_tasks() if task.done() and not task.cancelled())
        return next(filter(None, (denial(task.exception()) for task in ended)), None)

    def _group_tasks(self) -> "list[asyncio.Task[Any]]":
        coordinator = self._consumer._coordinator
        tasks = (coordinator._coordination_task, coordinator._heartbeat_task)
        return [task for task in tasks if task is not None]

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """aiokafka only logs what a listener raises; so the callbacks must look after themselves."""

    def __init__(
        self, consumer: AIOKafkaConsumer, assigned: PartitionsListener, revoked: PartitionsListener
    ) -> None:
        self._consumer = consumer
        self._assigned = assigned
        self._revoked = revoked

    async def on_partitions_assigned(self, assigned: Any) -> None:
        # Nothing may be handed out before the partition's producer has fenced its predecessor.
        self._consumer.pause(*assigned)
        await self._assigned({tp.partition for tp in assigned})

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._revoked({tp.partition for tp in revoked})


def _has_failed(task: "asyncio.Task[Any]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
