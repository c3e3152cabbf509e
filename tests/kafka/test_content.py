"""The group's consumer: what it hands out, when, and what it never does by itself."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.errors import OffsetOutOfRangeError

from consentgate.core.gate import Batch
from consentgate.core.partition import StepFailed
from consentgate.kafka.content import ContentSource, PartitionsListener
from consentgate.kafka.settings import kafka_settings
from harness import SPOILT_NAME, Site, SiteFactory, commit_by_hand, post, spoil_header_names, until

WAIT_MS = 2_000


async def ignore(_: Collection[int]) -> None:
    """Nothing is done about it."""


@asynccontextmanager
async def member(
    site: Site, on_assigned: PartitionsListener = ignore, on_revoked: PartitionsListener = ignore
) -> AsyncIterator[ContentSource]:
    """A member of the group."""
    settings = kafka_settings(site.config.kafka)
    source = ContentSource(settings, site.config.group, site.content, on_assigned, on_revoked)
    await source.start()
    try:
        yield source
    finally:
        await source.stop()


async def assigned(source: ContentSource, number: int) -> None:
    await until(lambda: len(source._consumer.assignment()) == number, "it has partitions")


async def test_offsets_that_have_expired_are_never_passed_over_in_silence(
    make_site: SiteFactory,
) -> None:
    # Checked: skips what is left where the consumer may reset its position.
    site = await make_site("expired")
    await site.feed.many(site.content, [post("anna", f"{n}") for n in range(10)])
    place = TopicPartition(site.content, 0)
    async with member(site) as source:
        await assigned(source, 1)
        await source.seek(0, 0)
        source._consumer.pause(place)
        await site.probe.admin.delete_records({place: RecordsToDelete(before_offset=4)})
        source._consumer.resume(place)
        with pytest.raises(OffsetOutOfRangeError):
            await source.fetch(0, 0, 100, WAIT_MS)
        # Whoever seeks them anew gets what is left, and a batch that accounts for all of them.
        await source.seek(0, 0)
        batch = await source.fetch(0, 0, 100, WAIT_MS)
    assert (batch.first, batch.next_offset) == (0, 10)
    assert [record.offset for record in batch.records] == [*range(4, 10)]


async def test_what_cannot_be_read_behind_what_has_expired_is_read_around(
    make_site: SiteFactory,
) -> None:
    # Checked: fails for ever where `ContentSource.fetch` reads around from the expired offset.
    site = await make_site("both")
    await site.feed.many(site.content, [post("anna", f"{n}") for n in range(5)])
    marked = post("anna", "5")._replace(headers=((SPOILT_NAME, b""),))
    await site.feed.batch(site.content, [marked], patch=spoil_header_names)
    place = TopicPartition(site.content, 0)
    await site.probe.admin.delete_records({place: RecordsToDelete(before_offset=5)})
    async with member(site) as source:
        await assigned(source, 1)
        await source.seek(0, 2)
        batch = await source.fetch(0, 2, 100, WAIT_MS)
    assert (batch.first, batch.next_offset, list(batch.unreadable)) == (2, 6, [5])


async def test_what_lies_before_the_offset_that_was_asked_for_is_refused(
    make_site: SiteFactory,
) -> None:
    # Checked: decides twice where `ContentSource.fetch` does not compare the offsets.
    site = await make_site("before")
    await site.feed.many(site.content, [post("anna", f"{n}") for n in range(10)])
    async with member(site) as source:
        await assigned(source, 1)
        await source.seek(0, 3)
        with pytest.raises(StepFailed, match="does not stand"):
            await source.fetch(0, 5, 100, WAIT_MS)


async def test_nothing_is_handed_out_before_its_place_is_known(make_site: SiteFactory) -> None:
    # Checked: gives records, those of the committed offset, where the listener does not pause.
    site = await make_site("early")
    await site.feed.many(site.content, [post("anna", f"{n}") for n in range(10)])
    await commit_by_hand(site, 3)
    batches: list[Batch] = []

    async def fetch(partitions: Collection[int]) -> None:
        for partition in partitions:
            position = await source._consumer.position(TopicPartition(site.content, partition))
            batches.append(await source.fetch(partition, position, 100, WAIT_MS))

    async with member(site, on_assigned=fetch) as source:
        await until(lambda: batches, "it has been assigned")
    assert [list(batch.records) for batch in batches] == [[]]


async def test_who_takes_long_to_give_partitions_up_is_waited_for(make_site: SiteFactory) -> None:
    # Checked: the second has all partitions at once where the group waits for as long as a session.
    site = await make_site(
        "slow", partitions=2, kafka={"session.timeout.ms": 1_000, "heartbeat.interval.ms": 200}
    )
    happened: list[str] = []

    async def finish_a_long_transaction(partitions: Collection[int]) -> None:
        if partitions:
            await asyncio.sleep(2.5)
            happened.append("given up")

    async def take(partitions: Collection[int]) -> None:
        if partitions:
            happened.append("taken")

    async with member(site, on_revoked=finish_a_long_transaction) as first:
        await assigned(first, 2)
        async with member(site, on_assigned=take) as second:
            await assigned(second, 1)
            assert happened == ["given up", "taken"]
