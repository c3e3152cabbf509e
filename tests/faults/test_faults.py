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
from consentgate.core.gate import BatchOutcome  # noqa: E402
from consentgate.kafka import transport  # noqa: E402
from consentgate.kafka.sink import TransactionalSink  # noqa: E402
from consentgate.tools.broker import EmbeddedKafka  # noqa: E402
from harness import (  # noqa: E402
    Feed,
    Probe,
    Site,
    SiteFactory,
    close_connections,
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


async def test_what_was_called_committed_without_its_markers_is_done_again(
    credulous_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: anna's retraction is missing where `TransactionalProducer.commit` does not ask for
    # connections that were lost. A broker that is stopped leaves all markers out, and says that it
    # has committed; ben's post, which is committed next, is written to other partitions.
    site = credulous_site
    begin, send_offset, commit = (
        getattr(TransactionalSink, name) for name in ("begin", "send_offset", "commit")
    )
    unmarked: list[TransactionalSink] = []

    async def begin_unheard(sink: TransactionalSink) -> None:
        await begin(sink)
        # The coordinator never hears of these, as if it had ended the transaction already.
        sink._producer._txn_manager._txn_partitions.update(sink._written_to)
        sink._producer._txn_manager._txn_consumer_group = site.config.group
        monkeypatch.setattr(TransactionalSink, "begin", begin)
        monkeypatch.setattr(TransactionalSink, "commit", seem_to_commit)

    async def seem_to_commit(sink: TransactionalSink) -> bool:
        sink._producer._txn_manager.committing_transaction()
        sink._producer._txn_manager.complete_transaction()
        unmarked.append(sink)
        monkeypatch.setattr(TransactionalSink, "commit", commit)
        monkeypatch.setattr(TransactionalSink, "send_offset", lose_the_connections)
        return False

    async def lose_the_connections(sink: TransactionalSink, outcome: BatchOutcome) -> None:
        await send_offset(sink, outcome)
        if sink in unmarked:
            close_connections(sink._producer)

    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    await site.feed.many(site.content, [post("anna", "1")])
    async with working(site) as running:
        await site.decided()
        monkeypatch.setattr(TransactionalSink, "begin", begin_unheard)
        await site.feed.one(site.consent, consent("anna", "withdrawn"))
        await until(lambda: unmarked, "her retraction seems to be committed")
        await site.feed.many(site.content, [post("ben", "1")])
        await site.decided()
        whys = [entry["why"] for entry in running.logged("recycled")]
        assert whys == ["the connection was lost during the transaction"]
    assert (await site.check()).reasons() == {"opted-in": 2}


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
