"""What is counted: pure folds of ledger entries and retractions into values under keys.

The state of a partition of the ledger, or of the retractions, is one *head* and one value for each
*window*. All are kept in a table that may lose its latest writes, and records may come again. So
each value holds in `at` the offset of the last record that it has counted, and counts none up to
there again. A fold returns what is to be written in this order: the windows, and then the head.
Whoever finds a head finds all the windows that belong to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, NamedTuple, TypeVar

import msgspec

from consentgate.core.histogram import bucket
from consentgate.core.ledger import GENESIS, LedgerRecord, read_entry
from consentgate.core.model import Reason

Size = Literal["minute", "hour", "day"]

SIZES_MS: dict[Size, int] = {"minute": 60_000, "hour": 3_600_000, "day": 86_400_000}
"""Lengths of the windows; each begins at a multiple of its length, in UTC."""

KEPT_MS: dict[Size, int] = {"minute": 2 * 86_400_000, "hour": 90 * 86_400_000}
"""How long windows are kept, by the time of the newest record; those of days for ever."""

TIME_MS_END = 253_402_300_800_000
"""The calendar's end, 10000-01-01; what lies behind it cannot be told as a date."""

PROBLEMS_MAX = 20
"""How many problems of a ledger partition are told; all are counted."""

_REASONS = frozenset(map(str, Reason))
_OFFSET_END = 2**63

Table = Mapping[bytes, bytes]
Writes = dict[bytes, bytes | None]
"""Key to value; None deletes. In the order in which they are to be written."""

Outcomes = dict[str, dict[str, dict[str, int]]]
"""Number of records by policy (name@hash), jurisdiction label and reason."""


class Arrived(NamedTuple):
    """A record of the ledger or of the retractions."""

    offset: int
    time_ms: int  # of the record, epoch milliseconds
    key: bytes | None
    value: bytes | None


class Counted(msgspec.Struct):
    """What every value of the tables begins with."""

    at: int = -1  # the offset of the last record that was counted


class Head(Counted):
    """All that was counted of one partition."""

    newest_ms: int = 0  # the time of the newest record, epoch milliseconds


class Link(msgspec.Struct):
    """The last entry of one chain, and how it goes on."""

    at: int
    time_ms: int  # of the entry's record, by the broker's clock
    hash: str
    next: int  # the input offset that the next entry begins with
    entries: int
    from_the_beginning: bool  # whether the chain was there from its first entry on


class LedgerHead(Head):
    """All that was counted of one partition of the ledger; times are `decided_at`."""

    links: dict[int, Link] = {}  # by input partition
    outcomes: Outcomes = {}
    policies: dict[str, int] = {}  # name@hash to the earliest `decided_at`
    problems: list[str] = []
    problem_count: int = 0


class LedgerWindow(Counted):
    """What was decided in one window."""

    outcomes: Outcomes = {}


class Withdrawals(msgspec.Struct):
    """What was retracted. A change of consent counts once for each input partition."""

    count: int = 0
    records: int = 0  # retractions; there are several of a change where subjects have pseudonyms
    effects_ms: dict[int, int] = {}  # a histogram, by `consentgate.core.histogram.bucket`
    max_ms: int | None = None

    def add(self, other: "Withdrawals") -> None:
        """Count what another one has counted."""
        self.count += other.count
        self.records += other.records
        for longest_ms, number in other.effects_ms.items():
            self.effects_ms[longest_ms] = self.effects_ms.get(longest_ms, 0) + number
        if other.max_ms is not None:
            self.max_ms = max(other.max_ms, self.max_ms or 0)


class RetractionHead(Head):
    """All that was counted of one partition of the retractions; times are their `at`."""

    last: dict[int, str] = {}  # input partition to the place of the change that was last retracted
    withdrawals: Withdrawals = msgspec.field(default_factory=Withdrawals)


class RetractionWindow(Counted):
    """What was retracted in one window."""

    withdrawals: Withdrawals = msgspec.field(default_factory=Withdrawals)


class Retraction(msgspec.Struct):
    """Of a retraction as it stands in the topic: what is counted, and nothing of whom."""

    consent: str
    before: str
    at: Annotated[int, msgspec.Meta(ge=0, lt=TIME_MS_END)]
    changed_at: Annotated[int, msgspec.Meta(ge=-1, lt=TIME_MS_END)] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What is reported: one group's work on one content topic."""

    group: str
    topic: str

    def chain_partition(self, key: bytes | None) -> int | None:
        """The input partition of a ledger key; None where it is of another group or topic."""
        prefix = f"{self.group}/{self.topic}-".encode()
        return (
            _number((key or b"").removeprefix(prefix)) if (key or b"").startswith(prefix) else None
        )

    def retracted_partition(self, before: str) -> int | None:
        """The input partition of a retraction's `before`; None where it is of another topic."""
        name, _, _ = before.rpartition("@")
        prefix = f"{self.topic}-"
        return _number(name.removeprefix(prefix).encode()) if name.startswith(prefix) else None


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Of a value in a table; a head has neither size nor start."""

    partition: int  # of the ledger, or of the retractions
    size: Size | None = None
    start_ms: int = 0

    def encode(self) -> bytes:
        """As the table has it."""
        if self.size is None:
            return f"{self.partition}/head".encode()
        return f"{self.partition}/{self.size}/{self.start_ms}".encode()

    @staticmethod
    def decode(key: bytes) -> "Key":
        """The key that was encoded."""
        partition, size, *start = key.decode().split("/")
        if size == "head":
            return Key(int(partition))
        return Key(int(partition), msgspec.convert(size, Size), int(start[0]))


def counted_up_to(value: bytes | None) -> int:
    """The offset of the last record that a value has counted; -1 where there is none."""
    return -1 if value is None else msgspec.json.decode(value, type=Counted).at


def is_expired(key: Key, newest_ms: int) -> bool:
    """Whether a window is no longer kept when the newest record is of this time."""
    return (
        key.size is not None
        and key.size in KEPT_MS
        and key.start_ms < newest_ms - KEPT_MS[key.size]
    )


_Head = TypeVar("_Head", bound=Head)
_Window = TypeVar("_Window", bound=Counted)


class _Sheet(Generic[_Head, _Window]):
    """The values of one partition that a fold reads and changes."""

    def __init__(
        self, table: Table, partition: int, head: type[_Head], window: type[_Window]
    ) -> None:
        self._table = table
        self._partition = partition
        self._window_type = window
        self._windows: dict[Key, _Window] = {}
        self._gone: set[Key] = set()
        self._head_key = Key(partition).encode()
        held = table.get(self._head_key)
        self.head = head() if held is None else msgspec.json.decode(held, type=head)
        self._began_at = self.head.at

    def windows(self, offset: int, time_ms: int) -> Iterable[_Window]:
        """The windows that have still to count the record with this offset and time."""
        if time_ms // SIZES_MS["day"] > self.head.newest_ms // SIZES_MS["day"]:
            self._expire(time_ms)
        self.head.newest_ms = max(self.head.newest_ms, time_ms)
        for size, length_ms in SIZES_MS.items():
            key = Key(self._partition, size, time_ms - time_ms % length_ms)
            # What comes late must not begin a window anew that has been deleted.
            if not is_expired(key, self.head.newest_ms) and self._window(key).at < offset:
                self._windows[key].at = offset
                yield self._windows[key]

    def writes(self) -> Writes:
        """What has changed, the head last; nothing where no record was new."""
        if self.head.at == self._began_at:
            return {}
        encode = msgspec.json.encode
        changed = {key.encode(): encode(window) for key, window in sorted(self._windows.items())}
        deleted: Writes = {key.encode(): None for key in sorted(self._gone)}
        return {**changed, **deleted, self._head_key: encode(self.head)}

    def _window(self, key: Key) -> _Window:
        if key not in self._windows:
            held = self._table.get(key.encode())
            self._windows[key] = (
                self._window_type()
                if held is None
                else msgspec.json.decode(held, type=self._window_type)
            )
        return self._windows[key]

    def _expire(self, newest_ms: int) -> None:
        for key in {*map(Key.decode, self._table), *self._windows}:
            if key.partition == self._partition and is_expired(key, newest_ms):
                self._windows.pop(key, None)
                self._gone.add(key)


def fold_ledger(source: Source, table: Table, partition: int, arrived: Iterable[Arrived]) -> Writes:
    """Count records of one ledger partition, in the order of their offsets, replays among them."""
    sheet = _Sheet(table, partition, LedgerHead, LedgerWindow)
    head = sheet.head
    for record in arrived:
        chain = source.chain_partition(record.key)
        if record.offset <= head.at:
            continue
        head.at = record.offset
        if chain is None:
            continue
        place = f"ledger partition {partition}, offset {record.offset}"
        entry = _readable(source, chain, record.value)
        if entry is None:
            _report(
                head,
                f"{place}: there should be a ledger entry of input partition {chain}, "
                "but it is unreadable, was changed, or names what this version does not know",
            )
            continue
        _follow(head, chain, record, entry, place)
        head.policies[entry.policy] = min(
            entry.decided_at, head.policies.get(entry.policy, entry.decided_at)
        )
        decided = {entry.policy: entry.counts}
        add_outcomes(head.outcomes, decided)
        for window in sheet.windows(record.offset, entry.decided_at):
            add_outcomes(window.outcomes, decided)
    return sheet.writes()


def fold_retractions(
    source: Source, table: Table, partition: int, arrived: Iterable[Arrived]
) -> Writes:
    """Count records of one partition of the retractions, as `fold_ledger` does."""
    sheet = _Sheet(table, partition, RetractionHead, RetractionWindow)
    head = sheet.head
    for record in arrived:
        if record.offset <= head.at:
            continue
        head.at = record.offset
        try:
            retraction = msgspec.json.decode(record.value or b"", type=Retraction)
        except ValueError:
            continue  # Somebody else's: what reads it for its sake says so.
        source_partition = source.retracted_partition(retraction.before)
        if source_partition is None:
            continue
        # The retractions of one change follow each other, in one transaction of the partition.
        is_another = head.last.get(source_partition) != retraction.consent
        head.last[source_partition] = retraction.consent
        found = _withdrawals(retraction, is_another=is_another)
        head.withdrawals.add(found)
        for window in sheet.windows(record.offset, retraction.at):
            window.withdrawals.add(found)
    return sheet.writes()


def add_outcomes(to: Outcomes, outcomes: Outcomes) -> None:
    """Add the numbers of the second to those of the first."""
    for policy, by_label in outcomes.items():
        for label, by_reason in by_label.items():
            counts = to.setdefault(policy, {}).setdefault(label, {})
            for reason, number in by_reason.items():
                counts[reason] = counts.get(reason, 0) + number


def _withdrawals(retraction: Retraction, *, is_another: bool) -> Withdrawals:
    found = Withdrawals(count=int(is_another), records=1)
    if is_another and retraction.changed_at is not None:
        effect_ms = max(0, retraction.at - retraction.changed_at)
        found.effects_ms[bucket(effect_ms)] = 1
        found.max_ms = effect_ms
    return found


def _readable(source: Source, chain: int, value: bytes | None) -> LedgerRecord | None:
    """The entry, if it is one of this chain that can be counted; else None."""
    try:
        entry = read_entry(value or b"")
    except (ValueError, TypeError, RecursionError):  # The last two: what no JSON of ours can hold.
        return None
    told = entry.source
    numbers = [n for by_reason in entry.counts.values() for n in by_reason.values()]
    reasons = {reason for by_reason in entry.counts.values() for reason in by_reason}
    fits = (
        (entry.group, told.topic, told.partition) == (source.group, source.topic, chain)
        and 0 <= told.first <= told.last + 1 <= _OFFSET_END
        and 0 <= entry.decided_at < TIME_MS_END
        and all(number >= 0 for number in numbers)
        and sum(numbers) <= told.last + 1 - told.first
        and reasons <= _REASONS
    )
    return entry if fits else None


def _follow(head: LedgerHead, chain: int, record: Arrived, entry: LedgerRecord, place: str) -> None:
    """See that the entry follows the chain's last one, and go on from it."""
    last = head.links.get(chain)
    if last is None:
        from_the_beginning = entry.previous == GENESIS
    else:
        from_the_beginning = last.from_the_beginning
        if entry.previous != last.hash:
            _report(
                head,
                f"{place}: the entry of input partition {chain} does not follow the one "
                "before: other hash",
            )
        elif entry.source.first != last.next:
            _report(
                head,
                f"{place}: the entry of input partition {chain} begins with offset "
                f"{entry.source.first}, but {last.next} is the next without an outcome",
            )
    head.links[chain] = Link(
        at=record.offset,
        # It is only told, and so must be one that can be told: copied records may have any time.
        time_ms=min(max(0, record.time_ms), TIME_MS_END - 1),
        hash=entry.hash,
        next=entry.source.last + 1,
        entries=1 + (0 if last is None else last.entries),
        from_the_beginning=from_the_beginning,
    )


def _report(head: LedgerHead, problem: str) -> None:
    head.problem_count += 1
    if len(head.problems) < PROBLEMS_MAX:
        head.problems.append(problem)


def _number(text: bytes) -> int | None:
    return int(text) if text.isdigit() else None
