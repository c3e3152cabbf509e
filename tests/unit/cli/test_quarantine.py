"""What `quarantine` refuses before it asks a broker, and what its help says."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from consentgate.cli import app
from consentgate.core.model import Reason
from consentgate.core.quarantine import SetAside
from consentgate.errors import EXIT_USAGE
from consentgate.tools.quarantine import Entry

WHICH = "give the reasons with --reason, or --all"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("redrive",), WHICH),
        (
            ("redrive", "--since", "2025-11-03T00:00:00Z"),
            WHICH,
        ),
        (("redrive", "--all", "--reason", "too-large"), WHICH),
        (("redrive", "--reason", "undecodabel"), "did you mean 'undecodable'?"),
        (("list", "--reason", "opted-in"), "'opted-in' is no reason to quarantine"),
        (("list", "--since", "yesterday"), "not a time with a zone"),
        (("list", "--count", "--payload"), "--count prints no record"),
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(arguments: tuple[str, ...], what: str) -> None:
    # Nobody listens there, so a command that asked would end otherwise.
    environment = {"CONSENTGATE_KAFKA__BOOTSTRAP.SERVERS": "localhost:1", "COLUMNS": "200"}
    ended = CliRunner().invoke(app, ["quarantine", *arguments], env=environment)
    assert ended.exit_code == EXIT_USAGE
    assert what in " ".join(ended.output.split())


def test_the_help_warns_of_personal_data() -> None:
    told = CliRunner().invoke(app, ["quarantine", "list", "--help"]).output
    assert "They are personal data" in " ".join(told.split())


@dataclass(frozen=True)
class Kept:
    """A record of the quarantine."""

    key: bytes = b"anna"
    value: bytes = b"{secret"
    timestamp: int = 1_726_826_400_000


async def two_records(*_: object) -> AsyncIterator[Entry]:
    for number in range(2):
        found = SetAside("content", 0, number, "group", Reason.UNDECODABLE, 7, 0)
        yield Entry(f"quarantine-0@{number}", Kept(), found, False)


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_list_shows_no_payload_unless_asked(monkeypatch: pytest.MonkeyPatch, fmt: str) -> None:
    monkeypatch.setattr("consentgate.cli.quarantine.list_quarantine", two_records)
    command = ["quarantine", "list", "--format", fmt]
    told = CliRunner().invoke(app, command).stdout
    assert "quarantine-0@1" in told
    assert "anna" not in told
    assert "secret" not in told
    asked_for = CliRunner().invoke(app, [*command, "--payload", "--limit", "1"]).stdout
    assert asked_for.count("anna") == asked_for.count("secret") == 1


def test_the_numbers_alone_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consentgate.cli.quarantine.list_quarantine", two_records)
    command = ["quarantine", "list", "--count"]
    assert CliRunner().invoke(app, command).stdout == "2 records: 2 undecodable\n"
    as_json = CliRunner().invoke(app, [*command, "--format", "json"]).stdout
    assert as_json == '{"counts":{"undecodable":2}}\n'
