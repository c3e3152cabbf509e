"""Whether a partition that has work to do gets anywhere, as its worker's health tells."""

import time
from typing import Any

from consentgate.core.consent import ConsentTable
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
    Seek,
    Step,
)
from consentgate.kafka.content import ContentSource
from consentgate.kafka.transport import KafkaTransport
from consentgate.web import OK

STUCK_SECONDS = 60.0
"""A partition that has work to do and gets nowhere for so long makes the worker not live."""

_ON_SHARED_CLIENTS = (Fetch, Seek, ReadHighWatermarks, AwaitFrontier)
"""What fails in these a new process may mend; for all else the partition begins anew by itself."""


class Progress:
    """When a partition last got somewhere, and what it has failed at since."""

    def __init__(
        self,
        number: int,
        partition: Partition,
        table: ConsentTable,
        transport: KafkaTransport,
        source: ContentSource,
    ) -> None:
        self.unproven_since: str | None = None
        """Why it began anew, where it has committed nothing since."""
        self._number = number
        self._partition = partition
        self._table = table
        self._transport = transport
        self._source = source
        self._step: Step[Any] | None = None
        self._failed_step: Step[Any] | None = None
        self._looked_at_step: Step[Any] | None = None
        self._looked_at_offsets = -1
        self._made_at = self._committed_at = time.monotonic()

    def begin(self, step: Step[Any]) -> None:
        """A step is performed from now on."""
        self._step = step

    def end(self, *, failed: bool) -> None:
        """It has come to an end."""
        self._failed_step = self._step if failed else None

    def rest(self) -> None:
        """Nothing was there to be committed: an idle partition is not a stuck one."""
        self._committed_at = time.monotonic()

    def observe(self, event: Event) -> None:
        """See what the partition says of itself."""
        match event:
            case Committed():
                batch = event.outcome.batch
                # Of one that is ready, a frontier that moves on says nothing about its fetches.
                if batch.next_offset > batch.first or self._partition.phase is not Phase.READY:
                    self._made_at = time.monotonic()
                self._committed_at = time.monotonic()
                self.unproven_since = None
            case Aborted():
                self._made_at = time.monotonic()
            case Recycled(why):
                self.unproven_since = why
                if not isinstance(self._failed_step, _ON_SHARED_CLIENTS):
                    self._made_at = time.monotonic()

    def look(self, *, broker_answers: bool) -> None:
        """See whether there has been progress since the last look, or could not have been any.

        What a new process could not mend either is no lack of progress: a broker that is away, a
        transaction in the consent topic that hangs, a ledger that is long or does not fit.
        """
        now, partition, due_at = time.monotonic(), self._partition, self._transport.due_at_monotonic
        if now - due_at > STUCK_SECONDS:
            return
        has_work = self._source.can_be_read(self._number, partition.next_offset)
        if not has_work and partition.phase is Phase.READY:
            self.unproven_since = None
        # Before that it is the table that has to move.
        offsets = sum(self._table.frontier.values())
        moved = partition.phase is not Phase.READY and offsets != self._looked_at_offsets
        self._looked_at_offsets = offsets
        # The whole of it, where the group's offsets are gone.
        still_reads = isinstance(self._step, ReadPosition) and self._step is self._looked_at_step
        reads_ledger, self._looked_at_step = still_reads and now < due_at, self._step
        if moved or not has_work or not broker_answers or reads_ledger:
            self._made_at = now
        self._made_at = max(self._made_at, self._transport.excused_at_monotonic)

    def liveness(self) -> str:
        """`ok`, or for how long there has been no progress."""
        stuck_seconds = time.monotonic() - self._made_at
        if stuck_seconds < STUCK_SECONDS:
            return OK
        return f"has work to do and has got nowhere for {stuck_seconds:.0f} s"

    def uncommitted_seconds(self) -> float:
        """How long ago the last commit was, or the last moment without anything to commit."""
        return time.monotonic() - self._committed_at
