"""The worker: owns the tasks, takes partitions from the group, and gives them back."""

import asyncio
import math
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from typing import Any

import msgspec
import structlog

from consentgate import __version__
from consentgate.config import Config
from consentgate.core.decode import consent_decoder, content_decoder
from consentgate.core.gate import Gate
from consentgate.core.ledger import Chain
from consentgate.core.partition import (
    Aborted,
    Committed,
    Event,
    Moment,
    Ready,
    Recycled,
    Stalled,
)
from consentgate.core.policy import Policy
from consentgate.core.snapshot import Identity
from consentgate.engines import equip
from consentgate.errors import BrokerUnavailable, ClientBroken, ConfigError
from consentgate.kafka.clients import Clients
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.connecting import denial, why_shut_out
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.content import ContentSource
from consentgate.kafka.layout import (
    Layout,
    find_layout,
    missing_topics_text,
    refuse_changes,
)
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.snapshots import Snapshots
from consentgate.kafka.unanswered import UNANSWERED
from consentgate.memory import collect_garbage_rarely, keep_freed_memory
from consentgate.service.assigned import AssignedPartition
from consentgate.service.http import HttpServer
from consentgate.service.metrics import Metrics, WorkerGauges
from consentgate.service.progress import STUCK_SECONDS
from consentgate.service.right_of_way import RightOfWay
from consentgate.service.status import Status
from consentgate.service.transforming import TransformPool
from consentgate.signals import ending_signals
from consentgate.signing import load_signer
from consentgate.web import OK

log = structlog.get_logger()

BROKER_SECONDS_MAX = 60.0
"""How long the first answer of a broker is awaited."""

STOP_SECONDS_MAX = 25.0
"""How long an end takes at the most: what follows, and snapshots in the time that is left.

Kubernetes kills what has not ended after 30 s, unless `terminationGracePeriodSeconds` says other.
"""

REVOKE_SECONDS_MAX = 10.0
"""How long a partition that is given up may finish its transaction."""

CANCEL_SECONDS_MAX = 5.0
"""How long it may take afterwards to drop its producer."""

CLOSE_SECONDS_MAX = 3.0
"""How long clients may take to leave and to disconnect, and the HTTP server after them."""

STALE_SECONDS = 10.0
"""A broker that has not answered, or a consent view that was not confirmed, for so long makes the
worker not ready."""

WATCH_SECONDS = 2.0
MISSING_SECONDS_MAX = 30.0
"""How long a topic may be missing while the broker answers. One that starts may know it late."""

MEMBER_SECONDS_MAX = 120.0
"""How long a worker may be outside the group while the broker answers."""

DRAINED_CHECK_SECONDS = 0.25

NO_ANSWER = "does not answer"


class Summary(msgspec.Struct, frozen=True):
    """What a run came to."""

    counts: dict[str, int]  # reason to number of records
    seconds: float
    events_per_second: float
    cpu_seconds: float
    peak_rss_bytes: int


class Worker:
    """One process of the service. Made inside the event loop that it runs in."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        *,
        accept_consent_gap: bool = False,
        clock: Callable[[], Moment] = read_clock,
    ) -> None:
        """`clock` tells the moment of a decision. Whether the machine's agrees with the brokers',
        and how old anything in the topics is, goes by the machine's own in any case.
        """
        self._config = config
        self._clock = clock
        self._accept_consent_gap = accept_consent_gap
        signing = config.keys.signing
        self._sign = None if signing is None else load_signer(signing)
        self._policy, transformer = equip(config, policy)
        self._transformer = transformer
        self._port = 0
        self._pool = TransformPool(transformer, config.redaction.processes)
        self._settings = kafka_settings(config.kafka)
        self._decode_content = content_decoder(config.content.fields, config.limits.max_depth)
        self._cluster = Cluster(self._settings)
        decode_consent = consent_decoder(
            config.consent.fields, policy.purpose, config.limits.max_depth
        )
        self._view = ConsentView(
            self._settings,
            config.topics.consent,
            decode_consent,
            self._consent_is_unreadable,
            self._consent_is_misplaced,
        )
        self._source = ContentSource(
            self._settings, config.group, config.topics.content, self._assign, self._revoke
        )
        self.metrics = Metrics(self._gauges, self._worker_gauges)
        self.metrics.policy_info.labels(policy.name, self._policy.hash).set(1)
        self._status = Status(config, self._policy, self.metrics, self._gauges, self._ready)
        self._http = HttpServer(self.metrics.registry, self._live, self._ready, self._status.shown)
        self._layout: Layout | None = None
        self._assigned: dict[int, tuple[AssignedPartition, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._counts: Counter[str] = Counter()
        self._right_of_way = RightOfWay(self._anybody_hurries)
        self._leaving: set[asyncio.Task[None]] = set()
        self._joined = asyncio.Event()
        self._shares = False  # in the partitions of the group, which a rebalance takes away
        self._started = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._broker_answered_at = -math.inf
        self._trouble = NO_ANSWER
        self._watched_at = self._member_at = time.monotonic()

    async def run(self, *, until_drained: bool = False) -> Summary:
        """Work until a signal, or until the content that is there now is done.

        Raises:
            BrokerUnavailable: if no broker answers within a minute.
            ConfigError: if topics are missing, or are not as they must be.
            KeyboardInterrupt: after a SIGINT, when everything has been put away.
        """
        started = time.monotonic()
        collect_garbage_rarely()
        keep_freed_memory()
        with ending_signals(self.end) as received:
            try:
                await self._unless_ended(self._begin(until_drained=until_drained))
                await self._ended
            finally:
                await self._put_away()
        if received == [signal.SIGINT]:
            raise KeyboardInterrupt
        return self._summary(time.monotonic() - started)

    def end(self, failure: BaseException | None = None) -> None:
        """Ask the worker to stop; a failure is raised from `run`."""
        if self._ended.done():
            return
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)

    async def _unless_ended(self, beginning: Coroutine[Any, Any, None]) -> None:
        """Begin, and leave off where the worker is to end before it has begun."""
        task = asyncio.create_task(beginning)
        try:
            await asyncio.wait([task, self._ended], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await task
        finally:
            task.cancel()
            await asyncio.wait([task], timeout=CANCEL_SECONDS_MAX)

    async def _begin(self, *, until_drained: bool) -> None:
        # First of all, so that a start that takes long can be seen from outside.
        http = self._config.http
        self._port = await self._http.start(http.host, http.port)
        await self._cluster.start(BROKER_SECONDS_MAX)
        try:
            async with asyncio.timeout(BROKER_SECONDS_MAX):
                await self._start(until_drained=until_drained)
        except UNANSWERED as error:
            if not getattr(error, "retriable", True):
                raise ConfigError(
                    "the cluster refuses what a start needs to know: "
                    f"{denial(error) or type(error).__name__}"
                ) from error
            raise BrokerUnavailable(
                "the broker answered at first, but not to all that a start needs to know within "
                f"{BROKER_SECONDS_MAX:.0f} s ({type(error).__name__}); start again"
            ) from error

    async def _start(self, *, until_drained: bool) -> None:
        self._layout = layout = await find_layout(self._config, self._cluster)
        self._broker_answered_at = time.monotonic()
        for topic in sorted(layout.on_trust):
            log.warning(
                "the settings of a topic may not be read; what is declared is taken on trust",
                topic=topic,
                declared=self._config.declared[topic],
            )
        log.info(
            "started",
            policy=self._policy.reference,
            scope=layout.scope,
            http=f"http://{self._config.http.host}:{self._port}",
        )
        self._tasks.append(self._spawn(self._status.keep()))
        await self._view.start(
            layout.misplaced, layout.deletions_kept_ms, await self._snapshots(layout)
        )
        self._tasks.append(self._spawn(self._view.run()))
        if self._config.snapshot is not None:
            self._tasks.append(self._spawn(self._view.keep()))
        if until_drained:
            self._tasks.append(self._spawn(self._end_when_drained(layout)))
        await self._source.start()
        # Only now are there clients to be watched.
        self._tasks.append(self._spawn(self._watch(layout)))
        self._started = True

    async def _snapshots(self, layout: Layout) -> Snapshots | None:
        config = self._config
        if config.snapshot is None:
            return None
        identity = Identity(
            cluster=await self._cluster.id(),
            topic=config.topics.consent,
            topic_partitions=layout.counts[config.topics.consent],
            scope=layout.scope,
            purpose=self._policy.purpose,
            fields=config.consent.fields,
            max_depth=config.limits.max_depth,
            version=__version__,
        )
        return Snapshots(config.snapshot, config.group, identity, layout.deletions_kept_ms)

    async def _put_away(self) -> None:
        self._stopping = True
        closing_at = time.monotonic() + STOP_SECONDS_MAX - 2 * CLOSE_SECONDS_MAX
        await self._give_up(list(self._assigned))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ended.done() and self._ended.exception() is None:
            # Not after a failure, when nobody knows what else is wrong.
            await _close("the snapshots", self._view.save(), closing_at - time.monotonic())
        await asyncio.gather(
            _close("the content consumer", self._source.stop(), CLOSE_SECONDS_MAX),
            _close("the consent view", self._view.stop(), CLOSE_SECONDS_MAX),
            _close("the admin client", self._cluster.stop(), CLOSE_SECONDS_MAX),
        )
        self._pool.stop()
        # Last, so that it can be seen for how long an end takes.
        await _close("the HTTP server", self._http.stop(), CLOSE_SECONDS_MAX)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Start a task whose failure ends the worker."""
        task = asyncio.create_task(coroutine)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():
            # One of the worker's own, that nobody has ended on purpose.
            if task in self._tasks and not self._stopping:
                self.end(ClientBroken("a task of the worker was cancelled from inside"))
        elif (error := task.exception()) is not None:
            self.end(error)

    async def _assign(self, partitions: Collection[int]) -> None:
        self.metrics.rebalances.inc()
        self._joined.set()
        self._shares = True
        log.info("assigned", partitions=sorted(partitions))
        try:
            for partition in () if self._stopping else partitions:
                self._take(partition)
        except Exception as error:
            # The client would only log it and go on without the partition.
            self.end(error)

    def _take(self, number: int) -> None:
        config, layout = self._config, self._layout
        assert layout is not None, "partitions come after the layout"
        if number not in layout.content_partitions:
            raise ConfigError(f"the content topic has grown to a partition {number} while running")
        gate = Gate(
            chain=Chain(config.group, config.topics.content, number, self._sign),
            consent_topic=config.topics.consent,
            table=self._view.follow(layout.consent_partitions(number)),
            policy=self._policy,
            decode=self._decode_content,
            limits=config.limits.of_content(),
            key_is_subject=config.content.key_is_subject,
            transformer=self._transformer,
        )
        assigned = AssignedPartition(
            gate,
            Clients(
                self._settings,
                layout,
                self._source,
                self._view,
                self._cluster,
                None if self._accept_consent_gap else layout.consent_keeps_ms // 2,
                self._pool.transform,
                self._clock,
            ),
            config.limits.max_exposure_ms,
            lambda event: self._observe(number, event),
            self._observe_withdrawal,
        )
        self._assigned[number] = (assigned, self._spawn(assigned.live(self._right_of_way.give)))

    async def _revoke(self, partitions: Collection[int]) -> None:
        self._shares = False
        try:
            await self._give_up(partitions)
        except Exception as error:
            # The client would only log it, and what lives on would fetch beside its successors.
            self.end(error)

    async def _give_up(self, partitions: Collection[int]) -> None:
        """Let the partitions finish what is in hand, cut short what takes too long."""
        given_up = [self._assigned.pop(p) for p in partitions if p in self._assigned]
        for assigned, task in given_up:
            assigned.stop()
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
        for seconds in (REVOKE_SECONDS_MAX, CANCEL_SECONDS_MAX):
            # Also those of a rebalance that is under way when the worker is to end.
            if self._leaving:
                await asyncio.wait(set(self._leaving), timeout=seconds)
            for task in self._leaving:
                task.cancel()
        for assigned, _ in given_up:
            self._view.release(assigned.table)

    def _anybody_hurries(self) -> bool:
        return any(assigned.hurries for assigned, _ in self._assigned.values())

    def _observe_withdrawal(self, effect_ms: int, exposure_ms: int) -> None:
        self.metrics.observe_withdrawal(effect_ms, exposure_ms)
        self._status.observe_withdrawal(effect_ms)

    def _observe(self, number: int, event: Event) -> None:
        self._right_of_way.moved()
        self.metrics.observe(event)
        match event:
            case Committed(outcome):
                for made, count in outcome.counts.items():
                    self._counts[made.reason] += count
            case Ready(position):
                log.info("ready", partition=number, next_offset=position.next_offset)
            case Aborted(why) | Recycled(why) | Stalled(why):
                log.warning(type(event).__name__.lower(), partition=number, why=why)

    def _consent_is_unreadable(self, cause: str) -> None:
        self.metrics.consent_unreadable.labels(cause).inc()
        log.warning("a consent record is unreadable; its subject is withheld", cause=cause)

    def _consent_is_misplaced(self) -> None:
        self.metrics.consent_misplaced.inc()
        log.warning("a consent record lies in another partition than its subject's content")

    async def _watch(self, layout: Layout) -> None:
        """See whether the cluster still answers, and with the same topics."""
        found_at = time.monotonic()
        while True:
            answers = False
            try:
                async with asyncio.timeout(STALE_SECONDS):
                    missing = await refuse_changes(self._config, self._cluster, layout)
                    if not missing:
                        await self._source.refresh_ends()
            except ConfigError:
                raise
            except Exception as error:
                self._trouble = await self._why_unanswered(error)
                name = type(error).__name__
                log.warning("the broker does not answer", error=name, why=self._trouble)
                found_at = time.monotonic()
            else:
                now, answers = time.monotonic(), not missing
                if answers:
                    self._broker_answered_at = found_at = now
                elif now - found_at > MISSING_SECONDS_MAX:
                    raise ConfigError(missing_topics_text(missing))
            self._refuse_broken_clients()
            for assigned, _ in self._assigned.values():
                assigned.progress.look(broker_answers=answers)
            self._watched_at = time.monotonic()
            await asyncio.sleep(WATCH_SECONDS)

    async def _why_unanswered(self, error: Exception) -> str:
        """What keeps the cluster from answering, for people."""
        if (denied := denial(error)) is not None:
            return denied
        # One that stands still does not tell why.
        attempts = () if isinstance(error, TimeoutError) else await why_shut_out(self._settings)
        return "; ".join(dict.fromkeys(map(str, attempts))) or NO_ANSWER

    def _refuse_broken_clients(self) -> None:
        """End the process rather than wait for a client that does nothing any more."""
        if (denied := self._source.denied()) is not None:
            raise ConfigError(denied)
        if self._source.is_broken() or self._view.is_broken():
            raise ClientBroken("a task of the Kafka client has ended; the process must start anew")
        now = time.monotonic()
        if self._source.is_member() or now - self._broker_answered_at > STALE_SECONDS:
            self._member_at = now
        if now - self._member_at > MEMBER_SECONDS_MAX:
            raise ClientBroken("the group has not taken this member back; start it anew")

    async def _end_when_drained(self, layout: Layout) -> None:
        """End the worker when all content that is there now has been decided, by whomever."""
        await self._joined.wait()
        ranges: dict[int, tuple[int, int]] = {}
        while True:
            try:
                if len(ranges) < len(layout.content_partitions):
                    ranges = {p: await self._source.range(p) for p in layout.content_partitions}
                if await self._is_drained(ranges):
                    return self.end()
            except Exception as error:
                # An outage ends nothing; what is there to be done is still to be done.
                log.warning("cannot tell whether all is done", error=type(error).__name__)
            await asyncio.sleep(DRAINED_CHECK_SECONDS)

    async def _is_drained(self, ranges: Mapping[int, tuple[int, int]]) -> bool:
        topic, group = self._config.topics.content, self._config.group
        committed = await self._cluster.bookmarks(group, topic, ranges)
        offsets = {p: committed[p][0] if p in committed else ranges[p][0] for p in ranges}
        return all(offsets[p] >= end for p, (_, end) in ranges.items())

    def _gauges(self) -> Iterator[Any]:
        return (assigned.gauges() for assigned, _ in list(self._assigned.values()))

    def _worker_gauges(self) -> WorkerGauges:
        return WorkerGauges(
            consent_subjects=self._view.subjects(),
            consent_scattered_subjects=self._view.scattered(),
            content_partitions=len(self._layout.content_partitions) if self._layout else 0,
            broker_silence_seconds=time.monotonic() - self._broker_answered_at,
            group_member=self._joined.is_set() and self._source.is_member(),
        )

    def _live(self) -> Mapping[str, str]:
        unwatched_seconds = time.monotonic() - self._watched_at
        is_watched = not self._started or unwatched_seconds < STUCK_SECONDS
        return {
            "watch": OK if is_watched else f"has not been kept for {unwatched_seconds:.0f} s",
            **{
                f"partition-{n}": "its task has ended" if task.done() else a.progress.liveness()
                for n, (a, task) in self._assigned.items()
            },
        }

    def _ready(self) -> Mapping[str, str]:
        answered = time.monotonic() - self._broker_answered_at < STALE_SECONDS
        in_group = self._shares and self._source.is_member()
        stale_seconds = max((a.stale_seconds() for a, _ in self._assigned.values()), default=0.0)
        is_fresh = stale_seconds < STALE_SECONDS
        state = OK if self._started else "starting"
        waiting = [a for a, _ in self._assigned.values() if a.is_being_taken_over]
        taking = f"{len(waiting)} of {len(self._assigned)} partitions are being taken over"
        return {
            "worker": "stopping" if self._stopping else state,
            # Without one there is no worker.
            "policy": OK,
            "broker": OK if answered else self._trouble,
            "group": OK if in_group else "rebalancing" if self._joined.is_set() else "joining",
            "bootstrap": taking if waiting else OK,
            "consent": OK if is_fresh else f"not known to be fresh for {stale_seconds:.0f} s",
            **{f"partition-{n}": a.readiness() for n, (a, _) in self._assigned.items()},
        }

    def _summary(self, seconds: float) -> Summary:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        rss_unit_bytes = 1 if sys.platform == "darwin" else 1024
        return Summary(
            counts={str(reason): self._counts[reason] for reason in sorted(self._counts)},
            seconds=round(seconds, 3),
            events_per_second=round(self._counts.total() / seconds, 1),
            cpu_seconds=round(usage.ru_utime + usage.ru_stime, 3),
            peak_rss_bytes=usage.ru_maxrss * rss_unit_bytes,
        )


async def _close(what: str, stopping: Coroutine[Any, Any, None], seconds_max: float) -> None:
    # Kafka's clients wait for a broker that is away for as long as for any other answer.
    try:
        async with asyncio.timeout(seconds_max):
            await stopping
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # A task of the client's, by the client itself, as when it is closed in an outage.
        log.warning("closing failed", what=what, error=repr(error))
    except Exception as error:
        log.warning("closing failed", what=what, error=repr(error))
