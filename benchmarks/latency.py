"""How long from the append of an event until its record can be read, at a fixed rate.

The broker stamps each event when it is appended; a `read_committed` reader notes when it got the
forwarded record, which keeps that time. The CPU of the contender and of the broker is measured
beside it, because small transactions cost the broker more than the worker.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from contenders import Contender
from peers.task import PARTITIONS, Task
from process import Failed, Running, running, usage_of
from topics import CONSENT, Topics, partition_of, partitions_of
from workload import Workload

RATES = (1_000, 20_000)
_SUBJECTS = 20_000
_POOL_EVENTS = 50_000
_TICK_SECONDS = 0.005
_WARM_UP_SECONDS = 5
_START_SECONDS_MAX = 60
_START_RATE = 100
_BATCH_BYTES = 262_144
_RECORDS_MIN = 100


@dataclass(frozen=True)
class Latency:
    """Milliseconds from append to readable, and the CPU that it took meanwhile, in cores."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    appended_per_second: float
    worker_cores: float
    broker_cores: float


class Latencies:
    """The consent topic, and runs at fixed rates."""

    CONSENT_TOPIC = "latency-consent"

    def __init__(self, topics: Topics, broker_pid: int, seconds: float) -> None:
        self._topics = topics
        self._broker_pid = broker_pid
        self._seconds = seconds
        self._workload = Workload(_SUBJECTS)

    async def prepare(self) -> None:
        """Create and fill the consent topic, and make events to be appended over and over."""
        await self._topics.create(self.CONSENT_TOPIC, CONSENT)
        await self._topics.fill(self.CONSENT_TOPIC, self._workload.consent())
        self._pool = [
            (partition_of(event.key), event.key, event.value)
            for event in self._workload.events(_POOL_EVENTS)
        ]

    async def run(self, contender: Contender, rate: int, label: str) -> Latency:
        """One run at so many events a second. Raises `Failed` where too little comes out."""
        output = f"{contender.name}-{label}"
        content = f"{output}-events"
        await self._topics.create(output)
        await self._topics.create(content, {"message.timestamp.type": "LogAppendTime"})
        with TemporaryDirectory() as directory:
            task = Task(
                servers=self._topics.servers,
                content=content,
                consent=self.CONSENT_TOPIC,
                output=output,
                partitions=PARTITIONS,
                directory=directory,
                settings=contender.settings,
            )
            with running(contender.command(task), Path(directory)) as process:
                result = await self._measure(process, task, rate)
        await self._topics.delete_all_of(output)
        return result

    async def _measure(self, process: Running, task: Task, rate: int) -> Latency:
        async with AIOKafkaConsumer(
            bootstrap_servers=self._topics.servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        ) as reader:
            reader.assign(partitions_of(task.output))
            # What came in while it starts would have to be caught up with.
            async with self._feeding(task.content, _START_RATE):
                await self._await_first(reader, process)
            async with self._feeding(task.content, rate), self._topics.ends(task.content) as ends:
                await self._read(reader, process, _WARM_UP_SECONDS)
                before, broker_before = process.usage(), usage_of(self._broker_pid)
                appended_before, began = sum(await ends()), time.monotonic()
                latencies = await self._read(reader, process, self._seconds)
                seconds = time.monotonic() - began
                appended = sum(await ends()) - appended_before
                after, broker_after = process.usage(), usage_of(self._broker_pid)
        if len(latencies) < _RECORDS_MIN:
            raise Failed(f"only {len(latencies)} records came in {seconds:.0f} s")
        return Latency(
            p50_ms=statistics.median(latencies),
            p99_ms=statistics.quantiles(latencies, n=100)[98],
            max_ms=max(latencies),
            appended_per_second=appended / seconds,
            worker_cores=(after.cpu_seconds - before.cpu_seconds) / seconds,
            broker_cores=(broker_after.cpu_seconds - broker_before.cpu_seconds) / seconds,
        )

    async def _await_first(self, reader: AIOKafkaConsumer, process: Running) -> None:
        deadline = time.monotonic() + _START_SECONDS_MAX
        while not await reader.getmany(timeout_ms=100):
            process.usage()
            if time.monotonic() > deadline:
                raise Failed(f"no record came in {_START_SECONDS_MAX} s")

    async def _read(
        self, reader: AIOKafkaConsumer, process: Running, seconds: float
    ) -> list[float]:
        """Milliseconds for each record that came in so many seconds."""
        latencies: list[float] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            process.usage()
            batches = await reader.getmany(timeout_ms=100)
            now_ms = time.time() * 1000
            for records in batches.values():
                latencies.extend(now_ms - record.timestamp for record in records)
        return latencies

    @asynccontextmanager
    async def _feeding(self, topic: str, rate: int) -> AsyncIterator[None]:
        """Meanwhile, append at the rate."""
        feeding = asyncio.create_task(self._feed(topic, rate))
        try:
            yield
        finally:
            feeding.cancel()
            with suppress(asyncio.CancelledError):
                await feeding

    async def _feed(self, topic: str, rate: int) -> None:
        """A batch for each partition every few milliseconds."""
        events = cycle(self._pool)
        began, sent = time.monotonic(), 0
        async with AIOKafkaProducer(
            bootstrap_servers=self._topics.servers, acks="all", max_batch_size=_BATCH_BYTES
        ) as producer:
            while True:
                due = int((time.monotonic() - began) * rate)
                await self._append(producer, topic, islice(events, due - sent))
                sent = due
                await asyncio.sleep(_TICK_SECONDS)

    async def _append(
        self, producer: AIOKafkaProducer, topic: str, events: Iterator[tuple[int, bytes, bytes]]
    ) -> None:
        batches = {}
        for partition, key, value in events:
            batch = batches.get(partition) or producer.create_batch()
            if batch.append(key=key, value=value, timestamp=None) is None:
                # It is full, as after a pause: what it holds goes first.
                await producer.send_batch(batch, topic, partition=partition)
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
            batches[partition] = batch
        for partition, batch in batches.items():
            await producer.send_batch(batch, topic, partition=partition)
