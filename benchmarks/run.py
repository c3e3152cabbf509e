"""`make bench`: this project beside a plain aiokafka loop, in one run, on the embedded broker.

Both decide on the same events with the same code; the forwarded records of both are compared with
the expected ones, record by record. Rates are of the steady state, from a third of the output on,
read off the training topics' end offsets, and the two take turns.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from rich.console import Console
from rich.progress import track
from rich.table import Table

import plain
from consentgate.tools.broker import EmbeddedKafka
from workload import POLICY, Workload

PARTITIONS = 4
RESULTS = Path(__file__).parent / "results"
console = Console()


@dataclass(frozen=True)
class Round:
    """What one run of one contender came to, in its steady state."""

    events_per_second: float
    cpu_us_per_event: float
    peak_rss_mb: float


def main() -> None:
    """Parse the arguments, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--subjects", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedKafka() as kafka:
        bench = Bench(kafka.bootstrap_servers, Path(directory), args.events, args.subjects)
        asyncio.run(bench.prepare())
        rounds: dict[str, list[Round]] = {"consentgate": [], "plain aiokafka loop": []}
        for number in range(args.rounds):
            rounds["consentgate"].append(bench.consentgate(number))
            rounds["plain aiokafka loop"].append(bench.plain(number))
    report(rounds, args)


class Bench:
    """The topics, the contenders and the comparison."""

    def __init__(self, servers: str, directory: Path, events: int, subjects: int) -> None:
        self._servers = servers
        self._directory = directory
        self._events = events
        self._workload = Workload(subjects)
        self._expected: Counter[bytes] = Counter()
        self._policy = directory / "policy.yaml"
        self._policy.write_text(POLICY)

    @property
    def expected(self) -> int:
        """Number of records that are to be forwarded."""
        return self._expected.total()

    async def prepare(self) -> None:
        """Create the input topics and fill them."""
        await self._create("consent-state", {"cleanup.policy": "compact"})
        await self._create("content-events", {})
        consent = ((key, value) for key, value in self._workload.consent())
        await self._fill("consent-state", consent, "consent")
        await self._fill("content-events", self._expected_events(), "events")

    def consentgate(self, number: int) -> Round:
        """This project as shipped, in a new group with new output topics."""
        name = f"bench-{number}"
        config = {
            "kafka": {"bootstrap.servers": self._servers},
            "group": name,
            "topics": {
                topic: f"{name}-{topic}"
                for topic in ("training", "decisions", "quarantine", "retractions")
            },
            "policy": str(self._policy),
            "http": {"port": 0},
        }
        path = self._directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "consentgate"]
        create = ["topics", "create", "-c", str(path), "--partitions", str(PARTITIONS)]
        subprocess.run([*command, *create], check=True, stdout=subprocess.DEVNULL)
        run = [*command, "run", "-c", str(path), "--until-drained", "--format", "json"]
        return self._measure(run, f"{name}-training")

    def plain(self, number: int) -> Round:
        """The plain loop, in a new group with a new output topic."""
        name = f"plain-{number}"
        asyncio.run(self._create(name, {}))
        script = Path(__file__).with_name("plain.py")
        arguments = [self._servers, str(self._policy), str(PARTITIONS), str(self._events), name]
        return self._measure([sys.executable, str(script), *arguments], name)

    def _measure(self, command: list[str], topic: str) -> Round:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        samples = asyncio.run(self._watch(process, topic))
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}: {output}")
        asyncio.run(self._compare(topic))
        return steady_state(samples, self._events)

    async def _watch(
        self, process: "subprocess.Popen[str]", topic: str
    ) -> list[tuple[float, int, float, float]]:
        """(seconds, records in the topic, CPU seconds, peak memory) every 100 ms."""
        tps = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        samples = []
        async with AIOKafkaConsumer(bootstrap_servers=self._servers) as consumer:
            while process.poll() is None:
                cpu, rss = usage_of(process.pid)
                ends = await consumer.end_offsets(tps)
                if cpu:
                    samples.append((time.monotonic(), sum(ends.values()), cpu, rss))
                await asyncio.sleep(0.05)
        return samples

    async def _compare(self, topic: str) -> None:
        """Every expected record is there once, and no other."""
        found: Counter[bytes] = Counter()
        tps = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        async with AIOKafkaConsumer(
            bootstrap_servers=self._servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            **plain.CONSUMER,
        ) as consumer:
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
            while any([await consumer.position(tp) < ends[tp] for tp in tps]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found.update(hashlib.md5(record.value).digest() for record in records)
        if found != self._expected:
            raise SystemExit(
                f"{topic}: {(self._expected - found).total()} expected records are missing, "
                f"{(found - self._expected).total()} are too many"
            )

    def _expected_events(self):
        for event in self._workload.events(self._events):
            if event.forward:
                self._expected[hashlib.md5(event.value).digest()] += 1
            yield event.key, event.value

    async def _fill(self, topic, records, what) -> None:
        """Append in batches of 256 KiB, each record in the partition of its key."""
        total = self._events if what == "events" else None
        async with AIOKafkaProducer(
            bootstrap_servers=self._servers, acks="all", max_batch_size=262_144, linger_ms=5
        ) as producer:
            for key, value in track(records, f"appending {what}", total=total, console=console):
                await producer.send(topic, value, key)
            await producer.flush()

    async def _create(self, name: str, configs: dict[str, str]) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        await admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs=configs)])
        await admin.close()


def steady_state(samples: list[tuple[float, int, float, float]], events: int) -> Round:
    """The rate from a third of the output on."""
    last = samples[-1][1]
    begin = next(sample for sample in samples if sample[1] >= last / 3)
    end = next(sample for sample in samples if sample[1] >= last)
    share = (end[1] - begin[1]) / last
    return Round(
        events_per_second=events * share / (end[0] - begin[0]),
        cpu_us_per_event=(end[2] - begin[2]) / (events * share) * 1e6,
        peak_rss_mb=max(sample[3] for sample in samples),
    )


def usage_of(pid: int) -> tuple[float, float]:
    """CPU seconds and peak memory (MB) of a process; Linux only, zeros elsewhere."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    peak = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0 kB")
    ticks = int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK"), int(peak.split()[1]) / 1024


def report(rounds: dict[str, list[Round]], args: argparse.Namespace) -> None:
    """Print the medians and their ratios; write everything as JSON."""
    medians = {
        name: Round(
            *(statistics.median(getattr(r, field) for r in of) for field in Round.__annotations__)
        )
        for name, of in rounds.items()
    }
    table = Table("contender", "events/s", "CPU µs/event", "peak MB")
    for name, median in medians.items():
        table.add_row(
            name,
            f"{median.events_per_second:,.0f}",
            f"{median.cpu_us_per_event:.2f}",
            f"{median.peak_rss_mb:.0f}",
        )
    console.print(table)
    ours, peer = medians.values()
    rate_ratio = ours.events_per_second / peer.events_per_second
    cpu_ratio = ours.cpu_us_per_event / peer.cpu_us_per_event
    console.print(f"ratio: {rate_ratio:.2f} x events/s, {cpu_ratio:.2f} x CPU an event")
    settings = {"plain consumer": plain.CONSUMER, "plain producer": plain.PRODUCER}
    console.print(f"settings: {settings}; {vars(args)}; {os.cpu_count()} cores, broker on them too")
    RESULTS.mkdir(exist_ok=True)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "arguments": vars(args),
        "settings": settings,
        "rounds": {name: [asdict(r) for r in of] for name, of in rounds.items()},
        "events_per_second_ratio": rate_ratio,
        "cpu_ratio": cpu_ratio,
    }
    (RESULTS / "bench.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
