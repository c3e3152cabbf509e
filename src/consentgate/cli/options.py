"""What several commands share: their options, and how they show progress."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consentgate.config import Config, load_config
from consentgate.core.decode import epoch_ms
from consentgate.core.policy import Policy, utc_text
from consentgate.engines import equip
from consentgate.errors import ConfigError
from consentgate.policies import load_policy

OnProgress = Callable[[int, int], None]
"""Gets how much is done, and how much there is to do."""

T = TypeVar("T")

err = Console(stderr=True, soft_wrap=True)


class Format(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


ConfigOption = Annotated[
    str | None,
    typer.Option("-c", "--config", envvar="CONSENTGATE_CONFIG", help="The configuration file."),
]
PolicyOption = Annotated[
    str | None,
    typer.Option("--policy", help="A preset's name or a path; else the configuration's policy."),
]
FixtureFiles = Annotated[
    list[Path],
    typer.Argument(help="Fixture files, JSON lines; or directories, for all *.jsonl below."),
]
LOG_JSON = not sys.stderr.isatty()
LogJsonOption = Annotated[
    bool,
    typer.Option(
        "--log-json",
        help="Write the log as JSON lines, as where standard error is no terminal.",
        show_default=False,
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the results.")]


def configured(config_path: str | None, policy_name: str | None) -> tuple[Config, Policy]:
    """The configuration, and the policy that is named or else the configured one."""
    config = load_config(config_path)
    policy, _ = equip(config, load_policy(policy_name or config.policy))
    return config, policy


def pinned(config: Config, policy: Policy) -> tuple[Policy | None, str | None]:
    """The policy with the hash that the ledger shows; or None, and why that is not known here.

    The hash also depends on the engines and keys of the configuration, where rules need any.
    """
    try:
        return equip(config, policy)[0], None
    except ConfigError as error:
        return None, str(error)


def moment(text: str) -> int:
    """Epoch milliseconds of a time that a user writes."""
    try:
        time_ms = epoch_ms(text)
        utc_text(time_ms)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a time with a zone, write it like 2025-11-03T00:00:00Z"
        ) from None
    return time_ms


def progress_bar() -> Progress:
    """A progress bar on standard error, where that is a terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def run_with_progress(what: str, work: Callable[[OnProgress], Coroutine[Any, Any, T]]) -> T:
    """The result of what tells how far it is; it is shown meanwhile."""
    with progress_bar() as progress:
        task = progress.add_task(what, total=None)
        return asyncio.run(
            work(lambda done, total: progress.update(task, completed=done, total=total))
        )
