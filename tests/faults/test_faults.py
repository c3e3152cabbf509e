"""A few faults with a few records; `make faults` has them all, with many."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition

# Their assertions explain themselves like those of the tests.
pytest.register_assert_rewrite("arena", "checker", "harness", "network", "processes")

import network  # noqa: E402
import processes  # noqa: E402
from arena import run  # noqa: E402
from consentgate.kafka import transport  # noqa: E402
from consentgate.tools.broker import EmbeddedKafka  # noqa: E402
from harness import (  # noqa: E402
    Feed,
    Probe,
    Site,
    SiteFactory,
    consent,
    metric,
    post,
    until,
    working,
)
from proxy import ProxiedKafka, SwallowResponse  # noqa: E402

SEED = 1
RECORDS = 5_000

SCENARIOS = {s.name: s for s in (*processes.SCENARIOS, *network.SCENARIOS)}
SOME = ["worker-sigkill-after-send", "broker-sigkill", "commit-reset"]


@pytest.mark.parametrize("name", SOME)
async def test_a_fault_leaves_nothing_undone_and_nothing_done_twice(name: str) -> None:
    result = await run(SCENARIOS[name], SEED, injections=1, records=RECORDS)
    assert result.problems == []
    assert result.tally == (0, 0, 0)
    assert (result.injections, result.records >= RECORDS) == (1, True)


@pytest.fixture
async def credulous_site(tmp_path: Path) -> AsyncIterator[Site]:
    """On a broker that does not ask the coordinator whether a partition is in a transaction."""
    config = {"transaction.partition.verification.enable": "false"}
    with EmbeddedKafka(config=config) as kafka:
        async with Probe(kafka) as probe, Feed(kafka) as feed:
            yield await SiteFactory(kafka, probe, feed, tmp_path)("left", partitions=1)


async def test_what_a_broker_has_left_open_is_aborted(credulous_site: Site) -> None:
    # Checked: what was left open is forwarded where `TransactionalSink.start` does not settle it.
    site = credulous_site
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", "1")])
    training = TopicPartition(site.config.topics.training, 0)
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers,
        transactional_id=f"{site.config.group}/{site.content}-0",
    ) as producer:
        await producer.begin_transaction()
        # The coordinator never hears of the partition, as if it had ended the transaction there.
        producer._txn_manager._txn_partitions.add(training)
        left = post("anna", "left")
        await producer.send_and_wait(training.topic, left.value, left.key, partition=0)
    assert (await site.probe.ends(training.topic, 1)).open([0]), "a transaction was left open"

    async with working(site):
        await site.decided()
    seen = await site.seen()
    assert [record.value for record in seen.forwarded()] == [post("anna", "1").value]
    await site.check()


async def test_what_a_commit_did_whose_answer_was_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: the posts are forwarded and never counted where `Partition` does not look for them.
    monkeypatch.setattr(transport, "STEP_SECONDS_MAX", 2.0)
    with ProxiedKafka() as kafka:
        async with kafka.proxy() as proxy, Probe(kafka) as probe, Feed(kafka) as feed:
            make_site = SiteFactory(kafka, probe, feed, tmp_path)
            through = {"bootstrap.servers": proxy.bootstrap_servers}
            site = await make_site("lost", partitions=1, kafka=through)
            await feed.many(site.consent, [consent("anna")])
            async with working(site) as running:
                await running.ready()
                lost = proxy.add(lambda request: request.commits, SwallowResponse())
                await feed.many(site.content, [post("anna", "1"), post("anna", "2")])
                await until(lambda: running.logged("recycled"), "the answer is lost")
                await feed.many(site.content, [post("anna", "3")])
                await running.ready()
                await site.decided()
                _, page = await running.get("/metrics")
            assert len(lost.landed) == 1
            seen = await site.check()
    assert len(seen.forwarded()) == 3
    assert metric(page, "consentgate_decisions_total") == 3
    assert metric(page, "consentgate_consumed_offsets_total") == 3
