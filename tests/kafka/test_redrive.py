"""What was set aside goes back to the content topic: once, and decided as if it were new."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from consentgate.config import load_config
from consentgate.core.model import Reason
from consentgate.core.quarantine import REASONS, Progress, Selection
from consentgate.errors import BrokerUnavailable, ConfigError, Superseded
from consentgate.kafka.reader import read_topic
from consentgate.kafka.redrive import Redrive
from consentgate.kafka.settings import kafka_settings
from consentgate.policies import load_policy
from consentgate.tools import quarantine as quarantine_tool
from consentgate.tools.quarantine import (
    Entry,
    Left,
    Redriven,
    Request,
    list_quarantine,
    redrive,
)
from consentgate.tools.verify import verify
from harness import (
    DEADLINE_SECONDS,
    SPOILT_NAME,
    Sent,
    Site,
    SiteFactory,
    close_connections,
    consent,
    post,
    run_python,
    spoil_header_names,
    working,
)

MARK = "consentgate.redriven"
MANY = 100_000
BATCH_RECORDS = 500


async def redriven(
    site: Site, *reasons: Reason, limit: int | None = None, **changes: Any
) -> Redriven:
    selection = Selection(**({"reasons": reasons} if reasons else {}))
    request = Request(selection, attempts_max=1, limit=limit, dry_run=False)
    result = Redriven()
    await redrive(site.config, request._replace(**changes), result, lambda done, total: None)
    return result


async def listed(site: Site, selection: Selection | None = None) -> list[Entry]:
    entries = list_quarantine(site.config, selection or Selection(), lambda done, total: None)
    return [entry async for entry in entries]


async def content_of(site: Site) -> list[Any]:
    found = read_topic(kafka_settings(site.config.kafka), site.content, site.partitions)
    return [record async for _, record in found]


def reconfigured(site: Site, **sections: Any) -> Site:
    """The same topics and the same group under a configuration that was changed."""
    settings = yaml.safe_load(site.path.read_text())
    path = site.path.with_suffix(".changed.yaml")
    path.write_text(yaml.safe_dump({**settings, **sections}))
    return replace(site, path=path, config=load_config(str(path), environment={}))


def set_aside(
    site: Site, number: int, reason: str = "missing-field", partition: int = 0, **changes: Any
) -> Sent:
    """A record of the quarantine, as a worker writes it."""
    facts = {
        "topic": site.content,
        "partition": str(partition),
        "offset": str(number),
        "connector.name": site.config.group,
        "exception.class.name": reason,
        **changes,
    }
    headers = [(f"__connect.errors.{name}", value.encode()) for name, value in facts.items()]
    return Sent(b"anna", str(number).encode(), headers=headers)


def without_visibility(subject: str, name: str) -> Sent:
    """What a producer sends that has named a field otherwise."""
    event = json.loads(post(subject, name).value or b"")
    event["audience"] = event.pop("visibility")
    return Sent(
        subject.encode(), json.dumps(event).encode(), headers=[("trace", b"t"), ("n", None)]
    )


async def test_what_was_set_aside_is_decided_anew_by_the_consent_of_today(
    make_site: SiteFactory,
) -> None:
    # Checked: goes on with the mark where it is none of `OWN_HEADERS`, and twice where `Progress`
    # keeps nothing.
    site = await make_site("anew", partitions=2)
    people = ("anna", "ben", "carla", "dora")
    await site.feed.many(site.consent, [consent(person) for person in people])
    sent = [without_visibility(person, f"{person}-{n}") for n in range(3) for person in people]
    async with working(site):
        await site.feed.many(site.content, sent)
        await site.decided()
    assert (await site.check()).reasons() == {"missing-field": 12}
    placed = {entry.found.source for entry in await listed(site)}
    assert len(placed) == 12

    before = site.config
    site = reconfigured(site, content={"fields": {"visibility": "audience"}})
    await site.feed.many(site.consent, [consent("ben", "withdrawn")])
    before_ms = int(time.time() * 1000)
    result = await redriven(site)
    assert (result.appended, result.left) == ({"missing-field": 12}, {})
    async with working(site):
        await site.decided()

    seen = await site.check()
    assert seen.reasons() == {"missing-field": 12, "opted-in": 9, "withdrawn": 3}
    forwarded = [record for records in seen.training.values() for record in records]
    for person in people:
        of_person = [r.value for r in forwarded if r.key == person.encode()]
        in_order = [s.value for s in sent if s.key == person.encode()]
        assert of_person == ([] if person == "ben" else in_order)
    for record in forwarded:
        assert [tuple(h) for h in record.headers[:2]] == [("trace", b"t"), ("n", None)]
        assert MARK not in dict(record.headers)
        assert record.timestamp >= before_ms
    # Each is in the partition that it came from, and says what it is.
    marked = [
        (p, dict(r.headers)[MARK])
        for p, records in seen.content.items()
        for r in records
        if MARK in dict(r.headers)
    ]
    assert {mark for _, mark in marked} == {f"1 {e.place}".encode() for e in await listed(site)}
    assert Counter(p for p, _ in marked) == Counter(e.found.partition for e in await listed(site))

    # Both readings of content are needed to decide all of it again.
    policies = [load_policy(site.config.policy)]
    for config, earlier, violations in (
        (site.config, [before], 0),
        (before, [site.config], 0),
        (site.config, [], 12),
    ):
        verification = await verify(config, policies, lambda done, total: None, None, earlier)
        assert verification.violations == violations

    result = await redriven(site)
    assert (result.appended, result.left) == ({}, {Left.REDRIVEN: 12})
    assert all(entry.is_redriven for entry in await listed(site))


async def test_the_topics_of_a_redrive_verify(make_site: SiteFactory) -> None:
    times = {"message.timestamp.type": "LogAppendTime"}
    site = await make_site("verified", partitions=2, topics={"content": times})
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    both = ("anna", "ben")
    async with working(site):
        await site.feed.many(site.content, [without_visibility(person, "x") for person in both])
        await site.feed.many(site.content, [post(person, "good") for person in both])
        await site.decided()
        assert (await redriven(site)).appended == {"missing-field": 2}
        await site.decided()
        await site.feed.many(site.consent, [consent("ben", "withdrawn")])
        await redriven(site, attempts_max=2)
        await site.decided()
    seen = await site.check()
    assert seen.reasons() == {"opted-in": 2, "missing-field": 5, "withdrawn": 1}
    policy = load_policy(site.config.policy)
    verification = await verify(site.config, [policy], lambda done, total: None)
    assert (verification.violations, verification.unchecked) == (0, 0)


async def test_what_is_quarantined_again_does_not_go_round(make_site: SiteFactory) -> None:
    # Checked: goes round for ever where `_quarantined` drops the mark, and where a run does not
    # look at it.
    site = await make_site("round")
    await site.feed.many(site.consent, [consent("anna")])
    async with working(site) as running:
        await site.feed.many(site.content, [without_visibility("anna", "x"), post("anna", "y")])
        await site.decided()
        assert (await redriven(site)).appended == {"missing-field": 1}
        await site.feed.many(site.content, [post("anna", "z")])
        await site.decided()
        for _ in range(2):
            result = await redriven(site)
            assert (result.appended, result.left) == ({}, {Left.REDRIVEN: 1, Left.ATTEMPTS: 1})
        first, second = await listed(site)
        assert (first.found.attempts, second.found.attempts) == (0, 1)
        assert dict(second.record.headers)[MARK] == f"1 {first.place}".encode()
        result = await redriven(site, attempts_max=2)
        assert (result.appended, result.left) == ({"missing-field": 1}, {Left.REDRIVEN: 1})
        await site.decided()
        assert [entry.found.attempts for entry in await listed(site)] == [0, 1, 2]
        assert not running.logged("recycled"), "nothing stood in the way of anything"
    assert (await site.check()).reasons() == {"opted-in": 2, "missing-field": 3}


async def test_no_filter_makes_another_run_pass_a_record_over_or_append_it_again(
    make_site: SiteFactory,
) -> None:
    # Checked: what lies before a later one is passed over where one offset is kept for all.
    site = await make_site("filters", partitions=2)
    quarantine = site.config.topics.quarantine
    reasons = ("missing-field", "undecodable", "subject-mismatch")
    records = [set_aside(site, n, reasons[n % 3], n % 2) for n in range(60)]
    for number, record in enumerate(records):
        timed = record._replace(timestamp_ms=1_000_000 + number)
        await site.feed.many(quarantine, [timed], number % 2)

    def selected(*names: str, **changes: Any) -> Selection:
        return Selection([r for r in REASONS if not names or r in names], **changes)

    runs = [
        ({"selection": selected("undecodable")}, 20),
        ({"selection": selected("undecodable", "missing-field", partition=1)}, 10),
        ({"selection": selected(since_ms=1_000_030, until_ms=1_000_045)}, 8),
        ({"selection": selected("missing-field"), "limit": 2}, 2),
        ({"selection": selected("missing-field")}, 5),
        ({"selection": selected()}, 15),
        ({"selection": selected()}, 0),
    ]
    for changes, number in runs:
        assert (await redriven(site, **changes)).appended.total() == number, changes
    values = [int(record.value) for record in await content_of(site)]
    assert sorted(values) == list(range(60))


async def test_what_may_not_go_again_yet_is_not_passed_over_later(make_site: SiteFactory) -> None:
    # Checked: passed over where what has been redriven on both sides of it becomes one range.
    site = await make_site("attempts")
    again = [(MARK, b"1 elsewhere-0@1")]
    for number in range(3):
        record = set_aside(site, number)._replace(timestamp_ms=1_000_000 + number)
        record = record._replace(headers=[*again, *record.headers])
        await site.feed.many(site.config.topics.quarantine, [record])
    for at_ms in (1_000_000, 1_000_002):
        alone = Selection(since_ms=at_ms, until_ms=at_ms + 1)
        assert (await redriven(site, selection=alone, attempts_max=2)).appended.total() == 1
    await site.feed.many(site.config.topics.quarantine, [set_aside(site, 3)])
    result = await redriven(site)
    assert result.left == {Left.REDRIVEN: 2, Left.ATTEMPTS: 1}
    assert (await redriven(site, attempts_max=2)).appended.total() == 1
    assert [int(record.value) for record in await content_of(site)] == [0, 2, 3, 1]


async def test_a_dry_run_appends_nothing_and_notes_nothing(make_site: SiteFactory) -> None:
    # Checked: the records are there where `redrive` does not ask whether it is one.
    site = await make_site("dry")
    await site.feed.many(site.config.topics.quarantine, [set_aside(site, n) for n in range(5)])
    for _ in range(2):
        result = await redriven(site, dry_run=True, limit=3)
        assert (result.appended, result.left) == ({"missing-field": 3}, {})
    assert await site.appended() == 0
    group, quarantine = f"{site.config.group}-redrive", site.config.topics.quarantine
    assert await site.probe.offsets(group, quarantine, [0]) in ({}, {0: -1})
    assert (await redriven(site)).appended.total() == 5


async def test_what_cannot_go_back_is_named_and_keeps_nothing_up(make_site: SiteFactory) -> None:
    # Checked: a tombstone is appended where the value is not looked at, and another group's record
    # where the group is not.
    site = await make_site("left", limits={"max_value_bytes": 1_000})
    quarantine = site.config.topics.quarantine
    full = [("h", b"x" * 65_530)]
    records = [
        set_aside(site, 0),
        set_aside(site, 1, "too-large")._replace(value=None),
        set_aside(site, 2, **{"connector.name": "another-group"}),
        set_aside(site, 3, topic="another-topic"),
        set_aside(site, 4, partition=1),
        Sent(b"k", b"somebody else's"),
        set_aside(site, 5, "no-such-reason"),
    ]
    large = set_aside(site, 6)
    records.append(large._replace(headers=[*full, *large.headers]))
    odd = set_aside(site, 7)
    records.append(odd._replace(headers=[(MARK, b"many"), *odd.headers]))
    records.append(set_aside(site, 8))
    await site.feed.many(quarantine, records)
    result = await redriven(site)
    assert result.appended == {"missing-field": 2}
    assert result.left == {
        Left.NO_VALUE: 1,
        Left.ELSEWHERE: 5,
        Left.TOO_LARGE: 1,
        Left.ATTEMPTS: 1,
    }
    assert result.examples[Left.NO_VALUE] == [f"{quarantine}-0@1"]
    assert [record.value for record in await content_of(site)] == [b"0", b"8"]


async def test_a_run_that_was_ended_is_gone_on_with(make_site: SiteFactory) -> None:
    # Checked: records come twice where the progress is committed before or after the transaction.
    site = await make_site("killed", partitions=2)
    number = 30_000
    for partition in range(2):
        records = [set_aside(site, n, partition=partition) for n in range(partition, number, 2)]
        await site.feed.many(site.config.topics.quarantine, records, partition)
    arguments = ("-m", "consentgate", "quarantine", "redrive", "-c", str(site.path), "--all")
    for share, number_of, status in ((4, signal.SIGINT, 130), (2, signal.SIGKILL, -9)):
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments)

        async def is_under_way(
            least: int = number // share, process: asyncio.subprocess.Process = process
        ) -> bool:
            # It stands still while it is looked at, and then in the midst of the transaction.
            process.send_signal(signal.SIGSTOP)
            ends = await site.probe.ends(site.content, 2)
            if sum(ends.high.values()) > least and ends.open(range(2)):
                return True
            process.send_signal(signal.SIGCONT)
            return False

        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while not await is_under_way():  # noqa: ASYNC110 - Nobody tells.
                    # Far less than a transaction takes, so that none is passed over.
                    await asyncio.sleep(0.005)
        finally:
            process.send_signal(number_of)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            assert await process.wait() == status
    left = number - len(await content_of(site))
    assert 0 < left < number
    status, out, errors = await run_python(*arguments)
    assert (status, errors) == (0, "")
    assert out.startswith(f"appended to {site.content}: {left:,} ({left:,} missing-field)\n")
    assert sorted(int(record.value) for record in await content_of(site)) == list(range(number))


async def test_of_two_runs_at_once_the_later_one_goes_on(make_site: SiteFactory) -> None:
    # Checked: both append where each has a transactional id of its own.
    site = await make_site("twice")
    await site.feed.many(site.config.topics.quarantine, [set_aside(site, n) for n in range(3)])
    place = TopicPartition(site.content, 0)
    settings, quarantine = kafka_settings(site.config.kafka), site.config.topics.quarantine
    async with Redrive(settings, site.config.group, quarantine, [place]) as earlier:
        assert (await redriven(site)).appended.total() == 3
        with pytest.raises(Superseded, match="another redrive"):
            await earlier.write({place: []}, 0, 3, Progress())
    assert len(await content_of(site)) == 3
    assert (await redriven(site)).appended.total() == 0


async def test_what_an_earlier_run_commits_at_last_is_not_appended_again(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: comes twice where the progress is read before the earlier run is fenced.
    site = await make_site("late")
    await site.feed.many(site.config.topics.quarantine, [set_aside(site, n) for n in range(3)])
    enter = Redrive.__aenter__

    async def let_another_run_end_first(run: Redrive) -> Redrive:
        monkeypatch.setattr(Redrive, "__aenter__", enter)
        assert (await redriven(site)).appended.total() == 3
        return await enter(run)

    monkeypatch.setattr(Redrive, "__aenter__", let_another_run_end_first)
    assert (await redriven(site)).appended.total() == 0
    assert len(await content_of(site)) == 3


async def test_after_a_lost_connection_no_transaction_follows(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: the run goes on where `RedriveSink.write` does not look at that.
    site = await make_site("lost")
    monkeypatch.setattr(quarantine_tool, "RECORDS_MAX", 2)
    await site.feed.many(site.config.topics.quarantine, [set_aside(site, n) for n in range(6)])
    commit = AIOKafkaProducer.commit_transaction

    async def lose_the_connections(producer: AIOKafkaProducer) -> None:
        close_connections(producer)
        await commit(producer)

    with monkeypatch.context() as patched:
        patched.setattr(AIOKafkaProducer, "commit_transaction", lose_the_connections)
        with pytest.raises(BrokerUnavailable, match="goes on where this one stopped"):
            await redriven(site)
    assert len(await content_of(site)) == 2
    assert (await redriven(site)).appended.total() == 4
    assert sorted(int(record.value) for record in await content_of(site)) == list(range(6))


async def test_a_record_that_the_content_topic_does_not_take_is_told(
    make_site: SiteFactory,
) -> None:
    site = await make_site("refused", topics={"content": {"max.message.bytes": "500"}})
    large = set_aside(site, 0)._replace(value=b"x" * 1_000)
    await site.feed.many(site.config.topics.quarantine, [set_aside(site, 1), large])
    with pytest.raises(ConfigError, match="raise its max"):
        await redriven(site)
    assert await content_of(site) == []


@pytest.mark.parametrize(
    ("offset", "metadata", "what"),
    [(2, "", "somebody else has committed it"), (9, '{"redriven":{}}', "was made anew")],
)
async def test_a_progress_that_cannot_be_right_is_refused(
    make_site: SiteFactory, offset: int, metadata: str, what: str
) -> None:
    # Checked: all is appended again where `progress_of` takes it for none.
    site = await make_site("progress")
    quarantine = site.config.topics.quarantine
    await site.feed.many(quarantine, [set_aside(site, n) for n in range(3)])
    async with AIOKafkaConsumer(
        bootstrap_servers=site.kafka.bootstrap_servers,
        group_id=f"{site.config.group}-redrive",
        enable_auto_commit=False,
    ) as consumer:
        place = TopicPartition(quarantine, 0)
        consumer.assign([place])
        await consumer.commit({place: OffsetAndMetadata(offset, metadata)})
    with pytest.raises(ConfigError, match=what):
        await redriven(site)
    assert await content_of(site) == []


MEASURED = """
import resource, subprocess, sys
status = subprocess.call([sys.executable, "-m", "consentgate", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(status)
"""
"""Prints the peak of a command's memory, too.

A process of its own in between: a peak begins at the memory of whoever started it.
"""


async def measured(site: Site, *arguments: str) -> tuple[dict[str, Any], int]:
    """What a command prints last, as JSON, and its peak of memory in bytes."""
    command = (*arguments, "-c", str(site.path), "--format", "json")
    status, out, errors = await run_python("-c", MEASURED, *command)
    assert status == 0, errors
    *_, told, peak_bytes = out.splitlines()
    return json.loads(told), int(peak_bytes)


async def test_a_surge_of_bad_records_takes_no_more_memory_than_good_ones(
    make_site: SiteFactory,
) -> None:
    site = await make_site("surge")
    await site.feed.many(site.consent, [consent("anna")])
    good = [post("anna", str(n), body={"text": "x" * 300}) for n in range(MANY)]
    bad = [sent._replace(value=(sent.value or b"")[:-1]) for sent in good]
    # What not even the client can read.
    worse = [sent._replace(headers=[(SPOILT_NAME, b"")]) for sent in good]
    peaks = []
    for records, patch in ((good, None), (bad, None), (worse, spoil_header_names)):
        for start in range(0, MANY, BATCH_RECORDS):
            await site.feed.batch(site.content, records[start : start + BATCH_RECORDS], 0, patch)
        summary, peak_bytes = await measured(site, "run", "--until-drained")
        assert sum(summary["counts"].values()) == MANY
        peaks.append(peak_bytes)
    listed, peak_bytes = await measured(site, "quarantine", "list", "--count")
    assert listed == {"counts": {"undecodable": 2 * MANY}}
    peaks.append(peak_bytes)
    print("peaks in MB: good, bad, unreadable, list:", *(round(peak / 1e6) for peak in peaks))
    assert max(peaks) < 1.5 * peaks[0]
