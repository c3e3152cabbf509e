"""Why a record is or is not forwarded, and what would change it.

The decision comes from the gate, and each condition is judged by the function with which the
decision judges it. So an explanation cannot say anything else than what is done; the assertion in
`explain` holds it to that.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from consentgate.core.decide import (
    choice_reason,
    has_bad_timestamp,
    is_too_large,
    judge_content,
)
from consentgate.core.decode import ContentEvent
from consentgate.core.document import shown
from consentgate.core.gate import Gate
from consentgate.core.model import (
    UNKNOWN_JURISDICTION,
    UNREADABLE,
    Choice,
    ConsentState,
    Decision,
    Reason,
    Record,
    Verdict,
    decision,
)
from consentgate.core.policy import Basis, Rule, utc_text

_AGES = {True: "an adult", False: "no adult", None: "not known"}

NOT_KNOWN = "cannot be told yet"
"""What is found where a condition depends on another one that is not met."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One of the things that must all be so for a record to be forwarded."""

    name: str
    wanted: str
    found: str
    met: bool | None  # None: cannot be told, for want of what it would be judged by
    remedy: str  # what would have to be, where it is not met


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the same record and state come to from a later moment on."""

    from_ms: int  # epoch milliseconds
    rule: Rule | None  # in force from then on for the person's country
    decision: Decision


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and all that led to it. It holds no ids and nothing of the body."""

    decision: Decision
    now_ms: int  # the moment of the decision, epoch milliseconds
    consent: ConsentState | None = None  # None: no record of the person; may be `UNREADABLE`
    holders: tuple[int, ...] = ()  # consent partitions that hold the person
    kind: str | None = None  # of the event, as the next two are; None: it cannot be read
    visibility: str | None = None
    created_at_ms: int | None = None
    rule: Rule | None = None  # in force for the person's country, where both are known
    conditions: tuple[Condition, ...] = ()
    threats: tuple[str, ...] = ()  # what would stop a record that is forwarded
    outlook: tuple[Outlook, ...] = ()  # what time alone will change

    @property
    def unmet(self) -> tuple[Condition, ...]:
        """The conditions that are not met; there are none exactly where it is forwarded."""
        return tuple(condition for condition in self.conditions if condition.met is False)

    @property
    def remedies(self) -> tuple[str, ...]:
        """What would have to be for the record to be forwarded; all of it, not one of it."""
        return tuple(condition.remedy for condition in self.unmet)


def explain(gate: Gate, record: Record, now_ms: int) -> Explanation:
    """Why the gate decides as it does on the record at a moment (epoch milliseconds)."""
    made = gate.decide(record, now_ms)
    if made.reason is Reason.ERROR:
        # What has failed in deciding would fail in explaining, too.
        return Explanation(made, now_ms, conditions=(_FAILED,))
    read = None if record.value is None else gate.decode(record.value)
    event = read if isinstance(read, ContentEvent) else None
    subject = _subject(gate, record, event)
    held = None if subject is None else gate.table.holdings.get(subject)
    state = None if held is None else held.state
    rule = _rule(gate, state, now_ms)
    holders = () if subject is None else tuple(gate.table.holders(subject))
    person = _PersonConditions(gate, state, holders, rule, now_ms, known=subject is not None)
    conditions = (
        *person.all(),
        *_record_conditions(gate, record, read, now_ms),
        *_content_conditions(event, rule),
        *_transformation(made.reason, rule),
    )
    explained = Explanation(
        decision=made,
        now_ms=now_ms,
        consent=state,
        holders=holders,
        kind=event.kind if event else None,
        visibility=event.visibility if event else None,
        created_at_ms=event.created_at_ms if event else None,
        rule=rule,
        conditions=conditions,
        threats=_threats(gate, rule) if rule and made.reason.verdict is Verdict.FORWARD else (),
        outlook=tuple(_outlook(gate, record, state, now_ms)),
    )
    forwarded = made.reason.verdict is Verdict.FORWARD
    assert forwarded is not bool(explained.unmet), f"{made.reason} against the conditions"
    return explained


def explain_unreadable(now_ms: int) -> Explanation:
    """Why a record is quarantined that the Kafka client cannot read at all."""
    made = decision(Reason.UNDECODABLE, UNKNOWN_JURISDICTION)
    return Explanation(made, now_ms, conditions=(_LOST,))


def moment_text(time_ms: int) -> str:
    """Epoch milliseconds in UTC; just the number where it is beyond the calendar."""
    try:
        return utc_text(time_ms)
    except OverflowError:
        return f"{time_ms} ms"


_FAILED = Condition(
    "evaluation",
    "a decision without an error",
    "an error, the same each time",
    met=False,
    remedy="the error would have to be mended: report it, with the version of consentgate",
)
_LOST = Condition(
    "headers",
    "names in UTF-8",
    "a name that is not",
    met=False,
    remedy="the post would have to be published again, with headers whose names are UTF-8",
)


def _subject(gate: Gate, record: Record, event: ContentEvent | None) -> bytes | None:
    if gate.key_is_subject:
        return record.key
    return event.subject.encode() if event else None


def _rule(gate: Gate, state: ConsentState | None, now_ms: int) -> Rule | None:
    """The rule in force for somebody; `UNREADABLE` has no country, and so none."""
    if state is None or state.jurisdiction is None:
        return None
    found = gate.policy.at(now_ms).find(state.jurisdiction)
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class _PersonConditions:
    """What the person's state has to be."""

    gate: Gate
    state: ConsentState | None
    holders: tuple[int, ...]
    rule: Rule | None
    now_ms: int
    known: bool  # whether it is known whose record it is

    def all(self) -> Iterator[Condition]:
        readable = None if self.state is UNREADABLE else self.state
        yield self._consent()
        yield self._jurisdiction(readable)
        yield self._in_force(readable)
        yield self._basis()
        yield self._choice(readable)
        if self.rule and self.rule.adults_only and readable:
            met = readable.adult is True
            remedy = "the consent record would have to say that the person is an adult"
            yield Condition("adults_only", "an adult", _AGES[readable.adult], met, remedy)

    def _consent(self) -> Condition:
        wanted = "a consent record that can be read"
        if not self.known:
            return Condition("consent", wanted, NOT_KNOWN, None, "")
        if self.state is None:
            remedy = "a consent record of the person would have to come, with their country in it"
            return Condition("consent", wanted, "none", False, remedy)
        if self.state is not UNREADABLE:
            return Condition("consent", wanted, "one", True, "")
        if len(self.holders) > 1:
            found = f"one in each of the partitions {', '.join(map(str, self.holders))}"
            remedy = "the person's records in all but one of these would have to be deleted"
            return Condition("consent", wanted, found, False, remedy)
        remedy = "a consent record of the person would have to follow that can be read"
        return Condition("consent", wanted, "one that cannot be read", False, remedy)

    def _jurisdiction(self, state: ConsentState | None) -> Condition:
        wanted = "a country, by its ISO 3166-1 code"
        if state is None:
            return Condition("jurisdiction", wanted, NOT_KNOWN, None, "")
        remedy = "the consent record would have to name the person's country by its ISO 3166-1 code"
        met = state.jurisdiction is not None
        return Condition("jurisdiction", wanted, state.jurisdiction or "none", met, remedy)

    def _in_force(self, state: ConsentState | None) -> Condition:
        if state is None or state.jurisdiction is None:
            return Condition("rule", "a rule in force", NOT_KNOWN, None, "")
        wanted = f"a rule in force for {state.jurisdiction}"
        if self.rule:
            return Condition("rule", wanted, f"the rule of line {self.rule.line}", True, "")
        moment = moment_text(self.now_ms)
        remedy = f"the policy would have to have a rule for {state.jurisdiction} at {moment}"
        return Condition("rule", wanted, "none", False, remedy)

    def _basis(self) -> Condition:
        wanted = "opt-in or opt-out"
        if self.rule is None:
            return Condition("basis", wanted, NOT_KNOWN, None, "")
        remedy = f"the rule of line {self.rule.line} would have to end, {_end(self.rule)}"
        return Condition("basis", wanted, str(self.rule.basis), _permits(self.rule), remedy)

    def _choice(self, state: ConsentState | None) -> Condition:
        rule, purpose = self.rule, self.gate.policy.purpose
        if state is None or rule is None:
            return Condition("choice", "what the basis asks for", NOT_KNOWN, None, "")
        found = str(state.choice) if state.choice else "none"
        if not _permits(rule):
            return Condition("choice", "none counts under this basis", found, None, "")
        met = choice_reason(rule.basis, state.choice).verdict is Verdict.FORWARD
        if rule.basis is Basis.OPT_IN:
            remedy = f"the person would have to grant {purpose}"
            return Condition("choice", "granted", found, met, remedy)
        remedy = f"the person would have to grant {purpose}, or no longer have a choice for it"
        return Condition("choice", "none, or granted", found, met, remedy)


def _permits(rule: Rule) -> bool:
    """Whether there is a choice at all with which the rule permits."""
    return choice_reason(rule.basis, Choice.GRANTED).verdict is Verdict.FORWARD


def _end(rule: Rule) -> str:
    if rule.until_ms is None:
        return "and no end is set"
    return f"which it does at {moment_text(rule.until_ms)}"


def _record_conditions(
    gate: Gate, record: Record, read: ContentEvent | Reason | None, now_ms: int
) -> Iterator[Condition]:
    """What the record has to be, whatever the rule."""
    again = "the post would have to be published again"
    value = "a value" if record.value is not None else "none"
    yield Condition("value", "a value", value, record.value is not None, f"{again}, with a value")
    yield _size(gate, record, read)
    wanted = "JSON with id, subject, kind, visibility and created_at"
    if read is None:
        yield Condition("content", wanted, NOT_KNOWN, None, "")
    else:
        is_event = isinstance(read, ContentEvent)
        remedy = f"{again}, as {wanted}"
        yield Condition(
            "content", wanted, "all of that" if is_event else str(read), is_event, remedy
        )
    if gate.key_is_subject:
        yield _key(record, read)
    met = not has_bad_timestamp(record, gate.limits, now_ms)
    latest = moment_text(now_ms + gate.limits.max_future_ms)
    found = moment_text(record.timestamp) if record.timestamp >= 0 else str(record.timestamp)
    remedy = f"{again}, with a timestamp of its time"
    yield Condition("timestamp", f"not later than {latest}", found, met, remedy)


def _size(gate: Gate, record: Record, read: ContentEvent | Reason | None) -> Condition:
    limits = gate.limits
    wanted = (
        f"value {limits.max_value_bytes:,} bytes, key {limits.max_key_bytes:,}, headers "
        f"{limits.max_headers_bytes:,} at most"
    )
    value, key = len(record.value or b""), len(record.key or b"")
    met = not is_too_large(record, limits)
    if not gate.key_is_subject and isinstance(read, ContentEvent):
        met = met and len(read.subject.encode()) <= limits.max_key_bytes
    found = f"value {value:,} bytes, key {key:,}, {len(record.headers):,} headers"
    return Condition("size", wanted, found, met, "the post would have to be published smaller")


def _key(record: Record, read: ContentEvent | Reason | None) -> Condition:
    wanted = "the subject that the value names"
    remedy = "the post would have to be published again, keyed by its subject"
    if record.key is None:
        return Condition("key", wanted, "none", False, remedy)
    if not isinstance(read, ContentEvent):
        return Condition("key", wanted, NOT_KNOWN, None, "")
    met = read.subject.encode() == record.key
    return Condition("key", wanted, "the same" if met else "another one", met, remedy)


def _content_conditions(event: ContentEvent | None, rule: Rule | None) -> Iterator[Condition]:
    """What the rule asks of the content; each is judged as if it were the rule's only one."""
    if rule is None:
        return
    parts = []
    if rule.visibility is not None:
        only = Rule(rule.jurisdictions, rule.basis, visibility=rule.visibility)
        wanted = f"one of {', '.join(map(shown, sorted(rule.visibility)))}"
        found = shown(event.visibility) if event else NOT_KNOWN
        parts.append(("visibility", wanted, found, only))
    if rule.kinds is not None:
        only = Rule(rule.jurisdictions, rule.basis, kinds=rule.kinds)
        wanted = f"one of {', '.join(map(shown, sorted(rule.kinds)))}"
        parts.append(("kinds", wanted, shown(event.kind) if event else NOT_KNOWN, only))
    created = moment_text(event.created_at_ms) if event else NOT_KNOWN
    if rule.created_from_ms is not None:
        only = Rule(rule.jurisdictions, rule.basis, created_from_ms=rule.created_from_ms)
        wanted = f"{moment_text(rule.created_from_ms)} or later"
        parts.append(("created_from", wanted, created, only))
    if rule.created_until_ms is not None:
        only = Rule(rule.jurisdictions, rule.basis, created_until_ms=rule.created_until_ms)
        wanted = f"before {moment_text(rule.created_until_ms)}"
        parts.append(("created_until", wanted, created, only))
    for name, wanted, found, only in parts:
        met = None if event is None else judge_content(event, only) is None
        yield Condition(name, wanted, found, met, f"{_ATTRIBUTES[name]} would have to be {wanted}")


def _transformation(reason: Reason, rule: Rule | None) -> Iterator[Condition]:
    """Whether what the rule makes of content can be made of it."""
    if rule is None or not rule.transforms:
        return
    asked = [f"the fields {', '.join(rule.fields)}"] if rule.fields else []
    asked += [f"{', '.join(rule.redact)} redacted"] if rule.redact else []
    asked += ["a pseudonym"] if rule.pseudonymize else []
    tried = reason.verdict is Verdict.FORWARD or reason is Reason.REDACTION_FAILED
    met = reason is not Reason.REDACTION_FAILED if tried else None
    found = {True: "made", False: "cannot be made", None: NOT_KNOWN}[met]
    remedy = "the body would have to be one of which that can be made, within the size limit"
    yield Condition("transformation", "; ".join(asked), found, met, remedy)


_ATTRIBUTES = {
    "visibility": "the record's visibility",
    "kinds": "the record's kind",
    "created_from": "the record's created_at",
    "created_until": "the record's created_at",
}


def _threats(gate: Gate, rule: Rule) -> tuple[str, ...]:
    """What would stop a record of somebody under this rule, as far as the person's state goes."""
    purpose = gate.policy.purpose
    threats = [
        f"the person denies {purpose}, withdraws, or objects",
        "their consent record is deleted, or one follows that cannot be read",
        "they move to a country whose rule does not permit it, or their country is not known",
    ]
    if rule.basis is Basis.OPT_IN:
        threats[0] = f"the person denies {purpose}, withdraws, objects, or has no choice any more"
    if rule.adults_only:
        threats.append("their record no longer says that they are an adult")
    return tuple(threats)


def _outlook(
    gate: Gate, record: Record, state: ConsentState | None, now_ms: int
) -> Iterator[Outlook]:
    """The later moments at which another rule holds for the person, or the timestamp is due."""
    moments = set()
    if has_bad_timestamp(record, gate.limits, now_ms) and record.timestamp > now_ms:
        moments.add(record.timestamp - gate.limits.max_future_ms)
    rules, rule = gate.policy.at(now_ms), _rule(gate, state, now_ms)
    while rules.until_ms is not None:
        changes_ms = rules.until_ms
        rules, following = gate.policy.at(changes_ms), _rule(gate, state, changes_ms)
        if following is not rule:
            moments.add(changes_ms)
        rule = following
    for from_ms in sorted(moments):
        yield Outlook(from_ms, _rule(gate, state, from_ms), gate.decide(record, from_ms))
