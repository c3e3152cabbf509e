"""The decision. Deny by default: only a rule in force that permits, and nothing less, forwards.

Precedence of the reasons: a tombstone; a missing key; what the person's state alone decides; what
is wrong with the record; what the rule asks of the content. So nobody's post is even decoded who
may not be used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from consentgate.core.consent import Holding
from consentgate.core.decode import ContentDecoder, ContentEvent
from consentgate.core.model import (
    UNKNOWN_JURISDICTION,
    UNREADABLE,
    Choice,
    Decision,
    Reason,
    Record,
    Verdict,
    decision,
)
from consentgate.core.policy import Basis, Rule, RulesInForce

_REFUSALS: dict[Choice | None, Reason] = {
    Choice.DENIED: Reason.OPTED_OUT,
    Choice.WITHDRAWN: Reason.WITHDRAWN,
    Choice.OBJECTED: Reason.OBJECTED,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a content record may be. Bytes, levels of brackets, milliseconds.

    `max_headers` bounds what frames the headers, at least two bytes each however empty they are;
    else a record within the other limits could grow beyond what the broker takes.
    """

    max_value_bytes: int = 900_000
    max_headers_bytes: int = 65_536
    max_headers: int = 4_096
    max_key_bytes: int = 65_536
    max_depth: int = 64
    max_future_ms: int = 3_600_000


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """What a consent state alone comes to under the rules in force at one moment."""

    decision: Decision
    rule: Rule | None  # what the content must meet; None where the person may not be used
    jurisdiction: str | None = None  # where it is known
    withheld: Decision | None = field(init=False)  # the decision, where the person may not be used

    def __post_init__(self) -> None:
        object.__setattr__(self, "withheld", self.decision if self.rule is None else None)

    def is_treated_like(self, other: "Person") -> bool:
        """Whether what goes on of both is transformed alike."""
        return self.rule is other.rule and self.jurisdiction == other.jurisdiction


NO_TIMESTAMP = -1

PersonOf = Callable[[bytes], Person]
"""Looks a subject up in the consent table and judges their state."""


def judge_person(held: Holding | None, rules: RulesInForce) -> Person:
    """Judge somebody by what the consent table holds of them, before any content is looked at."""
    if held is None:
        return _refused(Reason.NO_CONSENT_RECORD)
    state = held.state
    if state is UNREADABLE:
        return _refused(Reason.CONSENT_UNREADABLE)
    if state.jurisdiction is None:
        return _refused(Reason.JURISDICTION_UNKNOWN)
    found = rules.find(state.jurisdiction)
    if found is None:
        return _refused(Reason.NO_RULE)
    rule, label = found
    reason = choice_reason(rule.basis, state.choice)
    if reason.verdict is Verdict.FORWARD and rule.adults_only and state.adult is not True:
        reason = Reason.AGE_UNKNOWN if state.adult is None else Reason.MINOR
    permitted = reason.verdict is Verdict.FORWARD
    made = decision(reason, label, held.partition)
    return Person(made, rule if permitted else None, state.jurisdiction)


def judge_content(event: ContentEvent, rule: Rule) -> Reason | None:
    """The first condition of the rule that the content does not meet; None where all are met."""
    if rule.visibility is not None and event.visibility not in rule.visibility:
        return Reason.NOT_PUBLIC
    if rule.kinds is not None and event.kind not in rule.kinds:
        return Reason.KIND_NOT_COVERED
    if rule.created_from_ms is not None and event.created_at_ms < rule.created_from_ms:
        return Reason.OUTSIDE_DATES
    if rule.created_until_ms is not None and event.created_at_ms >= rule.created_until_ms:
        return Reason.OUTSIDE_DATES
    return None


def decide_by_key(
    record: Record, person_of: PersonOf, decode: ContentDecoder, limits: Limits, now_ms: int
) -> Decision:
    """Decide on a record whose key is its subject."""
    if record.value is None:
        return decision(Reason.TOMBSTONE, UNKNOWN_JURISDICTION)
    if record.key is None:
        return decision(Reason.SUBJECT_MISMATCH, UNKNOWN_JURISDICTION)
    person = person_of(record.key)
    if person.rule is None:
        return person.decision
    event = read_content(record, record.value, decode, limits)
    if isinstance(event, Reason):
        reason: Reason | None = event
    elif event.subject.encode() != record.key:
        reason = Reason.SUBJECT_MISMATCH
    elif has_bad_timestamp(record, limits, now_ms):
        reason = Reason.BAD_TIMESTAMP
    else:
        reason = judge_content(event, person.rule)
    return person.decision if reason is None else decision(reason, person.decision.label)


def decide_by_subject(
    record: Record, person_of: PersonOf, decode: ContentDecoder, limits: Limits, now_ms: int
) -> Decision:
    """Decide on a record that is keyed by something else: it must be read to know its subject."""
    if record.value is None:
        return decision(Reason.TOMBSTONE, UNKNOWN_JURISDICTION)
    event = read_content(record, record.value, decode, limits)
    if isinstance(event, ContentEvent) and len(event.subject.encode()) > limits.max_key_bytes:
        event = Reason.TOO_LARGE
    if isinstance(event, Reason):
        return decision(event, UNKNOWN_JURISDICTION)
    if has_bad_timestamp(record, limits, now_ms):
        return decision(Reason.BAD_TIMESTAMP, UNKNOWN_JURISDICTION)
    person = person_of(event.subject.encode())
    if person.rule is None:
        return person.decision
    reason = judge_content(event, person.rule)
    return person.decision if reason is None else decision(reason, person.decision.label)


def read_content(
    record: Record, value: bytes, decode: ContentDecoder, limits: Limits
) -> ContentEvent | Reason:
    """The event in the record's value, or what is wrong with the record."""
    if is_too_large(record, limits):
        return Reason.TOO_LARGE
    return decode(value)


def has_bad_timestamp(record: Record, limits: Limits, now_ms: int) -> bool:
    """Whether a broker would not take the record's timestamp, as things stand at the decision.

    -1 means that there is none. Others below 0 are refused by some topics, if not by all.
    """
    return record.timestamp > now_ms + limits.max_future_ms or record.timestamp < NO_TIMESTAMP


def is_too_large(record: Record, limits: Limits) -> bool:
    """Whether the value, the key or the headers go beyond the limits."""
    headers = record.headers
    return (
        len(record.value or b"") > limits.max_value_bytes
        or len(record.key or b"") > limits.max_key_bytes
        or len(headers) > limits.max_headers
        or (bool(headers) and headers_bytes(headers) > limits.max_headers_bytes)
    )


def headers_bytes(headers: Sequence[tuple[str, bytes | None]]) -> int:
    """Bytes of the names and values of the headers, in UTF-8."""
    return sum(len(name.encode()) + len(value or b"") for name, value in headers)


def choice_reason(basis: Basis, choice: Choice | None) -> Reason:
    """What a choice comes to under a basis, before anything else of the rule is looked at."""
    match basis:
        case Basis.SUSPENDED:
            return Reason.JURISDICTION_SUSPENDED
        case Basis.PROHIBITED:
            return Reason.JURISDICTION_PROHIBITED
        case Basis.OPT_IN if choice is None:
            return Reason.NOT_OPTED_IN
        case Basis.OPT_IN if choice is Choice.GRANTED:
            return Reason.OPTED_IN
        case Basis.OPT_OUT if choice is None or choice is Choice.GRANTED:
            return Reason.NOT_OPTED_OUT
    return _REFUSALS.get(choice, Reason.ERROR)


def _refused(reason: Reason) -> Person:
    return Person(decision(reason, UNKNOWN_JURISDICTION), rule=None)
