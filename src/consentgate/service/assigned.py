"""One input partition under this worker's care: its life, its hands, and what is told of it."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.gate import Gate
from consentgate.core.partition import (
    Committed,
    Event,
    Fetch,
    Partition,
    Phase,
    Revoked,
    StepFailed,
)
from consentgate.kafka.clients import Clients
from consentgate.kafka.transport import KafkaTransport
from consentgate.service.metrics import PartitionGauges
from consentgate.service.progress import Progress
from consentgate.web import OK


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
        self.progress = Progress(
            self.number, self._partition, gate.table, self._transport, clients.source
        )
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
                self.progress.begin(step)
                try:
                    reply = await self._transport.perform(step)
                    if isinstance(step, Fetch):
                        await self._fetched(give_way)
                except StepFailed as failure:
                    self.progress.end(failed=True)
                    step = life.throw(failure)
                except asyncio.CancelledError:
                    # A task of the client's that was cancelled surfaces so, too.
                    cancelled = task is not None and task.cancelling() > 0
                    step = life.throw(Revoked() if cancelled else StepFailed("cancelled inside"))
                else:
                    self.progress.end(failed=False)
                    step = life.send(reply)
        except StopIteration:
            self._transport.close()

    async def _fetched(self, give_way: Callable[[], Awaitable[None]]) -> None:
        if not self._lag_records():
            self.progress.rest()
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
            stuck_seconds=self.progress.uncommitted_seconds() if lag_records else 0.0,
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
        if self.progress.unproven_since is not None:
            return f"has committed nothing since: {self.progress.unproven_since}"
        return OK

    def stale_seconds(self) -> float:
        """Age of the last completed barrier."""
        return time.monotonic() - self._transport.fresh_at_monotonic

    def _report(self, event: Event) -> None:
        self._observe(event)
        self.progress.observe(event)
        if isinstance(event, Committed):
            self._committed(event)

    def _committed(self, event: Committed) -> None:
        outcome, batch = event.outcome, event.outcome.batch
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
