"""The model of a policy: which rule is in force, the canonical form, and its hash."""

import json
from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.countries import COUNTRIES
from consentgate.core.policy import Basis, Policy, Rule, utc_text

GROUPS = {"BENELUX": frozenset({"BE", "NL", "LU"})}
PAUSE = Rule(("BENELUX", "GB"), Basis.SUSPENDED, from_ms=100, until_ms=200, line=5)
RESUME = Rule(("BENELUX",), Basis.OPT_OUT, from_ms=200)
ELSEWHERE = Rule(("*",), Basis.OPT_IN, until_ms=300)
POLICY = Policy("p", "ai-training", GROUPS, (PAUSE, RESUME, ELSEWHERE))


def test_a_group_names_its_members_and_labels_them() -> None:
    assert POLICY.at(150).find("NL") == (PAUSE, "BENELUX")
    assert POLICY.at(150).find("GB") == (PAUSE, "GB")


def test_a_rule_begins_at_from_and_ends_before_until() -> None:
    assert POLICY.at(99).find("GB") is None
    assert POLICY.at(100).find("GB") == (PAUSE, "GB")
    assert POLICY.at(199).find("BE") == (PAUSE, "BENELUX")
    assert POLICY.at(200).find("BE") == (RESUME, "BENELUX")
    assert [PAUSE.in_force(ms) for ms in (99, 100, 199, 200)] == [False, True, True, False]


def test_everywhere_else_covers_only_what_no_rule_ever_names() -> None:
    assert POLICY.at(150).find("US") == (ELSEWHERE, "*")
    # GB is named by a rule that is over, so that it has no rule at all.
    assert POLICY.at(250).find("GB") is None
    assert POLICY.at(300).find("US") is None


def test_only_countries_have_a_rule() -> None:
    for word in ("*", "BENELUX", "gb", "ZZ", "UK", ""):
        assert POLICY.at(150).find(word) is None


def test_rules_stay_the_same_object_until_their_next_change() -> None:
    for before, now, changes in ((-1, 99, 100), (100, 199, 200), (200, 299, 300), (300, 999, None)):
        rules = POLICY.at(before)
        assert POLICY.at(now) is rules
        assert rules.until_ms == changes
    assert POLICY.at(99) is not POLICY.at(100)


def test_a_policy_without_times_never_changes() -> None:
    policy = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_IN),))
    assert policy.at(0) is policy.at(10**15)
    assert policy.at(0).until_ms is None
    assert all(policy.at(0).find(country) for country in COUNTRIES)


def test_two_rules_for_a_country_at_one_moment_are_never_decided_by() -> None:
    twice = Policy("p", "x", {}, (Rule(("GB",), Basis.OPT_IN), Rule(("GB",), Basis.OPT_OUT)))
    with pytest.raises(AssertionError, match="two rules for GB at 7"):
        twice.at(7)


@pytest.mark.parametrize(
    ("rule", "transforms"),
    [
        (Rule(("*",), Basis.OPT_IN, adults_only=True, kinds=frozenset({"post"})), False),
        (Rule(("*",), Basis.OPT_IN, fields=("text",)), True),
        (Rule(("*",), Basis.OPT_IN, redact=("email",)), True),
        (Rule(("*",), Basis.OPT_IN, pseudonymize=True), True),
    ],
)
def test_a_rule_transforms_if_it_selects_redacts_or_pseudonymizes(
    rule: Rule, transforms: bool
) -> None:
    assert rule.transforms is transforms


def test_rules_are_hashable_values() -> None:
    assert {PAUSE, RESUME, PAUSE} == {PAUSE, RESUME}


def test_the_canonical_form_is_as_documented() -> None:
    full = Rule(
        ("GB", "BENELUX", "*"),
        Basis.OPT_OUT,
        from_ms=1726790400000,
        until_ms=1726790400001,
        adults_only=True,
        visibility=frozenset({"public", "friends"}),
        kinds=frozenset({"post"}),
        created_from_ms=-1,
        created_until_ms=0,
        fields=("text", "title"),
        redact=("email", "phone"),
        pseudonymize=True,
        line=9,
    )
    policy = Policy("n", "ünïcode", GROUPS, (Rule(("FR",), Basis.OPT_IN, line=3), full))
    assert policy.canonical == (
        '{"name":"n","purpose":"ünïcode","rules":['
        '{"adults_only":true,"basis":"opt-out",'
        '"created_from":"1969-12-31T23:59:59.999Z","created_until":"1970-01-01T00:00:00.000Z",'
        '"fields":["text","title"],"from":"2024-09-20T00:00:00.000Z",'
        '"jurisdictions":{"*":["*"],"BENELUX":["BE","LU","NL"],"GB":["GB"]},'
        '"kinds":["post"],"pseudonymize":true,"redact":["email","phone"],'
        '"until":"2024-09-20T00:00:00.001Z","visibility":["friends","public"]},'
        '{"basis":"opt-in","jurisdictions":{"FR":["FR"]}}]}'
    )


def test_the_hash_is_the_sha256_of_the_canonical_form() -> None:
    policy = Policy("n", "ünïcode", {}, (Rule(("FR",), Basis.OPT_IN),))
    assert policy.hash == sha256(policy.canonical.encode("utf-8")).hexdigest()
    assert policy.full_reference == f"n@{policy.hash}"
    assert policy.reference == f"n@{policy.hash[:12]}"


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1726790400007, "2024-09-20T00:00:00.007Z"),
        (-62135596800000, "0001-01-01T00:00:00.000Z"),
        (253402300799999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_are_told_in_utc_with_three_decimals(time_ms: int, text: str) -> None:
    assert utc_text(time_ms) == text


# Property tests: policies are drawn as for each label a row of stretches of time that meet or not.

_LABELS = {"BENELUX": {"BE", "NL", "LU"}, "GB": {"GB"}, "US": {"US"}, "*": {"*"}}


@st.composite
def rules(draw: st.DrawFn) -> list[Rule]:
    drawn: list[Rule] = []
    for label in draw(st.sets(st.sampled_from(sorted(_LABELS)), min_size=1)):
        times = sorted(draw(st.sets(st.integers(0, 30), max_size=4)))
        edges = [None, *times, None]
        for start, end in pairwise(edges):
            if draw(st.booleans()):
                basis = draw(st.sampled_from([Basis.OPT_IN, Basis.OPT_OUT, Basis.SUSPENDED]))
                drawn.append(Rule((label,), basis, from_ms=start, until_ms=end, line=len(drawn)))
    return draw(st.permutations(drawn))


def expected(drawn: list[Rule], country: str, now_ms: int) -> tuple[Rule, str] | None:
    """The specification, read line by line."""
    named = {each for rule in drawn for label in rule.jurisdictions for each in _LABELS[label]}
    wanted = country if country in named else "*"
    for rule in drawn:
        started = rule.from_ms is None or now_ms >= rule.from_ms
        ended = rule.until_ms is not None and now_ms >= rule.until_ms
        for label in rule.jurisdictions:
            if wanted in _LABELS[label] and started and not ended:
                return rule, label
    return None


@settings(max_examples=150)
@given(rules(), st.lists(st.integers(-1, 31), min_size=1, max_size=8))
def test_at_every_moment_the_one_rule_in_force_is_found(
    drawn: list[Rule], moments: list[int]
) -> None:
    policy = Policy("p", "ai-training", GROUPS, tuple(drawn))
    for now_ms in moments:
        for country in ("BE", "NL", "GB", "US", "FR"):
            assert policy.at(now_ms).find(country) == expected(drawn, country, now_ms)


@settings(max_examples=150)
@given(rules(), st.integers(-1, 31))
def test_nothing_changes_before_the_announced_moment(drawn: list[Rule], now_ms: int) -> None:
    policy = Policy("p", "ai-training", GROUPS, tuple(drawn))
    until_ms = policy.at(now_ms).until_ms
    assert until_ms is None or until_ms > now_ms
    for later_ms in range(now_ms, 32 if until_ms is None else until_ms):
        assert policy.at(later_ms) is policy.at(now_ms)


@settings(max_examples=100)
@given(rules())
def test_the_canonical_form_is_sorted_json(drawn: list[Rule]) -> None:
    canonical = Policy("p", "ai-training", GROUPS, tuple(drawn)).canonical
    again = json.dumps(json.loads(canonical), sort_keys=True, separators=(",", ":"))
    assert canonical == again
