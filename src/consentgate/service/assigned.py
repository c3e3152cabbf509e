"""One input partition under this worker's care: its life, its hands, and how it is doing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.gate import Gate
from consentgate.core.partition import (
    Aborted,
    AwaitFrontier,
    Committed,
    Event,
    Fetch,
    Partition,
    Phase,
    ReadHighWatermarks,
    ReadPosition,
    Recycled,
    Revoked,
    Seek,
    Step,
    StepFailed,
)
from consentgate.kafka.clients import Clients
from consentgate.kafka.transport import KafkaTransport
from consentgate.service.metrics import PartitionGauges
from consentgate.web import OK

STUCK_SECONDS = 60.0
"""A partition that has work to do and gets nowhere for so long makes the worker not live."""

_ON_SHARED_CLIENTS = (Fetch, Seek, ReadHighWatermarks, AwaitFrontier)
"""What fails in these a new process may mend; for all else the partition begins anew by itself."""


class AssignedPartition:
    """A `Partition` with its transport; `live` drives it until it is given up."""

    def __init__(
        self,
        gate: Gate,
        clients: Clients,
        max_exposure_ms: int,
        observe: Callable[[Event], None],
        observe_withdrawal: Callable[[int, int], None],
    ) -> None:
        self.number = gate.chain.partition
        self._gate = gate
        self._clients = clients
        self._observe = observe
        self._observe_withdrawal = observe_withdrawal
        self._last_committed: Committed | None = None
        self._partition = Partition(gate, self._report, max_exposure_ms)
        self._transport = KafkaTransport(
            clients, gate.chain, gate.table, self._partition.consent_changed
        )
        self._progressed_at = time.monotonic()
        self._committed_at = time.monotonic()
        self._looked_at_offsets = -1
        self._looked_at_step: Step[Any] | None = None
        self._step: Step[Any] | None = None
        self._failed_step: Step[Any] | None = None
        self._unproven_since: str | None = None
        self._last_timestamp_ms: int | None = None

    @property
    def table(self) -> ConsentTable:
        """The table that the partition's content is judged against."""
        return self._gate.table

    @property
    def hurries(self) -> bool:
        """Whether a consent change waits here for the commit that covers it."""
        return self._partition.hurries

    def stop(self) -> None:
        """Ask for an end after the transaction in hand."""
        self._partition.stop()

    async def live(self, give_way: Callable[[], Awaitable[None]]) -> None:
        """Perform the partition's steps until its life ends; a cancellation revokes it.

        `give_way` lets others go first, where this one has no consent change to cover.
        """
        life, task = self._partition.life(), asyncio.current_task()
        step = next(life)
        try:
            while True:
                self._step = step
                try:
                    reply = await self._transport.perform(step)
                    if isinstance(step, Fetch):
                        await self._fetched(give_way)
                except StepFailed as failure:
                    self._failed_step = step
                    step = life.throw(failure)
                except asyncio.CancelledError:
                    # A task of the client's that was cancelled surfaces so, too.
                    cancelled = task is not None and task.cancelling() > 0
                    step = life.throw(Revoked() if cancelled else StepFailed("cancelled inside"))
                else:
                    self._failed_step = None
                    step = life.send(reply)
        except StopIteration:
            self._transport.close()

    async def _fetched(self, give_way: Callable[[], Awaitable[None]]) -> None:
        if not self._lag_records():
            # There was nothing to commit; an idle partition is not a stuck one.
            self._committed_at = time.monotonic()
        if not self.hurries:
            # Here, where nothing is judged yet that would grow old.
            await give_way()

    def gauges(self) -> PartitionGauges:
        """How the partition is doing."""
        lag_records = self._lag_records()
        uncovered_since_ms = self._partition.uncovered_since_ms
        return PartitionGauges(
            partition=self.number,
            next_offset=self._partition.next_offset,
            why=self._partition.stalled_because,
            lag_records=lag_records,
            lag_seconds=_age_seconds(self._last_timestamp_ms) if lag_records else 0.0,
            consent_staleness_seconds=self.stale_seconds(),
            phase=self._partition.phase,
            stuck_seconds=time.monotonic() - self._committed_at if lag_records else 0.0,
            consent_uncovered_seconds=_age_seconds(uncovered_since_ms),
        )

    @property
    def is_being_taken_over(self) -> bool:
        """Whether the predecessor is not settled yet, or the table not read."""
        return self._partition.phase in (Phase.FENCING, Phase.BOOTSTRAPPING)

    def readiness(self) -> str:
        """`ok`, or what keeps the partition from deciding."""
        partition = self._partition
        if partition.stalled_because is not None:
            return f"{partition.phase}: {partition.stalled_because}"
        if partition.phase is not Phase.READY:
            return str(partition.phase)
        if self._unproven_since is not None:
            return f"has committed nothing since: {self._unproven_since}"
        return OK

    def stale_seconds(self) -> float:
        """Age of the last completed barrier."""
        return time.monotonic() - self._transport.fresh_at_monotonic

    def liveness(self) -> str:
        """`ok`, or for how long there has been no progress."""
        stuck_seconds = time.monotonic() - self._progressed_at
        if stuck_seconds < STUCK_SECONDS:
            return OK
        return f"has work to do and has got nowhere for {stuck_seconds:.0f} s"

    def look(self, *, broker_answers: bool) -> None:
        """See whether there has been progress since the last look, or could not have been any.

        What a new process could not mend either is no lack of progress: a broker that is away, a
        transaction in the consent topic that hangs, a ledger that is long or does not fit.
        """
        now, partition, due_at = time.monotonic(), self._partition, self._transport.due_at_monotonic
        if now - due_at > STUCK_SECONDS:
            return
        has_work = self._clients.source.can_be_read(self.number, partition.next_offset)
        if not has_work and partition.phase is Phase.READY:
            self._unproven_since = None
        # Before that it is the table that has to move.
        offsets = sum(self.table.frontier.values())
        moved = partition.phase is not Phase.READY and offsets != self._looked_at_offsets
        self._looked_at_offsets = offsets
        # The whole of it, where the group's offsets are gone.
        still_reads = isinstance(self._step, ReadPosition) and self._step is self._looked_at_step
        reads_ledger, self._looked_at_step = still_reads and now < due_at, self._step
        if moved or not has_work or not broker_answers or reads_ledger:
            self._progressed_at = now
        self._progressed_at = max(self._progressed_at, self._transport.excused_at_monotonic)

    def _report(self, event: Event) -> None:
        self._observe(event)
        match event:
            case Committed():
                self._committed(event)
            case Aborted():
                self._progressed_at = time.monotonic()
            case Recycled(why):
                self._unproven_since = why
                if not isinstance(self._failed_step, _ON_SHARED_CLIENTS):
                    self._progressed_at = time.monotonic()

    def _committed(self, event: Committed) -> None:
        outcome, batch = event.outcome, event.outcome.batch
        # Of a partition that is ready, a frontier that moves on says nothing about its fetches.
        if batch.next_offset > batch.first or self._partition.phase is not Phase.READY:
            self._progressed_at = time.monotonic()
        self._committed_at = time.monotonic()
        self._unproven_since = None
        if batch.records:
            self._last_timestamp_ms = batch.records[-1].timestamp
        exposures = exposures_ms(self._last_committed, outcome.retracted)
        for change, exposure_ms in zip(outcome.retracted, exposures, strict=True):
            effect_ms = event.committed.unix_ms - change.timestamp_ms
            self._observe_withdrawal(effect_ms, exposure_ms)
        self._last_committed = event

    def _lag_records(self) -> int:
        high = self._clients.source.high_watermark(self.number)
        return 0 if high is None else max(0, high - self._partition.next_offset)


def _age_seconds(since_ms: int | None) -> float:
    return 0.0 if since_ms is None else max(0.0, time.time() - since_ms / 1000)


def exposures_ms(last: Committed | None, changes: Sequence[ConsentChange]) -> Iterator[int]:
    """How long after each change a record of that person was committed; 0 where none was.

    Only the transaction before the one that covers the change, which is `last`, can have been under
    way when the change was appended: each reads the end of the consent topic before its commit.
    """
    subjects = {subject for subject, *_ in last.outcome.forwarded} if last and changes else ()
    for change in changes:
        after_ms = last.committed.unix_ms - change.timestamp_ms if last else 0
        yield max(0, after_ms) if change.subject in subjects else 0
