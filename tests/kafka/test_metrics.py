"""The metrics of a worker against what is in the topics."""

from collections.abc import Sequence

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from harness import Sent, Site, SiteFactory, consent, metric, post, until, working

PEOPLE = ["anna", "ben", "carla", "dora"]


async def in_transactions(site: Site, *batches: tuple[Sequence[Sent], bool]) -> None:
    """Append each batch in a transaction of its own, which is committed or aborted."""
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers, transactional_id=f"{site.config.group}-app"
    ) as producer:
        for records, committed in batches:
            await producer.begin_transaction()
            for sent in records:
                await producer.send_and_wait(site.content, sent.value, sent.key, partition=0)
            await (producer.commit_transaction() if committed else producer.abort_transaction())


def posts(name: str) -> list[Sent]:
    """One post of each."""
    return [post(person, name) for person in PEOPLE]


def unaccounted(page: str) -> float:
    """What came in less what became of it, as the recording rule has it."""
    came_in = metric(page, "consentgate_consumed_offsets_total") - metric(
        page, "consentgate_vacant_offsets_total"
    )
    return came_in - metric(page, "consentgate_decisions_total")


async def test_what_came_in_is_accounted_for_whatever_lies_between(make_site: SiteFactory) -> None:
    site = await make_site("accounted")
    await site.feed.many(site.consent, map(consent, PEOPLE))
    # An aborted transaction and two markers lie between the records, and one marker at the end.
    await in_transactions(
        site, (posts("1"), True), (posts("2"), False), ([*posts("3"), Sent(b"anna", b"{")], True)
    )
    async with working(site) as running:

        async def all_counted() -> bool:
            _, page = await running.get("/metrics")
            return metric(page, "consentgate_consumed_records_total") == 9

        await until(all_counted, "all records are counted")
        await site.feed.many(site.content, posts("4"))
        await site.decided()
        _, page = await running.get("/metrics")
    assert unaccounted(page) == 0
    assert metric(page, "consentgate_decisions_total") == 13
    assert metric(page, "consentgate_consumed_offsets_total") == 13 + 4 + 3
    assert metric(page, "consentgate_vacant_offsets_total") == 4 + 3


async def test_offsets_that_expired_undecided_are_counted_and_vacant(
    make_site: SiteFactory,
) -> None:
    # Checked: counts none where `read_position` says nothing of them.
    site = await make_site("expired")
    await site.feed.many(site.consent, map(consent, PEOPLE))
    await site.feed.many(site.content, posts("1"))
    async with working(site) as running:
        await site.decided()
        _, page = await running.get("/metrics")
        assert metric(page, "consentgate_expired_offsets_total") == 0
    await site.feed.many(site.content, posts("2"))
    place = TopicPartition(site.content, 0)
    await site.probe.admin.delete_records({place: RecordsToDelete(before_offset=7)})
    async with working(site) as running:
        await site.decided()
        _, page = await running.get("/metrics")
    assert metric(page, "consentgate_expired_offsets_total") == 3
    assert metric(page, "consentgate_decisions_total") == 1
    assert metric(page, "consentgate_vacant_offsets_total") == 3
    assert unaccounted(page) == 0
