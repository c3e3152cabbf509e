"""The command line: one module for each kind of work that people do with it."""

import logging
import sys
import traceback

import typer

from consentgate.cli import evidence, fixtures, operate, policies, quarantine, questions, report
from consentgate.errors import EXIT_CONFIG, EXIT_INTERNAL, ConsentgateError
from consentgate.kafka.connecting import denial

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Forwards only the content events whose authors may be used to train on, exactly once.",
)
for group in (operate, fixtures, evidence, report, quarantine, questions, policies):
    app.add_typer(group.commands)


def main() -> None:
    """Run the command line; an error becomes a message and its exit code."""
    # The client reports every retry as an error; what matters of it reaches our own messages.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        app()
    except ConsentgateError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if (denied := denial(error)) is not None:
            print(f"error: {denied}", file=sys.stderr)
            sys.exit(EXIT_CONFIG)
        traceback.print_exc()
        sys.exit(EXIT_INTERNAL)
