"""Fixtures that are published: in the order of the file, and all of them or an error."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from consentgate.errors import ConfigError
from consentgate.kafka.reader import read_topic
from consentgate.kafka.settings import kafka_settings
from consentgate.tools.fixtures import ClockLine, FixtureRecord
from consentgate.tools.publish import publish
from harness import Site, SiteFactory

TURNS = 200


def lines(*topics: str) -> list[FixtureRecord | ClockLine]:
    """A record for each of the topics, in this order, and the clock before it."""

    def made() -> Iterator[FixtureRecord | ClockLine]:
        for number, topic in enumerate(topics):
            yield ClockLine(2 * number + 1, number)
            yield FixtureRecord(2 * number + 2, topic, b"k", str(number).encode(), None)

    return list(made())


async def published(site: Site, *topics: str) -> int:
    return await publish(kafka_settings(site.config.kafka), lines(*topics), lambda: None)


async def appended(site: Site, topic: str) -> dict[int, int]:
    """Number to the time at which the broker appended it."""
    found = read_topic(kafka_settings(site.config.kafka), topic, 1)
    return {int(record.value): record.timestamp async for _, record in found}


async def test_the_order_of_the_file_holds_between_topics(make_site: SiteFactory) -> None:
    # Checked: of each topic many records come at once where `publish` does not flush in between.
    times = {"message.timestamp.type": "LogAppendTime"}
    site = await make_site("order", topics={"content": times, "consent": times})
    assert await published(site, *[site.consent, site.content] * TURNS) == 2 * TURNS
    consent, content = await appended(site, site.consent), await appended(site, site.content)
    assert sorted([*consent, *content]) == list(range(2 * TURNS))
    in_file_order = [(consent | content)[number] for number in range(2 * TURNS)]
    assert all(before <= after for before, after in pairwise(in_file_order))
    # Records of one batch have one time; so many turns cannot be over within a few milliseconds.
    assert len(set(in_file_order)) > TURNS // 20


async def test_a_record_that_the_broker_refuses_is_told(make_site: SiteFactory) -> None:
    site = await make_site("refused", topics={"content": {"max.message.bytes": "40"}})
    with pytest.raises(ConfigError, match="the broker refused a record"):
        await published(site, site.content)


async def test_a_timestamp_that_the_broker_refuses_is_told_with_what_to_do(
    make_site: SiteFactory,
) -> None:
    site = await make_site("untimely", topics={"content": {"message.timestamp.before.max.ms": "1"}})
    record = FixtureRecord(1, site.content, b"k", b"v", 0)
    with pytest.raises(ConfigError, match=r"its timestamp is further.*message\.timestamp\.before"):
        await publish(kafka_settings(site.config.kafka), [record], lambda: None)


async def test_nothing_is_published_where_a_topic_is_missing(make_site: SiteFactory) -> None:
    site = await make_site("missing")
    with pytest.raises(ConfigError, match="missing topics: absent-1, absent-2"):
        await published(site, site.content, "absent-2", "absent-1")
    assert await appended(site, site.content) == {}
