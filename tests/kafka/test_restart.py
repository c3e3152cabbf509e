"""A group goes on where its ledger ends, whatever has become of its offsets."""

import dataclasses
import json
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.protocol.admin import DeleteGroupsRequest

import checker
from consentgate.config import load_config
from harness import Site, SiteFactory, StartWorker, consent, post, until, working

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


async def commit_by_hand(site: Site, offset: int) -> None:
    """What an operator may do with Kafka's own tools."""
    async with AIOKafkaConsumer(
        bootstrap_servers=site.kafka.bootstrap_servers,
        group_id=site.config.group,
        enable_auto_commit=False,
    ) as consumer:
        place = TopicPartition(site.content, 0)
        consumer.assign([place])
        await consumer.commit({place: offset})


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
