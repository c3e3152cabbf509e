"""Policies: whether they are right, and what they say; the schemas of what people write."""

import time
from typing import Annotated

import msgspec
import orjson
import typer
from rich.console import Console

from consentgate.cli.options import ConfigOption, Format, FormatOption, pinned
from consentgate.config import load_config
from consentgate.core.decode import epoch_ms
from consentgate.core.policy import utc_text
from consentgate.core.policyfile import lint_policy
from consentgate.errors import EXIT_FOUND
from consentgate.policies import load_policy, read_policy
from consentgate.schemas import Schema, schema_text
from consentgate.tools.timeline import hash_unknown_text, timeline_json, timeline_text

commands = typer.Typer()


@commands.command()
def lint(
    policy: Annotated[str, typer.Argument(help="A policy file, or a preset's name.")],
    config_path: ConfigOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings exit with 1, too.")] = False,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Check a policy, and print its hash. Exit 1 where it has errors.

    The hash is that of the ledger. Where rules redact or pseudonymize, it also depends on the
    engines and keys of the configuration.

    Example: consentgate lint policies/mine.yaml

    Example: consentgate lint -c consentgate.yaml policies/mine.yaml
    """
    config = load_config(config_path)
    text, file = read_policy(policy)
    linted, problems = lint_policy(text, file)
    known, why_unknown = (None, None) if linted is None else pinned(config, linted)
    reference = None if known is None else known.full_reference
    if fmt is Format.JSON:
        found = [msgspec.to_builtins(problem) for problem in problems]
        shown = {"policy": reference, "hash_unknown": why_unknown, "problems": found}
        print(orjson.dumps(shown).decode())
    else:
        for problem in problems:
            print(f"{problem.severity}: {problem}")
        if linted is not None:
            counts = f"{_count(len(linted.rules), 'rule')}, {_count(len(problems), 'warning')}"
            print(f"{reference or linted.name}: {counts}")
        if why_unknown is not None:
            print(hash_unknown_text(why_unknown))
    if linted is None or (strict and problems):
        raise typer.Exit(EXIT_FOUND)


@commands.command()
def timeline(
    policy: Annotated[str, typer.Argument(help="A policy file, or a preset's name.")],
    config_path: ConfigOption = None,
    at: Annotated[
        str | None,
        typer.Option("--at", help="Only what holds at this time with a zone, or 'now'."),
    ] = None,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Show which basis holds where and when. The bars are in order of time, not to its scale.

    Example: consentgate timeline linkedin --at 2024-09-20T00:00:00Z
    """
    at_ms = None if at is None else _moment_ms(at)
    config = load_config(config_path)
    loaded = load_policy(policy)
    known, why_unknown = pinned(config, loaded)
    if fmt is Format.JSON:
        print(orjson.dumps(timeline_json(known or loaded, at_ms, why_unknown)).decode())
    else:
        text = timeline_text(known or loaded, at_ms, why_unknown)
        Console(highlight=False, markup=False).print(text)


@commands.command()
def schema(
    file: Annotated[Schema, typer.Argument(help="The kind of file.")],
) -> None:
    """Print the JSON Schema of policies or configurations. Editors complete and check with it.

    Example: consentgate schema policy > policy.schema.json
    """
    print(schema_text(file), end="")


def _moment_ms(text: str) -> int:
    if text == "now":
        return time.time_ns() // 1_000_000
    try:
        at_ms = epoch_ms(text)
        utc_text(at_ms)  # Some zones carry the first and the last year beyond the calendar.
    except (ValueError, OverflowError):
        message = f"{text!r} is neither 'now' nor a time with a zone, such as 2024-09-20T00:00:00Z"
        raise typer.BadParameter(message, param_hint="--at") from None
    return at_ms


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
