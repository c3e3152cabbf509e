"""The presets against the facts they must reproduce, and the way to a policy by name or path."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from consentgate.core.countries import COUNTRIES
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.core.policyfile import lint_policy
from consentgate.errors import EXIT_CONFIG, PolicyError
from consentgate.policies import load_policy, preset_names, read_policy

_EU = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK"
EEA = frozenset(_EU.split()) | {"IS", "LI", "NO"}
PRESETS = ("linkedin", "meta", "opt-in", "x-grok")
LONG_AGO = "1990-01-01"
FAR_AHEAD = "2100-01-01"


def ms(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)


def rule_at(policy: Policy, country: str, now_ms: int) -> tuple[Rule, str]:
    found = policy.at(now_ms).find(country)
    assert found is not None
    return found


# What the presets say: for each label the bases in the order of time, with the day each begins.
HISTORIES = [
    ("linkedin", "EEA", sorted(EEA), [(None, "suspended"), ("2025-11-03", "opt-out")]),
    ("linkedin", "CH", ["CH"], [(None, "suspended"), ("2025-11-03", "opt-out")]),
    (
        "linkedin",
        "GB",
        ["GB"],
        [(None, "opt-out"), ("2024-09-20", "suspended"), ("2025-11-03", "opt-out")],
    ),
    ("linkedin", "CA", ["CA"], [(None, "suspended"), ("2025-11-03", "opt-out")]),
    ("linkedin", "HK", ["HK"], [(None, "suspended"), ("2025-11-03", "opt-out")]),
    ("linkedin", "*", sorted(COUNTRIES - EEA - {"CH", "GB", "CA", "HK"}), [(None, "opt-out")]),
    ("meta", "EEA", sorted(EEA), [(None, "suspended"), ("2025-05-27", "opt-out")]),
    ("meta", "GB", ["GB"], [(None, "suspended"), ("2024-09-13", "opt-out")]),
    ("meta", "*", sorted(COUNTRIES - EEA - {"GB"}), [(None, "opt-out")]),
    (
        "x-grok",
        "EEA",
        sorted(EEA),
        [
            (None, "suspended"),
            ("2024-05-07", "opt-out"),
            ("2024-08-08", "suspended"),
            ("2024-09-04", "prohibited"),
        ],
    ),
    ("x-grok", "*", sorted(COUNTRIES - EEA), [(None, "opt-out")]),
    ("opt-in", "*", sorted(COUNTRIES), [(None, "opt-in")]),
]


@pytest.mark.parametrize(("preset", "label", "countries", "history"), HISTORIES)
def test_a_preset_changes_at_midnight_utc_of_each_day_and_never_else(
    preset: str, label: str, countries: list[str], history: list[tuple[str | None, str]]
) -> None:
    policy = load_policy(preset)
    begins = [ms(day or LONG_AGO) for day, _ in history]
    ends = [*(begin - 1 for begin in begins[1:]), ms(FAR_AHEAD)]
    for country in countries:
        for begin_ms, end_ms, (_, basis) in zip(begins, ends, history, strict=True):
            for now_ms in (begin_ms, end_ms):
                rule, found_label = rule_at(policy, country, now_ms)
                assert (rule.basis, found_label) == (basis, label)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_rules_every_country_at_every_time(preset: str) -> None:
    policy = load_policy(preset)
    labels = {rule_at(policy, country, ms("2024-09-19"))[1] for country in COUNTRIES}
    assert labels == {label for name, label, _, _ in HISTORIES if name == preset}


@pytest.mark.parametrize(
    ("preset", "days"),
    [
        ("linkedin", ["2024-09-20", "2025-11-03"]),
        ("meta", ["2024-09-13", "2025-05-27"]),
        ("x-grok", ["2024-05-07", "2024-08-08", "2024-09-04"]),
        ("opt-in", []),
    ],
)
def test_a_preset_announces_its_changes(preset: str, days: list[str]) -> None:
    policy = load_policy(preset)
    announced = []
    until_ms = policy.at(ms(LONG_AGO)).until_ms
    while until_ms is not None:
        announced.append(until_ms)
        until_ms = policy.at(until_ms).until_ms
    assert announced == [ms(day) for day in days]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_neither_errors_nor_warnings(preset: str) -> None:
    policy, problems = lint_policy(*read_policy(preset))
    assert policy is not None
    assert problems == []


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_named_as_its_file_and_is_for_ai_training(preset: str) -> None:
    policy = load_policy(preset)
    assert (policy.name, policy.purpose) == (preset, "ai-training")
    assert policy.groups.get("EEA", EEA) == EEA


def test_meta_takes_public_content_of_adults_only() -> None:
    for rule in load_policy("meta").rules:
        if rule.basis is Basis.OPT_OUT:
            assert rule.adults_only
            assert rule.visibility == frozenset({"public"})
        assert rule.kinds is None


@pytest.mark.parametrize("preset", ["linkedin", "x-grok", "opt-in"])
def test_the_other_presets_have_no_conditions(preset: str) -> None:
    for rule in load_policy(preset).rules:
        plain = Rule(rule.jurisdictions, rule.basis, rule.from_ms, rule.until_ms, line=rule.line)
        assert rule == plain


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_cites_its_sources(preset: str) -> None:
    text, _ = read_policy(preset)
    assert text.startswith("# ")
    assert "\n# Source" in text


@pytest.mark.parametrize(
    ("preset", "hash_"),
    [
        ("linkedin", "31529b625a404b5448cae8ad1148b8370f3eda954ba3fce5eea94150891bb8e6"),
        ("meta", "da9da39c361a1ee06704284f3708da66f4211a4722f69f38c17905ff938d0dbc"),
        ("opt-in", "5bc6b96283f228bd8f8134fce94d99e49194e1e4debff0a1f0d608a122d876f6"),
        ("x-grok", "df26440acfc31736e2a5e3ed2b1ab20abcd58cd0500d366b60d0a83309587bcf"),
    ],
)
def test_the_hash_of_a_preset_stays(preset: str, hash_: str) -> None:
    # Ledgers refer to these. A new hash is a changed policy, or a changed canonical form.
    assert load_policy(preset).hash == hash_


def test_the_presets_are_listed_by_name() -> None:
    assert preset_names() == PRESETS


OWN = 'name: own\npurpose: ai-training\nrules:\n- {jurisdictions: ["*"], basis: opt-in}\n'


def test_a_path_leads_to_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN, "utf-8")
    assert load_policy(str(file)).name == "own"
    assert read_policy(str(file)) == (OWN, str(file))


def test_a_preset_comes_before_a_file_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linkedin").write_text(OWN, "utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_policy("linkedin").name == "linkedin"
    assert load_policy("./linkedin").name == "own"
    assert read_policy("linkedin")[1] == "consentgate/policies/linkedin.yaml"


def test_a_broken_file_is_refused_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN.replace("opt-in", "opt-on"), "utf-8")
    with pytest.raises(PolicyError) as raised:
        load_policy(str(file))
    hint = "unknown basis 'opt-on', did you mean 'opt-in'?"
    assert str(raised.value) == f"{file}:4: rules[0].basis: {hint}"
    assert raised.value.exit_code == EXIT_CONFIG


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "linkedn",
            "the policy 'linkedn' is no preset and no readable file (No such file or directory), "
            "did you mean 'linkedin'? (presets: linkedin, meta, opt-in, x-grok)",
        ),
        (
            ".",
            "the policy '.' is no preset and no readable file (Is a directory), "
            "give a path or a preset's name (presets: linkedin, meta, opt-in, x-grok)",
        ),
        (
            "a\0b",
            "the policy 'a\\x00b' is no preset and no readable file (embedded null byte), "
            "give a path or a preset's name (presets: linkedin, meta, opt-in, x-grok)",
        ),
    ],
)
def test_what_is_neither_preset_nor_file_is_told_the_presets(name: str, message: str) -> None:
    with pytest.raises(PolicyError) as raised:
        load_policy(name)
    assert str(raised.value) == message


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_bytes(b"name: \xff")
    with pytest.raises(PolicyError, match="is not UTF-8 at byte 6, save it as UTF-8 text"):
        load_policy(str(file))
