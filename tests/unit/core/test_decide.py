"""The decision: agreement with the reference, and each reason and its rank as a theorem."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.consent import ConsentTable, holding
from consentgate.core.decide import (
    Limits,
    Person,
    decide_by_key,
    decide_by_subject,
    headers_bytes,
    judge_person,
)
from consentgate.core.decode import ContentFields, content_decoder
from consentgate.core.model import (
    UNREADABLE,
    Choice,
    ConsentState,
    Decision,
    Reason,
    consent_state,
)
from consentgate.core.policy import Basis, Policy, Rule
from unit.core.reference import BY_KEY, BY_SUBJECT, Case, Expected
from unit.core.reference import decide as reference

NOW_MS = 1_726_826_400_000
LIMITS = Limits()
EVENT: dict[str, Any] = {
    "id": "e1",
    "subject": "m1",
    "kind": "post",
    "visibility": "public",
    "created_at": NOW_MS,
    "body": {"text": "hello"},
}
decode = content_decoder(ContentFields(), LIMITS.max_depth)


@dataclass(frozen=True)
class Content:
    """A consumed record, eligible in itself."""

    value: bytes | None = json.dumps(EVENT).encode()
    key: bytes | None = b"m1"
    timestamp: int = NOW_MS
    headers: Sequence[tuple[str, bytes | None]] = ()
    offset: int = 0


def event(**changes: Any) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


def rule(basis: Basis, *jurisdictions: str, **conditions: Any) -> Rule:
    return Rule(jurisdictions or ("*",), basis, **conditions)


def policy(*rules: Rule) -> Policy:
    return Policy("p", "ai-training", {"EEA": frozenset({"FR", "NO"})}, rules)


OPT_OUT = policy(rule(Basis.OPT_OUT))
OPT_IN = policy(rule(Basis.OPT_IN))
GB = consent_state("GB", True, None)


def person_of(
    states: Mapping[bytes, Mapping[int, ConsentState]], rules: Policy, now_ms: int
) -> Any:
    table = ConsentTable(range(10))
    for subject, held in states.items():
        for partition, state in held.items():
            table.apply(partition, subject, state)

    def look_up(subject: bytes) -> Person:
        return judge_person(table.holdings.get(subject), rules.at(now_ms))

    return look_up


def made(case: Case) -> Decision:
    decide = decide_by_key if case.key_is_subject else decide_by_subject
    look_up = person_of(case.states, case.policy, case.now_ms)
    return decide(case.record, look_up, decode, case.limits, case.now_ms)


def decided(
    record: Content = Content(),
    state: ConsentState | None = GB,
    rules: Policy = OPT_OUT,
    now_ms: int = NOW_MS,
    limits: Limits = LIMITS,
    *,
    key_is_subject: bool = True,
) -> Decision:
    """The decision on a record of m1, whose consent partition 3 holds."""
    states = {} if state is None else {b"m1": {3: state}}
    return made(Case(record, states, rules, now_ms, limits, key_is_subject))


# Agreement with the reference. Drawn are cases with few flaws, so that each reason has its chance,
# and everything is close to a limit that it could cross.

GROUPS = {"BENELUX": frozenset({"BE", "NL"})}
LABELS = ("BENELUX", "GB", "US", "*")
COUNTRIES = ("BE", "NL", "GB", "US", "FR", "RE")
SUBJECTS = ("m1", "m2", "ü")
FLAWS = ("value", "key", "holders", "state", "rules", "conditions", "size", "timestamp")

TIMES = st.integers(0, 12)
EDGES = st.sampled_from([None, None, None, *range(13)])
CHOICES = st.sampled_from([None, *Choice])
AGES = st.sampled_from([True, False, None])
ANY_STATE = st.just(UNREADABLE) | st.builds(
    consent_state, st.sampled_from([*COUNTRIES, None]), AGES, CHOICES
)
GOOD_STATE = st.builds(
    consent_state, st.sampled_from(COUNTRIES), st.just(True), st.just(Choice.GRANTED)
)
ANY_CONDITIONS = st.fixed_dictionaries(
    {
        "adults_only": st.booleans(),
        "visibility": st.sampled_from([None, frozenset({"friends"}), frozenset({"public"})]),
        "kinds": st.sampled_from([None, frozenset({"post"}), frozenset({"article", "like"})]),
        "created_from_ms": EDGES,
        "created_until_ms": EDGES,
    }
)
GOOD_CONDITIONS = st.fixed_dictionaries(
    {"adults_only": st.booleans(), "visibility": st.none() | st.just(frozenset({"public"}))}
)
ANY_BASIS = st.sampled_from([None, *Basis])
GOOD_BASIS = st.sampled_from([Basis.OPT_IN, Basis.OPT_OUT])
BROKEN = [b"", b"\xff", b"{}", b"[" * 65 + b"]" * 65, b"NaN", b'{"id": 1}', None]


@st.composite
def policies(draw: st.DrawFn, flaws: set[str]) -> Policy:
    """Each label has a row of stretches of time, with a rule or without one."""
    rules = []
    labels = st.sets(st.sampled_from(LABELS)) if "rules" in flaws else st.just(LABELS)
    for label in draw(labels):
        edges = [None, *sorted(draw(st.sets(TIMES, max_size=2))), None]
        for start, end in pairwise(edges):
            basis = draw(ANY_BASIS if "rules" in flaws else GOOD_BASIS)
            conditions = draw(ANY_CONDITIONS if "conditions" in flaws else GOOD_CONDITIONS)
            if basis is not None:
                rules.append(Rule((label,), basis, start, end, **conditions))
    return Policy("p", "ai-training", GROUPS, tuple(draw(st.permutations(rules))))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Everything that a decision depends on."""
    flaws = draw(st.sets(st.sampled_from(FLAWS), max_size=2))
    subject = draw(st.sampled_from(SUBJECTS))
    changes = {"subject": subject, "created_at": draw(st.integers(-1, 13))}
    if "conditions" in flaws:
        changes["kind"] = draw(st.sampled_from(["post", "article"]))
    value = draw(st.sampled_from(BROKEN)) if "value" in flaws else event(**changes)
    key: bytes | None = subject.encode()
    if "key" in flaws:
        key = draw(st.sampled_from([b"m1", b"m2", b"", b"\xfc", None]))
    headers = draw(st.lists(st.sampled_from([("a", b"xx"), ("ü", None), ("", b"")]), max_size=3))
    now_ms = draw(st.integers(-1, 13))
    max_future_ms = draw(st.sampled_from([0, 5]))
    surplus = 1 if "timestamp" in flaws else draw(st.sampled_from([0, -1, -100]))
    room = [draw(st.integers(-1 if "size" in flaws else 0, 1)) for _ in range(4)]
    limits = Limits(
        max_value_bytes=max(0, len(value or b"") + room[0]),
        max_key_bytes=max(0, len(key or b"") + room[1]),
        max_headers=max(0, len(headers) + room[2]),
        max_headers_bytes=max(0, headers_bytes(headers) + room[3]),
        max_future_ms=max_future_ms,
    )
    state = ANY_STATE if "state" in flaws else GOOD_STATE
    least, most = (0, 3) if "holders" in flaws else (1, 1)
    holders = st.dictionaries(st.integers(0, 5), state, min_size=least, max_size=most)
    states = {name.encode(): draw(holders) for name in SUBJECTS}
    record = Content(value, key, now_ms + max_future_ms + surplus, headers)
    return Case(record, states, draw(policies(flaws)), now_ms, limits, draw(st.booleans()))


@settings(max_examples=700)
@given(cases())
def test_every_decision_is_the_one_of_the_reference(case: Case) -> None:
    decision = made(case)
    assert Expected(decision.reason, decision.label, decision.consent_partition) == reference(case)


@settings(max_examples=100)
@given(cases())
def test_a_decision_depends_on_nothing_else(case: Case) -> None:
    assert made(case) is made(case)


# The theorems: each reason.


def forbidding(record: Content = Content(), **changes: Any) -> Reason:
    return decided(record, **changes).reason


def test_opting_in_permits_under_opt_in() -> None:
    granted = consent_state("GB", None, Choice.GRANTED)
    assert forbidding(state=granted, rules=OPT_IN) is Reason.OPTED_IN


def test_the_basis_not_the_choice_picks_the_reason_to_forward() -> None:
    granted = consent_state("GB", None, Choice.GRANTED)
    assert forbidding(state=granted, rules=OPT_OUT) is Reason.NOT_OPTED_OUT


def test_silence_permits_under_opt_out_and_forbids_under_opt_in() -> None:
    assert forbidding(rules=OPT_OUT) is Reason.NOT_OPTED_OUT
    assert forbidding(rules=OPT_IN) is Reason.NOT_OPTED_IN


@pytest.mark.parametrize("rules", [OPT_IN, OPT_OUT])
@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (Choice.DENIED, Reason.OPTED_OUT),
        (Choice.WITHDRAWN, Reason.WITHDRAWN),
        (Choice.OBJECTED, Reason.OBJECTED),
    ],
)
def test_a_no_forbids_under_either_basis(rules: Policy, choice: Choice, reason: Reason) -> None:
    assert forbidding(state=consent_state("GB", True, choice), rules=rules) is reason


@pytest.mark.parametrize("choice", [None, *Choice])
@pytest.mark.parametrize(
    ("basis", "reason"),
    [
        (Basis.SUSPENDED, Reason.JURISDICTION_SUSPENDED),
        (Basis.PROHIBITED, Reason.JURISDICTION_PROHIBITED),
    ],
)
def test_suspension_and_prohibition_beat_every_choice(
    basis: Basis, reason: Reason, choice: Choice | None
) -> None:
    rules = policy(rule(basis, adults_only=True))
    for adult in (True, False, None):
        assert forbidding(state=consent_state("GB", adult, choice), rules=rules) is reason


def test_suspension_beats_grant() -> None:
    granted = consent_state("FR", True, Choice.GRANTED)
    rules = policy(rule(Basis.SUSPENDED, "EEA"), rule(Basis.OPT_IN))
    assert forbidding(state=granted, rules=rules) is Reason.JURISDICTION_SUSPENDED


def test_an_unknown_person_is_not_used() -> None:
    assert forbidding(state=None) is Reason.NO_CONSENT_RECORD
    assert forbidding(Content(key=b"m2")) is Reason.NO_CONSENT_RECORD
    assert forbidding(Content(key=b"")) is Reason.NO_CONSENT_RECORD


def test_an_unreadable_consent_record_permits_nothing() -> None:
    assert forbidding(state=UNREADABLE) is Reason.CONSENT_UNREADABLE


def test_a_person_in_two_partitions_is_not_used() -> None:
    states = {b"m1": {0: GB, 1: GB}}
    assert made(Case(Content(), states, OPT_OUT, NOW_MS, LIMITS)).reason is (
        Reason.CONSENT_UNREADABLE
    )


def test_an_unknown_jurisdiction_is_not_everywhere_else() -> None:
    nowhere = consent_state(None, True, Choice.GRANTED)
    assert forbidding(state=nowhere) is Reason.JURISDICTION_UNKNOWN


def test_without_a_rule_in_force_nothing_is_permitted() -> None:
    rules = policy(rule(Basis.OPT_OUT, "GB", until_ms=NOW_MS), rule(Basis.OPT_OUT))
    assert forbidding(rules=rules, now_ms=NOW_MS - 1) is Reason.NOT_OPTED_OUT
    assert forbidding(rules=rules) is Reason.NO_RULE


def test_a_rule_begins_to_permit_at_its_from_and_ends_before_its_until() -> None:
    rules = policy(rule(Basis.OPT_OUT, from_ms=NOW_MS, until_ms=NOW_MS + 10))
    reasons = [forbidding(rules=rules, now_ms=NOW_MS + late) for late in (-1, 0, 9, 10)]
    permitted = [reason is Reason.NOT_OPTED_OUT for reason in reasons]
    assert permitted == [False, True, True, False]


ADULTS = policy(rule(Basis.OPT_OUT, adults_only=True))


def test_a_minor_is_not_used_where_only_adults_are() -> None:
    assert forbidding(state=consent_state("GB", False, None), rules=ADULTS) is Reason.MINOR
    assert forbidding(state=consent_state("GB", False, None)) is Reason.NOT_OPTED_OUT


def test_unknown_age_is_not_an_adult() -> None:
    assert forbidding(state=consent_state("GB", None, None), rules=ADULTS) is Reason.AGE_UNKNOWN
    assert forbidding(state=consent_state("GB", True, None), rules=ADULTS) is Reason.NOT_OPTED_OUT


def test_only_covered_visibilities_and_kinds_are_used() -> None:
    covered = frozenset({"public", "post"})
    public = policy(rule(Basis.OPT_OUT, visibility=covered))
    posts = policy(rule(Basis.OPT_OUT, kinds=covered))
    assert forbidding(rules=public) is Reason.NOT_OPTED_OUT
    assert forbidding(rules=posts) is Reason.NOT_OPTED_OUT
    for other in ("Public", "friends", "publi"):
        assert forbidding(Content(event(visibility=other)), rules=public) is Reason.NOT_PUBLIC
    for other in ("Post", "article", "post "):
        assert forbidding(Content(event(kind=other)), rules=posts) is Reason.KIND_NOT_COVERED


def test_created_from_is_included_and_created_until_is_excluded() -> None:
    rules = policy(rule(Basis.OPT_OUT, created_from_ms=100, created_until_ms=200))
    outcomes = {
        at: forbidding(Content(event(created_at=at)), rules=rules) for at in (99, 100, 199, 200)
    }
    assert outcomes == {
        99: Reason.OUTSIDE_DATES,
        100: Reason.NOT_OPTED_OUT,
        199: Reason.NOT_OPTED_OUT,
        200: Reason.OUTSIDE_DATES,
    }


def test_the_dates_are_of_the_content_not_of_the_record_or_the_decision() -> None:
    rules = policy(rule(Basis.OPT_OUT, created_from_ms=100))
    old = Content(event(created_at="1970-01-01T00:00:00.099Z"))
    assert forbidding(old, rules=rules) is Reason.OUTSIDE_DATES
    new = Content(event(created_at="1970-01-01T01:00:00.100+01:00"), timestamp=0)
    assert forbidding(new, rules=rules) is Reason.NOT_OPTED_OUT


def test_a_tombstone_is_quarantined() -> None:
    assert decided(Content(value=None)) == decided(Content(value=None, key=None))
    assert forbidding(Content(value=None)) is Reason.TOMBSTONE
    assert forbidding(Content(value=b"")) is Reason.UNDECODABLE


def test_a_record_without_a_key_has_no_subject() -> None:
    assert forbidding(Content(key=None)) is Reason.SUBJECT_MISMATCH


def test_a_record_of_another_subject_than_its_key_is_quarantined() -> None:
    assert forbidding(Content(event(subject="m2"))) is Reason.SUBJECT_MISMATCH
    assert forbidding(Content(event(subject="M1"))) is Reason.SUBJECT_MISMATCH
    assert forbidding(Content(event(subject="m1 "))) is Reason.SUBJECT_MISMATCH


def test_a_key_of_other_bytes_is_another_subject() -> None:
    states = {key: {0: GB} for key in (b"\xfc", "ü".encode())}
    right, wrong = "ü".encode(), b"\xfc"
    for key, reason in ((right, Reason.NOT_OPTED_OUT), (wrong, Reason.SUBJECT_MISMATCH)):
        case = Case(Content(event(subject="ü"), key), states, OPT_OUT, NOW_MS, LIMITS)
        assert made(case).reason is reason


def test_what_cannot_be_read_is_quarantined() -> None:
    assert forbidding(Content(b"\xff")) is Reason.UNDECODABLE
    assert forbidding(Content(event(id=""))) is Reason.MISSING_FIELD


def test_the_limits_are_as_documented() -> None:
    assert (LIMITS.max_value_bytes, LIMITS.max_headers_bytes) == (900_000, 65_536)
    assert (LIMITS.max_depth, LIMITS.max_future_ms) == (64, 3_600_000)
    # Beside a value of that size a broker's default leaves room for these.
    assert (LIMITS.max_key_bytes, LIMITS.max_headers) == (65_536, 4_096)


def test_a_value_is_too_large_only_beyond_the_limit() -> None:
    size = len(event())
    assert forbidding(limits=replace(LIMITS, max_value_bytes=size)) is Reason.NOT_OPTED_OUT
    assert forbidding(limits=replace(LIMITS, max_value_bytes=size - 1)) is Reason.TOO_LARGE


@pytest.mark.parametrize("name", ["h", "ü"])
def test_headers_are_too_large_only_beyond_the_limit_of_all_their_bytes(name: str) -> None:
    rest = LIMITS.max_headers_bytes - 1_000 - 2 * len(name.encode())
    fits = [(name, b"x" * rest), (name, None), ("x" * 1_000, b"")]
    assert headers_bytes(fits) == LIMITS.max_headers_bytes
    assert forbidding(Content(headers=fits)) is Reason.NOT_OPTED_OUT
    assert forbidding(Content(headers=[*fits, ("", b"x")])) is Reason.TOO_LARGE


def test_headers_without_any_bytes_are_too_large_in_great_numbers() -> None:
    # On the wire each of them costs two bytes, which no limit of names and values counts.
    headers: list[tuple[str, bytes | None]] = [("", None)] * LIMITS.max_headers
    assert forbidding(Content(headers=headers)) is Reason.NOT_OPTED_OUT
    assert forbidding(Content(headers=[*headers, ("", None)])) is Reason.TOO_LARGE


def test_a_key_is_too_large_only_beyond_the_limit() -> None:
    for surplus, reason in ((0, Reason.NOT_OPTED_OUT), (1, Reason.TOO_LARGE)):
        name = "m" * (LIMITS.max_key_bytes + surplus)
        record = Content(event(subject=name), name.encode())
        case = Case(record, {name.encode(): {0: GB}}, OPT_OUT, NOW_MS, LIMITS)
        assert made(case).reason is reason


def test_a_timestamp_is_bad_only_beyond_the_limit() -> None:
    latest_ms = NOW_MS + LIMITS.max_future_ms
    assert forbidding(Content(timestamp=latest_ms)) is Reason.NOT_OPTED_OUT
    assert forbidding(Content(timestamp=latest_ms + 1)) is Reason.BAD_TIMESTAMP
    assert forbidding(Content(timestamp=0)) is Reason.NOT_OPTED_OUT
    # -1 stands for none at all. What lies below it a broker might refuse.
    assert forbidding(Content(timestamp=-1)) is Reason.NOT_OPTED_OUT
    assert forbidding(Content(timestamp=-2)) is Reason.BAD_TIMESTAMP


# The theorems: what a decision is counted under.


def test_a_forwarding_names_the_partition_that_holds_the_consent() -> None:
    decision = decided()
    assert (decision.label, decision.consent_partition) == ("*", 3)


def test_a_decision_is_counted_under_the_name_by_which_the_rule_found_the_person() -> None:
    rules = policy(rule(Basis.SUSPENDED, "EEA", "GB"), rule(Basis.OPT_OUT))
    labels = {
        country: decided(state=consent_state(country, True, None), rules=rules).label
        for country in ("FR", "NO", "GB", "US", None)
    }
    assert labels == {"FR": "EEA", "NO": "EEA", "GB": "GB", "US": "*", None: "unknown"}


def test_what_is_wrong_with_a_record_is_counted_under_its_owners_jurisdiction() -> None:
    decision = decided(Content(b"\xff"))
    assert (decision.label, decision.consent_partition) == ("*", None)


def test_a_record_without_value_or_key_is_counted_as_unknown() -> None:
    for record in (Content(value=None), Content(key=None), Content(None, None)):
        decision = decided(record)
        assert (decision.label, decision.consent_partition) == ("unknown", None)


# The theorems: which reason comes first. Each flaw gives its reason alone, and pairs of flaws give
# the reason of the one that comes first.


@dataclass(frozen=True)
class Flaws:
    """Changes that make a record, its owner, or the rule forbid."""

    record: dict[str, Any] = field(default_factory=dict)
    value: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)

    def __or__(self, other: "Flaws") -> "Flaws":
        return Flaws(
            self.record | other.record,
            self.value | other.value,
            self.state | other.state,
            self.rule | other.rule,
        )

    def case(self, *, key_is_subject: bool) -> Case:
        value = json.dumps({**EVENT, **self.value}).encode()
        state = {"jurisdiction": "GB", "adult": True, "choice": Choice.GRANTED, **self.state}
        holders = state.pop("holders", None)
        states = {b"m1": {3: consent_state(**state)} if holders is None else holders}
        covering: dict[str, Any] = {
            "jurisdictions": ("*",),
            "basis": Basis.OPT_OUT,
            "adults_only": True,
        }
        rules = policy(Rule(**(covering | self.rule)))
        record = Content(**({"value": value} | self.record))
        return Case(record, states, rules, NOW_MS, LIMITS, key_is_subject)


RANKED: list[tuple[str, Reason, Flaws]] = [
    ("a tombstone", Reason.TOMBSTONE, Flaws(record={"value": None})),
    ("a missing key", Reason.SUBJECT_MISMATCH, Flaws(record={"key": None})),
    ("no consent record", Reason.NO_CONSENT_RECORD, Flaws(state={"holders": {}})),
    (
        "unreadable consent",
        Reason.CONSENT_UNREADABLE,
        Flaws(state={"holders": {3: UNREADABLE}}),
    ),
    ("an unknown jurisdiction", Reason.JURISDICTION_UNKNOWN, Flaws(state={"jurisdiction": None})),
    ("no rule", Reason.NO_RULE, Flaws(rule={"jurisdictions": ("FR",)})),
    ("suspension", Reason.JURISDICTION_SUSPENDED, Flaws(rule={"basis": Basis.SUSPENDED})),
    ("prohibition", Reason.JURISDICTION_PROHIBITED, Flaws(rule={"basis": Basis.PROHIBITED})),
    ("denial", Reason.OPTED_OUT, Flaws(state={"choice": Choice.DENIED})),
    ("withdrawal", Reason.WITHDRAWN, Flaws(state={"choice": Choice.WITHDRAWN})),
    ("objection", Reason.OBJECTED, Flaws(state={"choice": Choice.OBJECTED})),
    (
        "silence under opt-in",
        Reason.NOT_OPTED_IN,
        Flaws(state={"choice": None}, rule={"basis": Basis.OPT_IN}),
    ),
    ("being a minor", Reason.MINOR, Flaws(state={"adult": False})),
    ("an unknown age", Reason.AGE_UNKNOWN, Flaws(state={"adult": None})),
    (
        "too large a record",
        Reason.TOO_LARGE,
        Flaws(record={"headers": [("h", b"x" * LIMITS.max_headers_bytes)]}),
    ),
    ("undecodable content", Reason.UNDECODABLE, Flaws(value={"body": float("nan")})),
    ("a missing field", Reason.MISSING_FIELD, Flaws(value={"id": None})),
    ("another subject", Reason.SUBJECT_MISMATCH, Flaws(value={"subject": "m2"})),
    (
        "a bad timestamp",
        Reason.BAD_TIMESTAMP,
        Flaws(record={"timestamp": NOW_MS + LIMITS.max_future_ms + 1}),
    ),
    ("not being public", Reason.NOT_PUBLIC, Flaws(rule={"visibility": frozenset({"friends"})})),
    ("another kind", Reason.KIND_NOT_COVERED, Flaws(rule={"kinds": frozenset({"article"})})),
    ("other dates", Reason.OUTSIDE_DATES, Flaws(rule={"created_until_ms": NOW_MS})),
]
NAMES = [name for name, _, _ in RANKED]


def compatible(first: Flaws, second: Flaws) -> bool:
    """Whether both can be wrong at once: neither takes the other's change back."""
    both = first | second
    return both == second | first


PAIRS = [
    pytest.param(before, after, id=f"{NAMES[i]} beats {NAMES[i + 1 + j]}".replace(" ", "_"))
    for i, before in enumerate(RANKED)
    for j, after in enumerate(RANKED[i + 1 :])
    if compatible(before[2], after[2])
]


@pytest.mark.parametrize(("name", "reason", "flaws"), RANKED, ids=NAMES)
def test_each_flaw_alone_gives_its_reason(name: str, reason: Reason, flaws: Flaws) -> None:
    assert made(flaws.case(key_is_subject=True)).reason is reason


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_of_two_reasons_the_first_is_given(
    before: tuple[str, Reason, Flaws], after: tuple[str, Reason, Flaws]
) -> None:
    both = before[2] | after[2]
    assert made(both.case(key_is_subject=True)).reason is before[1]


def test_without_a_flaw_the_record_is_forwarded() -> None:
    assert made(Flaws().case(key_is_subject=True)).reason is Reason.NOT_OPTED_OUT
    assert made(Flaws().case(key_is_subject=False)).reason is Reason.NOT_OPTED_OUT


def test_every_reason_has_its_rank() -> None:
    elsewhere = {Reason.OPTED_IN, Reason.NOT_OPTED_OUT, Reason.ERROR, Reason.REDACTION_FAILED}
    assert {reason for _, reason, _ in RANKED} == set(Reason) - elsewhere
    for precedence in (BY_KEY, BY_SUBJECT):
        assert {reason for reason, _ in precedence} == set(Reason) - {
            Reason.ERROR,
            Reason.REDACTION_FAILED,
        }


def test_a_tombstone_beats_a_missing_key_and_a_withdrawal() -> None:
    withdrawn = consent_state("GB", True, Choice.WITHDRAWN)
    assert forbidding(Content(value=None, key=None)) is Reason.TOMBSTONE
    assert forbidding(Content(value=None), state=withdrawn) is Reason.TOMBSTONE


def test_a_missing_key_beats_what_the_content_says() -> None:
    assert forbidding(Content(value=b"\xff", key=None)) is Reason.SUBJECT_MISMATCH
    assert forbidding(Content(value=b"x" * 900_001, key=None)) is Reason.SUBJECT_MISMATCH


def test_content_of_somebody_who_may_not_be_used_is_never_read() -> None:
    def refuse_to_read(value: bytes) -> Any:
        raise AssertionError("the content was read")

    look_up = person_of({b"m1": {0: consent_state("GB", True, Choice.WITHDRAWN)}}, OPT_OUT, NOW_MS)
    decision = decide_by_key(Content(b"\xff"), look_up, refuse_to_read, LIMITS, NOW_MS)
    assert decision.reason is Reason.WITHDRAWN


def test_what_is_too_large_is_never_read() -> None:
    def refuse_to_read(value: bytes) -> Any:
        raise AssertionError("the content was read")

    limits = replace(LIMITS, max_value_bytes=1)
    look_up = person_of({b"m1": {0: GB}}, OPT_OUT, NOW_MS)
    for decide in (decide_by_key, decide_by_subject):
        decision = decide(Content(), look_up, refuse_to_read, limits, NOW_MS)
        assert decision.reason is Reason.TOO_LARGE


# The theorems: where the key is not the subject.


def by_subject(record: Content = Content(), **changes: Any) -> Reason:
    return decided(record, key_is_subject=False, **changes).reason


def test_a_key_that_is_no_subject_does_not_matter() -> None:
    for key in (None, b"", b"m2", b"\xff", b"m1"):
        assert by_subject(Content(key=key)) is Reason.NOT_OPTED_OUT


def test_the_subject_of_the_content_is_asked_for() -> None:
    assert by_subject(Content(event(subject="m2"))) is Reason.NO_CONSENT_RECORD
    withdrawn = consent_state("GB", True, Choice.WITHDRAWN)
    assert by_subject(Content(key=b"m2"), state=withdrawn) is Reason.WITHDRAWN


BEFORE_THE_PERSON = {
    "a tombstone",
    "too large a record",
    "undecodable content",
    "a missing field",
    "a bad timestamp",
}
OF_THE_KEY = {"a missing key", "another subject"}
RANKED_BY_SUBJECT = sorted(
    (each for each in RANKED if each[0] not in OF_THE_KEY),
    key=lambda each: each[0] not in BEFORE_THE_PERSON,
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(before, after, id=f"{before[0]} beats {after[0]}".replace(" ", "_"))
        for i, before in enumerate(RANKED_BY_SUBJECT)
        for after in RANKED_BY_SUBJECT[i + 1 :]
        if compatible(before[2], after[2])
    ],
)
def test_what_must_be_read_first_is_quarantined_first(
    before: tuple[str, Reason, Flaws], after: tuple[str, Reason, Flaws]
) -> None:
    both = before[2] | after[2]
    assert made(both.case(key_is_subject=False)).reason is before[1]


def test_a_subject_that_fits_into_no_key_is_too_large() -> None:
    # Else it could be forwarded, and never be retracted under its name.
    for surplus, reason in ((0, Reason.NOT_OPTED_OUT), (1, Reason.TOO_LARGE)):
        subject = "m" * (LIMITS.max_key_bytes + surplus)
        states = {subject.encode(): {0: GB}}
        record = Content(event(subject=subject), key=b"post-5")
        assert made(Case(record, states, OPT_OUT, NOW_MS, LIMITS, False)).reason is reason


def test_what_cannot_be_read_has_no_jurisdiction() -> None:
    decision = decided(Content(b"\xff"), key_is_subject=False)
    assert (decision.label, decision.consent_partition) == ("unknown", None)


# The theorems: judging a person alone.


@pytest.mark.parametrize("rules", [OPT_IN, OPT_OUT])
def test_a_choice_that_nobody_foresaw_permits_nothing(rules: Policy) -> None:
    unforeseen = consent_state("GB", True, cast("Choice", "perhaps"))
    person = judge_person(holding(3, unforeseen), rules.at(NOW_MS))
    assert person.decision.reason is Reason.ERROR
    assert person.rule is None


def test_a_person_who_may_be_used_comes_with_the_rule_that_their_content_must_meet() -> None:
    person = judge_person(holding(3, GB), OPT_OUT.at(NOW_MS))
    assert person.rule is OPT_OUT.rules[0]
    assert person.decision.consent_partition == 3


@pytest.mark.parametrize(
    "state", [None, UNREADABLE, consent_state(None, True, None), consent_state("GB", None, None)]
)
def test_a_person_who_may_not_be_used_comes_without_a_rule(state: ConsentState | None) -> None:
    held = None if state is None else holding(3, state)
    assert judge_person(held, ADULTS.at(NOW_MS)).rule is None
