"""`make endurance`: a worker under full load for long, and under load that is out of measure.

One worker, as shipped, on the embedded broker. Four parts, each with topics of its own:

- `steady`: content without end, and people who change their minds. Memory must not grow.
- `slow`: what is written within transactions is answered late. Memory must stay bounded.
- `large`: values of nearly a megabyte, some beyond the limit, in batches that unpack to many times
  of what they were.
- `withdrawals`: 10,000 people a second withdraw, while content goes on.

Memory, file descriptors, threads and sockets are sampled once a second. Exits with 1 where memory
has grown, where something was not decided, or where the worker has said that it is not live.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import orjson
import yaml
from aiokafka import AIOKafkaProducer
from rich.console import Console

from arguments import parsed
from backlog import state
from consentgate.config import load_config
from consentgate.kafka.cluster import TopicPlan, connected
from consentgate.kafka.guards import plan_topics
from consentgate.kafka.settings import kafka_settings
from peers.task import PARTITIONS
from process import Failed, Running, running
from proxy import Api, DelayResponse, ProxiedKafka, Proxy
from report import RESULTS, machine_of_run
from topics import partition_of
from workload import POLICY, Workload

CLIENT_ID = "endurance"
SUBJECTS = 200_000
EVENTS = 50_000
"""So many different events are made; they are appended again and again."""

BACKLOG = 60_000
"""So many offsets of the content topic are kept waiting."""

ROUND = 10_000
CHANGES_PER_SECOND = 100
WITHDRAWALS_PER_SECOND = 10_000
TICK_SECONDS = 0.1

SLOW_ANSWER_SECONDS = 1.0
LARGE, TOO_LARGE = 850_000, 950_000
UNPACKED = 40
"""So many large values are in one compressed batch."""

WARM_UP = 0.25
"""This share of a part is left out where growth is asked for."""

BLOCKS = 30
GROWTH_MAX = 0.03
"""By such a share of itself memory may have grown, with 95 % confidence, in the time looked at."""

MORE_HANDLES_MAX = 8
DECIDED_SECONDS_MAX = 180.0

CONTENT = {"retention.bytes": str(1 << 29), "segment.bytes": str(1 << 26)}
"""Else the disk is full before a long run is over; far more than the backlog."""

BROKER = {
    "log.retention.check.interval.ms": "3000",
    "log.segment.delete.delay.ms": "1000",
    "message.max.bytes": str(8 << 20),
    "replica.fetch.max.bytes": str(8 << 20),
}
# Of Student's distribution, two-sided, 95 %, by degrees of freedom; beyond these it hardly changes.
_T = {5: 2.57, 10: 2.23, 15: 2.13, 20: 2.09, 28: 2.05, 60: 2.0}

console = Console(width=None if sys.stdout.isatty() else 140)
KeyAndValue = tuple[bytes, bytes]


@dataclass(frozen=True)
class Sample:
    """What the worker looked like at one moment."""

    seconds: float
    rss_mb: float
    fds: int
    sockets: int
    threads: int
    consumed: int
    lag: int
    stale_seconds: float


@dataclass
class Part:
    """What a part came to."""

    name: str
    seconds: float
    events_per_second: float
    rss_mb: tuple[float, float, float]  # at first, at the most, at last
    mb_per_hour: tuple[float, float, float] | None  # slope, and its interval of confidence
    fds: tuple[int, int]  # at first and at the most
    sockets: tuple[int, int]
    threads: tuple[int, int]
    lag_max: int
    stale_seconds_max: float
    rss_mb_by_minute: list[float]  # medians, to see whether growth comes to an end
    more: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Observed:
    """A worker, its topics, and those who append."""

    def __init__(self, worker: Running, producer: AIOKafkaProducer, names: Mapping[str, str]):
        self.worker = worker
        self.producer = producer
        self.content = names["content"]
        self.consent = names["consent"]
        self.samples: list[Sample] = []
        self.not_live = 0
        self._began = time.monotonic()
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10))
        self._url = ""

    async def close(self) -> None:
        """Ask no more."""
        await self._session.close()

    async def ready(self) -> None:
        """Wait until `/readyz` is green."""
        deadline = time.monotonic() + DECIDED_SECONDS_MAX
        while time.monotonic() < deadline:
            self.worker.usage()
            for line in self.worker.stderr.splitlines():
                if '"event": "started"' in line:
                    self._url = json.loads(line)["http"]
            if self._url and (await self._get("/readyz"))[0] == 200:
                self._began = time.monotonic()
                return
            await asyncio.sleep(0.2)
        raise Failed("is not ready")

    async def metrics(self) -> dict[str, float]:
        """All series by their names with labels."""
        _, page = await self._get("/metrics")
        lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    async def look(self) -> Sample:
        """One more sample."""
        self.worker.usage()
        found, pid = await self.metrics(), self.worker.pid
        status = Path(f"/proc/{pid}/status").read_text()
        sample = Sample(
            seconds=time.monotonic() - self._began,
            rss_mb=found["process_resident_memory_bytes"] / 1e6,
            fds=int(found["process_open_fds"]),
            sockets=sum(map(_is_socket, Path(f"/proc/{pid}/fd").iterdir())),
            threads=int(status.partition("Threads:")[2].split()[0]),
            consumed=int(found["consentgate_consumed_records_total"]),
            lag=int(total(found, "consentgate_lag_records")),
            stale_seconds=max(
                (v for n, v in found.items() if n.startswith("consentgate_consent_staleness")),
                default=0.0,
            ),
        )
        self.samples.append(sample)
        if (await self._get("/livez"))[0] != 200:
            self.not_live += 1
        return sample

    async def watch(self, seconds: float) -> None:
        """Sample for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await self.look()
            await asyncio.sleep(1)

    async def append(self, topic: str, records: Sequence[KeyAndValue]) -> None:
        """Append records in batches, each in the partition of its key."""
        batches: dict[int, Any] = {}
        sent = []
        for key, value in records:
            number = partition_of(key)
            batch = batches.get(number) or self.producer.create_batch()
            if batch.append(key=key, value=value, timestamp=None) is None:
                sent.append(await self.producer.send_batch(batch, topic, partition=number))
                batch = self.producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
            batches[number] = batch
        for number, batch in batches.items():
            sent.append(await self.producer.send_batch(batch, topic, partition=number))
        await asyncio.gather(*sent)

    async def keep_waiting(self, events: Sequence[KeyAndValue]) -> None:
        """Keep a backlog of content, for ever."""
        appended, place = 0, 0
        while True:
            consumed = self.samples[-1].consumed if self.samples else 0
            # What is consumed between two samples is made up for in advance.
            if appended - consumed < BACKLOG + ROUND * 10:
                await self.append(self.content, events[place : place + ROUND])
                appended += ROUND
                place = (place + ROUND) % len(events)
            else:
                await asyncio.sleep(0.05)

    async def decided(self, consumed: int) -> float:
        """Wait until so many records have been decided; how long that took."""
        began = time.monotonic()
        while (await self.look()).consumed < consumed:
            if time.monotonic() - began > DECIDED_SECONDS_MAX:
                raise Failed(f"{self.samples[-1].consumed:,} of {consumed:,} records are decided")
            await asyncio.sleep(0.5)
        return time.monotonic() - began

    async def _get(self, path: str) -> tuple[int, str]:
        async with self._session.get(self._url + path) as response:
            return response.status, await response.text()


def _is_socket(link: Path) -> bool:
    try:
        return os.readlink(link).startswith("socket:")
    except OSError:
        return False


def total(found: Mapping[str, float], name: str) -> float:
    """The sum over all series of a metric."""
    return sum(value for n, value in found.items() if n.partition("{")[0] == name)


class Endurance:
    """Runs the parts on one broker."""

    def __init__(self, kafka: ProxiedKafka, proxy: Proxy, args: argparse.Namespace) -> None:
        self._kafka = kafka
        self._proxy = proxy
        self._args = args
        self._workload = Workload(SUBJECTS)
        self._events = [(event.key, event.value) for event in self._workload.events(EVENTS)]
        self._random = random.Random(11)

    async def steady(self) -> Part:
        """Content without end, and changes of mind."""
        seconds = self._args.minutes * 60
        async with self._worker("steady") as it, doing(it.keep_waiting(self._events)):
            async with doing(self._change_minds(it)):
                await it.watch(seconds)
            return summed_up("steady", it, grows=True)

    async def slow(self) -> Part:
        """Transactions that are answered late, and then no more."""
        seconds = self._args.seconds
        async with self._worker("slow", self._proxy.bootstrap_servers) as it:
            async with doing(it.keep_waiting(self._events)):
                await it.watch(seconds / 3)
                before, fetched = it.samples[-1], self._fetches()
                rule = self._proxy.add(
                    lambda r: r.api_key == Api.PRODUCE and r.transactional_id is not None,
                    DelayResponse(SLOW_ANSWER_SECONDS),
                    times=sys.maxsize,
                )
                await it.watch(seconds)
                slow, slow_fetches = it.samples[-1], self._fetches() - fetched
                rule.times = 0
                await it.watch(seconds / 3)
            part = summed_up("slow", it, grows=False)
            took = slow.seconds - before.seconds
            part.more = {
                "events_per_second_before": round(before.consumed / before.seconds),
                "events_per_second_slow": round((slow.consumed - before.consumed) / took),
                "fetches_per_second_before": round(fetched / before.seconds, 1),
                "fetches_per_second_slow": round(slow_fetches / took, 1),
                "rss_mb_before": round(before.rss_mb, 1),
                "rss_mb_max_slow": round(
                    max(s.rss_mb for s in it.samples if before.seconds < s.seconds <= slow.seconds),
                    1,
                ),
            }
            if part.more["rss_mb_max_slow"] > before.rss_mb * 1.5:
                part.problems.append("memory grows where what is written is answered late")
            return part

    def _fetches(self) -> int:
        return self._proxy.requests[CLIENT_ID, Api.FETCH]

    async def large(self) -> Part:
        """Values near and beyond the limit, and batches that unpack to many times their size."""
        number = self._args.large
        async with self._worker("large") as it:
            at_first = await it.look()
            for n in range(number):
                size = TOO_LARGE if n % 10 == 0 else LARGE
                await it.append(it.content, [self._large(f"l{n}", size)])
            plain_seconds = await it.decided(number)
            plain_mb = max(s.rss_mb for s in it.samples)
            async with compressing_producer(self._kafka.bootstrap_servers) as producer:
                for n in range(number // UNPACKED):
                    batch = producer.create_batch()
                    for m in range(UNPACKED):
                        key, value = self._large(f"c{n}-{m}", LARGE)
                        batch.append(key=key, value=value, timestamp=None)
                    sent = await producer.send_batch(batch, it.content, partition=n % PARTITIONS)
                    await sent
            packed_seconds = await it.decided(number + number // UNPACKED * UNPACKED)
            part = summed_up("large", it, grows=False)
            found = await it.metrics()
            part.more = {
                "values": number,
                "rss_mb_at_first": round(at_first.rss_mb, 1),
                "rss_mb_max_plain": round(plain_mb, 1),
                "seconds_plain": round(plain_seconds, 1),
                "seconds_packed": round(packed_seconds, 1),
                "too_large": int(
                    sum(v for n, v in found.items() if "decisions" in n and '"too-large"' in n)
                ),
            }
            return part

    def _large(self, name: str, size: int) -> KeyAndValue:
        key, value = self._random.choice(self._events)
        event = orjson.loads(value) | {"id": name, "body": {"text": "x" * size}}
        return key, orjson.dumps(event)

    async def withdrawals(self) -> Part:
        """Ten thousand withdrawals a second, of people of whom each does so once."""
        seconds, rate = self._args.seconds, self._args.rate
        async with self._worker("withdrawals", subjects=seconds * rate) as it:
            async with doing(it.keep_waiting(self._events)):
                await it.watch(max(5, seconds / 3))
                before, counted = it.samples[-1], await it.metrics()
                watching = asyncio.create_task(it.watch(seconds))
                sent_seconds = await self._withdraw(it, seconds, rate)
                await watching
                during = it.samples[-1]
                behind_seconds = await self._in_effect(it, counted, seconds * rate)
                await it.watch(5)
            found = await it.metrics()
            part = summed_up("withdrawals", it, grows=False)
            name = "consentgate_withdrawal_effect_seconds"
            count = total(found, f"{name}_count") - total(counted, f"{name}_count")
            effect = total(found, f"{name}_sum") - total(counted, f"{name}_sum")
            took = during.seconds - before.seconds
            part.more = {
                "withdrawals": seconds * rate,
                "withdrawals_per_second": round(seconds * rate / sent_seconds),
                "in_effect": int(count),
                "effect_seconds_mean": round(effect / count, 3) if count else None,
                "effect_seconds_p50_at_most": bucket_of(name, counted, found, 0.5),
                "effect_seconds_p99_at_most": bucket_of(name, counted, found, 0.99),
                "events_per_second_before": round(before.consumed / before.seconds),
                "events_per_second_meanwhile": round((during.consumed - before.consumed) / took),
                "seconds_until_all_were_in_effect": round(behind_seconds, 1),
                "recycled": int(
                    found.get('consentgate_transactions_total{outcome="recycled"}', 0)
                    - counted.get('consentgate_transactions_total{outcome="recycled"}', 0)
                ),
                "aborted": int(
                    found.get('consentgate_transactions_total{outcome="aborted"}', 0)
                    - counted.get('consentgate_transactions_total{outcome="aborted"}', 0)
                ),
            }
            return part

    async def _withdraw(self, it: Observed, seconds: int, rate: int) -> float:
        began, per_tick = time.monotonic(), int(rate * TICK_SECONDS)
        for tick in range(int(seconds / TICK_SECONDS)):
            people = range(tick * per_tick, (tick + 1) * per_tick)
            await it.append(it.consent, [choice_of(f"w{n}", "withdrawn") for n in people])
            await asyncio.sleep(max(0.0, began + (tick + 1) * TICK_SECONDS - time.monotonic()))
        return time.monotonic() - began

    async def _in_effect(self, it: Observed, counted: Mapping[str, float], number: int) -> float:
        name = "consentgate_withdrawal_effect_seconds_count"
        began = time.monotonic()
        while total(await it.metrics(), name) - total(counted, name) < number:
            await it.look()
            if time.monotonic() - began > DECIDED_SECONDS_MAX:
                break
            await asyncio.sleep(0.5)
        return time.monotonic() - began

    async def _change_minds(self, it: Observed) -> None:
        per_tick = int(CHANGES_PER_SECOND * TICK_SECONDS)
        choices = ("granted", "withdrawn", "denied", None)
        while True:
            people = self._random.sample(range(SUBJECTS), per_tick)
            changes = [choice_of(f"m{n}", self._random.choice(choices)) for n in people]
            await it.append(it.consent, changes)
            await asyncio.sleep(TICK_SECONDS)

    @asynccontextmanager
    async def _worker(
        self, name: str, servers: str = "", subjects: int = 0
    ) -> AsyncIterator[Observed]:
        """A worker that is ready, with topics of its own; `subjects` are further people."""
        roles = ("content", "consent", "training", "decisions", "quarantine", "retractions")
        topics = {role: f"{name}-{role}" for role in roles}
        with TemporaryDirectory() as directory:
            path = Path(directory, "consentgate.yaml")
            Path(directory, "policy.yaml").write_text(POLICY)
            client = {"client.id": CLIENT_ID}
            settings = {
                "kafka": {
                    "bootstrap.servers": servers or self._kafka.bootstrap_servers,
                    **client,
                },
                "group": name,
                "topics": topics,
                "policy": str(Path(directory, "policy.yaml")),
                "http": {"port": 0},
            }
            path.write_text(yaml.safe_dump(settings))
            await self._create(str(path))
            async with plain_producer(self._kafka.bootstrap_servers) as producer:
                command = [sys.executable, "-m", "consentgate", "run", "-c", str(path)]
                with running([*command, "--log-json"], Path(directory)) as worker:
                    it = Observed(worker, producer, topics)
                    try:
                        for some in chunks(self._people(subjects), ROUND):
                            await it.append(it.consent, some)
                        await it.ready()
                        yield it
                    finally:
                        await it.close()

    def _people(self, subjects: int) -> Iterator[KeyAndValue]:
        yield from self._workload.consent()
        yield from (choice_of(f"w{n}", "granted") for n in range(subjects))

    async def _create(self, path: str) -> None:
        config = load_config(path, environment={})
        settings = kafka_settings({"bootstrap.servers": self._kafka.bootstrap_servers})
        async with connected(settings, timeout_seconds=60) as cluster:
            for plan in plan_topics(config, PARTITIONS):
                bounded = plan.name in (config.topics.content, config.topics.training)
                room = {"max.message.bytes": str(8 << 20)}
                configs = {**plan.configs, **(CONTENT if bounded else {})}
                if plan.name == config.topics.content:
                    configs |= room
                await cluster.create(TopicPlan(plan.name, plan.partitions, configs), 1)


def choice_of(subject: str, choice: str | None) -> KeyAndValue:
    """A consent record of somebody, with their choice or without any."""
    return subject.encode(), state(subject.encode(), choice)


def chunks(records: Iterator[KeyAndValue], size: int) -> Iterator[list[KeyAndValue]]:
    """Runs of so many records."""
    while some := [record for _, record in zip(range(size), records, strict=False)]:
        yield some


def plain_producer(servers: str) -> AIOKafkaProducer:
    """Appends as it is."""
    return AIOKafkaProducer(
        bootstrap_servers=servers, acks="all", max_batch_size=1 << 20, max_request_size=4 << 20
    )


def compressing_producer(servers: str) -> AIOKafkaProducer:
    """Appends batches that are far smaller than what is in them."""
    return AIOKafkaProducer(
        bootstrap_servers=servers,
        acks="all",
        compression_type="gzip",
        max_batch_size=UNPACKED * (1 << 20),
        max_request_size=UNPACKED * (1 << 20),
    )


@asynccontextmanager
async def doing(activity: Any) -> AsyncIterator[None]:
    """Have something done for the time of a block; its failure is the block's."""
    task = asyncio.create_task(activity)
    try:
        yield
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def summed_up(name: str, it: Observed, *, grows: bool) -> Part:
    """What the samples of a part say; with `grows`, memory and handles must not have grown."""
    samples = it.samples
    first, last = samples[0], samples[-1]
    seconds = last.seconds - first.seconds
    part = Part(
        name,
        round(seconds, 1),
        round((last.consumed - first.consumed) / seconds, 1),
        (round(first.rss_mb, 1), round(max(s.rss_mb for s in samples), 1), round(last.rss_mb, 1)),
        None,
        (first.fds, max(s.fds for s in samples)),
        (first.sockets, max(s.sockets for s in samples)),
        (first.threads, max(s.threads for s in samples)),
        max(s.lag for s in samples),
        round(max(s.stale_seconds for s in samples), 2),
        by_minute(samples),
    )
    if it.not_live:
        part.problems.append(f"was not live in {it.not_live} of {len(samples)} samples")
    if grows:
        kept = [s for s in samples if s.seconds - first.seconds > seconds * WARM_UP]
        part.mb_per_hour = slope([(s.seconds, s.rss_mb) for s in kept])
        hours = (kept[-1].seconds - kept[0].seconds) / 3600
        if part.mb_per_hour[1] * hours > GROWTH_MAX * statistics.median(s.rss_mb for s in kept):
            part.problems.append("memory grows")
        middle = len(kept) // 2
        for what in ("fds", "sockets", "threads"):
            of: Callable[[Sample], int] = lambda s, what=what: getattr(s, what)  # noqa: E731
            if max(map(of, kept[middle:])) > max(map(of, kept[:middle])) + MORE_HANDLES_MAX:
                part.problems.append(f"the number of {what} grows")
    return part


def by_minute(samples: Sequence[Sample]) -> list[float]:
    """The memory in MB, minute by minute."""
    minutes = groupby(samples, lambda sample: sample.seconds // 60)
    return [round(statistics.median(s.rss_mb for s in those), 1) for _, those in minutes]


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """MB an hour by least squares, and the interval of confidence of 95 %.

    Neighbouring samples are alike; so the medians of blocks count, as if these were independent.
    """
    size = max(1, len(points) // BLOCKS)
    blocks = [points[i : i + size] for i in range(0, len(points) - size + 1, size)]
    xs = [statistics.fmean(x for x, _ in block) / 3600 for block in blocks]
    ys = [statistics.median(y for _, y in block) for block in blocks]
    line = statistics.linear_regression(xs, ys)
    residuals = [y - line.slope * x - line.intercept for x, y in zip(xs, ys, strict=True)]
    freedom = len(xs) - 2
    spread = sum((x - statistics.fmean(xs)) ** 2 for x in xs)
    error = (sum(r * r for r in residuals) / freedom / spread) ** 0.5
    t = next((t for degrees, t in _T.items() if freedom <= degrees), 1.96)
    return tuple(round(v, 1) for v in (line.slope, line.slope - t * error, line.slope + t * error))  # type: ignore[return-value]


def bucket_of(
    name: str, before: Mapping[str, float], after: Mapping[str, float], share: float
) -> float | None:
    """The bound of the bucket of a histogram in which this share of what came since lies."""
    prefix = f'{name}_bucket{{le="'
    bounds = sorted(
        (float(n[len(prefix) :].partition('"')[0]), v - before.get(n, 0))
        for n, v in after.items()
        if n.startswith(prefix)
    )
    number = bounds[-1][1] if bounds else 0
    return next((bound for bound, v in bounds if number and v >= share * number), None)


async def measure(args: argparse.Namespace) -> list[Part]:
    """All parts that are asked for."""
    parts = []
    with ProxiedKafka(config=BROKER) as kafka:
        async with kafka.proxy() as proxy:
            endurance = Endurance(kafka, proxy, args)
            for name in args.parts:
                console.print(f"{name} ...")
                part: Part = await getattr(endurance, name)()
                parts.append(part)
                console.print(part, highlight=False)
    return parts


PARTS = ("steady", "slow", "large", "withdrawals")
FULL = {"minutes": 30, "seconds": 60, "large": 400}
QUICK = {"minutes": 1, "seconds": 15, "large": 80}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, help=f"of `steady`: {FULL['minutes']}")
    parser.add_argument("--seconds", type=int, help=f"of each other part: {FULL['seconds']}")
    parser.add_argument("--large", type=int, help=f"large values: {FULL['large']}")
    parser.add_argument("--rate", type=int, default=WITHDRAWALS_PER_SECOND, help="withdrawals/s")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    return parsed(parser, FULL, QUICK)


def main() -> None:
    """Run, print, write; exit with 1 where something is wrong."""
    args = arguments()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    parts = asyncio.run(measure(args))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "endurance.json"
    figures = {
        "machine": machine_of_run(),
        "arguments": vars(args),
        "parts": [asdict(part) for part in parts],
    }
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    console.print(f"everything: {path}", highlight=False)
    for part in parts:
        for problem in part.problems:
            console.print(f"{part.name}: {problem}", style="red", markup=False)
    sys.exit(any(part.problems for part in parts))


if __name__ == "__main__":
    main()
