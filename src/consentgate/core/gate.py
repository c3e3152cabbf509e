"""One batch in, one frozen outcome out: what is forwarded, what is quarantined, and the entry."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from consentgate.core.consent import ConsentChange, ConsentTable, Holding
from consentgate.core.decide import (
    Limits,
    Person,
    decide_by_key,
    decide_by_subject,
    is_too_large,
    judge_person,
)
from consentgate.core.decode import ContentDecoder, ContentEvent
from consentgate.core.ledger import BatchFacts, Chain, LedgerEntry, write_entry
from consentgate.core.model import (
    UNKNOWN_JURISDICTION,
    Decision,
    Reason,
    Record,
    Verdict,
    decision,
)
from consentgate.core.policy import Policy, RulesInForce

Headers = list[tuple[str, bytes | None]]

SOURCE_HEADER = "consentgate.source"
CONSENT_HEADER = "consentgate.consent"
POLICY_HEADER = "consentgate.policy"
_OWN_HEADERS = frozenset((SOURCE_HEADER, CONSENT_HEADER, POLICY_HEADER))
_ERRORS = "__connect.errors."

_EXPLANATIONS = {
    Reason.TOMBSTONE: "the record has no value",
    Reason.TOO_LARGE: "the value, the key or the headers are larger than the limits",
    Reason.UNDECODABLE: "the value is not UTF-8 JSON within the limit of depth",
    Reason.MISSING_FIELD: "a required field is missing, empty or of the wrong type",
    Reason.SUBJECT_MISMATCH: "the key is missing or is not the subject that the value names",
    Reason.BAD_TIMESTAMP: "the record's timestamp is too far in the future, or before 1970",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """What was fetched of one input partition: the offsets from `first` up to `next_offset`."""

    first: int
    next_offset: int
    records: Sequence[Record]
    unreadable: Sequence[int] = ()  # offsets that the client could not read at all

    def first_half(self) -> "Batch":
        """The part of the batch with the first half of its records, two at the least."""
        return self.before(self.records[len(self.records) // 2].offset)

    def before(self, offset: int) -> "Batch":
        """The part of the batch that lies below `offset`."""
        return Batch(
            self.first,
            min(self.next_offset, offset),
            [record for record in self.records if record.offset < offset],
            [lost for lost in self.unreadable if lost < offset],
        )


class Output(NamedTuple):
    """A record to be written. Timestamp in epoch milliseconds."""

    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What is to be committed, in one transaction, for one batch."""

    batch: Batch
    decided_at_ms: int
    frontier: Mapping[int, int]
    training: Sequence[Output]
    forwarded: Sequence[tuple[bytes, Record]]  # subject and record of each of `training`
    quarantine: Sequence[Output]
    retractions: Sequence[Output]
    retracted: Sequence[ConsentChange]  # one for each retraction
    entry: LedgerEntry
    decisions: Sequence[Decision]  # of the batch's records, then of its unreadable offsets
    counts: Mapping[Decision, int]


@dataclass(slots=True)
class Gate:
    """Decides the batches of one input partition against a consent table under a policy.

    The table is shared with whoever follows the consent topic; it must cover the high watermark
    that was read after the batch was fetched before `judge` is called.
    """

    chain: Chain
    consent_topic: str
    table: ConsentTable
    policy: Policy
    decode: ContentDecoder
    limits: Limits
    key_is_subject: bool
    _rules: RulesInForce | None = None
    _persons: dict[Holding | None, Person] | None = None

    def judge(
        self,
        batch: Batch,
        previous: str,
        now_ms: int,
        changes: Sequence[ConsentChange] = (),
    ) -> BatchOutcome:
        """Decide on every record of the batch, all at the moment `now_ms` (epoch milliseconds).

        `changes` are the consent changes since the last committed frontier; those that the table's
        frontier covers are retracted.
        """
        decide = self._decider(now_ms)
        frontier = dict(self.table.frontier)
        decisions: list[Decision] = []
        training: list[Output] = []
        forwarded: list[tuple[bytes, Record]] = []
        quarantine: list[Output] = []
        forward = self._forwarder(frontier)
        for record in batch.records:
            made = decide(record)
            decisions.append(made)
            verdict = made.reason.verdict
            if verdict is Verdict.FORWARD:
                training.append(forward(record, made))
                forwarded.append((self._subject(record), record))
            elif verdict is Verdict.QUARANTINE:
                quarantine.append(self._quarantined(record, made.reason, now_ms))
        offsets = [record.offset for record in batch.records]
        for offset in batch.unreadable:
            decisions.append(decision(Reason.UNDECODABLE, UNKNOWN_JURISDICTION))
            offsets.append(offset)
            quarantine.append(self._lost_to_the_client(offset, now_ms))
        facts = BatchFacts(
            first=batch.first,
            last=batch.next_offset - 1,
            decided_at_ms=now_ms,
            frontier=frontier,
            policy=self.policy.reference,
            offsets=offsets,
            decisions=decisions,
        )
        covered = [c for c in changes if c.offset < frontier[c.partition]]
        retracted = self.ineligible(covered, now_ms)
        return BatchOutcome(
            batch=batch,
            decided_at_ms=now_ms,
            frontier=frontier,
            training=training,
            forwarded=forwarded,
            quarantine=quarantine,
            retractions=[self._retraction(change, batch.first, now_ms) for change in retracted],
            retracted=retracted,
            entry=write_entry(self.chain, facts, previous),
            decisions=decisions,
            counts=Counter(decisions),
        )

    def is_overtaken(
        self, outcome: BatchOutcome, changes: Sequence[ConsentChange], now_ms: int
    ) -> bool:
        """Whether a record that the outcome forwards would be withheld if it were decided now.

        `changes` are those since the last committed frontier, up to the table's.
        """
        same_rules = self.policy.at(now_ms) is self.policy.at(outcome.decided_at_ms)
        newer = {c.subject for c in changes if c.offset >= outcome.frontier[c.partition]}
        if same_rules and not newer:
            return False
        decide = self._decider(now_ms)
        return any(
            decide(record).reason.verdict is not Verdict.FORWARD
            for subject, record in outcome.forwarded
            if subject in newer or not same_rules
        )

    def catch_up(
        self,
        next_offset: int,
        changes: Sequence[ConsentChange],
        frontier: Mapping[int, int],
        previous: str,
        now_ms: int,
    ) -> BatchOutcome:
        """No decisions: only the retractions of the changes below `frontier`.

        For a worker that comes back after a while, and advances its frontier in steps.
        """
        facts = BatchFacts(
            first=next_offset,
            last=next_offset - 1,
            decided_at_ms=now_ms,
            frontier=frontier,
            policy=self.policy.reference,
            offsets=(),
            decisions=(),
        )
        retracted = self.ineligible(changes, now_ms)
        return BatchOutcome(
            batch=Batch(next_offset, next_offset, ()),
            decided_at_ms=now_ms,
            frontier=frontier,
            training=(),
            forwarded=(),
            quarantine=(),
            retractions=[self._retraction(change, next_offset, now_ms) for change in retracted],
            retracted=retracted,
            entry=write_entry(self.chain, facts, previous),
            decisions=(),
            counts={},
        )

    def decide(self, record: Record, now_ms: int) -> Decision:
        """What one record comes to at a moment, epoch milliseconds; nothing is made of it."""
        return self._decider(now_ms)(record)

    def _subject(self, record: Record) -> bytes:
        """The subject of a record that is forwarded, and so can be read."""
        if self.key_is_subject:
            assert record.key is not None, "a forwarded record has its subject as key"
            return record.key
        assert record.value is not None, "a forwarded record has a value"
        event = self.decode(record.value)
        assert isinstance(event, ContentEvent), "a forwarded record can be decoded"
        return event.subject.encode()

    def ineligible(self, changes: Sequence[ConsentChange], now_ms: int) -> list[ConsentChange]:
        """The changes after which the person may not be used, though something may have left.

        Nothing has left of a subject that is longer than a key may be. To retract it all the same
        would take a record that no topic has room for, and so end every transaction.
        """
        person_of_holding = self._person_of_holding(now_ms)
        longest = self.limits.max_key_bytes
        return [
            change
            for change in changes
            if person_of_holding(change.after).rule is None and len(change.subject) <= longest
        ]

    def _retraction(self, change: ConsentChange, first: int, now_ms: int) -> Output:
        reason = self._person_of_holding(now_ms)(change.after).decision.reason
        # A subject that is not UTF-8 can have left in no readable record, but may have a key.
        retraction = {
            "subject": change.subject.decode(errors="replace"),
            "reason": str(reason),
            "consent": f"{self.consent_topic}-{change.partition}@{change.offset}",
            "before": f"{self.chain.topic}-{self.chain.partition}@{first}",
            "at": now_ms,
        }
        return Output(now_ms, change.subject, orjson.dumps(retraction), [])

    def _decider(self, now_ms: int) -> Callable[[Record], Decision]:
        person_of_holding = self._person_of_holding(now_ms)
        held = self.table.holdings.get
        decide = decide_by_key if self.key_is_subject else decide_by_subject

        def person_of(subject: bytes) -> Person:
            return person_of_holding(held(subject))

        def decide_or_withhold(record: Record) -> Decision:
            try:
                return decide(record, person_of, self.decode, self.limits, now_ms)
            except Exception:
                # Whatever it was, it is not a permission; the same record gives the same again.
                return decision(Reason.ERROR, UNKNOWN_JURISDICTION)

        return decide_or_withhold

    def _person_of_holding(self, now_ms: int) -> Callable[[Holding | None], Person]:
        rules = self.policy.at(now_ms)
        if rules is not self._rules or self._persons is None:
            self._rules, self._persons = rules, _Persons(rules)
        return self._persons.__getitem__

    def _forwarder(self, frontier: Mapping[int, int]) -> Callable[[Record, Decision], Output]:
        source = f"{self.chain.topic}-{self.chain.partition}@"
        policy = (POLICY_HEADER, self.policy.reference.encode())
        consent = {
            partition: (CONSENT_HEADER, f"{self.consent_topic}-{partition}@{offset}".encode())
            for partition, offset in frontier.items()
        }

        def forward(record: Record, made: Decision) -> Output:
            assert made.consent_partition is not None, "a forward rests on somebody's consent state"
            own: list[tuple[str, bytes | None]] = [
                (SOURCE_HEADER, f"{source}{record.offset}".encode()),
                consent[made.consent_partition],
                policy,
            ]
            headers: Headers = own
            if record.headers:
                headers = [h for h in record.headers if h[0] not in _OWN_HEADERS] + own
            return Output(record.timestamp, record.key, record.value, headers)

        return forward

    def _quarantined(self, record: Record, reason: Reason, now_ms: int) -> Output:
        # The quarantine's retention counts from the quarantining, hence not the record's time.
        headers = self._error_headers(record.offset, reason)
        oversized = is_too_large(record, self.limits)
        if not oversized and reason not in (Reason.TOO_LARGE, Reason.BAD_TIMESTAMP):
            came_with = [h for h in record.headers if not h[0].startswith(_ERRORS)]
            return Output(now_ms, record.key, record.value, [*came_with, *headers])
        value = record.value or b""
        headers.append(("consentgate.size", str(len(value)).encode()))
        headers.append(("consentgate.sha256", hashlib.sha256(value).hexdigest().encode()))
        key = record.key if len(record.key or b"") <= self.limits.max_key_bytes else None
        return Output(now_ms, key, None, headers)

    def _lost_to_the_client(self, offset: int, now_ms: int) -> Output:
        return Output(now_ms, None, None, self._error_headers(offset, Reason.UNDECODABLE))

    def _error_headers(self, offset: int, reason: Reason) -> list[tuple[str, bytes | None]]:
        facts = {
            "topic": self.chain.topic,
            "partition": str(self.chain.partition),
            "offset": str(offset),
            "connector.name": self.chain.group,
            "stage": "DECIDE" if reason is Reason.BAD_TIMESTAMP else "DECODE",
            "exception.class.name": str(reason),
            "exception.message": _EXPLANATIONS[reason],
        }
        return [(_ERRORS + name, value.encode()) for name, value in facts.items()]


class _Persons(dict[Holding | None, Person]):
    """What each state comes to under one moment's rules, judged when first asked for."""

    def __init__(self, rules: RulesInForce) -> None:
        super().__init__()
        self._rules = rules

    def __missing__(self, held: Holding | None) -> Person:
        person = self[held] = judge_person(held, self._rules)
        return person
