"""The client's decoded records are handed on, and have all that the gate looks at."""

import gc
import weakref

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from consentgate.kafka.decoded import hand_on_decoded_records
from harness import Sent, SiteFactory


async def test_decoded_records_come_as_they_are(make_site: SiteFactory) -> None:
    site = await make_site("decoded")
    sent = Sent(b"anna", b"{}", 1_726_826_400_000, [("trace", b"1"), ("empty", None)])
    await site.feed.many(site.content, [sent, sent], partition=0)
    polled = []
    for hand_on in (hand_on_decoded_records, lambda consumer: None):
        tp = TopicPartition(site.content, 0)
        async with AIOKafkaConsumer(
            bootstrap_servers=site.kafka.bootstrap_servers, auto_offset_reset="earliest"
        ) as consumer:
            hand_on(consumer)
            consumer.assign([tp])
            fetched = await consumer.getmany(tp, timeout_ms=10_000)
            assert await consumer.position(tp) == 2
        polled.append(fetched[tp])

    decoded, copied = polled
    assert not any(isinstance(record, ConsumerRecord) for record in decoded)
    assert all(isinstance(record, ConsumerRecord) for record in copied)
    for ours, theirs in zip(decoded, copied, strict=True):
        assert ours.offset == theirs.offset
        assert ours.timestamp == theirs.timestamp
        assert (ours.key, ours.value) == (theirs.key, theirs.value)
        assert tuple(ours.headers) == theirs.headers == (("trace", b"1"), ("empty", None))


async def test_a_client_that_is_built_otherwise_keeps_its_own_records() -> None:
    class Other:
        _fetcher = object()

    hand_on_decoded_records(Other())


async def test_what_a_seek_drops_is_freed_at_once(make_site: SiteFactory) -> None:
    # Checked: it stays until the garbage collector comes where `_FetchResults` closes nothing; a
    # worker whose batches consent changes cut short had 2 GB after a minute.
    site = await make_site("dropped")
    await site.feed.many(site.content, [Sent(b"anna", b"{}")] * 100, partition=0)
    tp = TopicPartition(site.content, 0)
    async with AIOKafkaConsumer(
        bootstrap_servers=site.kafka.bootstrap_servers, auto_offset_reset="earliest"
    ) as consumer:
        hand_on_decoded_records(consumer)
        consumer.assign([tp])
        await consumer.getmany(tp, timeout_ms=10_000, max_records=10)
        dropped = weakref.ref(consumer._fetcher._records[tp]._partition_records)
        gc.disable()
        try:
            consumer.seek(tp, 50)
            fetched = await consumer.getmany(tp, timeout_ms=10_000, max_records=10)
            assert [record.offset for record in fetched[tp]] == list(range(50, 60))
            assert dropped() is None
        finally:
            gc.enable()
