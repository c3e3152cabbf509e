"""A broker, workers and a load of their own, so that faults may befall them; then the oracle.

What the other modules of this directory hold are scenarios: each brings one fault about while work
is in flight, proves that it landed, and takes it away. `run` has one befall an arena a number of
times, measures how long the recovery takes, and lets `checker.py` look at the topics in the end.
"""

import asyncio
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiokafka.errors import KafkaError

import checker
from consentgate.tools.broker import EmbeddedKafka
from harness import (
    QUICK_GROUP,
    SMALL_BYTES,
    SMALL_FETCHES,
    Feed,
    Probe,
    Sent,
    Site,
    SiteFactory,
    WorkerProcess,
    consent,
    post,
    until,
)

PEOPLE = [f"m{number}" for number in range(400)]

BACKLOG = 1_000
"""So many records each partition has to do at the least, as long as the load goes on."""

CHANGES, CHANGE_SECONDS = 3, 0.05
"""So many people change their minds at once, and how long it takes until the next ones do."""

FLOOR_HEADER = "arena.floor"
"""In a post: its consent partition was acknowledged up to here when the post was appended."""

BROKER = {
    # Below the broker's default of 6 s, so that a dead worker is missed sooner.
    "group.min.session.timeout.ms": "1000",
    # How late a transaction that has timed out is aborted; the default is 10 s.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
}

WATCH_SECONDS = 0.05
RECOVERY_SECONDS_MAX = 120.0
"""Two requests may time out one after the other, each after 40 s where nothing else is set."""

DRAIN_SECONDS_MAX = 180.0
LAUNCHER = Path(__file__).with_name("launcher.py")


@asynccontextmanager
async def nothing(_: "Arena") -> AsyncIterator[None]:
    """No surroundings."""
    yield


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault, and what it needs around it."""

    name: str
    what: str  # one plain sentence
    inject: "Callable[[Arena, random.Random], Awaitable[None]]"
    """Brings the fault about while work is in flight, proves it - an AssertionError otherwise -,
    and takes it away. The recovery counts from the last call of `Arena.over`, or else from the
    return. Workers that it has ended have been taken out with `Arena.ended`, and replaced."""
    workers: int = 2
    partitions: int = 4
    kafka: Mapping[str, Any] = field(default_factory=dict)
    """Further client settings of the workers."""
    make_broker: Callable[..., EmbeddedKafka] = EmbeddedKafka
    broker: Mapping[str, str] = field(default_factory=dict)
    """Further settings of the broker."""
    """Called as `EmbeddedKafka` is."""
    surround: "Callable[[Arena], AbstractAsyncContextManager[Any]]" = nothing
    """Entered when the broker is there, but neither topics nor workers; what it yields is then
    `Arena.surroundings`. It may change `Arena.worker_kafka` and `Arena.program`."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one run."""

    scenario: Scenario
    seed: int
    records: int
    injections: int
    tally: checker.Tally
    recovery_seconds: Sequence[float]
    problems: Sequence[str]

    @property
    def recovery_p50_seconds(self) -> float:
        """The median."""
        return sorted(self.recovery_seconds)[len(self.recovery_seconds) // 2]

    @property
    def recovery_max_seconds(self) -> float:
        """The longest."""
        return max(self.recovery_seconds)


class Arena:
    """One broker with topics, workers and a load, all for one scenario."""

    def __init__(
        self, kafka: EmbeddedKafka, probe: Probe, feed: Feed, directory: Path, scenario: Scenario
    ) -> None:
        self.kafka = kafka
        self.probe = probe
        self.feed = feed
        self.scenario = scenario
        self.directory = directory
        self.worker_kafka: dict[str, Any] = {**QUICK_GROUP, **SMALL_FETCHES, **scenario.kafka}
        self.surroundings: Any = None
        self.program: Callable[[int], Sequence[str]] = lambda number: ("-m", "consentgate")
        """What Python runs as the worker of this number."""
        self.workers: list[WorkerProcess] = []
        self.retired: list[WorkerProcess] = []
        self.site: Site
        self.load: Load
        self.watch: Watch
        self._over: tuple[float, Counter[int]] | None = None

    async def set_up(self, seed: int) -> None:
        """Topics, everybody's first choice, a backlog, and workers that are ready for it."""
        make_site = SiteFactory(self.kafka, self.probe, self.feed, self.directory)
        self.site = await make_site(
            self.scenario.name, partitions=self.scenario.partitions, kafka=self.worker_kafka
        )
        await self.feed.many(self.site.consent, map(consent, PEOPLE))
        self.watch = Watch(self.site)
        self.load = Load(self.site, self.watch, random.Random(seed))
        for _ in range(self.scenario.workers):
            await self.start_worker()

    async def start_worker(self, *tampering: str) -> WorkerProcess:
        """Start a worker, tampered with as `launcher.py` says; returns at once."""
        number = len(self.workers) + len(self.retired)
        program = (str(LAUNCHER), *tampering) if tampering else self.program(number)
        log_path = self.directory / f"worker-{number}.log"
        worker = await WorkerProcess.start(self.site, log_path, program=program)
        self.workers.append(worker)
        return worker

    async def ended(self, worker: WorkerProcess, *codes: int, seconds: float = 30.0) -> None:
        """Wait for the end of a worker that is meant to end, with one of these exit codes."""
        code = await worker.wait(seconds)
        self.workers.remove(worker)
        self.retired.append(worker)
        assert code in codes, f"a worker ended with {code}, not {codes}: {worker.errors()[-2000:]}"

    async def replace(self, *tampering: str) -> WorkerProcess:
        """Have the oldest worker leave, and another one come, tampered with or not."""
        leaving = self.workers[0]
        await self.leave(leaving)
        return await self.start_worker(*tampering)

    async def leave(self, worker: WorkerProcess) -> None:
        """Have a worker leave politely."""
        worker.signal(signal.SIGTERM)
        # It may not have been up to catching signals yet.
        await self.ended(worker, 0, -signal.SIGTERM)

    def working(self) -> list[WorkerProcess]:
        """The workers that have partitions, of which each is ready."""
        return [worker for worker in self.workers if worker.running and worker.all_ready()]

    async def owner(self, partition: int) -> WorkerProcess:
        """The worker that has this partition, and is ready."""

        def find() -> WorkerProcess | None:
            owners = [w for w in self.working() if partition in w.assigned()]
            # Somebody who has not noticed a rebalance yet may name it, too.
            return owners[0] if len(owners) == 1 else None

        owner = await until(find, f"somebody has partition {partition}", RECOVERY_SECONDS_MAX)
        assert isinstance(owner, WorkerProcess)
        return owner

    async def tampered(self, worker: WorkerProcess, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until the point is reached at which the worker was tampered with; the log's line."""

        def reached() -> list[dict[str, Any]]:
            lines = worker.logged("tampered")
            assert lines or worker.running, worker.errors()[-2_000:]
            return lines

        lines = await until(reached, "the point is reached", seconds)
        return dict(lines[0])

    async def under_way(self) -> None:
        """Wait until every partition commits, with more to do, and a transaction is open."""
        await self.watch.two_commits_of_each()
        topic, partitions = self.site.config.topics.training, range(self.site.partitions)

        async def is_open() -> bool:
            ends = await self.probe.ends(topic, self.site.partitions)
            return ends.open(partitions) and min(self.watch.lag(self.load.ends).values()) > 0

        await until(is_open, "a transaction is open, and there is work left", 60)

    def over(self) -> None:
        """Say that the fault has been taken away now, or that it has landed for good."""
        self._over = time.monotonic(), self.watch.advances.copy()

    async def injected(self, rng: random.Random) -> float:
        """Have the fault occur once; how many seconds the recovery took.

        It has recovered when every partition has committed offsets at least twice since: the one
        transaction that may have been on its way does not count. The load sees to it that each
        has something to commit.
        """
        self._over = None
        await self.scenario.inject(self, rng)
        if self._over is None:
            self.over()
        assert self._over is not None
        at, since = self._over
        await self.watch.two_commits_of_each(since)
        return time.monotonic() - at

    async def surprises(self) -> list[str]:
        """Put others in the place of workers that have ended without being meant to."""
        dead = [worker for worker in self.workers if not worker.running]
        for worker in dead:
            self.workers.remove(worker)
            self.retired.append(worker)
            await self.start_worker()
        return [f"a worker ended by itself: {worker.errors()[-2000:]}" for worker in dead]

    async def stop_workers(self) -> None:
        """End all workers politely."""
        await asyncio.gather(*map(self.leave, list(self.workers)))

    async def tear_down(self) -> None:
        """End what still runs."""
        for worker in (*self.workers, *self.retired):
            await worker.end()


class Watch:
    """Follows the group's committed offsets, also over times without a broker."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.committed = Counter[int]()
        self.advances = Counter[int]()
        """How often each partition's offset was seen to have moved on."""

    async def run(self) -> None:
        """Follow for ever."""
        topic, partitions = self._site.content, range(self._site.partitions)
        while True:
            with suppress(KafkaError, OSError):
                found = await self._site.probe.offsets(self._site.config.group, topic, partitions)
                for partition, offset in found.items():
                    if offset > self.committed[partition]:
                        self.committed[partition] = offset
                        self.advances[partition] += 1
            await asyncio.sleep(WATCH_SECONDS)

    def decided(self) -> int:
        """How many offsets have been decided."""
        return sum(self.committed.values())

    def lag(self, ends: Mapping[int, int]) -> dict[int, int]:
        """How many offsets each partition has left."""
        return {partition: end - self.committed[partition] for partition, end in ends.items()}

    async def two_commits_of_each(self, since: Counter[int] | None = None) -> None:
        """Wait until each partition's offset has moved twice since then, or since now."""
        before = self.advances.copy() if since is None else since

        def moved() -> bool:
            return all(self.advances[p] >= before[p] + 2 for p in range(self._site.partitions))

        await until(moved, "every partition commits", RECOVERY_SECONDS_MAX)


class Load:
    """Posts of everybody, so many that none of the partitions runs out, and changes of mind.

    What was not acknowledged is appended again, whatever it takes; a record that thereby comes
    twice is two records.
    """

    def __init__(self, site: Site, watch: Watch, rng: random.Random) -> None:
        self._site = site
        self._watch = watch
        self._random = rng
        self._round = 0
        partitions = range(site.partitions)
        self._people: dict[int, list[str]] = {p: [] for p in partitions}
        for person in PEOPLE:
            self._people[self.partition_of(person)].append(person)
        self.ends = dict.fromkeys(partitions, 0)
        """So many records of each content partition have been acknowledged."""
        self.floor = dict.fromkeys(partitions, 0)
        """Up to here each consent partition has been acknowledged."""
        self._gone: set[str] = set()

    def partition_of(self, person: str) -> int:
        """Where the records of this person's are."""
        return self._site.feed.partition_of(consent(person), range(self._site.partitions))

    async def post_for_ever(self) -> None:
        """Keep a backlog in every partition."""
        while True:
            wanting = [p for p, lag in self._watch.lag(self.ends).items() if lag < BACKLOG]
            for partition in wanting:
                await self._post(partition)
            if not wanting:
                await asyncio.sleep(WATCH_SECONDS)

    async def _post(self, partition: int) -> None:
        self._round += 1
        await self._append(partition, self._people[partition])

    async def _append(self, partition: int, people: Sequence[str]) -> None:
        headers = ((FLOOR_HEADER, str(self.floor[partition]).encode()),)
        posts = [post(p, f"{self._round}")._replace(headers=headers) for p in people]
        await persistently(
            lambda: self._site.feed.many(self._site.content, posts, partition, SMALL_BYTES)
        )
        self.ends[partition] += len(posts)

    async def change_for_ever(self) -> None:
        """Have people change their minds."""
        while True:
            people = [p for p in self._random.sample(PEOPLE, CHANGES) if p not in self._gone]
            await asyncio.gather(*(self._choose(p, self._choice(p)) for p in people))
            await asyncio.sleep(CHANGE_SECONDS)

    async def withdraw(self, person: str) -> None:
        """Have somebody withdraw for good, and then post."""
        self._gone.add(person)
        await self._choose(person, consent(person, "withdrawn"))
        await self._append(self.partition_of(person), [person])

    def withdrawable(self, partition: int) -> list[str]:
        """Who of this partition's people has not withdrawn for good."""
        return [person for person in self._people[partition] if person not in self._gone]

    def _choice(self, person: str) -> Sent:
        choice = self._random.choice(("granted", "granted", "withdrawn", "withdrawn", None))
        # None: the person's record is deleted.
        return consent(person, choice) if choice else Sent(person.encode(), None)

    async def _choose(self, person: str, sent: Sent) -> None:
        """Append a consent record and raise the floor when it is acknowledged."""
        offset = await persistently(lambda: self._site.feed.one(self._site.consent, sent))
        partition = self.partition_of(person)
        self.floor[partition] = max(self.floor[partition], offset + 1)


async def persistently(append: Callable[[], Awaitable[Any]]) -> Any:
    """Append until it is acknowledged."""
    while True:
        try:
            return await append()
        except (KafkaError, OSError):
            await asyncio.sleep(WATCH_SECONDS)


async def run(
    scenario: Scenario,
    seed: int,
    injections: int,
    records: int,
    progress: Callable[[int, int], None] = lambda decided, injected: None,
) -> Result:
    """Have the fault occur so often while at least so many records go through, and check.

    The seed settles the order of things, not their timing. On a problem the workers' logs are kept.
    """
    directory = Path(tempfile.mkdtemp(prefix=f"consentgate-{scenario.name}-"))
    try:
        async with _arena(scenario, seed, directory) as arena:
            result = await _run_in(arena, seed, injections, records, progress)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    if not result.problems:
        shutil.rmtree(directory)
    return result


@asynccontextmanager
async def _arena(scenario: Scenario, seed: int, directory: Path) -> AsyncIterator[Arena]:
    async with AsyncExitStack() as stack:
        log_path = directory / "broker.log"
        kafka = scenario.make_broker(log_path=log_path, config={**BROKER, **scenario.broker})
        await asyncio.to_thread(kafka.__enter__)
        # Not in a thread, so that a second Ctrl-C does not leave the broker behind.
        stack.callback(kafka.__exit__, None, None, None)
        probe = await stack.enter_async_context(Probe(kafka))
        feed = await stack.enter_async_context(Feed(kafka))
        arena = Arena(kafka, probe, feed, directory, scenario)
        arena.surroundings = await stack.enter_async_context(scenario.surround(arena))
        stack.push_async_callback(arena.tear_down)
        await arena.set_up(seed)
        yield arena


async def _run_in(
    arena: Arena,
    seed: int,
    injections: int,
    records: int,
    progress: Callable[[int, int], None],
) -> Result:
    scenario = arena.scenario
    rng = random.Random(f"{scenario.name} {seed}")
    recovery_seconds: list[float] = []
    problems: list[str] = []

    async def reach(number: int) -> None:
        def reached() -> bool:
            progress(arena.watch.decided(), len(recovery_seconds))
            return arena.watch.decided() >= number

        await until(reached, f"{number} records are decided", 60 + records / 100)

    watching = asyncio.create_task(arena.watch.run())
    loading = [
        asyncio.create_task(arena.load.post_for_ever()),
        asyncio.create_task(arena.load.change_for_ever()),
    ]
    try:
        await arena.watch.two_commits_of_each()
        for number in range(injections):
            await reach(number * records // injections)
            recovery_seconds.append(await arena.injected(rng))
            problems += await arena.surprises()
            if problems:
                break
        await reach(records)
    except (AssertionError, TimeoutError) as error:
        problems.append(f"injection {len(recovery_seconds) + 1}: {error!r}")
    finally:
        failures = await _end([watching, *loading])
    problems += failures
    try:
        await arena.site.decided(DRAIN_SECONDS_MAX)
        problems += await arena.surprises()
        await arena.stop_workers()
    except (AssertionError, TimeoutError) as error:
        problems.append(f"at the end: {error!r}")
    seen = await arena.site.seen()
    problems += [*checker.problems(seen), *stale(seen)]
    if problems:
        problems.append(f"the logs are in {arena.directory}")
    appended = sum(map(len, seen.content.values()))
    tally = checker.tally(seen)
    return Result(
        scenario, seed, appended, len(recovery_seconds), tally, recovery_seconds, problems
    )


async def _end(tasks: Sequence["asyncio.Task[None]"]) -> list[str]:
    """End the tasks; what had ended them before."""
    failures = [repr(task.exception()) for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return failures


def stale(seen: checker.Seen) -> list[str]:
    """Posts that were decided below the consent that was acknowledged when they were appended."""
    found = []
    for partition, records in seen.content.items():
        entries = (entry for entry in seen.chains[partition] if entry.reasons)
        entry = next(entries, None)
        for record in records:
            while entry is not None and entry.last < record.offset:
                entry = next(entries, None)
            floor = int(dict(record.headers or ())[FLOOR_HEADER] or b"")
            if entry is not None and entry.frontier[partition] < floor:
                found.append(
                    f"content-{partition}@{record.offset}: was decided at consent "
                    f"{entry.frontier[partition]}, though {floor} had been acknowledged"
                )
    return found[: checker.PROBLEMS_MAX]
