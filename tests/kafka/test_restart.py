"""A group goes on where its ledger ends, whatever has become of its offsets."""

import dataclasses
import json
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import yaml
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.protocol.admin import DeleteGroupsRequest

import checker
from consentgate.config import load_config
from consentgate.core.ledger import Bookmark, Chain
from consentgate.core.transform import Transformer
from consentgate.errors import ConfigError
from consentgate.kafka.clients import Clients
from consentgate.kafka.cluster import Cluster, connected
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.content import ContentSource
from consentgate.kafka.layout import find_layout
from consentgate.kafka.position import read_position
from consentgate.kafka.settings import kafka_settings
from consentgate.service.transforming import TransformPool
from harness import (
    Site,
    SiteFactory,
    StartWorker,
    commit_by_hand,
    consent,
    post,
    until,
    working,
)

EXIT_CONFIG = 78
PEOPLE = [f"m{number}" for number in range(30)]


async def append_posts(site: Site, name: str) -> None:
    await site.feed.many(site.content, [post(person, name) for person in PEOPLE])


async def decide_some(site: Site) -> None:
    """Let a worker decide what there is, and end."""
    async with working(site):
        await site.decided()


async def delete_offsets(site: Site) -> None:
    """What happens to a group that had no member for a week."""
    admin, group = site.probe.admin, site.config.group
    coordinator = await admin.find_coordinator(group)
    response = await admin._send_request_to_node(coordinator, DeleteGroupsRequest([group]))
    assert list(response.results) == [(group, 0)]
    assert set((await site.committed()).values()) == {0}


def with_settings(site: Site, **sections: Any) -> Site:
    """The same topics and group under another configuration."""
    settings = yaml.safe_load(site.path.read_text()) | sections
    path = site.path.with_suffix(".changed.yaml")
    path.write_text(yaml.safe_dump(settings))
    return dataclasses.replace(site, path=path, config=load_config(str(path), environment={}))


@pytest.mark.parametrize("scope", ["partition", "global"])
async def test_deleted_offsets_are_made_up_from_the_ledger(
    make_site: SiteFactory, scope: str
) -> None:
    # Checked: every post is decided twice where `read_position` does not look for the ledger.
    site = await make_site("deleted", partitions=3, consent={"scope": scope})
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await append_posts(site, "1")
    await decide_some(site)
    await delete_offsets(site)
    # Meanwhile somebody withdraws: the retraction must not be lost with the offsets.
    await site.feed.one(site.consent, consent(PEOPLE[0], "withdrawn"))
    await append_posts(site, "2")
    await decide_some(site)

    seen = await site.check()
    assert seen.reasons() == {"opted-in": 2 * len(PEOPLE) - 1, "withdrawn": 1}
    assert [r for records in seen.retractions.values() for r in records]


SCOPES = pytest.mark.parametrize(("first", "then"), [("auto", "global"), ("global", "partition")])


async def decide_in_scope(make_site: SiteFactory, scope: str) -> tuple[Site, checker.Seen]:
    """A group that has been at work in a scope; what it has left behind."""
    site = await make_site("scope", partitions=2, consent={"scope": scope})
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await append_posts(site, "1")
    await decide_some(site)
    return site, await site.seen()


async def goes_on_as_before(site: Site, before: checker.Seen) -> None:
    """The group has decided nothing meanwhile, and can go on in its own scope."""
    assert (await site.seen()).decisions == before.decisions
    await append_posts(site, "2")
    await decide_some(site)
    await site.check()


@SCOPES
async def test_another_scope_is_refused(
    make_site: SiteFactory, start_worker: StartWorker, first: str, then: str
) -> None:
    # Checked: starts in the other scope where `settle_scope` is given no bookmarks.
    site, before = await decide_in_scope(make_site, first)
    worker = await start_worker(with_settings(site, consent={"scope": then}))
    assert await worker.wait() == EXIT_CONFIG
    settled = "partition" if first == "auto" else first
    assert f"the group was started with {settled} scope" in worker.errors()
    await goes_on_as_before(site, before)


@SCOPES
async def test_another_scope_stalls_where_the_offsets_were_deleted(
    make_site: SiteFactory, first: str, then: str
) -> None:
    # Checked: goes on in the other scope where `Partition` does not compare the partitions.
    site, before = await decide_in_scope(make_site, first)
    await delete_offsets(site)
    async with working(with_settings(site, consent={"scope": then})) as running:
        await until(lambda: len(running.logged("recycled")) >= 3, "it tries again and again")
        assert "another scope" in running.logged("recycled")[-1]["why"]
        assert (await running.get("/readyz"))[0] == 503
    await goes_on_as_before(site, before)


@pytest.mark.parametrize("by", [-7, 7], ids=["back", "ahead"])
async def test_an_offset_that_was_moved_by_hand_stalls(make_site: SiteFactory, by: int) -> None:
    # Checked: decides twice, or leaves records out, where `read_position` believes the offset.
    site = await make_site("moved", partitions=1)
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await append_posts(site, "1")
    await decide_some(site)
    committed = (await site.committed())[0]
    await append_posts(site, "2")
    before = await site.seen()
    await commit_by_hand(site, committed + by)

    async with working(site) as running:
        await until(lambda: len(running.logged("recycled")) >= 3, "it tries again and again")
        assert "does not follow the ledger" in running.logged("recycled")[-1]["why"]
        status, body = await running.get("/readyz")
        assert status == 503
        assert f"offset {committed + by}" in json.loads(body)["components"]["partition-0"]
    after = await site.seen()
    assert after.decisions == before.decisions
    assert after.training == before.training

    # Put right, it goes on.
    await commit_by_hand(site, committed)
    await decide_some(site)
    await site.check()


async def test_a_worker_leaves_a_bookmark_with_its_offset(make_site: SiteFactory) -> None:
    # Checked: there is none where the offset goes without it into the transaction, and where the
    # consumer commits offsets of its own when it leaves.
    site = await make_site("bookmark")
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await append_posts(site, "1")
    await decide_some(site)
    last = (await site.check()).chains[0][-1]
    async with connected(kafka_settings(site.config.kafka), timeout_seconds=10) as cluster:
        (found,) = (await cluster.bookmarks(site.config.group, site.content, [0])).values()
    offset, bookmark = found
    assert offset == last.last + 1
    assert bookmark is not None
    assert (bookmark.hash, bookmark.scope, bookmark.partitions) == (last.hash, "partition", [1, 1])


async def test_a_bookmark_of_another_entry_stalls(make_site: SiteFactory) -> None:
    # Checked: goes on from another entry where `read_position` does not compare the hashes.
    site = await make_site("forged")
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await append_posts(site, "1")
    await decide_some(site)
    await append_posts(site, "2")
    await decide_some(site)
    before = await site.check()
    first, second = before.chains[0][0], before.chains[0][-1]
    forged = Bookmark(0, before.decisions[0][0].offset, second.hash, "partition", [1, 1])
    assert first.hash != second.hash
    await commit_by_hand(site, first.last + 1, forged.encode())
    async with working(site) as running:
        await until(lambda: running.logged("recycled"), "it notices")
        assert "is not the one that was committed" in running.logged("recycled")[-1]["why"]
    assert (await site.seen()).decisions == before.decisions


async def test_a_content_topic_made_anew_stalls(make_site: SiteFactory) -> None:
    # Checked: goes on in the new topic where `read_position` does not look at its end.
    site = await make_site("content-anew")
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await append_posts(site, "1")
    await decide_some(site)
    before = await site.seen()
    await site.probe.admin.delete_topics([site.content])

    async def created() -> bool:
        new = NewTopic(site.content, 1, 1)
        (error,) = (await site.probe.admin.create_topics([new])).topic_errors
        return not error[1]

    async def described() -> bool:
        (found,) = await site.probe.admin.describe_topics([site.content])
        return not found["error_code"]

    await until(created, "the topic is made anew")
    await until(described, "the new topic is known")
    async with working(site) as running:
        await until(lambda: running.logged("recycled"), "it notices")
        assert "truncated or made anew" in running.logged("recycled")[-1]["why"]
    assert (await site.seen()).decisions == before.decisions


async def test_the_ledger_s_end_is_not_where_somebody_s_transaction_hides_it(
    make_site: SiteFactory,
) -> None:
    # Checked: every post is decided twice where `last_entry` does not wait.
    site = await make_site("hidden")
    await site.feed.many(site.consent, map(consent, PEOPLE))
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers, transactional_id=site.config.group + "-app"
    ) as somebody:
        async with working(site) as running:
            await running.ready()
            await somebody.begin_transaction()
            await somebody.send_and_wait(site.config.topics.decisions, b"{}", b"somebody")
            await append_posts(site, "1")
            await site.decided()
        await delete_offsets(site)
        async with working(site) as running:
            await until(lambda: running.logged("assigned"), "it has begun")
            with pytest.raises(AssertionError, match="not within"):
                await until(lambda: running.logged("ready"), "it waits", seconds=2)
            await somebody.abort_transaction()
            await running.ready()
            await append_posts(site, "2")
            await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 2 * len(PEOPLE)}


@asynccontextmanager
async def clients_of(site: Site, consent_gap_ms_max: int) -> AsyncIterator[Clients]:
    """What `read_position` asks; it needs no consent view."""

    async def ignore(_: Collection[int]) -> None:
        pass

    settings = kafka_settings(site.config.kafka)
    cluster = Cluster(settings)
    source = ContentSource(settings, site.config.group, site.content, ignore, ignore)
    await cluster.start(timeout_seconds=10)
    await source.start()
    try:
        layout = await find_layout(site.config, cluster)
        view = cast("ConsentView", None)
        yield Clients(
            settings,
            layout,
            source,
            view,
            cluster,
            consent_gap_ms_max,
            TransformPool(Transformer(), 1).transform,
        )
    finally:
        await source.stop()
        await cluster.stop()


@pytest.mark.parametrize("compacted", [False, True])
async def test_changes_that_may_have_been_compacted_need_a_word(
    make_site: SiteFactory, compacted: bool
) -> None:
    # Checked: goes on where `read_position` looks only at how old the first change is.
    gap_ms = 1_500
    site = await make_site("compacted")
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await append_posts(site, "1")
    await decide_some(site)
    decided_at = json.loads((await site.check()).decisions[0][-1].value or b"")["decided_at"]
    if compacted:
        # An offset without a record looks like one from which compaction has taken a change.
        async with AIOKafkaProducer(
            bootstrap_servers=site.kafka.bootstrap_servers, transactional_id=site.config.group
        ) as app:
            await app.begin_transaction()
            await app.send_and_wait(site.consent, None, PEOPLE[0].encode())
            await app.abort_transaction()
    await until(lambda: time.time() * 1000 > decided_at + gap_ms, "nobody reads for long")
    async with clients_of(site, gap_ms) as clients:
        chain = Chain(site.config.group, site.content, 0)
        await site.feed.one(site.consent, consent("somebody"))
        if compacted:
            with pytest.raises(ConfigError, match="--accept-consent-gap"):
                await read_position(clients, chain)
        else:
            assert (await read_position(clients, chain)).next_offset == len(PEOPLE)
