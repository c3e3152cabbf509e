"""What `quarantine` refuses before it asks a broker, and what its help says."""

import pytest
from typer.testing import CliRunner

from consentgate.cli import app
from consentgate.errors import EXIT_USAGE

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
