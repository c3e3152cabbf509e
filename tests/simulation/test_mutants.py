"""One safeguard taken away at a time: the simulation sees each of them missing."""

from collections.abc import Iterator
from typing import Any

import pytest

from consentgate.core.partition import (
    Fence,
    Moment,
    Partition,
    ReadHighWatermarks,
    ReadPosition,
    Seek,
    Step,
    StepFailed,
    Steps,
    ask,
)
from oracle import violations
from transport import FakeTransport
from world import World

SEEDS_MAX = 400
TURNS = 400


class WithoutBarrier(Partition):
    """Decides without waiting for the consent that was appended before."""

    def _freshen(self) -> Steps[Moment]:
        return Moment(0, 0)
        yield


class WithoutFence(Partition):
    """Reads the position before it fences: what is under way then is not settled."""

    def _take_over(self) -> Steps[None]:
        steps = super()._take_over()
        fence = next(steps)
        assert isinstance(fence, Fence)
        read = steps.send(None)
        assert isinstance(read, ReadPosition)
        position = yield read
        yield fence
        step = steps.send(position)
        while True:
            try:
                reply = yield step
                step = steps.send(reply)
            except StopIteration:
                return


class WithoutRecycling(Partition):
    """Goes on with a producer of which nobody knows what it has done."""

    def _recycle(self, failure: StepFailed) -> Steps[None]:
        while self._previous:
            try:
                yield from ask(Seek(self.next_offset))
                while not self._stopping:
                    yield from self._turn()
            except StepFailed:
                continue


class WithoutCatchingUp(Partition):
    """Forgets the consent changes that came while nobody watched."""

    def _catch_up(self, committed, watched_from) -> Steps[None]:  # type: ignore[no-untyped-def]
        return
        yield


class WithoutWatching(Partition):
    """Does not hear of the consent changes that come while it works."""

    def consent_changed(self, change) -> None:  # type: ignore[no-untyped-def]
        return


class WithoutForgetting(Partition):
    """Keeps the changes of an earlier term, and so retracts with the wrong `before`."""

    def _settle(self, outcome) -> None:  # type: ignore[no-untyped-def]
        kept = list(self._changes)
        super()._settle(outcome)
        self._changes = kept[:0]


class WithoutSeeking(Partition):
    """Trusts that the consumer stands where the last transaction ended."""

    def _take_over(self) -> Steps[None]:
        steps = super()._take_over()
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            if type(step).__name__ == "Seek":
                reply = None
                continue
            reply = yield step


class WithoutHighWatermarks(FakeTransport):
    """Asks up to where consent is committed, though a commit may be known before it is seen."""

    async def perform(self, step: Step[Any]) -> Any:
        reply = await super().perform(step)
        if isinstance(step, ReadHighWatermarks):
            return {p: self._broker.consent[p].stable for p in reply}
        return reply


class WithoutSharedIds(FakeTransport):
    """Has a transactional id for each worker's producer, and so fences nobody."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._id = self._broker.transactional_id(f"of its own: {id(self)}")


MUTANTS = {
    WithoutBarrier: "decided before older consent was seen",
    WithoutFence: "the chain breaks",
    WithoutRecycling: "the chain breaks",
    WithoutCatchingUp: "is not retracted",
    WithoutWatching: "is not retracted",
    WithoutForgetting: "is not retracted",
    WithoutSeeking: "missed",
}

TRANSPORT_MUTANTS = {
    WithoutHighWatermarks: "decided before older consent was seen",
    WithoutSharedIds: "the chain breaks",
}


def wrongs(world: World) -> Iterator[str]:
    """What goes wrong in a world, up to its end where it comes to one."""
    try:
        world.run(TURNS)
    except (AssertionError, StepFailed) as failure:
        yield str(failure)
    yield from violations(world)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_missing_safeguard_is_seen(mutant: type[Partition]) -> None:
    assert any(
        MUTANTS[mutant] in wrong
        for seed in range(SEEDS_MAX)
        for wrong in wrongs(World(seed, partition=mutant))
    )


@pytest.mark.parametrize("mutant", TRANSPORT_MUTANTS)
def test_a_transport_that_promises_less_is_seen(mutant: type[FakeTransport]) -> None:
    assert any(
        TRANSPORT_MUTANTS[mutant] in wrong
        for seed in range(SEEDS_MAX)
        for wrong in wrongs(World(seed, transport=mutant))
    )


def test_with_all_safeguards_the_same_seeds_are_sound() -> None:
    for seed in range(100):
        assert list(wrongs(World(seed))) == []
