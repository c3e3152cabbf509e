"""Fixtures through the real worker on a real broker, to the same outcomes as in memory.

Topics of its own, of one partition each, and a consumer group of its own; the decisions are made at
the fixture's moments, while everything else goes by the machine's clock.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from consentgate.config import Config, HttpConfig, Topics
from consentgate.core.gate import SOURCE_HEADER, Output
from consentgate.core.ledger import LedgerRecord, read_codes, read_entry
from consentgate.core.model import Reason, Verdict
from consentgate.core.partition import Moment
from consentgate.core.policy import Policy
from consentgate.errors import ConfigError, ConsentgateError
from consentgate.kafka.appender import Appender
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster, TopicPlan, connected
from consentgate.kafka.guards import plan_topics
from consentgate.kafka.reader import follow_topic
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.kafka.unanswered import UNANSWERED
from consentgate.service.worker import Worker
from consentgate.testing import Clock
from consentgate.tools.broker import EmbeddedKafka
from consentgate.tools.fixtures import FixtureRecord, read_fixture
from consentgate.tools.replay import Replay, Replayed

BROKER_SECONDS_MAX = 60.0
"""How long the first answer of a broker is awaited."""

DECIDED_SECONDS_MAX = 60.0
"""How long the worker may take for the next content that has been appended."""

_ANY_RECORD = {
    # What a limit or the clock refuses is for the worker to see, not for the broker.
    "max.message.bytes": str(16 << 20),
    "message.timestamp.after.max.ms": str(2**63 - 1),
}


@contextlib.contextmanager
def embedded(config: Config) -> Iterator[Config]:
    """The configuration with an embedded broker for the time of a block.

    Raises:
        BrokerError: if it cannot be started.
    """
    with EmbeddedKafka() as kafka:
        servers: dict[str, str | int | float | bool] = {
            "bootstrap.servers": kafka.bootstrap_servers
        }
        yield msgspec.structs.replace(config, kafka=servers)


_Lines = Sequence[tuple[FixtureRecord, Replayed | None]]


async def rehearse(config: Config, policy: Policy, path: Path) -> list[Replayed]:
    """What becomes of each content line of a file on the broker.

    An outcome that is as expected in memory must be the very same on the broker: it is what is
    expected there, with its reason, also where a line expects less or nothing.

    Raises:
        FixtureError: if a line cannot be read or has no place in a replay.
        ConfigError: if the cluster refuses the topics or what is appended.
        BrokerUnavailable: if no broker answers.
        ConsentgateError: if the worker fails or does not get through, or topics are left over.
        KeyboardInterrupt: after a SIGINT or SIGTERM, when everything has been put away.
    """
    memory = Replay(config, policy, path)
    fed = [(line, memory.feed(line)) for line in read_fixture(path)]
    lines = [(line, replayed) for line, replayed in fed if isinstance(line, FixtureRecord)]
    own = _with_own_names(config)
    settings = kafka_settings(own.kafka)
    async with _topics(own, settings):
        clock = Clock()
        worker = Worker(own, policy, clock=lambda: Moment(clock.now_ms, read_clock().monotonic_ms))
        working = asyncio.create_task(_work(worker))
        feeding = asyncio.create_task(_feed(own, settings, clock, lines))
        try:
            await asyncio.wait((working, feeding), return_when=asyncio.FIRST_COMPLETED)
            if feeding.done():
                return feeding.result()
            working.result()
            raise KeyboardInterrupt
        finally:
            feeding.cancel()
            worker.end()
            await asyncio.wait((working, feeding))


async def _work(worker: Worker) -> None:
    # An interruption that leaves a task breaks the event loop off, and so what puts away.
    with contextlib.suppress(KeyboardInterrupt):
        await worker.run()


def _with_own_names(config: Config) -> Config:
    group = f"consentgate-replay-{uuid.uuid4().hex[:12]}"
    names = {role: f"{group}-{role}" for role in Topics.__struct_fields__}
    # Any free port: a worker may run beside this one.
    http = HttpConfig(port=0)
    return msgspec.structs.replace(config, group=group, topics=Topics(**names), http=http)


@contextlib.asynccontextmanager
async def _topics(config: Config, settings: KafkaSettings) -> AsyncIterator[None]:
    """The topics for the time of a block."""
    created: list[str] = []
    async with connected(settings, BROKER_SECONDS_MAX) as cluster:
        try:
            for plan in _plans(config):
                # First, because a creation without an answer may have been one.
                created.append(plan.name)
                try:
                    await cluster.create(plan, None)
                except ConfigError:
                    created.remove(plan.name)
                    raise
            yield
        finally:
            await _delete(cluster, created)


def _plans(config: Config) -> Iterator[TopicPlan]:
    takes_any = (config.topics.content, config.topics.training)
    for plan in plan_topics(config, partitions=1):
        more = _ANY_RECORD if plan.name in takes_any else {}
        yield TopicPlan(plan.name, plan.partitions, {**plan.configs, **more})


async def _delete(cluster: Cluster, topics: Sequence[str]) -> None:
    try:
        left = await cluster.delete(topics)
    except UNANSWERED:
        left = list(topics)
    if left:
        raise ConsentgateError(f"topics of the replay are left over, delete them: {' '.join(left)}")


async def _feed(
    config: Config, settings: KafkaSettings, clock: Clock, lines: _Lines
) -> list[Replayed]:
    """Append the lines, each run of content after what came before it has been decided."""
    outcomes: list[Replayed] = []
    async with Appender(settings) as appender, _open_outputs(config, settings) as outputs:
        for now_ms, run in groupby(lines, key=_moment):
            together = list(run)
            if now_ms is not None:
                clock.set(now_ms)
            for line, _ in together:
                await _append(appender, config, line, now_ms)
            await appender.flush()
            found = [replayed for _, replayed in together if replayed is not None]
            if found:
                outcomes += await outputs.decided(found, first=len(outcomes))
    return outcomes


def _moment(fed: tuple[FixtureRecord, Replayed | None]) -> int | None:
    """When a content line is decided on; None for a consent line."""
    _, replayed = fed
    return None if replayed is None else replayed.decided.entry.decided_at


async def _append(
    appender: Appender, config: Config, line: FixtureRecord, now_ms: int | None
) -> None:
    if now_ms is None and line.key is None:
        return  # A compacted topic takes no record without a key.
    await appender.append(
        config.topics.consent if now_ms is None else config.topics.content,
        key=line.key,
        value=line.value,
        timestamp_ms=now_ms if line.timestamp_ms is None else line.timestamp_ms,
        headers=line.headers,
        partition=0,
    )


@dataclass(frozen=True, slots=True)
class _Outputs:
    """What the worker commits, as it comes."""

    topics: Topics
    decisions: AsyncIterator[Any]
    training: AsyncIterator[Any]
    quarantine: AsyncIterator[Any]

    async def decided(self, expected: Sequence[Replayed], first: int) -> list[Replayed]:
        """The outcomes of the next content records, the first of which has this offset.

        Raises:
            ConsentgateError: if nothing is committed for too long.
        """
        by_offset: dict[int, tuple[LedgerRecord, Reason]] = {}
        try:
            while len(by_offset) < len(expected):
                async with asyncio.timeout(DECIDED_SECONDS_MAX):
                    by_offset |= await self._next_entry()
        except TimeoutError:
            raise ConsentgateError(
                f"line {expected[len(by_offset)].line}: the worker has not decided within "
                f"{DECIDED_SECONDS_MAX:.0f} s; its log says why"
            ) from None
        return [
            await self._outcome(replayed, offset, *by_offset[offset])
            for offset, replayed in enumerate(expected, start=first)
        ]

    async def _next_entry(self) -> dict[int, tuple[LedgerRecord, Reason]]:
        entry = read_entry((await anext(self.decisions)).value)
        reasons = enumerate(read_codes(entry.outcomes), start=entry.source.first)
        return {offset: (entry, reason) for offset, reason in reasons if reason is not None}

    async def _outcome(
        self, memory: Replayed, offset: int, entry: LedgerRecord, reason: Reason
    ) -> Replayed:
        forwarded = quarantined = None
        if reason.verdict is Verdict.FORWARD:
            forwarded = _output(await anext(self.training))
            source = f"{self.topics.content}-0@{offset}".encode()
            assert (SOURCE_HEADER, source) in forwarded.headers, "outputs come in their order"
        elif reason.verdict is Verdict.QUARANTINE:
            quarantined = _output(await anext(self.quarantine))
        decided = replace(
            memory.decided,
            reason=reason,
            forwarded=forwarded,
            quarantined=quarantined,
            retractions=(),
            entry=entry,
        )
        expect = memory.full_outcome if memory.matches else memory.expect
        return Replayed(memory.line, decided, expect)


@contextlib.asynccontextmanager
async def _open_outputs(config: Config, settings: KafkaSettings) -> AsyncIterator[_Outputs]:
    topics = config.topics
    async with contextlib.AsyncExitStack() as stack:
        followed = [
            await stack.enter_async_context(contextlib.aclosing(follow_topic(settings, topic)))
            for topic in (topics.decisions, topics.training, topics.quarantine)
        ]
        yield _Outputs(topics, *followed)


def _output(record: Any) -> Output:
    return Output(record.timestamp, record.key, record.value, list(record.headers))
