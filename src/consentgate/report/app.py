"""The Faust application: takes the records in, and has them counted."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import faust
from mode.supervisors import CrashingSupervisor

from consentgate.config import Config
from consentgate.kafka.settings import KafkaSettings
from consentgate.report.driver import CommittedTransport, CountedTable
from consentgate.report.figures import (
    Arrived,
    Source,
    Table,
    Writes,
    fold_ledger,
    fold_retractions,
)
from consentgate.report.topics import Changelog, report_id

BATCH_RECORDS_MAX = 1_000
BATCH_SECONDS = 0.5
"""How long records are gathered before they are counted together."""

COMMIT_SECONDS = 2.0

Fold = Callable[[Source, Table, int, Sequence[Arrived]], Writes]


def make_app(
    config: Config, settings: KafkaSettings, changelogs: Sequence[Changelog], directory: Path
) -> faust.App:
    """The application, ready to be started; `directory` is one that Faust may make things in."""
    app = faust.App(
        report_id(config),
        broker=f"kafka://{settings.bootstrap_servers.split(',')[0]}",
        autodiscover=False,
        datadir=directory,
        # To go on behind what could not be counted would be to lose it.
        agent_supervisor=CrashingSupervisor,
        broker_commit_interval=COMMIT_SECONDS,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
    )
    transport = CommittedTransport(app, settings)
    app.transport = app.producer_transport = transport
    source = Source(config.group, config.topics.content)
    for changelog, fold in zip(changelogs, (fold_ledger, fold_retractions), strict=True):
        table = _table(app, changelog)
        transport.tables[changelog.source] = table
        topic = app.topic(
            changelog.source,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            allow_empty=True,
        )
        app.agent(topic, name=changelog.table)(_counting(app, table, source, fold))
    return app


def _table(app: faust.App, changelog: Changelog) -> CountedTable:
    table = CountedTable(
        app,
        name=changelog.table,
        key_type=bytes,
        value_type=bytes,
        partitions=changelog.partitions,
    )
    assert table.changelog_topic_name == changelog.topic, "Faust names it as we do"
    app.tables.add(table)
    return table


def _counting(
    app: faust.App, table: CountedTable, source: Source, fold: Fold
) -> Callable[[Any], AsyncIterator[None]]:
    """An agent that has the records of a topic counted in a table."""

    async def count(stream: Any) -> AsyncIterator[None]:
        async for events in stream.take_events(BATCH_RECORDS_MAX, within=BATCH_SECONDS):
            by_partition = defaultdict(list)
            for event in events:
                message = event.message
                # What came before a rebalance comes again, from where the table then is.
                if message.generation_id == app.consumer_generation_id:
                    by_partition[message.partition].append(_arrived(message))
            for partition, arrived in by_partition.items():
                _write(table, fold(source, table, partition, arrived))
            yield

    return count


def _arrived(message: Any) -> Arrived:
    return Arrived(message.offset, round(message.timestamp * 1000), message.key, message.value)


def _write(table: CountedTable, writes: Writes) -> None:
    for key, value in writes.items():
        if value is not None:
            table[key] = value
        elif key in table:
            del table[key]
