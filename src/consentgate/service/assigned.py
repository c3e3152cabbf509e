"""One input partition under this worker's care: its life, its hands, and how it is doing."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.gate import Gate
from consentgate.core.partition import (
    Committed,
    Event,
    Partition,
    Phase,
    Revoked,
    StepFailed,
)
from consentgate.kafka.clients import Clients
from consentgate.kafka.transport import KafkaTransport
from consentgate.service.http import OK
from consentgate.service.metrics import PartitionGauges
from consentgate.service.status import PartitionStatus

STUCK_SECONDS = 60.0
"""A partition that lags and commits nothing for so long makes the worker not live."""

STALE_SECONDS = 10.0
"""A consent view that was not confirmed for so long makes the worker not ready."""


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
        self._last_timestamp_ms = 0

    @property
    def table(self) -> ConsentTable:
        """The table that the partition's content is judged against."""
        return self._gate.table

    def stop(self) -> None:
        """Ask for an end after the transaction in hand."""
        self._partition.stop()

    async def live(self) -> None:
        """Perform the partition's steps until its life ends; a cancellation revokes it."""
        life, task = self._partition.life(), asyncio.current_task()
        step = next(life)
        try:
            while True:
                try:
                    reply = await self._transport.perform(step)
                except StepFailed as failure:
                    step = life.throw(failure)
                except asyncio.CancelledError:
                    # A task of the client's that was cancelled surfaces so, too.
                    cancelled = task is not None and task.cancelling() > 0
                    step = life.throw(Revoked() if cancelled else StepFailed("cancelled inside"))
                else:
                    step = life.send(reply)
        except StopIteration:
            self._transport.close()

    def gauges(self) -> PartitionGauges:
        """How the partition is doing, in numbers."""
        lag_records = self._lag_records()
        age_seconds = time.time() - self._last_timestamp_ms / 1000
        return PartitionGauges(
            partition=self.number,
            lag_records=lag_records,
            lag_seconds=max(0.0, age_seconds) if lag_records else 0.0,
            consent_staleness_seconds=self._stale_seconds(),
            ready=self._partition.phase is Phase.READY,
        )

    def status(self) -> PartitionStatus:
        """How the partition is doing, for people to look at."""
        gauges, partition = self.gauges(), self._partition
        return PartitionStatus(
            partition=self.number,
            phase=partition.phase,
            why=partition.stalled_because,
            next_offset=partition.next_offset,
            lag_records=gauges.lag_records,
            lag_seconds=gauges.lag_seconds,
            consent_staleness_seconds=gauges.consent_staleness_seconds,
        )

    def readiness(self) -> str:
        """`ok`, or what keeps the partition from deciding."""
        partition = self._partition
        if partition.stalled_because is not None:
            return f"{partition.phase}: {partition.stalled_because}"
        if partition.phase is not Phase.READY:
            return str(partition.phase)
        stale_seconds = self._stale_seconds()
        return OK if stale_seconds < STALE_SECONDS else f"consent view stale: {stale_seconds:.0f} s"

    def liveness(self) -> str:
        """`ok`, or for how long there has been no progress."""
        stuck_seconds = time.monotonic() - self._progressed_at
        if stuck_seconds < STUCK_SECONDS or not self._lag_records():
            return OK
        return f"lags and has committed nothing for {stuck_seconds:.0f} s"

    def _report(self, event: Event) -> None:
        self._observe(event)
        if isinstance(event, Committed):
            self._committed(event)

    def _committed(self, event: Committed) -> None:
        self._progressed_at = time.monotonic()
        outcome = event.outcome
        if outcome.batch.records:
            self._last_timestamp_ms = outcome.batch.records[-1].timestamp
        exposures = exposures_ms(self._last_committed, outcome.retracted)
        for change, exposure_ms in zip(outcome.retracted, exposures, strict=True):
            effect_ms = event.committed.unix_ms - change.timestamp_ms
            self._observe_withdrawal(effect_ms, exposure_ms)
        self._last_committed = event

    def _lag_records(self) -> int:
        high = self._clients.source.high_watermark(self.number)
        return 0 if high is None else max(0, high - self._partition.next_offset)

    def _stale_seconds(self) -> float:
        return time.monotonic() - self._transport.fresh_at_monotonic


def exposures_ms(last: Committed | None, changes: Sequence[ConsentChange]) -> Iterator[int]:
    """How long after each change a record of that person was committed; 0 where none was.

    Only the transaction before the one that covers the change, which is `last`, can have been under
    way when the change was appended: each reads the end of the consent topic before its commit.
    """
    subjects = {subject for subject, *_ in last.outcome.forwarded} if last and changes else ()
    for change in changes:
        after_ms = last.committed.unix_ms - change.timestamp_ms if last else 0
        yield max(0, after_ms) if change.subject in subjects else 0
