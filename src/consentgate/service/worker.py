"""The worker: owns the tasks, takes partitions from the group, and gives them back."""

import asyncio
import resource
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import structlog

from consentgate.config import Config
from consentgate.core.consent import ConsentTable
from consentgate.core.decode import ConsentDecoder, ContentDecoder, consent_decoder, content_decoder
from consentgate.core.gate import Gate
from consentgate.core.ledger import Chain
from consentgate.core.partition import (
    Committed,
    Event,
    Partition,
    Phase,
    Ready,
    Recycled,
    Revoked,
    Stalled,
    StepFailed,
)
from consentgate.core.policy import Policy
from consentgate.errors import ConfigError
from consentgate.kafka.cluster import Cluster, settle_scope
from consentgate.kafka.consent import ConsentChange, ConsentView
from consentgate.kafka.content import ContentSource
from consentgate.kafka.guards import topic_problems
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.kafka.transport import Clients, Layout, Transport
from consentgate.service.http import OK, HttpServer
from consentgate.service.metrics import Metrics, PartitionGauges

log = structlog.get_logger()

BROKER_SECONDS_MAX = 60.0
"""How long the first answer of a broker is awaited."""

REVOKE_SECONDS_MAX = 10.0
"""How long a partition that is given up may finish its transaction."""

WATCH_SECONDS = 2.0
STUCK_SECONDS = 60.0
"""A partition that lags and commits nothing for so long makes the worker not live."""

STALE_SECONDS = 10.0


@dataclass(slots=True)
class Assigned:
    """One input partition under care: its life, its hands and its task."""

    number: int
    partition: Partition
    transport: Transport
    table: ConsentTable
    task: "asyncio.Task[None]"
    listener: Any
    withdrawals: deque[ConsentChange] = field(default_factory=deque)
    progressed_at: float = field(default_factory=time.monotonic)
    last_timestamp_ms: int = 0


class Summary(msgspec.Struct, frozen=True):
    """What a run came to."""

    counts: dict[str, int]
    seconds: float
    events_per_second: float
    cpu_seconds: float
    peak_rss_bytes: int


class Worker:
    """One process of the service."""

    def __init__(self, config: Config, policy: Policy) -> None:
        refuse_unsupported(policy)
        self._config = config
        self._policy = policy
        self._settings: KafkaSettings = kafka_settings(config.kafka)
        self._cluster = Cluster(self._settings)
        self._view = ConsentView(
            self._settings, config.topics.consent, self._consent_decoder(), self._unreadable
        )
        self._source = ContentSource(
            self._settings, config.group, config.topics.content, self._assign, self._revoke
        )
        self._decode: ContentDecoder = content_decoder(
            config.content.fields, config.limits.max_depth
        )
        self.metrics = Metrics(self._gauges, self._view.subjects)
        self.metrics.policy_info.labels(policy.name, policy.hash).set(1)
        self._assigned: dict[int, Assigned] = {}
        self._layout: Layout | None = None
        self._counts: Counter[str] = Counter()
        self._ended: asyncio.Future[None] | None = None
        self._joined = asyncio.Event()
        self._stopping = False
        self._broker_answered_at = 0.0
        self._signal: int | None = None

    async def run(self, *, until_drained: bool = False) -> Summary:
        """Work until a signal, or until the content that is there now is done.

        Raises:
            BrokerUnavailable: if no broker answers within a minute.
            ConfigError: if topics are missing, or are not as they must be.
            KeyboardInterrupt: after a SIGINT, when everything has been put away.
        """
        started = time.monotonic()
        self._ended = asyncio.get_running_loop().create_future()
        with _Signals(self._on_signal):
            await self._cluster.start(BROKER_SECONDS_MAX)
            http = HttpServer(self.metrics.registry, self._live, self._ready)
            tasks: list[asyncio.Task[None]] = []
            try:
                self._layout = await find_layout(self._config, self._cluster)
                port = await http.start(self._config.http.host, self._config.http.port)
                log.info(
                    "started",
                    policy=self._policy.reference,
                    scope=self._layout.scope,
                    http=f"http://{self._config.http.host}:{port}",
                )
                await self._view.start()
                tasks = [self._spawn(self._view.run()), self._spawn(self._watch())]
                if until_drained:
                    tasks.append(self._spawn(self._until_drained()))
                await self._source.start()
                await self._ended
            finally:
                await self._put_away(tasks, http)
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        return self._summary(time.monotonic() - started)

    def end(self, failure: BaseException | None = None) -> None:
        """Ask the worker to stop; a failure is raised from `run`."""
        if self._ended is not None and not self._ended.done():
            if failure is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(failure)

    def _on_signal(self, number: int) -> None:
        self._signal = self._signal or number
        self.end()

    async def _put_away(self, tasks: list["asyncio.Task[None]"], http: HttpServer) -> None:
        self._stopping = True
        await self._revoke(list(self._assigned))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for closing in (self._source, self._view, self._cluster, http):
            try:
                async with asyncio.timeout(REVOKE_SECONDS_MAX):
                    await closing.stop()
            except Exception as error:
                log.warning("closing failed", what=type(closing).__name__, error=repr(error))

    def _spawn(self, coroutine: Any) -> "asyncio.Task[None]":
        """Start a task whose failure ends the worker."""
        task: asyncio.Task[None] = asyncio.create_task(coroutine)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a task failed", error=repr(error))
            self.end(error)

    async def _assign(self, partitions: Collection[int]) -> None:
        try:
            self.metrics.rebalances.inc()
            self._joined.set()
            log.info("assigned", partitions=sorted(partitions))
            if not self._stopping:
                for partition in partitions:
                    self._take(partition)
        except Exception as error:
            # The client would only log it and go on without the partition.
            self.end(error)

    async def _revoke(self, partitions: Collection[int]) -> None:
        given_up = [self._assigned[p] for p in partitions if p in self._assigned]
        for assigned in given_up:
            assigned.partition.stop()
        tasks = [assigned.task for assigned in given_up]
        if tasks:
            _, unfinished = await asyncio.wait(tasks, timeout=REVOKE_SECONDS_MAX)
            for task in unfinished:
                task.cancel()
            if unfinished:
                await asyncio.wait(unfinished, timeout=REVOKE_SECONDS_MAX)
        for assigned in given_up:
            self._assigned.pop(assigned.number, None)
            self._view.unlisten(assigned.table, assigned.listener)
            self._view.release(assigned.table)

    def _take(self, number: int) -> None:
        assert self._layout is not None, "partitions come after the layout"
        config = self._config
        chain = Chain(config.group, config.topics.content, number)
        table = self._view.follow(self._layout.consent_partitions(number))
        gate = Gate(
            chain=chain,
            consent_topic=config.topics.consent,
            table=table,
            policy=self._policy,
            decode=self._decode,
            limits=config.limits.of_content(),
            key_is_subject=config.content.key_is_subject,
        )
        clients = Clients(self._settings, self._layout, self._source, self._view, self._cluster)
        transport = Transport(clients, chain, table)
        partition = Partition(gate, partial(self._report, number), config.limits.max_exposure_ms)
        listener = partial(self._consent_changed, number)
        task = self._spawn(drive(partition, transport))
        self._assigned[number] = Assigned(number, partition, transport, table, task, listener)

    def _consent_changed(self, number: int, change: ConsentChange) -> None:
        assigned = self._assigned[number]
        gate, now_ms = assigned.partition.gate, time.time_ns() // 1_000_000
        if gate.is_eligible(change.before, now_ms) and not gate.is_eligible(change.after, now_ms):
            assigned.withdrawals.append(change)

    def _report(self, number: int, event: Event) -> None:
        self.metrics.observe(event)
        match event:
            case Committed():
                self._committed(number, event)
            case Ready(position):
                log.info("ready", partition=number, next_offset=position.next_offset)
                # Not before: what a bootstrap reads are no changes.
                self._view.listen(self._assigned[number].table, self._assigned[number].listener)
            case Recycled(why) | Stalled(why):
                log.warning(type(event).__name__.lower(), partition=number, why=why)

    def _committed(self, number: int, event: Committed) -> None:
        assigned = self._assigned[number]
        assigned.progressed_at = time.monotonic()
        outcome = event.outcome
        if outcome.batch.records:
            assigned.last_timestamp_ms = outcome.batch.records[-1].timestamp
        for made, count in outcome.counts.items():
            self._counts[made.reason] += count
        withdrawals = assigned.withdrawals
        while withdrawals and withdrawals[0].offset < outcome.frontier[withdrawals[0].partition]:
            change = withdrawals.popleft()
            effect_ms = event.committed.unix_ms - change.timestamp_ms
            self.metrics.withdrawal_effect_seconds.observe(max(0, effect_ms) / 1000)

    def _unreadable(self, cause: str) -> None:
        self.metrics.consent_unreadable.labels(cause).inc()
        log.warning("a consent record is unreadable; its subject is withheld", cause=cause)

    async def _watch(self) -> None:
        """See whether the cluster still answers, and with the same topics."""
        assert self._layout is not None, "watching begins after the layout is known"
        counts = self._layout.counts
        while True:
            try:
                async with asyncio.timeout(STALE_SECONDS):
                    found = await self._cluster.partition_counts(counts)
            except Exception as error:
                log.warning("the broker does not answer", error=type(error).__name__)
            else:
                self._broker_answered_at = time.monotonic()
                if found != counts:
                    raise ConfigError(
                        f"the topics' partitions changed while running: {counts} became {found}"
                    )
            await asyncio.sleep(WATCH_SECONDS)

    async def _until_drained(self) -> None:
        """End the worker when all content that is there now has been decided, by whomever."""
        topic, group = self._config.topics.content, self._config.group
        assert self._layout is not None, "draining begins after the layout is known"
        partitions = range(self._layout.counts[topic])
        await self._joined.wait()
        targets = {p: (await self._source.range(p)) for p in partitions}
        while True:
            committed = await self._cluster.bookmarks(group, topic, partitions)
            if all(
                committed.get(p, (start, None))[0] >= end for p, (start, end) in targets.items()
            ):
                self.end()
                return
            await asyncio.sleep(0.25)

    def _gauges(self) -> list[PartitionGauges]:
        now, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        gauges = []
        for number, assigned in self._assigned.items():
            lag_records = self._lag_records(number, assigned)
            lag_seconds = (now_ms - assigned.last_timestamp_ms) / 1000
            gauges.append(
                PartitionGauges(
                    partition=number,
                    lag_records=lag_records,
                    lag_seconds=max(0.0, lag_seconds) if lag_records else 0.0,
                    consent_staleness_seconds=now - assigned.transport.fresh_at_monotonic,
                    ready=assigned.partition.phase is Phase.READY,
                )
            )
        return gauges

    def _lag_records(self, number: int, assigned: Assigned) -> int:
        high = self._source.high_watermark(number)
        return max(0, high - assigned.partition.next_offset) if high is not None else 0

    def _live(self) -> Mapping[str, str]:
        now = time.monotonic()
        return {
            f"partition-{number}": OK
            if not self._lag_records(number, assigned)
            or now - assigned.progressed_at < STUCK_SECONDS
            else f"lags and has committed nothing for {now - assigned.progressed_at:.0f} s"
            for number, assigned in self._assigned.items()
        }

    def _ready(self) -> Mapping[str, str]:
        now = time.monotonic()
        components = {"worker": "stopping" if self._stopping else OK}
        components["group"] = OK if self._joined.is_set() else "joining"
        answered = now - self._broker_answered_at < STALE_SECONDS
        components["broker"] = OK if answered else "does not answer"
        for number, assigned in self._assigned.items():
            components[f"partition-{number}"] = _partition_health(assigned, now)
        return components

    def _summary(self, seconds: float) -> Summary:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        rss_unit = 1 if sys.platform == "darwin" else 1024
        return Summary(
            counts=dict(sorted(self._counts.items())),
            seconds=round(seconds, 3),
            events_per_second=round(self._counts.total() / seconds, 1),
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            peak_rss_bytes=usage.ru_maxrss * rss_unit,
        )

    def _consent_decoder(self) -> ConsentDecoder:
        config = self._config
        return consent_decoder(config.consent.fields, self._policy.purpose, config.limits.max_depth)


async def drive(partition: Partition, transport: Transport) -> None:
    """Perform a partition's steps until its life ends; a cancellation revokes it."""
    life = partition.life()
    step = next(life)
    try:
        while True:
            try:
                reply = await transport.perform(step)
            except StepFailed as failure:
                step = life.throw(failure)
            except asyncio.CancelledError:
                step = life.throw(Revoked())
            else:
                step = life.send(reply)
    except StopIteration:
        return


async def find_layout(config: Config, cluster: Cluster) -> Layout:
    """The topics as they are.

    Raises:
        ConfigError: if one is missing or is not as it must be, or if the group was started with
            another scope or other numbers of partitions.
    """
    topics = config.topics
    names = list(msgspec.structs.astuple(topics))
    counts = await cluster.partition_counts(names)
    missing = [name for name in names if name not in counts]
    if missing:
        raise ConfigError(
            f"missing topics: {', '.join(missing)}. Create them with: consentgate topics create"
        )
    problems = topic_problems(config, await cluster.topic_configs(names))
    if problems:
        raise ConfigError("\n".join(problems))
    bookmarks = await cluster.bookmarks(config.group, topics.content, range(counts[topics.content]))
    scope = settle_scope(
        config.consent.scope,
        config.content.key_is_subject,
        [counts[topics.content], counts[topics.consent]],
        (bookmark for _, bookmark in bookmarks.values() if bookmark is not None),
    )
    return Layout(topics, counts, scope)


def refuse_unsupported(policy: Policy) -> None:
    """Refuse a policy that asks for what this version cannot do; never ignore it.

    Raises:
        ConfigError: naming the rules.
    """
    lines = [str(rule.line) for rule in policy.rules if rule.transforms]
    if lines:
        raise ConfigError(
            f"policy {policy.name}: this version cannot select fields, redact or pseudonymize, "
            f"as the rules in line {', '.join(lines)} ask for"
        )


def _partition_health(assigned: Assigned, now: float) -> str:
    partition = assigned.partition
    if partition.stalled_because is not None:
        return f"{partition.phase}: {partition.stalled_because}"
    if partition.phase is not Phase.READY:
        return str(partition.phase)
    stale_seconds = now - assigned.transport.fresh_at_monotonic
    return OK if stale_seconds < STALE_SECONDS else f"consent view stale for {stale_seconds:.0f} s"


class _Signals:
    """SIGINT and SIGTERM as calls, for the time of a `with` block."""

    def __init__(self, on_signal: Any) -> None:
        self._on_signal = on_signal

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
