"""The report's command: Faust is needed for it, and for nothing else."""

import subprocess
import sys

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
