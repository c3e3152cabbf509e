"""What stands around a transport: whoever else appends, and whoever reads what was committed."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Protocol

from consentgate.core.consent import ConsentChange
from consentgate.core.gate import Batch, BatchOutcome, Gate
from consentgate.core.partition import (
    AwaitFrontier,
    Commit,
    Fence,
    Fetch,
    Position,
    ReadClock,
    ReadHighWatermarks,
    ReadPosition,
    Seek,
    Send,
    SendOffset,
    Step,
    Transport,
)
from harness import Sent, post, until

CONSENT_PARTITIONS = 2

FETCH_WAIT_MS = 100

Topic = Literal["content", "consent", "decisions"]


class OpenTransaction(Protocol):
    """A transaction of some other application's; what has returned was acknowledged."""

    async def append(self, sent: Sent, partition: int = 0) -> int:
        """Append a record; its offset."""

    async def commit(self) -> None: ...

    async def abort(self) -> None: ...


class Bench(ABC):
    """One content partition, two consent partitions, and the group that works on them."""

    gate: Gate
    """Judges against the table that all transports of the bench share."""

    @abstractmethod
    def transport(self, on_consent_change: Callable[[ConsentChange], None]) -> Transport:
        """Another pair of hands for the partition."""

    @abstractmethod
    async def append(self, topic: Topic, sent: Sent, partition: int = 0) -> int:
        """Append a record and await the acknowledgement; its offset."""

    @abstractmethod
    async def begin(self, topic: Topic) -> OpenTransaction:
        """A transaction of another application."""

    @abstractmethod
    async def expire_content(self, before: int) -> None:
        """Remove the content below an offset."""

    @abstractmethod
    async def recreate_consent(self) -> None:
        """Delete the consent topic and make it anew, empty."""

    @abstractmethod
    async def committed(self, topic: Literal["training", "decisions"]) -> list[bytes | None]:
        """The values in an output topic that readers of committed records get."""

    def hand(self) -> "Hand":
        """A transport in the hands of a test."""
        return Hand(self)

    async def post(self, *names: str) -> None:
        """Append content by somebody of whom nothing is known."""
        for name in names:
            await self.append("content", post("anna", name))


class Hand:
    """A transport, and what its partition would know."""

    def __init__(self, bench: Bench) -> None:
        self._gate = bench.gate
        self.changes: list[ConsentChange] = []
        self.position: Position | None = None
        self._transport = bench.transport(self.changes.append)

    async def perform(self, step: Step[Any]) -> Any:
        """The reply to a step."""
        return await self._transport.perform(step)

    async def take_over(self) -> Position:
        """Fence, and read the position."""
        await self.perform(Fence())
        self.position = await self.perform(ReadPosition())
        return self.position

    async def fresh(self) -> None:
        """Wait until the table covers the high watermarks of now."""
        high_watermarks = await self.perform(ReadHighWatermarks())

        async def is_covered() -> bool:
            return await self.perform(AwaitFrontier(high_watermarks)) is None

        await until(is_covered, "the table is fresh")

    async def fetch(self, first: int, next_offset: int, records_max: int = 100) -> Batch:
        """All content from the place of the last seek up to an offset, in several polls."""
        records: list[Any] = []
        reached = first

        async def arrived() -> bool:
            nonlocal reached
            batch = await self.perform(Fetch(reached, records_max, FETCH_WAIT_MS))
            assert batch.first == reached
            assert len(batch.records) <= records_max
            assert all(reached <= record.offset < batch.next_offset for record in batch.records)
            records.extend(batch.records)
            reached = batch.next_offset
            return reached >= next_offset

        await until(arrived, f"content up to {next_offset} is fetched")
        return Batch(first, reached, records)

    async def outcome(self, next_offset: int) -> BatchOutcome:
        """What is to be committed for the content from the position up to an offset."""
        assert self.position is not None, "take over first"
        await self.perform(Seek(self.position.next_offset))
        batch = await self.fetch(self.position.next_offset, next_offset)
        await self.fresh()
        now = await self.perform(ReadClock())
        return self._gate.judge(batch, self.position.previous, now.unix_ms)

    async def commit(self, outcome: BatchOutcome) -> None:
        """The outcome, in a transaction of its own."""
        for step in (Send(outcome), SendOffset(outcome), Commit()):
            await self.perform(step)


def after(outcome: BatchOutcome) -> Position:
    """The position once the outcome has been committed."""
    return Position(outcome.batch.next_offset, outcome.entry.hash, outcome.frontier)
