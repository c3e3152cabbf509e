"""A worker that comes back begins with its snapshot, and decides as if it had read the topic."""

import asyncio
import dataclasses
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

import harness
from consentgate.config import ConsentConfig, LimitsConfig
from consentgate.core.decode import ConsentFields
from consentgate.core.snapshot import Identity, Sample, read_head
from consentgate.kafka import consent as consent_module
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.consent import ConsentView
from consentgate.policies import load_policy
from consentgate.service import worker as worker_module
from harness import (
    Sent,
    Site,
    SiteFactory,
    StartWorker,
    WorkerProcess,
    compacted_away,
    consent,
    post,
    until,
    working,
)

PEOPLE = [f"m{number}" for number in range(200)]
QUICKLY_COMPACTED = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.001"}


class Readings(list[bytes | None]):
    """The keys of the consent records that were read, and what was said of snapshots."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        super().__init__()
        self._caplog = caplog

    def start_over(self) -> None:
        self.clear()
        self._caplog.clear()

    def said(self) -> list[str]:
        return [message for message in self._caplog.messages if "snapshot" in message]


@pytest.fixture
def readings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Readings]:
    noted, apply = Readings(caplog), ConsentView._apply

    def note(self: ConsentView, partition: int, records: Any, frontier: int) -> None:
        noted.extend(record.key for record in records)
        apply(self, partition, records, frontier)

    monkeypatch.setattr(ConsentView, "_apply", note)
    with caplog.at_level(logging.INFO, "consentgate.kafka.consent"):
        yield noted


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "snapshots"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def only(directory: Path) -> Path:
    (path,) = directory.iterdir()
    return path


async def work_once(site: Site) -> None:
    """Have everything decided that is there, by a worker that then ends."""
    async with working(site) as running:
        await running.ready()
        await site.decided()


async def filled(make_site: SiteFactory, directory: Path, **arguments: Any) -> Site:
    """A site of which a snapshot was kept, in which everybody has consented and posted."""
    site = await make_site("warm", snapshot=str(directory), **arguments)
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await site.feed.many(site.content, [post(person, f"{person}-1") for person in PEOPLE])
    await work_once(site)
    return site


@pytest.mark.parametrize("scope", ["partition", "global"])
async def test_what_changed_meanwhile_counts(
    make_site: SiteFactory, directory: Path, readings: Readings, scope: str
) -> None:
    # Checked: the withdrawn's posts go on where `ConsentView._assign` seeks to the end.
    site = await filled(make_site, directory, partitions=2, consent={"scope": scope})
    assert len(readings) == len(PEOPLE)
    number = "all" if scope == "global" else "0"
    assert f"{site.config.group}-{number}.snapshot" in names(directory)
    readings.start_over()
    changes = [
        *(consent(person, "withdrawn") for person in PEOPLE[:5]),
        *(Sent(person.encode(), None) for person in PEOPLE[5:10]),
        *(Sent(person.encode(), b"?") for person in PEOPLE[10:15]),
        *(consent(person) for person in ("new", "newer")),
    ]
    await site.feed.many(site.consent, changes)
    everybody = [*PEOPLE, "new", "newer", "nobody"]
    await site.feed.many(site.content, [post(person, f"{person}-2") for person in everybody])

    await work_once(site)

    assert sorted(filter(None, readings)) == sorted(sent.key or b"" for sent in changes)
    assert all("subjects from a snapshot" in said for said in readings.said())
    assert readings.said()
    seen = await site.check()
    assert seen.reasons() == {
        "opted-in": len(PEOPLE) + len(PEOPLE) - 15 + 2,
        "withdrawn": 5,
        "no-consent-record": 6,
        "consent-unreadable": 5,
    }


async def test_people_whom_several_partitions_hold_stay_unreadable(
    make_site: SiteFactory, directory: Path, readings: Readings
) -> None:
    # Checked: forwards the divided one's post where a snapshot leaves out who is scattered.
    site = await make_site("divided", partitions=2, consent={"scope": "global"}, **kept(directory))
    for partition in (0, 1):
        await site.feed.many(site.consent, [consent("divided"), consent("moved")], partition)
        await site.feed.many(site.consent, [consent(f"m{partition}")], partition)
    await work_once(site)
    readings.start_over()
    await site.feed.many(site.consent, [Sent(b"moved", None)], 0)
    await site.feed.many(site.content, [post("divided", "1"), post("moved", "1")])
    await work_once(site)
    assert readings == [b"moved"]
    assert (await site.check()).reasons() == {"consent-unreadable": 1, "opted-in": 1}


def kept(directory: Path) -> dict[str, str]:
    return {"snapshot": str(directory)}


async def test_a_worker_that_was_killed_comes_back_with_its_last_snapshot(
    make_site: SiteFactory, directory: Path, start_worker: StartWorker, readings: Readings
) -> None:
    site = await filled(make_site, directory)
    killed = await start_worker(site)
    await killed.ready()
    await site.feed.many(site.consent, [consent(person, "withdrawn") for person in PEOPLE[:7]])
    await site.feed.many(site.content, [post(person, f"{person}-2") for person in PEOPLE])
    await site.decided()
    killed.signal(signal.SIGKILL)
    await killed.wait()
    readings.start_over()
    await site.feed.many(site.content, [post(person, f"{person}-3") for person in PEOPLE])
    await work_once(site)
    assert len(readings) == 7
    assert (await site.check()).reasons()["withdrawn"] == 14


async def test_a_worker_that_is_killed_while_it_writes_leaves_the_last_snapshot(
    make_site: SiteFactory,
    directory: Path,
    tmp_path: Path,
    readings: Readings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Checked: nothing can be read where `Snapshots._write` writes into the place itself.
    site = await filled(make_site, directory)
    await site.feed.many(site.consent, [consent("new", "withdrawn")])
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal\n"
        "from consentgate.cli import app\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "app()\n"
    )
    worker = await WorkerProcess.start(site, tmp_path / "dies.log", program=(str(script),))
    await worker.ready()
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == -signal.SIGKILL
    place = f"{site.config.group}-0.snapshot"
    left, rest = names(directory)
    assert (left, rest.startswith(f"{place}.")) == (place, True)
    readings.start_over()
    await work_once(site)
    assert readings == [b"new"]
    # What the dead one left goes when it is too old to be of use.
    os.utime(directory / rest, (0, 0))
    monkeypatch.setattr(consent_module, "KEEP_SECONDS", 0.1)
    async with working(site):
        await until(lambda: names(directory) == [place], "it is removed")


async def test_snapshots_are_written_while_a_worker_works(
    make_site: SiteFactory,
    directory: Path,
    readings: Readings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Checked: none is there where `ConsentView.keep` does nothing.
    monkeypatch.setattr(consent_module, "KEEP_SECONDS", 0.2)
    site = await make_site("while", **kept(directory))
    await site.feed.many(site.consent, map(consent, PEOPLE))
    async with working(site) as running:
        await running.ready()
        await until(lambda: names(directory), "a snapshot is written")
        path = only(directory)
        written = path.stat().st_mtime_ns
        identity = identity_of(path)
        assert identity.cluster
        assert (identity.topic, identity.purpose) == (site.consent, "ai-training")
        assert path.stat().st_mode & 0o777 == 0o600
        await asyncio.sleep(0.5)
        assert path.stat().st_mtime_ns == written, "nothing has changed"
        await site.feed.many(site.consent, [consent("new")])
        await until(lambda: path.stat().st_mtime_ns != written, "another one is written")


def identity_of(path: Path) -> Identity:
    with path.open("rb") as file:
        return read_head(file.read)[0].identity


async def test_workers_share_a_directory_and_take_over_from_each_other(
    make_site: SiteFactory, directory: Path, readings: Readings, start_worker: StartWorker
) -> None:
    site = await make_site("shared", partitions=4, **kept(directory))
    await site.feed.many(site.consent, map(consent, PEOPLE))
    workers = [await start_worker(site) for _ in range(2)]
    await until(lambda: all(len(w.assigned()) == 2 for w in workers), "each has two partitions")
    for worker in workers:
        await worker.ready()
    await asyncio.gather(*(end(worker) for worker in workers))
    await site.feed.many(site.content, [post(person, f"{person}-1") for person in PEOPLE])
    readings.start_over()
    await work_once(site)
    assert readings == []
    assert len(readings.said()) == 4
    assert (await site.check()).reasons() == {"opted-in": len(PEOPLE)}


async def end(worker: Any) -> None:
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0


async def test_an_older_snapshot_in_another_directory_catches_up(
    make_site: SiteFactory, directory: Path, tmp_path: Path, readings: Readings
) -> None:
    # A partition that moves between workers finds the snapshot that each of them has left.
    site = await filled(make_site, directory)
    other = elsewhere(site, snapshot=str(tmp_path / "other"))
    await site.feed.many(site.consent, [consent(person, "withdrawn") for person in PEOPLE[:7]])
    await work_once(other)
    readings.start_over()
    await site.feed.many(site.content, [post(person, f"{person}-2") for person in PEOPLE])
    await work_once(site)
    assert len(readings) == 7
    assert (await site.check()).reasons()["withdrawn"] == 7


def elsewhere(site: Site, **changes: Any) -> Site:
    """The same with another configuration."""
    return dataclasses.replace(site, config=msgspec.structs.replace(site.config, **changes))


# What is refused.


async def is_read_anew(site: Site, readings: Readings, why: str, people: int) -> None:
    """The worker says why it does not use its snapshot, and reads the whole topic."""
    readings.start_over()
    await site.feed.many(site.content, [post("nobody", "1")])
    await work_once(site)
    assert any("is refused" in said and why in said for said in readings.said()), readings.said()
    assert len(set(readings)) == people
    assert not any(person in said for said in readings.said() for person in PEOPLE)


async def test_a_snapshot_from_before_deletions_that_are_gone_is_refused(
    make_site: SiteFactory, directory: Path, readings: Readings
) -> None:
    # Checked: forwards Anna's second post where `Snapshots.age_ms` refuses nothing, and
    # `ConsentView.high_watermarks` takes a restored table for whole as of now.
    settings = {**QUICKLY_COMPACTED, "delete.retention.ms": "4000"}
    site = await make_site("gone", topics={"consent": settings}, **kept(directory))
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    await site.feed.many(site.content, [post("anna", "1")])
    await work_once(site)
    deletion = await site.feed.one(site.consent, Sent(b"anna", None))
    await compacted(site, deletion)
    await site.feed.many(site.content, [post("anna", "2")])
    async with working(site, accept_consent_gap=True):
        await site.decided()
    assert any("some may have been missed" in said for said in readings.said())
    assert (await site.seen()).reasons() == {"opted-in": 1, "no-consent-record": 1}


async def compacted(site: Site, offset: int) -> None:
    """Wait until the record is compacted away."""
    place = TopicPartition(site.consent, 0)
    await compacted_away(site, place, offset, "the record is compacted away")


async def recreate(site: Site) -> None:
    await site.probe.admin.delete_topics([site.consent])
    configs = {"cleanup.policy": "compact", "unclean.leader.election.enable": "false"}
    new = NewTopic(site.consent, 1, 1, topic_configs=configs)

    async def created() -> bool:
        (error,) = (await site.probe.admin.create_topics([new])).topic_errors
        return not error[1]

    await until(created, "the topic is made anew")


@pytest.mark.parametrize(("people", "why"), [(100, "ends at 100, before"), (300, "another record")])
async def test_a_snapshot_of_a_topic_that_was_made_anew_is_refused(
    make_site: SiteFactory, directory: Path, readings: Readings, people: int, why: str
) -> None:
    # Checked: forwards posts of people who have granted nothing to the new topic where
    # `ConsentView._confirm` does not compare the end, or not the samples.
    site = await filled(make_site, directory)
    await recreate(site)
    await until(lambda: has_partition(site), "the topic is known")
    strangers = [f"s{number}" for number in range(people)]
    await site.feed.many(site.consent, map(consent, strangers))
    readings.start_over()
    await work_anew(site)
    assert any("is refused" in said and why in said for said in readings.said()), readings.said()
    assert len(readings) == people


async def has_partition(site: Site) -> bool:
    found = await site.probe.admin.describe_topics([site.consent])
    return all(not topic["error_code"] for topic in found)


async def work_anew(site: Site) -> None:
    """As a group that begins anew does, because a ledger of the old topic ends it otherwise."""
    async with working(site) as running:
        await until(lambda: not restoring(running.worker._view), "it has looked for a snapshot")
        await until(running.worker._view.subjects, "it reads")
        await until(lambda: covered(site, running.worker._view), "it has read all")


def restoring(view: ConsentView) -> bool:
    return not view._followed or not all(f.is_restored() for f in view._followed.values())


async def covered(site: Site, view: ConsentView) -> bool:
    ends = (await site.probe.ends(site.consent, 1)).high
    return view._followed[0].table.covers(ends)


async def test_a_snapshot_of_which_no_record_is_left_is_refused(
    make_site: SiteFactory, directory: Path, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: is used where `ConsentView._confirm_samples` takes silence for a yes.
    site = await make_site("left", topics={"consent": QUICKLY_COMPACTED}, **kept(directory))
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    await work_once(site)
    last = await site.feed.one(site.consent, consent("ben"))
    await site.feed.one(site.consent, consent("anna"))
    await compacted(site, last - 1)
    await is_read_anew(site, readings, "none of the records", 2)


async def test_a_snapshot_of_a_topic_that_begins_elsewhere_is_refused(
    make_site: SiteFactory, directory: Path, readings: Readings
) -> None:
    # Checked: keeps who is no longer in the topic where `ConsentView._confirm` does not compare
    # the beginning.
    site = await filled(make_site, directory)
    await alter(site, "delete")
    place = TopicPartition(site.consent, 0)
    await site.probe.admin.delete_records({place: RecordsToDelete(before_offset=50)})
    await alter(site, "compact")
    await is_read_anew(site, readings, "begins elsewhere", len(PEOPLE) - 50)


async def alter(site: Site, policy: str) -> None:
    settings = {"cleanup.policy": policy, "unclean.leader.election.enable": "false"}
    resource = ConfigResource(ConfigResourceType.TOPIC, site.consent, settings)
    await site.probe.admin.alter_configs([resource])

    async def altered() -> bool:
        asked = ConfigResource(ConfigResourceType.TOPIC, site.consent)
        (response,) = await site.probe.admin.describe_configs([asked])
        entries = {entry[0]: entry[1] for entry in response.resources[0][4]}
        return bool(entries["cleanup.policy"] == policy)

    await until(altered, "the setting is known")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"consent": ConsentConfig(fields=ConsentFields(adult="of_age"))}, "its fields is"),
        ({"limits": LimitsConfig(max_depth=8)}, "its max_depth is 64, and should be 8"),
    ],
)
async def test_a_snapshot_of_something_else_is_refused(
    make_site: SiteFactory, directory: Path, readings: Readings, change: dict[str, Any], why: str
) -> None:
    # Checked: is used where `Worker._snapshots` leaves the setting out.
    site = await filled(make_site, directory)
    await is_read_anew(elsewhere(site, **change), readings, why, len(PEOPLE))


@pytest.mark.parametrize("role", ["cluster", "purpose", "version"])
async def test_a_snapshot_from_elsewhere_is_refused(
    make_site: SiteFactory,
    directory: Path,
    readings: Readings,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
) -> None:
    # Checked: is used where `Worker._snapshots` does not ask for it.
    site = await filled(make_site, directory)
    cluster, policy = Cluster.id, load_policy(site.config.policy)

    async def another(self: Cluster) -> str:
        return f"{await cluster(self)}-another"

    if role == "cluster":
        monkeypatch.setattr(Cluster, "id", another)
    elif role == "version":
        monkeypatch.setattr(worker_module, "__version__", "0.0.1")
    else:
        ads = dataclasses.replace(policy, purpose="ads")
        monkeypatch.setattr(harness, "load_policy", lambda _: ads)
    await is_read_anew(site, readings, f"its {role} is", len(PEOPLE))


async def test_a_damaged_snapshot_is_refused(
    make_site: SiteFactory, directory: Path, readings: Readings
) -> None:
    site = await filled(make_site, directory)
    path = only(directory)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    await is_read_anew(site, readings, "damaged", len(PEOPLE))
    # The next one is good again.
    readings.start_over()
    await work_once(site)
    assert not readings


async def test_a_snapshot_that_was_cut_off_is_refused(
    make_site: SiteFactory, directory: Path, readings: Readings
) -> None:
    site = await filled(make_site, directory)
    path = only(directory)
    path.write_bytes(path.read_bytes()[:-10])
    await is_read_anew(site, readings, "cut off", len(PEOPLE))


async def test_what_fails_while_a_snapshot_is_read_leaves_the_topic(
    make_site: SiteFactory, directory: Path, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: the worker never gets ready where `ConsentView._restore` lets an error pass.
    site = await filled(make_site, directory)

    async def fail(self: ConsentView, place: TopicPartition, head: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ConsentView, "_confirm_samples", fail)
    readings.start_over()
    await work_once(site)
    assert len(readings) == len(PEOPLE)
    assert any("cannot be used: RuntimeError" in said for said in readings.said())


async def test_a_sample_that_is_compacted_away_leaves_the_others(
    make_site: SiteFactory, directory: Path, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: is refused where only the newest sample is looked for.
    site = await make_site("others", topics={"consent": QUICKLY_COMPACTED}, **kept(directory))
    async with working(site) as running:
        await running.ready()
        for person in ("anna", "ben", "cleo"):
            offset = await site.feed.one(site.consent, consent(person))
            view = running.worker._view
            await view.await_frontier(view._followed[0].table, {0: offset + 1})
    await site.feed.one(site.consent, consent("cleo"))
    await compacted(site, offset)
    readings.start_over()
    await work_once(site)
    assert b"anna" not in readings
    assert [said for said in readings.said() if "3 subjects from a snapshot" in said]
    assert isinstance(view._followed[0].samples[0][b"anna"], Sample)


async def test_a_worker_that_fails_writes_no_snapshot(
    make_site: SiteFactory, directory: Path
) -> None:
    # Checked: writes one where `Worker._put_away` does not ask how it ended.
    site = await make_site("failed", **kept(directory))
    await site.feed.many(site.consent, map(consent, PEOPLE))
    async with working(site, may_fail=True) as running:
        await running.ready()
        running.worker.end(RuntimeError("a bug"))
        await asyncio.wait([running.task])
    assert not names(directory)


async def test_a_disk_that_is_full_stops_nobody(
    make_site: SiteFactory, directory: Path, readings: Readings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: the worker ends where `ConsentView.save` lets the error pass.
    monkeypatch.setattr(consent_module, "KEEP_SECONDS", 0.1)

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    site = await make_site("full", **kept(directory))
    await site.feed.many(site.consent, map(consent, PEOPLE))
    async with working(site) as running:
        await running.ready()
        await until(readings.said, "it says so")
        await site.feed.many(site.content, [post("m1", "1")])
        await site.decided()
    assert "a snapshot could not be written: No space left on device" in readings.said()
    assert not names(directory)
