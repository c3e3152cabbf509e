"""The command line."""

import asyncio
import json
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consentgate.config import Config, load_config
from consentgate.core.policy import Policy
from consentgate.core.policyfile import lint_policy
from consentgate.demo.show import run_demo
from consentgate.errors import (
    EXIT_FOUND,
    EXIT_INTERNAL,
    ConsentgateError,
)
from consentgate.kafka.cluster import Cluster, TopicPlan
from consentgate.kafka.guards import plan_topics
from consentgate.kafka.settings import kafka_settings
from consentgate.policies import load_policy, read_policy
from consentgate.service.logs import configure_logs
from consentgate.service.worker import Summary, Worker, refuse_unsupported
from consentgate.signing import load_signature_check
from consentgate.tools.broker import run_foreground
from consentgate.tools.fixtures import FixtureRecord, read_fixture
from consentgate.tools.publish import publish as publish_fixtures
from consentgate.tools.receipt import make_receipt, receipt_lines
from consentgate.tools.replay import line_json, summary_json
from consentgate.tools.replay import replay as replay_fixtures
from consentgate.tools.verify import verification_json, verification_lines
from consentgate.tools.verify import verify as verify_topics

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Forwards only the content events whose authors may be used to train on, exactly once.",
)
topics_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The topics.")
app.add_typer(topics_app, name="topics")

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
FixtureFiles = Annotated[list[Path], typer.Argument(help="Fixture files, JSON lines.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the results.")]


def main() -> None:
    """Run the command line; an error becomes one message and its exit code."""
    try:
        app()
    except ConsentgateError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception:
        traceback.print_exc()
        sys.exit(EXIT_INTERNAL)


@app.command()
def run(
    config_path: ConfigOption = None,
    policy_name: PolicyOption = None,
    until_drained: Annotated[
        bool,
        typer.Option("--until-drained", help="Stop when the content that is there now is done."),
    ] = False,
    accept_consent_gap: Annotated[
        bool,
        typer.Option(
            "--accept-consent-gap",
            help="Go on although consent changes may have been compacted away unread.",
        ),
    ] = False,
    fmt: FormatOption = Format.TEXT,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Write the log as JSON lines.")
    ] = not sys.stderr.isatty(),
) -> None:
    """Consume content, forward what is eligible, commit exactly once.

    Example: consentgate run -c consentgate.yaml
    """
    configure_logs(json=log_json)
    config, policy = _configured(config_path, policy_name)

    async def work() -> Summary:
        worker = Worker(config, policy, accept_consent_gap=accept_consent_gap)
        return await worker.run(until_drained=until_drained)

    summary = asyncio.run(work())
    _print_summary(summary, fmt)


@app.command()
def broker(
    port: Annotated[int | None, typer.Option(help="The port; a free one by default.")] = None,
) -> None:
    """Run the embedded Kafka in the foreground until Ctrl-C.

    Example: consentgate broker --port 9092
    """
    raise typer.Exit(run_foreground(port))


@app.command()
def demo(
    events: Annotated[int, typer.Option(min=1_000, help="How many posts.")] = 100_000,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything up until Ctrl-C; print the URLs.")
    ] = False,
) -> None:
    """Show the main job on an embedded Kafka: a suspension and a withdrawal while posts come in.

    Example: consentgate demo --keep
    """
    run_demo(events, keep=keep)


@topics_app.command("create")
def create_topics(
    config_path: ConfigOption = None,
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of each topic.")] = 4,
    replication_factor: Annotated[
        int | None, typer.Option(min=1, help="Replicas; 3 by default, or one a broker.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
) -> None:
    """Create the topics that are missing, with the settings that the service needs.

    Example: consentgate topics create -c consentgate.yaml --partitions 12
    """
    config = load_config(config_path)
    plans = plan_topics(config, partitions)

    async def create() -> None:
        cluster = Cluster(kafka_settings(config.kafka))
        await cluster.start(timeout_seconds=60)
        try:
            present = await cluster.partition_counts([plan.name for plan in plans])
            for plan in plans:
                if plan.name not in present and not dry_run:
                    await cluster.create(plan, replication_factor)
                print(_describe_plan(plan, plan.name in present, dry_run))
        finally:
            await cluster.stop()

    asyncio.run(create())


@app.command()
def publish(
    files: FixtureFiles,
    config_path: ConfigOption = None,
) -> None:
    """Append fixtures to their topics, in file order.

    Example: consentgate publish -c consentgate.yaml src/consentgate/demo/story.jsonl
    """
    config = load_config(config_path)
    lines = [line for path in files for line in read_fixture(path)]
    with _progress() as progress:
        task = progress.add_task("publish", total=sum(isinstance(x, FixtureRecord) for x in lines))
        number = asyncio.run(
            publish_fixtures(kafka_settings(config.kafka), lines, lambda: progress.advance(task))
        )
    print(f"{number} records published to {kafka_settings(config.kafka).bootstrap_servers}")


@app.command()
def replay(
    files: FixtureFiles,
    config_path: ConfigOption = None,
    policy_name: PolicyOption = None,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Decide on fixtures without a broker; exit 1 where an outcome is not the expected one.

    Example: consentgate replay --policy linkedin src/consentgate/demo/story.jsonl
    """
    config, policy = _configured(config_path, policy_name)
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


@app.command()
def verify(
    config_path: ConfigOption = None,
    policy_names: Annotated[
        list[str] | None,
        typer.Option("--policy", help="A policy that was in force; repeat for several."),
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
    """Check from the topics alone that nothing slipped through; exit 1 on a violation.

    Example: consentgate verify -c consentgate.yaml --policy linkedin --strict
    """
    config = load_config(config_path)
    policies = [load_policy(name) for name in policy_names or [config.policy]]
    is_signed = None if public_key is None else load_signature_check(public_key)
    with _progress() as progress:
        task = progress.add_task("verify", total=None)
        verification = asyncio.run(
            verify_topics(
                config,
                policies,
                lambda done, total: progress.update(task, completed=done, total=total),
                is_signed,
            )
        )
    if fmt is Format.JSON:
        print(orjson.dumps(verification_json(verification)).decode())
    else:
        print("\n".join(verification_lines(verification)))
    if verification.violations or (strict and verification.unchecked):
        raise typer.Exit(EXIT_FOUND)


@app.command()
def receipt(
    subject: Annotated[str, typer.Argument(help="The subject id, as it stands in the keys.")],
    config_path: ConfigOption = None,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Say what the topics hold of one person: changes, effects, what went on, retractions.

    Example: consentgate receipt -c consentgate.yaml member-17
    """
    made = asyncio.run(make_receipt(load_config(config_path), subject))
    if fmt is Format.JSON:
        print(orjson.dumps(msgspec.to_builtins(made)).decode())
    else:
        print("\n".join(receipt_lines(made)))
    if not made.changes and not made.forwarded:
        raise typer.Exit(EXIT_FOUND)


@app.command()
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


def _configured(config_path: str | None, policy_name: str | None) -> tuple[Config, Policy]:
    config = load_config(config_path)
    policy = load_policy(policy_name or config.policy)
    refuse_unsupported(policy)
    return config, policy


def _describe_plan(plan: TopicPlan, present: bool, dry_run: bool) -> str:
    if present:
        return f"{plan.name}: exists, left as it is"
    settings = ", ".join(f"{name}={value}" for name, value in plan.configs.items())
    verb = "would be created" if dry_run else "created"
    count = f"{plan.partitions} partition{'s' if plan.partitions > 1 else ''}"
    return f"{plan.name}: {verb} with {count}; {settings or 'defaults'}"


def _print_summary(summary: Summary, fmt: Format) -> None:
    if fmt is Format.JSON:
        print(orjson.dumps(msgspec.to_builtins(summary)).decode())
        return
    counts = ", ".join(f"{reason} {number:,}" for reason, number in summary.counts.items())
    print(
        f"{sum(summary.counts.values()):,} events in {summary.seconds:.1f} s "
        f"({summary.events_per_second:,.0f} events/s, {summary.cpu_seconds:.1f} s of CPU, "
        f"{summary.peak_rss_bytes / 1e6:.0f} MB): {counts or 'nothing'}"
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
    )
