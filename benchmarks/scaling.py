"""`make scaling`: how the cost of an event grows, one factor at a time, on the embedded broker.

The workers are as shipped. They start, share the partitions and read their tables while the events
are held back; then all events can be read at once. Rates and CPU are of the steady state, read off
the offsets that the group commits: until the first partition is done, without the first third. What
was forwarded is compared with what was to be, record by record.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from arguments import parsed
from consentgate.tools.broker import EmbeddedKafka
from contenders import CONSENTGATE, HERE, Forwards
from peers.task import PARTITIONS, Task
from picture import Column, Panel, write_panels
from process import Failed, Running, running, usage_of
from process import Progress as Offsets
from report import RESULTS, machine_of_run, median
from run import BROKER
from throughput import Events, Round, Sample, between, compare
from topics import CONSENT, KeyAndValue, Topics
from workload import EVENT_BYTES, POLICY, Workload, redacting_policy

PICTURE = HERE.parent / "docs" / "scaling.svg"
_SAMPLE_SECONDS = 0.05
_READY_SECONDS_MAX = 600
_CONTENT_BYTES_MAX = 1_000_000_000
_SHARE_MIN = 0.1
console = Console(width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True)
class Case:
    """What one point is measured with; by default the base case."""

    subjects: int = 200_000
    partitions: int = PARTITIONS
    workers: int = 1
    event_bytes: int = EVENT_BYTES
    forwarded: float = 0.25
    redaction: bool = False

    def events(self, number: int) -> int:
        """As many as take some seconds, of `number` of the base case."""
        if self.redaction:
            return number // 4
        return min(number, number * _CONTENT_BYTES_MAX // 500_000 // self.event_bytes)


@dataclass(frozen=True)
class Factor:
    """What is varied: the values of a full run, in their order, and those of a quick one.

    `show` is for people.
    """

    title: str
    values: tuple[Any, ...]
    quick: tuple[Any, ...]
    show: Callable[[Any], str] = "{:,}".format


FACTORS: Mapping[str, Factor] = {
    "subjects": Factor(
        "subjects, millions",
        (10_000, 100_000, 200_000, 1_000_000, 5_000_000),
        (10_000,),
        lambda number: f"{number / 1e6:g}",
    ),
    "partitions": Factor("partitions", (1, 4, 16, 32), (8,)),
    "workers": Factor("workers", (1, 2, 3), (2,)),
    "event_bytes": Factor("bytes an event", (200, 550, 5_000, 50_000), (5_000,)),
    "forwarded": Factor("share forwarded", (0.0, 0.25, 0.5, 1.0), (0.0, 1.0), "{:.0%}".format),
    "redaction": Factor(
        "redaction", (False, True), (True,), {False: "off", True: "on"}.__getitem__
    ),
}
"""By the names of the fields of `Case`."""

BASE = Case()
FULL = {"events": 500_000, "rounds": 2}
QUICK = {"events": 100_000, "rounds": 1}


@dataclass(frozen=True)
class Point(Round):
    """What one run came to; `ready_seconds` after their start the workers' tables were ready."""

    ready_seconds: float


class Scaling:
    """The consent topics, which runs share, and runs."""

    def __init__(self, kafka: EmbeddedKafka, topics: Topics, events: int, progress: Progress):
        self._kafka = kafka
        self._topics = topics
        self._events = events
        self._progress = progress
        self._filled: set[str] = set()

    async def run(self, case: Case, label: str) -> Point:
        """One run, in a new group with new topics. Raises `Failed`."""
        with TemporaryDirectory() as directory:
            result = await self._measure(case, label, Path(directory))
        await self._topics.delete_all_of(label)
        return result

    async def _measure(self, case: Case, label: str, directory: Path) -> Point:
        workload = Workload(case.subjects, event_bytes=case.event_bytes, forwarded=case.forwarded)
        consent = await self._consent(case, workload)
        events = Events(f"{label}-content", case.events(self._events))
        for topic in (label, events.topic):
            await self._topics.create(topic, partitions=case.partitions)
        task = Task(
            servers=self._topics.servers,
            content=events.topic,
            consent=consent,
            output=label,
            partitions=case.partitions,
            directory=str(directory),
            settings={},
        )
        contender = replace(CONSENTGATE, policy=redacting_policy() if case.redaction else POLICY)
        with ExitStack() as stack:
            async with self._topics.held_back(events.topic, case.partitions):
                records = self._shown(events.records(workload), "appending events", events.number)
                await self._topics.fill(events.topic, records, partitions=case.partitions)
                del workload
                command, began = contender.command(task), time.monotonic()
                workers = [
                    stack.enter_context(running(command, _made(directory / f"worker-{number}")))
                    for number in range(case.workers)
                ]
                await self._await_ready(workers, case.partitions)
                ready_seconds = time.monotonic() - began
            seen = await self._watch(workers, task, events.number)
            logs = [worker.stderr for worker in workers]
        await compare(
            self._topics, label, events.expected[Forwards.DECIDED], partitions=case.partitions
        )
        rate = contender.table_rate("", logs[0], case.subjects) if case.workers == 1 else None
        return Point(**asdict(_steady(seen, events.number, rate)), ready_seconds=ready_seconds)

    async def _consent(self, case: Case, workload: Workload) -> str:
        topic = f"consent-{case.subjects}-{case.partitions}"
        if topic not in self._filled:
            await self._topics.create(topic, CONSENT, case.partitions)
            records = self._shown(workload.consent(), "appending consent", case.subjects)
            await self._topics.fill(topic, records, partitions=case.partitions)
            self._filled.add(topic)
        return topic

    def _shown(
        self, records: Iterator[KeyAndValue], what: str, number: int
    ) -> Iterator[KeyAndValue]:
        with self._bar(what, number) as bar:
            yield from self._progress.track(records, task_id=bar, update_period=0.5)

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[TaskID]:
        bar = self._progress.add_task(what, total=total)
        try:
            yield bar
        finally:
            self._progress.remove_task(bar)

    async def _await_ready(self, workers: list[Running], partitions: int) -> None:
        """Until each worker has partitions, and their tables are ready."""
        deadline = time.monotonic() + _READY_SECONDS_MAX
        with self._bar("waiting for the tables", partitions) as bar:
            while (ready := _ready(workers)) < partitions:
                self._progress.update(bar, completed=ready)
                if time.monotonic() > deadline:
                    raise Failed(f"{ready} of {partitions} partitions are ready")
                for worker in workers:
                    worker.usage()
                await asyncio.sleep(_SAMPLE_SECONDS)

    async def _watch(self, workers: list[Running], task: Task, events: int) -> "list[Seen]":
        """Samples until all events are done."""
        progress, lasts = Offsets(events), await self._lasts(task, events)
        seen: list[Seen] = []
        with self._bar("deciding", events) as bar:
            while not seen or not progress.is_complete(seen[-1].sample.records):
                seen.append(await self._look(workers, task, lasts))
                self._progress.update(bar, completed=seen[-1].sample.records)
                await asyncio.sleep(_SAMPLE_SECONDS)
        return seen

    async def _look(self, workers: list[Running], task: Task, lasts: list[int]) -> "Seen":
        used = [worker.usage_with_children() for worker in workers]
        broker = usage_of(self._kafka.pid)
        committed = await self._topics.committed(task.output)
        # The first of each partition is the record that held the others back.
        done = [min(committed.get(n, 1), last) - 1 for n, last in enumerate(lasts)]
        sample = Sample(
            seconds=time.monotonic(),
            records=sum(max(0, records) for records in done),
            cpu_seconds=sum(usage.cpu_seconds for usage in used),
            broker_cpu_seconds=broker.cpu_seconds,
            peak_rss_mb=sum(usage.peak_rss_mb for usage in used),
        )
        return Seen(sample, all(d < last - 1 for d, last in zip(done, lasts, strict=True)))

    async def _lasts(self, task: Task, events: int) -> list[int]:
        """The offset behind the last event of each partition, once all can be read."""
        async with self._topics.ends(task.content, task.partitions) as ends:
            # Each partition has a record and a marker of those that held the events back.
            while sum(found := await ends()) < events + 2 * task.partitions:
                await asyncio.sleep(_SAMPLE_SECONDS)
        return [end - 1 for end in found]


class Seen(NamedTuple):
    """A sample, and whether events were left in every partition."""

    sample: Sample
    is_saturated: bool


def _steady(seen: list[Seen], events: int, table_rate: float | None) -> Round:
    """As long as there are events in every partition, without the first third of that."""
    saturated = [sample for sample, is_saturated in seen if is_saturated]
    end = saturated[-1] if saturated else seen[0].sample
    begin = next(sample for sample, _ in seen if sample.records >= end.records / 3)
    decided = end.records - begin.records
    if decided < events * _SHARE_MIN:
        raise Failed("the first partition was done too early for a rate: use more --events")
    return between(begin, end, decided, max(s.peak_rss_mb for s, _ in seen), table_rate)


def _ready(workers: list[Running]) -> int:
    """Number of partitions with a table, once they are shared among all workers."""
    ready = 0
    for worker in workers:
        assigned: set[int] = set()
        its_ready: set[int] = set()
        for line in worker.stderr.splitlines():
            # The last line may not be there as a whole.
            if line.startswith("{") and line.endswith("}"):
                event = json.loads(line)
                if event["event"] == "assigned":
                    assigned, its_ready = set(event["partitions"]), set()
                elif event["event"] == "ready":
                    its_ready.add(event["partition"])
        if not assigned:
            return 0
        ready += len(its_ready & assigned)
    return ready


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@dataclass(frozen=True)
class Row:
    """A point of one factor; figures are medians of the rounds."""

    factor: str
    value: Any
    case: Case
    events: int
    figures: Mapping[str, float | None]
    rounds: list[Point]

    @property
    def cpu_us(self) -> float:
        """CPU µs an event, of all workers."""
        found = self.figures["cpu_us_per_event"]
        assert found is not None, "every point has it"
        return found


def cases_of(factor: str, quick: bool) -> dict[Any, Case]:
    """The cases of a factor by its values; the base case is among them."""
    chosen = FACTORS[factor].quick if quick else FACTORS[factor].values
    values = sorted({*chosen, getattr(BASE, factor)})
    return {value: replace(BASE, **{factor: value}) for value in values}


async def measure(args: argparse.Namespace) -> dict[Case, list[Point]]:
    """Rounds over all cases, after a run that warms up the broker; failures are printed."""
    varied = [case for factor in args.only for case in cases_of(factor, args.quick).values()]
    cases = list(dict.fromkeys([BASE, *varied]))
    runs = [
        (case, f"{number}-{n}") for number in range(args.rounds) for n, case in enumerate(cases)
    ]
    if not args.quick:
        runs.insert(0, (BASE, "warm-up"))
    found: dict[Case, list[Point]] = {}
    with EmbeddedKafka(config=BROKER) as kafka, _progress() as progress:
        async with Topics(kafka.bootstrap_servers) as topics:
            scaling = Scaling(kafka, topics, args.events, progress)
            for case, label in progress.track(runs, description="points"):
                try:
                    point = await scaling.run(case, f"scaling-{label}")
                except Failed as failed:
                    console.print(f"{case}: {failed}", style="red", markup=False)
                    continue
                console.print(f"{label}: {case}: {point}", markup=False, highlight=False)
                if label != "warm-up":
                    found.setdefault(case, []).append(point)
    return found


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console)


def rows_of(found: Mapping[Case, list[Point]], args: argparse.Namespace) -> dict[str, list[Row]]:
    """The points that were measured, by the factor."""
    return {
        factor: [
            Row(factor, value, case, case.events(args.events), _medians(rounds), rounds)
            for value, case in cases_of(factor, args.quick).items()
            if (rounds := found.get(case))
        ]
        for factor in args.only
    }


def _medians(rounds: list[Point]) -> dict[str, float | None]:
    return {figure.name: median(rounds, figure.name) for figure in fields(Point)}


def report(rows: Mapping[str, list[Row]], args: argparse.Namespace) -> None:
    """Print the tables; write JSON and the picture."""
    for factor, points in rows.items():
        if points:
            console.print(_table(FACTORS[factor], points))
    machine = machine_of_run()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "scaling.json"
    figures = {
        "machine": machine,
        "arguments": vars(args),
        "base": asdict(BASE),
        "points": [asdict(row) for points in rows.values() for row in points],
    }
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    console.print(f"everything: {path}", highlight=False)
    is_full = (
        not args.quick
        and set(args.only) == set(FACTORS)
        and all(getattr(args, name) == value for name, value in FULL.items())
    )
    note = (
        f"{machine['date'][:10]}, {machine['processor']}, {machine['cores']} cores with the broker "
        f"on them; {'one round' if args.rounds == 1 else f'medians of {args.rounds} rounds'}"
    )
    for target in (RESULTS / "scaling.svg", *([PICTURE] if is_full else [])):
        write_panels(target, [_panel(FACTORS[name], of) for name, of in rows.items()], note)
        console.print(f"picture: {target}", highlight=False)


def _table(factor: Factor, rows: list[Row]) -> Table:
    costs = [row.cpu_us for row in rows]
    base = next((row.cpu_us for row in rows if row.case == BASE), None)
    table = Table(
        title=f"{factor.title}: the dearest costs {max(costs) / min(costs):.2f} times the cheapest",
        title_justify="left",
    )
    figures = ("events/s", "CPU µs/event", "broker µs/event", "peak MB", "ready s")
    for name in (factor.title, *figures, "x base", "x first"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            factor.show(row.value),
            f"{row.figures['events_per_second']:,.0f}",
            f"{row.cpu_us:.2f}",
            f"{row.figures['broker_cpu_us_per_event']:.2f}",
            f"{row.figures['peak_rss_mb']:,.0f}",
            f"{row.figures['ready_seconds']:.1f}",
            "-" if base is None else f"{row.cpu_us / base:.2f}",
            f"{row.cpu_us / costs[0]:.2f}",
        )
    return table


def _panel(factor: Factor, rows: list[Row]) -> Panel:
    return Panel(
        factor.title,
        [Column(factor.show(row.value), row.cpu_us, row.case == BASE) for row in rows],
    )


def arguments() -> argparse.Namespace:
    """The command line; what `--quick` makes smaller can still be given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, help=f"of the base case: {FULL['events']:,}")
    parser.add_argument("--rounds", type=int, help=f"{FULL['rounds']} by default")
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(FACTORS),
        choices=FACTORS,
        metavar="FACTOR",
        help=f"of {', '.join(FACTORS)}",
    )
    return parsed(parser, FULL, QUICK)


def main() -> None:
    """Run, print, write; exit with 1 where a point failed."""
    args = arguments()
    # The client reports every retry as an error.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    found = asyncio.run(measure(args))
    rows = rows_of(found, args)
    report(rows, args)
    wanted = {case for factor in args.only for case in cases_of(factor, args.quick).values()}
    sys.exit(any(len(found.get(case, ())) < args.rounds for case in wanted))


if __name__ == "__main__":
    main()
