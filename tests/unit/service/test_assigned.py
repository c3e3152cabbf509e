"""How a partition says that it is doing, over a transport that only pretends."""

import asyncio
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from consentgate.core.consent import ConsentTable
from consentgate.core.decide import Limits
from consentgate.core.decode import ContentFields, content_decoder
from consentgate.core.gate import Batch, Gate
from consentgate.core.ledger import GENESIS, Chain
from consentgate.core.partition import (
    Commit,
    Fetch,
    Phase,
    Position,
    ReadClock,
    ReadHighWatermarks,
    ReadPosition,
    Send,
    Step,
    StepFailed,
    WatchConsent,
)
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.kafka.clock import read_clock
from consentgate.service import assigned, progress
from consentgate.service.assigned import AssignedPartition


class Pretended:
    """A transport that holds up the world at every fetch until it is let go."""

    fresh_at_monotonic = 0.0
    REPLIES: ClassVar[dict[type[Step[Any]], Any]] = {
        ReadPosition: Position(0, GENESIS, {0: 0}),
        ReadHighWatermarks: {0: 0},
        WatchConsent: {0: 0},
        Commit: False,
    }

    def __init__(self) -> None:
        self.high = 0
        self.fetched: asyncio.Queue[Batch] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.commits = True

    async def perform(self, step: Step[Any]) -> Any:
        if isinstance(step, Fetch):
            self.asked.set()
            return await self.fetched.get()
        if isinstance(step, Send) and not self.commits:
            raise StepFailed("no")
        if isinstance(step, ReadClock):
            return read_clock()
        return self.REPLIES.get(type(step))

    def close(self) -> None:
        pass

    async def fetch(self, first: int, end: int) -> None:
        """Have the next fetch come to these offsets, and wait for the one after it."""
        self.asked.clear()
        self.fetched.put_nowait(Batch(first, end, ()))
        await self.asked.wait()


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return 1_726_826_400.0 + self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (assigned, progress):
        monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    made = Pretended()
    monkeypatch.setattr(assigned, "KafkaTransport", lambda *_: made)
    return made


@pytest.fixture
def partition(clock: Clock, pretended: Pretended) -> AssignedPartition:
    policy = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_OUT),))
    decode = content_decoder(ContentFields(), 64)
    chain = Chain("g", "content", 3)
    gate = Gate(chain, "consent", ConsentTable([0]), policy, decode, Limits(), True)
    source = SimpleNamespace(high_watermark=lambda _: pretended.high)
    clients: Any = SimpleNamespace(source=source)
    return AssignedPartition(gate, clients, 5_000, lambda _: None, lambda *_: None)


async def nobody_waits() -> None:
    """Gives way to nobody."""


async def test_after_a_fetch_others_go_first_and_then_it_goes_on(
    partition: AssignedPartition, pretended: Pretended
) -> None:
    asked, let_go = asyncio.Event(), asyncio.Event()

    async def give_way() -> None:
        asked.set()
        await let_go.wait()

    life = asyncio.create_task(partition.live(give_way))
    await pretended.asked.wait()
    fetching = asyncio.create_task(pretended.fetch(0, 1))
    await asked.wait()
    assert not fetching.done()
    let_go.set()
    await fetching
    life.cancel()
    await asyncio.wait([life])


async def test_an_idle_partition_is_not_stuck_when_something_comes(
    partition: AssignedPartition, pretended: Pretended, clock: Clock
) -> None:
    life = asyncio.create_task(partition.live(nobody_waits))
    await pretended.asked.wait()
    for _ in range(10):
        clock.seconds += 60
        await pretended.fetch(0, 0)
    pretended.high = 5
    clock.seconds += 2
    # Ten minutes after the last commit, but two seconds after there was nothing to commit.
    assert partition.gauges().stuck_seconds == 2
    life.cancel()
    await asyncio.wait([life])


async def test_a_partition_that_lags_and_commits_nothing_is_stuck_until_it_commits(
    partition: AssignedPartition, pretended: Pretended, clock: Clock
) -> None:
    pretended.high, pretended.commits = 5, False
    life = asyncio.create_task(partition.live(nobody_waits))
    await pretended.asked.wait()
    for _ in range(2):
        clock.seconds += 45
        # A fetch alone, though it succeeds, is no progress.
        await pretended.fetch(0, 5)
    assert partition.gauges().stuck_seconds == 90
    pretended.commits, pretended.high = True, 6
    await pretended.fetch(0, 5)
    gauges = partition.gauges()
    assert (gauges.lag_records, gauges.stuck_seconds) == (1, 0)
    assert gauges.phase is Phase.READY
    life.cancel()
    await asyncio.wait([life])


async def test_nothing_is_late_before_anything_was_decided(
    partition: AssignedPartition, pretended: Pretended
) -> None:
    pretended.high = 5
    gauges = partition.gauges()
    assert (gauges.lag_records, gauges.lag_seconds) == (5, 0)
    assert gauges.phase is Phase.FENCING
    assert gauges.consent_uncovered_seconds == 0
