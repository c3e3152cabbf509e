"""`explain` and `diff` over fixtures, as users call them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consentgate.cli import app
from consentgate.config import Config, KeysConfig
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.errors import EXIT_CONFIG, EXIT_FOUND, EXIT_USAGE, FixtureError, NoSuchRecord
from consentgate.tools.explain import (
    FixtureLine,
    Place,
    Question,
    answer_json,
    answer_lines,
    explain_line,
    parse_place,
)

ROOT = Path(__file__).parents[3]
STORY = ROOT / "src/consentgate/demo/story.jsonl"
POLICY = STORY.with_name("policy.yaml")


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"CONSENTGATE_CONFIG": ""})


def line_of(content_id: str) -> int:
    lines = STORY.read_text("utf-8").splitlines()
    (number,) = (n for n, line in enumerate(lines, 1) if f'"id": "{content_id}"' in line)
    return number


def explained(content_id: str, *arguments: str) -> Any:
    place = f"{STORY}:{line_of(content_id)}"
    result = run("explain", place, "--policy", POLICY, "--format", "json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return path


# The places that can be asked about.


def test_a_place_is_a_line_of_a_fixture_or_a_record() -> None:
    assert parse_place("a/b.jsonl:7") == FixtureLine(Path("a/b.jsonl"), 7)
    assert parse_place("content-events-3@1234") == Place("content-events", 3, 1234)
    assert str(parse_place("content-events-3@1234")) == "content-events-3@1234"
    assert parse_place("odd-3@1.jsonl:7") == FixtureLine(Path("odd-3@1.jsonl"), 7)


@pytest.mark.parametrize("text", ["", "story.jsonl", "content-events@4", "content-events-3", ":7"])
def test_anything_else_is_no_place(text: str) -> None:
    with pytest.raises(NoSuchRecord, match="is no place: write FIXTURE"):
        parse_place(text)


# explain


def test_a_line_is_explained_as_replay_decides_it() -> None:
    replayed = run("replay", STORY, "--policy", POLICY, "--format", "json")
    outcomes = [json.loads(line) for line in replayed.output.splitlines()][:-1]
    assert len(outcomes) > 10
    for outcome in outcomes:
        place = f"{STORY}:{outcome['line']}"
        result = run("explain", place, "--policy", POLICY, "--format", "json")
        answer = json.loads(result.output)
        assert (answer["verdict"], answer["reason"]) == (outcome["outcome"], outcome["reason"])


def test_the_consent_record_that_counted_is_named_with_the_rule_s_line() -> None:
    answer = explained("p7")
    lines = STORY.read_text("utf-8").splitlines()
    (place,) = answer["consent"]["records"]
    assert '"withdrawn"' in lines[int(place.rpartition(":")[2]) - 1]
    assert answer["consent"]["choice"] == "withdrawn"
    file, _, number = answer["rule"]["place"].rpartition(":")
    assert 'jurisdictions: ["*"]' in Path(file).read_text("utf-8").splitlines()[int(number) - 1]
    assert [c["name"] for c in answer["conditions"] if c["met"] is False] == ["choice"]


def test_another_moment_and_another_policy_can_be_asked_for() -> None:
    assert explained("p1")["verdict"] == "forward"
    later = explained("p1", "--now", "2024-09-20T00:00:00Z")
    assert later["reason"] == "jurisdiction-suspended"
    assert later["moment"] == 1_726_790_400_000
    assert any("as --now says" in note for note in later["notes"])


def test_a_moment_before_the_record_does_not_set_it_aside(tmp_path: Path) -> None:
    event = {"id": "e", "subject": "m", "kind": "post", "visibility": "public", "created_at": 1}
    state = {"subject": "m", "jurisdiction": "GB", "choices": {}}
    path = write(
        tmp_path / "f.jsonl",
        {"topic": "consent-state", "key": "m", "payload": state},
        {"topic": "content-events", "key": "m", "ts": 1_900_000_000_000, "payload": event},
    )
    early = run("explain", f"{path}:2", "--policy", "linkedin", "--now", "2024-01-01T00:00:00Z")
    assert early.output.startswith(f"{path}:2: forward: not-opted-out\n")


def test_the_text_says_what_the_json_says() -> None:
    text = run("explain", f"{STORY}:{line_of('p7')}", "--policy", POLICY).output
    answer = explained("p7")
    assert text.startswith(f"{answer['record']}: withhold: withdrawn\n")
    assert answer["rule"]["place"] in text
    assert all(remedy in text for remedy in answer["remedies"])
    assert all(condition["wanted"] in text for condition in answer["conditions"])


def test_no_payload_and_no_subject_is_printed() -> None:
    line = line_of("p7")
    (body,) = [json.loads(STORY.read_text("utf-8").splitlines()[line - 1])["payload"]["body"]]
    for fmt in ("text", "json"):
        output = run("explain", f"{STORY}:{line}", "--policy", POLICY, "--format", fmt).output
        assert body["text"] not in output
        assert "mallory" not in output


def test_an_unreadable_consent_record_says_why(tmp_path: Path) -> None:
    event = {"id": "e", "subject": "m", "kind": "post", "visibility": "public", "created_at": 1}
    path = write(
        tmp_path / "f.jsonl",
        {"topic": "consent-state", "key": "m", "payload": {"subject": "other"}},
        {"topic": "content-events", "key": "m", "ts": 1, "payload": event},
    )
    output = run("explain", f"{path}:2").output
    assert "withhold: consent-unreadable" in output
    assert "cannot be read: key-is-not-subject" in output


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (9, "the line sets the clock"),
        (3, "the line is of topic consent-state"),
        (1, "nothing but a comment"),
        (999, "no such line"),
    ],
)
def test_a_line_that_is_not_decided_on_is_wrong_usage(line: int, what: str) -> None:
    result = run("explain", f"{STORY}:{line}", "--policy", POLICY)
    assert isinstance(result.exception, NoSuchRecord)
    assert result.exception.exit_code == EXIT_USAGE
    assert what in str(result.exception)


def test_a_file_that_is_not_there_is_refused() -> None:
    result = run("explain", "nowhere.jsonl:1")
    assert isinstance(result.exception, FixtureError)
    assert result.exception.exit_code == EXIT_CONFIG


def test_a_time_without_a_zone_is_wrong_usage() -> None:
    result = run("explain", f"{STORY}:10", "--now", "2025-11-03")
    assert result.exit_code == EXIT_USAGE
    assert "write it like 2025-11-03T00:00:00Z" in result.output


# diff


def test_two_policies_over_a_fixture() -> None:
    result = run("diff", "linkedin", POLICY, STORY, "--format", "json")
    assert result.exit_code == EXIT_FOUND
    found = json.loads(result.output)
    (change,) = found["changes"]
    assert (change["before"]["reason"], change["after"]["reason"]) == ("not-opted-out", "minor")
    assert change["examples"] == [f"{STORY}:{line_of('p4')}"]
    assert (found["changed"], found["started"], found["stopped"]) == (1, 0, 1)
    text = run("diff", "linkedin", POLICY, STORY)
    assert text.exit_code == EXIT_FOUND
    assert "forward: not-opted-out  withhold: minor  1" in text.output


def test_the_same_policy_changes_nothing() -> None:
    result = run("diff", POLICY, POLICY, STORY)
    assert result.exit_code == 0
    assert "nothing changes: 14 records come out alike" in result.output


def test_one_policy_at_two_moments_whatever_the_fixture_s_clock_says(tmp_path: Path) -> None:
    moments = ("--at", "2024-09-19T23:59:59.999Z", "--at", "2024-09-20T00:00:00Z")
    result = run("diff", "linkedin", *moments, STORY, "--format", "json")
    assert result.exit_code == EXIT_FOUND
    found = json.loads(result.output)
    assert found["before"]["at"] == found["after"]["at"] - 1
    assert {change["after"]["reason"] for change in found["changes"]} == {"jurisdiction-suspended"}
    # Posts of before and of after the suspension: both are asked for the two moments.
    assert found["stopped"] == 5
    same = run("diff", "linkedin", *moments[:2], *moments[:2], STORY)
    assert same.exit_code == 0


def test_two_policies_at_one_moment() -> None:
    result = run("diff", "linkedin", "opt-in", "--at", "2030-01-01T00:00:00Z", STORY)
    assert result.exit_code == EXIT_FOUND
    assert "suspended" not in result.output


@pytest.mark.parametrize("changed", ["fields: [title]", "redact: [email]", "pseudonymize: true"])
def test_what_goes_on_with_other_content_has_changed(changed: str, tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.yaml", tmp_path / "other.yaml"
    rules = 'name: p\npurpose: ai-training\nrules:\n- {jurisdictions: ["*"], basis: opt-out'
    plain.write_text(f"{rules}}}\n")
    other.write_text(f"{rules}, {changed}}}\n")
    key, config = tmp_path / "key", tmp_path / "consentgate.yaml"
    key.write_text("0123456789abcdef" * 4)
    config.write_text(f"keys: {{pseudonym: ['{key}']}}\n")
    body = {"title": "Hello", "text": "Write to anna@example.org"}
    event = {"id": "e", "subject": "m", "kind": "post", "visibility": "public", "created_at": 1}
    state = {"subject": "m", "jurisdiction": "GB", "choices": {}}
    folder = tmp_path / "fixtures"
    folder.mkdir()
    path = write(
        folder / "f.jsonl",
        {"topic": "consent-state", "key": "m", "payload": state},
        {"topic": "content-events", "key": "m", "ts": 1, "payload": event | {"body": body}},
    )
    result = run("diff", plain, other, folder, "-c", config, "--format", "json")
    assert result.exit_code == EXIT_FOUND
    found = json.loads(result.output)
    assert (found["changed"], found["otherwise"], found["started"]) == (1, 1, 0)
    (row,) = found["changes"]
    assert (row["before"], row["otherwise"]) == (row["after"], True)
    assert row["examples"] == [f"{path}:2"]
    text = run("diff", plain, other, folder, "-c", config).output
    assert "forward: not-opted-out, with other content" in text
    assert "1 would be forwarded with other content" in text
    assert "anna" not in text
    assert run("diff", other, other, folder, "-c", config).exit_code == 0


def test_the_policies_of_a_diff_are_named_as_the_ledger_names_them(tmp_path: Path) -> None:
    policy, key, config = (tmp_path / name for name in ("p.yaml", "key", "consentgate.yaml"))
    policy.write_text(
        'name: p\npurpose: t\nrules:\n- {jurisdictions: ["*"], basis: opt-in, pseudonymize: true}'
    )
    key.write_text("0123456789abcdef" * 4)
    config.write_text(f"keys: {{pseudonym: ['{key}']}}\n")
    enforced = json.loads(run("lint", policy, "-c", config, "--format", "json").output)["policy"]
    found = json.loads(run("diff", policy, policy, STORY, "-c", config, "--format", "json").output)
    assert found["before"]["policy"] == enforced[: len("p@") + 12]


@pytest.mark.parametrize(
    "arguments",
    [
        ("linkedin",),
        ("linkedin", "opt-in"),
        ("linkedin", "opt-in", str(STORY), "--last", "5"),
        ("linkedin", "opt-in", str(STORY), *(("--at", "2025-11-03T00:00:00Z") * 3)),
        ("linkedin", "opt-in", str(STORY), "--at", "yesterday"),
    ],
)
def test_what_makes_no_question_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert run("diff", *arguments).exit_code == EXIT_USAGE


def test_the_page_shows_what_the_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/explaining.md").read_text("utf-8")
    shown = re.findall(
        r"^```console\n\$ consentgate (.*?)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    over_fixtures = [(line, output) for line, output in shown if "-c" not in line.split()]
    assert len(over_fixtures) == 4
    for line, output in over_fixtures:
        assert run(*line.split()).output == output


def test_what_a_rule_would_change_of_the_record_is_told(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 4)
    config = Config(keys=KeysConfig(pseudonym=[str(key)]))
    rule = Rule(("*",), Basis.OPT_OUT, fields=("text",), redact=("email",), pseudonymize=True)
    question = Question(config, Policy("p", "ai-training", {}, (rule,)), "p.yaml")
    answer = explain_line(question, FixtureLine(STORY, line_of("p1")))
    text = "\n".join(answer_lines(answer))
    for told in ("of the body only text", "redacted: email", "the subject is pseudonymized"):
        assert told in text
    assert answer_json(answer)["rule"]["redact"] == ["email"]


def test_the_policies_of_a_diff_are_named_as_in_the_ledger(tmp_path: Path) -> None:
    key = tmp_path / "pseudonym.key"
    key.write_text("k" * 64, "utf-8")
    config = tmp_path / "consentgate.yaml"
    config.write_text(f"keys: {{pseudonym: [{key}]}}\n", "utf-8")
    hidden = tmp_path / "hidden.yaml"
    hidden.write_text(
        "name: hidden\npurpose: ai-training\nrules:\n"
        '  - {jurisdictions: ["*"], basis: opt-in, pseudonymize: true}\n',
        "utf-8",
    )
    as_json = ("-c", config, "--format", "json")
    decided = json.loads(
        run("explain", f"{STORY}:{line_of('p1')}", "--policy", hidden, *as_json).output
    )
    compared = json.loads(run("diff", hidden, "opt-in", STORY, *as_json).output)
    assert compared["before"]["policy"] == decided["policy"]
    assert decided["policy"] not in run("lint", hidden).output


def test_a_fixture_in_the_place_of_a_policy_is_said_to_be_one() -> None:
    result = run("diff", POLICY, STORY)
    assert result.exit_code == EXIT_USAGE
    assert "stands where a policy is wanted" in " ".join(result.output.split())
