"""ReadHighWatermarks, AwaitFrontier, WatchConsent, ReadChanges: no consent is overlooked."""

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from bench import CONSENT_PARTITIONS, Bench, Hand
from consentgate.core.consent import ConsentChange
from consentgate.core.model import Choice
from consentgate.core.partition import (
    AwaitFrontier,
    Fence,
    ReadChanges,
    ReadHighWatermarks,
    StepFailed,
    WatchConsent,
)
from harness import consent, until

WATCHERS = 8

Appended = tuple[int, int, bytes]
"""A consent record: partition, offset, subject."""


class Consents:
    """Appends consent in every way, and knows what has been committed."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.committed: list[Appended] = []

    async def plain(self, partition: int, choice: str = "granted") -> int:
        """Append one record of somebody new; its offset."""
        subject = f"m{len(self.committed)}"
        offset = await self._bench.append("consent", consent(subject, choice), partition)
        self.committed.append((partition, offset, subject.encode()))
        return offset

    async def transaction(self, partitions: Iterable[int], *, commit: bool) -> None:
        """Append records in a transaction, and end it."""
        transaction = await self._bench.begin("consent")
        for partition in partitions:
            subject = f"m{len(self.committed)}" if commit else "nobody"
            offset = await transaction.append(consent(subject), partition)
            if commit:
                self.committed.append((partition, offset, subject.encode()))
        await (transaction.commit() if commit else transaction.abort())

    async def mixed(self) -> None:
        """Plain records, and transactions that end well or badly."""
        for partition in (0, 1, 0):
            await self.plain(partition)
        await self.transaction((0, 1, 1), commit=False)
        await self.plain(1)
        await self.transaction((1, 0, 1), commit=True)
        await self.transaction((1,), commit=False)
        await self.plain(0)

    def between(self, since: Mapping[int, int], until: Mapping[int, int]) -> list[Appended]:
        """What was committed between two frontiers, in an order to compare by."""
        return sorted(c for c in self.committed if since[c[0]] <= c[1] < until[c[0]])


def places(changes: Iterable[ConsentChange]) -> list[Appended]:
    """Where the changes stand, in an order to compare by."""
    return sorted((c.partition, c.offset, c.subject) for c in changes)


async def covered(hand: Hand) -> dict[int, int]:
    """The high watermarks of now, once the table covers them."""
    await hand.fresh()
    high: dict[int, int] = await hand.perform(ReadHighWatermarks())
    return high


async def test_the_high_watermark_covers_what_is_acknowledged(bench: Bench) -> None:
    hand = bench.hand()
    assert await hand.perform(ReadHighWatermarks()) == {0: 0, 1: 0}
    consents, ends = Consents(bench), [0] * CONSENT_PARTITIONS
    for number in range(20):
        partition = number % CONSENT_PARTITIONS
        ends[partition] = await consents.plain(partition) + 1
        assert await hand.perform(ReadHighWatermarks()) == dict(enumerate(ends))


async def test_it_covers_what_is_acknowledged_within_a_transaction(bench: Bench) -> None:
    hand = bench.hand()
    for number in range(8):
        transaction = await bench.begin("consent")
        offset = await transaction.append(consent(f"m{number}"))
        assert (await hand.perform(ReadHighWatermarks()))[0] > offset
        await transaction.commit()
        assert (await hand.perform(ReadHighWatermarks()))[0] > offset


async def test_the_table_holds_what_its_frontier_covers(bench: Bench) -> None:
    hand = bench.hand()
    for choice in ("granted", "withdrawn", "granted", "objected"):
        await bench.append("consent", consent("anna", choice), partition=1)
        await hand.fresh()
        held = bench.gate.table.holdings[b"anna"]
        assert (held.partition, held.state.choice) == (1, Choice(choice))


@pytest.mark.parametrize("end", ["committed", "aborted"])
async def test_an_open_transaction_is_awaited(bench: Bench, end: str) -> None:
    hand, table = bench.hand(), bench.gate.table
    await bench.append("consent", consent("anna"))
    await hand.fresh()
    await hand.perform(WatchConsent())
    transaction = await bench.begin("consent")
    await transaction.append(consent("anna", "withdrawn"))
    await transaction.append(consent("ben"))
    await bench.append("consent", consent("carl"))
    high_watermarks = await hand.perform(ReadHighWatermarks())
    assert await hand.perform(AwaitFrontier(high_watermarks)), "it says why it is behind"
    assert table.holdings.keys() == {b"anna"}
    assert hand.changes == []

    await (transaction.commit() if end == "committed" else transaction.abort())
    await hand.fresh()
    assert table.covers(high_watermarks)
    changed = [b"anna", b"ben", b"carl"] if end == "committed" else [b"carl"]
    assert [change.subject for change in hand.changes] == changed
    assert table.holdings.keys() == {b"anna", *changed}
    choice = Choice.WITHDRAWN if end == "committed" else Choice.GRANTED
    assert table.holdings[b"anna"].state.choice is choice


async def test_no_change_is_lost_once_the_consent_is_watched(bench: Bench) -> None:
    consents, watching = Consents(bench), []
    ended = asyncio.Event()

    async def append() -> None:
        while not ended.is_set():
            await consents.mixed()

    appending = asyncio.create_task(append())
    for _ in range(WATCHERS):
        hand, seen = bench.hand(), len(consents.committed)
        await until(lambda n=seen: len(consents.committed) > n, "some more consent")  # type: ignore[misc]
        watching.append((hand, await hand.perform(WatchConsent())))
    ended.set()
    await appending
    await consents.mixed()
    high_watermarks = await covered(hand)
    for hand, since in watching:
        assert places(hand.changes) == consents.between(since, high_watermarks)


async def test_who_takes_over_again_gets_each_change_once(bench: Bench) -> None:
    consents, hand = Consents(bench), bench.hand()
    await hand.perform(WatchConsent())
    await consents.mixed()
    await covered(hand)
    await hand.perform(Fence())
    hand.changes.clear()
    since = await hand.perform(WatchConsent())
    await consents.mixed()
    high_watermarks = await covered(hand)
    assert places(hand.changes) == consents.between(since, high_watermarks)


async def test_changes_are_read_in_parts_and_each_once(bench: Bench) -> None:
    consents, hand = Consents(bench), bench.hand()
    for _ in range(2):
        await consents.mixed()
    high_watermarks = await covered(hand)
    await consents.mixed()

    places_read: list[Appended] = []
    frontiers = [{0: 1, 1: 2}]
    while frontiers[-1] != high_watermarks:
        since = frontiers[-1]
        read = await hand.perform(ReadChanges(since, high_watermarks))
        assert all(since[p] <= read.frontier[p] <= high_watermarks[p] for p in since)
        assert read.frontier != since, "it goes on"
        assert places(read.changes) == consents.between(since, read.frontier)
        assert all(c.after.state.choice is Choice.GRANTED for c in read.changes)
        places_read += places(read.changes)
        frontiers.append(read.frontier)
    assert len(frontiers) > 3, "one reading is bounded"
    assert sorted(places_read) == consents.between(frontiers[0], high_watermarks)


async def test_changes_that_are_gone_are_not_taken_for_none(bench: Bench) -> None:
    consents, hand = Consents(bench), bench.hand()
    await consents.mixed()
    high_watermarks = await covered(hand)
    beyond = {**high_watermarks, 1: high_watermarks[1] + 5}
    with pytest.raises(StepFailed):
        await hand.perform(ReadChanges(high_watermarks, beyond))


async def answers(hand: Hand, high_watermarks: Mapping[int, int]) -> bool:
    """Whether the high watermarks are these; not where they are refused."""
    try:
        return bool(await hand.perform(ReadHighWatermarks()) == high_watermarks)
    except StepFailed:
        return False


async def test_a_topic_that_was_made_anew_is_refused(bench: Bench) -> None:
    consents, hand, other = Consents(bench), bench.hand(), bench.hand()
    await consents.mixed()
    old, new = await covered(hand), {0: 0, 1: 1}
    await other.perform(WatchConsent())
    await bench.recreate_consent()
    await bench.append("consent", consent("ben"), partition=1)

    async def is_refused() -> bool:
        # As long as it answers, it is the old topic that it knows.
        return not await answers(hand, old)

    await until(is_refused, "the new topic is refused")

    # It is read from its start, and everybody can see that it ends before what was committed.
    await until(lambda: answers(hand, new), "the new topic is followed")
    await hand.fresh()
    assert await hand.perform(WatchConsent()) == new
    assert bench.gate.table.holdings.keys() == {b"ben"}

    # Who watched the old table has missed changes, and must take over again.
    for _ in range(2):
        with pytest.raises(StepFailed):
            await other.perform(ReadHighWatermarks())
    await other.perform(Fence())
    assert await answers(other, new)
