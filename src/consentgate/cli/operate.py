"""Running it: the service, its topics, and what stands in for a cluster."""

import asyncio
from collections import Counter
from typing import Annotated

import msgspec
import orjson
import typer

from consentgate.cli.options import (
    LOG_JSON,
    ConfigOption,
    Format,
    FormatOption,
    LogJsonOption,
    PolicyOption,
    configured,
    run_with_progress,
)
from consentgate.config import load_config
from consentgate.demo.show import run_demo
from consentgate.errors import EXIT_FOUND, EXIT_UNAVAILABLE
from consentgate.kafka.cluster import TopicPlan, connected
from consentgate.kafka.guards import plan_topics
from consentgate.kafka.settings import kafka_settings
from consentgate.service.logs import configure_logs
from consentgate.service.worker import Summary, Worker
from consentgate.signals import exit_on_sigterm
from consentgate.tools.broker import run_foreground
from consentgate.tools.doctor import Doctor
from consentgate.tools.findings import Finding, Severity, finding_lines, findings_line

commands = typer.Typer()
topics = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Create the topics that are missing."
)
commands.add_typer(topics, name="topics")


@commands.command()
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
    log_json: LogJsonOption = LOG_JSON,
) -> None:
    """Consume content and forward what is eligible, exactly once.

    Example: consentgate run -c consentgate.yaml
    """
    exit_on_sigterm()
    configure_logs(json=log_json)
    config, policy = configured(config_path, policy_name)

    async def work() -> Summary:
        worker = Worker(config, policy, accept_consent_gap=accept_consent_gap)
        return await worker.run(until_drained=until_drained)

    summary = asyncio.run(work())
    _print_summary(summary, fmt)


@commands.command()
def doctor(
    config_path: ConfigOption = None,
    policy_name: PolicyOption = None,
    sample: Annotated[
        int,
        typer.Option(min=1, help="How many of the newest records of content and of consent."),
    ] = 10_000,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")
    ] = False,
    fmt: FormatOption = Format.TEXT,
) -> None:
    """Check everything that usually goes wrong. Exit 1 on errors.

    It only reads: nothing is written, joined or committed. Each finding says what to do.

    Example: consentgate doctor -c consentgate.yaml --policy linkedin
    """
    config, policy = configured(config_path, policy_name)
    examination = Doctor(config, policy)
    counts: Counter[Severity] = Counter()

    def show(finding: Finding) -> None:
        counts[finding.severity] += 1
        if fmt is Format.JSON:
            print(msgspec.json.encode(finding).decode(), flush=True)
        else:
            print("\n".join(finding_lines(finding)), flush=True)

    async def look() -> None:
        async for finding in examination.look():
            show(finding)

    asyncio.run(look())
    samples = run_with_progress(
        "sample", lambda on_progress: examination.sample(sample, on_progress)
    )
    for finding in examination.judge(samples):
        show(finding)
    if fmt is Format.JSON:
        summary = {str(severity): counts[severity] for severity in Severity}
        print(orjson.dumps({"summary": summary}).decode())
    else:
        print(findings_line(counts))
    if not examination.answered:
        raise typer.Exit(EXIT_UNAVAILABLE)
    if counts[Severity.ERROR] or (strict and counts[Severity.WARNING]):
        raise typer.Exit(EXIT_FOUND)


@commands.command()
def broker(
    port: Annotated[
        int | None, typer.Option(min=1, max=65_535, help="The port; a free one by default.")
    ] = None,
) -> None:
    """Run the embedded Kafka in the foreground until Ctrl-C.

    Example: consentgate broker --port 9092
    """
    raise typer.Exit(run_foreground(port))


@commands.command()
def demo(
    events: Annotated[int, typer.Option(min=1_000, help="How many posts.")] = 100_000,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Take two or three minutes, to be followed on two pages, and leave all up.",
        ),
    ] = False,
) -> None:
    """Show the main job on an embedded Kafka.

    A country is suspended and a person withdraws while posts come in.

    Example: consentgate demo --keep
    """
    run_demo(events, keep=keep)


@topics.command("create")
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
        async with connected(kafka_settings(config.kafka), timeout_seconds=60) as cluster:
            present = await cluster.partition_counts([plan.name for plan in plans])
            for plan in plans:
                if plan.name not in present and not dry_run:
                    await cluster.create(plan, replication_factor)
                print(_describe_plan(plan, plan.name in present, dry_run))

    asyncio.run(create())


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
    events = sum(summary.counts.values())
    print(
        f"{events:,} event{'' if events == 1 else 's'} in {summary.seconds:.1f} s "
        f"({summary.events_per_second:,.0f} events/s, {summary.cpu_seconds:.1f} s of CPU, "
        f"{summary.peak_rss_bytes / 1e6:.0f} MB): {counts or 'nothing'}"
    )
