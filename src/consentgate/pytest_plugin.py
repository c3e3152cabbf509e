"""Fixture files as tests: one for each content line that says what it expects.

It is loaded wherever consentgate and pytest are installed, and does nothing until a project's
configuration of pytest names `consentgate_policy` or `consentgate_config`. Then it collects the
files that end in `.consent.jsonl`, and those that `consentgate_files` names.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Everything else of consentgate is imported where it is needed, if it ever is.
if TYPE_CHECKING:
    from consentgate.config import Config
    from consentgate.core.policy import Policy
    from consentgate.tools.replay import Replayed

SUFFIX = ".consent.jsonl"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings of the pytest configuration file; paths count from the file's directory."""
    parser.addini("consentgate_policy", "preset or policy file that fixtures are decided under")
    parser.addini("consentgate_config", "consentgate's configuration file for fixtures")
    parser.addini(
        "consentgate_files", f"fixture files beside those that end in {SUFFIX}", type="paths"
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> FixtureFile | None:
    """Take a fixture file in, in a project that is configured for it."""
    ini = parent.config.getini
    if not (ini("consentgate_policy") or ini("consentgate_config")):
        return None
    if file_path.name.endswith(SUFFIX) or file_path in ini("consentgate_files"):
        return FixtureFile.from_parent(parent, path=file_path)
    return None


class Mismatch(Exception):
    """A line has another outcome than it expects; the text says which, and why."""


class FixtureFile(pytest.File):
    """A fixture file, replayed from an empty consent table when its first test runs."""

    def collect(self) -> Iterator[FixtureLine]:
        """The content lines with an expectation."""
        from consentgate.errors import ConsentgateError
        from consentgate.tools.fixtures import FixtureRecord, read_fixture

        try:
            lines = list(read_fixture(self.path))
            _ = self.settings
        except ConsentgateError as error:
            raise self.CollectError(str(error)) from None
        for line in lines:
            if isinstance(line, FixtureRecord) and line.expect is not None:
                yield FixtureLine.from_parent(self, name=f"line-{line.line}", line=line.line)

    @cached_property
    def settings(self) -> tuple[Config, Policy]:
        """The configuration, and the policy that is named or else the configured one."""
        from consentgate.config import load_config
        from consentgate.engines import equip
        from consentgate.policies import load_policy, preset_names

        root = self.config.inipath.parent if self.config.inipath else self.config.rootpath
        config_file = self.config.getini("consentgate_config")
        config = load_config(str(root / config_file) if config_file else None)
        name = self.config.getini("consentgate_policy") or config.policy
        policy = load_policy(name if name in preset_names() else str(root / name))
        return config, equip(config, policy)[0]

    @cached_property
    def outcomes(self) -> dict[int, Replayed]:
        """What became of each content line, by its number."""
        from consentgate.tools.replay import replay

        return {found.line: found for _, found in replay(*self.settings, [self.path])}


class FixtureLine(pytest.Item):
    """One content line: its outcome must be the expected one."""

    parent: FixtureFile

    def __init__(self, *, line: int, **parts: object) -> None:
        super().__init__(**parts)  # type: ignore[arg-type]
        self._line = line

    def runtest(self) -> None:
        """Compare.

        Raises:
            Mismatch: if the outcome is another one.
        """
        from consentgate.tools.replay import difference

        replayed = self.parent.outcomes[self._line]
        if not replayed.matches:
            _, policy = self.parent.settings
            raise Mismatch(difference(replayed, policy))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:  # type: ignore[override]
        """The difference after file and line; where a file cannot be replayed, why."""
        from consentgate.errors import ConsentgateError

        if isinstance(excinfo.value, Mismatch | ConsentgateError):
            return f"{self.path}:{self._line}: {excinfo.value}"
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        """File, line (from 0) and name."""
        return self.path, self._line - 1, self.name
