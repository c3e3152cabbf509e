"""Twenty people withdraw while a backlog, with thousands of their posts in it, is worked off.

How long until each withdrawal takes effect, and how many of their records can be read for the
first time after it was acknowledged? Both are read off the output alone, in the same way for all.
The committed end of each partition is looked at every few milliseconds, which says when each
record could be read. A withdrawal has taken effect when the output goes beyond the first of the
person's posts that was withheld; where none was, when their last record could be read. Who had no
record at all, because a contender came to their partition late, has no effect to be measured.
"""

import asyncio
import statistics
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import orjson
from rich.console import Console
from rich.progress import track

from contenders import Contender
from peers.task import PARTITIONS, Task
from process import Failed, Progress, Running, running
from topics import CONSENT, KeyAndValue, Topics
from workload import Event, Workload

PEOPLE = [b"w%d" % number for number in range(20)]
"""The keys of those who withdraw."""

_THEIR_SHARE = 20  # One event in so many is theirs.
_SUBJECTS = 20_000
_SAMPLE_SECONDS = 0.005
_FULL_EVENTS = 1_500_000
_FULL_PAUSE_SECONDS = 0.1
_BEGIN_SHARE = 10


@dataclass(frozen=True)
class Withdrawals:
    """What came of the withdrawals in one run."""

    effect_ms_p50: float
    effect_ms_max: float
    committed_after: int
    withheld: int
    events_per_second: float


class Forwarded(NamedTuple):
    """A record of the output: its post's number, and when it could be read first."""

    number: int
    key: bytes
    readable_at: float


@dataclass
class Watched:
    """How far each partition's output was committed, and when."""

    seconds: list[float] = field(default_factory=list)
    ends: list[list[int]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])

    def add(self, ends: list[int]) -> int:
        """Note the ends as of now; their sum."""
        self.seconds.append(time.time())
        for partition, end in enumerate(ends):
            self.ends[partition].append(end)
        return sum(ends)

    def readable_at(self, partition: int, offset: int) -> float:
        """The first moment at which a record was seen to be readable."""
        found = bisect_right(self.ends[partition], offset)
        if found == len(self.seconds):
            raise Failed("went on after it had stood still")
        return self.seconds[found]

    def steady_rate(self, events: int) -> float:
        """Events a second, from a third of the output on."""
        counts = [sum(ends) for ends in zip(*self.ends, strict=True)]
        last = counts[-1]
        begin = next(n for n, count in enumerate(counts) if count >= last / 3)
        end = next(n for n, count in enumerate(counts) if count == last)
        if begin == end:
            raise Failed("the output came all at once, so there is no rate: use more --events")
        share = (last - counts[begin]) / last
        return events * share / (self.seconds[end] - self.seconds[begin])


class Backlog:
    """The backlog, and runs on it."""

    CONTENT_TOPIC = "backlog-events"

    def __init__(self, topics: Topics, events: int, console: Console) -> None:
        self._topics = topics
        self._events = events
        self._console = console
        self._workload = Workload(_SUBJECTS)
        self._others: Counter[int] = Counter()
        self._posts: dict[bytes, list[int]] = defaultdict(list)  # Numbers of those who withdraw.
        # Before the posts, because there are joins in the order of timestamps.
        self._consent_ms = time.time_ns() // 1_000_000

    async def prepare(self) -> None:
        """Create and fill the content topic."""
        await self._topics.create(self.CONTENT_TOPIC)
        what = f"appending {self.CONTENT_TOPIC}"
        shown = track(self._content(), what, self._events, console=self._console)
        await self._topics.fill(self.CONTENT_TOPIC, shown)

    async def run(self, contender: Contender, label: str) -> Withdrawals:
        """One run, with consent states of its own. Raises `Failed` where the output is wrong."""
        output = f"{contender.name}-{label}"
        consent = f"{output}-consent"
        await self._topics.create(output)
        await self._topics.create(consent, CONSENT)
        await self._topics.fill(consent, self._states(), self._consent_ms)
        with TemporaryDirectory() as directory:
            task = Task(
                servers=self._topics.servers,
                content=self.CONTENT_TOPIC,
                consent=consent,
                output=output,
                partitions=PARTITIONS,
                directory=directory,
                settings=contender.settings,
            )
            with running(contender.command(task), Path(directory)) as process:
                watched, acknowledged = await self._work_off(process, task)
        result = await self._judge(output, watched, acknowledged)
        await self._topics.delete_all_of(output)
        return result

    async def _work_off(self, process: Running, task: Task) -> tuple[Watched, dict[bytes, float]]:
        progress, watched = Progress(self._others.total()), Watched()
        begin = self._others.total() // _BEGIN_SHARE
        withdrawing: asyncio.Task[dict[bytes, float]] | None = None
        async with self._topics.ends(task.output) as ends:
            while True:
                process.usage()
                count = watched.add(await ends())
                if withdrawing is None and count > begin:
                    withdrawing = asyncio.create_task(self._withdraw(task.consent))
                if progress.is_complete(count) and withdrawing and withdrawing.done():
                    return watched, withdrawing.result()
                await asyncio.sleep(_SAMPLE_SECONDS)

    async def _withdraw(self, consent: str) -> dict[bytes, float]:
        """One after the other; when the broker acknowledged it."""
        pause_seconds = _FULL_PAUSE_SECONDS * self._events / _FULL_EVENTS
        acknowledged = {}
        async with self._topics.producer() as producer:
            for person in PEOPLE:
                await producer.send_and_wait(consent, state(person, "withdrawn"), person)
                acknowledged[person] = time.time()
                await asyncio.sleep(pause_seconds)
        return acknowledged

    async def _judge(
        self, output: str, watched: Watched, acknowledged: Mapping[bytes, float]
    ) -> Withdrawals:
        partitions: dict[int, list[Forwarded]] = defaultdict(list)
        async for record in self._topics.read(output):
            number = int(orjson.loads(record.value)["id"][1:])
            readable_at = watched.readable_at(record.partition, record.offset)
            partitions[record.partition].append(Forwarded(number, record.key, readable_at))
        effects, after, went_on = [], 0, 0
        others: Counter[int] = Counter()
        for forwarded in partitions.values():
            theirs: dict[bytes, list[Forwarded]] = defaultdict(list)
            for record in forwarded:
                if record.key in acknowledged:
                    theirs[record.key].append(record)
                else:
                    others[record.number] += 1
            for person, records in theirs.items():
                self._check_order(person, records)
                at = acknowledged[person]
                effects.append((self._effect_at(person, records, forwarded) - at) * 1000)
                after += sum(record.readable_at > at for record in records)
                went_on += len(records)
        self._check_others(others)
        if not effects:
            raise Failed("nobody had a record before they withdrew: use more --events")
        return Withdrawals(
            effect_ms_p50=statistics.median(effects),
            effect_ms_max=max(effects),
            committed_after=after,
            withheld=sum(map(len, self._posts.values())) - went_on,
            events_per_second=watched.steady_rate(self._events),
        )

    def _effect_at(self, person: bytes, theirs: list[Forwarded], all_: list[Forwarded]) -> float:
        last = theirs[-1]
        first_withheld = next((n for n in self._posts[person] if n > last.number), None)
        if first_withheld is None:
            return last.readable_at
        beyond = (record.readable_at for record in all_ if record.number > first_withheld)
        return next(beyond, all_[-1].readable_at)

    def _check_order(self, person: bytes, records: list[Forwarded]) -> None:
        """What went on of somebody who withdrew is their first posts, each once."""
        numbers = [record.number for record in records]
        if numbers != self._posts[person][: len(numbers)]:
            raise Failed("the records of somebody who withdrew have gaps, or are doubled")

    def _check_others(self, found: Counter[int]) -> None:
        if found != self._others:
            raise Failed(
                f"{(self._others - found).total():,} records of others are missing, "
                f"{(found - self._others).total():,} are too many"
            )

    def _content(self) -> Iterator[KeyAndValue]:
        for number, event in enumerate(self._workload.events(self._events)):
            if number % _THEIR_SHARE == 0:
                person = PEOPLE[number // _THEIR_SHARE % len(PEOPLE)]
                self._posts[person].append(number)
                yield person, _public_post(event, person)
            else:
                if event.forward:
                    self._others[number] += 1
                yield event.key, event.value

    def _states(self) -> Iterator[KeyAndValue]:
        yield from self._workload.consent()
        for person in PEOPLE:
            yield person, state(person, "granted")


def state(person: bytes, choice: str | None) -> bytes:
    """A consent record of somebody whose public posts go on unless they object."""
    choices = {"ai-training": {"choice": choice}} if choice else {}
    return orjson.dumps(
        {"subject": person.decode(), "jurisdiction": "US", "adult": True, "choices": choices}
    )


def _public_post(event: Event, person: bytes) -> bytes:
    post = orjson.loads(event.value)
    public = {"subject": person.decode(), "kind": "post", "visibility": "public"}
    return orjson.dumps({**post, **public})
