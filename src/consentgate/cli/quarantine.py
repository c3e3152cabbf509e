"""What was set aside: seeing it, and giving it to the workers again."""

import asyncio
from collections import Counter
from contextlib import aclosing
from typing import Annotated

import orjson
import typer

from consentgate.cli.options import (
    ConfigOption,
    Format,
    FormatOption,
    OnProgress,
    err,
    moment,
    run_with_progress,
)
from consentgate.config import Config, load_config
from consentgate.core.document import nearest
from consentgate.core.model import Reason
from consentgate.core.quarantine import REASONS, Selection
from consentgate.errors import EXIT_INTERRUPTED, ConsentgateError
from consentgate.tools.quarantine import (
    Entry,
    Redriven,
    Request,
    counts_text,
    entry_json,
    entry_line,
    list_quarantine,
    payload_lines,
    redriven_json,
    redriven_lines,
)
from consentgate.tools.quarantine import redrive as redrive_records

commands = typer.Typer()
quarantine = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List what was quarantined, or append it again.",
)
commands.add_typer(quarantine, name="quarantine")


def _reason(text: str) -> Reason:
    for reason in REASONS:
        if text == reason:
            return reason
    hint = nearest(text, [str(reason) for reason in REASONS])
    raise typer.BadParameter(f"{text!r} is no reason to quarantine, {hint}")


ReasonOption = Annotated[
    list[Reason] | None,
    typer.Option(
        "--reason",
        parser=_reason,
        metavar="REASON",
        help=f"Only these; repeat for several of {', '.join(REASONS)}.",
    ),
]
SinceOption = Annotated[
    int | None,
    typer.Option(
        "--since",
        parser=moment,
        metavar="TIME",
        help="Only what was quarantined then or later, such as 2025-11-03T00:00:00Z.",
    ),
]
UntilOption = Annotated[
    int | None,
    typer.Option("--until", parser=moment, metavar="TIME", help="Only what was before."),
]
PartitionOption = Annotated[
    int | None, typer.Option(min=0, help="Only what came from this content partition.")
]


@quarantine.command("list")
def list_records(
    config_path: ConfigOption = None,
    reasons: ReasonOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    partition: PartitionOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many records at most.")] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Only say how many there are, by reason.")
    ] = False,
    payload: Annotated[
        bool,
        typer.Option(
            "--payload",
            help="Print keys and values, too. They are personal data: mind where they go.",
        ),
    ] = False,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """List what was quarantined, without keys and values.

    Example: consentgate quarantine list -c consentgate.yaml --reason undecodable --limit 20

    Example: consentgate quarantine list -c consentgate.yaml --since 2025-11-03T00:00:00Z --count
    """
    if count and payload:
        raise typer.BadParameter("--count prints no record, so there is no --payload to print")
    config = load_config(config_path)
    selection = Selection(reasons or REASONS, since, until, partition)
    counts: Counter[str] = Counter()

    async def work(on_progress: OnProgress) -> None:
        async with aclosing(list_quarantine(config, selection, on_progress)) as entries:
            async for entry in entries:
                counts[str(entry.found.reason)] += 1
                if not count:
                    print(_shown(entry, fmt, with_payload=payload))
                if counts.total() == limit:
                    break

    if count:
        run_with_progress("quarantine", work)
    else:
        # What is printed shows how far it is; a bar would get in between.
        asyncio.run(work(lambda done, total: None))
    if fmt is Format.TEXT:
        print(counts_text(counts))
    elif count:
        print(orjson.dumps({"counts": dict(counts)}).decode())


def _shown(entry: Entry, fmt: Format, *, with_payload: bool) -> str:
    if fmt is Format.JSON:
        return orjson.dumps(entry_json(entry, with_payload=with_payload)).decode()
    return "\n".join([entry_line(entry), *(payload_lines(entry) if with_payload else ())])


@quarantine.command("redrive")
def redrive(
    config_path: ConfigOption = None,
    reasons: ReasonOption = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Whatever the reason; instead of --reason.")
    ] = False,
    since: SinceOption = None,
    until: UntilOption = None,
    partition: PartitionOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many records at most.")] = None,
    max_attempts: Annotated[
        int,
        typer.Option(
            min=1, help="Leave what was redriven so often already, and quarantined again."
        ),
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Append what was quarantined to the content topic again.

    The workers decide it anew, by the consent and the policy of that moment. No record is appended
    twice, however often this runs, with whichever filters; after Ctrl-C it goes on.

    Example: consentgate quarantine redrive -c consentgate.yaml --reason missing-field --dry-run

    Example: consentgate quarantine redrive -c consentgate.yaml --all --until 2025-11-03T00:00:00Z
    """
    if everything == bool(reasons):
        raise typer.BadParameter("give the reasons with --reason, or --all for whatever there is")
    config = load_config(config_path)
    selection = Selection(reasons or REASONS, since, until, partition)
    request, result = Request(selection, max_attempts, limit, dry_run), Redriven()
    try:
        run_with_progress(
            "redrive", lambda on_progress: redrive_records(config, request, result, on_progress)
        )
    except (KeyboardInterrupt, ConsentgateError) as ended:
        if result.appended:
            _print(config, request, result, fmt)
        if isinstance(ended, ConsentgateError):
            raise
        err.print("interrupted; the same command goes on where this one stopped")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    _print(config, request, result, fmt)


def _print(config: Config, request: Request, result: Redriven, fmt: Format) -> None:
    if fmt is Format.JSON:
        print(orjson.dumps(redriven_json(request, result)).decode())
    else:
        print("\n".join(redriven_lines(request, result, config.topics.content)))
