"""What the tests on a real broker share: topics of their own, workers, appending, waiting."""

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from inspect import isawaitable
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp
import structlog
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import CloseReason
from aiokafka.errors import (
    InvalidReplicationFactorError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import OffsetAndMetadata

import checker
from consentgate.config import Config, load_config
from consentgate.core.consent import ConsentTable
from consentgate.core.partition import Moment
from consentgate.kafka.clock import read_clock
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.guards import plan_topics
from consentgate.policies import load_policy
from consentgate.service.worker import Worker
from consentgate.tools.broker import EmbeddedKafka

DEADLINE_SECONDS = float(os.environ.get("TEST_DEADLINE_SECONDS", "30"))
POLL_SECONDS = 0.05

QUICK_GROUP = {"session.timeout.ms": 3_000, "heartbeat.interval.ms": 300}
"""A dead member is missed after three seconds."""

SMALL_BYTES = 8_192
SMALL_FETCHES = {"max.partition.fetch.bytes": SMALL_BYTES}
"""Many small transactions instead of a few large ones, so that something can come in between.

A fetch never returns less than a whole batch, hence append in batches of `SMALL_BYTES`, too.
"""

BATCH_BYTES = 256 << 10

SETTLE_SECONDS = 0.1

# Kafka's numbers for what an access control list is made of.
_TOPIC, _LITERAL = 2, 3
_ALL, _DESCRIBE_CONFIGS = 2, 10
READ, WRITE, DESCRIBE = 3, 4, 8
_DENY, _ALLOW = 2, 3


class Sent(NamedTuple):
    """A record to be appended; the time is now where none is given."""

    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


async def commit_by_hand(site: "Site", offset: int, metadata: str = "") -> None:
    """Commit an offset of partition 0, as an operator may do with Kafka's own tools."""
    async with AIOKafkaConsumer(
        bootstrap_servers=site.kafka.bootstrap_servers,
        group_id=site.config.group,
        enable_auto_commit=False,
    ) as consumer:
        place = TopicPartition(site.content, 0)
        consumer.assign([place])
        await consumer.commit({place: OffsetAndMetadata(offset, metadata)})


def consent(subject: str, choice: str | None = "granted", jurisdiction: str = "US") -> Sent:
    """A consent record; without a choice the person never chose."""
    choices = {} if choice is None else {checker.PURPOSE: {"choice": choice}}
    state = {"subject": subject, "jurisdiction": jurisdiction, "adult": True, "choices": choices}
    return Sent(subject.encode(), json.dumps(state).encode())


def post(subject: str, name: str, /, **fields: Any) -> Sent:
    """A content record with the id `name`; `fields` replaces fields of the value."""
    event = {
        "id": name,
        "subject": subject,
        "kind": "post",
        "visibility": "public",
        "created_at": "2024-09-20T10:00:00Z",
        "body": {"text": f"What {subject} has to say in {name}"},
    }
    return Sent(subject.encode(), json.dumps(event | fields).encode())


SPOILT_NAME = "header-name"
"""The name of a header that `spoil_header_names` makes unreadable."""


def spoil_header_names(data: bytearray) -> None:
    """Make the marked headers' names bytes that are no UTF-8, and the batch's checksum right."""
    name = SPOILT_NAME.encode()
    assert name in data
    data[:] = data.replace(name, b"\xff\xfe" + name[2:])
    # The checksum stands after offset, length, leader epoch and magic, over what follows it.
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")


def close_connections(
    producer: AIOKafkaProducer, reason: CloseReason = CloseReason.CONNECTION_BROKEN
) -> None:
    """Close them as they are where a broker goes away."""
    for connection in list(producer.client._conns.values()):
        connection.close(reason)


async def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Ask until the answer is true, and return it; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(POLL_SECONDS)


class Feed:
    """Appends with a plain producer; what it has returned from is acknowledged."""

    def __init__(self, kafka: EmbeddedKafka) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka.bootstrap_servers,
            acks="all",
            max_request_size=4 << 20,
            max_batch_size=BATCH_BYTES,
        )
        self._partition_of = DefaultPartitioner()

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    async def one(self, topic: str, sent: Sent, partition: int | None = None) -> int:
        """Append one record; its offset."""
        metadata = await self._producer.send_and_wait(
            topic,
            sent.value,
            sent.key,
            partition=partition,
            timestamp_ms=sent.timestamp_ms,
            headers=list(sent.headers),
        )
        return int(metadata.offset)

    async def many(
        self,
        topic: str,
        records: Iterable[Sent],
        partition: int | None = None,
        batch_bytes: int = BATCH_BYTES,
    ) -> None:
        """Append records in this order, each to its key's partition where none is given."""
        partitions = sorted(await self._producer.partitions_for(topic))
        by_partition: dict[int, list[Sent]] = {}
        for sent in records:
            to = self.partition_of(sent, partitions) if partition is None else partition
            by_partition.setdefault(to, []).append(sent)
        acknowledgements = [
            await self._producer.send_batch(batch, topic, partition=to)
            for to, those in by_partition.items()
            for batch in self._batches(those, batch_bytes)
        ]
        await asyncio.gather(*acknowledgements)

    async def batch(
        self,
        topic: str,
        records: Iterable[Sent],
        partition: int = 0,
        patch: Callable[[bytearray], None] | None = None,
    ) -> int:
        """Append the records as one batch, its bytes patched; the first offset."""
        batch = self._producer.create_batch()
        for sent in records:
            assert self._append(batch, sent), "the records fit into one batch"
        batch.close()
        if patch is not None:
            data = bytearray(batch._build())
            patch(data)
            batch._buffer = bytes(data)
        appended = await self._producer.send_batch(batch, topic, partition=partition)
        return int((await appended).offset)

    def partition_of(self, sent: Sent, partitions: Sequence[int]) -> int:
        """Where the client's own partitioner puts the record."""
        assert sent.key is not None, "without a key, name the partition"
        return int(self._partition_of(sent.key, partitions, partitions))

    def _batches(self, records: Iterable[Sent], batch_bytes: int) -> Iterable[Any]:
        batch = self._producer.create_batch()
        for sent in records:
            full = batch.size() + len(sent.value or b"") + 64 > batch_bytes
            if (full and batch.record_count()) or not self._append(batch, sent):
                yield batch
                batch = self._producer.create_batch()
                assert self._append(batch, sent), "an empty batch takes any record"
        yield batch

    def _append(self, batch: Any, sent: Sent) -> bool:
        appended = batch.append(
            timestamp=sent.timestamp_ms,
            key=sent.key,
            value=sent.value,
            headers=list(sent.headers),
        )
        return appended is not None


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where the partitions of a topic end for one who reads everything, or what is committed."""

    high: Mapping[int, int]
    stable: Mapping[int, int]

    def open(self, partitions: Iterable[int]) -> bool:
        """Whether a transaction is open in one of the partitions."""
        return any(self.stable[p] < self.high[p] for p in partitions)


class Probe:
    """Connections that only ask, for all tests together."""

    def __init__(self, kafka: EmbeddedKafka) -> None:
        servers = {"bootstrap_servers": kafka.bootstrap_servers}
        self.admin = AIOKafkaAdminClient(**servers)
        self._high = AIOKafkaConsumer(isolation_level="read_uncommitted", **servers)
        self._stable = AIOKafkaConsumer(isolation_level="read_committed", **servers)

    async def __aenter__(self) -> Self:
        await self.admin.start()
        await self._high.start()
        await self._stable.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stable.stop()
        await self._high.stop()
        await self.admin.close()

    async def ends(self, topic: str, partitions: int) -> Offsets:
        """The high watermarks and the last stable offsets of a topic."""
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        # In this order: what is appended in between must not look like an open transaction.
        high, stable = await self._high.end_offsets(tps), await self._stable.end_offsets(tps)
        return Offsets(
            {tp.partition: offset for tp, offset in high.items()},
            {tp.partition: offset for tp, offset in stable.items()},
        )

    async def hide_configs(self, topic: str) -> None:
        """Let nobody read the topic's settings any more; all else stays allowed."""
        await self.deny(topic, _DESCRIBE_CONFIGS)

        async def is_hidden() -> bool:
            asked = ConfigResource(ConfigResourceType.TOPIC, topic)
            (response,) = await self.admin.describe_configs([asked])
            return bool(response.resources[0][0] == TopicAuthorizationFailedError.errno)

        await until(is_hidden, "the settings are hidden")

    async def deny(self, topic: str, operation: int) -> None:
        """Let nobody do this with the topic any more; all else stays allowed."""
        for each, permission in ((_ALL, _ALLOW), (operation, _DENY)):
            await self._create_acl(topic, each, permission)

    async def allow_again(self, topic: str, operation: int) -> None:
        """Take back what `deny` has denied."""
        request = DeleteAclsRequest(_TOPIC, topic, _LITERAL, "User:*", "*", operation, _DENY)
        response = await self.admin._send_request(request)
        assert [answer[0] for answer in response.filter_responses] == [0], response

    async def _create_acl(self, topic: str, operation: int, permission: int) -> None:
        # The client has the request, and no method for it.
        request = CreateAclsRequest(_TOPIC, topic, _LITERAL, "User:*", "*", operation, permission)
        response = await self.admin._send_request(request)
        assert [error[0] for error in response.creation_responses] == [0], response

    async def committed(self, group: str, topic: str, partitions: int) -> dict[int, int]:
        """The group's committed offsets; 0 where there is none."""
        tps = [TopicPartition(topic, p) for p in range(partitions)]
        found = await until(lambda: self._offsets(group, tps), "the group's coordinator answers")
        return {tp.partition: max(0, found[tp].offset) if tp in found else 0 for tp in tps}

    async def offsets(self, group: str, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """The committed offsets that the coordinator gives now, if it gives any."""
        tps = [TopicPartition(topic, p) for p in partitions]
        found = await self._offsets(group, tps)
        return {tp.partition: committed.offset for tp, committed in found.items()}

    async def _offsets(self, group: str, tps: list[TopicPartition]) -> dict[TopicPartition, Any]:
        """Offset and metadata of each partition; nothing while the coordinator is not there."""
        try:
            found = await self.admin.list_consumer_group_offsets(group, partitions=tps)
        except KafkaError as error:
            if not error.retriable:
                raise
            return {}
        return dict(found)


@dataclass(frozen=True, slots=True)
class Site:
    """One test's topics, group and configuration."""

    kafka: EmbeddedKafka
    probe: Probe
    feed: Feed
    config: Config
    path: Path
    partitions: int  # of the content topic
    consent_partitions: int

    @property
    def content(self) -> str:
        return self.config.topics.content

    @property
    def consent(self) -> str:
        return self.config.topics.consent

    async def appended(self) -> int:
        """How many offsets the content topic has."""
        return sum((await self.probe.ends(self.content, self.partitions)).high.values())

    async def committed(self) -> dict[int, int]:
        """The group's committed offsets."""
        return await self.probe.committed(self.config.group, self.content, self.partitions)

    async def lag(self) -> dict[int, int]:
        """Offsets between the committed ones and the ends of the content partitions."""
        ends = await self.probe.ends(self.content, self.partitions)
        committed = await self.committed()
        return {p: ends.high[p] - committed[p] for p in range(self.partitions)}

    async def decided(self, seconds: float = DEADLINE_SECONDS) -> None:
        """Wait until all content has been decided."""

        async def no_lag() -> bool:
            return not any((await self.lag()).values())

        await until(no_lag, "all content is decided", seconds)

    async def seen(self, supplied: checker.Supplied | None = None) -> checker.Seen:
        """Everything that stands in the topics."""
        topics = self.config.topics
        names = checker.Names(
            group=self.config.group,
            content=topics.content,
            consent=topics.consent,
            training=topics.training,
            decisions=topics.decisions,
            quarantine=topics.quarantine,
            retractions=topics.retractions,
        )
        return await checker.read(self.kafka.bootstrap_servers, names, supplied or {})

    async def check(self, supplied: checker.Supplied | None = None) -> checker.Seen:
        """Everything that stands in the topics, after the checker has found nothing wrong."""
        seen = await self.seen(supplied)
        assert checker.problems(seen) == []
        return seen


class SiteFactory:
    """Makes the topics of one test after the other."""

    def __init__(self, kafka: EmbeddedKafka, probe: Probe, feed: Feed, directory: Path) -> None:
        self._kafka = kafka
        self._probe = probe
        self._feed = feed
        self._directory = directory

    async def __call__(
        self,
        name: str,
        *,
        partitions: int = 1,
        consent_partitions: int | None = None,
        ledger_partitions: int = 1,
        topics: Mapping[str, Mapping[str, str]] | None = None,
        kafka: Mapping[str, Any] | None = None,
        create: bool = True,
        **sections: Any,
    ) -> Site:
        """Fresh topics, a fresh group, and a file that configures a worker for them.

        `topics` overrides settings of the topics by their roles, `kafka` adds client settings, and
        `sections` holds other sections of the configuration.
        """
        group = f"{name}-{uuid.uuid4().hex[:8]}"
        roles = ("content", "consent", "training", "decisions", "quarantine", "retractions")
        settings = {
            "kafka": {"bootstrap.servers": self._kafka.bootstrap_servers, **(kafka or {})},
            "group": group,
            "topics": {role: f"{group}-{role}" for role in roles},
            "policy": "opt-in",
            "http": {"port": 0},
            **sections,
        }
        path = self._directory / f"{group}.yaml"
        path.write_text(yaml.safe_dump(settings))
        config = load_config(str(path), environment={})
        counts = {"consent": consent_partitions or partitions, "decisions": ledger_partitions}
        if create:
            await self._create(config, partitions, counts, topics or {})
        return Site(
            self._kafka, self._probe, self._feed, config, path, partitions, counts["consent"]
        )

    async def _create(
        self,
        config: Config,
        partitions: int,
        counts: Mapping[str, int],
        overrides: Mapping[str, Mapping[str, str]],
    ) -> None:
        role_of = {getattr(config.topics, role): role for role in config.topics.__struct_fields__}
        new = [
            NewTopic(
                plan.name,
                counts.get(role_of[plan.name], plan.partitions),
                1,
                topic_configs={**plan.configs, **overrides.get(role_of[plan.name], {})},
            )
            for plan in plan_topics(config, partitions)
        ]

        async def created() -> bool:
            errors = (await self._probe.admin.create_topics(new)).topic_errors
            # A broker that an earlier test suspended has no place for replicas for a while.
            if any(error[1] == InvalidReplicationFactorError.errno for error in errors):
                return False
            refused = [error for error in errors if error[1]]
            assert not refused, refused
            return True

        await until(created, "the topics are made")

        async def described() -> bool:
            found = await self._probe.admin.describe_topics([topic.name for topic in new])
            return all(not topic["error_code"] for topic in found)

        await until(described, "the new topics are known")


class WorkerProcess:
    """A worker as users run it: a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, log_path: Path, out: Path) -> None:
        self._process = process
        self._log_path = log_path
        self._out = out

    @classmethod
    async def start(
        cls,
        site: Site,
        log_path: Path,
        *arguments: str,
        program: Sequence[str] = ("-m", "consentgate"),
        subcommand: str = "run",
    ) -> Self:
        """Start `consentgate run`, or what is run in its place; returns at once."""
        command = (*program, subcommand, "-c", str(site.path), "--log-json", *arguments)
        out = log_path.with_suffix(".out")
        with log_path.open("wb") as log_file, out.open("wb") as out_file:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *command, stdout=out_file, stderr=log_file
            )
        return cls(process, log_path, out)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    def log(self) -> list[dict[str, Any]]:
        """The log so far; a line that is still being written is left out."""
        text = self._log_path.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def errors(self) -> str:
        """Everything on standard error."""
        return self._log_path.read_text()

    def output(self) -> str:
        """Everything on standard output."""
        return self._out.read_text()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's entries with this event."""
        return [entry for entry in self.log() if entry["event"] == event]

    def assigned(self) -> list[int]:
        """The partitions of the last assignment."""
        assignments = self.logged("assigned")
        return assignments[-1]["partitions"] if assignments else []

    async def ready(self) -> None:
        """Wait until every partition that it was assigned is ready, at least one."""

        def is_ready() -> bool:
            assert self.running, self.errors()
            return self.all_ready()

        await until(is_ready, "the worker is ready")

    def all_ready(self) -> bool:
        """Whether every partition that it was assigned was ready since then, at least one."""
        events = [entry for entry in self.log() if entry["event"] in ("assigned", "ready")]
        assignments = [i for i, entry in enumerate(events) if entry["event"] == "assigned"]
        if not assignments or not events[assignments[-1]]["partitions"]:
            return False
        since = {entry.get("partition") for entry in events[assignments[-1] + 1 :]}
        return set(events[assignments[-1]]["partitions"]) <= since

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the worker."""
        (started,) = await until(lambda: self.logged("started"), "the worker has started")
        return await get(started["http"] + path)

    async def consumed(self) -> int:
        """How many records it has decided and committed, as its metrics say."""
        _, text = await self.get("/metrics")
        return int(metric(text, "consentgate_consumed_records_total"))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def wait(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the end; the exit code."""
        async with asyncio.timeout(seconds):
            return await self._process.wait()

    async def end(self) -> None:
        """End it in any case."""
        if self.running:
            self._process.kill()
            await self._process.wait()


StartWorker = Callable[..., Awaitable[WorkerProcess]]


async def run_python(*arguments: str) -> tuple[int, str, str]:
    """Run Python to its end; exit code, standard output and standard error."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, out.decode(), errors.decode()


async def freeze_mid_transaction(site: Site, worker: WorkerProcess) -> None:
    """Stop a worker (SIGSTOP) mid-work: it has committed, has more to do and a transaction open."""
    await until(lambda: _is_under_way(site, worker), "the worker is under way")

    async def is_caught() -> bool:
        worker.signal(signal.SIGSTOP)
        settled_at = time.monotonic() + SETTLE_SECONDS
        # What the worker sent last may still be on its way: open is what stays open.
        while (await site.probe.ends(site.config.topics.training, site.partitions)).open(
            worker.assigned()
        ):
            if time.monotonic() > settled_at:
                return True
        worker.signal(signal.SIGCONT)
        return False

    await until(is_caught, "the worker stands still within a transaction")
    lag = await site.lag()
    assert any(lag[p] for p in worker.assigned()), "the worker has work left"


async def _is_under_way(site: Site, worker: WorkerProcess) -> bool:
    committed = await site.committed()
    return all(committed[p] for p in worker.assigned())


@asynccontextmanager
async def meanwhile(activity: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Do something over and over while the block runs; what is begun is ended."""
    ended = asyncio.Event()

    async def repeat() -> None:
        while not ended.is_set():
            await activity()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        ended.set()
        await task


@dataclass(slots=True)
class Running:
    """A worker in this process."""

    worker: Worker
    task: "asyncio.Task[Any]"
    log: list[Any]
    http: str = field(default="")

    def logged(self, event: str) -> list[Any]:
        """The log's entries with this event."""
        return [entry for entry in self.log if entry["event"] == event]

    async def ready(self) -> None:
        """Wait until `/readyz` is green."""

        async def green() -> bool:
            assert not self.task.done(), self.task
            return (await self.get("/readyz"))[0] == 200

        await until(green, "the worker is ready")

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the worker."""
        return await get(self.http + path)


def clock_off_by(ahead_ms: int) -> Callable[[], Moment]:
    """A clock whose time of day is wrong, to be read in place of `read_clock`."""

    def read() -> Moment:
        now = read_clock()
        return Moment(now.unix_ms + ahead_ms, now.monotonic_ms)

    return read


@asynccontextmanager
async def working(
    site: Site, *, accept_consent_gap: bool = False, may_fail: bool = False
) -> AsyncIterator[Running]:
    """A worker in this process, for the time of a block; its failure ends the block.

    Where it may fail, that is for the block to see.
    """
    test, in_block = asyncio.current_task(), True
    assert test is not None, "in a task"

    def ended(_: "asyncio.Task[Any]") -> None:
        if in_block:
            test.cancel("the worker has ended")

    with structlog.testing.capture_logs() as log:
        policy = load_policy(site.config.policy)
        worker = Worker(site.config, policy, accept_consent_gap=accept_consent_gap)
        running = Running(worker, asyncio.create_task(worker.run()), log)
        if not may_fail:
            running.task.add_done_callback(ended)
        try:
            await until(
                lambda: running.logged("started") or running.task.done(), "the worker has started"
            )
            for started in running.logged("started"):
                running.http = started["http"]
            yield running
        finally:
            in_block = False
            if test.cancelling() and running.task.done():
                test.uncancel()
            worker.end()
            async with asyncio.timeout(DEADLINE_SECONDS):
                await (asyncio.wait([running.task]) if may_fail else running.task)


class SlowView(ConsentView):
    """A view that applies what it has fetched only after a while."""

    delay_seconds = 0.0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.waits: list[float] = []
        """How long each barrier waited that found the view behind."""

    async def start(self, *arguments: Any) -> None:
        await super().start(*arguments)
        fetch = self._reader.getmany

        async def fetch_and_wait(**arguments: Any) -> Any:
            fetched = await fetch(**arguments)
            await asyncio.sleep(self.delay_seconds)
            return fetched

        self._reader.getmany = fetch_and_wait

    async def await_frontier(self, table: ConsentTable, high: Mapping[int, int]) -> None:
        behind, began = not table.covers(high), time.monotonic()
        await super().await_frontier(table, high)
        if behind:
            self.waits.append(time.monotonic() - began)


async def get(url: str) -> tuple[int, str]:
    """Status and text of a page."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        return response.status, await response.text()


def metric(text: str, name: str) -> float:
    """Sum of all series of one metric in a page of metrics."""
    values = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith((name + " ", name + "{"))
    ]
    return sum(values)


async def compacted_away(site: Site, place: TopicPartition, offset: int, what: str) -> None:
    """Wait until compaction has removed a record of the consent topic."""

    async def is_gone() -> bool:
        # The cleaner works on what is no longer being appended to.
        await site.feed.one(site.consent, consent("ben"))
        await asyncio.sleep(0.2)
        async with AIOKafkaConsumer(
            bootstrap_servers=site.kafka.bootstrap_servers, group_id=None, auto_offset_reset="none"
        ) as reader:
            reader.assign([place])
            reader.seek(place, offset)
            return int((await reader.getone()).offset) > offset

    await until(is_gone, what, 60)
