"""Health where the network is cut: what a restart would not mend calls for none."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from consentgate.kafka import transport
from consentgate.service import progress
from consentgate.service import worker as worker_module
from harness import Feed, Probe, Running, SiteFactory, consent, post, until, working
from proxy import ProxiedKafka, Proxy

STUCK_SECONDS = 2.0
CLIENT = "behind-the-proxy"


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[tuple[SiteFactory, Proxy]]:
    with ProxiedKafka() as kafka:
        async with Probe(kafka) as probe, Feed(kafka) as feed, kafka.proxy() as proxy:
            yield SiteFactory(kafka, probe, feed, tmp_path), proxy


async def test_a_cut_network_is_not_ready_and_live(
    proxied: tuple[SiteFactory, Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: is not live where `Worker._watch` does not say whether the broker answers.
    monkeypatch.setattr(progress, "STUCK_SECONDS", STUCK_SECONDS)
    monkeypatch.setattr(worker_module, "STUCK_SECONDS", STUCK_SECONDS)
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(worker_module, "STALE_SECONDS", 0.8)
    monkeypatch.setattr(transport, "STEP_SECONDS_MAX", 1.5)
    make_site, proxy = proxied
    client = {"bootstrap.servers": proxy.bootstrap_servers, "client.id": CLIENT}
    site = await make_site("cut", partitions=2, kafka=client)
    await site.feed.many(site.consent, [consent("anna")])
    async with working(site) as running:
        await running.ready()
        # It knows that there is work to do, and has not done it.
        source, home = running.worker._source, site.feed.partition_of(consent("anna"), range(2))
        source._consumer.pause(TopicPartition(site.content, home))
        await site.feed.many(site.content, [post("anna", f"{n}") for n in range(100)])
        await until(lambda: source.can_be_read(home, 0), "it knows of it")
        proxy.cut(CLIENT)
        await until(lambda: misses_the_broker(running), "it misses the broker")
        with pytest.raises(AssertionError, match="not within"):
            await until(lambda: is_not_live(running), "it is not live", 2 * STUCK_SECONDS)
        said = await ready_of(running)
        assert said["consent"].startswith("not known to be fresh for ")
        proxy.heal(CLIENT)
        await running.ready()
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 100}


async def ready_of(running: Running) -> dict[str, str]:
    status, body = await running.get("/readyz")
    said = dict(json.loads(body)["components"])
    assert (status == 200) == all(state == "ok" for state in said.values())
    return said


async def misses_the_broker(running: Running) -> bool:
    return (await ready_of(running))["broker"] == "does not answer"


async def is_not_live(running: Running) -> bool:
    return (await running.get("/livez"))[0] == 503
