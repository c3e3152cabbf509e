"""Policy files: what is read from them, what is refused and where, and what is warned of."""

import json
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.policy import Basis, Rule
from consentgate.core.policyfile import lint_policy, parse_policy
from consentgate.errors import PolicyError

FULL = """\
name: example
purpose: ai-training
groups: {EEA: [AT, BE, NO]}           # ISO 3166-1 alpha-2
rules:
  - jurisdictions: [EEA, CH]          # groups, countries, or "*"
    from: 2024-09-18T00:00:00Z        # in force from (included)
    until: 2025-11-03T00:00:00Z       # until (excluded)
    basis: suspended
  - jurisdictions: ["*"]
    basis: opt-out
    adults_only: true
    visibility: [public]
    kinds: [post, article]
    created_from: 2024-11-20T00:00:00Z
    created_until: "2024-11-20T01:00:00.001+01:00"
    fields: [title, text]             # of body
    redact: [phone, email]
    pseudonymize: true
"""


def lint(text: str) -> list[str]:
    return [f"{each.severity} {each}" for each in lint_policy(text, "p.yaml")[1]]


def header(rules: str, groups: str = "{}") -> str:
    """A policy with these rules, which begin on line 5."""
    return f"name: p\npurpose: ai-training\ngroups: {groups}\nrules:\n{rules}"


def test_every_key_of_a_policy_is_read() -> None:
    policy = parse_policy(FULL, "p.yaml")
    assert (policy.name, policy.purpose) == ("example", "ai-training")
    assert policy.groups == {"EEA": {"AT", "BE", "NO"}}
    assert policy.rules == (
        Rule(
            ("EEA", "CH"),
            Basis.SUSPENDED,
            from_ms=1726617600000,
            until_ms=1762128000000,
            line=5,
        ),
        Rule(
            ("*",),
            Basis.OPT_OUT,
            adults_only=True,
            visibility=frozenset({"public"}),
            kinds=frozenset({"post", "article"}),
            created_from_ms=1732060800000,
            created_until_ms=1732060800001,
            fields=("text", "title"),
            redact=("email", "phone"),
            pseudonymize=True,
            line=9,
        ),
    )


def test_a_rule_without_conditions_has_the_defaults() -> None:
    policy = parse_policy(header('- jurisdictions: ["*"]\n  basis: opt-in\n'), "p.yaml")
    assert policy.rules == (Rule(("*",), Basis.OPT_IN, line=5),)


def test_an_unquoted_no_means_norway() -> None:
    grouped = parse_policy(
        header("- jurisdictions: [NORDIC]\n  basis: opt-in\n", "{NORDIC: [SE, NO]}"), "p.yaml"
    )
    direct = parse_policy(header("- jurisdictions: [NO]\n  basis: opt-in\n"), "p.yaml")
    assert grouped.at(0).find("NO") == (grouped.rules[0], "NORDIC")
    assert direct.at(0).find("NO") == (direct.rules[0], "NO")


OPT_IN = "basis: opt-in"
BROKEN: list[tuple[str, list[str]]] = [
    ("", ["p.yaml:1: (document): the file is empty, a policy needs name, purpose and rules"]),
    (
        "[]",
        [
            "p.yaml:1: (document): must be a mapping, not a list, "
            "write it as 'key: value', without dashes"
        ],
    ),
    (
        "purpos: x\n",
        [
            "p.yaml:1: name: is missing, give the policy one, such as 'example'",
            "p.yaml:1: purpos: unknown key, did you mean 'purpose'?",
            "p.yaml:1: purpose: is missing, say for what people choose, such as 'ai-training'",
            "p.yaml:1: rules: is missing, a policy has at least one rule",
        ],
    ),
    (
        'name: Two Words\npurpose: ""\nrules: []\n',
        [
            "p.yaml:1: name: 'Two Words' is no name of a policy, "
            "use lower-case letters, digits, '.', '_' and '-', such as 'two-words'",
            "p.yaml:2: purpose: is an empty string, write what is meant",
            "p.yaml:3: rules: is an empty list, a policy has at least one rule",
        ],
    ),
    (
        "name: p@1\npurpose: 5\nrules: all\n",
        [
            "p.yaml:1: name: 'p@1' is no name of a policy, "
            "use lower-case letters, digits, '.', '_' and '-', such as 'p-1'",
            "p.yaml:2: purpose: must be a string, not an integer, put it into quotes",
            "p.yaml:3: rules: must be a list, not a string, put it into brackets",
        ],
    ),
    (
        "name: p\nname: q\npurpose: x\nrules:\n- {jurisdictions: ['*'], basis: opt-in}\n",
        ["p.yaml:2: name: repeats the key of line 1, take one of them out"],
    ),
    (
        header("- jurisdictions: [*]\n  basis: opt-in\n"),
        [
            "p.yaml:5: rules[0].jurisdictions: an asterisk without quotes would be an alias, "
            'write "*"'
        ],
    ),
    (
        header(f"- jurisdictions: [GB]\n  {OPT_IN}\n  bassis: opt-out\n"),
        ["p.yaml:7: rules[0].bassis: unknown key, did you mean 'basis'?"],
    ),
    (
        header("- basis: optin\n- 5\n- jurisdictions: GB\n"),
        [
            "p.yaml:5: rules[0].basis: unknown basis 'optin', did you mean 'opt-in'?",
            'p.yaml:5: rules[0].jurisdictions: is missing, name groups, countries or "*"',
            "p.yaml:6: rules[1]: must be a mapping, not an integer",
            "p.yaml:7: rules[2].basis: is missing, "
            "use one of opt-in, opt-out, suspended, prohibited",
            "p.yaml:7: rules[2].jurisdictions: must be a list, not a string, put it into brackets",
        ],
    ),
    (
        header(f"- jurisdictions: [UK, EAE, gb, EU]\n  {OPT_IN}\n", "{EEA: [DE, Germany, el]}"),
        [
            "p.yaml:3: groups.EEA[1]: unknown country 'Germany', "
            "countries go by the two letters that ISO 3166-1 gives them, such as GB",
            "p.yaml:3: groups.EEA[2]: unknown country 'el', did you mean 'GR'?",
            "p.yaml:5: rules[0].jurisdictions[0]: "
            "unknown country or group 'UK', did you mean 'GB'?",
            "p.yaml:5: rules[0].jurisdictions[1]: "
            "unknown country or group 'EAE', did you mean 'EEA'?",
            "p.yaml:5: rules[0].jurisdictions[2]: "
            "unknown country or group 'gb', did you mean 'GB'?",
            "p.yaml:5: rules[0].jurisdictions[3]: "
            "unknown country or group 'EU', write out its members, "
            "or make it a group under 'groups'",
        ],
    ),
    (
        header(
            f"- jurisdictions: [X]\n  {OPT_IN}\n",
            "{GB: [GB], gr: [GR], '*': [FR], unknown: [DE], 'a b': [AT], X: [], Y: FR, Z: }",
        ),
        [
            'p.yaml:3: groups.*: a country\'s code or "*" cannot be the name of a group, '
            "choose another",
            'p.yaml:3: groups.GB: a country\'s code or "*" cannot be the name of a group, '
            "choose another",
            "p.yaml:3: groups.X: is an empty list, name at least one",
            "p.yaml:3: groups.Y: must be a list, not a string, put it into brackets",
            "p.yaml:3: groups.Z: must be a list, not nothing",
            "p.yaml:3: groups.a b: is no name of a group, "
            "use letters, digits, '.', '_' and '-', a letter or digit first",
            'p.yaml:3: groups.gr: a country\'s code or "*" cannot be the name of a group, '
            "choose another",
            "p.yaml:3: groups.unknown: 'unknown' is the label of people whose country is not "
            "known, choose another name",
        ],
    ),
    (
        header(
            f"- jurisdictions: [GB]\n  {OPT_IN}\n"
            "  from: 2024-09-20T00:00:00Z\n  until: 2024-09-20T01:00:00+01:00\n"
            "  created_from: 2024-09-21T00:00:00Z\n  created_until: 2024-09-20T00:00:00Z\n"
        ),
        [
            "p.yaml:8: rules[0].until: is not later than 'from', "
            "nothing lies between them, swap or correct them",
            "p.yaml:10: rules[0].created_until: "
            "is not later than 'created_from', nothing lies between them, swap or correct them",
        ],
    ),
    (
        header(
            f"- jurisdictions: [GB]\n  {OPT_IN}\n"
            "  from: 2024-09-20\n  until: 2024-09-20T00:00:00\n"
            "  created_from: 1726790400000\n  created_until: 2024-09-20T00:00:00.0001Z\n"
            f"- jurisdictions: [FR]\n  {OPT_IN}\n"
            "  from: 0001-01-01T00:00:00+01:00\n  until: 2024-02-30T00:00:00Z\n"
        ),
        [
            "p.yaml:7: rules[0].from: '2024-09-20' is not a time with a zone, "
            "write 2024-09-20T00:00:00Z if you mean UTC",
            "p.yaml:8: rules[0].until: '2024-09-20T00:00:00' is not a time with a zone, "
            "write 2024-09-20T00:00:00Z if you mean UTC",
            "p.yaml:9: rules[0].created_from: must be a time such as "
            "2024-09-20T00:00:00Z, not an integer",
            "p.yaml:10: rules[0].created_until: is finer than a millisecond, "
            "write at most three decimals",
            "p.yaml:13: rules[1].from: '0001-01-01T00:00:00+01:00' is not in the calendar, "
            "correct the day or the time",
            "p.yaml:14: rules[1].until: '2024-02-30T00:00:00Z' is not in the calendar, "
            "correct the day or the time",
        ],
    ),
    (
        header(
            f"- jurisdictions: [GB]\n  {OPT_IN}\n  adults_only: yes\n  visibility: []\n"
            '  kinds: [post, 1, post, ""]\n  fields: text\n  redact: [emial, ssn]\n'
            "  pseudonymize: 1\n  until:\n"
        ),
        [
            "p.yaml:7: rules[0].adults_only: must be true or false, not 'yes'",
            "p.yaml:8: rules[0].visibility: is an empty list, name at least one",
            "p.yaml:9: rules[0].kinds[1]: must be a string, not an integer, put it into quotes",
            "p.yaml:9: rules[0].kinds[2]: 'post' stands in the list twice, take one of them out",
            "p.yaml:9: rules[0].kinds[3]: is an empty string, write what is meant",
            "p.yaml:10: rules[0].fields: must be a list, not a string, put it into brackets",
            "p.yaml:11: rules[0].redact[0]: unknown detector 'emial', did you mean 'email'?",
            "p.yaml:11: rules[0].redact[1]: unknown detector 'ssn', "
            "use one of email, phone, iban, card, ip, national-id, url, secret, name",
            "p.yaml:12: rules[0].pseudonymize: must be true or false, not an integer",
            "p.yaml:13: rules[0].until: has no value, give it one or leave the key out",
        ],
    ),
    (
        header(f"- jurisdictions: [EEA, DE, GB, GB]\n  {OPT_IN}\n", "{EEA: [DE, FR]}"),
        [
            "p.yaml:5: rules[0].jurisdictions: names DE twice, as 'EEA' and as 'DE', take one out",
            "p.yaml:5: rules[0].jurisdictions[3]: 'GB' stands in the list twice, "
            "take one of them out",
        ],
    ),
    (
        header(
            f"- jurisdictions: [EEA]\n  until: 2024-09-20T00:00:00Z\n  {OPT_IN}\n"
            f"- jurisdictions: [FR, GB]\n  from: 2024-09-19T00:00:00Z\n  {OPT_IN}\n"
            f"- jurisdictions: [GB]\n  {OPT_IN}\n",
            "{EEA: [DE, FR]}",
        ),
        [
            "p.yaml:8: rules[1].jurisdictions: "
            "names FR at the same time as the rule of line 5, "
            "from 2024-09-19T00:00:00Z until 2024-09-20T00:00:00Z, "
            "end one where the other begins or make them one",
            "p.yaml:8: rules[1].jurisdictions: "
            "names GB at the same time as the rule of line 11, from 2024-09-19T00:00:00Z, "
            "end one where the other begins or make them one",
        ],
    ),
    (
        header(
            f'- jurisdictions: ["*"]\n  {OPT_IN}\n- jurisdictions: ["*"]\n  basis: opt-out\n'
            "  from: 2024-09-19T00:00:00Z\n"
        ),
        [
            "p.yaml:7: rules[1].jurisdictions: "
            "names * at the same time as the rule of line 5, from 2024-09-19T00:00:00Z, "
            "end one where the other begins or make them one"
        ],
    ),
    (
        header(
            "- jurisdictions: [EEA]\n  until: 2024-09-20T00:00:00Z\n  basis: prohibited\n"
            "- jurisdictions: [EEA]\n  from: 2024-09-20T00:00:00Z\n"
            "  until: 2024-09-21T00:00:00Z\n  basis: prohibited\n"
            "- jurisdictions: [EEA, GB]\n  from: 2024-09-22T00:00:00Z\n  basis: suspended\n",
            "{EEA: [AT, BE, DE, FR]}",
        ),
        [
            "p.yaml:14: rules[2].basis: lifts the prohibition of line 5 for EEA, which must stay, "
            "take this rule out, or let that one be 'suspended' if it may end"
        ],
    ),
]


@pytest.mark.parametrize(("text", "problems"), BROKEN)
def test_a_broken_policy_is_refused_with_everything_that_is_wrong(
    text: str, problems: list[str]
) -> None:
    policy, found = lint_policy(text, "p.yaml")
    assert policy is None
    assert [str(each) for each in found] == problems
    assert {each.severity for each in found} == {"error"}
    with pytest.raises(PolicyError) as raised:
        parse_policy(text, "p.yaml")
    assert str(raised.value) == "\n".join(problems)


def test_many_jurisdictions_are_told_in_few_words() -> None:
    rule = "- jurisdictions: [A, FR, ES, PT, DE, IT, GB]\n  basis: opt-in\n"
    assert lint(header(rule * 2, "{A: [AT], B: [GB, IE], C: [DK]}"))[-1] == (
        "error p.yaml:7: rules[1].jurisdictions: names A, DE, ES, FR, GB and 2 more "
        "at the same time as the rule of line 5, at all times, "
        "end one where the other begins or make them one"
    )


def test_a_prohibition_may_follow_any_basis_and_last_for_ever() -> None:
    rules = (
        '- jurisdictions: ["*"]\n  until: 2024-09-20T00:00:00Z\n  basis: opt-out\n'
        '- jurisdictions: ["*"]\n  from: 2024-09-20T00:00:00Z\n  basis: prohibited\n'
    )
    assert lint(header(rules)) == []


def test_gaps_in_time_are_warnings() -> None:
    rules = (
        '- jurisdictions: ["*"]\n  basis: opt-in\n'
        "- jurisdictions: [EEA, CH]\n  from: 2024-09-18T00:00:00Z\n"
        "  until: 2025-11-03T00:00:00Z\n  basis: suspended\n"
        "- jurisdictions: [EEA]\n  from: 2025-11-03T00:00:00.500Z\n  basis: opt-out\n"
    )
    policy, _ = lint_policy(header(rules, "{EEA: [DE, FR]}"), "p.yaml")
    assert policy is not None
    mend = ", add one, which is 'suspended' if nothing may be used"
    assert lint(header(rules, "{EEA: [DE, FR]}")) == [
        "warning p.yaml:8: rules[1].from: "
        f"no rule is in force for EEA, CH until 2024-09-18T00:00:00Z{mend}",
        "warning p.yaml:9: rules[1].until: "
        f"no rule is in force for CH from 2025-11-03T00:00:00Z{mend}",
        "warning p.yaml:12: rules[2].from: no rule is in force for EEA "
        f"from 2025-11-03T00:00:00Z until 2025-11-03T00:00:00.500Z{mend}",
    ]


def test_a_gap_of_everywhere_else_is_a_warning_too() -> None:
    rule = '- jurisdictions: ["*"]\n  basis: opt-in\n  until: 2025-11-03T00:00:00Z\n'
    assert lint(header(rule)) == [
        "warning p.yaml:7: rules[0].until: no rule is in force for * from 2025-11-03T00:00:00Z, "
        "add one, which is 'suspended' if nothing may be used"
    ]


def test_countries_that_no_rule_covers_are_one_warning() -> None:
    assert lint(header("- jurisdictions: [GB, NO]\n  basis: opt-in\n")) == [
        "warning p.yaml:4: rules: no rule names AD, AE, AF, AG, AI and 242 more, "
        'add one for "*" to cover the rest'
    ]


def test_an_unused_group_is_a_warning() -> None:
    rule = '- jurisdictions: ["*"]\n  basis: opt-in\n'
    assert lint(header(rule, "\n  EEA: [DE]\n  X: [FR]")) == [
        "warning p.yaml:4: groups.EEA: no rule names this group, name it in one or take it out",
        "warning p.yaml:5: groups.X: no rule names this group, name it in one or take it out",
    ]


def test_warnings_are_no_reason_to_refuse() -> None:
    policy, problems = lint_policy(header("- jurisdictions: [GB]\n  basis: opt-in\n"), "p.yaml")
    assert policy is not None
    assert [problem.severity for problem in problems] == ["warning"]
    parsed = parse_policy(header("- jurisdictions: [GB]\n  basis: opt-in\n"), "p.yaml")
    assert parsed.hash == policy.hash


# Property tests. A meaning is drawn as plain data and written down in many ways; its canonical form
# is computed here by the description in the docstring of `Policy.canonical` alone.

Meaning = dict[str, Any]

_GROUPS = {"EEA": ["DE", "FR", "NO"], "X": ["CH"]}
_ALTERNATIVES: dict[str, list[Any]] = {
    "basis": ["opt-in", "opt-out", "suspended"],
    "adults_only": [None, True],
    "visibility": [None, ["public"], ["friends", "public"]],
    "kinds": [None, ["post"], ["article", "post"]],
    "created_from": [None, -86_400_000, 5],
    "created_until": [None, 3_600_000, 3_600_001],
    "fields": [None, ["text"], ["text", "title"]],
    "redact": [None, ["email"], ["email", "phone"]],
    "pseudonymize": [None, True],
}


@st.composite
def meanings(draw: st.DrawFn) -> Meaning:
    rules = []
    labels = st.sampled_from(["EEA", "X", "GB", "US", "*"])
    for label in draw(st.sets(labels, min_size=1, max_size=3)):
        times = sorted(draw(st.sets(st.integers(-(10**12), 2 * 10**12), max_size=2)))
        for start_ms, end_ms in pairwise([None, *times, None]):
            rule = {key: draw(st.sampled_from(known)) for key, known in _ALTERNATIVES.items()}
            rules.append(rule | {"jurisdictions": [label], "from": start_ms, "until": end_ms})
    return {"name": "p", "purpose": "ai-training", "groups": _GROUPS, "rules": rules}


def canonical(meaning: Meaning) -> str:
    rules = []
    for rule in meaning["rules"]:
        known = {key: value for key, value in rule.items() if value is not None}
        for key in known.keys() & {"from", "until", "created_from", "created_until"}:
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=known[key])
            known[key] = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
        known["jurisdictions"] = {
            label: meaning["groups"].get(label, [label]) for label in rule["jurisdictions"]
        }
        rules.append(json.dumps(known, sort_keys=True, separators=(",", ":")))
    head = f'{{"name":"{meaning["name"]}","purpose":"{meaning["purpose"]}","rules":['
    return head + ",".join(sorted(rules)) + "]}"


def shuffled(draw: st.DrawFn, value: Any) -> Any:
    """The same data with its keys and its lists in another order."""
    if isinstance(value, dict):
        return {key: shuffled(draw, value[key]) for key in draw(st.permutations(list(value)))}
    if isinstance(value, list):
        return [shuffled(draw, item) for item in draw(st.permutations(value))]
    return value


def written_time(draw: st.DrawFn, time_ms: int) -> str:
    zone = timezone(timedelta(minutes=draw(st.integers(-28, 28)) * 30))
    moment = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)).astimezone(zone)
    text = moment.isoformat()
    return text.replace("+00:00", "Z") if draw(st.booleans()) else text


def written(draw: st.DrawFn, meaning: Meaning) -> str:
    rules = []
    for rule in meaning["rules"]:
        known = {key: value for key, value in rule.items() if value is not None}
        for key in known.keys() & {"from", "until", "created_from", "created_until"}:
            known[key] = written_time(draw, known[key])
        for flag in ("adults_only", "pseudonymize"):
            if draw(st.booleans()):
                known.setdefault(flag, False)
        rules.append(known)
    groups = meaning["groups"] | draw(st.sampled_from([{}, {"UNUSED": ["JP"]}]))
    data = shuffled(draw, meaning | {"groups": groups, "rules": rules})
    if draw(st.booleans()):
        return json.dumps(data, indent=draw(st.sampled_from([None, 1, 4])))
    flow = draw(st.sampled_from([None, True, False]))
    text = yaml.safe_dump(data, sort_keys=False, default_flow_style=flow)
    return text.replace("'NO'", "NO") + "# The end.\n"


@settings(max_examples=60)
@given(meanings(), st.data())
def test_the_hash_does_not_depend_on_how_a_policy_is_written(
    meaning: Meaning, data: st.DataObject
) -> None:
    one = parse_policy(data.draw(st.composite(written)(meaning)), "one.yaml")
    other = parse_policy(data.draw(st.composite(written)(meaning)), "other.yaml")
    assert one.canonical == other.canonical == canonical(meaning)
    assert one.hash == other.hash


def changed(draw: st.DrawFn, meaning: Meaning) -> Meaning:
    """The meaning with one thing different."""
    rules = [dict(rule) for rule in meaning["rules"]]
    rule = draw(st.sampled_from(rules))
    what = draw(st.sampled_from(["name", "purpose", "groups", "label", *_ALTERNATIVES]))
    if what in {"name", "purpose"}:
        return meaning | {what: "another"}
    if what == "groups":
        added = {name: sorted([*known, "IS"]) for name, known in _GROUPS.items()}
        used = {label for rule in rules for label in rule["jurisdictions"]}
        if used.isdisjoint(added):
            return meaning | {"name": "another"}
        # One group grows; the other could not have the same country.
        grown = draw(st.sampled_from(sorted(used & added.keys())))
        return meaning | {"groups": _GROUPS | {grown: added[grown]}}
    if what == "label":
        rule["jurisdictions"] = ["JP"]
    else:
        others = [other for other in _ALTERNATIVES[what] if other != rule[what]]
        rule[what] = draw(st.sampled_from(others))
    return meaning | {"rules": rules}


@settings(max_examples=100)
@given(meanings(), st.data())
def test_the_hash_changes_with_every_change_of_meaning(
    meaning: Meaning, data: st.DataObject
) -> None:
    other = data.draw(st.composite(changed)(meaning))
    one_text = data.draw(st.composite(written)(meaning))
    other_text = data.draw(st.composite(written)(other))
    assert parse_policy(one_text, "p").hash != parse_policy(other_text, "p").hash


def test_the_label_under_which_people_are_counted_is_part_of_the_hash() -> None:
    rule = '- jurisdictions: [A, "*"]\n  basis: opt-in\n'
    as_group = parse_policy(header(rule, "{A: [GB]}"), "p")
    as_other_group = parse_policy(header(rule.replace("A", "B"), "{B: [GB]}"), "p")
    as_country = parse_policy(header(rule.replace("A", "GB")), "p")
    assert len({as_group.hash, as_other_group.hash, as_country.hash}) == 3


@settings(max_examples=60)
@given(meanings(), st.data())
def test_a_policy_that_says_twice_what_it_says_once_is_refused(
    meaning: Meaning, data: st.DataObject
) -> None:
    repeated = meaning | {"rules": meaning["rules"] * 2}
    policy, problems = lint_policy(data.draw(st.composite(written)(repeated)), "p")
    assert policy is None
    assert all("at the same time as the rule" in problem.message for problem in problems)


@settings(max_examples=100)
@given(
    st.recursive(
        st.sampled_from([None, True, 5, "", "x", "GB", "*", "opt-in", "2024-09-20T00:00:00Z"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["name", "purpose", "groups", "rules", "jurisdictions", "basis", "x"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=15,
    )
)
def test_whatever_the_file_holds_it_is_a_policy_or_has_errors(value: Any) -> None:
    policy, problems = lint_policy(json.dumps(value), "p")
    has_errors = any(problem.severity == "error" for problem in problems)
    assert (policy is None) == has_errors
