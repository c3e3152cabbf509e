"""What the other tests here need is there."""

import shutil

import pytest


@pytest.mark.parametrize("program", ["prometheus", "promtool", "chromium"])
def test_a_program_is_installed(program: str) -> None:
    assert shutil.which(program), f"run tests/ops/install.sh: there is no {program}"
