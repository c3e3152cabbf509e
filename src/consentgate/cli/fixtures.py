"""Fixtures: into Kafka, and through the decision."""

import asyncio
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from consentgate.cli.options import (
    ConfigOption,
    FixtureFiles,
    Format,
    FormatOption,
    PolicyOption,
    configured,
    progress_bar,
)
from consentgate.config import Config, load_config
from consentgate.core.policy import Policy
from consentgate.errors import EXIT_FOUND
from consentgate.kafka.settings import kafka_settings
from consentgate.service.logs import configure_logs
from consentgate.tools.fixtures import FixtureRecord, find_fixtures, read_fixture
from consentgate.tools.publish import publish as publish_fixtures
from consentgate.tools.rehearsal import embedded, rehearse
from consentgate.tools.replay import Replayed, difference, line_json, summary_json
from consentgate.tools.replay import replay as replay_fixtures
from consentgate.tools.replay import update as update_fixture

commands = typer.Typer()


@commands.command()
def publish(
    files: FixtureFiles,
    config_path: ConfigOption = None,
) -> None:
    """Append fixtures to their topics, in file order.

    Example: consentgate publish -c consentgate.yaml src/consentgate/demo/story.jsonl
    """
    config = load_config(config_path)
    lines = [line for path in find_fixtures(files) for line in read_fixture(path)]
    with progress_bar() as progress:
        task = progress.add_task("publish", total=sum(isinstance(x, FixtureRecord) for x in lines))
        number = asyncio.run(
            publish_fixtures(kafka_settings(config.kafka), lines, lambda: progress.advance(task))
        )
    print(f"{number} records published to {kafka_settings(config.kafka).bootstrap_servers}")


@commands.command()
def replay(
    files: FixtureFiles,
    config_path: ConfigOption = None,
    policy_name: PolicyOption = None,
    update: Annotated[
        bool,
        typer.Option("--update", help="Write into the files what came out, as what is expected."),
    ] = False,
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Run the real worker, on an embedded Kafka.")
    ] = False,
    configured_kafka: Annotated[
        bool,
        typer.Option(
            "--configured-kafka",
            help="Run the real worker on the configured Kafka, with topics of its own for a while.",
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Print differences and the summary only.")
    ] = False,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Decide on fixtures. Exit 1 where an outcome is not the expected one.

    In memory, unless an option asks for a Kafka.

    Example: consentgate replay --policy linkedin src/consentgate/demo/story.jsonl
    """
    config, policy = configured(config_path, policy_name)
    paths = find_fixtures(files)
    show = _Shower(policy, fmt, names_files=len(paths) > 1, quiet=quiet)
    outcomes = []
    if kafka or configured_kafka:
        if update or (kafka and configured_kafka):
            raise typer.BadParameter("use one of --update, --kafka and --configured-kafka")
        replaying = _on_kafka(config, policy, paths, embed=kafka)
    else:
        replaying = replay_fixtures(config, policy, paths)
    for path, replayed in replaying:
        show.line(path, replayed)
        outcomes.append((path, replayed))
    if update:
        for path in paths:
            for changed in update_fixture(path, [each for at, each in outcomes if at == path]):
                show.update(path, changed)
    summary = summary_json(replayed for _, replayed in outcomes)
    show.summary(summary)
    if summary["summary"]["mismatches"] and not update:
        raise typer.Exit(EXIT_FOUND)


def _on_kafka(
    config: Config, policy: Policy, paths: Sequence[Path], *, embed: bool
) -> Iterator[tuple[Path, Replayed]]:
    configure_logs(json=False)
    logging.getLogger().setLevel(logging.WARNING)
    with embedded(config) if embed else nullcontext(config) as on_broker:
        for path in paths:
            for replayed in asyncio.run(rehearse(on_broker, policy, path)):
                yield path, replayed


@dataclass(frozen=True, slots=True)
class _Shower:
    """Prints what a replay came to."""

    policy: Policy
    fmt: Format
    names_files: bool
    quiet: bool

    def line(self, path: Path, replayed: Replayed) -> None:
        """A content line: its outcome, or how that differs from what was expected."""
        if self.quiet and replayed.matches:
            return
        if self.fmt is Format.JSON:
            file = {"file": str(path)} if self.names_files else {}
            # A forwarded body may hold integers of any size.
            text = json.dumps(file | line_json(replayed), separators=(",", ":"), ensure_ascii=False)
            print(text)
        elif replayed.matches:
            print(f"{path}:{replayed.line}: {replayed}")
        else:
            print(f"{path}:{replayed.line}: {difference(replayed, self.policy)}")

    def update(self, path: Path, changed: Replayed) -> None:
        """A line whose expectation was written."""
        was = "" if changed.expect is None else f', was "{changed.expect}"'
        # Beside the JSON, which is the same as without an update.
        out = sys.stderr if self.fmt is Format.JSON else sys.stdout
        print(f'{path}:{changed.line}: expects "{changed.full_outcome}" now{was}', file=out)

    def summary(self, summary: dict[str, Any]) -> None:
        """The last line."""
        if self.fmt is Format.JSON:
            print(orjson.dumps(summary).decode())
            return
        numbers = summary["summary"]
        print(
            f"{numbers['forward']} forwarded, {numbers['withhold']} withheld, "
            f"{numbers['quarantine']} quarantined; {numbers['mismatches']} "
            f"mismatch{'' if numbers['mismatches'] == 1 else 'es'}"
        )
