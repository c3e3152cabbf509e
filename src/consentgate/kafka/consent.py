"""The consent topic followed into tables, and the barrier that tells when a table is fresh."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.core.consent import ConsentChange, ConsentTable, Holding, holding
from consentgate.core.decode import ConsentDecoder
from consentgate.core.model import UNREADABLE, ConsentState
from consentgate.core.partition import Changes
from consentgate.kafka.decoded import hand_on_decoded_records
from consentgate.kafka.reader import read_range
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.unanswered import closing_unanswered
from consentgate.kafka.unreadable import UNREADABLE_ERRORS, UnreadableRecord, read_around

log = logging.getLogger(__name__)

POLL_MS = 50
"""How long one poll waits. A position that moves over markers alone is seen after that."""

RECORDS_MAX = 4_096
"""How many records are applied before the event loop gets its turn."""

CHANGES_MAX = 20_000
"""How many records `read_changes` reads at once."""

GRACE_SECONDS = 60.0
"""How long a partition that nobody needs is followed on, so that a rebalance finds it ready."""


class ConsentTopicWentBack(Exception):
    """The consent topic ends before what was read of it: it was truncated or made anew."""


class ConsentView:
    """Follows consent partitions, each into the table that its content is judged against.

    One task, `run`, reads; everybody else looks at the tables and waits for their frontier.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        decode: ConsentDecoder,
        on_unreadable: Callable[[str], None],
        on_misplaced: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._decode = decode
        self._on_unreadable = on_unreadable
        self._on_misplaced = on_misplaced
        self._is_misplaced: Callable[[int, bytes], bool] = lambda partition, subject: False
        common = {"group_id": None, "enable_auto_commit": False, "auto_offset_reset": "none"}
        self._reader = AIOKafkaConsumer(
            isolation_level="read_committed", **common, **settings.client, **settings.consumer
        )
        # The end offset that such a consumer reads is the high watermark. It has a connection of
        # its own, because a request behind a long-polling fetch waits until the fetch is answered.
        self._watermarks = AIOKafkaConsumer(
            isolation_level="read_uncommitted", **common, **settings.client
        )
        self._tables: dict[int, ConsentTable] = {}
        self._following: set[int] = set()
        self._followers: Counter[int] = Counter()
        self._unneeded_since: dict[int, float] = {}
        self._waiters: list[tuple[ConsentTable, Mapping[int, int], asyncio.Future[None]]] = []
        self._to_reset: list[ConsentTable] = []
        self._listeners: dict[int, list[Callable[[ConsentChange], None]]] = {}

    async def start(self, is_misplaced: Callable[[int, bytes], bool]) -> None:
        """Connect; `is_misplaced` tells by partition and subject what lies in a wrong place."""
        self._is_misplaced = is_misplaced
        await self._reader.start()
        hand_on_decoded_records(self._reader)
        await self._watermarks.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._reader.stop()
        await self._watermarks.stop()

    def follow(self, partitions: Iterable[int]) -> ConsentTable:
        """The table of just these partitions; it is kept up to date from now on."""
        wanted = sorted(partitions)
        table = self._tables.get(wanted[0])
        if table is None:  # An empty table is false, too.
            table = ConsentTable(wanted)
        assert sorted(table.frontier) == wanted, "a consent partition belongs to one table"
        for partition in wanted:
            self._tables[partition] = table
            self._followers[partition] += 1
            self._unneeded_since.pop(partition, None)
        return table

    def release(self, table: ConsentTable) -> None:
        """Undo one `follow`; a table that nobody needs any more is dropped after a while."""
        now = time.monotonic()  # One for all, so that a table is dropped whole.
        for partition in table.frontier:
            self._followers[partition] -= 1
            if self._followers[partition] == 0:
                self._unneeded_since[partition] = now

    def listen(self, table: ConsentTable, listener: Callable[[ConsentChange], None]) -> None:
        """Call `listener` for each later change of what the table holds."""
        self.unlisten(table, listener)
        for partition in table.frontier:
            self._listeners.setdefault(partition, []).append(listener)

    def unlisten(self, table: ConsentTable, listener: Callable[[ConsentChange], None]) -> None:
        """Undo `listen`."""
        for partition in table.frontier:
            with contextlib.suppress(ValueError):
                self._listeners.get(partition, []).remove(listener)

    def subjects(self) -> int:
        """Number of subjects in all tables."""
        return sum(len(table) for table in self._distinct_tables())

    def scattered(self) -> int:
        """Number of subjects that several partitions hold, and that are therefore withheld."""
        return sum(table.scattered() for table in self._distinct_tables())

    def _distinct_tables(self) -> Iterable[ConsentTable]:
        return {id(table): table for table in self._tables.values()}.values()

    def is_broken(self) -> bool:
        """Whether the task has ended that fetches for the client."""
        task = self._reader._fetcher._fetch_task
        return bool(task.done() and (task.cancelled() or task.exception() is not None))

    async def high_watermarks(self, table: ConsentTable) -> dict[int, int]:
        """The offsets after the last appended records of the table's partitions, as of now.

        Raises:
            ConsentTopicWentBack: if one lies below what was applied; the table is thrown away.
        """
        # What was applied by now; the table may go beyond the answer while that is on its way.
        applied = dict(table.frontier)
        async with closing_unanswered(self._watermarks._client):
            ends = await self._watermarks.end_offsets([self._at(p) for p in applied])
        high = {tp.partition: offset for tp, offset in ends.items()}
        if any(high[p] < frontier for p, frontier in applied.items()):
            self._to_reset.append(table)
            raise ConsentTopicWentBack(
                f"the consent topic {self._topic} ends before what was read of it"
            )
        return high

    async def await_frontier(self, table: ConsentTable, high: Mapping[int, int]) -> None:
        """Return as soon as the table covers the offsets."""
        # Asked again after each waking: the table may have been reset in between.
        while not table.covers(high):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiter = (table, high, future)
            self._waiters.append(waiter)
            try:
                await future
            finally:
                self._waiters.remove(waiter)

    async def read_changes(
        self, table: ConsentTable, since: Mapping[int, int], until: Mapping[int, int]
    ) -> Changes:
        """The consent records from `since` on, below `until`, at most `CHANGES_MAX` of them.

        What they left is judged by the record alone, except where the table says that the subject
        is unreadable, because several partitions hold it.
        """
        changes: list[ConsentChange] = []
        frontier = dict(since)
        for partition in until:
            left = CHANGES_MAX - len(changes)
            if since[partition] == until[partition] or left <= 0:
                continue
            offsets = (since[partition], until[partition])
            records, frontier[partition] = await read_range(
                self._settings, self._at(partition), offsets, left
            )
            for record in records:
                if record.key is not None:
                    held = table.holdings.get(record.key)
                    if held is None or held.state is not UNREADABLE:
                        state, _ = self._read(record)
                        held = None if state is None else holding(partition, state)
                    changes.append(_change(partition, record, held))
        return Changes(changes, frontier)

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            try:
                await self._follow_once()
            except Exception as error:
                # Whatever failed, what was fetched and not applied is fetched again.
                log.warning("following the consent topic failed: %s", type(error).__name__)
                await asyncio.sleep(0.1)
                self._following = set()

    async def _follow_once(self) -> None:
        self._drop_unneeded()
        self._reset_tables()
        if set(self._tables) != self._following:
            await self._assign()
        if not self._following:
            await asyncio.sleep(POLL_MS / 1000)
            return
        try:
            fetched = await self._reader.getmany(timeout_ms=POLL_MS, max_records=RECORDS_MAX)
        except UNREADABLE_ERRORS:
            fetched = await self._read_around()
        positions = {p: await self._reader.position(self._at(p)) for p in self._following}
        for partition, position in positions.items():
            self._apply(partition, fetched.get(self._at(partition), ()), position)
        self._wake()

    async def _assign(self) -> None:
        partitions = [self._at(p) for p in self._tables]
        self._reader.assign(partitions)
        async with closing_unanswered(self._watermarks._client):
            starts = await self._watermarks.beginning_offsets(partitions)
        for tp in partitions:
            table = self._tables[tp.partition]
            if table.frontier[tp.partition] < starts[tp]:
                table.advance(tp.partition, starts[tp])
            self._reader.seek(tp, table.frontier[tp.partition])
        self._following = {tp.partition for tp in partitions}

    def _apply(self, partition: int, records: Iterable[Any], frontier: int) -> None:
        """Apply and advance in one step: nobody may see a state that is ahead of its frontier."""
        table = self._tables[partition]
        listeners = self._listeners.get(partition, ())
        for record in records:
            state, problem = self._read(record)
            if problem is not None:
                self._on_unreadable(problem)
            if record.key is None:
                continue
            if self._is_misplaced(partition, record.key):
                self._on_misplaced()
            table.apply(partition, record.key, state)
            if listeners:
                change = _change(partition, record, table.holdings.get(record.key))
                for listener in listeners:
                    listener(change)
        table.advance(partition, frontier)

    def _read(self, record: Any) -> tuple[ConsentState | None, str | None]:
        if isinstance(record, UnreadableRecord):
            return UNREADABLE, "headers"
        return self._decode(record.key, record.value)

    def _wake(self) -> None:
        for table, high, future in self._waiters:
            if table.covers(high) and not future.done():
                future.set_result(None)

    async def _read_around(self) -> dict[TopicPartition, list[Any]]:
        """What the partitions hold from their frontiers on, read leniently.

        A poll that fails may have taken records of other partitions with it, so that all of them
        are read again.
        """
        fetched = {}
        for partition in self._following:
            tp = self._at(partition)
            frontier = self._tables[partition].frontier[partition]
            fetched[tp], next_offset = await read_around(self._reader, tp, frontier)
            self._reader.seek(tp, next_offset)
        return fetched

    def _reset_tables(self) -> None:
        # Only here, in the task that applies records, so that nothing fetched before the reset is
        # applied after it.
        for table in self._to_reset:
            table.reset()
            self._following -= set(table.frontier)
        self._to_reset.clear()

    def _drop_unneeded(self) -> None:
        now = time.monotonic()
        for partition, since in list(self._unneeded_since.items()):
            if now - since > GRACE_SECONDS:
                del self._unneeded_since[partition]
                del self._tables[partition]

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)


def _change(partition: int, record: Any, after: Holding | None) -> ConsentChange:
    return ConsentChange(partition, record.offset, record.timestamp, record.key, after)
