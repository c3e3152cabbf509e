"""The life of one input partition: fence, bootstrap, ready, commit, recycle, revoke.

A `Partition` performs no I/O. Its `life` is a generator that yields one step at a time, is sent
the step's reply, and has `StepFailed` or `Revoked` thrown into it. Whoever drives it decides
nothing, and has each step performed by a `Transport`: on Kafka in the service, on a fake in
simulations. `tests/conformance` says what is expected of either.
"""

import contextlib
import enum
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, cast

from consentgate.core.consent import ConsentChange
from consentgate.core.gate import Batch, BatchOutcome, Gate, WorkKey
from consentgate.core.transform import Work

T = TypeVar("T")

IDLE_MS = 400
"""How long a fetch waits for content before an advanced frontier is committed by itself."""

BATCH_RECORDS_MAX = 4_096
"""A transaction costs as much as some hundred records, of this process and of the broker."""

URGENT_RECORDS_MAX = 512
"""The same while a consent change waits to be covered: a small transaction gets there sooner."""

BATCH_OFFSETS_MAX = 1_000_000
"""How many offsets one ledger entry may account for; what lies beyond is left to the next."""

CHANGES_MAX = 100_000
"""How many consent changes may await their commit in memory."""

ATTEMPTS_AT_FULL_SIZE = 2
"""How often a batch is decided anew before it is halved."""

BACKOFF_MS_MIN, BACKOFF_MS_MAX = 100, 5_000


class Phase(enum.StrEnum):
    """Where in its life a partition is; a partition that is not `READY` forwards nothing."""

    FENCING = "fencing"
    BOOTSTRAPPING = "bootstrapping"
    READY = "ready"
    STALLED = "stalled"
    RECYCLING = "recycling"
    REVOKED = "revoked"


class StepFailed(Exception):
    """A step did not succeed; its effect is unknown. The message holds no payload."""

    def __init__(self, why: str, *, timed_out: bool = False) -> None:
        super().__init__(why)
        self.timed_out = timed_out


class Revoked(Exception):
    """The partition is no longer this worker's, or the worker stops."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One reading of both clocks, in milliseconds."""

    unix_ms: int
    monotonic_ms: int

    def since_ms(self, earlier: "Moment") -> int:
        """How long ago that was. By the clock that shows more: one stands still when the machine
        is suspended, the other can be set."""
        return max(self.unix_ms - earlier.unix_ms, self.monotonic_ms - earlier.monotonic_ms)


@dataclass(frozen=True, slots=True)
class Position:
    """Where the partition's last committed transaction left it."""

    next_offset: int
    previous: str  # hash of the last ledger entry
    frontier: Mapping[int, int] | None  # the last committed one; None at the group's first start
    expired: int = 0  # offsets from `next_offset` on that the topic has removed undecided


@dataclass(frozen=True, slots=True)
class Changes:
    """Consent changes up to a frontier."""

    changes: Sequence[ConsentChange]
    frontier: Mapping[int, int]


class Step(Generic[T]):
    """Something that the partition asks for; `T` is the type of the reply."""


@dataclass(frozen=True, slots=True)
class Fence(Step[None]):
    """Start the partition's transactional producer: it fences and settles what went before."""


@dataclass(frozen=True, slots=True)
class ReadPosition(Step[Position]):
    """Read the committed offset and what was committed with it."""


@dataclass(frozen=True, slots=True)
class Seek(Step[None]):
    """Fetch from this offset on."""

    offset: int


@dataclass(frozen=True, slots=True)
class Fetch(Step[Batch]):
    """Fetch content from `first` on; an empty batch where none came in time."""

    first: int
    records_max: int
    wait_ms: int


@dataclass(frozen=True, slots=True)
class ReadHighWatermarks(Step[Mapping[int, int]]):
    """Read the high watermark of each consent partition that the table covers."""


@dataclass(frozen=True, slots=True)
class AwaitFrontier(Step[str | None]):
    """Wait until the table covers these offsets; why it does not, where the time ran out."""

    high_watermarks: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class WatchConsent(Step[Mapping[int, int]]):
    """Hand every later change of the table to `Partition.consent_changed`; the frontier now."""


@dataclass(frozen=True, slots=True)
class ReadChanges(Step[Changes]):
    """Read the consent changes from one frontier on, at most up to another, a bounded number."""

    since: Mapping[int, int]
    until: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Transform(Step[Sequence[bytes | None]]):
    """Transform these records; None for one that cannot be transformed."""

    works: Sequence[Work]


@dataclass(frozen=True, slots=True)
class ReadClock(Step[Moment]):
    """Read the clocks."""


@dataclass(frozen=True, slots=True)
class Send(Step[None]):
    """Begin a transaction, write every record of the outcome, and await each acknowledgement."""

    outcome: BatchOutcome


@dataclass(frozen=True, slots=True)
class SendOffset(Step[None]):
    """Add the source offset, and what is to be known after a restart, to the transaction."""

    outcome: BatchOutcome


@dataclass(frozen=True, slots=True)
class Commit(Step[bool]):
    """Commit the transaction; True where its producer must not be used again."""


@dataclass(frozen=True, slots=True)
class Abort(Step[bool]):
    """Abort the transaction; True where its producer must not be used again."""


@dataclass(frozen=True, slots=True)
class Retire(Step[None]):
    """Drop the producer, whatever state it is in. Never fails."""


@dataclass(frozen=True, slots=True)
class Pause(Step[None]):
    """Let some time pass."""

    duration_ms: int


class Transport(Protocol):
    """The hands of one `Partition`."""

    async def perform(self, step: Step[T]) -> T:
        """The reply to the step.

        Raises:
            StepFailed: if it did not succeed, whatever the cause.
        """


@dataclass(frozen=True, slots=True)
class Committed:
    """A transaction was committed."""

    outcome: BatchOutcome
    fetched: Moment
    fresh: Moment
    judged: Moment
    sent: Moment
    committed: Moment  # when that was known
    age_ms: int  # from reading the high watermark to sending EndTxn
    advanced: int  # offsets by which the partition's position moved


@dataclass(frozen=True, slots=True)
class Aborted:
    """A transaction was aborted on purpose, to be done again with fewer records."""

    why: str


@dataclass(frozen=True, slots=True)
class Stalled:
    """The partition waits, without deciding anything, for something to get well."""

    why: str


@dataclass(frozen=True, slots=True)
class Recycled:
    """The producer was dropped after a failure; a new one will settle what is left."""

    why: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The partition was taken over and goes on from this offset."""

    position: Position


@dataclass(frozen=True, slots=True)
class _Objection:
    """Why an outcome must not be committed any more."""

    why: str
    too_slow: bool  # to be redone smaller at once


Event = Committed | Aborted | Stalled | Recycled | Ready
Steps = Generator[Step[Any], Any, T]


def ask(step: Step[T]) -> Steps[T]:
    """Yield the step; its reply is the value."""
    return cast("T", (yield step))


class Partition:
    """One input partition under this worker's care."""

    def __init__(self, gate: Gate, report: Callable[[Event], None], max_exposure_ms: int) -> None:
        self.gate = gate
        self.phase = Phase.FENCING
        self.stalled_because: str | None = None
        self.next_offset = 0
        self._report = report
        self._max_exposure_ms = max_exposure_ms
        self._stopping = False
        self._previous = ""
        self._committed_frontier: Mapping[int, int] | None = None
        self._records_max = BATCH_RECORDS_MAX
        self._backoff_ms = BACKOFF_MS_MIN
        self._just_taken_over = True
        self._has_content = False
        self._changes: list[ConsentChange] = []
        self._unanswered: Committed | None = None
        self._transformed: dict[WorkKey, bytes | None] = {}

    def consent_changed(self, change: ConsentChange) -> None:
        """A consent record was applied to the table; it awaits the commit that covers it."""
        if len(self._changes) <= CHANGES_MAX:
            self._changes.append(change)

    @property
    def hurries(self) -> bool:
        """Whether content is decided on, and a consent change waits for the commit that covers it.

        Others that are not in a hurry do well to let it go first.
        """
        return bool(self._changes) and self._has_content and self.phase is Phase.READY

    @property
    def uncovered_since_ms(self) -> int | None:
        """Timestamp of the oldest consent change that no commit covers yet; None without one."""
        return self._changes[0].timestamp_ms if self._changes else None

    def stop(self) -> None:
        """Ask for an end after the transaction in hand."""
        self._stopping = True

    def life(self) -> Steps[None]:
        """The whole life, to be driven step by step."""
        try:
            while not self._stopping:
                try:
                    yield from self._take_over()
                    while not self._stopping:
                        yield from self._turn()
                except StepFailed as failure:
                    yield from self._recycle(failure)
        except Revoked:
            pass
        self.phase = Phase.REVOKED
        # Whatever happens to this last step, there is none after it.
        with contextlib.suppress(StepFailed, Revoked):
            yield from ask(Retire())

    def _take_over(self) -> Steps[None]:
        # The order matters: only after the fence can no earlier transaction of this partition
        # change the position any more, and only then is the position read.
        self.phase = Phase.FENCING
        yield from ask(Fence())
        position = yield from ask(ReadPosition())
        unanswered, self._unanswered = self._unanswered, None
        if unanswered is not None and unanswered.outcome.entry.hash == position.previous:
            # Its answer was lost, but it was committed: it counts like any other.
            yield from self._committed(unanswered)
        self.next_offset = position.next_offset
        self._previous = position.previous
        self._committed_frontier = position.frontier
        self.phase = Phase.BOOTSTRAPPING
        yield from self._freshen()
        self._changes.clear()
        watched_from = yield from ask(WatchConsent())
        if position.frontier is not None:
            yield from self._catch_up(position.frontier, watched_from)
        yield from ask(Seek(position.next_offset))
        self._resume()
        self._just_taken_over = True
        self._report(Ready(position))

    def _catch_up(
        self, committed: Mapping[int, int], watched_from: Mapping[int, int]
    ) -> Steps[None]:
        """Retract what changed while nobody watched, from the last committed frontier on."""
        if committed.keys() != watched_from.keys():
            raise StepFailed("the last ledger entry is of another scope, or of other partitions")
        if any(committed[p] > frontier for p, frontier in watched_from.items()):
            raise StepFailed(
                "the consent topic ends before the committed frontier: "
                "it was truncated or made anew"
            )
        since = committed
        while since != watched_from:
            if self._stopping:
                raise Revoked
            read = yield from ask(ReadChanges(since, watched_from))
            now = yield from ask(ReadClock())
            outcome = self.gate.catch_up(
                self.next_offset, read.changes, read.frontier, self._previous, now.unix_ms
            )
            yield from ask(Send(outcome))
            yield from ask(SendOffset(outcome))
            sent = yield from ask(ReadClock())
            yield from self._commit(Committed(outcome, now, now, now, sent, sent, 0, advanced=0))
            since = read.frontier

    def _turn(self) -> Steps[None]:
        batch = yield from self._fetch()
        self._transformed = {}
        attempts = 0
        while (objection := (yield from self._attempt(batch))) is not None:
            attempts += 1
            self._report(Aborted(objection.why))
            if self._stopping:
                return
            at_full_size = attempts < ATTEMPTS_AT_FULL_SIZE and not objection.too_slow
            if len(batch.records) > 1 and not at_full_size:
                batch = batch.first_half()
                self._records_max = len(batch.records)
                yield from ask(Seek(batch.next_offset))
            elif attempts > ATTEMPTS_AT_FULL_SIZE:
                self._stall(objection.why)

    def _attempt(self, batch: Batch) -> Steps[_Objection | None]:
        """Decide and commit; the objection, where it was aborted to be decided anew."""
        fetched = yield from ask(ReadClock())
        read_at, fresh = yield from self._prepare(batch, fetched)
        whole, batch = batch, self._urgent_part(batch)
        # From the reply to the end of the judgement nothing else runs: the frontier that is
        # recorded is the one that every decision of the batch saw.
        outcome = self.gate.judge(
            batch, self._previous, fresh.unix_ms, self._all_changes(), self._transformed
        )
        if batch.next_offset == batch.first and outcome.frontier == self._committed_frontier:
            return None
        self._refuse_going_back(outcome.frontier)
        judged = yield from ask(ReadClock())
        yield from ask(Send(outcome))
        yield from ask(SendOffset(outcome))
        yield from self._freshen()
        sent = yield from ask(ReadClock())
        age_ms = sent.since_ms(read_at)
        objection = self._objection(outcome, sent, age_ms)
        if objection is not None:
            self._refuse_doubt((yield from ask(Abort())))
            return objection
        yield from self._commit(
            Committed(outcome, fetched, fresh, judged, sent, sent, age_ms, advanced=0)
        )
        if batch is not whole:
            yield from ask(Seek(batch.next_offset))
        return None

    def _commit(self, sent: Committed) -> Steps[None]:
        """Commit what was sent; whether it was is unknown until the answer has come."""
        self._unanswered = sent
        doubtful = yield from ask(Commit())
        yield from self._committed(sent)
        self._refuse_doubt(doubtful)

    def _committed(self, sent: Committed) -> Steps[None]:
        now, since = (yield from ask(ReadClock())), self.next_offset
        self._unanswered = None
        self._settle(sent.outcome)
        self._report(replace(sent, committed=now, advanced=self.next_offset - since))

    def _urgent_part(self, batch: Batch) -> Batch:
        """So much of the batch as may be decided now; all of it where no consent change waits."""
        if not self._changes or len(batch.records) <= URGENT_RECORDS_MAX:
            return batch
        return batch.before(batch.records[URGENT_RECORDS_MAX].offset)

    def _prepare(self, batch: Batch, fetched: Moment) -> Steps[tuple[Moment, Moment]]:
        """All that comes before the decision: when the high watermark was read, and the moment."""
        foreseen_at = fetched
        while True:
            yield from self._transform(batch, foreseen_at)
            read_at = yield from self._freshen()
            fresh = yield from ask(ReadClock())
            if self.gate.foresees_alike(foreseen_at.unix_ms, fresh.unix_ms):
                return read_at, fresh
            foreseen_at = fresh

    def _transform(self, batch: Batch, now: Moment) -> Steps[None]:
        """Have done before the decision what would take long in it, as far as it is foreseen."""
        foreseen = self.gate.foresee(batch, now.unix_ms)
        missing = {key: work for key, work in foreseen.items() if key not in self._transformed}
        if missing:
            done = yield from ask(Transform(list(missing.values())))
            self._transformed.update(zip(missing, done, strict=True))

    def _refuse_doubt(self, doubtful: bool) -> None:
        # A request that was repeated on a new connection may still arrive on the old one, and end
        # the next transaction of the same producer in its midst.
        if doubtful:
            raise StepFailed("the connection was lost during the transaction")

    def _refuse_going_back(self, frontier: Mapping[int, int]) -> None:
        # The consent topic was truncated or made anew; what is known of it is not enough.
        for partition, committed in (self._committed_frontier or {}).items():
            if frontier.get(partition, -1) < committed:
                raise StepFailed(
                    f"the frontier of consent partition {partition} would go back from {committed}"
                )

    def _objection(self, outcome: BatchOutcome, now: Moment, age_ms: int) -> _Objection | None:
        if age_ms > self._max_exposure_ms:
            why = f"{age_ms} ms from reading the high watermark to the commit"
            return _Objection(why, too_slow=True)
        if self.gate.is_overtaken(outcome, self._all_changes(), now.unix_ms):
            return _Objection("a newer consent record or rule turns an outcome", too_slow=False)
        return None

    def _all_changes(self) -> Sequence[ConsentChange]:
        """The changes since the last committed frontier, up to the table's: all or a failure."""
        if len(self._changes) > CHANGES_MAX:
            # More changes came than are kept; taking the partition over again reads them anew.
            raise StepFailed("consent changes faster than transactions commit")
        return self._changes

    def _fetch(self) -> Steps[Batch]:
        wait_ms = 0 if self._just_taken_over else IDLE_MS
        limit = URGENT_RECORDS_MAX if self._changes else BATCH_RECORDS_MAX
        records_max = min(self._records_max, limit)
        batch = yield from ask(Fetch(self.next_offset, records_max, wait_ms))
        self._just_taken_over = False
        self._has_content = bool(batch.records)
        if batch.next_offset - batch.first <= BATCH_OFFSETS_MAX:
            return batch
        batch = batch.before(batch.first + BATCH_OFFSETS_MAX)
        yield from ask(Seek(batch.next_offset))
        return batch

    def _freshen(self) -> Steps[Moment]:
        """Wait until the table covers the high watermarks read now; the moment before the read."""
        while True:
            read_at = yield from ask(ReadClock())
            high_watermarks = yield from ask(ReadHighWatermarks())
            why_behind = yield from ask(AwaitFrontier(high_watermarks))
            if why_behind is None:
                if self.phase is Phase.STALLED:
                    self._resume()
                return read_at
            if self._stopping:
                raise Revoked
            if self.phase is Phase.BOOTSTRAPPING:
                self.stalled_because = why_behind
            else:
                self._stall(why_behind)

    def _recycle(self, failure: StepFailed) -> Steps[None]:
        self.phase = Phase.RECYCLING
        self.stalled_because = str(failure)
        self._report(Recycled(str(failure)))
        if failure.timed_out:
            self._records_max = max(1, self._records_max // 2)
        for step in (Retire(), Pause(self._backoff_ms)):
            # Whatever becomes of these, the next thing is to begin anew.
            with contextlib.suppress(StepFailed):
                yield from ask(step)
        self._backoff_ms = min(2 * self._backoff_ms, BACKOFF_MS_MAX)

    def _settle(self, outcome: BatchOutcome) -> None:
        frontier = outcome.frontier
        self._changes = [c for c in self._changes if c.offset >= frontier[c.partition]]
        self.next_offset = outcome.batch.next_offset
        self._previous = outcome.entry.hash
        self._committed_frontier = frontier
        self._records_max = min(2 * self._records_max, BATCH_RECORDS_MAX)
        self._backoff_ms = BACKOFF_MS_MIN
        if self.phase is Phase.STALLED:
            self._resume()

    def _stall(self, why: str) -> None:
        self.stalled_because = why
        if self.phase is not Phase.STALLED:
            self.phase = Phase.STALLED
            self._report(Stalled(why))

    def _resume(self) -> None:
        self.phase = Phase.READY
        self.stalled_because = None
