"""A seeded world: logs, workers, rebalances, zombies, lost and late replies - without I/O.

Only the broker and the scheduler are fake. What decides and what leads a partition through its life
is the product's own code, driven step by step.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from consentgate.core.consent import ConsentChange, ConsentTable, holding
from consentgate.core.decide import Limits
from consentgate.core.decode import ConsentFields, ContentFields, consent_decoder, content_decoder
from consentgate.core.gate import Batch, Gate, Output
from consentgate.core.ledger import GENESIS, Chain, LedgerRecord
from consentgate.core.partition import (
    Abort,
    AwaitFrontier,
    Changes,
    Commit,
    Committed,
    Event,
    Fence,
    Fetch,
    Moment,
    Partition,
    Pause,
    Position,
    ReadChanges,
    ReadClock,
    ReadHighWatermarks,
    ReadPosition,
    Retire,
    Revoked,
    Seek,
    Send,
    SendOffset,
    Step,
    StepFailed,
    WatchConsent,
)
from consentgate.core.policyfile import parse_policy

GROUP, CONTENT, CONSENT = "sim", "content", "consent"
SUBJECTS = [f"s{number}" for number in range(6)]
SUSPENDED_AT_MS = 60_000
POLICY = parse_policy(
    """
name: simulated
purpose: ai-training
rules:
  - jurisdictions: [GB]
    until: 1970-01-01T00:01:00Z
    basis: opt-in
  - jurisdictions: [GB]
    from: 1970-01-01T00:01:00Z
    basis: suspended
  - jurisdictions: ["*"]
    basis: opt-out
""",
    "simulated.yaml",
)
_DECODE_CONSENT = consent_decoder(ConsentFields(), "ai-training", 64)
_DECODE_CONTENT = content_decoder(ContentFields(), 64)


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record of a log."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(slots=True)
class Log:
    """One partition: a list of records, with holes where markers would stand."""

    records: list[LogRecord] = field(default_factory=list)
    end: int = 0

    def append(self, timestamp: int, key: bytes | None, value: bytes | None) -> int:
        self.records.append(LogRecord(self.end, timestamp, key, value))
        self.end += 1
        return self.end - 1

    def between(self, start: int, end: int) -> list[LogRecord]:
        return [record for record in self.records if start <= record.offset < end]


@dataclass(slots=True)
class Transaction:
    """What a producer has sent since it began."""

    outputs: list[tuple[str, Output]] = field(default_factory=list)
    ledger: list[LedgerRecord] = field(default_factory=list)
    offset: int | None = None


@dataclass(slots=True)
class Coordinator:
    """The transactional id of one input partition, and what its transactions committed."""

    epoch: int = 0
    open: Transaction | None = None
    late_commits: list[int] = field(default_factory=list)  # epochs of EndTxn still on their way
    committed_offset: int | None = None
    ledger: list[LedgerRecord] = field(default_factory=list)
    outputs: list[tuple[str, Output]] = field(default_factory=list)

    def fence(self) -> int:
        """A new epoch; what was open is aborted, and what comes late from now on is refused."""
        self.epoch += 1
        self.open = None
        self.late_commits.clear()
        return self.epoch

    def end(self, epoch: int, *, commit: bool) -> None:
        """EndTxn arrives. It ends whatever is open under the epoch: that is the hazard."""
        if epoch != self.epoch:
            raise StepFailed("fenced")
        transaction, self.open = self.open, None
        if transaction is not None and commit:
            self.outputs += transaction.outputs
            self.ledger += transaction.ledger
            if transaction.offset is not None:
                self.committed_offset = transaction.offset


class Worker:
    """One process: its consent tables and the partitions that it believes to own."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.tables: dict[int, ConsentTable] = {}
        self.listeners: dict[int, list[Any]] = {}
        self.lives: dict[int, Life] = {}

    def table_of(self, partition: int) -> ConsentTable:
        wanted = self.world.consent_of(partition)
        table = self.tables.get(wanted[0])
        if table is None:
            table = ConsentTable(wanted)
            self.tables.update(dict.fromkeys(wanted, table))
        return table

    def follow(self, partition: int, count: int) -> None:
        """Apply some more consent records of one partition."""
        table, log = self.tables[partition], self.world.consent[partition]
        start = table.frontier[partition]
        end = min(log.end, start + count)
        for record in log.between(start, end):
            assert record.key is not None
            state, _ = _DECODE_CONSENT(record.key, record.value)
            table.apply(partition, record.key, state)
            change = ConsentChange(
                partition,
                record.offset,
                record.timestamp,
                record.key,
                table.holdings.get(record.key),
            )
            for listener in list(self.listeners.get(partition, ())):
                listener(change)
        table.advance(partition, end)


class Life:
    """A partition in a worker's hands, one step ahead."""

    def __init__(self, worker: Worker, number: int, partition: type[Partition]) -> None:
        self.worker = worker
        self.world = worker.world
        self.number = number
        self.table = worker.table_of(number)
        gate = Gate(
            chain=Chain(GROUP, CONTENT, number),
            consent_topic=CONSENT,
            table=self.table,
            policy=POLICY,
            decode=_DECODE_CONTENT,
            limits=Limits(),
            key_is_subject=True,
        )
        self.partition = partition(gate, self._report, max_exposure_ms=5_000)
        self.epoch = -1
        self.position = 0
        self.events: list[Event] = []
        self._steps = self.partition.life()
        self.step: Step[Any] | None = next(self._steps)

    def advance(self) -> None:
        """Perform the step in hand, in one of the ways in which it can go."""
        assert self.step is not None
        try:
            reply = self._perform(self.step)
        except _NotYet:
            return
        except StepFailed as failure:
            self._resume(partial(self._steps.throw, failure))
        else:
            self._resume(partial(self._steps.send, reply))

    def revoke(self) -> None:
        """Give the partition up, at whatever step it is."""
        self._resume(partial(self._steps.throw, Revoked()))
        while self.step is not None:
            self.advance()
        for listeners in self.worker.listeners.values():
            if self.partition.consent_changed in listeners:
                listeners.remove(self.partition.consent_changed)

    def _resume(self, send: Any) -> None:
        try:
            self.step = send()
        except StopIteration:
            self.step = None

    def _report(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Committed):
            self.world.commits += 1

    def _perform(self, step: Step[Any]) -> Any:
        """The reply; a step may fail before its effect, after it, or leave it to come later."""
        world = self.world
        if isinstance(step, ReadClock):
            return Moment(world.now_ms, world.now_ms)
        if isinstance(step, Pause | Retire):
            return None
        luck = world.random.random()
        if luck < world.failure_rate:
            raise StepFailed("lost request", timed_out=luck < world.failure_rate / 2)
        reply = self._effect(step)
        if world.random.random() < world.failure_rate and not isinstance(step, Abort):
            raise StepFailed("lost reply", timed_out=True)
        return reply

    def _effect(self, step: Step[Any]) -> Any:  # noqa: C901, PLR0911, PLR0912
        coordinator = self.world.coordinators[self.number]
        match step:
            case Fence():
                self.epoch = coordinator.fence()
            case ReadPosition():
                return self._position(coordinator)
            case Seek(offset):
                self.position = offset
            case Fetch(first, records_max, _):
                return self._fetch(first, records_max)
            case ReadHighWatermarks():
                return {p: self.world.consent[p].end for p in self.table.frontier}
            case AwaitFrontier(high):
                if not self.table.covers(high):
                    if self.world.random.random() < 0.2:
                        return "behind"
                    raise _NotYet
            case WatchConsent():
                for p in self.table.frontier:
                    listeners = self.worker.listeners.setdefault(p, [])
                    if self.partition.consent_changed not in listeners:
                        listeners.append(self.partition.consent_changed)
                return dict(self.table.frontier)
            case ReadChanges(since, until):
                return self._changes(since, until)
            case Send(outcome):
                self._mine(coordinator)
                coordinator.open = coordinator.open or Transaction()
                transaction = coordinator.open
                transaction.outputs += [("training", o) for o in outcome.training]
                transaction.outputs += [("quarantine", o) for o in outcome.quarantine]
                transaction.outputs += [("retractions", o) for o in outcome.retractions]
                transaction.ledger.append(
                    msgspec.json.decode(outcome.entry.value, type=LedgerRecord)
                )
            case SendOffset(outcome):
                self._mine(coordinator)
                assert coordinator.open is not None, "an offset belongs to a transaction"
                coordinator.open.offset = outcome.batch.next_offset
            case Commit():
                self._commit(coordinator)
            case Abort():
                coordinator.end(self.epoch, commit=False)
            case _:
                raise AssertionError(step)
        return None

    def _commit(self, coordinator: Coordinator) -> None:
        self._mine(coordinator)
        if self.world.random.random() < self.world.late_rate:
            coordinator.late_commits.append(self.epoch)
            raise StepFailed("EndTxn took too long", timed_out=True)
        coordinator.end(self.epoch, commit=True)

    def _mine(self, coordinator: Coordinator) -> None:
        if self.epoch != coordinator.epoch:
            raise StepFailed("fenced")

    def _position(self, coordinator: Coordinator) -> Position:
        if not coordinator.ledger:
            return Position(0, GENESIS, None)
        last = coordinator.ledger[-1]
        assert coordinator.committed_offset == last.source.last + 1
        frontier = {int(p): offset for p, offset in last.consent.items()}
        return Position(last.source.last + 1, last.hash, frontier)

    def _fetch(self, first: int, records_max: int) -> Batch:
        log = self.world.content[self.number]
        start = max(first, self.position)
        count = min(records_max, self.world.random.randint(0, 8))
        records = log.between(start, log.end)[:count]
        self.position = records[-1].offset + 1 if records else start
        return Batch(first, self.position, records)

    def _changes(self, since: Any, until: Any) -> Changes:
        changes, frontier = [], {}
        for p in until:
            frontier[p] = min(until[p], since[p] + self.world.random.randint(1, 5))
            for record in self.world.consent[p].between(since[p], frontier[p]):
                assert record.key is not None
                state, _ = _DECODE_CONSENT(record.key, record.value)
                held = None if state is None else holding(p, state)
                changes.append(ConsentChange(p, record.offset, record.timestamp, record.key, held))
        return Changes(changes, frontier)


class _NotYet(Exception):
    """The step is still waiting."""


class World:
    """Everything there is; every choice comes from the seed."""

    def __init__(self, seed: int, partition: type[Partition] = Partition) -> None:
        self.random = random.Random(seed)
        self.partition = partition
        self.partitions = partitions = 2
        self.now_ms = 1_000
        self.scope = self.random.choice(("partition", "global"))
        self.failure_rate = self.random.choice((0.0, 0.01, 0.05, 0.15))
        self.late_rate = self.random.choice((0.0, 0.1, 0.4))
        self.content = [Log() for _ in range(partitions)]
        self.consent = [Log() for _ in range(partitions)]
        self.coordinators = [Coordinator() for _ in range(partitions)]
        self.workers = [Worker(self) for _ in range(self.random.randint(1, 3))]
        self.owner: dict[int, Worker] = {}
        self.zombies: list[Life] = []
        self.commits = 0
        self.consent_ends: dict[tuple[int, int], list[int]] = {}  # when content was appended
        self._posts = 0
        for _ in range(self.random.randint(0, 12)):
            self.change_consent()
        self.rebalance()

    def consent_of(self, partition: int) -> list[int]:
        return [partition] if self.scope == "partition" else list(range(self.partitions))

    def home_of(self, subject: str) -> int:
        return SUBJECTS.index(subject) % self.partitions

    def run(self, turns: int) -> None:
        """Let chance rule, and then let everything come to an end."""
        actions = (
            (self.advance, 60),
            (self.post, 12),
            (self.change_consent, 4),
            (self.follow, 16),
            (self.tick, 4),
            (self.deliver_late_commit, 4),
            (self.advance_zombie, 15),
            (self.rebalance, 2),
        )
        choices, weights = zip(*actions, strict=True)
        for action in self.random.choices(choices, weights, k=turns):
            action()
        self.settle()

    def settle(self) -> None:
        """No more faults: everybody finishes what there is."""
        self.failure_rate = self.late_rate = 0.0
        for zombie in self.zombies:
            zombie.revoke()
        self.zombies.clear()
        for _ in range(5_000):
            if self.is_settled():
                return
            for worker in self.workers:
                for partition in list(worker.tables):
                    worker.follow(partition, 100)
            for life in self.lives():
                life.advance()
        raise AssertionError("it does not come to an end")

    def is_settled(self) -> bool:
        return all(
            coordinator.committed_offset == self.content[p].end
            and coordinator.ledger
            and all(
                coordinator.ledger[-1].consent[str(c)] == self.consent[c].end
                for c in self.consent_of(p)
            )
            for p, coordinator in enumerate(self.coordinators)
        )

    def lives(self) -> Iterator[Life]:
        for worker in self.workers:
            yield from worker.lives.values()

    def advance(self) -> None:
        lives = [life for life in self.lives() if life.step is not None]
        if lives:
            self.random.choice(lives).advance()

    def advance_zombie(self) -> None:
        alive = [zombie for zombie in self.zombies if zombie.step is not None]
        if alive:
            self.random.choice(alive).advance()
        if alive and self.random.random() < 0.1:
            zombie = self.random.choice(alive)
            zombie.revoke()
            self.zombies.remove(zombie)

    def post(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            self._posts += 1
            subject = self.random.choice([*SUBJECTS, "stranger"])
            home = self.home_of(subject) if subject in SUBJECTS else 0
            event = {
                "id": f"e{self._posts}",
                "subject": subject,
                "kind": "post",
                "visibility": "public",
                "created_at": 0,
            }
            value = b"{" if self.random.random() < 0.05 else msgspec.json.encode(event)
            offset = self.content[home].append(self.now_ms, subject.encode(), value)
            self.consent_ends[home, offset] = [log.end for log in self.consent]

    def change_consent(self) -> None:
        subject = self.random.choice(SUBJECTS)
        choice = self.random.choice(("granted", "granted", "withdrawn", "objected"))
        state = {
            "subject": subject,
            "jurisdiction": "GB" if subject in ("s0", "s1") else "US",
            "choices": {"ai-training": {"choice": choice}},
        }
        value = None if self.random.random() < 0.1 else msgspec.json.encode(state)
        self.consent[self.home_of(subject)].append(self.now_ms, subject.encode(), value)

    def follow(self) -> None:
        worker = self.random.choice(self.workers)
        if worker.tables:
            worker.follow(self.random.choice(list(worker.tables)), self.random.randint(1, 6))

    def tick(self) -> None:
        self.now_ms += self.random.choice((1, 10, 100, 1_000, 6_000))

    def deliver_late_commit(self) -> None:
        coordinator = self.random.choice(self.coordinators)
        if coordinator.late_commits:
            epoch = coordinator.late_commits.pop(0)
            if epoch == coordinator.epoch:
                coordinator.end(epoch, commit=True)

    def rebalance(self) -> None:
        """Deal the partitions out anew; some workers do not hear of it at once."""
        for worker in self.workers:
            for life in list(worker.lives.values()):
                if self.random.random() < 0.5:
                    life.revoke()
                else:
                    self.zombies.append(life)
            worker.lives.clear()
        if self.random.random() < 0.2:
            # A process that was killed comes back with nothing in memory.
            self.workers[self.random.randrange(len(self.workers))] = Worker(self)
        for partition in range(self.partitions):
            worker = self.random.choice(self.workers)
            worker.lives[partition] = Life(worker, partition, self.partition)
