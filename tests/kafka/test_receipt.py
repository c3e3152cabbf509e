"""A receipt from real topics: whose records they are, and what nobody can read."""

import asyncio
import json
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from consentgate.tools.receipt import Receipt, make_receipt
from harness import (
    SPOILT_NAME,
    Sent,
    Site,
    SiteFactory,
    consent,
    post,
    spoil_header_names,
    until,
    working,
)


async def receipt_of(site: Site, subject: str) -> Receipt:
    return await make_receipt(site.config, subject, lambda done, total: None)


@pytest.fixture
async def threads(make_site: SiteFactory) -> Site:
    """Content under the keys of threads; two people write in each, and one of them withdraws."""
    content = {"key_is_subject": False}
    site = await make_site("threads", partitions=2, consent_partitions=3, content=content)
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    posts = [
        Sent(f"thread-{n}".encode(), post(person, f"e{n}").value)
        for n in range(6)
        for person in ("anna", "ben")
    ]
    async with working(site):
        await site.feed.many(site.content, posts)
        await site.decided()
        await site.feed.many(site.consent, [consent("anna", "withdrawn")])

        async def is_in_effect() -> bool:
            return len((await receipt_of(site, "anna")).changes[-1].effects) == 2

        await until(is_in_effect, "the withdrawal is in effect in both partitions")
    return site


async def test_records_under_other_keys_are_found_by_their_subject(threads: Site) -> None:
    # Checked: none are found where `make_receipt` compares the keys.
    anna, ben = await receipt_of(threads, "anna"), await receipt_of(threads, "ben")
    assert len(anna.forwarded) == len(ben.forwarded) == 6
    assert {record.retracted_by for record in ben.forwarded} == {None}
    # In global scope each input partition has its own retraction.
    (granted, withdrawn) = anna.changes
    by_source = {effect.source: effect.retraction for effect in withdrawn.effects}
    assert len(granted.effects) == len(by_source) == 2
    for record in anna.forwarded:
        assert record.retracted_by == by_source[record.source.rpartition("@")[0]]
        assert record.retracted_by is not None
    assert (await receipt_of(threads, "thread-1")).forwarded == []


async def test_the_progress_ends_at_the_number_of_offsets(threads: Site) -> None:
    seen: list[tuple[int, int]] = []
    await make_receipt(threads.config, "anna", lambda done, total: seen.append((done, total)))
    topics, probe = threads.config.topics, threads.probe
    counts = {topics.consent: 3, topics.decisions: 1, topics.retractions: 2, topics.training: 2}
    ends = [(await probe.ends(topic, number)).high for topic, number in counts.items()]
    total = sum(offset for high in ends for offset in high.values())
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)


async def test_what_nobody_can_read_is_counted_and_passed(make_site: SiteFactory) -> None:
    # Checked: ends with an error of its own where `Coverage` lets the decoder's pass.
    site = await make_site("unreadable")
    topics, chain = site.config.topics, f"{site.config.group}/{site.content}-0".encode()
    await site.feed.one(topics.decisions, Sent(chain, b"{"))
    await site.feed.batch(
        topics.decisions, [Sent(chain, b"{}", headers=[(SPOILT_NAME, b"")])], 0, spoil_header_names
    )
    for value in (None, b"{", b"[]", b'{"consent": 1, "before": "x@y"}', b"[" * 100_000):
        await site.feed.one(topics.retractions, Sent(b"anna", value))
    odd: list[Any] = [{"choices": [1]}, 2**70, "text"]
    for value in (*(json.dumps(each).encode() for each in odd), b"{", b"[" * 100_000, None):
        await site.feed.one(topics.consent, Sent(b"anna", value))
    spoilt = [Sent(b"anna", b"{}", headers=[(SPOILT_NAME, b"")])]
    await site.feed.batch(topics.consent, spoilt, 0, spoil_header_names)
    await site.feed.batch(topics.training, spoilt, 0, spoil_header_names)
    receipt = await receipt_of(site, "anna")
    assert receipt.unreadable == 2 + 5
    assert [change.record for change in receipt.changes] == [
        *odd,
        "unreadable",
        "unreadable",
        None,
        "unreadable",
    ]
    assert [record.retracted_by for record in receipt.forwarded] == [None]
    assert msgspec.json.decode(msgspec.json.encode(receipt))["unreadable"] == 7


async def test_what_an_open_transaction_hides_is_waited_for(threads: Site) -> None:
    # Checked: comes at once, and without the record, where `settle_topic` is not called.
    topics = threads.config.topics
    async with AIOKafkaProducer(
        bootstrap_servers=threads.kafka.bootstrap_servers, transactional_id=topics.training
    ) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topics.training, b"somebody else's", partition=0)
        offset = await threads.feed.one(topics.training, post("anna", "hidden"), 0)
        making = asyncio.create_task(receipt_of(threads, "anna"))
        done, _ = await asyncio.wait([making], timeout=1.0)
        assert not done
        await producer.abort_transaction()
    receipt = await making
    assert f"{topics.training}-0@{offset}" in {record.record for record in receipt.forwarded}
