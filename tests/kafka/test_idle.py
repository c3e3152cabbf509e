"""Where no content comes, consent still takes effect; where no broker answers, nothing is done."""

import json
import time

import pytest

import checker
from consentgate.kafka import transport
from consentgate.service import worker as worker_module
from consentgate.tools.broker import EmbeddedKafka
from harness import (
    SMALL_BYTES,
    SMALL_FETCHES,
    Running,
    Site,
    SiteFactory,
    consent,
    metric,
    post,
    until,
    working,
)

EFFECT_SECONDS_MAX = 1.0
LOADED_MACHINE_SECONDS = 1.0


async def test_a_partition_without_content_commits_an_advanced_frontier(
    make_site: SiteFactory,
) -> None:
    # Checked: no entry comes where `Partition` fetches until there is content.
    site = await make_site("idle", partitions=2)
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    await site.feed.many(site.content, [post("anna", "1"), post("ben", "1")])
    partition = site.feed.partition_of(consent("anna"), range(2))
    changes = ["withdrawn", "granted", "withdrawn", "granted", "objected"]
    took = []

    async with working(site) as running:
        await running.ready()
        await site.decided()
        for choice in changes:
            entries = await ledger_end(site)
            began = time.monotonic()
            offset = await site.feed.one(site.consent, consent("anna", choice))
            await until(lambda before=entries: grown(site, before), "the frontier is committed", 5)
            took.append(time.monotonic() - began)
            (entry,) = (await site.seen()).chains[partition][-1:]
            assert entry.frontier == {partition: offset + 1}
        _, page = await running.get("/metrics")

    seen = await site.check()
    idle = seen.chains[partition][-len(changes) :]
    for entry in idle:
        assert (entry.first, entry.last) == (idle[0].first, idle[0].first - 1)
        assert (entry.counts, entry.reasons) == ({}, [])
    last = json.loads(seen.decisions[0][-1].value or b"")
    assert last["outcomes"] == {"reasons": [], "codes": ""}
    assert len(seen.chains[1 - partition]) <= 2, "the other partition had nothing to say"
    assert sorted(took)[len(took) // 2] < EFFECT_SECONDS_MAX
    assert max(took) < EFFECT_SECONDS_MAX + LOADED_MACHINE_SECONDS
    # Three of the changes left her ineligible.
    assert metric(page, "consentgate_withdrawal_effect_seconds_count") == 3
    assert 0 < metric(page, "consentgate_withdrawal_effect_seconds_sum") < sum(took) + 1
    assert retracted(seen) == ["withdrawn", "withdrawn", "objected"]


async def ledger_end(site: Site) -> int:
    return (await site.probe.ends(site.config.topics.decisions, 1)).stable[0]


async def grown(site: Site, before: int) -> bool:
    """Whether another entry, or more than the marker of the last one, can be read."""
    return await ledger_end(site) > before + 1


def retracted(seen: checker.Seen) -> list[str]:
    records = [record for records in seen.retractions.values() for record in records]
    return [json.loads(record.value or b"")["reason"] for record in records]


async def test_a_broker_that_stands_still_stalls_the_worker_and_no_more(
    make_site: SiteFactory, shared_kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: stays green where `Worker._ready` looks neither at the broker nor at the partitions.
    monkeypatch.setattr(worker_module, "STALE_SECONDS", 1.5)
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 0.2)
    # Shorter than the outage, so that producers are given up, too.
    monkeypatch.setattr(transport, "STEP_SECONDS_MAX", 2.0)
    site = await make_site("outage", partitions=2, kafka=SMALL_FETCHES)
    people = [f"m{number}" for number in range(100)]
    await site.feed.many(site.consent, map(consent, people))

    async with working(site) as running:
        await running.ready()
        posts = [post(person, f"e{n}") for n in range(40) for person in people]
        await site.feed.many(site.content, posts, batch_bytes=SMALL_BYTES)
        await until(lambda: under_way(site), "the worker is under way")
        assert (await running.get("/readyz"))[0] == 200
        shared_kafka.suspend()
        try:
            await until(lambda: misses_the_broker(running), "/readyz is red")
            await until(lambda: running.logged("recycled"), "a producer is given up")
            assert (await running.get("/livez"))[0] == 200
        finally:
            shared_kafka.resume()
        await running.ready()
        await site.decided()

    seen = await site.check()
    assert seen.reasons() == {"opted-in": len(posts)}


async def under_way(site: Site) -> bool:
    committed = await site.committed()
    return all(committed.values()) and any((await site.lag()).values())


async def misses_the_broker(running: Running) -> bool:
    status, body = await running.get("/readyz")
    return status == 503 and json.loads(body)["components"]["broker"] == "does not answer"
