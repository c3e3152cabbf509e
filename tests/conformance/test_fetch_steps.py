"""Seek and Fetch: content from one offset on, each record once, in order."""

import time

import pytest

from bench import FETCH_WAIT_MS, Bench, Hand
from consentgate.core.gate import Batch
from consentgate.core.partition import Fetch, Seek, StepFailed
from harness import post

BEYOND_THE_WAIT_SECONDS = 1.0


def offsets(batch: Batch) -> list[int]:
    """The offsets of a batch's records."""
    return [record.offset for record in batch.records]


async def brings_nothing(hand: Hand, first: int) -> bool:
    """Whether a fetch stays where it is."""
    batch = await hand.perform(Fetch(first, 100, FETCH_WAIT_MS))
    return (batch.first, batch.next_offset, len(batch.records)) == (first, first, 0)


async def test_content_comes_in_order_and_at_most_as_much_as_asked_for(bench: Bench) -> None:
    await bench.post(*map(str, range(10)))
    hand = bench.hand()
    values = [post("anna", str(number)).value for number in range(4, 10)]
    for records_max in (1, 2, 3, 6):
        await hand.perform(Seek(4))
        batch = await hand.fetch(4, 10, records_max)
        assert offsets(batch) == [4, 5, 6, 7, 8, 9]
        assert [record.value for record in batch.records] == values


async def test_a_seek_backwards_brings_the_same_again(bench: Bench) -> None:
    await bench.post(*map(str, range(6)))
    hand = bench.hand()
    for first in (0, 3, 0, 5):
        await hand.perform(Seek(first))
        assert offsets(await hand.fetch(first, 6)) == list(range(first, 6))


async def test_nothing_comes_within_the_time_where_there_is_nothing(bench: Bench) -> None:
    await bench.post("1")
    hand = bench.hand()
    await hand.perform(Seek(1))
    asked_at = time.monotonic()
    assert await brings_nothing(hand, 1)
    assert time.monotonic() - asked_at < FETCH_WAIT_MS / 1000 + BEYOND_THE_WAIT_SECONDS
    await bench.post("2")
    assert offsets(await hand.fetch(1, 2)) == [1]


async def test_offsets_that_hold_no_record_are_passed_over(bench: Bench) -> None:
    committed = []
    for number, names in enumerate(("abc", "de", "f")):
        transaction = await bench.begin("content")
        appended = [await transaction.append(post("anna", name)) for name in names]
        if number % 2:
            await transaction.commit()
            committed += appended
        else:
            await transaction.abort()
    hand = bench.hand()
    await hand.perform(Seek(0))
    # Three transactions have six records and as many markers.
    batch = await hand.fetch(0, 6 + 3)
    assert offsets(batch) == committed
    assert batch.next_offset == 9
    assert await brings_nothing(hand, 9)


async def test_an_open_transaction_keeps_back_what_comes_after_it(bench: Bench) -> None:
    await bench.post("before")
    transaction = await bench.begin("content")
    await transaction.append(post("anna", "within"))
    await bench.post("after")
    hand = bench.hand()
    await hand.perform(Seek(0))
    assert offsets(await hand.fetch(0, 1)) == [0]
    assert await brings_nothing(hand, 1)
    await transaction.commit()
    assert offsets(await hand.fetch(1, 4)) == [1, 2]


async def test_expired_offsets_are_passed_over(bench: Bench) -> None:
    await bench.post(*map(str, range(5)))
    await bench.expire_content(before=3)
    hand = bench.hand()
    await hand.perform(Seek(1))
    assert offsets(await hand.fetch(1, 5)) == [3, 4]


async def test_a_fetch_from_before_what_was_asked_for_is_refused(bench: Bench) -> None:
    await bench.post(*map(str, range(5)))
    hand = bench.hand()
    await hand.perform(Seek(1))
    with pytest.raises(StepFailed):
        await hand.perform(Fetch(3, 100, FETCH_WAIT_MS))
