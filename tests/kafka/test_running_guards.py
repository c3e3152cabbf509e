"""What was right at the start and goes wrong while a worker runs: nothing is forwarded on trust."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import attrgetter

import msgspec
import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.admin import NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from consentgate.errors import ClientBroken, ConfigError
from consentgate.kafka import cluster, sink
from consentgate.kafka.clock import read_clock
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.layout import read_layout
from consentgate.kafka.settings import kafka_settings
from consentgate.policies import load_policy
from consentgate.service import worker as worker_module
from consentgate.service.worker import Worker
from consentgate.tools.broker import EmbeddedKafka
from consentgate.tools.verify import verify
from harness import (
    DEADLINE_SECONDS,
    Running,
    Sent,
    Site,
    SiteFactory,
    SlowView,
    clock_off_by,
    compacted_away,
    consent,
    metric,
    post,
    until,
    working,
)

EXIT_CONFIG = 78
DELETIONS_KEPT_MS = 4_000
QUICKLY_COMPACTED = {
    "delete.retention.ms": str(DELETIONS_KEPT_MS),
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.001",
}


@pytest.fixture(autouse=True)
def watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 0.1)


async def forwards_nothing(site: Site, running: Running) -> None:
    """The partition is not ready, and what is appended now is not decided."""
    await site.feed.many(site.content, [post("anna", "meanwhile")])
    assert (await running.get("/readyz"))[0] == 503
    assert (await site.lag())[0] > 0


async def refused(running: Running) -> str:
    """The message with which the worker has ended."""
    with pytest.raises(ConfigError) as ended:
        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.shield(running.task)
    assert ended.value.exit_code == EXIT_CONFIG
    return str(ended.value)


@asynccontextmanager
async def about_to_end(site: Site, *, accept_consent_gap: bool = False) -> AsyncIterator[Running]:
    """A worker at work whose failure is for the test to see."""
    async with working(site, may_fail=True, accept_consent_gap=accept_consent_gap) as running:
        await running.ready()
        yield running


# Deletions that compaction removes before they are read.


async def grant_and_forget_while_the_view_stands_still(site: Site, view: ConsentView) -> None:
    """Anna is deleted while the view does not read; then compaction removes the deletion, too."""
    place = TopicPartition(site.consent, 0)
    view._reader.pause(place)
    # A fetch that is under way now would still bring what is appended now.
    await view._reader.end_offsets([place])
    deletion = await site.feed.one(site.consent, Sent(b"anna", None))
    await compacted_away(site, place, deletion, "the deletion is compacted away")


async def test_a_deletion_that_compaction_removed_unread_is_not_overlooked(
    make_site: SiteFactory,
) -> None:
    # Checked: forwards the second post where `ConsentView.high_watermarks` does not see for how
    # long the table was behind.
    site = await make_site("deleted", topics={"consent": QUICKLY_COMPACTED})
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    await site.feed.many(site.content, [post("anna", "1")])
    async with about_to_end(site, accept_consent_gap=True) as running:
        await site.decided()
        view = running.worker._view
        await grant_and_forget_while_the_view_stands_still(site, view)
        view._reader.resume(TopicPartition(site.consent, 0))
        await site.feed.many(site.content, [post("anna", "2"), post("ben", "1")])
        await site.decided()
        lost = [
            entry for entry in running.logged("recycled") if "deletions are kept" in entry["why"]
        ]
        assert lost, "it said why it began anew"
    assert (await site.seen()).reasons() == {"opted-in": 2, "no-consent-record": 1}


async def test_changes_that_may_have_been_missed_while_running_need_a_word(
    make_site: SiteFactory,
) -> None:
    # Checked: goes on without the retraction where `read_position` does not look for a gap.
    site = await make_site("gap", topics={"consent": QUICKLY_COMPACTED})
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    await site.feed.many(site.content, [post("anna", "1")])
    async with about_to_end(site) as running:
        await site.decided()
        running.worker._view._reader.pause(TopicPartition(site.consent, 0))
        await site.feed.one(site.consent, consent("ben"))
        assert "--accept-consent-gap" in await refused(running)
    assert (await site.seen()).reasons() == {"opted-in": 1}


async def test_a_bootstrap_slower_than_deletions_are_kept_never_gets_ready(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: gets ready where `ConsentView.high_watermarks` does not see for how long the table
    # was behind.
    monkeypatch.setattr(worker_module, "ConsentView", SlowView)
    monkeypatch.setattr(SlowView, "delay_seconds", 1.0)
    topics = {"consent": {"delete.retention.ms": "6000"}}
    site = await make_site("slow", topics=topics)
    await site.feed.many(site.consent, [consent(f"m{n}") for n in range(20_000)])
    await site.feed.many(site.content, [post("m1", "1")])

    async with working(site) as running:
        await until(lambda: len(running.logged("recycled")) >= 2, "it begins again and again")
        assert "deletions are kept" in running.logged("recycled")[-1]["why"]
        assert (await running.get("/readyz"))[0] == 503
        assert not (await site.seen()).decisions[0]
        # With a faster reader, or a longer retention, it gets there.
        monkeypatch.setattr(SlowView, "delay_seconds", 0.0)
        await running.ready()
        await site.decided()
    assert (await site.seen()).reasons() == {"opted-in": 1}


# The topics change.


async def test_a_consent_topic_made_anew_stalls(make_site: SiteFactory) -> None:
    # Checked: goes on where neither `ConsentView.high_watermarks` compares the ends with what was
    # applied nor `Partition` the frontiers with the committed one.
    site = await make_site("anew")
    await site.feed.many(site.consent, [consent("anna"), consent("ben"), consent("cleo")])
    await site.feed.many(site.content, [post("anna", "1")])
    async with working(site) as running:
        await running.ready()
        await site.decided()
        await site.probe.admin.delete_topics([site.consent])
        await until(lambda: not_ready(running), "it misses the topic")
        configs = {"cleanup.policy": "compact", "unclean.leader.election.enable": "false"}
        new = NewTopic(site.consent, 1, 1, topic_configs=configs)

        async def created() -> bool:
            (error,) = (await site.probe.admin.create_topics([new])).topic_errors
            return not error[1]

        await until(created, "the topic is made anew")
        # Anna has not granted anything to the new one.
        await until(lambda: went_back(running), "it says what has happened")
        await forwards_nothing(site, running)
    assert (await site.seen()).reasons() == {"opted-in": 1}


async def not_ready(running: Running) -> bool:
    return (await running.get("/readyz"))[0] == 503


def went_back(running: Running) -> bool:
    return any("made anew" in entry["why"] for entry in running.logged("recycled"))


@pytest.mark.parametrize(
    ("role", "setting", "value"),
    [
        ("consent", "cleanup.policy", "delete"),
        ("consent", "unclean.leader.election.enable", "true"),
        ("consent", "delete.retention.ms", "1000"),
        ("decisions", "retention.ms", "1000000"),
        ("retractions", "cleanup.policy", "compact"),
    ],
)
async def test_a_topic_that_is_reconfigured_ends_the_worker(
    make_site: SiteFactory, role: str, setting: str, value: str
) -> None:
    # Checked: goes on where `refuse_changes` does not look at the settings.
    site = await make_site("reconfigured")
    topic = getattr(site.config.topics, role)
    async with about_to_end(site) as running:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, {setting: value})
        await site.probe.admin.alter_configs([resource])
        message = await refused(running)
    assert "changed while running" in message
    assert f"topic {topic}: {setting} is {value}" in message


async def test_trust_does_not_begin_while_a_worker_runs(make_site: SiteFactory) -> None:
    # Checked: goes on where `refuse_changes` does not look at `Layout.on_trust`.
    site = await make_site("hidden")
    declared: dict[str, dict[str, str | int | bool]] = {
        site.consent: {
            "cleanup.policy": "compact",
            "unclean.leader.election.enable": False,
            "delete.retention.ms": 86_400_000,
            "min.compaction.lag.ms": 0,
        }
    }
    config = msgspec.structs.replace(site.config, declared=declared)
    async with about_to_end(dataclasses.replace(site, config=config)) as running:
        await site.probe.hide_configs(site.consent)
        message = await refused(running)
    assert f"the settings of {site.consent} may not be read any more" in message
    assert "DescribeConfigs" in message


@pytest.mark.parametrize("role", ["consent", "retractions"])
async def test_a_topic_that_is_gone_for_long_ends_the_worker(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    # Checked: does not end where `Worker._watch` takes a missing topic for a silent broker.
    monkeypatch.setattr(worker_module, "MISSING_SECONDS_MAX", 1.0)
    site = await make_site("gone")
    async with about_to_end(site) as running:
        topic = getattr(site.config.topics, role)
        await site.probe.admin.delete_topics([topic])
        assert await refused(running) == f"missing topics: {topic}"


@pytest.mark.parametrize("role", ["content", "consent", "training"])
async def test_a_topic_that_grows_ends_the_worker(make_site: SiteFactory, role: str) -> None:
    # Checked: goes on where `refuse_changes` does not compare the numbers.
    site = await make_site("grown")
    async with about_to_end(site) as running:
        topic = getattr(site.config.topics, role)
        await site.probe.admin.create_partitions({topic: NewPartitions(2)})
        message = await refused(running)
    assert topic in message


# The clock.


async def test_a_clock_that_is_wrong_stalls_until_it_is_right(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: commits where `TransactionalSink.send` does not compare the clocks.
    site = await make_site("clock")
    await site.feed.many(site.consent, [consent("anna")])

    early = clock_off_by(-5_000)

    async with working(site) as running:
        await running.ready()
        monkeypatch.setattr(sink, "read_clock", early)
        await site.feed.many(site.content, [post("anna", "1")])
        await until(lambda: running.logged("recycled"), "it notices")
        assert "clock and the broker's differ by" in running.logged("recycled")[-1]["why"]
        await forwards_nothing(site, running)
        monkeypatch.setattr(sink, "read_clock", read_clock)
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 2}


# Consent in the wrong place.


async def test_a_misplaced_consent_record_is_counted_and_said(make_site: SiteFactory) -> None:
    # Checked: neither happens where `ConsentView._apply` does not ask where records belong.
    site = await make_site("misplaced", partitions=2)
    home = site.feed.partition_of(consent("anna"), range(2))
    async with working(site) as running:
        await running.ready()
        await site.feed.one(site.consent, consent("anna"), partition=1 - home)
        await site.feed.many(site.content, [post("anna", "1")])
        await site.decided()
        _, page = await running.get("/metrics")
        warnings = [e for e in running.log if "another partition than" in e["event"]]
    assert metric(page, "consentgate_consent_misplaced_total") == 1
    assert len(warnings) == 1
    assert (await site.check()).reasons() == {"no-consent-record": 1}


async def test_a_grant_in_the_wrong_place_permits_nothing_there(make_site: SiteFactory) -> None:
    # Checked: forwarded against the withdrawal where `ConsentView._apply` takes it as it is. So it
    # lies after partitions were added, or a producer has got another partitioner.
    site = await make_site("stale", partitions=2)
    home = site.feed.partition_of(consent("anna"), range(2))
    await site.feed.one(site.consent, consent("anna"), partition=1 - home)
    await site.feed.one(site.consent, consent("anna", "withdrawn"), partition=home)
    await site.feed.many(site.content, [post("anna", "1")], 1 - home)
    await site.feed.many(site.content, [post("anna", "2")], home)
    async with working(site):
        await site.decided()
    assert not [records for records in (await site.seen()).training.values() if records]
    policy = load_policy(site.config.policy)
    verification = await verify(site.config, [policy], lambda done, total: None)
    assert (verification.violations, verification.unchecked) == (0, 0)


# A client that is broken inside.


@pytest.mark.parametrize("client", ["_source._consumer", "_view._reader"])
async def test_a_client_whose_fetching_has_ended_ends_the_worker(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    # Checked: waits for ever where `Worker._watch` does not ask the clients.
    site = await make_site("broken")

    def fail(assignment: object) -> None:
        raise RuntimeError("a bug")

    async with about_to_end(site) as running:
        fetcher = attrgetter(client)(running.worker)._fetcher
        monkeypatch.setattr(fetcher, "_get_actions_per_node", fail)
        with pytest.raises(ClientBroken):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await asyncio.shield(running.task)


async def test_a_member_that_the_group_does_not_take_back_ends_the_worker(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: stays outside the group for ever where `Worker._watch` does not see for how long.
    monkeypatch.setattr(worker_module, "MEMBER_SECONDS_MAX", 0.5)
    site = await make_site("outside")
    async with about_to_end(site) as running:
        monkeypatch.setattr(running.worker._source, "is_member", lambda: False)
        with pytest.raises(ClientBroken, match="not taken this member back"):
            async with asyncio.timeout(DEADLINE_SECONDS):
                await asyncio.shield(running.task)


async def test_partitions_that_cannot_be_taken_end_the_worker(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: goes on without them where `Worker._assign` leaves the error to the client, which
    # only logs it.
    def fail(worker: Worker, number: int) -> None:
        raise ConfigError(f"cannot take {number}")

    monkeypatch.setattr(Worker, "_take", fail)
    site = await make_site("taken")
    worker = Worker(site.config, load_policy(site.config.policy))
    with pytest.raises(ConfigError, match="cannot take 0"):
        async with asyncio.timeout(DEADLINE_SECONDS):
            await worker.run()


# A broker that is away.


async def test_a_worker_ends_within_bounded_time_while_the_broker_stands_still(
    make_site: SiteFactory, shared_kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: takes 40 s, the client's own patience, where `Worker._close` does not bound it.
    monkeypatch.setattr(worker_module, "REVOKE_SECONDS_MAX", 1.0)
    site = await make_site("hung", partitions=2)
    async with working(site, may_fail=True) as running:
        await running.ready()
        shared_kafka.suspend()
        try:
            began = time.monotonic()
            running.worker.end()
            async with asyncio.timeout(30):
                await running.task
        finally:
            shared_kafka.resume()
    assert time.monotonic() - began < 10


async def test_a_producer_is_dropped_within_bounded_time_while_the_broker_stands_still(
    make_site: SiteFactory, shared_kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: takes 40 s, the client's own patience, where `TransactionalSink.retire` does not
    # bound it.
    monkeypatch.setattr(sink, "RETIRE_SECONDS_MAX", 0.5)
    site = await make_site("dropped")
    settings, place = kafka_settings(site.config.kafka), TopicPartition(site.content, 0)
    producer = sink.TransactionalSink(
        settings, site.config.group, place, await read_layout(site.config)
    )
    await producer.start()
    await producer._producer.begin_transaction()
    await producer._producer.send_and_wait(site.config.topics.training, b"x", partition=0)
    shared_kafka.suspend()
    try:
        sent = await producer._producer.send(site.config.topics.training, b"y", partition=0)
        began = time.monotonic()
        async with asyncio.timeout(10):
            await producer.retire()
        assert time.monotonic() - began < 5
    finally:
        shared_kafka.resume()
    sent.cancel()


async def test_a_worker_that_drains_outlasts_an_outage(
    make_site: SiteFactory, shared_kafka: EmbeddedKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: the worker fails where `Worker._end_when_drained` lets an error pass.
    monkeypatch.setattr(cluster, "COORDINATOR_SECONDS_MAX", 0.5)
    site = await make_site("outlasted", partitions=2, kafka={"socket.timeout.ms": 500})
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", f"{n}") for n in range(1000)])
    with structlog.testing.capture_logs() as log:
        worker = Worker(site.config, load_policy(site.config.policy))
        draining = asyncio.create_task(worker.run(until_drained=True))
        await until(lambda: any(e["event"] == "assigned" for e in log), "it has begun")
        shared_kafka.suspend()
        try:
            await until(
                lambda: any(e["event"] == "cannot tell whether all is done" for e in log),
                "it misses the broker",
            )
        finally:
            shared_kafka.resume()
        summary = await draining
    assert summary.counts == {"opted-in": 1000}
    await site.check()
