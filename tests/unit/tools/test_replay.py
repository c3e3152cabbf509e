"""Replaying fixtures without a broker: the same decisions, line by line."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from consentgate.cli import app
from consentgate.config import Config, ContentConfig, Topics
from consentgate.core.model import Reason
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.errors import FixtureError
from consentgate.policies import load_policy
from consentgate.tools.replay import (
    Replayed,
    difference,
    line_json,
    replay,
    summary_json,
    update,
)

AT_TEN = "2024-09-20T10:00:00Z"
AT_TEN_MS = 1_726_826_400_000
OPT_OUT = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_OUT),))


def post(subject: str = "m1", **line: Any) -> dict[str, Any]:
    event = {"id": "e1", "subject": subject, "kind": "post", "visibility": "public"}
    payload = {**event, "created_at": AT_TEN}
    return {"topic": "content-events", "key": subject, "ts": AT_TEN_MS, "payload": payload, **line}


def consent(choice: str | None, subject: str = "m1", **state: Any) -> dict[str, Any]:
    choices = {} if choice is None else {"ai-training": {"choice": choice}}
    payload = {"subject": subject, "jurisdiction": "GB", "choices": choices, **state}
    return {"topic": "consent-state", "key": subject, "payload": payload}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "story.jsonl"


def replayed(
    file: Path, *lines: dict[str, Any], policy: Policy = OPT_OUT, config: Config | None = None
) -> list[Replayed]:
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return [outcome for _, outcome in replay(config or Config(), policy, [file])]


def reasons(*args: Any, **kwargs: Any) -> list[Reason]:
    return [outcome.reason for outcome in replayed(*args, **kwargs)]


def test_each_content_line_has_an_outcome_and_no_other(file: Path) -> None:
    found = replayed(file, consent("granted"), post(), {"now": AT_TEN}, post("m2"))
    assert [(each.line, each.reason) for each in found] == [
        (2, Reason.NOT_OPTED_OUT),
        (4, Reason.NO_CONSENT_RECORD),
    ]
    assert [(each.outcome, each.label) for each in found] == [
        ("forward", "*"),
        ("withhold", "unknown"),
    ]


def test_file_order_is_time_order(file: Path) -> None:
    found = reasons(file, post(), consent("granted"), post(), consent("withdrawn"), post())
    assert found == [Reason.NO_CONSENT_RECORD, Reason.NOT_OPTED_OUT, Reason.WITHDRAWN]


def test_the_state_that_a_later_line_leaves_counts(file: Path) -> None:
    tombstone = {"topic": "consent-state", "key": "m1", "payload": None}
    broken = {"topic": "consent-state", "key": "m1", "payload": "{"}
    keyless = {"topic": "consent-state", "payload": "{"}
    found = reasons(file, consent(None), post(), keyless, post(), broken, post(), tombstone, post())
    assert found == [
        Reason.NOT_OPTED_OUT,
        Reason.NOT_OPTED_OUT,
        Reason.CONSENT_UNREADABLE,
        Reason.NO_CONSENT_RECORD,
    ]


PAUSED = Policy(
    "p",
    "ai-training",
    {},
    (
        Rule(("GB",), Basis.OPT_OUT, until_ms=AT_TEN_MS),
        Rule(("GB",), Basis.SUSPENDED, from_ms=AT_TEN_MS),
    ),
)
SUSPENDED, FREE = Reason.JURISDICTION_SUSPENDED, Reason.NOT_OPTED_OUT


def test_before_the_first_clock_line_it_is_each_line_s_own_time(file: Path) -> None:
    lines = (consent(None), post(ts=AT_TEN_MS - 1), post(ts=AT_TEN_MS), post(ts=AT_TEN_MS - 1))
    assert reasons(file, *lines, policy=PAUSED) == [FREE, SUSPENDED, FREE]


def test_a_clock_line_sets_the_moment_of_all_that_follow(file: Path) -> None:
    early, late = {"now": AT_TEN_MS - 1}, {"now": AT_TEN}
    lines = (consent(None), early, post(), post(ts=AT_TEN_MS + 5), late, post(ts=5), early, post())
    assert reasons(file, *lines, policy=PAUSED) == [FREE, FREE, SUSPENDED, FREE]


def test_a_line_without_a_time_has_that_of_the_clock(file: Path) -> None:
    lines = (consent(None), {"now": AT_TEN_MS - 1}, post(ts=None), {"now": AT_TEN}, post(ts=None))
    assert reasons(file, *lines, policy=PAUSED) == [FREE, SUSPENDED]


def test_without_any_time_it_is_now(file: Path) -> None:
    now_ms = time.time_ns() // 1_000_000
    soon = Rule(("GB",), Basis.SUSPENDED, from_ms=now_ms + 3_600_000)
    before = Rule(("GB",), Basis.OPT_OUT, from_ms=now_ms - 1_000, until_ms=now_ms + 3_600_000)
    policy = Policy("p", "ai-training", {}, (before, soon))
    assert reasons(file, consent(None), post(ts=None), policy=policy) == [FREE]


def test_a_record_from_the_future_is_told_from_the_clock(file: Path) -> None:
    limit_ms = AT_TEN_MS + Config().limits.max_future_ms
    lines = (consent(None), {"now": AT_TEN}, post(ts=limit_ms), post(ts=limit_ms + 1))
    assert reasons(file, *lines) == [FREE, Reason.BAD_TIMESTAMP]


def test_the_record_is_the_value_that_would_be_forwarded(file: Path) -> None:
    kept, refused = replayed(file, consent(None), post(), post("m2"))
    assert line_json(kept)["record"] == post()["payload"]
    assert line_json(refused)["record"] is None


def test_a_line_prints_as_documented(file: Path) -> None:
    state = consent(None, adult=False)
    rules = (Rule(("*",), Basis.OPT_OUT, adults_only=True),)
    policy = Policy("p", "ai-training", {}, rules)
    (found,) = replayed(file, state, post(), policy=policy)
    assert line_json(found) == {
        "line": 2,
        "outcome": "withhold",
        "reason": "minor",
        "record": None,
    }
    assert json.loads(json.dumps(line_json(found))) == line_json(found)
    assert str(found) == "withhold:minor (*)"
    (unexpected,) = replayed(file, state, post(expect="forward"), policy=policy)
    assert str(unexpected) == "withhold:minor (*), but forward was expected"


# Expectations.


@pytest.mark.parametrize(
    ("expect", "matches"),
    [
        (None, True),
        ("withhold", True),
        ("withhold:no-consent-record", True),
        ("withhold:minor", False),
        ("forward", False),
        ("quarantine", False),
        ("quarantine:tombstone", False),
    ],
)
def test_an_outcome_matches_what_was_expected_of_it(
    file: Path, expect: str | None, matches: bool
) -> None:
    (found,) = replayed(file, post(expect=expect))
    assert found.matches is matches
    assert summary_json([found])["summary"]["mismatches"] == (0 if matches else 1)


def test_the_summary_prints_as_documented(file: Path) -> None:
    found = replayed(
        file,
        consent(None),
        post(expect="forward"),
        post(expect="withhold"),
        post("m2", expect="withhold:no-consent-record"),
        post(payload=None, expect="quarantine:tombstone"),
        post(payload="x", expect="quarantine:tombstone"),
    )
    assert summary_json(found) == {
        "summary": {
            "forward": 2,
            "withhold": 1,
            "quarantine": 2,
            "counts": {
                "no-consent-record": 1,
                "not-opted-out": 2,
                "tombstone": 1,
                "undecodable": 1,
            },
            "mismatches": 2,
        }
    }


def test_the_summary_of_nothing_is_all_zeros() -> None:
    assert summary_json([]) == {
        "summary": {"forward": 0, "withhold": 0, "quarantine": 0, "counts": {}, "mismatches": 0}
    }


# Files and configurations.


def test_each_file_begins_without_consent_and_without_a_clock(tmp_path: Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    lines = [consent(None), {"now": AT_TEN}, post()]
    first.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    early = post(ts=AT_TEN_MS - 1)
    second.write_text("\n".join(map(json.dumps, [post(), consent(None), early])), "utf-8")
    found = [(path, each.reason) for path, each in replay(Config(), PAUSED, [first, second])]
    assert found == [(first, SUSPENDED), (second, Reason.NO_CONSENT_RECORD), (second, FREE)]


def test_content_and_consent_are_told_apart_by_the_configured_topics(file: Path) -> None:
    config = Config(topics=Topics(content="posts", consent="choices"))
    lines = ({**consent(None), "topic": "choices"}, {**post(), "topic": "posts"})
    assert reasons(file, *lines, config=config) == [FREE]
    with pytest.raises(
        FixtureError, match=r"\.jsonl:1: the topic is choices, but must be content-ev"
    ):
        replayed(file, *lines)


def test_content_keyed_by_something_else_is_found_by_its_subject(file: Path) -> None:
    config = Config(content=ContentConfig(key_is_subject=False))
    assert reasons(file, consent(None), post(key="x"), config=config) == [FREE]
    assert reasons(file, consent(None), post(key="x")) == [Reason.NO_CONSENT_RECORD]


def test_the_story_of_the_uk_pause_comes_out_as_it_was(file: Path) -> None:
    # Opted in automatically, suspended on 20 September 2024, resumed on 3 November 2025.
    days = ["2024-09-19T23:59:59.999Z", "2024-09-20T00:00:00Z", "2025-11-02T23:59:59Z"]
    clock = [{"now": day} for day in [*days, "2025-11-03T00:00:00Z"]]
    lines = [each for now in clock for each in (now, post(ts=None))]
    found = reasons(file, consent(None), *lines, policy=load_policy("linkedin"))
    assert found == [FREE, SUSPENDED, SUSPENDED, FREE]


# Differences, updates, and the command.


def test_only_content_has_an_outcome_to_expect(file: Path) -> None:
    with pytest.raises(FixtureError, match=r'\.jsonl:1: "expect" stands in a consent line'):
        replayed(file, {**consent(None), "expect": "withhold"})


@pytest.mark.parametrize(
    ("lines", "author", "rule"),
    [
        ([], "not in the consent topic", "no rule applies"),
        ([{**consent(None), "payload": "{"}], "one whose consent record is unreadable", "no rule"),
        ([consent("denied", adult=True)], "GB, an adult, denied", "line 4, opt-out"),
        (
            [consent(None, adult=False, jurisdiction="xx")],
            "in no known country, a minor, no choice made",
            "no rule applies",
        ),
    ],
)
def test_a_difference_says_when_for_whom_and_by_which_rule(
    file: Path, lines: list[dict[str, Any]], author: str, rule: str
) -> None:
    policy = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_OUT, line=4),))
    (found,) = replayed(file, *lines, post(expect="forward"), policy=policy)
    first, second, third = difference(found, policy).splitlines()
    assert first == f"{found}"
    assert second == f"  at 2024-09-20T10:00:00.000Z the author was: {author}"
    assert third.startswith(f"  policy {policy.reference}: {rule}")


def test_a_difference_names_the_conditions_of_the_rule(file: Path) -> None:
    rule = Rule(
        ("*",),
        Basis.OPT_OUT,
        adults_only=True,
        visibility=frozenset({"public"}),
        kinds=frozenset({"post", "article"}),
        created_from_ms=AT_TEN_MS,
        created_until_ms=AT_TEN_MS + 1,
        line=4,
    )
    policy = Policy("p", "ai-training", {}, (rule,))
    (found,) = replayed(file, consent(None), post(expect="forward"), policy=policy)
    assert difference(found, policy).endswith(
        "line 4, opt-out; adults only; visibility public; kinds article, post; created from "
        "2024-09-20T10:00:00.000Z; created until 2024-09-20T10:00:00.001Z"
    )


def test_a_difference_can_be_told_at_any_moment(file: Path) -> None:
    (found,) = replayed(file, post(ts=10**18, expect="forward"))
    assert "at 1000000000000000000 ms the author" in difference(found, OPT_OUT)


def test_an_update_writes_what_came_out_where_something_else_is_expected(file: Path) -> None:
    lines = (
        consent("withdrawn"),
        post(),
        post(expect="forward"),
        post(expect="withhold"),
        post(expect="withhold:withdrawn"),
    )
    found = replayed(file, *lines)
    assert [each.line for each in update(file, found)] == [2, 3]
    after = [json.loads(line) for line in file.read_text().splitlines()]
    expected = [line.get("expect") for line in after]
    came_out = "withhold:withdrawn"
    assert expected == [None, came_out, came_out, "withhold", came_out]
    assert [{**line, "expect": None} for line in after] == [
        {**line, "expect": None} for line in lines
    ]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["replay", "--policy", "linkedin", *map(str, arguments)])


def test_the_command_shows_differences_and_the_summary(file: Path) -> None:
    replayed(file, post(), consent(None), {"now": AT_TEN}, post(expect="forward"))
    loud, quiet = run(file), run("-q", file)
    assert (loud.exit_code, quiet.exit_code) == (1, 1)
    first, *rest = loud.stdout.splitlines()
    assert first == f"{file}:1: withhold:no-consent-record (unknown)"
    assert rest == quiet.stdout.splitlines()
    assert rest == [
        f"{file}:4: withhold:jurisdiction-suspended (GB), but forward was expected",
        "  at 2024-09-20T10:00:00.000Z the author was: GB, of unknown age, no choice made",
        "  policy linkedin@31529b625a40: line 32, suspended",
        "0 forwarded, 2 withheld, 0 quarantined; 1 mismatch",
    ]


def test_the_command_takes_directories_and_names_the_files_of_several(tmp_path: Path) -> None:
    below = tmp_path / "b" / "c.jsonl"
    below.parent.mkdir()
    for path in (tmp_path / "z.jsonl", below, tmp_path / "a.txt"):
        path.write_text(json.dumps(post()) + "\n")
    several, single = run("--format", "json", tmp_path), run("--format", "json", below)
    lines = [json.loads(line) for line in several.stdout.splitlines()]
    assert [line.get("file") for line in lines] == [str(below), str(tmp_path / "z.jsonl"), None]
    assert list(json.loads(single.stdout.splitlines()[0])) == [
        "line",
        "outcome",
        "reason",
        "record",
    ]


def test_the_command_updates_and_says_what_it_changed(file: Path) -> None:
    replayed(file, post(), post(expect="forward"))
    done = run("-q", "--update", file)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[-3:-1] == [
        f'{file}:1: expects "withhold:no-consent-record" now',
        f'{file}:2: expects "withhold:no-consent-record" now, was "forward"',
    ]
    again = run("-q", "--update", file)
    assert again.stdout == "0 forwarded, 2 withheld, 0 quarantined; 0 mismatches\n"


def test_the_command_does_not_update_from_a_broker(file: Path) -> None:
    for options in (("--update", "--kafka"), ("--kafka", "--configured-kafka")):
        assert run(*options, file).exit_code == 2
