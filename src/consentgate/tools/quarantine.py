"""`consentgate quarantine`: what was set aside, and how it is given to the workers again."""

import base64
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from consentgate.config import Config
from consentgate.core.explain import moment_text
from consentgate.core.gate import Output
from consentgate.core.quarantine import (
    Progress,
    Selection,
    SetAside,
    grew_too_large,
    read_set_aside,
    redriven,
)
from consentgate.errors import ConfigError
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster, connected
from consentgate.kafka.cursor import Cursor, open_cursor
from consentgate.kafka.reader import count_offsets
from consentgate.kafka.redrive import Redrive, progress_of, redrive_group
from consentgate.kafka.settings import kafka_settings

RECORDS_MAX = 1_000
BYTES_MAX = 4 << 20
"""How many records, and bytes of their keys and values, one transaction appends about at most.

Readers of committed records see nothing of a partition behind an open transaction.
"""

EXAMPLES_MAX = 3

OnProgress = Callable[[int, int], None]
"""Gets offsets done and offsets in all."""


class Entry(NamedTuple):
    """A record of the quarantine."""

    place: str  # topic-partition@offset
    record: Any
    found: SetAside
    is_redriven: bool


class Left(StrEnum):
    """Why a record that was asked for is not appended."""

    REDRIVEN = "redriven-before"
    NO_VALUE = "value-not-kept"
    ATTEMPTS = "attempts-used-up"
    TOO_LARGE = "too-large-with-header"
    ELSEWHERE = "of-another-group-or-topic"


_LEFT_IN_WORDS = {
    Left.REDRIVEN: "redriven by an earlier run",
    Left.NO_VALUE: "whose value is not in the quarantine",
    Left.ATTEMPTS: "redriven before as often as --max-attempts allows, and quarantined again",
    Left.TOO_LARGE: "too large with the header that redriving adds",
    Left.ELSEWHERE: "not set aside by this group from a partition of this content topic",
}


@dataclass(slots=True)
class Redriven:
    """What a run has appended and what it has left, so far."""

    appended: Counter[str] = field(default_factory=Counter)  # by reason; committed
    left: Counter[Left] = field(default_factory=Counter)
    examples: dict[Left, list[str]] = field(default_factory=dict)

    def leave(self, why: Left, place: str) -> None:
        """Count a record that is not appended; the first ones are named."""
        self.left[why] += 1
        examples = self.examples.setdefault(why, [])
        if len(examples) < EXAMPLES_MAX:
            examples.append(place)


class Request(NamedTuple):
    """What is to be redriven."""

    selection: Selection
    attempts_max: int
    limit: int | None
    dry_run: bool


async def list_quarantine(
    config: Config, selection: Selection, on_progress: OnProgress
) -> AsyncGenerator[Entry, None]:
    """The records in quarantine that are meant, one partition after the other.

    What no worker has put there is passed over.

    Raises:
        BrokerUnavailable: if no broker answers.
        ConfigError: if there is no such topic.
    """
    topic = config.topics.quarantine
    async with connected(kafka_settings(config.kafka), timeout_seconds=60) as cluster:
        counts = await _partitions(cluster, [topic])
        committed = await _committed(cluster, config, counts[topic])
    walk = _Walk(config, counts[topic], on_progress)
    async with aclosing(walk.cursors()) as cursors:
        async for cursor in cursors:
            progress = _progress(config, committed, cursor)
            async for record in walk.records(cursor):
                found = read_set_aside(record)
                if found is not None and selection.holds(found, record.timestamp):
                    is_redriven = _is_ours(config, found) and progress.has(found, record.offset)
                    yield Entry(cursor.place(record), record, found, is_redriven)


async def redrive(
    config: Config, request: Request, result: Redriven, on_progress: OnProgress
) -> None:
    """Append what is meant to the content topic again, in the partition that it came from.

    Each transaction also commits what has been redriven, so that after an early end the next run
    goes on. `result` is kept up to date with what is committed.

    Raises:
        BrokerUnavailable: if no broker answers.
        ConfigError: if topics are missing, or the broker refuses a record.
        Superseded: if another run has begun since.
    """
    topics = config.topics
    async with connected(kafka_settings(config.kafka), timeout_seconds=60) as cluster:
        counts = await _partitions(cluster, [topics.quarantine, topics.content])
        content = [TopicPartition(topics.content, n) for n in range(counts[topics.content])]
        async with AsyncExitStack() as stack:
            write: Write = _append_nothing
            if not request.dry_run:
                run = Redrive(
                    kafka_settings(config.kafka), config.group, topics.quarantine, content
                )
                write = (await stack.enter_async_context(run)).write
            # Only now that no earlier run can commit any more it is known what has been redriven.
            committed = await _committed(cluster, config, counts[topics.quarantine])
            walk = _Walk(config, counts[topics.quarantine], on_progress)
            async for cursor in await stack.enter_async_context(aclosing(walk.cursors())):
                progress = _progress(config, committed, cursor)
                part = _Part(config, request, result, content, progress)
                async for record in walk.records(cursor):
                    part.take(record, cursor.place(record))
                    if part.is_full:
                        await part.append(write, cursor.partition, record.offset + 1)
                    if request.limit == result.appended.total():
                        return
                await part.append(write, cursor.partition, cursor.end)


Write = Callable[[Mapping[TopicPartition, Sequence[Output]], int, int, Progress], Awaitable[None]]


async def _append_nothing(*_: object) -> None:
    """What a dry run does instead."""


class _Part:
    """What is appended of one partition of the quarantine."""

    def __init__(
        self,
        config: Config,
        request: Request,
        result: Redriven,
        content: Sequence[TopicPartition],
        progress: Progress,
    ) -> None:
        self._config = config
        self._limits = config.limits.of_content()
        self._request = request
        self._result = result
        self._content = content
        self._progress = progress
        self._outputs: dict[TopicPartition, list[Output]] = {}
        self._reasons: Counter[str] = Counter()
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether what was taken is enough for a transaction, or all that is wanted."""
        number, limit = self._reasons.total(), self._request.limit
        return (
            number >= RECORDS_MAX
            or self._bytes >= BYTES_MAX
            or (limit is not None and number + self._result.appended.total() >= limit)
        )

    def take(self, record: Any, place: str) -> None:
        """Take in the next record."""
        found = read_set_aside(record)
        if found is None:
            self._result.leave(Left.ELSEWHERE, place)
            return
        is_meant = self._request.selection.holds(found, record.timestamp)
        why = self._why_not(record, found)
        if why is None and is_meant:
            output = redriven(record, found, place, read_clock().unix_ms)
            if grew_too_large(output, self._limits):
                why = Left.TOO_LARGE
            else:
                self._add(output, found)
        if is_meant and why is not None:
            self._result.leave(why, place)
        if why is Left.REDRIVEN or (why is None and is_meant):
            self._progress.redriven(found, record.offset)
        elif why in (None, Left.ATTEMPTS, Left.TOO_LARGE):
            self._progress.left(found)

    async def append(self, write: Write, partition: int, next_offset: int) -> None:
        """Append what was taken, all below `next_offset`, in one transaction."""
        if self._outputs:
            await write(self._outputs, partition, next_offset, self._progress)
        self._result.appended.update(self._reasons)
        self._outputs, self._reasons, self._bytes = {}, Counter(), 0

    def _why_not(self, record: Any, found: SetAside) -> Left | None:
        """Why the record cannot be appended, whichever ones are meant."""
        if not _is_ours(self._config, found) or found.partition >= len(self._content):
            return Left.ELSEWHERE
        if record.value is None:
            return Left.NO_VALUE
        if self._progress.has(found, record.offset):
            return Left.REDRIVEN
        if found.attempts is None or found.attempts >= self._request.attempts_max:
            return Left.ATTEMPTS
        return None

    def _add(self, output: Output, found: SetAside) -> None:
        self._outputs.setdefault(self._content[found.partition], []).append(output)
        self._reasons[str(found.reason)] += 1
        self._bytes += len(output.key or b"") + len(output.value or b"")


class _Walk:
    """Goes through the quarantine as it is now, and tells how far it is."""

    def __init__(self, config: Config, partitions: int, on_progress: OnProgress) -> None:
        self._settings = kafka_settings(config.kafka)
        self._topic = config.topics.quarantine
        self._partitions = range(partitions)
        self._on_progress = on_progress
        self._done = 0
        self._total = 0

    async def cursors(self) -> AsyncGenerator[Cursor, None]:
        """A cursor in each partition, one after the other."""
        self._total = await count_offsets(self._settings, self._topic, self._partitions)
        for partition in self._partitions:
            async with open_cursor(self._settings, self._topic, partition) as cursor:
                yield cursor
                self._done += cursor.end - cursor.start
                self._tell(0)

    async def records(self, cursor: Cursor) -> AsyncIterator[Any]:
        """All records from a cursor on."""
        number = 0
        while (record := await cursor.next()) is not None:
            yield record
            number += 1
            if number % RECORDS_MAX == 0:
                self._tell(record.offset + 1 - cursor.start)

    def _tell(self, offsets: int) -> None:
        done = self._done + offsets
        # The topic may have grown since it was measured.
        self._total = max(self._total, done)
        self._on_progress(done, self._total)


async def _partitions(cluster: Cluster, topics: Sequence[str]) -> dict[str, int]:
    counts = await cluster.partition_counts(topics)
    if missing := [topic for topic in topics if topic not in counts]:
        raise ConfigError(
            f"missing topics: {', '.join(missing)}. Create them with consentgate topics create, "
            "and the same -c"
        )
    return counts


async def _committed(
    cluster: Cluster, config: Config, partitions: int
) -> dict[int, OffsetAndMetadata]:
    group = redrive_group(config.group)
    return await cluster.group_offsets(group, config.topics.quarantine, range(partitions))


def _progress(
    config: Config, committed: Mapping[int, OffsetAndMetadata], cursor: Cursor
) -> Progress:
    place = TopicPartition(cursor.topic, cursor.partition)
    progress = progress_of(committed.get(cursor.partition), config.group, place, cursor.end)
    progress.forget_below(cursor.start)
    return progress


def _is_ours(config: Config, found: SetAside) -> bool:
    """Whether our group set it aside, from the topic that it still reads.

    To every other group that reads the content topic, a redriven record is a new one.
    """
    return found.group == config.group and found.topic == config.topics.content


def entry_line(entry: Entry) -> str:
    """What `quarantine list` prints of a record for people."""
    found = entry.found
    size = "-" if found.bytes is None else f"{found.bytes:,} byte{'' if found.bytes == 1 else 's'}"
    return (
        f"{entry.place}  {found.source}  {found.reason:<16}  "
        f"{moment_text(entry.record.timestamp)}  {size:>14}  {_state(entry)}"
    )


def payload_lines(entry: Entry) -> list[str]:
    """Key and value of a record for people; what a terminal would take for commands is escaped."""
    return [
        f"  {name:<5}  {'none' if each is None else repr(each.decode(errors='backslashreplace'))}"
        for name, each in (("key", entry.record.key), ("value", entry.record.value))
    ]


def entry_json(entry: Entry, *, with_payload: bool) -> dict[str, Any]:
    """What `quarantine list --format json` prints of a record."""
    found, record = entry.found, entry.record
    payload = {**_text("key", record.key), **_text("payload", record.value)}
    return {
        "record": entry.place,
        "source": found.source,
        "group": found.group,
        "reason": found.reason,
        "at": record.timestamp,
        "bytes": found.bytes,
        "value_kept": record.value is not None,
        "attempts": found.attempts,
        "redriven": entry.is_redriven,
        **(payload if with_payload else {}),
    }


def _text(name: str, data: bytes | None) -> dict[str, str | None]:
    """Under its name where it is a text, else in base64, as fixtures have it."""
    if data is None:
        return {name: None}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def _state(entry: Entry) -> str:
    if entry.record.value is None:
        return "no value" if entry.found.bytes is None else "value not kept"
    attempts = entry.found.attempts
    again = "" if attempts == 0 else ", had been redriven"
    return f"{'redriven' if entry.is_redriven else 'kept'}{again}"


def counts_text(counts: Mapping[str, int]) -> str:
    """Numbers by reason, as people read them."""
    number = sum(counts.values())
    by_reason = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
    records = f"{number:,} record{'' if number == 1 else 's'}"
    return f"{records}: {by_reason}" if counts else records


def redriven_lines(request: Request, result: Redriven, topic: str) -> list[str]:
    """What `quarantine redrive` prints for people; `topic` is the content topic."""
    did = "would be appended" if request.dry_run else "appended"
    number = result.appended.total()
    by_reason = f" ({counts_text(result.appended).partition(': ')[2]})" if number else ""
    lines = [f"{did} to {topic}: {number:,}{by_reason}"]
    for why in Left:
        if count := result.left[why]:
            examples = ", ".join(result.examples[why])
            lines.append(f"left: {count:,} {_LEFT_IN_WORDS[why]}, such as {examples}")
    return lines


def redriven_json(request: Request, result: Redriven) -> dict[str, Any]:
    """What `quarantine redrive --format json` prints."""
    return {
        "dry_run": request.dry_run,
        "appended": dict(result.appended),
        "left": {
            str(why): {"records": count, "such_as": result.examples[why]}
            for why, count in result.left.items()
        },
    }
