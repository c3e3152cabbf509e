"""What was withdrawn before a post was appended is never forwarded, however late it is seen."""

import asyncio
import itertools
import time

import pytest
from aiokafka import AIOKafkaProducer

import checker
from consentgate.core.decode import ConsentFields, consent_decoder
from consentgate.core.gate import BatchOutcome
from consentgate.kafka import transport
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.sink import TransactionalSink
from consentgate.policies import load_policy
from consentgate.service import worker as worker_module
from consentgate.tools.verify import verify
from harness import (
    Feed,
    Running,
    Sent,
    Site,
    SiteFactory,
    SlowView,
    consent,
    meanwhile,
    metric,
    post,
    until,
    working,
)

DELAY_SECONDS = 0.2


async def test_an_acknowledged_withdrawal_is_never_beaten(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: forwards such posts where `ConsentView.await_frontier` returns at once, and where
    # `Partition._attempt` waits neither before it judges nor before it commits.
    monkeypatch.setattr(SlowView, "delay_seconds", DELAY_SECONDS)
    monkeypatch.setattr(worker_module, "ConsentView", SlowView)
    site = await make_site("barrier", partitions=4)
    rounds = [[f"m{number}-{person}" for person in range(20)] for number in range(15)]
    people = list(itertools.chain.from_iterable(rounds))
    bystanders = [f"bystander-{number}" for number in range(50)]
    await site.feed.many(site.consent, map(consent, [*people, *bystanders]))
    await site.feed.many(site.content, [post(person, "before") for person in people])

    others = [post(bystander, "load") for bystander in bystanders]

    async def withdraw_and_post(person: str) -> None:
        await site.feed.one(site.consent, consent(person, "withdrawn"))
        # The withdrawal is acknowledged. From here on nothing of this person's may pass.
        await site.feed.one(site.content, post(person, "after"))

    async with working(site) as running:
        await running.ready()
        await site.decided()
        view = running.worker._view
        assert isinstance(view, SlowView)
        view.waits.clear()
        async with meanwhile(lambda: site.feed.many(site.content, others)):
            for some in rounds:
                await asyncio.gather(*map(withdraw_and_post, some))
        await site.decided()

    seen = await site.check()
    assert len(view.waits) >= site.partitions, "the barrier had to wait for the view"
    assert sorted(view.waits)[len(view.waits) // 2] > DELAY_SECONDS / 2
    assert seen.reasons()["withdrawn"] == len(people)
    assert not [r for r in seen.forwarded() if b'"after"' in (r.value or b"")]
    assert len([r for r in seen.forwarded() if b'"before"' in (r.value or b"")]) == len(people)


async def test_a_post_from_before_the_withdrawal_that_still_waits_is_withheld(
    make_site: SiteFactory,
) -> None:
    # Checked: goes on where `Gate.judge` looks people up as of the record's own time.
    site = await make_site("waiting", partitions=1)
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    async with working(site) as running:
        await running.ready()
    await site.feed.many(site.content, [post("anna", "1"), post("ben", "1")])
    await site.feed.one(site.consent, consent("anna", "withdrawn"))
    async with working(site):
        await site.decided()
    assert (await site.check()).reasons() == {"withdrawn": 1, "opted-in": 1}


class Consenters:
    """Producers that write consent in transactions."""

    def __init__(self, site: Site, number: int) -> None:
        self._site = site
        self.producers = [
            AIOKafkaProducer(
                bootstrap_servers=site.kafka.bootstrap_servers,
                transactional_id=f"{site.config.group}-app-{index}",
            )
            for index in range(number)
        ]

    async def __aenter__(self) -> list[AIOKafkaProducer]:
        await asyncio.gather(*(producer.start() for producer in self.producers))
        return self.producers

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(producer.stop() for producer in self.producers))


async def send(producer: AIOKafkaProducer, topic: str, sent: Sent) -> int:
    """Send a record in the open transaction; its offset."""
    return int((await producer.send_and_wait(topic, sent.value, sent.key)).offset)


async def test_a_withdrawal_in_a_transaction_is_never_beaten(make_site: SiteFactory) -> None:
    # Checked: the barrier is behind where `ConsentView._watermarks` reads committed records only
    # (the end that it sees then is the last stable offset, which may still be that of before the
    # commit), and where `high_watermarks` gives an answer that is 200 ms old.
    site = await make_site("transactional", partitions=1)
    people = [f"m{number}" for number in range(120)]
    await site.feed.many(site.consent, map(consent, people))
    await site.feed.many(site.content, [post(person, "before") for person in people])
    behind = 0

    async with working(site) as running, Consenters(site, 4) as producers:
        await running.ready()
        await site.decided()
        view = running.worker._view
        table = view.follow([0])

        async def withdraw_all(producer: AIOKafkaProducer, some: list[str]) -> None:
            nonlocal behind
            for person in some:
                await producer.begin_transaction()
                offset = await send(producer, site.consent, consent(person, "withdrawn"))
                await producer.commit_transaction()
                behind += (await view.high_watermarks(table))[0] <= offset
                await site.feed.one(site.content, post(person, "after"))

        await asyncio.gather(
            *(withdraw_all(p, people[i :: len(producers)]) for i, p in enumerate(producers))
        )
        await site.decided()

    assert behind == 0, "the barrier covers what has been acknowledged"
    seen = await site.check()
    assert seen.reasons() == {"opted-in": len(people), "withdrawn": len(people)}


async def test_the_barrier_does_not_wait_for_a_fetch_to_be_answered(make_site: SiteFactory) -> None:
    # Checked: takes as long as a fetch where the high watermarks are asked for on the connection
    # of `ConsentView._reader`.
    site = await make_site("quick", kafka={"fetch.wait.max.ms": 2_000})
    await site.feed.many(site.consent, [consent("anna")])
    decode = consent_decoder(ConsentFields(), checker.PURPOSE, max_depth=64)
    view = ConsentView(
        kafka_settings(site.config.kafka), site.consent, decode, lambda cause: None, lambda: None
    )
    await view.start(lambda partition, subjects: (), deletions_kept_ms=60_000)
    table = view.follow([0])
    following = asyncio.create_task(view.run())
    try:
        await until(lambda: table.frontier[0] == 1, "the topic has been read")
        took = []
        for _ in range(5):
            began = time.monotonic()
            assert await view.high_watermarks(table) == {0: 1}
            took.append(time.monotonic() - began)
    finally:
        following.cancel()
        await view.stop()
    assert sorted(took)[len(took) // 2] < 0.2


async def test_an_aborted_consent_transaction_does_not_count(make_site: SiteFactory) -> None:
    # Checked: the aborted grants count where `ConsentView._reader` reads uncommitted records.
    site = await make_site("aborted", partitions=1)
    granted = [f"granted-{number}" for number in range(20)]
    never = [f"never-{number}" for number in range(20)]
    await site.feed.many(site.consent, map(consent, granted))

    async with working(site) as running, Consenters(site, 1) as (producer,):
        await running.ready()
        for person, other in zip(granted, never, strict=True):
            await producer.begin_transaction()
            await send(producer, site.consent, consent(person, "withdrawn"))
            await send(producer, site.consent, consent(other, "granted"))
            await producer.abort_transaction()
            await site.feed.many(site.content, [post(person, "1"), post(other, "1")])
        await site.decided()

    seen = await site.check()
    assert seen.reasons() == {"opted-in": 20, "no-consent-record": 20}


async def test_an_open_consent_transaction_stalls(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, feed: Feed
) -> None:
    # Checked: decides while the transaction is open, and so forwards the post, where the barrier
    # reads the last stable offset instead of the high watermark, where it does not wait, and where
    # it waits before the commit only and then does not ask what has changed.
    monkeypatch.setattr(transport, "FRESH_SECONDS_MAX", 0.3)
    site = await make_site("open", partitions=1)
    await feed.many(site.consent, [consent("anna"), consent("ben")])

    async with working(site) as running, Consenters(site, 1) as (producer,):
        await running.ready()
        await producer.begin_transaction()
        await send(producer, site.consent, consent("anna", "withdrawn"))
        await feed.many(site.content, [post("anna", "1"), post("ben", "1")])
        await until(lambda: running.logged("stalled"), "the partition says that it stalls")
        status, body = await running.get("/readyz")
        assert status == 503
        assert "stalled" in body
        assert "an open transaction hides what was appended from offset 2 on" in body
        assert (await site.lag())[0] == 2
        await producer.commit_transaction()
        await site.decided()
        await running.ready()

    seen = await site.check()
    assert seen.reasons() == {"withdrawn": 1, "opted-in": 1}


async def test_a_withdrawal_before_the_commit_turns_the_batch(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: the post goes on, to be retracted, where `Partition` does not ask before the commit
    # what has changed, and where it does not wait for the view then.
    monkeypatch.setattr(SlowView, "delay_seconds", DELAY_SECONDS)
    monkeypatch.setattr(worker_module, "ConsentView", SlowView)
    site = await make_site("turned", partitions=1)
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    send_offset = TransactionalSink.send_offset
    withdrawals = [consent("anna", "withdrawn")]

    async def withdraw_and_send_offset(sink: TransactionalSink, outcome: BatchOutcome) -> None:
        # All decisions of the transaction have been made, and written.
        while outcome.training and withdrawals:
            await site.feed.one(site.consent, withdrawals.pop())
        await send_offset(sink, outcome)

    async with working(site) as running:
        await running.ready()
        monkeypatch.setattr(TransactionalSink, "send_offset", withdraw_and_send_offset)
        posts = [post("anna", "1"), post("ben", "1"), post("anna", "2"), post("ben", "2")]
        await site.feed.batch(site.content, posts)
        await site.decided()
        assert len(running.logged("aborted")) == 1

    seen = await site.check()
    assert seen.reasons() == {"withdrawn": 2, "opted-in": 2}
    assert [record.key for record in seen.forwarded()] == [b"ben", b"ben"]


async def test_a_withdrawal_during_the_commit_is_measured_and_retracted(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: no exposure is seen where `exposures_ms` asks the covering transaction, and none is
    # reported where `ChainVerifier` leaves the entry before the withdrawal out.
    site = await make_site("exposed", partitions=1)
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    commit = TransactionalSink.commit
    withdrawals = [consent("anna", "withdrawn")]

    async def withdraw_and_commit(sink: TransactionalSink) -> bool:
        # The last look at the consent topic is over.
        while withdrawals:
            await site.feed.one(site.consent, withdrawals.pop())
        return await commit(sink)

    async with working(site) as running:
        await site.feed.many(site.content, [post("ben", "0")])
        await site.decided()
        monkeypatch.setattr(TransactionalSink, "commit", withdraw_and_commit)
        await site.feed.batch(site.content, [post("anna", "1"), post("ben", "1")])
        await site.decided()
        await until(lambda: effects(running), "the withdrawal takes effect")
        _, page = await running.get("/metrics")

    seen = await site.check()
    assert seen.reasons() == {"opted-in": 3}
    assert len(seen.retractions[0]) == 1
    assert metric(page, "consentgate_exposure_seconds_count") == 1
    assert metric(page, "consentgate_exposure_seconds_sum") > 0
    policies = [load_policy(site.config.policy)]
    verification = await verify(site.config, policies, lambda done, total: None)
    assert verification.violations == 0
    assert (verification.exposed_records_min, verification.exposed_records_max) == (0, 1)
    assert 0 < verification.exposure_ms_max < 5_000


async def effects(running: Running) -> float:
    _, page = await running.get("/metrics")
    return metric(page, "consentgate_withdrawal_effect_seconds_count")
