"""`/readyz` and `/livez` while things go wrong: neither says more, or less, than is so."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from consentgate.core import partition
from consentgate.core.partition import Send, Step
from consentgate.kafka import sink, transport
from consentgate.kafka.clock import read_clock
from consentgate.kafka.transport import KafkaTransport
from consentgate.service import progress
from consentgate.service import worker as worker_module
from harness import (
    Running,
    Site,
    SiteFactory,
    SlowView,
    StartWorker,
    WorkerProcess,
    clock_off_by,
    consent,
    get,
    post,
    until,
    working,
)

STUCK_SECONDS = 1.5
LAUNCHER = Path(__file__).parents[1] / "faults" / "launcher.py"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STUCK_SECONDS", STUCK_SECONDS)
    monkeypatch.setattr(worker_module, "STUCK_SECONDS", STUCK_SECONDS)
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(transport, "FRESH_SECONDS_MAX", 0.3)
    monkeypatch.setattr(partition, "BACKOFF_MS_MAX", 300)


async def components(running: Running, path: str) -> dict[str, str]:
    """What each component says; the status agrees with it."""
    status, body = await running.get(path)
    page = json.loads(body)
    assert (status == 200) == all(state == "ok" for state in page["components"].values())
    assert page["status"] == ("ok" if status == 200 else "unavailable")
    return dict(page["components"])


async def is_live(running: Running) -> bool:
    return (await running.get("/livez"))[0] == 200


async def stays_live(running: Running) -> None:
    """Beyond the time after which a lack of progress counts."""
    with pytest.raises(AssertionError, match="not within"):
        await until(lambda: gets_stuck(running), "it is not live", 2 * STUCK_SECONDS)


async def gets_stuck(running: Running) -> bool:
    return not await is_live(running)


async def with_anna(make_site: SiteFactory, name: str) -> Site:
    site = await make_site(name)
    await site.feed.many(site.consent, [consent("anna")])
    return site


async def test_a_worker_that_is_well_says_so_of_each_component(make_site: SiteFactory) -> None:
    site = await make_site("well", partitions=2)
    async with working(site) as running:
        await running.ready()
        names = ["worker", "policy", "broker", "group", "bootstrap", "consent"]
        assert list(await components(running, "/readyz")) == [*names, "partition-0", "partition-1"]
        assert list(await components(running, "/livez")) == ["watch", "partition-0", "partition-1"]


# What a restart does not mend.


async def test_a_long_bootstrap_is_live_and_not_ready(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: is restarted for ever where `Progress.look` does not see the table grow.
    monkeypatch.setattr(worker_module, "ConsentView", SlowView)
    monkeypatch.setattr(SlowView, "delay_seconds", 0.7)
    site = await make_site("long")
    await site.feed.many(site.consent, [consent(f"m{n}") for n in range(25_000)])
    await site.feed.many(site.content, [post("m1", "1")])
    async with working(site) as running:
        await until(lambda: running.logged("assigned"), "it has begun")
        await stays_live(running)
        said = await components(running, "/readyz")
        assert said["bootstrap"] == "1 of 1 partitions are being taken over"
        assert said["partition-0"].startswith(f"bootstrapping: {site.consent}-0: read up to offset")
        assert said["partition-0"].endswith(" of 25000")
        monkeypatch.setattr(SlowView, "delay_seconds", 0.0)
        await running.ready()
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 1}


async def test_a_consent_topic_that_hangs_makes_it_stale_and_not_dead(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: is not live where `ConsentView.why_behind` does not tell what is anybody's.
    monkeypatch.setattr(worker_module, "STALE_SECONDS", 1.0)
    site = await with_anna(make_site, "hangs")
    async with working(site) as running:
        await running.ready()
        async with open_transaction(site, site.consent):
            await site.feed.many(site.content, [post("anna", "1")])
            await until(lambda: running.logged("stalled"), "it stalls")
            await stays_live(running)
            said = await components(running, "/readyz")
        assert said["partition-0"].startswith("stalled: ")
        assert "an open transaction hides" in said["partition-0"]
        assert said["consent"].startswith("not known to be fresh for ")
        await running.ready()
        await site.decided()


async def test_content_that_a_transaction_hides_is_no_work_left_undone(
    make_site: SiteFactory,
) -> None:
    # Checked: is not live where `Progress.look` goes by the high watermark.
    site = await with_anna(make_site, "hidden")
    async with working(site) as running:
        await running.ready()
        async with open_transaction(site, site.content):
            await stays_live(running)
            await running.ready()


async def test_what_a_person_has_to_put_right_is_not_ready_all_the_time_and_live(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: seems ready between two attempts where `AssignedPartition.readiness` does not ask
    # what has been committed since; not live where `_report` takes no failure for a sign of life.
    # Beginning anew takes a while on a busy machine.
    monkeypatch.setattr(progress, "STUCK_SECONDS", 3.0)
    # No reading of the ledger is seen twice, and so taken for a long one.
    monkeypatch.setattr(worker_module, "WATCH_SECONDS", 0.5)
    site = await with_anna(make_site, "clock")

    early = clock_off_by(-5_000)

    async with working(site) as running:
        await running.ready()
        monkeypatch.setattr(sink, "read_clock", early)
        await site.feed.many(site.content, [post("anna", "1")])
        await until(lambda: running.logged("recycled"), "it notices")
        ends_at = time.monotonic() + 5
        while time.monotonic() < ends_at:
            assert (
                "clock and the broker's differ"
                in (await components(running, "/readyz"))["partition-0"]
            )
            assert await is_live(running)
        assert len(running.logged("ready")) > 1, "it has tried again meanwhile"
        monkeypatch.setattr(sink, "read_clock", read_clock)
        await running.ready()
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 1}


async def test_work_after_a_long_rest_is_no_standstill(make_site: SiteFactory) -> None:
    # Checked: is not live for a moment where the time counts from the last commit.
    site = await with_anna(make_site, "rest")
    async with working(site) as running:
        await running.ready()
        await asyncio.sleep(2 * STUCK_SECONDS)
        async with held_back(running):
            await site.feed.many(site.content, [post("anna", "1")])
            await asyncio.sleep(STUCK_SECONDS / 2)
            assert await is_live(running)
        await site.decided()


# What a restart does mend.


@pytest.mark.parametrize("churn", [False, True])
async def test_fetches_that_bring_nothing_are_not_live(make_site: SiteFactory, churn: bool) -> None:
    # Checked: stays live where `Progress.look` does not look at what can be read, and,
    # with changes of consent, where a frontier that moves on counts.
    site = await with_anna(make_site, "lost")
    async with working(site) as running, meanwhile_changing(site if churn else None):
        await running.ready()
        running.worker._source._consumer.pause(TopicPartition(site.content, 0))
        assert await is_live(running)
        await site.feed.many(site.content, [post("anna", "1")])
        await until(lambda: gets_stuck(running), "it is not live", 10)
        said = await components(running, "/livez")
        assert said["partition-0"].startswith("has work to do and has got nowhere for ")
        running.worker._source._consumer.resume(TopicPartition(site.content, 0))
        await site.decided()
        await until(lambda: is_live(running), "it is live again")


async def test_a_view_that_reads_no_more_is_not_live(make_site: SiteFactory) -> None:
    # Checked: stays live where `ConsentView.why_behind` excuses what it has not read itself.
    site = await with_anna(make_site, "blind")
    async with working(site) as running:
        await running.ready()
        running.worker._view._reader.pause(TopicPartition(site.consent, 0))
        await site.feed.one(site.consent, consent("ben"))
        await site.feed.many(site.content, [post("anna", "1")])
        await until(lambda: gets_stuck(running), "it is not live", 10)
        assert (await components(running, "/readyz"))["partition-0"].startswith("stalled: ")
        running.worker._view._reader.resume(TopicPartition(site.consent, 0))
        await site.decided()


async def test_a_partition_without_a_task_is_not_live(make_site: SiteFactory) -> None:
    # Checked: stays live where `Worker._live` does not look at the tasks.
    site = await with_anna(make_site, "dead")
    async with working(site) as running:
        await running.ready()
        _, task = running.worker._assigned[0]
        task.cancel()
        await asyncio.wait([task])
        assert (await components(running, "/livez"))["partition-0"] == "its task has ended"


async def test_a_watch_that_is_not_kept_is_not_live(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: stays live where `Worker._live` does not look at the watch; nobody would ever know.
    site = await with_anna(make_site, "unwatched")
    async with working(site) as running:
        await running.ready()
        monkeypatch.setattr(worker_module, "WATCH_SECONDS", 5.0)
        await until(lambda: gets_stuck(running), "it is not live", 10)
        assert (await components(running, "/livez"))["watch"].startswith("has not been kept for ")


async def test_an_event_loop_that_is_blocked_gives_no_answer(
    make_site: SiteFactory, tmp_path: Path
) -> None:
    site = await with_anna(make_site, "blocked")
    program = (str(LAUNCHER), "block:3", "after-send", "1")
    worker = await WorkerProcess.start(site, tmp_path / "worker.log", program=program)
    try:
        await worker.ready()
        await site.feed.many(site.content, [post("anna", "1")])
        await until(lambda: worker.logged("tampered"), "the loop is blocked")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await worker.get("/livez")
        await site.decided()
        assert (await worker.get("/livez"))[0] == 200
    finally:
        await worker.end()
    await site.check()


# Coming, going, and taking turns.


async def test_a_worker_is_seen_while_it_waits_for_a_broker_and_can_be_ended(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    # Checked: refuses connections where the HTTP server starts after the broker has answered, and
    # stays for a minute where `Worker.run` does not leave off beginning.
    site = await make_site("early", create=False)
    with socket.socket() as taken, socket.socket() as silent:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = yaml.safe_load(site.path.read_text())
        settings["http"]["port"] = port
        settings["kafka"]["bootstrap.servers"] = f"127.0.0.1:{silent.getsockname()[1]}"
        site.path.write_text(yaml.safe_dump(settings))
        taken.close()
        worker = await start_worker(site)
        url = f"http://127.0.0.1:{port}"

        async def answers() -> bool:
            with suppress(OSError):
                return (await get(url + "/livez"))[0] == 200
            return False

        await until(answers, "it is live")
        status, body = await get(url + "/readyz")
        said = json.loads(body)["components"]
        assert (status, said["worker"], said["broker"]) == (503, "starting", "does not answer")
        assert said["group"] == "joining"
        worker.signal(signal.SIGTERM)
        assert await worker.wait(seconds=5) == 0, worker.errors()


async def test_readiness_goes_off_before_the_transaction_in_hand_is_over(
    make_site: SiteFactory,
) -> None:
    # Checked: is still ready where `Worker._ready` does not say that it stops, and gives no answer
    # where the HTTP server is put away first.
    site = await with_anna(make_site, "drain")
    async with working(site, may_fail=True) as running:
        await running.ready()
        async with held_back(running) as held:
            await site.feed.many(site.content, [post("anna", "1")])
            await asyncio.wait_for(held.wait(), 10)
            running.worker.end()
            await asyncio.sleep(0.5)
            assert not running.task.done()
            assert (await components(running, "/readyz"))["worker"] == "stopping"
            assert await is_live(running)
        await asyncio.wait([running.task], timeout=10)
        assert running.task.exception() is None
    assert (await site.check()).reasons() == {"opted-in": 1}


async def test_an_end_during_a_rebalance_lets_the_transaction_in_hand_be_finished(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: it is cut short where `Worker._give_up` waits for its own partitions only.
    monkeypatch.setattr(worker_module, "CLOSE_SECONDS_MAX", 0.2)
    site = await with_anna(make_site, "both")
    async with working(site, may_fail=True) as running:
        await running.ready()
        async with held_back(running) as held:
            await site.feed.many(site.content, [post("anna", "1")])
            await asyncio.wait_for(held.wait(), 10)
            third = asyncio.create_task(joins(site))
            await until(lambda: says(running, "group", "rebalancing"), "partitions are given up")
            running.worker.end()
            await asyncio.sleep(1)
            assert not running.task.done()
        await asyncio.wait([running.task], timeout=10)
        assert running.task.exception() is None
        await third
    assert (await site.check()).reasons() == {"opted-in": 1}


async def test_a_worker_whose_group_shares_anew_is_not_ready(make_site: SiteFactory) -> None:
    # Checked: seems ready without a partition where `Worker._revoke` does not remember.
    site = await make_site("shares", partitions=2)
    gives_up = asyncio.Event()

    class Slow(ConsumerRebalanceListener):  # type: ignore[misc]
        async def on_partitions_revoked(self, revoked: Any) -> None:
            if revoked:
                await gives_up.wait()

        async def on_partitions_assigned(self, assigned: Any) -> None:
            pass

    other = AIOKafkaConsumer(
        bootstrap_servers=site.kafka.bootstrap_servers,
        group_id=site.config.group,
        enable_auto_commit=False,
        partition_assignment_strategy=(RangePartitionAssignor,),
    )
    other.subscribe([site.content], listener=Slow())
    await other.start()
    try:
        await until(lambda: len(other.assignment()) == 2, "somebody has everything")
        async with working(site) as running:
            await until(lambda: components(running, "/readyz"), "it answers")
            assert (await components(running, "/readyz"))["group"] == "joining"
            gives_up.set()
            await running.ready()
            gives_up.clear()
            third = asyncio.create_task(joins(site))
            await until(lambda: says(running, "group", "rebalancing"), "it says so")
            assert "partition-0" not in await components(running, "/readyz")
            gives_up.set()
            await third
            await running.ready()
    finally:
        gives_up.set()
        await other.stop()


async def joins(site: Site) -> None:
    """Another member comes, and leaves when it has been given its share."""
    third = AIOKafkaConsumer(
        bootstrap_servers=site.kafka.bootstrap_servers,
        group_id=site.config.group,
        enable_auto_commit=False,
        partition_assignment_strategy=(RangePartitionAssignor,),
    )
    third.subscribe([site.content])
    await third.start()
    await until(lambda: third._coordinator.generation > 0, "it is a member")
    await third.stop()


async def says(running: Running, component: str, state: str) -> bool:
    return (await components(running, "/readyz")).get(component) == state


@asynccontextmanager
async def open_transaction(site: Site, topic: str) -> AsyncIterator[None]:
    """A transaction of somebody else's that stays open."""
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers, transactional_id=f"{site.config.group}-app"
    ) as somebody:
        await somebody.begin_transaction()
        sent = consent("cleo") if topic == site.consent else post("anna", "hidden")
        await somebody.send_and_wait(topic, sent.value, sent.key)
        yield
        await somebody.abort_transaction()


@asynccontextmanager
async def held_back(running: Running) -> AsyncIterator[asyncio.Event]:
    """Let no transaction be written; what is yielded says that one would have been."""
    reached, let_go = asyncio.Event(), asyncio.Event()
    perform: Callable[..., Any] = KafkaTransport._perform

    async def perform_later(self: KafkaTransport, step: Step[Any]) -> Any:
        if isinstance(step, Send):
            reached.set()
            await let_go.wait()
        return await perform(self, step)

    KafkaTransport._perform = perform_later  # type: ignore[method-assign]
    try:
        yield reached
    finally:
        KafkaTransport._perform = perform  # type: ignore[method-assign]
        let_go.set()


@asynccontextmanager
async def meanwhile_changing(site: Site | None) -> AsyncIterator[None]:
    """Somebody changes their mind all the time, where there is a site."""

    async def change() -> None:
        assert site is not None, "is only called where there is one"
        while True:
            await site.feed.one(site.consent, consent("ben"))
            await asyncio.sleep(0.1)

    task = asyncio.create_task(change() if site else asyncio.sleep(0))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
