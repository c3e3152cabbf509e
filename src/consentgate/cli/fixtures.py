"""Fixtures: into Kafka, and through the decision."""

import asyncio
import json

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
from consentgate.config import load_config
from consentgate.errors import EXIT_FOUND
from consentgate.kafka.settings import kafka_settings
from consentgate.tools.fixtures import FixtureRecord, read_fixture
from consentgate.tools.publish import publish as publish_fixtures
from consentgate.tools.replay import line_json, summary_json
from consentgate.tools.replay import replay as replay_fixtures

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
    lines = [line for path in files for line in read_fixture(path)]
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
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Decide on fixtures without a broker; exit 1 where an outcome is not the expected one.

    Example: consentgate replay --policy linkedin src/consentgate/demo/story.jsonl
    """
    config, policy = configured(config_path, policy_name)
    outcomes = []
    for path, replayed in replay_fixtures(config, policy, files):
        outcomes.append(replayed)
        if fmt is Format.JSON:
            # A forwarded body may hold integers of any size.
            print(json.dumps(line_json(replayed), separators=(",", ":"), ensure_ascii=False))
        else:
            print(f"{path}:{replayed.line}: {replayed}")
    summary = summary_json(outcomes)
    if fmt is Format.JSON:
        print(orjson.dumps(summary).decode())
    else:
        numbers = summary["summary"]
        print(
            f"{numbers['forward']} forwarded, {numbers['withhold']} withheld, "
            f"{numbers['quarantine']} quarantined; {numbers['mismatches']} mismatches"
        )
    if summary["summary"]["mismatches"]:
        raise typer.Exit(EXIT_FOUND)
