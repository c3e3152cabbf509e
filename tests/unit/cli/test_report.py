"""The report's command: Faust is needed for it, and for nothing else; signals end it early, too.

The worker's ends as early.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path

import pytest

from consentgate.errors import EXIT_CONFIG

RUN = "import sys; sys.modules['faust'] = None; from consentgate.cli import main; main()"
UNNEEDED = """
import sys, consentgate.cli, consentgate.service.worker, consentgate.tools.verify
assert not {"faust", "mode", "consentgate.report.app"} & set(sys.modules)
"""


def test_without_faust_it_says_what_to_install() -> None:
    command = [sys.executable, "-c", RUN, "report"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == EXIT_CONFIG, ended.stderr
    assert ended.stderr == (
        "error: the report needs Faust, which is not installed: pip install 'consentgate[report]'\n"
    )


def test_nothing_else_imports_faust() -> None:
    subprocess.run([sys.executable, "-c", UNNEEDED], check=True)


SIGNALS = pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)


@contextmanager
def begun(config: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A subcommand as a process of its own, which does not outlive the test."""
    command = [sys.executable, "-m", "consentgate", *arguments, "-c", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@SIGNALS
def test_a_signal_ends_a_report_that_waits_for_a_broker(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    # Checked: stays for a minute where the signal does not cut `Report._work` short.
    config = tmp_path / "consentgate.yaml"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        config.write_text(f"kafka: {{bootstrap.servers: '127.0.0.1:{silent.getsockname()[1]}'}}\n")
        with begun(config, "report", "--port", "0") as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(number)
                assert process.wait(10) == status


def test_a_report_that_waits_for_a_broker_lives_and_is_not_ready(tmp_path: Path) -> None:
    # Checked: nobody answers for a minute where `Report._work` serves after `_prepare`.
    config = tmp_path / "consentgate.yaml"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        config.write_text(f"kafka: {{bootstrap.servers: '127.0.0.1:{silent.getsockname()[1]}'}}\n")
        with begun(config, "report", "--port", str(port)):
            connection, _ = silent.accept()
            with connection:
                assert ask(port, "/livez")[0] == HTTPStatus.OK
                assert ask(port, "/readyz")[0] == HTTPStatus.SERVICE_UNAVAILABLE
                status, body = ask(port, "/api/totals")
                assert status == HTTPStatus.SERVICE_UNAVAILABLE
                assert json.loads(body) == {"error": "the figures are still being read"}
                assert ask(port, "/")[0] == HTTPStatus.OK


def ask(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a page of the report."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@SIGNALS
@pytest.mark.parametrize("subcommand", ["run", "report"])
def test_a_signal_ends_what_has_only_begun(
    tmp_path: Path, subcommand: str, number: signal.Signals, status: int
) -> None:
    # Checked: -15 where nothing has SIGTERM exit before the event loop catches it.
    config = tmp_path / "consentgate.yaml"
    os.mkfifo(config)
    # The other end is opened when the configuration is about to be read.
    with begun(config, subcommand) as process, config.open("w"):
        process.send_signal(number)
        assert process.wait(10) == status
