"""One batch in, one frozen outcome out: what is forwarded, what is quarantined, and the entry."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

import orjson

from consentgate.core.consent import ConsentChange, ConsentTable, Holding
from consentgate.core.decide import (
    Limits,
    Person,
    decide_by_key,
    decide_by_subject,
    headers_bytes,
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
from consentgate.core.transform import Transformer, Work

Headers = list[tuple[str, bytes | None]]

SOURCE_HEADER = "consentgate.source"
CONSENT_HEADER = "consentgate.consent"
POLICY_HEADER = "consentgate.policy"
REDRIVEN_HEADER = "consentgate.redriven"
SIZE_HEADER = "consentgate.size"
OWN_HEADERS = frozenset((SOURCE_HEADER, CONSENT_HEADER, POLICY_HEADER, REDRIVEN_HEADER))
"""Headers of these names do not go on as they came."""

ERRORS_PREFIX = "__connect.errors."

_key_of = attrgetter("key")
_value_of = attrgetter("value")
_offset_of = attrgetter("offset")
_withheld_of = attrgetter("withheld")

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


Forwarded = tuple[bytes, Record, Person | None]
"""Subject, record, and what the subject's state came to where the policy transforms at all."""

Forwarder = Callable[[Record, Decision], tuple[Output, Forwarded] | None]
"""What leaves of a record that may go on; None where nothing may leave all the same."""

WorkKey = tuple[int, Person]
"""The offset of a record, and what the state of its subject came to when it was transformed."""


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What is to be committed, in one transaction, for one batch."""

    batch: Batch
    decided_at_ms: int
    frontier: Mapping[int, int]
    training: Sequence[Output]
    forwarded: Sequence[Forwarded]  # one for each of `training`
    quarantine: Sequence[Output]
    retractions: Sequence[Output]
    retracted: Sequence[ConsentChange]  # each has a retraction for each form of its subject
    entry: LedgerEntry
    decisions: Sequence[Decision]  # of the batch's records, then of its unreadable offsets
    counts: Mapping[Decision, int]
    value_bytes: int  # of the batch's records


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
    transformer: Transformer = field(default_factory=Transformer)
    _rules: RulesInForce | None = None
    _persons: dict[Holding | None, Person] | None = None

    def foresee(self, batch: Batch, now_ms: int) -> dict[WorkKey, Work]:
        """What there is to redact as things stand, so that it can be done before, and elsewhere.

        It decides nothing: `judge` does what is missing itself.
        """
        if not self.policy.transforms:
            return {}
        decide, work = self._decider(now_ms), {}
        for record in batch.records:
            if decide(record).reason.verdict is Verdict.FORWARD:
                person, to_do = self._work(record, now_ms)
                if to_do.rule.redact:
                    work[record.offset, person] = to_do
        return work

    def foresees_alike(self, then_ms: int, now_ms: int) -> bool:
        """Whether what was foreseen at one moment was so by the rules that hold at the other."""
        return not self.policy.transforms or self.policy.at(then_ms) is self.policy.at(now_ms)

    def judge(
        self,
        batch: Batch,
        previous: str,
        now_ms: int,
        changes: Sequence[ConsentChange] = (),
        transformed: Mapping[WorkKey, bytes | None] = MappingProxyType({}),
    ) -> BatchOutcome:
        """Decide on every record of the batch, all at the moment `now_ms` (epoch milliseconds).

        `changes` are the consent changes since the last committed frontier; those that the table's
        frontier covers are retracted. `transformed` is what was foreseen and done; None as a
        value means that it could not be done.
        """
        frontier = dict(self.table.frontier)
        training: list[Output] = []
        forwarded: list[Forwarded] = []
        quarantine: list[Output] = []
        decide = self._decider(now_ms)
        forward = self._forwarder(frontier, now_ms, transformed)

        def look_at(record: Record) -> Decision:
            made = decide(record)
            verdict = made.reason.verdict
            if verdict is Verdict.FORWARD:
                left = forward(record, made)
                if left is None:
                    return decision(Reason.REDACTION_FAILED, made.label)
                training.append(left[0])
                forwarded.append(left[1])
            elif verdict is Verdict.QUARANTINE:
                quarantine.append(self._quarantined(record, made.reason, now_ms))
            return made

        values = list(map(_value_of, batch.records))
        withheld = self._withheld_by_key(batch.records, values, now_ms)
        decisions = [
            made or look_at(record) for record, made in zip(batch.records, withheld, strict=True)
        ]
        offsets = list(map(_offset_of, batch.records))
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
            retractions=self._retractions(retracted, batch.first, now_ms),
            retracted=retracted,
            entry=write_entry(self.chain, facts, previous),
            decisions=decisions,
            counts=Counter(decisions),
            value_bytes=sum(map(len, filter(None, values))),
        )

    def is_overtaken(
        self, outcome: BatchOutcome, changes: Sequence[ConsentChange], now_ms: int
    ) -> bool:
        """Whether a record that the outcome forwards would be withheld, or treated otherwise, if it
        were decided now.

        `changes` are those since the last committed frontier, up to the table's.
        """
        same_rules = self.policy.at(now_ms) is self.policy.at(outcome.decided_at_ms)
        newer = {c.subject for c in changes if c.offset >= outcome.frontier[c.partition]}
        if same_rules and not newer:
            return False
        decide, person_of = self._decider(now_ms), self._person_of(now_ms)
        return any(
            decide(record).reason.verdict is not Verdict.FORWARD
            or (person is not None and not person.is_treated_like(person_of(subject)))
            for subject, record, person in outcome.forwarded
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
            retractions=self._retractions(retracted, next_offset, now_ms),
            retracted=retracted,
            entry=write_entry(self.chain, facts, previous),
            decisions=(),
            counts={},
            value_bytes=0,
        )

    def decide(self, record: Record, now_ms: int) -> Decision:
        """What one record comes to at a moment, epoch milliseconds, with all that is made of it."""
        return self.outcome(record, now_ms)[0]

    def outcome(self, record: Record, now_ms: int) -> tuple[Decision, Output | None]:
        """What one record comes to at a moment, epoch milliseconds, and what goes on of it."""
        made = self._decider(now_ms)(record)
        if made.reason.verdict is not Verdict.FORWARD:
            return made, None
        left = self._forwarder(self.table.frontier, now_ms, {})(record, made)
        if left is None:
            return decision(Reason.REDACTION_FAILED, made.label), None
        return made, left[0]

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

    def _retractions(
        self, changes: Sequence[ConsentChange], first: int, now_ms: int
    ) -> list[Output]:
        """One for each form under which something of the subject may have left."""
        person_of_holding = self._person_of_holding(now_ms)
        return [
            self._retraction(change, form, person_of_holding(change.after), first, now_ms)
            for change in changes
            for form in self.transformer.pseudonyms.forms(change.subject)
        ]

    def _retraction(
        self, change: ConsentChange, form: bytes, person: Person, first: int, now_ms: int
    ) -> Output:
        # A subject that is not UTF-8 can have left in no readable record, but may have a key.
        retraction = {
            "subject": form.decode(errors="replace"),
            "reason": str(person.decision.reason),
            "consent": f"{self.consent_topic}-{change.partition}@{change.offset}",
            "before": f"{self.chain.topic}-{self.chain.partition}@{first}",
            "changed_at": change.timestamp_ms,
            "at": now_ms,
        }
        return Output(now_ms, form, orjson.dumps(retraction), [])

    def _work(self, record: Record, now_ms: int) -> tuple[Person, Work]:
        """What is to be done with a record that is forwarded, and whose state asks for it."""
        subject = self._subject(record)
        person = self._person_of(now_ms)(subject)
        assert person.rule is not None, "a forwarded record has a rule that permits"
        assert record.value is not None, "a forwarded record has a value"
        return person, Work(record.value, subject, person.rule, person.jurisdiction)

    def _transforming(
        self, forward: Forwarder, now_ms: int, transformed: Mapping[WorkKey, bytes | None]
    ) -> Forwarder:
        """Forwards what the rules make of records; not at all where that cannot be made."""
        shown = self.transformer.subject_or_pseudonym

        def transform(record: Record, made: Decision) -> tuple[Output, Forwarded] | None:
            try:
                person, work = self._work(record, now_ms)
                key = record.offset, person
                value = transformed[key] if key in transformed else self.transformer.value(work)
                left = forward(record, made)
                if left is None or value is None or len(value) > self.limits.max_value_bytes:
                    return None
                output = left[0]
                headers = [(name, shown(found, work)) for name, found in output.headers]
                came_with = [header for header in headers if header[0] not in OWN_HEADERS]
                if headers_bytes(came_with) > self.limits.max_headers_bytes:
                    return None  # A pseudonym can be far longer than what it stands for.
                changed = Output(output.timestamp_ms, shown(output.key, work), value, headers)
                return changed, (work.subject, record, person)
            except Exception:
                # Whatever it was, what should not be seen may still be in there.
                return None

        return transform

    def _withheld_by_key(
        self, records: Sequence[Record], values: Sequence[bytes | None], now_ms: int
    ) -> list[Decision | None]:
        """What the states of the subjects alone decide, all in one go; None where more counts."""
        keys = list(map(_key_of, records))
        if not (self.key_is_subject and all(keys) and all(values)):
            return [None] * len(records)
        persons = map(self._person_of_holding(now_ms), map(self.table.holdings.get, keys))
        return list(map(_withheld_of, persons))

    def _decider(self, now_ms: int) -> Callable[[Record], Decision]:
        person_of = self._person_of(now_ms)
        decide = decide_by_key if self.key_is_subject else decide_by_subject

        def decide_or_withhold(record: Record) -> Decision:
            try:
                return decide(record, person_of, self.decode, self.limits, now_ms)
            except Exception:
                # Whatever it was, it is not a permission; the same record gives the same again.
                return decision(Reason.ERROR, UNKNOWN_JURISDICTION)

        return decide_or_withhold

    def _person_of(self, now_ms: int) -> Callable[[bytes], Person]:
        person_of_holding = self._person_of_holding(now_ms)
        held = self.table.holdings.get

        def person_of(subject: bytes) -> Person:
            return person_of_holding(held(subject))

        return person_of

    def _person_of_holding(self, now_ms: int) -> Callable[[Holding | None], Person]:
        rules = self.policy.at(now_ms)
        if rules is not self._rules or self._persons is None:
            self._rules, self._persons = rules, _Persons(rules)
        return self._persons.__getitem__

    def _forwarder(
        self,
        frontier: Mapping[int, int],
        now_ms: int,
        transformed: Mapping[WorkKey, bytes | None],
    ) -> Forwarder:
        forward = self._forwarding(frontier)
        return (
            self._transforming(forward, now_ms, transformed) if self.policy.transforms else forward
        )

    def _forwarding(self, frontier: Mapping[int, int]) -> Forwarder:
        source = f"{self.chain.topic}-{self.chain.partition}@".encode()
        policy = (POLICY_HEADER, self.policy.reference.encode())
        consent = {
            partition: (CONSENT_HEADER, f"{self.consent_topic}-{partition}@{offset}".encode())
            for partition, offset in frontier.items()
        }

        def forward(record: Record, made: Decision) -> tuple[Output, Forwarded]:
            assert made.consent_partition is not None, "a forward rests on somebody's consent state"
            headers: Headers = [
                (SOURCE_HEADER, b"%b%d" % (source, record.offset)),
                consent[made.consent_partition],
                policy,
            ]
            if record.headers:
                headers = [h for h in record.headers if h[0] not in OWN_HEADERS] + headers
            output = Output(record.timestamp, record.key, record.value, headers)
            return output, (self._subject(record), record, None)

        return forward

    def _quarantined(self, record: Record, reason: Reason, now_ms: int) -> Output:
        # The quarantine's retention counts from the quarantining, hence not the record's time.
        headers = self._error_headers(record.offset, reason)
        oversized = is_too_large(record, self.limits)
        if not oversized and reason not in (Reason.TOO_LARGE, Reason.BAD_TIMESTAMP):
            # How often it was redriven stays with it, so that it does not go round for ever.
            came_with = [h for h in record.headers if not h[0].startswith(ERRORS_PREFIX)]
            return Output(now_ms, record.key, record.value, [*came_with, *headers])
        value = record.value or b""
        headers.append((SIZE_HEADER, str(len(value)).encode()))
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
        return [(ERRORS_PREFIX + name, value.encode()) for name, value in facts.items()]


class _Persons(dict[Holding | None, Person]):
    """What each state comes to under one moment's rules, judged when first asked for."""

    def __init__(self, rules: RulesInForce) -> None:
        super().__init__()
        self._rules = rules

    def __missing__(self, held: Holding | None) -> Person:
        person = self[held] = judge_person(held, self._rules)
        return person
