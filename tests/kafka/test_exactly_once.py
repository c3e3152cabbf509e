"""Every record has one outcome, whatever becomes of the workers."""

import asyncio
import itertools
import random
import signal
from collections import Counter

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError

from consentgate.core import partition
from consentgate.core.gate import BatchOutcome
from consentgate.kafka.sink import TransactionalSink
from consentgate.service import worker as worker_module
from harness import (
    QUICK_GROUP,
    SMALL_BYTES,
    SMALL_FETCHES,
    Site,
    SiteFactory,
    StartWorker,
    close_connections,
    consent,
    freeze_mid_transaction,
    meanwhile,
    post,
    until,
    working,
)

PEOPLE = [f"m{number}" for number in range(400)]
CHANGE_SECONDS = 0.1
TOPIC = ConfigResourceType.TOPIC


async def append_posts(site: Site, number: int) -> None:
    """Posts of everybody in turn, in batches that make small transactions."""
    posts = (post(person, f"e{n}") for n, person in zip(range(number), itertools.cycle(PEOPLE)))
    await site.feed.many(site.content, posts, batch_bytes=SMALL_BYTES)


class Minds:
    """People who change their minds, each record acknowledged."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._random = random.Random(7)

    async def change(self) -> None:
        """Let some people grant or withdraw."""
        people = self._random.sample(PEOPLE, 3)
        choices = self._random.choices(("granted", "withdrawn"), k=3)
        changed = [consent(p, choice) for p, choice in zip(people, choices, strict=True)]
        await self._site.feed.many(self._site.consent, changed)
        await asyncio.sleep(CHANGE_SECONDS)


async def test_killed_workers_leave_nothing_undone_and_nothing_done_twice(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    # Checked: offsets come twice where batches are written without transactions.
    site = await make_site("killed", partitions=4, kafka={**QUICK_GROUP, **SMALL_FETCHES})
    await site.feed.many(site.consent, [consent(person) for person in PEOPLE])
    await append_posts(site, 20_000)
    workers = [await start_worker(site) for _ in range(3)]
    for worker in workers:
        await worker.ready()

    async with meanwhile(Minds(site).change):
        for victim in workers[:2]:
            await freeze_mid_transaction(site, victim)
            victim.signal(signal.SIGKILL)
            assert await victim.wait() == -signal.SIGKILL
            await start_worker(site) if victim is workers[0] else None
        await site.decided()

    seen = await site.check()
    assert sum(map(len, seen.content.values())) == 20_000
    assert seen.reasons().keys() == {"opted-in", "withdrawn"}


async def test_a_worker_that_comes_back_from_the_dead_commits_nothing(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    # Checked: offsets come twice where every worker's producers have ids of their own.
    site = await make_site("zombie", partitions=2, kafka={**QUICK_GROUP, **SMALL_FETCHES})
    await site.feed.many(site.consent, [consent(person) for person in PEOPLE])
    zombie, other = await start_worker(site), await start_worker(site)
    await until(lambda: zombie.assigned() and other.assigned(), "both have joined")
    await until(lambda: len(zombie.assigned() + other.assigned()) == 2, "they share the work")
    await zombie.ready()
    await other.ready()
    await append_posts(site, 6_000)

    await freeze_mid_transaction(site, zombie)
    (number,) = zombie.assigned()
    frozen_at = (await site.committed())[number]

    async def taken_over() -> bool:
        return (await site.committed())[number] > frozen_at

    await until(taken_over, "the other worker has taken over")
    assert number in other.assigned()
    assignments = len(zombie.logged("assigned"))
    zombie.signal(signal.SIGCONT)

    await until(lambda: len(zombie.logged("assigned")) > assignments, "it is a member again")
    assert zombie.logged("recycled"), "what it had in hand came to nothing"
    await append_posts(site, 3_000)
    await site.decided()

    seen = await site.check()
    assert sum(map(len, seen.content.values())) == 9_000
    assert await zombie.consumed() + await other.consumed() == 9_000


async def test_a_commit_of_unknown_end_is_settled_before_the_next_batch(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: offsets come twice where `KafkaTransport` reads the position before it fences, and
    # where each producer has an id of its own.
    commit = TransactionalSink.commit
    chance = random.Random(3)
    commits: set[asyncio.Task[None]] = set()
    ends = Counter[str]()

    async def commit_and_lose_the_answer(sink: TransactionalSink) -> None:
        end = chance.choice(("answered", "answered", "lost", "never sent", "on its way"))
        ends[end] += 1
        if end in ("answered", "lost"):
            await commit(sink)
        if end == "on its way":
            commits.add(asyncio.create_task(commit(sink)))
            await asyncio.sleep(chance.choice((0, 0.001, 0.003)))
        if end != "answered":
            raise KafkaError("no answer")

    monkeypatch.setattr(TransactionalSink, "commit", commit_and_lose_the_answer)
    monkeypatch.setattr(partition, "BACKOFF_MS_MIN", 1)
    monkeypatch.setattr(partition, "BACKOFF_MS_MAX", 1)
    site = await make_site("unknown", partitions=2, kafka=SMALL_FETCHES)
    await site.feed.many(site.consent, [consent(person) for person in PEOPLE])
    await append_posts(site, 2_000)

    async with working(site):
        await site.decided()
    await asyncio.gather(*commits, return_exceptions=True)

    assert len(ends) == 4
    assert min(ends.values()) > 5
    await site.check()


async def test_a_record_that_the_broker_refuses_is_never_left_out(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: committed without the record where `TransactionalSink` does not await what it sends,
    # and where it does not look at what came of it.
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 600.0)
    site = await make_site("refused")
    training = site.config.topics.training
    await site.feed.many(site.consent, [consent("anna")])

    async def take_at_most(value_bytes: int) -> None:
        setting = {"max.message.bytes": str(value_bytes), "message.timestamp.type": "CreateTime"}
        await site.probe.admin.alter_configs([ConfigResource(TOPIC, training, setting)])

    async with working(site) as running:
        await running.ready()
        await take_at_most(2_000)
        body = {"text": "x" * 10_000}
        await site.feed.many(site.content, [post("anna", "1", body=body)])
        await until(lambda: running.logged("recycled"), "it notices")
        assert (await site.lag())[0] == 1
        await take_at_most(2_000_000)
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 1}


@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_a_producer_that_lost_a_connection_is_not_used_again(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    # Checked: the same producer goes on where `TransactionalSink` does not say so at the end. What
    # was sent on the lost connection may still arrive, and end the next transaction.
    site = await make_site("lost")
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    send_offset, name = TransactionalSink.send_offset, f"{end}_transaction"
    ended = getattr(AIOKafkaProducer, name)
    withdrawals = [consent("anna", "withdrawn")] if end == "abort" else []
    forwarding: list[AIOKafkaProducer] = []

    async def have_somebody_withdraw(sink: TransactionalSink, outcome: BatchOutcome) -> None:
        await send_offset(sink, outcome)
        if outcome.training and not forwarding:
            forwarding.append(sink._producer)
            for sent in withdrawals:
                await site.feed.one(site.consent, sent)

    async def lose_the_connections(producer: AIOKafkaProducer) -> None:
        if producer in forwarding:
            close_connections(producer)
        await ended(producer)

    async with working(site) as running:
        await running.ready()
        monkeypatch.setattr(TransactionalSink, "send_offset", have_somebody_withdraw)
        monkeypatch.setattr(AIOKafkaProducer, name, lose_the_connections)
        await site.feed.batch(site.content, [post("anna", "1"), post("ben", "1")])
        await site.decided()
        await until(lambda: running.logged("recycled"), "a new producer is made")
        whys = [entry["why"] for entry in running.logged("recycled")]
        assert whys == ["the connection was lost during the transaction"]
    counts = {"opted-in": 2} if end == "commit" else {"opted-in": 1, "withdrawn": 1}
    assert (await site.check()).reasons() == counts


async def test_a_producer_that_lost_a_connection_between_transactions_is_not_used_again(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: anna's post is lost, and the chain torn, where `TransactionalProducer.begin` does not
    # look at that. A broker on its way down has called her transaction committed, and left out all
    # of its markers; here the client never asked it to.
    site = await make_site("between")
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    send_offset, commit = TransactionalSink.send_offset, TransactionalSink.commit
    hers: list[TransactionalSink] = []

    async def have_ben_withdraw(sink: TransactionalSink, outcome: BatchOutcome) -> None:
        await send_offset(sink, outcome)
        keys = [output.key for output in outcome.training]
        if keys == [b"anna"] and not hers:
            hers.append(sink)
        if b"ben" in keys:
            await site.feed.one(site.consent, consent("ben", "withdrawn"))

    async def seem_to_commit(sink: TransactionalSink) -> bool:
        if hers != [sink]:
            return await commit(sink)
        hers.append(sink)
        sink._producer._txn_manager.committing_transaction()
        sink._producer._txn_manager.complete_transaction()
        close_connections(sink._producer)
        return False

    async with working(site) as running:
        await running.ready()
        monkeypatch.setattr(TransactionalSink, "send_offset", have_ben_withdraw)
        monkeypatch.setattr(TransactionalSink, "commit", seem_to_commit)
        await site.feed.many(site.content, [post("anna", "1")])
        await until(lambda: len(hers) > 1, "her transaction seems to be committed")
        await site.feed.many(site.content, [post("ben", "1")])
        await site.decided()
        whys = [entry["why"] for entry in running.logged("recycled")]
        assert whys == ["the connection was lost between two transactions"]
    assert (await site.check()).reasons() == {"opted-in": 1, "withdrawn": 1}


async def test_a_producer_whose_client_has_closed_an_idle_connection_is_used_again(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: begins anew after every few quiet minutes where the reason is not looked at.
    site = await make_site("quiet")
    commit, committed = TransactionalSink.commit, list[TransactionalSink]()

    async def note(sink: TransactionalSink) -> bool:
        committed.append(sink)
        return await commit(sink)

    monkeypatch.setattr(TransactionalSink, "commit", note)
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", "1")])
    async with working(site) as running:
        await site.decided()
        await running.ready()
        close_connections(committed[-1]._producer, CloseReason.IDLE_DROP)
        await site.feed.many(site.content, [post("anna", "2")])
        await site.decided()
        assert not running.logged("recycled")
    assert (await site.check()).reasons() == {"opted-in": 2}


async def test_a_producer_that_lost_a_connection_while_it_began_is_not_used(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: it is used where `TransactionalSink._settle_leftovers` does not look at that. Its
    # first abort may have been sent twice, and arrive late.
    abort, lost = AIOKafkaProducer.abort_transaction, list[AIOKafkaProducer]()

    async def abort_and_lose_the_connections(producer: AIOKafkaProducer) -> None:
        await abort(producer)
        if not lost:
            lost.append(producer)
            close_connections(producer)

    monkeypatch.setattr(AIOKafkaProducer, "abort_transaction", abort_and_lose_the_connections)
    site = await make_site("begun")
    async with working(site) as running:
        await running.ready()
        whys = [entry["why"] for entry in running.logged("recycled")]
        assert whys == ["the connection was lost while a new producer began"]


async def test_an_output_without_a_leader_is_waited_for(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: goes on where `TransactionalSink` settles what was left open without asking who leads
    # the partitions. The client's knowledge is changed, for the only broker leads everything.
    site = await make_site("leaderless")
    led, asked = ClusterMetadata.leader_for_partition, list[TopicPartition]()

    def leader_for_partition(cluster: ClusterMetadata, tp: TopicPartition) -> int | None:
        if tp.topic == site.config.topics.training and len(asked) < 2:
            asked.append(tp)
            return None
        leader: int | None = led(cluster, tp)
        return leader

    monkeypatch.setattr(ClusterMetadata, "leader_for_partition", leader_for_partition)
    async with working(site) as running:
        await running.ready()
        whys = {entry["why"] for entry in running.logged("recycled")}
        assert whys == {f"{site.config.topics.training}-0 has no leader"}


async def test_a_client_s_own_cancellation_is_no_revocation(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: the partition is left alone for ever where `AssignedPartition.live` takes it for one.
    send, cancelled = TransactionalSink.send, []

    async def be_cancelled(sink: TransactionalSink, outcome: BatchOutcome) -> None:
        if not cancelled:
            cancelled.append(sink)
            raise asyncio.CancelledError
        await send(sink, outcome)

    monkeypatch.setattr(TransactionalSink, "send", be_cancelled)
    site = await make_site("cancelled")
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", "1")])
    async with working(site) as running:
        await site.decided(seconds=10)
        assert [entry["why"] for entry in running.logged("recycled")] == ["cancelled inside"]
    await site.check()


async def test_offsets_that_hold_no_record_are_passed_over(make_site: SiteFactory) -> None:
    # Checked: an entry has too few codes where `write_entry` leaves the gaps out, and nothing goes
    # on after the expiry where `KafkaTransport` seeks an offset that is gone.
    site = await make_site("gaps")
    place = TopicPartition(site.content, 0)
    await site.feed.many(site.consent, [consent("anna")])
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers, transactional_id=site.config.group + "-app"
    ) as producer:
        for number in range(6):
            await producer.begin_transaction()
            for sent in (post("anna", f"{number}-{n}") for n in range(3)):
                await producer.send_and_wait(site.content, sent.value, sent.key)
            await (producer.abort_transaction() if number % 2 else producer.commit_transaction())

    async with working(site):
        await site.decided()
    before = await site.check()
    assert before.reasons() == {"opted-in": 9}

    # While nobody works, some of what nobody has decided expires.
    await site.feed.many(site.content, [post("anna", f"late-{n}") for n in range(50)])
    end = await site.appended()
    await site.probe.admin.delete_records({place: RecordsToDelete(before_offset=end - 20)})
    async with working(site):
        await site.decided()

    after = await site.check({site.content: before.content[0]})
    assert after.reasons() == {"opted-in": 9 + 20}
    gap = [entry for entry in after.chains[0] if entry.first == before.chains[0][-1].last + 1]
    assert gap[0].reasons[:30] == [None] * 30
