"""Fence, ReadPosition, Send, SendOffset, Commit, Abort, Retire: all of it once, or nothing."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from bench import Bench, Hand, after
from consentgate.core.gate import BatchOutcome
from consentgate.core.ledger import GENESIS
from consentgate.core.partition import (
    Abort,
    Commit,
    Fence,
    Position,
    ReadHighWatermarks,
    ReadPosition,
    Retire,
    Send,
    SendOffset,
    Step,
    StepFailed,
)
from harness import Sent, consent, until

PARTS = ["nothing", "records", "offset"]
"""How far a transaction has come, by what was sent last."""

ROUNDS_MAX = 40


async def grant(bench: Bench) -> None:
    """From here on everything that is posted is forwarded."""
    await bench.append("consent", consent("anna"), partition=1)


async def assert_committed(bench: Bench, outcomes: Sequence[BatchOutcome]) -> None:
    """These outcomes are all that readers of committed records see, each once and in order."""
    assert await bench.committed("decisions") == [outcome.entry.value for outcome in outcomes]
    training = [output.value for outcome in outcomes for output in outcome.training]
    assert await bench.committed("training") == training


async def until_committed(bench: Bench, outcomes: Sequence[BatchOutcome]) -> None:
    """Wait until the ledger holds these outcomes, which another transaction's end may hold up."""
    values = [outcome.entry.value for outcome in outcomes]

    async def are_committed() -> bool:
        return await bench.committed("decisions") == values

    await until(are_committed, "the ledger can be read")


async def send(hand: Hand, outcome: BatchOutcome, part: str) -> list[Step[Any]]:
    """A transaction up to a part of it; the steps that are left."""
    steps = [Send(outcome), SendOffset(outcome), Commit()]
    sent = PARTS.index(part)
    for step in steps[:sent]:
        await hand.perform(step)
    return steps[sent:]


async def test_a_first_start_is_at_the_start_of_the_log(bench: Bench) -> None:
    hand = bench.hand()
    assert await hand.take_over() == Position(0, GENESIS, None)
    await bench.post("1", "2", "3", "4")
    await bench.expire_content(before=3)
    assert await hand.take_over() == Position(3, GENESIS, None)


async def test_a_commit_is_in_the_position_at_once(bench: Bench) -> None:
    await grant(bench)
    hand, outcomes = bench.hand(), []
    await hand.take_over()
    for number in range(12):
        await bench.post(str(number))
        outcomes.append(await hand.outcome(number + 1))
        await hand.commit(outcomes[-1])
        hand = hand if number % 2 else bench.hand()
        assert await hand.take_over() == after(outcomes[-1])
    assert all(len(outcome.training) == 1 for outcome in outcomes)
    await assert_committed(bench, outcomes)


async def test_one_producer_commits_one_transaction_after_another(bench: Bench) -> None:
    await grant(bench)
    hand, outcomes = bench.hand(), []
    hand.position = await hand.take_over()
    for number in range(12):
        await bench.post(str(number))
        outcomes.append(await hand.outcome(number + 1))
        if number % 3 == 1:
            await send(hand, outcomes[-1], "offset")
            assert not await hand.perform(Abort())
        await hand.commit(outcomes[-1])
        hand.position = after(outcomes[-1])
    assert await hand.take_over() == after(outcomes[-1])
    await assert_committed(bench, outcomes)


async def test_the_position_waits_for_no_other_transaction_in_the_ledger(bench: Bench) -> None:
    await bench.post("1")
    hand = bench.hand()
    await hand.take_over()
    first = await hand.outcome(1)
    await hand.commit(first)
    await hand.take_over()

    other = await bench.begin("decisions")
    await other.append(Sent(b"other", b"{}"))
    await bench.post("2")
    second = await hand.outcome(2)
    await hand.commit(second)
    assert await bench.hand().take_over() == after(second)
    await other.abort()
    await until_committed(bench, [first, second])


@pytest.mark.parametrize("end", ["aborted", "retired", "left open"])
@pytest.mark.parametrize("part", PARTS[1:])
async def test_nothing_is_left_of_a_transaction_that_was_not_committed(
    bench: Bench, part: str, end: str
) -> None:
    await grant(bench)
    await bench.post("1")
    hand = bench.hand()
    await hand.take_over()
    first = await hand.outcome(1)
    await hand.commit(first)
    await hand.take_over()

    await bench.post("2", "3")
    second = await hand.outcome(3)
    await send(hand, second, part)
    if end != "left open":
        await hand.perform(Abort() if end == "aborted" else Retire())
    successor = bench.hand()
    assert await successor.take_over() == after(first)
    await assert_committed(bench, [first])

    again = await successor.outcome(3)
    await successor.commit(again)
    assert await successor.take_over() == after(again)
    await assert_committed(bench, [first, again])


@pytest.mark.parametrize("part", PARTS)
async def test_a_fenced_producer_commits_nothing_any_more(bench: Bench, part: str) -> None:
    await grant(bench)
    await bench.post("1", "2")
    zombie, successor = bench.hand(), bench.hand()
    await zombie.take_over()
    outcome = await zombie.outcome(1)
    left = await send(zombie, outcome, part)

    assert await successor.take_over() == Position(0, GENESIS, None)
    for step in left:
        with pytest.raises(StepFailed):
            await zombie.perform(step)
    await assert_committed(bench, [])

    # What it may still do is read.
    outcome = await successor.outcome(2)
    await successor.commit(outcome)
    assert await zombie.perform(ReadHighWatermarks()) == {0: 0, 1: 1}
    await zombie.perform(Retire())
    assert await successor.take_over() == after(outcome)
    assert await zombie.perform(ReadPosition()) == after(outcome)
    await assert_committed(bench, [outcome])


async def test_a_zombie_that_fences_takes_the_partition_over(bench: Bench) -> None:
    await grant(bench)
    await bench.post("1")
    zombie, successor = bench.hand(), bench.hand()
    await zombie.take_over()
    await successor.take_over()
    outcome = await successor.outcome(1)
    left = await send(successor, outcome, "records")
    assert await zombie.take_over() == Position(0, GENESIS, None)
    with pytest.raises(StepFailed):
        await successor.perform(left[0])
    outcome = await zombie.outcome(1)
    await zombie.commit(outcome)
    assert await successor.take_over() == after(outcome)
    await assert_committed(bench, [outcome])


async def test_without_a_fenced_producer_nothing_is_written(bench: Bench) -> None:
    await bench.post("1")
    hand = bench.hand()
    await hand.perform(Retire())
    await hand.take_over()
    outcome = await hand.outcome(1)
    await hand.perform(Retire())
    await hand.perform(Retire())
    for step in (Send(outcome), SendOffset(outcome), Commit(), Abort()):
        with pytest.raises(StepFailed):
            await hand.perform(step)
    assert await hand.take_over() == Position(0, GENESIS, None)
    await assert_committed(bench, [])


async def test_the_position_tells_whether_a_commit_was_in_time(bench: Bench) -> None:
    await grant(bench)
    hand, outcomes = bench.hand(), []
    before = await hand.take_over()
    await bench.post("0")
    for number in range(ROUNDS_MAX):
        outcome = await hand.outcome(before.next_offset + 1)
        await send(hand, outcome, "offset")
        successor = bench.hand()
        racers = [hand.perform(Commit()), successor.perform(Fence())]
        racing = []
        for racer in racers if number % 2 else reversed(racers):
            racing.append(asyncio.create_task(racer))
            await asyncio.sleep(number / 200)
        committing, fencing = racing if number % 2 else reversed(racing)
        if number % 3:
            # Nobody gets the reply, if there is one.
            committing.cancel()
        await asyncio.wait(racing)
        await fencing

        hand = successor
        position = hand.position = await hand.perform(ReadPosition())
        assert position in (before, after(outcome))
        if not committing.cancelled() and committing.exception() is None:
            assert position == after(outcome)
        if position == after(outcome):
            outcomes.append(outcome)
            await bench.post(str(number + 1))
        await assert_committed(bench, outcomes)
        before = position
        if 4 <= len(outcomes) <= number - 2:
            return
    pytest.fail(f"{len(outcomes)} of {ROUNDS_MAX} commits were done: the race has one winner only")


async def test_a_producer_fenced_by_a_fence_that_was_cut_short(bench: Bench) -> None:
    await bench.post("1")
    hand, other = bench.hand(), bench.hand()
    await hand.take_over()
    outcome = await hand.outcome(1)
    await send(hand, outcome, "offset")
    fencing = asyncio.create_task(other.perform(Fence()))
    await asyncio.sleep(0)
    fencing.cancel()
    await asyncio.wait([fencing])
    # Whether or not the fence was in time, the commit is whole or not at all.
    try:
        await hand.perform(Commit())
        expected = after(outcome)
    except StepFailed:
        expected = Position(0, GENESIS, None)
    assert await bench.hand().take_over() == expected
