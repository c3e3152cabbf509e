"""Twenty people withdraw while a backlog, with thousands of their posts in it, is worked off.

How long until each withdrawal takes effect, and how many of their records are committed after it?
Everything is read from the topics: an effect is the time that the broker gave the first ledger
entry whose frontier covers the withdrawal; a record is committed when its ledger entry is.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from rich.console import Console
from rich.progress import track

from consentgate.tools.broker import EmbeddedKafka

PARTITIONS = 4
PEOPLE = 20
POLICY = """\
name: backlog
purpose: ai-training
rules:
  - jurisdictions: ["*"]
    basis: opt-in
"""
console = Console()


class Backlog:
    """The topics, the worker, the withdrawals and what came of them."""

    def __init__(self, servers: str, directory: Path, events: int, theirs: int) -> None:
        self._servers = servers
        self._events = events
        self._theirs = theirs
        self._config = directory / "consentgate.yaml"
        policy = directory / "policy.yaml"
        policy.write_text(POLICY)
        config = {
            "kafka": {"bootstrap.servers": servers},
            "group": "backlog",
            "policy": str(policy),
            "http": {"port": 0},
        }
        self._config.write_text(yaml.safe_dump(config))

    async def prepare(self) -> None:
        """Fill the topics."""
        create = ["topics", "create", "-c", str(self._config), "--partitions", str(PARTITIONS)]
        command = [sys.executable, "-m", "consentgate", *create]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        async with self._producer() as producer:
            for subject in [*self._people(), *(f"m{n}" for n in range(1000))]:
                await producer.send("consent-state", state(subject, "granted"), subject.encode())
            await producer.flush()
            posts = track(self._posts(), "backlog", total=self._events, console=console)
            for number, subject in enumerate(posts):
                value = post(subject, number)
                await producer.send("content-events", value, subject.encode())
            await producer.flush()

    async def run(self, first_seconds: float, pause_seconds: float) -> dict[str, float]:
        """Work the backlog off, and let one after the other withdraw meanwhile."""
        run = ["run", "-c", str(self._config), "--until-drained", "--format", "json"]
        worker = subprocess.Popen(
            [sys.executable, "-m", "consentgate", *run],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        withdrawn: dict[str, tuple[int, int, float]] = {}
        async with self._producer() as producer:
            await self._first_output()
            await asyncio.sleep(first_seconds)
            for subject in self._people():
                sent = await producer.send_and_wait(
                    "consent-state", state(subject, "withdrawn"), subject.encode()
                )
                withdrawn[subject] = (sent.partition, sent.offset, time.time() * 1000)
                await asyncio.sleep(pause_seconds)
        output, _ = await asyncio.to_thread(worker.communicate)
        if worker.returncode:
            raise SystemExit(f"the worker ended with {worker.returncode}")
        return {**await self._effects(withdrawn), **json.loads(output)}

    async def _effects(self, withdrawn: dict[str, tuple[int, int, float]]) -> dict[str, float]:
        entries = [
            (entry.timestamp, orjson.loads(entry.value))
            async for entry in self._read("consent-decisions", 1)
        ]
        effects = {}
        for subject, (partition, offset, acknowledged_ms) in withdrawn.items():
            effects[subject] = next(
                appended_ms - acknowledged_ms
                for appended_ms, entry in entries
                if entry["consent"].get(str(partition), 0) > offset
            )
        committed_at = [
            (e["source"]["partition"], e["source"]["first"], e["source"]["last"], appended_ms)
            for appended_ms, e in entries
        ]
        exposed = withheld_after = 0
        async for record in self._read("training-data", PARTITIONS):
            subject = record.key.decode()
            if subject in withdrawn:
                source = dict(record.headers)["consentgate.source"].decode()
                place = int(source.rpartition("@")[2])
                appended_ms = next(
                    at
                    for p, first, last, at in committed_at
                    if p == record.partition and first <= place <= last
                )
                exposed += appended_ms > withdrawn[subject][2]
        for _, entry in entries:
            withheld_after += entry["counts"].get("*", {}).get("withdrawn", 0)
        return {
            "effect_ms_p50": statistics.median(effects.values()),
            "effect_ms_max": max(effects.values()),
            "committed_after_withdrawal": exposed,
            "withheld": withheld_after,
        }

    async def _first_output(self) -> None:
        tps = [TopicPartition("training-data", p) for p in range(PARTITIONS)]
        async with AIOKafkaConsumer(bootstrap_servers=self._servers) as consumer:
            while sum((await consumer.end_offsets(tps)).values()) < self._events // 10:
                await asyncio.sleep(0.02)

    async def _read(self, topic: str, partitions: int):
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        async with AIOKafkaConsumer(
            bootstrap_servers=self._servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        ) as consumer:
            consumer.assign(tps)
            ends = await consumer.end_offsets(tps)
            while any([await consumer.position(tp) < ends[tp] for tp in tps]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        yield record

    def _producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            bootstrap_servers=self._servers, acks="all", max_batch_size=262_144, linger_ms=2
        )

    def _people(self) -> list[str]:
        return [f"w{number}" for number in range(PEOPLE)]

    def _posts(self) -> Iterator[str]:
        """Subjects: every so-and-so-manieth post is of somebody who will withdraw."""
        every = self._events // self._theirs
        for number in range(self._events):
            mine = number % every == 0
            yield f"w{number // every % PEOPLE}" if mine else f"m{number % 1000}"


def state(subject: str, choice: str) -> bytes:
    """A consent record."""
    choices = {"ai-training": {"choice": choice}}
    return orjson.dumps(
        {"subject": subject, "jurisdiction": "US", "adult": True, "choices": choices}
    )


def post(subject: str, number: int) -> bytes:
    """A content event of about 550 bytes."""
    event = {
        "id": f"e{number}",
        "subject": subject,
        "kind": "post",
        "visibility": "public",
        "created_at": "2024-09-20T10:00:00Z",
        "body": {"text": "Nobody asked me before. " * 17},
    }
    return orjson.dumps(event)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_500_000)
    parser.add_argument("--theirs", type=int, default=75_000)
    parser.add_argument("--pause-ms", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, EmbeddedKafka() as kafka:
        backlog = Backlog(kafka.bootstrap_servers, Path(directory), args.events, args.theirs)
        asyncio.run(backlog.prepare())
        result = asyncio.run(backlog.run(0.2, args.pause_ms / 1000))
    console.print_json(data=result)


if __name__ == "__main__":
    main()
