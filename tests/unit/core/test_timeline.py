"""The courses of a policy: what they say is what is decided, at every moment and everywhere."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentgate.core.countries import COUNTRIES
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.core.policyfile import parse_policy
from consentgate.core.timeline import Course, Stretch, boundaries_ms, courses
from consentgate.policies import load_policy, preset_names

GROUPS = {"EU": frozenset({"DE", "FR"}), "EEA": frozenset({"DE", "FR", "NO"})}
OPT_IN = Rule((), Basis.OPT_IN)
OPT_OUT = Rule((), Basis.OPT_OUT)
SUSPENDED = Rule((), Basis.SUSPENDED)


def policy(*rules: Rule) -> Policy:
    return Policy("p", "ai-training", GROUPS, rules)


def labels(found: tuple[Course, ...]) -> list[tuple[str, ...]]:
    return [course.labels for course in found]


def test_a_course_goes_from_the_beginning_to_the_end_of_time() -> None:
    found = courses(
        policy(
            Rule(("GB",), Basis.OPT_OUT, from_ms=20, until_ms=30, line=7),
            Rule(("GB",), Basis.SUSPENDED, from_ms=10, until_ms=20, line=5),
            Rule(("*",), Basis.OPT_IN, line=9),
        )
    )
    assert found == (
        Course(
            ("GB",),
            frozenset({"GB"}),
            (
                Stretch(None, 10, None, ()),
                Stretch(10, 20, SUSPENDED, (5,)),
                Stretch(20, 30, OPT_OUT, (7,)),
                Stretch(30, None, None, ()),
            ),
        ),
        Course(("*",), COUNTRIES - {"GB"}, (Stretch(None, None, OPT_IN, (9,)),)),
    )
    assert boundaries_ms(found) == [10, 20, 30]
    assert [found[0].at(now_ms).rule for now_ms in (9, 10, 19, 20, 29, 30)] == [
        None,
        SUSPENDED,
        SUSPENDED,
        OPT_OUT,
        OPT_OUT,
        None,
    ]


def test_who_shares_a_course_is_one_with_whole_groups_by_their_names() -> None:
    (shared, rest) = courses(
        policy(
            Rule(("CH",), Basis.SUSPENDED, line=5),
            Rule(("EU",), Basis.SUSPENDED, line=7),
            Rule(("NO",), Basis.SUSPENDED, line=9),
            Rule(("*",), Basis.OPT_OUT, line=11),
        )
    )
    assert shared == Course(
        ("EEA", "CH"),
        frozenset({"CH", "DE", "FR", "NO"}),
        (Stretch(None, None, SUSPENDED, (5, 7, 9)),),
    )
    assert rest.labels == ("*",)


def test_a_group_that_is_split_goes_by_its_countries() -> None:
    found = courses(policy(Rule(("DE",), Basis.OPT_IN), Rule(("FR", "*"), Basis.OPT_OUT)))
    assert labels(found) == [("DE",), ("FR", "*")]


def test_other_conditions_are_another_course() -> None:
    adults = Rule(("GB",), Basis.OPT_OUT, adults_only=True)
    found = courses(policy(adults, Rule(("CH",), Basis.OPT_OUT), Rule(("*",), Basis.OPT_OUT)))
    assert labels(found) == [("GB",), ("CH", "*")]


def test_rules_that_go_on_alike_are_one_stretch() -> None:
    (gb, _) = courses(
        policy(
            Rule(("GB",), Basis.OPT_OUT, until_ms=10, line=5),
            Rule(("GB",), Basis.OPT_OUT, from_ms=10, line=8),
        )
    )
    assert gb.stretches == (Stretch(None, None, OPT_OUT, (5, 8)),)


def test_countries_that_no_rule_names_have_no_rule() -> None:
    (_, rest) = courses(policy(Rule(("GB",), Basis.OPT_OUT)))
    assert rest == Course(("*",), COUNTRIES - {"GB"}, (Stretch(None, None, None, ()),))


def test_where_every_country_is_named_nothing_is_left() -> None:
    assert labels(courses(policy(Rule(tuple(sorted(COUNTRIES)), Basis.OPT_IN)))) == [
        ("EEA", *sorted(COUNTRIES - GROUPS["EEA"]))
    ]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Policies in which the countries have their changes at times of their own."""
    rules = []
    for label in draw(st.lists(st.sampled_from(["EU", "NO", "GB", "CH", "*"]), unique=True)):
        times = draw(st.lists(st.integers(1, 6), unique=True, max_size=4).map(sorted))
        for start, end in pairwise([None, *times, None]):
            if draw(st.booleans()):
                basis = draw(st.sampled_from([Basis.OPT_IN, Basis.SUSPENDED]))
                adults_only = draw(st.booleans())
                rules.append(Rule((label,), basis, start, end, adults_only, line=len(rules) + 1))
    return policy(*draw(st.permutations(rules)))


def check(drawn: Policy, now_ms: int) -> None:
    in_force = drawn.at(now_ms)
    found = courses(drawn)
    assert sorted(country for course in found for country in course.countries) == sorted(COUNTRIES)
    for course in found:
        stretch = course.at(now_ms)
        for country in course.countries:
            rule = in_force.find(country)
            if rule is None:
                assert stretch.rule is None
                continue
            bare = replace(rule[0], jurisdictions=(), from_ms=None, until_ms=None, line=0)
            assert stretch.rule == bare
            assert rule[0].line in stretch.lines


@given(policies(), st.integers(0, 7))
def test_a_timeline_says_what_is_decided(drawn: Policy, now_ms: int) -> None:
    check(drawn, now_ms)


@given(policies())
def test_the_stretches_join_and_differ(drawn: Policy) -> None:
    found = courses(drawn)
    for course in found:
        assert course.stretches[0].from_ms is None
        assert course.stretches[-1].until_ms is None
        for before, after in pairwise(course.stretches):
            assert before.until_ms == after.from_ms
            assert before.rule != after.rule
    meanings = [[(s.from_ms, s.until_ms, s.rule) for s in course.stretches] for course in found]
    assert all(meanings.count(meaning) == 1 for meaning in meanings)


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("day", ["2024-05-07", "2024-09-19", "2024-09-20", "2025-11-03"])
def test_a_timeline_of_a_preset_says_what_is_decided(preset: str, day: str) -> None:
    begins = parse_policy(
        f"{{name: p, purpose: p, rules: [{{jurisdictions: ['*'], basis: opt-in, "
        f"from: {day}T00:00:00Z}}]}}",
        "p",
    )
    (now_ms,) = boundaries_ms(courses(begins))
    for moment_ms in (now_ms - 1, now_ms):
        check(load_policy(preset), moment_ms)
