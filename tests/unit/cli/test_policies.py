"""The commands about policies: what they print, and the exit codes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from consentgate.cli import main
from consentgate.config import load_config
from consentgate.engines import equip
from consentgate.errors import EXIT_CONFIG, EXIT_FOUND, EXIT_USAGE, ConfigError
from consentgate.policies import load_policy

Command = Callable[..., int]

WITH_A_GAP = """\
name: gap
purpose: ai-training
rules:
  - {jurisdictions: [GB], from: 2024-09-20T00:00:00Z, basis: suspended}
  - {jurisdictions: ["*"], basis: opt-in}
"""
TRANSFORMING = """\
name: changed
purpose: ai-training
rules:
  - {jurisdictions: ["*"], basis: opt-in, redact: [email], pseudonymize: true}
"""
GAP = (
    "no rule is in force for GB until 2024-09-20T00:00:00Z, "
    "add one, which is 'suspended' if nothing may be used"
)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command line beside the file `gap.yaml`; its exit code."""
    (tmp_path / "gap.yaml").write_text(WITH_A_GAP, "utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["consentgate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


@pytest.mark.parametrize(("options", "code"), [([], 0), (["--strict"], EXIT_FOUND)])
def test_lint_exits_with_1_for_warnings_where_it_is_strict(
    options: list[str], code: int, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("lint", "gap.yaml", *options) == code
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"warning: gap.yaml:4: rules[0].from: {GAP}"
    assert second.startswith("gap@")
    assert second.endswith(": 2 rules, 1 warning")


@pytest.mark.parametrize("options", [[], ["--strict"]])
def test_lint_exits_with_0_for_a_policy_without_problems(
    options: list[str], command: Command
) -> None:
    assert command("lint", "linkedin", *options) == 0


def test_lint_prints_the_hash_and_the_problems_as_json(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("lint", "gap.yaml", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy"].startswith("gap@")
    assert len(found["policy"]) == len("gap@") + 64
    assert found["problems"] == [
        {
            "file": "gap.yaml",
            "line": 4,
            "key": "rules[0].from",
            "message": GAP,
            "severity": "warning",
        }
    ]


def test_lint_prints_errors_as_json_and_no_hash(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.yaml").write_text(WITH_A_GAP.replace("opt-in", "optin"), "utf-8")
    assert command("lint", "broken.yaml", "--format", "json") == EXIT_FOUND
    found = json.loads(capsys.readouterr().out)
    assert found["policy"] is None
    assert [problem["severity"] for problem in found["problems"]] == ["error"]


def test_a_timeline_is_of_a_preset_or_a_file(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("timeline", "gap.yaml", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [course["jurisdictions"] for course in found["courses"]] == [["GB"], ["*"]]
    assert command("timeline", "linkedin") == 0
    assert "everywhere else" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("moment", "basis"),
    [("2024-09-19T23:59:59Z", None), ("2024-09-20T00:00:00Z", "suspended"), ("now", "suspended")],
)
def test_a_timeline_says_what_holds_at_one_moment(
    moment: str, basis: str | None, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("timeline", "gap.yaml", "--at", moment, "--format", "json") == 0
    (stretch,) = json.loads(capsys.readouterr().out)["courses"][0]["stretches"]
    assert stretch["basis"] == basis


@pytest.mark.parametrize("moment", ["2024-09-20", "0001-01-01T00:00:00+01:00", "today"])
def test_what_is_no_moment_is_wrong_usage(
    moment: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("timeline", "linkedin", "--at", moment) == EXIT_USAGE
    assert "such as 2024-09-20T00:00:00Z" in " ".join(capsys.readouterr().err.split())


def test_a_broken_policy_has_no_timeline(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.yaml").write_text(WITH_A_GAP.replace("opt-in", "optin"), "utf-8")
    assert command("timeline", "broken.yaml") == EXIT_CONFIG
    assert "unknown basis 'optin', did you mean 'opt-in'?" in capsys.readouterr().err


# The hash of a policy that redacts or pseudonymizes.


@pytest.fixture
def enforced(command: Command) -> str:
    """The hash, with the name, of `changed.yaml` as `consentgate.yaml` enforces it."""
    Path("changed.yaml").write_text(TRANSFORMING, "utf-8")
    Path("key").write_text("0123456789abcdef" * 4)
    Path("consentgate.yaml").write_text("keys: {pseudonym: [key]}\n", "utf-8")
    loaded = load_policy("changed.yaml")
    equipped, _ = equip(load_config("consentgate.yaml", {}), loaded)
    assert equipped.hash != loaded.hash
    return equipped.full_reference


@pytest.mark.parametrize("name", ["lint", "timeline"])
def test_the_hash_is_the_one_that_the_ledger_will_show(
    name: str, enforced: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with_config = (name, "changed.yaml", "-c", "consentgate.yaml")
    assert command(*with_config, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["policy"], found["hash_unknown"]) == (enforced, None)
    assert command(*with_config) == 0
    # A timeline shows as much of it as the ledger does.
    assert capsys.readouterr().out.startswith(enforced[: len("changed@") + 12])


@pytest.mark.parametrize("name", ["lint", "timeline"])
def test_no_hash_is_shown_where_the_keys_are_not_known(
    name: str, enforced: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name, "changed.yaml", "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy"] is None
    assert found["hash_unknown"].startswith("the policy changed pseudonymizes (line 4), but keys.")
    assert command(name, "changed.yaml") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "its hash in the ledger is not known without the right -c: the policy changed" in text
    assert "@" not in text


def test_no_hash_is_shown_where_what_redacts_is_not_installed(
    enforced: str,
    command: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_missing(detectors: object) -> None:
        raise ConfigError("phonenumbers is not installed")

    monkeypatch.setattr("consentgate.engines._engine", is_missing)
    assert command("lint", "changed.yaml", "-c", "consentgate.yaml") == 0
    out = capsys.readouterr().out
    assert "not installed" in out
    assert "@" not in out


def test_a_policy_that_redacts_names_is_refused_without_presidio(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "consentgate.redaction.names", raising=False)
    Path("names.yaml").write_text(TRANSFORMING.replace("[email]", "[email, name]"), "utf-8")
    Path("key").write_text("0123456789abcdef" * 4)
    Path("consentgate.yaml").write_text("keys: {pseudonym: [key]}\n", "utf-8")
    assert command("run", "-c", "consentgate.yaml", "--policy", "names.yaml") == EXIT_CONFIG
    assert 'pip install "consentgate[presidio]"' in capsys.readouterr().err
    assert command("lint", "-c", "consentgate.yaml", "names.yaml") == 0
    out = capsys.readouterr().out
    assert 'pip install "consentgate[presidio]"' in out
    assert "@" not in out


def test_a_configuration_that_cannot_be_read_is_refused(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("lint", "gap.yaml", "-c", "nowhere.yaml") == EXIT_CONFIG
    assert "nowhere.yaml" in capsys.readouterr().err
