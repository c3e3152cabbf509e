"""Policies: whether they are right, and what they say; the schemas of what people write."""

import time
from typing import Annotated

import msgspec
import orjson
import typer
from rich.console import Console

from consentgate.cli.options import Format, FormatOption
from consentgate.core.decode import epoch_ms
from consentgate.core.policy import utc_text
from consentgate.core.policyfile import lint_policy
from consentgate.errors import EXIT_FOUND
from consentgate.policies import load_policy, read_policy
from consentgate.schemas import Schema, schema_text
from consentgate.tools.timeline import timeline_json, timeline_text

commands = typer.Typer()


@commands.command()
def lint(
    policy: Annotated[str, typer.Argument(help="A policy file, or a preset's name.")],
    strict: Annotated[bool, typer.Option("--strict", help="Warnings exit with 1, too.")] = False,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Check a policy; exit 1 where it has errors.

    Example: consentgate lint policies/mine.yaml
    """
    text, file = read_policy(policy)
    linted, problems = lint_policy(text, file)
    if fmt is Format.JSON:
        found = [msgspec.to_builtins(problem) for problem in problems]
        reference = None if linted is None else linted.full_reference
        print(orjson.dumps({"policy": reference, "problems": found}).decode())
    else:
        for problem in problems:
            print(f"{problem.severity}: {problem}")
        if linted is not None:
            counts = f"{_count(len(linted.rules), 'rule')}, {_count(len(problems), 'warning')}"
            print(f"{linted.full_reference}: {counts}")
    if linted is None or (strict and problems):
        raise typer.Exit(EXIT_FOUND)


@commands.command()
def timeline(
    policy: Annotated[str, typer.Argument(help="A policy file, or a preset's name.")],
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
    loaded = load_policy(policy)
    if fmt is Format.JSON:
        print(orjson.dumps(timeline_json(loaded, at_ms)).decode())
    else:
        Console(highlight=False, markup=False).print(timeline_text(loaded, at_ms))


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
