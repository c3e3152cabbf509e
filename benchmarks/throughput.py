"""How many events a second, at what cost: contenders take turns on the same topic.

Rates are of the steady state, from a third of the output on, read off the committed ends of the
output topic. What was forwarded is compared with what was to be, record by record.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from contenders import Contender, Forwards
from peers.decision import in_quarter
from peers.task import PARTITIONS, TALLY, Task
from process import Failed, Progress, Running, running, usage_of
from topics import CONSENT, KeyAndValue, Topics, digest
from workload import Workload

_SAMPLE_SECONDS = 0.05
_SLOW_EVENTS_MIN = 50_000
_SLOW_SHARE = 20


@dataclass(frozen=True)
class Round:
    """What one run of one contender came to, in its steady state."""

    events_per_second: float
    cpu_us_per_event: float
    broker_cpu_us_per_event: float
    peak_rss_mb: float
    table_records_per_second: float | None


class Sample(NamedTuple):
    """What is seen from outside at one moment; CPU in seconds so far."""

    seconds: float
    records: int
    cpu_seconds: float
    broker_cpu_seconds: float
    peak_rss_mb: float


@dataclass
class Events:
    """A content topic, and what is to be forwarded of it."""

    topic: str
    number: int
    expected: dict[Forwards, Counter[bytes]] = field(
        default_factory=lambda: {Forwards.DECIDED: Counter(), Forwards.QUARTER: Counter()}
    )

    def records(self, workload: Workload) -> Iterator[KeyAndValue]:
        """Key and value of each event; what is to be forwarded is noted on the way."""
        for event in workload.events(self.number):
            if event.forward:
                self.expected[Forwards.DECIDED][digest(event.key, event.value)] += 1
            if in_quarter(event.key):
                self.expected[Forwards.QUARTER][digest(event.key, event.value)] += 1
            yield event.key, event.value

    def expected_count(self, forwards: Forwards) -> int:
        """Number of records in the output."""
        if forwards is Forwards.NOTHING:
            return self.number // TALLY
        return self.expected[forwards].total()


class Throughput:
    """The input topics, and runs on them. `broker_pid` is that of the broker's process."""

    CONSENT_TOPIC = "consent-state"

    def __init__(
        self, topics: Topics, broker_pid: int, events: int, subjects: int, console: Console
    ) -> None:
        self._topics = topics
        self._broker_pid = broker_pid
        self._subjects = subjects
        self._console = console
        slow = min(events, max(events // _SLOW_SHARE, _SLOW_EVENTS_MIN))
        self._all = Events("content-events", events)
        self._for_slow = Events("content-events-slow", slow)

    def events_for(self, contender: Contender) -> Events:
        """All events, or fewer where all would take minutes."""
        return self._for_slow if contender.is_slow else self._all

    async def prepare(self, contenders: list[Contender]) -> None:
        """Create and fill the input topics that are needed."""
        await self._topics.create(self.CONSENT_TOPIC, CONSENT)
        await self._topics.fill(self.CONSENT_TOPIC, Workload(self._subjects).consent())
        for events in (self._all, self._for_slow):
            if any(self.events_for(contender) is events for contender in contenders):
                await self._topics.create(events.topic)
                records = events.records(Workload(self._subjects))
                what = f"appending {events.topic}"
                shown = track(records, what, events.number, console=self._console)
                await self._topics.fill(events.topic, shown)

    async def run(self, contender: Contender, label: str) -> Round:
        """One run in a new group with a new output topic, both named after `label`.

        Raises `Failed` where the contender does not finish, or forwards something else.
        """
        output = f"{contender.name}-{label}"
        with TemporaryDirectory() as directory:
            result = await self.work_off(contender, output, Path(directory))
        await self._topics.delete_all_of(output)
        return result

    async def work_off(self, contender: Contender, output: str, directory: Path) -> Round:
        """A `run` that leaves its topics, and files in `directory`."""
        events = self.events_for(contender)
        await self._topics.create(output)
        task = Task(
            servers=self._topics.servers,
            content=events.topic,
            consent=self.CONSENT_TOPIC,
            output=output,
            partitions=PARTITIONS,
            directory=str(directory),
            settings=contender.settings,
        )
        with running(contender.command(task), directory) as process:
            expected = events.expected_count(contender.forwards)
            samples = await self._watch(process, output, expected)
            rate = contender.table_rate(process.stdout, process.stderr, self._subjects)
        if contender.forwards in events.expected:
            await compare(self._topics, output, events.expected[contender.forwards])
        return steady_state(samples, events.number, rate)

    async def _watch(self, process: Running, output: str, expected: int) -> list[Sample]:
        progress = Progress(expected)
        samples: list[Sample] = []
        async with self._topics.ends(output) as ends:
            while not samples or not progress.is_complete(samples[-1].records):
                usage, broker = process.usage_with_children(), usage_of(self._broker_pid)
                records = sum(await ends())
                sample = Sample(
                    seconds=time.monotonic(),
                    records=records,
                    cpu_seconds=usage.cpu_seconds,
                    broker_cpu_seconds=broker.cpu_seconds,
                    peak_rss_mb=usage.peak_rss_mb,
                )
                samples.append(sample)
                await asyncio.sleep(_SAMPLE_SECONDS)
        return samples


async def compare(
    topics: Topics, output: str, expected: Counter[bytes], partitions: int = PARTITIONS
) -> None:
    """Every expected record is there once, and no other, or it raises `Failed`."""
    found: Counter[bytes] = Counter()
    async for record in topics.read(output, partitions):
        found[digest(record.key, record.value)] += 1
    if found != expected:
        raise Failed(
            f"{(expected - found).total():,} expected records are missing, "
            f"{(found - expected).total():,} are too many"
        )


def steady_state(samples: list[Sample], events: int, table_rate: float | None) -> Round:
    """The rate from a third of the output on."""
    last = samples[-1].records
    begin = next(sample for sample in samples if sample.records >= last / 3)
    end = next(sample for sample in samples if sample.records >= last)
    decided = events * (end.records - begin.records) / last
    if not decided:
        raise Failed("the output came all at once, so there is no rate: use more --events")
    peak_rss_mb = max(sample.peak_rss_mb for sample in samples)
    return between(begin, end, decided, peak_rss_mb, table_rate)


def between(
    begin: Sample, end: Sample, decided: float, peak_rss_mb: float, table_rate: float | None
) -> Round:
    """What it took to decide so many events."""
    return Round(
        events_per_second=decided / (end.seconds - begin.seconds),
        cpu_us_per_event=(end.cpu_seconds - begin.cpu_seconds) / decided * 1e6,
        broker_cpu_us_per_event=(end.broker_cpu_seconds - begin.broker_cpu_seconds) / decided * 1e6,
        peak_rss_mb=peak_rss_mb,
        table_records_per_second=table_rate,
    )
