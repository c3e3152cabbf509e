"""The commands that run something: what is wrong usage, before anything is run."""

import pytest
from typer.testing import CliRunner

from consentgate.cli import app
from consentgate.errors import EXIT_USAGE


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_what_is_no_port_is_wrong_usage(port: str) -> None:
    result = CliRunner().invoke(app, ["broker", "--port", port])
    assert result.exit_code == EXIT_USAGE
    assert "--port" in result.output
