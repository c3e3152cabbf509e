"""An oracle that reads the topics alone and shares no code with what it checks.

It knows one policy: in every jurisdiction only those who granted it may be used (`opt-in`). Its
answer is a list of sentences; an empty one means that nothing is wrong.
"""

import base64
import bisect
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.partitioner import murmur2

PURPOSE = "ai-training"
GENESIS = "0" * 64
NO_RECORD = 255

FORWARD = {"opted-in", "not-opted-out"}
QUARANTINE = {
    "tombstone",
    "too-large",
    "undecodable",
    "missing-field",
    "subject-mismatch",
    "bad-timestamp",
}

LOGS = ("content", "consent", "training", "decisions", "quarantine", "retractions")

PROBLEMS_MAX = 30


class Kept(NamedTuple):
    """A record as it stands in a topic."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] | None  # None: unreadable, and the record with it


Log = dict[int, list[Kept]]
"""The committed records of a topic, by partition, in the order of their offsets."""

Supplied = Mapping[str, Sequence[Kept]]
"""Topic to those of its records that no client can read, as whoever appended them knows them.

A whole batch has to be supplied where one record of it cannot be read.
"""


@dataclass(frozen=True, slots=True)
class Names:
    """Whose outcomes are checked, and the names of the topics."""

    group: str
    content: str
    consent: str
    training: str
    decisions: str
    quarantine: str
    retractions: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A ledger entry, decoded."""

    first: int
    last: int
    frontier: dict[int, int]
    policy: str
    counts: dict[str, dict[str, int]]
    reasons: list[str | None]  # one for each offset; None where there is no record
    previous: str
    hash: str
    computed_hash: str
    appended_ms: int

    def reason(self, offset: int) -> str | None:
        """The recorded reason of one offset."""
        return self.reasons[offset - self.first]


@dataclass(slots=True)
class Seen:
    """Everything that stands in the topics of one group."""

    names: Names
    content: Log
    consent: Log
    training: Log
    decisions: Log
    quarantine: Log
    retractions: Log
    committed: dict[int, int | None]  # by content partition
    chains: dict[int, list[Entry]] = field(init=False)

    def __post_init__(self) -> None:
        self.chains = {p: list(self._chain(p)) for p in self.content}

    def _chain(self, partition: int) -> Iterator[Entry]:
        key = f"{self.names.group}/{self.names.content}-{partition}".encode()
        for records in self.decisions.values():
            for record in records:
                if record.key == key:
                    yield decode_entry(record)

    def reasons(self) -> Counter[str]:
        """How often the ledger names each reason."""
        return Counter(
            reason
            for entries in self.chains.values()
            for entry in entries
            for reason in entry.reasons
            if reason is not None
        )

    def reason_of(self, partition: int, offset: int) -> str | None:
        """The reason that the ledger names for one content record."""
        for entry in self.chains[partition]:
            if entry.first <= offset <= entry.last:
                return entry.reason(offset)
        return None

    def forwarded(self) -> list[Kept]:
        """All training records."""
        return [record for records in self.training.values() for record in records]


async def read(bootstrap_servers: str, names: Names, supplied: Supplied) -> Seen:
    """Read what is committed now."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
        max_partition_fetch_bytes=8 << 20,
        request_timeout_ms=10_000,
    )
    member = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers, group_id=names.group, enable_auto_commit=False
    )
    await consumer.start()
    await member.start()
    try:
        logs = {}
        for role in LOGS:
            topic = getattr(names, role)
            logs[role] = await _read_topic(consumer, topic, supplied.get(topic, ()))
        committed = {
            p: await member.committed(TopicPartition(names.content, p)) for p in logs["content"]
        }
    finally:
        await member.stop()
        await consumer.stop()
    return Seen(names, **logs, committed=committed)


async def _read_topic(consumer: AIOKafkaConsumer, topic: str, supplied: Iterable[Kept]) -> Log:
    consumer.assign([])
    # Asking for the ends makes the topic known to the client.
    await consumer.end_offsets([TopicPartition(topic, 0)])
    partitions = await consumer._client.fetch_all_metadata()
    tps = [TopicPartition(topic, p) for p in sorted(partitions.partitions_for_topic(topic))]
    log: Log = {tp.partition: [] for tp in tps}
    jumps: dict[int, dict[int, int]] = {}
    for kept in supplied:
        log[kept.partition].append(kept)
    for partition, records in log.items():
        if records:
            jumps[partition] = {records[0].offset: records[-1].offset + 1}
    for tp in tps:
        consumer.assign([tp])
        end = (await consumer.end_offsets([tp]))[tp]
        consumer.seek(tp, (await consumer.beginning_offsets([tp]))[tp])
        while (position := await consumer.position(tp)) < end:
            if position in jumps.get(tp.partition, {}):
                consumer.seek(tp, jumps[tp.partition][position])
                continue
            stop = min(jumps.get(tp.partition, {}), default=None)
            room = stop - position if stop is not None and stop > position else None
            for records in (await consumer.getmany(timeout_ms=200, max_records=room)).values():
                log[tp.partition] += [
                    Kept(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
                    for r in records
                ]
        log[tp.partition].sort(key=lambda kept: kept.offset)
    return log


def decode_entry(record: Kept) -> Entry:
    """A ledger entry from its bytes."""
    assert record.value is not None, "a ledger entry has a value"
    entry = json.loads(record.value)
    outcomes = entry["outcomes"]
    codes = zlib.decompress(base64.b64decode(outcomes["codes"])) if outcomes["codes"] else b""
    names = outcomes["reasons"]
    signed = {k: v for k, v in entry.items() if k not in ("hash", "signature")}
    canonical = json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return Entry(
        first=entry["source"]["first"],
        last=entry["source"]["last"],
        frontier={int(p): offset for p, offset in entry["consent"].items()},
        policy=entry["policy"],
        counts=entry["counts"],
        reasons=[None if code == NO_RECORD else names[code] for code in codes],
        previous=entry["previous"],
        hash=entry["hash"],
        computed_hash=hashlib.sha256(canonical.encode()).hexdigest(),
        appended_ms=record.timestamp,
    )


def problems(seen: Seen) -> list[str]:
    """Everything that is wrong with the topics of a group that has decided all its content."""
    found: list[str] = []
    for partition in seen.content:
        found += _chain_problems(seen, partition)
    # Without a whole chain nothing else can be said.
    if not found:
        found += _outcome_problems(seen)
        found += _order_problems(seen)
        found += _consent_problems(seen)
        found += _retraction_problems(seen)
    hidden = len(found) - PROBLEMS_MAX
    return found[:PROBLEMS_MAX] + ([f"and {hidden} more"] if hidden > 0 else [])


class Tally(NamedTuple):
    """How many records fared as none may."""

    lost: int  # without an outcome, or without the record that the outcome asks for
    duplicated: int  # too many in a topic
    against_consent: int  # forwarded although the consent below the frontier forbids it


def tally(seen: Seen) -> Tally:
    """Count, whatever else may be wrong; `problems` says what."""
    histories = _Histories(seen.consent)
    forwarded = Counter(_source_of(seen, record) for record in seen.forwarded())
    keys = {(p, r.offset): r.key or b"" for p, records in seen.content.items() for r in records}
    frontiers: dict[tuple[int, int], dict[int, int]] = {}
    reasons: dict[tuple[int, int], str] = {}
    for partition, entries in seen.chains.items():
        for entry in entries:
            for offset, reason in enumerate(entry.reasons, entry.first):
                frontiers[partition, offset] = entry.frontier
                if reason is not None:
                    reasons[partition, offset] = reason
    lost = keys.keys() - reasons.keys()
    lost |= {source for source, r in reasons.items() if r in FORWARD} - forwarded.keys()
    against = [
        source
        for source in forwarded
        if histories.reason(keys.get(source, b""), frontiers.get(source, {})) not in FORWARD
    ]
    return Tally(len(lost), forwarded.total() - len(forwarded), len(against))


def _chain_problems(seen: Seen, partition: int) -> Iterator[str]:
    where = f"content-{partition}"
    previous, next_offset, frontier = GENESIS, 0, dict[int, int]()
    for number, entry in enumerate(seen.chains[partition]):
        this = f"{where}: ledger entry {number} ({entry.first}..{entry.last})"
        yield from (f"{this} {problem}" for problem in _entry_problems(entry))
        if entry.first != next_offset:
            yield f"{this} does not begin at {next_offset}"
        if entry.previous != previous:
            yield f"{this} does not name the entry before it"
        if any(entry.frontier.get(p, -1) < offset for p, offset in frontier.items()):
            yield f"{this} has a frontier that went back"
        previous, next_offset, frontier = entry.hash, entry.last + 1, entry.frontier
    if seen.content[partition] and seen.content[partition][-1].offset >= next_offset:
        yield f"{where}: decided up to {next_offset}, the last is {seen.content[partition][-1][1]}"
    committed = seen.committed[partition]
    # There is nothing of a partition that a worker had not taken over before it ended.
    is_untouched = committed is None and not seen.chains[partition]
    if committed != next_offset and not is_untouched:
        yield f"{where}: the group has committed {committed}, the ledger ends before {next_offset}"


def _entry_problems(entry: Entry) -> Iterator[str]:
    if len(entry.reasons) != entry.last - entry.first + 1:
        yield f"has {len(entry.reasons)} codes"
    if entry.hash != entry.computed_hash:
        yield "has another hash than its content"
    counted = Counter[str]()
    for by_reason in entry.counts.values():
        counted.update(by_reason)
    if counted != Counter(reason for reason in entry.reasons if reason is not None):
        yield "counts other outcomes than its codes"


def _outcome_problems(seen: Seen) -> Iterator[str]:
    """Each offset of the content has exactly one outcome, and the topics agree with the ledger."""
    there = {(p, record.offset) for p, records in seen.content.items() for record in records}
    reasons = {
        (p, offset): reason
        for p, entries in seen.chains.items()
        for entry in entries
        for offset, reason in enumerate(entry.reasons, entry.first)
        if reason is not None
    }
    forwarded = Counter(_source_of(seen, record) for record in seen.forwarded())
    quarantined = Counter(
        _quarantine_source_of(seen, record)
        for records in seen.quarantine.values()
        for record in records
    )
    yield from _differences("the ledger accounts for", set(reasons), "the content", there)
    for what, counted in (("forwarded", forwarded), ("quarantined", quarantined)):
        for source, number in counted.items():
            if number > 1:
                yield f"{source} was {what} {number} times"
    by_ledger = {source for source, reason in reasons.items() if reason in FORWARD}
    yield from _differences("forwarded are", set(forwarded), "the ledger says", by_ledger)
    by_ledger = {source for source, reason in reasons.items() if reason in QUARANTINE}
    yield from _differences("quarantined are", set(quarantined), "the ledger says", by_ledger)


def _differences(what: str, ours: set[Any], other: str, theirs: set[Any]) -> Iterator[str]:
    if more := sorted(ours - theirs):
        yield f"{what} {len(more)} that {other} does not have: {more[:5]}"
    if less := sorted(theirs - ours):
        yield f"{what} {len(less)} fewer than {other} has: {less[:5]}"


def _source_of(seen: Seen, record: Kept) -> tuple[int, int]:
    place = _header(record, "consentgate.source").decode()
    topic_partition, _, offset = place.rpartition("@")
    topic, _, partition = topic_partition.rpartition("-")
    assert topic == seen.names.content, place
    return int(partition), int(offset)


def _quarantine_source_of(seen: Seen, record: Kept) -> tuple[int, int]:
    assert _header(record, "__connect.errors.topic").decode() == seen.names.content
    return (
        int(_header(record, "__connect.errors.partition")),
        int(_header(record, "__connect.errors.offset")),
    )


def _header(record: Kept, name: str) -> bytes:
    values = [value for key, value in record.headers or () if key == name]
    assert len(values) == 1, f"{len(values)} headers {name} at {record.partition}@{record.offset}"
    assert values[0] is not None, name
    return values[0]


def _order_problems(seen: Seen) -> Iterator[str]:
    for partition, records in seen.training.items():
        last: dict[tuple[bytes | None, int], int] = {}
        for record in records:
            source_partition, offset = _source_of(seen, record)
            if len(seen.training) == len(seen.content) and source_partition != partition:
                yield f"training-{partition} holds a record of content-{source_partition}"
            if last.get((record.key, source_partition), -1) >= offset:
                yield f"training-{partition}@{record.offset}: out of its key's order"
            last[record.key, source_partition] = offset


def _consent_problems(seen: Seen) -> Iterator[str]:
    histories = _Histories(seen.consent)
    forwarded = {_source_of(seen, record): record for record in seen.forwarded()}
    for partition, records in seen.content.items():
        entries = seen.chains[partition]
        firsts = [entry.first for entry in entries]
        for record in records:
            # An entry without content begins where the one that accounts for the offset begins.
            entry = entries[bisect.bisect_right(firsts, record.offset) - 1]
            if expected := _wrong_reason(record, entry, histories):
                yield f"content-{partition}@{record.offset}: {expected}"
            if (out := forwarded.get((partition, record.offset))) is not None:
                for problem in _record_problems(seen, record, out, entry, histories):
                    yield f"content-{partition}@{record.offset}: {problem}"


def _wrong_reason(record: Kept, entry: Entry, histories: "_Histories") -> str | None:
    reason = entry.reason(record.offset)
    if reason is None:
        return "is no record, says the ledger"
    if record.headers is None:
        return None if reason == "undecodable" else f"is {reason}, but cannot be read"
    if record.value is None:
        return None if reason == "tombstone" else f"is {reason}, but has no value"
    if record.key is None:
        return None if reason == "subject-mismatch" else f"is {reason}, but has no key"
    expected = histories.reason(record.key, entry.frontier)
    if reason == expected or (expected in FORWARD and reason in QUARANTINE):
        return None
    return f"is {reason}, but consent below {entry.frontier} says {expected}"


def _record_problems(
    seen: Seen, source: Kept, out: Kept, entry: Entry, histories: "_Histories"
) -> Iterator[str]:
    for part in ("key", "value", "timestamp"):
        if getattr(out, part) != getattr(source, part):
            yield f"was forwarded with another {part}"
    own = ("consentgate.source", "consentgate.consent", "consentgate.policy")
    dropped = (*own, "consentgate.redriven")
    came = [tuple(header) for header in source.headers or () if header[0] not in dropped]
    went = [tuple(header) for header in out.headers or ()]
    if went[:-3] != came or sorted(name for name, _ in went[-3:]) != sorted(own):
        yield "was forwarded with other headers"
    if _header(out, "consentgate.policy").decode() != entry.policy:
        yield "names another policy than the ledger"
    holders = histories.holders(source.key or b"", entry.frontier)
    names = {f"{seen.names.consent}-{p}@{entry.frontier[p]}" for p in holders}
    if {_header(out, "consentgate.consent").decode()} != names:
        yield f"rests on {_header(out, 'consentgate.consent')!r}, not on {names}"


def _retraction_problems(seen: Seen) -> Iterator[str]:
    """Who becomes ineligible is retracted, and so is all that was forwarded of them."""
    histories = _Histories(seen.consent)
    retracted = set(_retractions(seen))
    # The highest offset before which the records of a person were retracted, for each partition.
    before: dict[tuple[bytes, int], int] = {}
    for key, _, partition, first in retracted:
        before[key, partition] = max(first, before.get((key, partition), 0))
    for partition, entries in seen.chains.items():
        # Where nothing was decided yet, nobody's consent has ended for it.
        for key, place, first in _due(seen, entries) if entries else ():
            if (key, place, partition, first) not in retracted:
                yield f"content-{partition}: no retraction for consent {place}, before {first}"
    for record in seen.forwarded():
        partition, offset = _source_of(seen, record)
        key = record.key or b""
        if histories.reason(key, seen.chains[partition][-1].frontier) in FORWARD:
            continue
        if offset >= before.get((key, partition), 0):
            yield f"content-{partition}@{offset}: was forwarded, and not retracted in the end"


def _retractions(seen: Seen) -> Iterator[tuple[bytes, str, int, int]]:
    """Subject, place of the consent change, content partition and offset of each retraction."""
    for records in seen.retractions.values():
        for record in records:
            retraction = json.loads(record.value or b"")
            assert record.key == retraction["subject"].encode()
            topic_partition, _, first = retraction["before"].rpartition("@")
            topic, _, partition = topic_partition.rpartition("-")
            assert topic == seen.names.content, topic_partition
            yield record.key, retraction["consent"], int(partition), int(first)


def _due(seen: Seen, entries: Sequence[Entry]) -> Iterator[tuple[bytes, str, int]]:
    """Subject and place of each change that needs a retraction, and `first` of its entry."""
    for partition, baseline in entries[0].frontier.items():
        frontiers = [entry.frontier[partition] for entry in entries]
        for record in seen.consent[partition]:
            reason = _consent_reason(record)
            # With several partitions a tombstone may leave the person to another one's record.
            unclear = reason is None and len(entries[0].frontier) > 1
            if record.key is None or record.offset < baseline or reason in FORWARD or unclear:
                continue
            covering = bisect.bisect_right(frontiers, record.offset)
            if covering < len(entries):
                place = f"{seen.names.consent}-{partition}@{record.offset}"
                yield record.key, place, entries[covering].first


class _Histories:
    """What each consent partition said of each key, offset by offset."""

    def __init__(self, consent: Log) -> None:
        self._said: dict[int, dict[bytes, tuple[list[int], list[str | None]]]] = {}
        for partition, records in consent.items():
            by_key = self._said[partition] = {}
            for record in records:
                if record.key is not None:
                    offsets, reasons = by_key.setdefault(record.key, ([], []))
                    offsets.append(record.offset)
                    reasons.append(_consent_reason(record))

    def holders(self, key: bytes, frontier: Mapping[int, int]) -> dict[int, str]:
        """Partition to what it says last of the key below the frontier."""
        found = {}
        for partition, below in frontier.items():
            offsets, reasons = self._said[partition].get(key, ([], []))
            index = bisect.bisect_left(offsets, below) - 1
            if index >= 0 and (reason := reasons[index]) is not None:
                # One partition alone is looked at, and a later choice may lie in the one at home.
                is_home = len(frontier) > 1 or self._home(key) == partition
                found[partition] = reason if is_home else "consent-unreadable"
        return found

    def _home(self, key: bytes) -> int:
        """Where Kafka's Java client puts the key's records."""
        return int(murmur2(key) & 0x7FFFFFFF) % len(self._said)

    def reason(self, key: bytes, frontier: Mapping[int, int]) -> str:
        """The reason that consent alone gives."""
        said = list(self.holders(key, frontier).values())
        if not said:
            return "no-consent-record"
        return said[0] if len(said) == 1 else "consent-unreadable"


def _consent_reason(record: Kept) -> str | None:
    """The reason that one consent record gives; None for a tombstone."""
    if record.headers is None:
        return "consent-unreadable"
    if record.value is None:
        return None
    by_choice = {"granted": "opted-in", "denied": "opted-out", None: "not-opted-in"}
    by_choice |= {"withdrawn": "withdrawn", "objected": "objected"}
    try:
        state = json.loads(record.value, object_pairs_hook=_without_repetitions)
        choices = {name: entry["choice"] for name, entry in state.get("choices", {}).items()}
        readable = state["subject"].encode() == record.key and by_choice.keys() >= {
            *choices.values()
        }
        reason = by_choice[choices.get(PURPOSE)]
    except (ValueError, KeyError, AttributeError, TypeError):
        return "consent-unreadable"
    if not readable:
        return "consent-unreadable"
    known = str(state.get("jurisdiction")) in ("US", "GB", "DE", "FR")
    return reason if known else "jurisdiction-unknown"


def _without_repetitions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a repeated key")
    return dict(pairs)
