"""Policies: whether they are right."""

from typing import Annotated

import msgspec
import orjson
import typer

from consentgate.cli.options import Format, FormatOption
from consentgate.core.policyfile import lint_policy
from consentgate.errors import EXIT_FOUND
from consentgate.policies import read_policy

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
            print(f"{linted.full_reference}: {len(linted.rules)} rules, {len(problems)} warnings")
    if linted is None or (strict and problems):
        raise typer.Exit(EXIT_FOUND)
