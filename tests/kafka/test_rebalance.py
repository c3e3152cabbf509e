"""Workers that come and go politely: everything stays complete, and nobody waits for long."""

import asyncio
import signal
import time
from collections.abc import Collection

import pytest

from consentgate.core.partition import StepFailed
from consentgate.kafka.content import ContentSource
from consentgate.kafka.settings import kafka_settings
from harness import (
    QUICK_GROUP,
    SMALL_BYTES,
    SMALL_FETCHES,
    Site,
    SiteFactory,
    StartWorker,
    consent,
    meanwhile,
    post,
    until,
)

PEOPLE = [f"m{number}" for number in range(200)]
ROUND_SECONDS = 0.1


async def grant_and_load(site: Site) -> None:
    """Everybody grants, and has posted a while ago."""
    await site.feed.many(site.consent, map(consent, PEOPLE))
    for number in range(20):
        await append_round(site, f"backlog-{number}")


async def append_round(site: Site, name: str) -> None:
    """A post of everybody."""
    posts = [post(person, name) for person in PEOPLE]
    await site.feed.many(site.content, posts, batch_bytes=SMALL_BYTES)


async def test_workers_that_join_and_leave_share_the_work(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    # Checked: fails where batches are written without transactions, where a worker does not leave
    # the group, and where it ends at once on SIGTERM.
    site = await make_site("rebalance", partitions=4, kafka={**QUICK_GROUP, **SMALL_FETCHES})
    await grant_and_load(site)

    async def live() -> None:
        await append_round(site, "live")
        await asyncio.sleep(ROUND_SECONDS)

    async with meanwhile(live):
        first = await start_worker(site)
        await first.ready()
        second = await start_worker(site)
        await until(lambda: len(second.assigned()) == 2, "the second has its share")
        await until(lambda: len(first.assigned()) == 2, "the first has kept its share")
        before = await first.consumed()

        async def both_work() -> bool:
            return await first.consumed() > before + 200 and await second.consumed() > 200

        await until(both_work, "both work")
        second.signal(signal.SIGTERM)
        assert await second.wait(seconds=10) == 0
        left_at = time.monotonic()
        await until(lambda: len(first.assigned()) == 4, "the first has everything again")
        # It has left the group: nobody had to wait for its session to time out.
        assert time.monotonic() - left_at < QUICK_GROUP["session.timeout.ms"] / 1000 / 2
    await site.decided()

    seen = await site.check()
    assert "opted-in" in second.output()
    assert sum(seen.reasons().values()) == sum(map(len, seen.content.values()))


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
async def test_a_signal_ends_a_worker_mid_work(
    make_site: SiteFactory, start_worker: StartWorker, number: signal.Signals, exit_code: int
) -> None:
    # Checked: a transaction is left open where `Worker._revoke` cancels the partitions' tasks at
    # once; another exit code where the process does not catch the signals.
    site = await make_site("signal", partitions=4, kafka={**QUICK_GROUP, **SMALL_FETCHES})
    await grant_and_load(site)
    worker = await start_worker(site)

    async def is_under_way() -> bool:
        committed = await site.committed()
        return all(committed.values())

    await until(is_under_way, "the worker is under way")
    began = time.monotonic()
    worker.signal(number)
    assert await worker.wait(seconds=10) == exit_code
    assert time.monotonic() - began < 5
    assert sum((await site.lag()).values()) > 0, "it had more to do"
    ends = await site.probe.ends(site.config.topics.training, site.partitions)
    assert ends.high == ends.stable, "no transaction was left open"

    successor = await start_worker(site, "--until-drained")
    assert await successor.wait() == 0
    await site.check()


async def test_a_partition_is_never_fetched_from_where_somebody_else_has_got_to(
    make_site: SiteFactory,
) -> None:
    # Checked: the records in between count as none where `ContentSource.fetch` does not ask where
    # the consumer stands.
    site = await make_site("moved")
    await site.feed.many(site.content, [post("m1", f"{n}") for n in range(10)])

    async def ignore(_: Collection[int]) -> None:
        pass

    source = ContentSource(
        kafka_settings(site.config.kafka), site.config.group, site.content, ignore, ignore
    )
    await source.start()
    try:
        await until(source._consumer.assignment, "it has joined")
        await source.seek(0, 0)
        assert (await source.fetch(0, 0, 3, wait_ms=1_000)).next_offset == 3
        # Two lives of one partition, as where giving up the first has failed.
        await source.seek(0, 7)
        with pytest.raises(StepFailed, match="does not stand"):
            await source.fetch(0, 3, 100, wait_ms=1_000)
        assert [r.offset for r in (await source.fetch(0, 7, 100, 1_000)).records] == [7, 8, 9]
    finally:
        await source.stop()


async def test_a_poll_never_holds_a_rebalance_up(make_site: SiteFactory) -> None:
    # Checked: the poll does not return where `ContentSource.fetch` does not bound it in time.
    site = await make_site("poll", partitions=2)
    settings = kafka_settings(site.config.kafka)
    polled = asyncio.Event()

    async def ignore(_: Collection[int]) -> None:
        pass

    async def poll(partitions: Collection[int]) -> None:
        # As a partition's task may do that has not noticed yet that it is to be given up.
        async with asyncio.timeout(3):
            for partition in partitions:
                batch = await first.fetch(partition, 0, 100, wait_ms=50)
                assert (batch.first, batch.next_offset, len(batch.records)) == (0, 0, 0)
        polled.set()

    first = ContentSource(settings, site.config.group, site.content, ignore, poll)
    second = ContentSource(settings, site.config.group, site.content, ignore, ignore)
    await first.start()
    try:
        await until(lambda: len(first._consumer.assignment()) == 2, "the first has joined")
        for partition in range(2):
            await first.seek(partition, 0)
        await second.start()
        try:
            async with asyncio.timeout(5):
                await polled.wait()
            await until(lambda: len(second._consumer.assignment()) == 1, "they share", 5)
        finally:
            await second.stop()
    finally:
        await first.stop()
