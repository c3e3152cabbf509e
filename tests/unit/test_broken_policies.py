"""Policies with the mistakes that people make, and what each of them is told.

Beside each `tests/fixtures/broken-policies/NAME.yaml` lies `NAME.txt` with what `consentgate lint`
prints of it. After a change of messages, `make golden` writes these anew; read what has
changed as somebody would who knows nothing but the file and the message.
"""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from consentgate.cli import main
from consentgate.core.policyfile import lint_policy
from consentgate.errors import EXIT_CONFIG, EXIT_FOUND

FOLDER = Path(__file__).parents[1] / "fixtures" / "broken-policies"
BROKEN = sorted(file.name for file in FOLDER.glob("*.yaml"))
REWRITE = "REWRITE_GOLDEN" in os.environ

Command = Callable[..., int]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs a command line among the broken policies; its exit code."""
    monkeypatch.chdir(FOLDER)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["consentgate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def golden(name: str) -> str:
    return (FOLDER / name).with_suffix(".txt").read_text("utf-8")


def linted(name: str) -> str:
    policy, problems = lint_policy((FOLDER / name).read_text("utf-8"), name)
    assert policy is None
    return "".join(f"{problem.severity}: {problem}\n" for problem in problems)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_policy_is_told_what_is_wrong(name: str) -> None:
    found = linted(name)
    if REWRITE:
        (FOLDER / name).with_suffix(".txt").write_text(found, "utf-8")
    assert found == golden(name)


@pytest.mark.parametrize("name", BROKEN)
def test_every_line_names_file_line_and_key_and_then_what_to_do(name: str) -> None:
    for line in golden(name).splitlines():
        found = re.fullmatch(rf"error: {re.escape(name)}:([1-9]\d*): [^:]+: (.+)", line)
        assert found is not None, line
        assert "," in found[2] or "must be true or false" in found[2], line


@pytest.mark.parametrize("name", BROKEN)
def test_lint_says_so_and_exits_with_1(
    name: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("lint", name) == EXIT_FOUND
    assert capsys.readouterr().out == golden(name)


@pytest.mark.parametrize("name", BROKEN)
def test_run_refuses_it_in_the_same_words_before_it_asks_a_broker(
    name: str, command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        config = tmp_path / "consentgate.yaml"
        address = f"127.0.0.1:{broker.getsockname()[1]}"
        config.write_text(f"kafka: {{bootstrap.servers: '{address}'}}\npolicy: {name}\n", "utf-8")
        assert command("run", "-c", str(config)) == EXIT_CONFIG
        # A connection would wait here to be accepted.
        broker.settimeout(0)
        with pytest.raises(BlockingIOError):
            broker.accept()
    assert capsys.readouterr().err == golden(name)


def test_every_golden_file_belongs_to_a_policy() -> None:
    assert len(BROKEN) >= 30
    assert {file.stem for file in FOLDER.glob("*.txt")} == {Path(name).stem for name in BROKEN}
