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
from consentgate.tools.broker import EmbeddedKafka  # noqa: E402
from harness import Feed, Probe, Site, SiteFactory, consent, post, working  # noqa: E402

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
