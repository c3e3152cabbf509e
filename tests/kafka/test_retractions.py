"""What has gone on is taken back when its author may no longer be used."""

import signal
from typing import Any

import msgspec

from consentgate.kafka.reader import read_topic
from consentgate.kafka.settings import kafka_settings
from harness import (
    QUICK_GROUP,
    SMALL_FETCHES,
    Sent,
    Site,
    SiteFactory,
    StartWorker,
    consent,
    freeze_mid_transaction,
    meanwhile,
    post,
    until,
    working,
)
from test_exactly_once import PEOPLE, Minds, append_posts


async def retractions(site: Site) -> list[dict[str, Any]]:
    """What stands in the retractions topic; the key is the subject."""
    settings, topic = kafka_settings(site.config.kafka), site.config.topics.retractions
    found = []
    async for _, record in read_topic(settings, topic, site.partitions):
        body = msgspec.json.decode(record.value)
        assert record.key == body["subject"].encode()
        found.append(body)
    return found


async def retracted(site: Site, subject: str) -> dict[str, Any]:
    """The one retraction of somebody, as soon as it is there."""

    async def found() -> list[dict[str, Any]]:
        return [body for body in await retractions(site) if body["subject"] == subject]

    (body,) = await until(found, f"{subject} is retracted")
    assert isinstance(body, dict)
    return body


async def test_a_withdrawal_retracts_what_went_on_before_it(make_site: SiteFactory) -> None:
    # Checked: fails where `Gate.judge` leaves the changes out, and where nothing is watched.
    site = await make_site("retract")
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    await site.feed.many(site.content, [post("anna", "1"), post("ben", "2"), post("anna", "3")])
    async with working(site):
        await site.decided()
        offset = await site.feed.one(site.consent, consent("anna", "withdrawn"))
        body = await retracted(site, "anna")
        await site.feed.many(site.content, [post("anna", "4")])
        await site.decided()

    assert body["reason"] == "withdrawn"
    assert body["consent"] == f"{site.consent}-0@{offset}"
    assert body["before"] == f"{site.content}-0@3"
    assert any(entry.frontier[0] == offset + 1 for entry in (await site.check()).chains[0])
    assert len(await retractions(site)) == 1


async def test_a_deleted_consent_record_retracts(make_site: SiteFactory) -> None:
    site = await make_site("forgotten")
    await site.feed.many(site.consent, [consent("anna")])
    async with working(site) as running:
        await running.ready()
        await site.feed.one(site.consent, Sent(b"anna", None))
        assert (await retracted(site, "anna"))["reason"] == "no-consent-record"


async def test_who_withdraws_and_comes_back_at_once_is_still_retracted(
    make_site: SiteFactory,
) -> None:
    site = await make_site("returned")
    await site.feed.many(site.consent, [consent("anna")])
    async with working(site) as running:
        await running.ready()
        await site.feed.batch(site.consent, [consent("anna", "withdrawn"), consent("anna")])
        assert (await retracted(site, "anna"))["reason"] == "withdrawn"


async def test_a_withdrawal_that_nobody_saw_is_retracted_by_whoever_comes_next(
    make_site: SiteFactory,
) -> None:
    # Checked: fails where `Partition._take_over` does not catch up.
    site = await make_site("absent", partitions=2, consent={"scope": "global"})
    await site.feed.many(site.consent, [consent(subject) for subject in ("anna", "ben")])
    await site.feed.many(site.content, [post("anna", "1")], partition=0)
    await site.feed.many(site.content, [post("anna", "2")], partition=1)
    async with working(site):
        await site.decided()
    await site.feed.one(site.consent, consent("anna", "objected"))
    await site.feed.one(site.consent, consent("ben"))
    for _ in range(2):
        async with working(site) as running:
            await running.ready()

    # One for each input partition, and none again at the second start.
    found = await retractions(site)
    assert [body["reason"] for body in found] == ["objected"] * 2
    assert {body["before"] for body in found} == {f"{site.content}-{p}@1" for p in range(2)}


async def test_who_became_unreadable_while_nobody_looked_is_retracted(
    make_site: SiteFactory,
) -> None:
    # Checked: fails where `ConsentView.read_changes` judges by the record alone, which is a grant.
    site = await make_site("divided", partitions=2, consent={"scope": "global"})
    await site.feed.many(site.consent, [consent("anna")], partition=0)
    await site.feed.many(site.content, [post("anna", "1")], partition=0)
    async with working(site):
        await site.decided()
    await site.feed.many(site.consent, [consent("anna")], partition=1)
    async with working(site) as running:
        await running.ready()
    assert {body["reason"] for body in await retractions(site)} == {"consent-unreadable"}


async def test_partitions_that_share_a_table_all_begin_anew_with_it(make_site: SiteFactory) -> None:
    # Checked: only the one that noticed takes over again where `Transport` does not ask whether
    # it is still told of changes; ben is unknown where `ConsentView` does not read the topic anew.
    site = await make_site("shared", partitions=2, consent={"scope": "global"})
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    async with working(site) as running:
        await running.ready()
        view = running.worker._view
        ready = len(running.logged("ready"))
        view._to_reset.append(view._followed[0])
        await until(lambda: len(running.logged("ready")) == ready + 2, "both have taken over")
        await site.feed.one(site.consent, consent("anna", "withdrawn"))
        await until(lambda: both_retracted(site), "both retract")
        await site.feed.many(site.content, [post("ben", "1")])
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 1}
    assert {entry["partition"] for entry in running.logged("recycled")} == {0, 1}


async def both_retracted(site: Site) -> bool:
    return len(await retractions(site)) == 2


async def test_the_first_start_retracts_nobody(make_site: SiteFactory) -> None:
    # Checked: fails where a first start catches up from offset 0.
    site = await make_site("baseline")
    await site.feed.many(site.consent, [consent("anna", "withdrawn"), consent("ben", None)])
    await site.feed.many(site.content, [post("anna", "1")])
    async with working(site):
        await site.decided()
    assert await retractions(site) == []


async def test_no_retraction_is_lost_with_a_killed_worker(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    # Checked: fails where a worker that takes over does not catch up.
    site = await make_site("killed", partitions=2, kafka={**QUICK_GROUP, **SMALL_FETCHES})
    await site.feed.many(site.consent, [consent(person) for person in PEOPLE])
    first = await start_worker(site)
    await first.ready()
    baseline = (await site.probe.ends(site.consent, 2)).high
    await append_posts(site, 6_000)
    async with meanwhile(Minds(site).change):
        await freeze_mid_transaction(site, first)
        first.signal(signal.SIGKILL)
        await start_worker(site)
        await site.decided()
    ends = (await site.probe.ends(site.consent, 2)).high

    async def covered() -> bool:
        seen = await site.seen()
        return all(seen.chains[p][-1].frontier[p] == ends[p] for p in range(2))

    await until(covered, "the last change is covered")
    wanted = {
        f"{site.consent}-{partition}@{record.offset}"
        async for partition, record in read_topic(
            kafka_settings(site.config.kafka), site.consent, 2
        )
        if record.offset >= baseline[partition] and b'"withdrawn"' in record.value
    }
    assert wanted, "people withdrew"
    assert wanted <= {body["consent"] for body in await retractions(site)}
