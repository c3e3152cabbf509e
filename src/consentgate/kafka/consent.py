"""The consent topic followed into tables, and the barrier that tells when a table is fresh."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from consentgate.core.alike import decoding_alike_once
from consentgate.core.consent import ConsentChange, ConsentTable, Holding, holding
from consentgate.core.decode import ConsentDecoder
from consentgate.core.model import UNREADABLE, ConsentState
from consentgate.core.partition import Changes, Moment, StepFailed
from consentgate.core.snapshot import Head, SnapshotRefused, sample_of
from consentgate.kafka.clock import read_clock
from consentgate.kafka.decoded import hand_on_decoded_records
from consentgate.kafka.followed import FollowedTable, Listener
from consentgate.kafka.reader import read_range
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.snapshots import Snapshots
from consentgate.kafka.unanswered import closing_unanswered
from consentgate.kafka.unreadable import (
    UNREADABLE_ERRORS,
    UnreadableRecord,
    placed,
    read_around,
    read_state,
)

log = logging.getLogger(__name__)

POLL_MS = 50
"""How long one poll waits. A position that moves over markers alone is seen after that."""

RECORDS_MAX = 4_096
"""How many records are applied before the event loop gets its turn."""

CHANGES_MAX = 20_000
"""How many records `read_changes` reads at once."""

GRACE_MS = 60_000
"""How long a partition that nobody needs is followed on, so that a rebalance finds it ready."""


KEEP_SECONDS = 300.0
"""How often the tables that have changed are written to the disk."""


Misplaced = Callable[[int, Sequence[bytes]], Collection[bytes]]
"""Those subjects of a consent partition's records whose place is another partition."""


class Behind(NamedTuple):
    """Why a table is behind, for people, and whether another reader would be so, too."""

    why: str
    is_anybodys: bool


class ConsentTableLost(Exception):
    """The table cannot be trusted any more; it is thrown away and read anew."""


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
        self._decode = decoding_alike_once(decode)
        self._on_unreadable = on_unreadable
        self._on_misplaced = on_misplaced
        self._misplaced: Misplaced = lambda partition, subjects: ()
        common = {"group_id": None, "enable_auto_commit": False, "auto_offset_reset": "none"}
        self._reader = AIOKafkaConsumer(
            isolation_level="read_committed", **common, **settings.client, **settings.consumer
        )
        # The end offset that such a consumer reads is the high watermark. It has a connection of
        # its own, because a request behind a long-polling fetch waits until the fetch is answered.
        self._watermarks = AIOKafkaConsumer(
            isolation_level="read_uncommitted", **common, **settings.client
        )
        self._behind_ms_max = 0
        self._snapshots: Snapshots | None = None
        self._followed: dict[int, FollowedTable] = {}
        self._following: set[int] = set()
        self._to_reset: list[FollowedTable] = []

    async def start(
        self,
        misplaced: Misplaced,
        deletions_kept_ms: int,
        snapshots: Snapshots | None = None,
    ) -> None:
        """Connect.

        `misplaced` picks the subjects that lie in a wrong place; a deletion stays in the topic for
        `deletions_kept_ms`. With `snapshots`, tables begin with these.
        """
        self._snapshots = snapshots
        self._misplaced = misplaced
        # Half of it, because the time counts from a compaction that nobody here sees.
        self._behind_ms_max = deletions_kept_ms // 2
        await self._reader.start()
        hand_on_decoded_records(self._reader)
        await self._watermarks.start()

    async def stop(self) -> None:
        """Disconnect."""
        for followed in self._distinct():
            if followed.restoring is not None:
                followed.restoring.cancel()
        if self._snapshots is not None:
            self._snapshots.close()
        await self._reader.stop()
        await self._watermarks.stop()

    def follow(self, partitions: Iterable[int]) -> ConsentTable:
        """The table of just these partitions; it is kept up to date from now on."""
        wanted = sorted(partitions)
        followed = self._followed.get(wanted[0])
        if followed is None:
            followed = FollowedTable(ConsentTable(wanted), whole_at=read_clock())
            if self._snapshots is not None:
                restoring = self._restore(followed, self._snapshots)
                followed.restoring = asyncio.create_task(restoring)
        assert sorted(followed.table.frontier) == wanted, "a consent partition has one table"
        followed.followers += 1
        followed.unneeded_since = None
        self._followed.update(dict.fromkeys(wanted, followed))
        return followed.table

    def release(self, table: ConsentTable) -> None:
        """Undo one `follow`; a table that nobody needs any more is dropped after a while."""
        followed = self._of(table)
        followed.followers -= 1
        if followed.followers == 0:
            followed.unneeded_since = read_clock()

    def listen(self, table: ConsentTable, listener: Listener) -> None:
        """Call `listener` for each later change of what the table holds, until it is reset."""
        self._of(table).listeners.append(listener)

    def unlisten(self, table: ConsentTable, listener: Listener) -> None:
        """Undo `listen`."""
        with contextlib.suppress(ValueError):
            self._of(table).listeners.remove(listener)

    def is_listening(self, table: ConsentTable, listener: Listener) -> bool:
        """Whether the listener has heard of each change since it was added."""
        return listener in self._of(table).listeners

    def subjects(self) -> int:
        """Number of subjects in all tables."""
        return sum(len(followed.table) for followed in self._distinct())

    def scattered(self) -> int:
        """Number of subjects that several partitions hold, and that are therefore withheld."""
        return sum(followed.table.scattered() for followed in self._distinct())

    def is_broken(self) -> bool:
        """Whether the task has ended that fetches for the client."""
        return bool(self._reader._fetcher._fetch_task.done())

    async def high_watermarks(self, table: ConsentTable) -> dict[int, int]:
        """The offsets after the last appended records of the table's partitions, as of now.

        Raises:
            ConsentTableLost: if one lies below what was applied, or if the table was not whole for
                so long that a deletion may have been missed.
        """
        followed, asked_at = self._of(table), read_clock()
        # What was applied by now; the table may go beyond the answer while that is on its way.
        applied = dict(table.frontier)
        async with closing_unanswered(self._watermarks._client):
            ends = await self._watermarks.end_offsets([self._at(p) for p in applied])
        high = {tp.partition: offset for tp, offset in ends.items()}
        if any(high[p] < frontier for p, frontier in applied.items()):
            self._to_reset.append(followed)
            raise ConsentTableLost(
                f"the consent topic {self._topic} ends before what was read of it: "
                "it was truncated or made anew"
            )
        behind_ms = followed.behind_ms(read_clock())
        if behind_ms > self._behind_ms_max:
            self._to_reset.append(followed)
            raise ConsentTableLost(
                f"the consent topic {self._topic} was not read to its end for "
                f"{behind_ms / 1000:.0f} s, and deletions are kept for "
                f"{self._behind_ms_max / 1000:.0f} s with safety: some may have been missed"
            )
        followed.ask(asked_at, high)
        return high

    async def await_frontier(self, table: ConsentTable, high: Mapping[int, int]) -> None:
        """Return as soon as the table covers the offsets."""
        await self._of(table).covering(high)

    async def why_behind(self, table: ConsentTable, high: Mapping[int, int]) -> Behind:
        """Why the table does not cover these offsets."""
        behind = [p for p, offset in high.items() if table.frontier[p] < offset]
        if not self._of(table).is_restored():
            return Behind(f"{self._names(behind)}: the snapshot is being read", is_anybodys=True)
        # The end for readers of committed records is the last stable offset.
        stable = await self._reader.end_offsets([self._at(p) for p in behind])
        hidden = [p for p in behind if table.frontier[p] >= stable[self._at(p)]]
        texts = (
            hidden_text(self._at(p), stable[self._at(p)], high[p])
            if p in hidden
            else f"{self._topic}-{p}: read up to offset {table.frontier[p]} of {high[p]}"
            for p in behind
        )
        return Behind("; ".join(texts), is_anybodys=hidden == behind)

    async def read_changes(
        self, table: ConsentTable, since: Mapping[int, int], until: Mapping[int, int]
    ) -> Changes:
        """The consent records from `since` on, below `until`, at most `CHANGES_MAX` of them.

        What they left is judged by the record alone, except where the table says that the subject
        is unreadable, because several partitions hold it.

        Raises:
            StepFailed: if a partition ends below `until`.
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
            if frontier[partition] < until[partition] and len(records) < left:
                # Nobody may take what is gone for a time without changes.
                raise StepFailed(
                    f"the consent topic {self._topic} ends before the changes that are to be read"
                )
            for record in records:
                if record.key is not None:
                    held = table.holdings.get(record.key)
                    if held is None or held.state is not UNREADABLE:
                        state, _ = read_state(self._decode, record)
                        held = None if state is None else holding(partition, state)
                    changes.append(_change(partition, record, held))
        return Changes(changes, frontier)

    async def keep(self) -> None:
        """Write snapshots of what has changed, again and again, and remove what is too old."""
        while self._snapshots is not None:
            await asyncio.sleep(KEEP_SECONDS)
            await self.save()
            await self._snapshots.tidy()

    async def save(self) -> None:
        """Write a snapshot of each table that has changed, or whose last one is getting old."""
        for followed in list(self._distinct()):
            if self._snapshots is not None and followed.is_restored():
                try:
                    await self._save(followed, self._snapshots)
                except OSError as error:
                    log.warning("a snapshot could not be written: %s", error.strerror or error)

    async def _save(self, followed: FollowedTable, snapshots: Snapshots) -> None:
        now, frontier = read_clock(), dict(followed.table.frontier)
        kept_frontier, kept_whole_at = followed.kept or (None, now)
        # One that lies there serves for as long as it is young.
        young_ms = self._behind_ms_max // 10
        is_kept = frontier == kept_frontier and now.since_ms(kept_whole_at) < young_ms
        if is_kept or not followed.samples:
            return
        whole_at = followed.whole_at
        head = Head(
            identity=snapshots.identity,
            # Reckoned back from now: the clocks may have disagreed since.
            whole_at_ms=now.unix_ms - now.since_ms(whole_at),
            deletions_kept_ms=snapshots.deletions_kept_ms,
            frontier=frontier,
            starts=dict(followed.starts),
            samples={p: list(samples.values()) for p, samples in followed.samples.items()},
        )
        await snapshots.save(head, followed.table.contents())
        followed.kept = (frontier, whole_at)

    async def _restore(self, followed: FollowedTable, snapshots: Snapshots) -> None:
        """Begin with the table's snapshot, if there is a good one."""
        began, partitions = time.monotonic(), sorted(followed.table.frontier)
        try:
            found = await snapshots.load(partitions, self._confirm)
            if found is None:
                return
            head, table = found
            now, age_ms = read_clock(), snapshots.age_ms(head)
        except SnapshotRefused as refusal:
            log.warning("the snapshot of %s is refused: %s", self._names(partitions), refusal)
        except Exception as error:
            # Whatever it was, the topic has it all.
            log.warning(
                "the snapshot of %s cannot be used: %s",
                self._names(partitions),
                getattr(error, "strerror", None) or type(error).__name__,
            )
        else:
            whole_at = Moment(now.unix_ms - age_ms, now.monotonic_ms - age_ms)
            followed.restored(head, table, whole_at, now)
            log.info(
                "%s: %d subjects from a snapshot that is %.0f s old, in %.1f s",
                self._names(partitions),
                len(table),
                age_ms / 1000,
                time.monotonic() - began,
            )

    async def _confirm(self, head: Head) -> None:
        """See that the topic still is what the snapshot was made from.

        Raises:
            SnapshotRefused: if it is not, or if that cannot be told.
        """
        places = [self._at(p) for p in head.frontier]
        async with closing_unanswered(self._watermarks._client):
            starts = await self._watermarks.beginning_offsets(places)
            ends = await self._watermarks.end_offsets(places)
        for place in places:
            partition = place.partition
            if starts[place] != head.starts.get(partition):
                raise SnapshotRefused(f"{self._names([partition])} begins elsewhere now")
            if ends[place] < head.frontier[partition]:
                raise SnapshotRefused(
                    f"{self._names([partition])} ends at {ends[place]}, before the snapshot's "
                    f"frontier {head.frontier[partition]}: it was truncated or made anew"
                )
            if head.frontier[partition] > starts[place]:
                await self._confirm_samples(place, head)

    async def _confirm_samples(self, place: TopicPartition, head: Head) -> None:
        """Find one of the records that were applied, because a topic made anew has offsets, too."""
        for sample in reversed(head.samples.get(place.partition, [])):
            offsets = (sample.offset, sample.offset + 1)
            records, _ = await read_range(self._settings, place, offsets, 1)
            if not records:
                continue
            (record,) = records
            if isinstance(record, UnreadableRecord) or sample_of(record) != sample:
                raise SnapshotRefused(
                    f"{self._names([place.partition])} holds another record at {sample.offset}: "
                    "it was made anew"
                )
            return
        raise SnapshotRefused(
            f"none of the records by which {self._names([place.partition])} would be known again "
            "is left in it"
        )

    def _names(self, partitions: Iterable[int]) -> str:
        return ", ".join(f"{self._topic}-{partition}" for partition in partitions)

    async def run(self) -> None:
        """Follow for ever."""
        failing_with = None
        while True:
            try:
                await self._follow_once()
                failing_with = None
            except Exception as error:
                # Said once: an outage can last for hours.
                if type(error) is not failing_with:
                    log.warning("following the consent topic failed: %s", type(error).__name__)
                failing_with = type(error)
                await asyncio.sleep(0.1)
                # Whatever failed, what was fetched and not applied is fetched again.
                self._following = set()

    async def _follow_once(self) -> None:
        self._drop_unneeded()
        self._reset_tables()
        wanted = {p for p, followed in self._followed.items() if followed.is_restored()}
        if wanted != self._following:
            await self._assign(wanted)
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
        # What the client has fetched already it hands over at once, however much that is.
        await asyncio.sleep(0)

    async def _assign(self, wanted: Collection[int]) -> None:
        partitions = [self._at(p) for p in wanted]
        self._reader.assign(partitions)
        async with closing_unanswered(self._watermarks._client):
            starts = await self._watermarks.beginning_offsets(partitions)
        for tp in partitions:
            followed = self._followed[tp.partition]
            table = followed.table
            # Where the topic began when the table did, wherever it begins by now.
            followed.starts.setdefault(tp.partition, starts[tp])
            if table.frontier[tp.partition] < starts[tp]:
                table.advance(tp.partition, starts[tp])
            self._reader.seek(tp, table.frontier[tp.partition])
        self._following = {tp.partition for tp in partitions}

    def _apply(self, partition: int, records: Sequence[Any], frontier: int) -> None:
        """Apply and advance in one step: nobody may see a state that is ahead of its frontier."""
        followed = self._followed[partition]
        changes = self._read_all(records)
        misplaced = self._misplaced(partition, [subject for subject, _ in changes])
        if misplaced:
            elsewhere = frozenset(misplaced)
            changes = [(subject, placed(state, subject in elsewhere)) for subject, state in changes]
        if followed.listeners:
            self._apply_aloud(partition, records, changes)
        else:
            followed.table.apply_all(partition, changes)
        for _ in misplaced:
            self._on_misplaced()
        if records and not isinstance(records[-1], UnreadableRecord):
            followed.sample(partition, records[-1])
        followed.table.advance(partition, frontier)
        followed.advanced()

    def _apply_aloud(
        self,
        partition: int,
        records: Sequence[Any],
        changes: Sequence[tuple[bytes, ConsentState | None]],
    ) -> None:
        """Apply one after the other, and tell the listeners what each left."""
        followed = self._followed[partition]
        keyed = (record for record in records if record.key is not None)
        for record, (subject, state) in zip(keyed, changes, strict=True):
            followed.table.apply(partition, subject, state)
            change = _change(partition, record, followed.table.holdings.get(subject))
            for listener in followed.listeners:
                listener(change)

    def _read_all(self, records: Sequence[Any]) -> list[tuple[bytes, ConsentState | None]]:
        """Subject and state of each record that has a key; what is wrong with any is said."""
        subjects = [record.key for record in records]
        if UnreadableRecord in map(type, records):
            read = map(read_state, repeat(self._decode), records)
        else:
            # The same for nearly all that there are, without a step between for each.
            read = map(self._decode, subjects, [record.value for record in records])
        changes = []
        for subject, (state, problem) in zip(subjects, read, strict=True):
            if problem is not None:
                self._on_unreadable(problem)
            if subject is not None:
                changes.append((subject, state))
        return changes

    async def _read_around(self) -> dict[TopicPartition, list[Any]]:
        """What the partitions hold from their frontiers on, read leniently.

        A poll that fails may have taken records of other partitions with it, so that all of them
        are read again.
        """
        fetched = {}
        for partition in self._following:
            tp = self._at(partition)
            frontier = self._followed[partition].table.frontier[partition]
            fetched[tp], next_offset = await read_around(self._reader, tp, frontier)
            self._reader.seek(tp, next_offset)
        return fetched

    def _reset_tables(self) -> None:
        # Only here, in the task that applies records, so that nothing fetched before the reset is
        # applied after it.
        for followed in self._to_reset:
            followed.reset(read_clock())
            self._following -= set(followed.table.frontier)
        self._to_reset.clear()

    def _drop_unneeded(self) -> None:
        now = read_clock()
        self._followed = {
            partition: followed
            for partition, followed in self._followed.items()
            if followed.unneeded_since is None or now.since_ms(followed.unneeded_since) < GRACE_MS
        }

    def _distinct(self) -> Collection[FollowedTable]:
        return {id(followed): followed for followed in self._followed.values()}.values()

    def _of(self, table: ConsentTable) -> FollowedTable:
        followed = self._followed[min(table.frontier)]
        assert followed.table is table, "the table was dropped"
        return followed

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self._topic, partition)


def hidden_text(place: TopicPartition, stable: int, high: int) -> str:
    """That a transaction is open in a partition, and what it hides, for people."""
    return (
        f"{place.topic}-{place.partition}: an open transaction hides what was appended from "
        f"offset {stable} on, up to {high}"
    )


def _change(partition: int, record: Any, after: Holding | None) -> ConsentChange:
    return ConsentChange(partition, record.offset, record.timestamp, record.key, after)
