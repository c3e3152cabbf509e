"""Performs the steps of one partition's life on the fake broker.

It is a coroutine like the one on Kafka, and gives up its turn wherever a request or a reply is on
its way. Whoever drives it by hand may leave it there, for a while or for ever.
"""

import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from broker import Broker, Fenced, GroupOffset, LogRecord, Payload
from consentgate.core.consent import ConsentChange, ConsentTable, Holding, holding
from consentgate.core.decode import ConsentFields, consent_decoder
from consentgate.core.gate import Batch, BatchOutcome
from consentgate.core.ledger import GENESIS, Chain
from consentgate.core.partition import (
    Abort,
    AwaitFrontier,
    Changes,
    Commit,
    Fence,
    Fetch,
    Moment,
    Pause,
    Position,
    ReadChanges,
    ReadClock,
    ReadHighWatermarks,
    ReadPosition,
    Retire,
    Seek,
    Send,
    SendOffset,
    Step,
    StepFailed,
    Transport,
    WatchConsent,
)

POLL_RECORDS_MAX = 8
CHANGES_MAX = 5
"""How many offsets of a consent partition one reading of changes goes on by, at most."""

IMPATIENCE = 0.2
"""How likely the time runs out at each turn that the consent view is behind."""

WRITES = Send | SendOffset | Commit | Abort

Performing = Coroutine[Any, Any, Any]

_DECODE_CONSENT = consent_decoder(ConsentFields(), "ai-training", 64)


@types.coroutine
def turn() -> Generator[None, None, None]:
    """Let others go on."""
    yield


@dataclass(slots=True)
class LossRates:
    """How likely a request or a reply is lost, and how likely a write arrives late."""

    lost: float
    late: float


class FakeView:
    """One process's tables of the consent partitions; it sees what `follow` has applied."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._tables: dict[int, ConsentTable] = {}
        self._listeners: dict[int, list[Callable[[ConsentChange], None]]] = {}

    @property
    def partitions(self) -> list[int]:
        """The partitions that are followed."""
        return list(self._tables)

    def table(self, partitions: list[int]) -> ConsentTable:
        """The table of just these partitions."""
        table = self._tables.get(partitions[0])
        if table is None:
            table = ConsentTable(partitions)
            self._tables.update(dict.fromkeys(partitions, table))
        return table

    def listen(self, table: ConsentTable, listener: Callable[[ConsentChange], None]) -> None:
        """Call `listener` for each later change of what the table holds, until it is reset."""
        for partition in table.frontier:
            self._listeners.setdefault(partition, []).append(listener)

    def unlisten(self, table: ConsentTable, listener: Callable[[ConsentChange], None]) -> None:
        """Undo `listen`."""
        for partition in table.frontier:
            listeners = self._listeners.get(partition, [])
            if listener in listeners:
                listeners.remove(listener)

    def is_listening(self, table: ConsentTable, listener: Callable[[ConsentChange], None]) -> bool:
        """Whether the listener has heard of each change since it was added."""
        return all(listener in self._listeners.get(partition, ()) for partition in table.frontier)

    def follow(self, partition: int, offsets_max: int) -> None:
        """Apply what stands at the next offsets of one partition."""
        table, log = self._tables[partition], self._broker.consent[partition]
        start = table.frontier[partition]
        # Of a topic that was made anew nothing is read before the table has been thrown away.
        end = max(start, min(log.stable, start + offsets_max))
        for record in log.committed(start, end):
            assert record.key is not None, "consent has keys"
            state, _ = _DECODE_CONSENT(record.key, record.value)
            table.apply(partition, record.key, state)
            change = _change(partition, record, table.holdings.get(record.key))
            for listener in list(self._listeners.get(partition, ())):
                listener(change)
        table.advance(partition, end)

    def high_watermarks(self, table: ConsentTable) -> dict[int, int]:
        """The offsets after the last appended records of the table's partitions, as of now."""
        high = {p: self._broker.consent[p].high_watermark for p in table.frontier}
        if any(high[p] < frontier for p, frontier in table.frontier.items()):
            table.reset()
            # Whoever listens would miss the changes up to the reset.
            for partition in table.frontier:
                self._listeners.pop(partition, None)
            raise StepFailed("the consent topic ends before what was read of it")
        return high

    def changes(self, since: Mapping[int, int], until: Mapping[int, int]) -> list[ConsentChange]:
        """The changes between two frontiers."""
        found = []
        for partition, end in until.items():
            log = self._broker.consent[partition]
            if end > log.stable:
                raise StepFailed("the consent topic ends before the changes that were asked for")
            for record in log.committed(since[partition], end):
                assert record.key is not None, "consent has keys"
                state, _ = _DECODE_CONSENT(record.key, record.value)
                held = None if state is None else holding(partition, state)
                found.append(_change(partition, record, held))
        return found


class FakeTransport(Transport):
    """The hands of one `Partition` on the fake broker; `chance` rules what Kafka leaves open."""

    def __init__(
        self,
        broker: Broker,
        view: FakeView,
        chain: Chain,
        table: ConsentTable,
        on_consent_change: Callable[[ConsentChange], None],
        *,
        chance: Random,
    ) -> None:
        self._broker = broker
        self._view = view
        self._partition = chain.partition
        self._table = table
        self._on_consent_change = on_consent_change
        self._chance = chance
        self._id = broker.transactional_id(chain.key.decode())
        self._epoch: int | None = None
        self._fetch_from: int | None = None
        self._ledger_offset = -1
        self._is_watching = False

    async def perform(self, step: Step[Any]) -> Any:
        try:
            return await self._perform(step)
        except Fenced:
            raise StepFailed("fenced") from None

    async def _perform(self, step: Step[Any]) -> Any:  # noqa: C901, PLR0911, PLR0912
        match step:
            case ReadClock():
                return Moment(self._broker.now_ms, self._broker.now_ms)
            case Fetch(first, records_max, _):
                return self._fetch(first, records_max)
            case ReadHighWatermarks():
                return self._high_watermarks()
            case AwaitFrontier(high_watermarks):
                return await self._await_frontier(high_watermarks)
            case WatchConsent():
                self._view.listen(self._table, self._on_consent_change)
                self._is_watching = True
                return dict(self._table.frontier)
            case ReadChanges(since, until):
                return self._changes(since, until)
            case Send() | SendOffset() | Commit() | Abort():
                return await self._write(step)
            case Fence():
                return await self._fence()
            case ReadPosition():
                return self._position()
            case Seek(offset):
                self._fetch_from = max(offset, self._broker.content[self._partition].start)
            case Retire():
                self._epoch = None
            case Pause():
                pass
            case _:
                raise AssertionError(f"no such step: {step}")
        return None

    def close(self) -> None:
        """Watch the consent no longer."""
        self._view.unlisten(self._table, self._on_consent_change)
        self._is_watching = False

    def _high_watermarks(self) -> dict[int, int]:
        if self._is_watching and not self._view.is_listening(self._table, self._on_consent_change):
            raise StepFailed("the consent table was thrown away and is read anew")
        return self._view.high_watermarks(self._table)

    async def _fence(self) -> None:
        self._epoch = None
        self.close()
        await turn()
        epoch = self._id.fence()
        await turn()
        self._epoch = epoch

    def _position(self) -> Position:
        entry = self._broker.last_entry(self._partition)
        if entry is None:
            return Position(self._broker.content[self._partition].start, GENESIS, None)
        frontier = {int(p): offset for p, offset in entry.consent.items()}
        return Position(entry.source.last + 1, entry.hash, frontier)

    def _fetch(self, first: int, records_max: int) -> Batch:
        log, start = self._broker.content[self._partition], self._fetch_from
        if start is None:
            raise StepFailed("nothing is fetched before the first seek")
        records = log.committed(start)
        # A poll brings what has arrived so far, and may come to stand before offsets that hold
        # no record, or behind them.
        arrived = self._chance.randint(0, POLL_RECORDS_MAX)
        if arrived < len(records) or records_max < len(records):
            records = records[: min(arrived, records_max)]
            self._fetch_from = records[-1].offset + 1 if records else start
        else:
            self._fetch_from = max(start, log.stable)
        if self._fetch_from < first or (records and records[0].offset < first):
            raise StepFailed("the fetch began before the offset that was asked for")
        return Batch(first, self._fetch_from, records)

    async def _await_frontier(self, high_watermarks: Mapping[int, int]) -> str | None:
        while not self._table.covers(high_watermarks):
            if self._chance.random() < IMPATIENCE:
                return "the consent view is behind"
            await turn()
        return None

    def _changes(self, since: Mapping[int, int], until: Mapping[int, int]) -> Changes:
        frontier = {
            p: min(until[p], since[p] + self._chance.randint(1, CHANGES_MAX)) for p in until
        }
        return Changes(self._view.changes(since, frontier), frontier)

    async def _write(self, step: WRITES) -> bool | None:
        # The request carries the epoch of the producer that sent it, whenever it arrives.
        epoch = self._epoch
        if epoch is None:
            raise StepFailed("a transaction needs a fenced producer")
        await turn()
        match step:
            case Send(outcome):
                await self._send(epoch, outcome)
            case SendOffset(outcome):
                offset = GroupOffset(outcome.batch.next_offset, self._ledger_offset)
                self._id.open(epoch).offsets[self._partition] = offset
            case Commit() | Abort():
                self._id.end(epoch, commit=isinstance(step, Commit))
                await turn()
                return False
        return None

    async def _send(self, epoch: int, outcome: BatchOutcome) -> None:
        # One topic after the other: whoever is cut short here has written only a part.
        for topic, log in self._broker.outputs[self._partition].items():
            for output in getattr(outcome, topic):
                self._id.open(epoch).append(log, Payload(*output))
            await turn()
        entry = Payload(self._broker.now_ms, outcome.entry.key, outcome.entry.value)
        self._ledger_offset = self._id.open(epoch).append(self._broker.decisions, entry)


class LossyTransport(Transport):
    """Loses requests and replies, and leaves some requests on their way with nobody waiting."""

    def __init__(
        self, transport: Transport, chance: Random, rates: LossRates, on_their_way: list[Performing]
    ) -> None:
        self._transport = transport
        self._chance = chance
        self._rates = rates
        self._on_their_way = on_their_way

    async def perform(self, step: Step[Any]) -> Any:
        if isinstance(step, ReadClock | Pause | Retire):
            return await self._transport.perform(step)
        luck = self._chance.random()
        if luck < self._rates.lost:
            raise StepFailed("lost request", timed_out=luck < self._rates.lost / 2)
        if isinstance(step, WRITES) and self._chance.random() < self._rates.late:
            performing = self._transport.perform(step)
            performing.send(None)  # Up to where the request has been sent.
            self._on_their_way.append(performing)
            raise StepFailed(f"{type(step).__name__} took too long", timed_out=True)
        reply = await self._transport.perform(step)
        if self._chance.random() < self._rates.lost:
            if isinstance(step, Commit | Abort) and self._chance.random() < 0.5:
                return True  # It was done, but the producer must not be used again.
            raise StepFailed("lost reply", timed_out=True)
        return reply


def _change(partition: int, record: LogRecord, after: Holding | None) -> ConsentChange:
    assert record.key is not None, "consent has keys"
    return ConsentChange(partition, record.offset, record.timestamp, record.key, after)
