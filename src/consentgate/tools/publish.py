"""Fixtures into Kafka, in file order."""

from collections.abc import Callable, Sequence

from consentgate.errors import ConfigError
from consentgate.kafka.appender import Appender
from consentgate.kafka.cluster import connected
from consentgate.kafka.settings import KafkaSettings
from consentgate.tools.fixtures import ClockLine, FixtureRecord


async def publish(
    settings: KafkaSettings,
    lines: Sequence[FixtureRecord | ClockLine],
    on_published: Callable[[], None],
) -> int:
    """Append the records to their topics; returns their number.

    Where the topic changes from one line to the next, everything before is acknowledged first, so
    that the order of the file holds between the topics too.

    Raises:
        ConfigError: if a topic is missing or a record is refused.
        BrokerUnavailable: if no broker answers.
    """
    records = [line for line in lines if isinstance(line, FixtureRecord)]
    await _refuse_missing_topics(settings, {record.topic for record in records})
    topic = None
    async with Appender(settings) as appender:
        for record in records:
            if record.topic != topic:
                await appender.flush()
                topic = record.topic
            await appender.append(
                record.topic,
                key=record.key,
                value=record.value,
                timestamp_ms=record.timestamp_ms,
                headers=record.headers,
                partition=record.partition,
            )
            on_published()
        await appender.flush()
    return len(records)


async def _refuse_missing_topics(settings: KafkaSettings, topics: set[str]) -> None:
    async with connected(settings, timeout_seconds=10) as cluster:
        missing = sorted(topics - (await cluster.partition_counts(topics)).keys())
    if missing:
        raise ConfigError(
            f"missing topics: {', '.join(missing)}. Create them with consentgate topics create, "
            "and the same -c"
        )
