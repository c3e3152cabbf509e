"""What the topics prove afterwards: for everybody, and for one person."""

from typing import Annotated

import msgspec
import orjson
import typer

from consentgate.cli.options import (
    ConfigOption,
    Format,
    FormatOption,
    configured,
    run_with_progress,
)
from consentgate.config import load_config
from consentgate.errors import EXIT_FOUND
from consentgate.policies import load_policy
from consentgate.signing import load_signature_check
from consentgate.tools.receipt import make_receipt, receipt_lines
from consentgate.tools.verify import verification_json, verification_lines
from consentgate.tools.verify import verify as verify_topics

commands = typer.Typer()


@commands.command()
def verify(
    config_path: ConfigOption = None,
    policy_names: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy that was in force; repeat for several."),
    ] = None,
    configs_before: Annotated[
        list[str] | None,
        typer.Option(
            "--config-before",
            help="A configuration whose content or limits were in force; repeat for several.",
        ),
    ] = None,
    public_key: Annotated[
        str | None,
        typer.Option("--public-key", help="Every ledger entry must be signed; a PEM file."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where something could not be checked.")
    ] = False,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Check from the topics alone that nothing slipped through. Exit 1 on a violation.

    Example: consentgate verify -c consentgate.yaml --policy linkedin --strict
    """
    config = load_config(config_path)
    policies = [load_policy(name) for name in policy_names or [config.policy]]
    earlier = [load_config(path) for path in configs_before or ()]
    is_signed = None if public_key is None else load_signature_check(public_key)
    verification = run_with_progress(
        "verify",
        lambda on_progress: verify_topics(config, policies, on_progress, is_signed, earlier),
    )
    if fmt is Format.JSON:
        print(orjson.dumps(verification_json(verification)).decode())
    else:
        print("\n".join(verification_lines(verification)))
    if verification.violations or (strict and verification.unchecked):
        raise typer.Exit(EXIT_FOUND)


@commands.command()
def receipt(
    subject: Annotated[
        str, typer.Argument(help="The subject id, as the consent topic's keys have it.")
    ],
    config_path: ConfigOption = None,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Say what the topics hold of one person.

    When each change took effect, what went on, and where it was retracted.

    Example: consentgate receipt -c consentgate.yaml member-17
    """
    # Without the keys, what left under a pseudonym would be missing without a word.
    config, _ = configured(config_path, None)
    made = run_with_progress(
        "receipt", lambda on_progress: make_receipt(config, subject, on_progress)
    )
    if fmt is Format.JSON:
        print(msgspec.json.encode(made).decode())
    else:
        print("\n".join(receipt_lines(made, config.consent.fields.choices)))
    if not made.changes and not made.forwarded:
        raise typer.Exit(EXIT_FOUND)
