"""An explanation says what is decided, leaves nothing out, and what it asks for is enough."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings

from consentgate.core.consent import ConsentTable
from consentgate.core.decode import ContentEvent
from consentgate.core.explain import Condition, Explanation, explain, explain_unreadable
from consentgate.core.gate import Gate
from consentgate.core.ledger import Chain
from consentgate.core.model import (
    UNREADABLE,
    Choice,
    ConsentState,
    Reason,
    Verdict,
    consent_state,
    decision,
)
from consentgate.core.policy import Basis, Policy
from unit.core.reference import Case
from unit.core.test_decide import (
    EVENT,
    LIMITS,
    NOW_MS,
    OPT_IN,
    OPT_OUT,
    Content,
    cases,
    decode,
    event,
    made,
    policy,
    rule,
)

POST = Content()
US = consent_state("US", True, Choice.GRANTED)


def gate_of(case: Case) -> Gate:
    table = ConsentTable(range(10))
    for subject, held in case.states.items():
        for partition, state in held.items():
            table.apply(partition, subject, state)
    chain = Chain("g", "content-events", 3)
    return Gate(
        chain, "consent-state", table, case.policy, decode, case.limits, case.key_is_subject
    )


def explained(case: Case) -> Explanation:
    return explain(gate_of(case), case.record, case.now_ms)


def why(
    record: Content = POST,
    state: ConsentState | None = US,
    rules: Policy = OPT_OUT,
    now_ms: int = NOW_MS,
    *,
    key_is_subject: bool = True,
) -> Explanation:
    """The explanation for a record of m1, whose consent partition 3 holds."""
    states = {} if state is None else {b"m1": {3: state}}
    return explained(Case(record, states, rules, now_ms, LIMITS, key_is_subject))


def by_name(explanation: Explanation) -> Mapping[str, Condition]:
    return {condition.name: condition for condition in explanation.conditions}


def unmet(explanation: Explanation) -> list[str]:
    return [condition.name for condition in explanation.unmet]


# For all cases that the decision's own tests draw.


@settings(max_examples=300)
@given(cases())
def test_it_says_what_is_decided(case: Case) -> None:
    assert explained(case).decision is made(case)


@settings(max_examples=300)
@given(cases())
def test_no_condition_is_unmet_exactly_where_it_is_forwarded(case: Case) -> None:
    explanation = explained(case)
    forwarded = explanation.decision.reason.verdict is Verdict.FORWARD
    assert forwarded is (not explanation.unmet)
    assert forwarded is all(condition.met for condition in explanation.conditions)
    assert forwarded is bool(explanation.threats)
    assert len(by_name(explanation)) == len(explanation.conditions)


ON_THE_RECORD = {"value", "size", "content", "key", "timestamp"}


@settings(max_examples=300)
@given(cases())
def test_what_is_not_met_mended_gives_a_forward_and_nothing_less_does(case: Case) -> None:
    # A policy file in which nothing lies between these two is refused.
    for each in case.policy.rules:
        start_ms, end_ms = each.created_from_ms, each.created_until_ms
        assume(start_ms is None or end_ms is None or start_ms < end_ms)
    explanation = explained(case)
    missing = [c.name for c in explanation.conditions if c.met is not True]
    assert made(mended(case, missing)).reason.verdict is Verdict.FORWARD
    # To publish a post again mends more than one thing, and so does what others depend on.
    if missing == unmet(explanation) and not ON_THE_RECORD.intersection(missing):
        for left_out in unmet(explanation):
            partly = mended(case, [name for name in missing if name != left_out])
            assert made(partly).reason.verdict is not Verdict.FORWARD, left_out


@settings(max_examples=300)
@given(cases())
def test_the_outlook_is_what_will_be_decided(case: Case) -> None:
    gate, explanation = gate_of(case), explained(case)
    now_ms, current = case.now_ms, explanation.decision
    for ahead in explanation.outlook:
        assert ahead.from_ms > now_ms
        assert gate.decide(case.record, ahead.from_ms - 1) is current
        assert gate.decide(case.record, ahead.from_ms) is ahead.decision
        now_ms, current = ahead.from_ms, ahead.decision
    assert gate.decide(case.record, 1_000) is current


def mended(case: Case, names: list[str]) -> Case:
    """The case with what these conditions ask for, and everything else as it was."""
    mending = Mending(case)
    for name in names:
        getattr(mending, name)()
    return mending.mended()


class Mending:
    """Makes one condition after the other true, as its remedy says."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._key = case.record.key
        self._timestamp = case.record.timestamp
        self._limits = case.limits
        self._policy = case.policy
        read = None if case.record.value is None else decode(case.record.value)
        self._event = dict(EVENT)
        self._put_anew = False
        if isinstance(read, ContentEvent):
            fields = msgspec.structs.asdict(read)
            self._event |= {**fields, "created_at": fields.pop("created_at_ms")}
        explanation = explained(case)
        self._state = self._was = explanation.consent
        self._rule = explanation.rule

    def mended(self) -> Case:
        record = self._case.record
        value = json.dumps(self._event).encode() if self._put_anew else record.value
        states = dict(self._case.states)
        if self._state is not self._was:
            assert self._state is not None
            subject = self._key if self._case.key_is_subject else None
            states[subject or self._event["subject"].encode()] = {0: self._state}
        return Case(
            Content(value, self._key, self._timestamp, record.headers),
            states,
            self._policy,
            self._case.now_ms,
            self._limits,
            self._case.key_is_subject,
        )

    def consent(self) -> None:
        self._state = consent_state(None, None, None)

    def jurisdiction(self) -> None:
        assert self._state is not None
        self._state = consent_state("US", self._state.adult, self._state.choice)

    def rule(self) -> None:
        self._policy = OPT_OUT

    def basis(self) -> None:
        if self._rule is not None:
            lifted = dataclasses.replace(self._rule, basis=Basis.OPT_OUT)
            rules = tuple(lifted if r is self._rule else r for r in self._policy.rules)
            self._policy = Policy("p", "ai-training", self._policy.groups, rules)

    def choice(self) -> None:
        assert self._state is not None
        self._state = consent_state(self._state.jurisdiction, self._state.adult, Choice.GRANTED)

    def adults_only(self) -> None:
        assert self._state is not None
        self._state = consent_state(self._state.jurisdiction, True, self._state.choice)

    def value(self) -> None:
        self._put()

    def content(self) -> None:
        self._put()

    def size(self) -> None:
        self._limits = dataclasses.replace(LIMITS, max_future_ms=self._limits.max_future_ms)

    def key(self) -> None:
        if self._key not in self._case.states:
            self._key = b"m1"
        self._put(subject=self._key.decode())

    def timestamp(self) -> None:
        self._timestamp = self._case.now_ms

    def visibility(self) -> None:
        assert self._rule is not None
        assert self._rule.visibility is not None
        self._put(visibility=min(self._rule.visibility))

    def kinds(self) -> None:
        assert self._rule is not None
        assert self._rule.kinds is not None
        self._put(kind=min(self._rule.kinds))

    def created_from(self) -> None:
        assert self._rule is not None
        self._put(created_at=self._rule.created_from_ms)

    def created_until(self) -> None:
        assert self._rule is not None
        assert self._rule.created_until_ms is not None
        self._put(created_at=self._rule.created_until_ms - 1)

    def _put(self, **fields: Any) -> None:
        self._event |= fields
        self._put_anew = True
        self.size()


# One case of each kind.


def test_every_condition_is_named_not_only_the_first() -> None:
    rules = policy(
        rule(
            Basis.OPT_IN,
            adults_only=True,
            visibility=frozenset({"public"}),
            kinds=frozenset({"article"}),
            created_from_ms=NOW_MS + 1,
            created_until_ms=NOW_MS + 2,
        )
    )
    state = consent_state("US", False, Choice.DENIED)
    friends = Content(event(visibility="friends"), headers=[("h", b"x" * 70_000)])
    explanation = why(friends, state, rules)
    assert explanation.decision.reason is Reason.OPTED_OUT
    assert unmet(explanation) == [
        "choice",
        "adults_only",
        "size",
        "visibility",
        "kinds",
        "created_from",
    ]
    assert len(explanation.remedies) == 6
    assert "the person would have to grant ai-training" in explanation.remedies
    assert "the record's visibility would have to be one of 'public'" in explanation.remedies


def test_a_suspension_says_when_it_ends_and_what_holds_then() -> None:
    until_ms = NOW_MS + 86_400_000
    rules = policy(
        rule(Basis.SUSPENDED, "US", until_ms=until_ms, line=7),
        rule(Basis.OPT_OUT, "US", from_ms=until_ms, line=12),
    )
    explanation = why(rules=rules)
    assert unmet(explanation) == ["basis"]
    assert explanation.remedies == (
        "the rule of line 7 would have to end, which it does at 2024-09-21T10:00:00.000Z",
    )
    (ahead,) = explanation.outlook
    assert (ahead.from_ms, ahead.rule) == (until_ms, rules.rules[1])
    assert ahead.decision.reason is Reason.NOT_OPTED_OUT


def test_a_forward_says_what_would_stop_it_and_when_a_rule_does() -> None:
    rules = policy(
        rule(Basis.OPT_IN, until_ms=NOW_MS + 1, adults_only=True),
        rule(Basis.SUSPENDED, from_ms=NOW_MS + 1),
    )
    explanation = why(rules=rules)
    assert explanation.remedies == ()
    assert len(explanation.threats) == 4
    (ahead,) = explanation.outlook
    assert ahead.decision.reason is Reason.JURISDICTION_SUSPENDED


def test_a_gap_between_two_rules_is_told() -> None:
    rules = policy(rule(Basis.OPT_OUT, "US", until_ms=NOW_MS), rule(Basis.OPT_OUT, "FR"))
    explanation = why(rules=rules)
    assert unmet(explanation) == ["rule"]
    assert explanation.remedies == (
        "the policy would have to have a rule for US at 2024-09-20T10:00:00.000Z",
    )
    assert explanation.outlook == ()


def test_an_unknown_person_is_told_from_one_who_cannot_be_read() -> None:
    assert by_name(why(state=None))["consent"].found == "none"
    assert by_name(why(state=UNREADABLE))["consent"].found == "one that cannot be read"
    states = {b"m1": {2: US, 5: US}}
    scattered = explained(Case(Content(), states, OPT_OUT, NOW_MS, LIMITS))
    assert scattered.holders == (2, 5)
    assert by_name(scattered)["consent"].found == "one in each of the partitions 2, 5"


def test_a_timestamp_ahead_of_time_comes_of_age() -> None:
    late_ms = NOW_MS + LIMITS.max_future_ms + 10
    explanation = why(Content(timestamp=late_ms))
    assert unmet(explanation) == ["timestamp"]
    (ahead,) = explanation.outlook
    assert ahead.from_ms == NOW_MS + 10
    assert ahead.decision.reason is Reason.NOT_OPTED_OUT


def test_times_beyond_the_calendar_are_told_as_numbers() -> None:
    rules = policy(rule(Basis.OPT_OUT, created_until_ms=NOW_MS))
    explanation = why(Content(event(created_at=1 << 60)), rules=rules)
    assert by_name(explanation)["created_until"].found == f"{1 << 60} ms"
    assert unmet(why(Content(timestamp=1 << 60))) == ["timestamp"]


def test_where_it_cannot_be_known_whose_it_is_the_person_is_left_open() -> None:
    explanation = why(Content(b"{}"), key_is_subject=False)
    assert unmet(explanation) == ["content"]
    assert by_name(explanation)["consent"].met is None
    assert "key" not in by_name(explanation)


def test_an_error_in_deciding_is_an_unmet_condition() -> None:
    def fail(value: bytes) -> Any:
        raise ZeroDivisionError

    gate = gate_of(Case(Content(), {b"m1": {3: US}}, OPT_IN, NOW_MS, LIMITS))
    gate.decode = fail
    explanation = explain(gate, Content(), NOW_MS)
    assert explanation.decision.reason is Reason.ERROR
    assert unmet(explanation) == ["evaluation"]


def test_what_the_client_cannot_read_is_told_as_that() -> None:
    explanation = explain_unreadable(NOW_MS)
    assert explanation.decision is decision(Reason.UNDECODABLE, "unknown")
    assert unmet(explanation) == ["headers"]


def test_nothing_of_the_body_and_no_id_is_in_an_explanation() -> None:
    secret = event(id="id-of-the-event", subject="m1-of-all", body={"text": "hush"})
    for record in (Content(secret), Content(secret, key=b"m1-of-all")):
        told = repr(why(record)) + repr(why(record, key_is_subject=False))
        assert not any(word in told for word in ("id-of-the-event", "m1-of-all", "hush"))


def test_contradicting_conditions_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = gate_of(Case(Content(), {}, OPT_OUT, NOW_MS, LIMITS))
    forward = decision(Reason.NOT_OPTED_OUT, "*", 3)
    monkeypatch.setattr(Gate, "decide", lambda *_: forward)
    with pytest.raises(AssertionError, match="against the conditions"):
        explain(gate, Content(), NOW_MS)
