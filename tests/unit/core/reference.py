"""The decision once more: slow, obvious, and written from the specification alone.

It shares data types with the product and no code. Where the two disagree, one of them has
misread the specification. `BY_KEY` and `BY_SUBJECT` are the precedence of the reasons.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from consentgate.core.countries import COUNTRIES
from consentgate.core.decide import Limits
from consentgate.core.decode import ContentEvent, ContentFields
from consentgate.core.model import UNREADABLE, Choice, ConsentState, Reason, Record, consent_state
from consentgate.core.policy import Basis, Policy, Rule

# JSON, strictly.


class Pairs(list[tuple[str, Any]]):
    """A JSON object as it stands: all members, repeated ones too."""


MISSING = object()


def strict_json(value: bytes, max_depth: int) -> Any:
    """The document, objects as `Pairs`; a `ValueError` where it is none."""
    document = json.loads(value.decode(), parse_constant=_refuse, object_pairs_hook=Pairs)
    for part, depth in parts_of(document):
        if isinstance(part, list) and depth > max_depth:
            raise ValueError("too deep")
        if isinstance(part, str):
            part.encode()  # Half of a surrogate pair is no character; this raises.
    return document


def parts_of(part: Any, depth: int = 1) -> Iterator[tuple[Any, int]]:
    """Every value and every key of a document, with its level."""
    yield part, depth
    if isinstance(part, Pairs):
        for name, value in part:
            yield name, depth
            yield from parts_of(value, depth + 1)
    elif isinstance(part, list):
        for value in part:
            yield from parts_of(value, depth + 1)


def member(document: Any, path: str) -> Any:
    """The last member at a dotted path."""
    for name in path.split("."):
        found = [v for k, v in document if k == name] if isinstance(document, Pairs) else []
        document = found[-1] if found else MISSING
    return document


def _refuse(constant: str) -> None:
    raise ValueError(constant)


# Content events.

TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d{1,6})?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)


def read_content(value: bytes, fields: ContentFields, max_depth: int) -> ContentEvent | Reason:
    """The event, or why there is none."""
    try:
        document = strict_json(value, max_depth)
    except ValueError:
        return Reason.UNDECODABLE
    paths = (fields.id, fields.subject, fields.kind, fields.visibility)
    texts = [member(document, path) for path in paths]
    created_at_ms = moment(member(document, fields.created_at))
    if created_at_ms is None or not all(isinstance(text, str) and text for text in texts):
        return Reason.MISSING_FIELD
    id_, subject, kind, visibility = texts
    return ContentEvent(id_, subject, kind, visibility, created_at_ms)


def moment(value: Any) -> int | None:
    """Epoch milliseconds of a zoned RFC 3339 string or an integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    *numbers, fraction, sign, zone_hours, zone_minutes = match.groups()
    try:
        local = datetime(*map(int, numbers))  # type: ignore[arg-type]  # noqa: DTZ001
    except ValueError:
        return None
    since = local - datetime(1970, 1, 1)  # noqa: DTZ001
    milliseconds = int(((fraction or ".") + "000")[1:4])
    minutes_ahead = 0
    if sign:
        if int(zone_hours) > 23 or int(zone_minutes) > 59:
            return None
        minutes_ahead = int(sign + "1") * (60 * int(zone_hours) + int(zone_minutes))
    return (since.days * 86_400 + since.seconds - 60 * minutes_ahead) * 1000 + milliseconds


# Consent records.


def read_consent(key: bytes, value: bytes, purpose: str, max_depth: int) -> ConsentState:
    """The state; `UNREADABLE` where the record cannot be trusted."""
    try:
        document = strict_json(value, max_depth)
    except ValueError:
        return UNREADABLE
    objects = [part for part, _ in parts_of(document) if isinstance(part, Pairs)]
    if not isinstance(document, Pairs) or any(_repeats(each) for each in objects):
        return UNREADABLE
    known = dict(document)
    subject, country, adult = (known.get(k) for k in ("subject", "jurisdiction", "adult"))
    choices = known.get("choices", Pairs())
    trusted = (
        isinstance(subject, str)
        and subject.encode() == key != b""
        and (country is None or isinstance(country, str))
        and (adult is None or isinstance(adult, bool))
        and isinstance(choices, Pairs)
        and all(isinstance(entry, Pairs) for _, entry in choices)
        and all(dict(entry).get("choice") in list(Choice) for _, entry in choices)
    )
    if not trusted:
        return UNREADABLE
    chosen = [dict(entry)["choice"] for name, entry in choices if name == purpose]
    return consent_state(
        country if country in COUNTRIES else None, adult, Choice(chosen[0]) if chosen else None
    )


def _repeats(members: Pairs) -> bool:
    return len({name for name, _ in members}) < len(members)


# The decision.


@dataclass(frozen=True)
class Case:
    """One record, and all that its decision depends on."""

    record: Record
    states: Mapping[bytes, Mapping[int, ConsentState]]
    """Of each subject the state that each consent partition holds."""
    policy: Policy
    now_ms: int
    limits: Limits
    key_is_subject: bool = True

    @cached_property
    def event(self) -> ContentEvent | Reason:
        return read_content(self.record.value or b"", ContentFields(), self.limits.max_depth)

    @cached_property
    def subject(self) -> bytes:
        if self.key_is_subject:
            return self.record.key or b""
        assert isinstance(self.event, ContentEvent)
        return self.event.subject.encode()

    @cached_property
    def held(self) -> Mapping[int, ConsentState]:
        return self.states.get(self.subject, {})

    @cached_property
    def state(self) -> ConsentState:
        return next(iter(self.held.values()))

    @cached_property
    def rule_and_label(self) -> tuple[Rule, str] | None:
        country = self.state.jurisdiction
        everywhere = [
            (rule, label, member)
            for rule in self.policy.rules
            for label in rule.jurisdictions
            for member in self.policy.groups.get(label, {label})
        ]
        named = any(member == country for _, _, member in everywhere)
        for rule, label, member in everywhere:
            begun = rule.from_ms is None or rule.from_ms <= self.now_ms
            over = rule.until_ms is not None and rule.until_ms <= self.now_ms
            if member == (country if named else "*") and begun and not over:
                return rule, label
        return None

    @property
    def rule(self) -> Rule:
        assert self.rule_and_label is not None
        return self.rule_and_label[0]

    @property
    def created_at_ms(self) -> int:
        assert isinstance(self.event, ContentEvent)
        return self.event.created_at_ms


Applies = Callable[[Case], bool]
Precedence = list[tuple[Reason, Applies]]


def chose(*choices: Choice | None) -> Applies:
    return lambda case: case.state.choice in choices


def basis(*bases: Basis) -> Applies:
    return lambda case: case.rule.basis in bases


def in_content(name: str, condition: str) -> Applies:
    def applies(case: Case) -> bool:
        covered = getattr(case.rule, condition)
        return covered is not None and getattr(case.event, name) not in covered

    return applies


def no_value(case: Case) -> bool:
    return case.record.value is None


def no_key(case: Case) -> bool:
    return case.record.key is None


def too_large(case: Case) -> bool:
    record, limits = case.record, case.limits
    if isinstance(case.event, ContentEvent) and not case.key_is_subject:
        named = len(case.event.subject.encode()) > limits.max_key_bytes
    else:
        named = False
    headers = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    return (
        named
        or len(record.value or b"") > limits.max_value_bytes
        or len(record.key or b"") > limits.max_key_bytes
        or len(record.headers) > limits.max_headers
        or headers > limits.max_headers_bytes
    )


def names_another_subject(case: Case) -> bool:
    assert isinstance(case.event, ContentEvent)
    return case.key_is_subject and case.event.subject.encode() != case.record.key


def outside_dates(case: Case) -> bool:
    start, end = case.rule.created_from_ms, case.rule.created_until_ms
    return (start is not None and case.created_at_ms < start) or (
        end is not None and case.created_at_ms >= end
    )


OF_THE_PERSON: Precedence = [
    (Reason.NO_CONSENT_RECORD, lambda case: not case.held),
    (Reason.CONSENT_UNREADABLE, lambda case: len(case.held) > 1 or case.state is UNREADABLE),
    (Reason.JURISDICTION_UNKNOWN, lambda case: case.state.jurisdiction is None),
    (Reason.NO_RULE, lambda case: case.rule_and_label is None),
    (Reason.JURISDICTION_SUSPENDED, basis(Basis.SUSPENDED)),
    (Reason.JURISDICTION_PROHIBITED, basis(Basis.PROHIBITED)),
    (Reason.OPTED_OUT, chose(Choice.DENIED)),
    (Reason.WITHDRAWN, chose(Choice.WITHDRAWN)),
    (Reason.OBJECTED, chose(Choice.OBJECTED)),
    (Reason.NOT_OPTED_IN, lambda case: basis(Basis.OPT_IN)(case) and chose(None)(case)),
    (Reason.MINOR, lambda case: case.rule.adults_only and case.state.adult is False),
    (Reason.AGE_UNKNOWN, lambda case: case.rule.adults_only and case.state.adult is None),
]
OF_THE_RECORD: Precedence = [
    (Reason.TOO_LARGE, too_large),
    (Reason.UNDECODABLE, lambda case: case.event is Reason.UNDECODABLE),
    (Reason.MISSING_FIELD, lambda case: case.event is Reason.MISSING_FIELD),
    (Reason.SUBJECT_MISMATCH, names_another_subject),
    (
        Reason.BAD_TIMESTAMP,
        lambda case: (
            case.record.timestamp < -1
            or case.record.timestamp - case.now_ms > case.limits.max_future_ms
        ),
    ),
]
OF_THE_CONTENT: Precedence = [
    (Reason.NOT_PUBLIC, in_content("visibility", "visibility")),
    (Reason.KIND_NOT_COVERED, in_content("kind", "kinds")),
    (Reason.OUTSIDE_DATES, outside_dates),
]
PERMITTED: Precedence = [
    (Reason.OPTED_IN, basis(Basis.OPT_IN)),
    (Reason.NOT_OPTED_OUT, basis(Basis.OPT_OUT)),
]

BY_KEY: Precedence = [
    (Reason.TOMBSTONE, no_value),
    (Reason.SUBJECT_MISMATCH, no_key),
    *OF_THE_PERSON,
    *OF_THE_RECORD,
    *OF_THE_CONTENT,
    *PERMITTED,
]
"""Where the key is the subject. The first reason that applies is given."""

BY_SUBJECT: Precedence = [
    (Reason.TOMBSTONE, no_value),
    *OF_THE_RECORD,
    *OF_THE_PERSON,
    *OF_THE_CONTENT,
    *PERMITTED,
]
"""Where the key is something else: the subject is known only when the content has been read."""


@dataclass(frozen=True)
class Expected:
    """What the product must decide."""

    reason: Reason
    label: str
    consent_partition: int | None


def decide(case: Case) -> Expected:
    """The first reason that applies, and what it is counted under."""
    precedence = BY_KEY if case.key_is_subject else BY_SUBJECT
    place, reason = next((i, r) for i, (r, applies) in enumerate(precedence) if applies(case))
    places = {name: i for i, (name, _) in enumerate(precedence)}
    # Until a rule has been found, there is nothing to count under.
    if place <= places[Reason.NO_RULE]:
        return Expected(reason, "unknown", None)
    assert case.rule_and_label is not None
    by_state = [*OF_THE_PERSON, *PERMITTED]
    partition = next(iter(case.held)) if reason in {name for name, _ in by_state} else None
    return Expected(reason, case.rule_and_label[1], partition)
