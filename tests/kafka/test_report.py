"""The transparency report beside a broker: its figures are those of `verify`, come what may."""

import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import faust
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, OutOfOrderSequenceNumber
from faust.types import TP

from consentgate.core.histogram import bucket
from consentgate.core.ledger import BatchFacts, Chain, read_entry, write_entry
from consentgate.core.model import Reason, decision
from consentgate.errors import EXIT_CONFIG, EXIT_INTERNAL
from consentgate.kafka.cluster import connected
from consentgate.kafka.reader import read_topic
from consentgate.kafka.settings import kafka_settings
from consentgate.policies import load_policy
from consentgate.report.app import make_app
from consentgate.report.driver import CommittedTransport
from consentgate.report.topics import prepare_changelogs, report_id
from consentgate.tools.broker import EmbeddedKafka
from consentgate.tools.verify import verification_json, verify
from harness import (
    QUICK_GROUP,
    WRITE,
    Feed,
    Probe,
    Sent,
    Site,
    SiteFactory,
    StartWorker,
    WorkerProcess,
    consent,
    post,
    until,
    working,
)

PEOPLE = [f"p{number}" for number in range(30)]

StartReport = Callable[[Site], Awaitable[WorkerProcess]]


@pytest.fixture
def start_report(start_worker: StartWorker) -> StartReport:
    """Starts reports as processes of their own; none outlives the test."""
    return lambda site: start_worker(site, "--port", "0", subcommand="report")


async def told(report: WorkerProcess, path: str) -> dict[str, Any]:
    """What the report answers; nothing while it cannot."""
    status, text = await report.get(path)
    answer: dict[str, Any] = json.loads(text) if status == 200 else {}
    return answer


async def verified(site: Site) -> dict[str, Any]:
    """The figures that `verify` comes to, in the shape of the report."""
    policies = [load_policy(site.config.policy)]
    verification = await verify(site.config, policies, lambda done, total: None)
    assert verification.violations == 0
    return verification_json(verification)


async def has_counted_all(site: Site, report: WorkerProcess) -> dict[str, Any]:
    """The report's totals, as soon as they are those that `verify` has come to."""
    wanted = await verified(site)

    async def are_equal() -> dict[str, Any]:
        assert report.running, report.errors()
        totals = await told(report, "/api/totals")
        return totals if totals and as_verified(totals) == as_bucketed(wanted) else {}

    totals: dict[str, Any] = await until(are_equal, f"the report says {as_bucketed(wanted)}", 60)
    return totals


def as_verified(totals: dict[str, Any]) -> dict[str, Any]:
    rows = [{n: v for n, v in row.items() if n != "verdict"} for row in totals["outcomes"]]
    return {"outcomes": sorted(rows, key=str), "withdrawals": totals["withdrawals"]}


def as_bucketed(wanted: dict[str, Any]) -> dict[str, Any]:
    """What `verify` says, with its percentiles as exact as the report's."""
    withdrawals = dict(wanted["withdrawals"])
    effect_ms = withdrawals["effect_ms"]
    longest_ms = effect_ms["max"]
    withdrawals["effect_ms"] = {
        name: each if each is None else min(bucket(each), longest_ms)
        for name, each in effect_ms.items()
    }
    return {"outcomes": sorted(wanted["outcomes"], key=str), "withdrawals": withdrawals}


async def has_gone_on(site: Site, number: int) -> None:
    """Some more posts are decided, and somebody withdraws, in effect everywhere."""
    posts = [post(person, f"e{number}") for person in [*PEOPLE, "stranger"]]
    await site.feed.many(site.content, [*posts, Sent(PEOPLE[-1].encode(), b"{")])
    await site.decided()
    before = (await verified(site))["withdrawals"]["count"]
    await site.feed.many(site.consent, [consent(PEOPLE[number], "withdrawn")])

    async def is_in_effect() -> bool:
        return bool((await verified(site))["withdrawals"]["count"] > before)

    await until(is_in_effect, "the withdrawal is in effect")


async def test_the_figures_are_those_of_verify_through_kills_and_rebalances(
    make_site: SiteFactory, start_report: StartReport
) -> None:
    site = await make_site("report", partitions=4, ledger_partitions=2, kafka=QUICK_GROUP)
    await site.feed.many(site.consent, [consent(person) for person in PEOPLE])
    async with working(site):
        await has_gone_on(site, 0)
        first = await start_report(site)
        await has_counted_all(site, first)

        first.signal(signal.SIGKILL)
        await first.wait()
        await has_gone_on(site, 1)
        second = await start_report(site)
        await has_counted_all(site, second)

        third = await start_report(site)
        await has_gone_on(site, 2)
        await has_counted_all(site, second)
        await has_counted_all(site, third)

        # One stands still, and comes back when others have gone on with what was its own.
        second.signal(signal.SIGSTOP)
        await has_gone_on(site, 3)
        await has_counted_all(site, third)
        second.signal(signal.SIGCONT)
        await has_gone_on(site, 4)
        await has_counted_all(site, second)
        await has_counted_all(site, third)

        second.signal(signal.SIGTERM)
        assert await second.wait() == 0
        await has_gone_on(site, 5)
        totals = await has_counted_all(site, third)

    assert totals["chain"]["state"] == "verified"
    assert [place["partition"] for place in totals["through"]] == [0, 1, 2, 3]
    assert totals["withdrawals"]["count"] == 6
    assert totals["totals"]["in"] == 6 * 32
    assert totals["totals"]["quarantined"] == 6
    for size in ("minute", "hour", "day"):
        windows = (await told(third, f"/api/windows?size={size}"))["windows"]
        assert sum(row["count"] for each in windows for row in each["outcomes"]) == 6 * 32
        assert sum(each["withdrawals"]["count"] for each in windows) == 6
    third.signal(signal.SIGINT)
    assert await third.wait() == 130


@pytest.fixture
async def counted(make_site: SiteFactory) -> Site:
    """A site of one partition on which a worker has done something."""
    site = await make_site("counted", kafka=QUICK_GROUP)
    await site.feed.many(site.consent, [consent(person) for person in PEOPLE])
    async with working(site):
        await has_gone_on(site, 0)
    return site


async def test_what_was_aborted_does_not_count_and_what_was_changed_is_a_break_for_ever(
    counted: Site, start_report: StartReport
) -> None:
    # Checked: it counts, and breaks the chain, where the consumer reads uncommitted records.
    topics, chain = counted.config.topics, f"{counted.config.group}/{counted.content}-0".encode()
    last = (await records_of(counted, topics.decisions))[-1]
    retraction = (await records_of(counted, topics.retractions))[0]
    entry = read_entry(last.value)
    facts = BatchFacts(
        entry.source.last + 1,
        entry.source.last + 1,
        entry.decided_at,
        {0: 1},
        entry.policy,
        [entry.source.last + 1],
        [decision(Reason.OPTED_IN, "*")],
    )
    next_entry = write_entry(Chain(counted.config.group, counted.content, 0), facts, entry.hash)
    body = json.loads(retraction.value) | {"consent": f"{counted.consent}-0@99"}
    async with AIOKafkaProducer(
        bootstrap_servers=counted.kafka.bootstrap_servers, transactional_id=f"abort-{chain!r}"
    ) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topics.decisions, next_entry.value, chain, partition=0)
        retracting = json.dumps(body).encode()
        await producer.send_and_wait(topics.retractions, retracting, b"p9", partition=0)
        await producer.abort_transaction()
    report = await start_report(counted)
    async with working(counted):
        await has_gone_on(counted, 1)
        before = await has_counted_all(counted, report)
    assert before["chain"]["state"] == "verified"

    changed = json.loads(last.value)
    changed["counts"]["*"] = {"opted-in": 1_000}
    offset = await counted.feed.one(topics.decisions, Sent(chain, json.dumps(changed).encode()))

    async def is_broken(report: WorkerProcess) -> dict[str, Any]:
        totals = await told(report, "/api/totals")
        return totals if totals and totals["chain"]["state"] == "broken" else {}

    found = await until(lambda: is_broken(report), "the break is told")
    assert found["outcomes"] == before["outcomes"]
    assert len(found["chain"]["problems"]) == 1
    assert f"offset {offset}: " in found["chain"]["problems"][0]
    report.signal(signal.SIGKILL)
    await report.wait()
    again = await start_report(counted)
    assert (await until(lambda: is_broken(again), "it is still told"))["chain"] == found["chain"]


async def test_what_the_table_holds_is_what_was_counted_whatever_the_group_has_committed(
    counted: Site, start_report: StartReport
) -> None:
    # Checked: entries are left out where the committed offset says where to go on.
    report = await start_report(counted)
    await has_counted_all(counted, report)
    assert {entry["offset"] for entry in report.logged("counting")} == {0}
    report.signal(signal.SIGKILL)
    await report.wait()
    async with working(counted):
        await has_gone_on(counted, 1)
    place = TopicPartition(counted.config.topics.decisions, 0)
    ends = await counted.probe.ends(place.topic, 1)

    async def is_committed() -> bool:
        async with AIOKafkaConsumer(
            bootstrap_servers=counted.kafka.bootstrap_servers,
            group_id=f"{counted.config.group}-report",
            enable_auto_commit=False,
        ) as consumer:
            consumer.assign([place])
            try:
                await consumer.commit({place: ends.high[0]})
            except KafkaError:
                return False  # The group still has the member that was killed.
        return True

    await until(is_committed, "the end of the ledger is committed")
    again = await start_report(counted)
    await has_counted_all(counted, again)
    # It was not counted from the beginning again, either.
    (began,) = {e["offset"] for e in again.logged("counting") if e["topic"] == place.topic}
    assert 0 < began < ends.high[0]


async def test_a_report_whose_figures_cannot_be_written_ends_and_the_next_has_them_all(
    counted: Site, start_report: StartReport
) -> None:
    # Checked: it goes on where `CountedTable` leaves a write that fails to Faust, which logs it.
    report = await start_report(counted)
    await has_counted_all(counted, report)
    changelog = f"{counted.config.group}-report-ledger-changelog"
    await counted.probe.deny(changelog, WRITE)
    async with working(counted):
        await has_gone_on(counted, 1)
    assert await report.wait() == EXIT_INTERNAL, report.errors()
    assert "it goes on where it was" in report.errors()
    await counted.probe.allow_again(changelog, WRITE)
    totals = await has_counted_all(counted, await start_report(counted))
    assert totals["chain"]["state"] == "verified"


async def test_nothing_is_written_behind_a_write_that_failed(make_site: SiteFactory) -> None:
    # Checked: a head is written though its windows were not, where the producer is not idempotent.
    site = await make_site("behind")
    topic = f"{site.config.group}-small"
    new = NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "10000"})
    await site.probe.admin.create_topics([new])
    app = faust.App(report_id(site.config))
    transport = CommittedTransport(app, kafka_settings(site.config.kafka))
    producer = transport.create_producer()
    await producer.start()
    try:
        await (await producer.send(topic, b"0/head", b"first", 0, None, None))
        too_long = os.urandom(20_000)
        window = await producer.send(topic, b"0/day/0", too_long, 0, None, None)
        head = await producer.send(topic, b"0/head", b"second", 0, None, None)
        with pytest.raises(MessageSizeTooLargeError):
            await window
        with pytest.raises(OutOfOrderSequenceNumber):
            await head
    finally:
        await producer.stop()
    assert [record.value for record in await records_of(site, topic)] == [b"first"]


async def test_what_a_rebalance_makes_nobody_take_is_fetched_again(
    counted: Site, start_report: StartReport, tmp_path: Path
) -> None:
    # Checked: nothing comes, for ever, where `_fetch_records` gives nothing back.
    await count_all_and_end(counted, start_report)
    settings = kafka_settings(counted.config.kafka)
    async with connected(settings, 60) as cluster:
        changelogs = await prepare_changelogs(counted.config, cluster)
    app = make_app(counted.config, settings, changelogs, tmp_path)
    consumer, changelog = cast(Any, app.consumer), TP(changelogs[0].topic, 0)
    await app.start()
    try:
        await until(lambda: consumer.is_counting, "it counts")
        waiters = consumer._thread._consumer._fetcher._fetch_waiters
        await until(lambda: waiters, "a fetch is under way")
        # What Faust does from the beginning of a rebalance to where it reads a changelog.
        consumer.stop_flow()
        consumer.pause_partitions(consumer.assignment())
        await consumer.seek_wait({changelog: 0})
        await until(lambda: consumer.can_resume_flow._waiters, "the fetch has ended")
        assert changelog not in consumer._read_offset
        consumer.resume_partitions({changelog})
        consumer.resume_flow()
        await until(lambda: changelog in consumer._read_offset, "the changelog is read")
    finally:
        await app.stop()


async def test_a_report_that_has_nothing_to_count_says_that_all_is_counted(
    counted: Site, start_report: StartReport
) -> None:
    # Checked: the third, which has not even a changelog to follow, says for ever that it joins.
    reports = [await start_report(counted) for _ in range(3)]

    async def are_counting() -> bool:
        for report in reports:
            assert report.running, report.errors()
        told_now = [await told(report, "/api/totals") for report in reports]
        return [totals.get("counting") for totals in told_now] == ["ok"] * 3

    await until(are_counting, "all three count", 60)
    assert [(await report.get("/readyz"))[0] for report in reports] == [200] * 3


async def test_totals_that_are_larger_than_a_request_are_kept(
    counted: Site, start_report: StartReport
) -> None:
    # Checked: ends at each start where a value may not be longer than a request usually is, or is
    # not compressed.
    topics, chain = counted.config.topics, Chain(counted.config.group, counted.content, 0)
    last = read_entry((await records_of(counted, topics.decisions))[-1].value)
    previous, first = last.hash, last.source.last + 1
    made = []
    for number in range(first, first + 30):
        policy = f"{'long' * 7_500}-{number}@0123456789ab"
        opted_in = [decision(Reason.OPTED_IN, "*")]
        facts = BatchFacts(number, number, last.decided_at, {0: 1}, policy, [number], opted_in)
        entry = write_entry(chain, facts, previous)
        previous = entry.hash
        made.append(Sent(entry.key, entry.value))
    await counted.feed.many(topics.decisions, made)

    async def has_counted(report: WorkerProcess) -> bool:
        assert report.running, report.errors()
        totals = await told(report, "/api/totals")
        return bool(totals) and len(totals["policies"]) == 31

    report = await start_report(counted)
    await until(lambda: has_counted(report), "all policies are counted", 60)
    report.signal(signal.SIGTERM)
    assert await report.wait() == 0
    again = await start_report(counted)
    await until(lambda: has_counted(again), "they were kept", 60)
    await until(lambda: again.logged("counting"), "it counts on")
    assert 0 not in {e["offset"] for e in again.logged("counting")}


@pytest.mark.parametrize("role", ["decisions", "retractions"])
async def test_a_topic_made_anew_under_old_figures_ends_the_report(
    counted: Site, start_report: StartReport, role: str
) -> None:
    # Checked: says "verified" and passes over what is new where `_has_sought` asks for no ends.
    topic = getattr(counted.config.topics, role)
    await count_all_and_end(counted, start_report)
    await make_anew(counted, topic)
    again = await start_report(counted)
    assert await again.wait() == EXIT_CONFIG, again.errors()
    group = counted.config.group
    assert f"error: topic {topic}, partition 0: it goes on with offset 0, but" in again.errors()
    assert (
        f"delete the topics {group}-report-ledger-changelog and "
        f"{group}-report-retractions-changelog, and start again"
    ) in again.errors()


async def test_a_ledger_made_anew_while_the_report_runs_ends_it(
    counted: Site, start_report: StartReport
) -> None:
    # Checked: goes on with what comes behind the old offsets where `_getmany` looks at none. It
    # stands still meanwhile, or it could notice that the topic was missing, and begin anew.
    topic = counted.config.topics.decisions
    report = await start_report(counted)
    await has_counted_all(counted, report)
    kept = await records_of(counted, topic)
    report.signal(signal.SIGSTOP)
    await make_anew(counted, topic)
    await counted.feed.many(topic, [Sent(record.key, record.value) for record in kept])
    report.signal(signal.SIGCONT)
    assert await report.wait() == EXIT_CONFIG, report.errors()


async def count_all_and_end(site: Site, start_report: StartReport) -> None:
    """Have a report count everything, and end."""
    report = await start_report(site)
    await has_counted_all(site, report)
    report.signal(signal.SIGTERM)
    assert await report.wait() == 0


async def make_anew(site: Site, topic: str) -> None:
    """Delete a topic of one partition and create it again."""
    await site.probe.admin.delete_topics([topic])

    async def created() -> bool:
        (error,) = (await site.probe.admin.create_topics([NewTopic(topic, 1, 1)])).topic_errors
        return not error[1]

    async def described() -> bool:
        (found,) = await site.probe.admin.describe_topics([topic])
        return not found["error_code"]

    await until(created, "the topic is made anew")
    await until(described, "the new topic is known")


async def test_what_an_open_transaction_hides_makes_no_topic_anew(
    counted: Site, start_report: StartReport
) -> None:
    topic = counted.config.topics.decisions
    await count_all_and_end(counted, start_report)
    async with AIOKafkaProducer(
        bootstrap_servers=counted.kafka.bootstrap_servers, transactional_id=f"open-{topic}"
    ) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"{}", b"somebody", partition=0)
        again = await start_report(counted)
        await until(lambda: again.logged("counting"), "it goes on", 60)
        await producer.commit_transaction()
        await has_counted_all(counted, again)


async def test_figures_that_stand_still_are_told_as_such_until_kafka_answers_again(
    start_report: StartReport, tmp_path: Path
) -> None:
    with EmbeddedKafka() as kafka:
        async with Probe(kafka) as probe, Feed(kafka) as feed:
            site = await SiteFactory(kafka, probe, feed, tmp_path)("still", partitions=2)
            report = await start_report(site)

            async def counting() -> str:
                told_now = await told(report, "/api/totals")
                return str(told_now.get("counting", "being read"))

            async def is_counting() -> bool:
                return await counting() == "ok"

            async def stands_still() -> bool:
                return (await counting()).startswith("Kafka has not answered for 1")

            await until(is_counting, "the report counts")
            kafka.suspend()
            await until(stands_still, "that Kafka is silent is told")
            # What was read can still be looked at.
            assert (await report.get("/readyz"))[0] == 200
            kafka.resume()
            await until(is_counting, "the report counts again")
            await report.end()


async def records_of(site: Site, topic: str) -> list[Any]:
    return [record async for _, record in read_topic(kafka_settings(site.config.kafka), topic, 1)]
