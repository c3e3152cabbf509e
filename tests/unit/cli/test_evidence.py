"""What `receipt` refuses before it reads a topic."""

from pathlib import Path

import pytest

from consentgate.cli import main
from consentgate.errors import EXIT_CONFIG

PSEUDONYMIZING = """\
name: hidden
purpose: ai-training
rules:
  - {jurisdictions: ["*"], basis: opt-in, pseudonymize: true}
"""


def test_a_receipt_is_refused_where_the_keys_of_pseudonyms_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hidden.yaml").write_text(PSEUDONYMIZING, "utf-8")
    config = tmp_path / "consentgate.yaml"
    servers = "{bootstrap.servers: 'localhost:1'}"  # Nobody is asked.
    config.write_text(f"kafka: {servers}\npolicy: {tmp_path / 'hidden.yaml'}\n", "utf-8")
    monkeypatch.setattr("consentgate.cli.evidence.make_receipt", _unwanted)
    monkeypatch.setattr("sys.argv", ["consentgate", "receipt", "-c", str(config), "anna"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == EXIT_CONFIG
    assert "keys.pseudonym names no key file" in capsys.readouterr().err


async def _unwanted(*_: object) -> None:
    raise AssertionError("topics would be read without the keys")
