"""What holds for all commands: the list of them, and how errors are told."""

import logging
from pathlib import Path

import pytest

from consentgate.cli import main
from consentgate.errors import EXIT_CONFIG


def ended(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr("sys.argv", ["consentgate", *arguments])
    with pytest.raises(SystemExit) as raised:
        main()
    return raised.value.code


def test_each_command_is_listed_with_a_whole_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ended(monkeypatch, "--help") == 0
    _, listed = capsys.readouterr().out.split("Commands:\n")
    lines = listed.strip().splitlines()
    assert len(lines) == 16
    assert all(line.endswith(".") and not line.endswith("...") for line in lines), listed


def test_each_problem_of_a_file_is_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "consentgate.yaml"
    config.write_text("polcy: linkedin\ngruop: mine\n", "utf-8")
    assert ended(monkeypatch, "receipt", "-c", str(config), "anna") == EXIT_CONFIG
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"error: {config}:1: polcy: unknown key, did you mean 'policy'?"
    assert second == f"error: {config}:2: gruop: unknown key, did you mean 'group'?"


def test_the_retries_of_the_client_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    client = logging.getLogger("aiokafka")
    monkeypatch.setattr(client, "level", client.level)
    client.setLevel(logging.NOTSET)
    assert ended(monkeypatch, "lint", "opt-in") == 0
    assert not client.isEnabledFor(logging.ERROR)
