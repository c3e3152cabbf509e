"""The doctor's checks of what runs: transactions, the group, its offsets, its policy, the clock."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError

from consentgate.core.ledger import Bookmark, Chain
from consentgate.core.partition import Moment, StepFailed
from consentgate.core.verify import BROKER_TIME
from consentgate.errors import ConfigError
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.consent import hidden_text
from consentgate.kafka.layout import Layout
from consentgate.kafka.ledger import entry_at
from consentgate.kafka.position import read_position
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.sink import check_clock
from consentgate.kafka.survey import Ends, Extent, Right, survey_group
from consentgate.kafka.unreadable import UNREADABLE_ERRORS
from consentgate.tools.case import Case
from consentgate.tools.findings import AGAIN, Finding, count, error, fine, listed, warning

STUCK_SECONDS = 5.0
"""For how long a transaction must have stood open to be a finding."""

CLOCK_SECONDS = 2.0
"""For how long the clock check waits for a record that is appended meanwhile."""

CLOCK_PLACES_MAX = 32
"""In how many partitions the clock check looks for records."""

NEWEST_OFFSETS = 10
"""How many offsets of each are looked at for the newest time; markers are among them."""

LOOK_MS = 100
"""How often what may change is looked at again."""


_OFFSET_ADVICE = (
    "Put back what was changed, or give the group a new name, which begins anew and decides "
    "everything again"
)


@dataclass(frozen=True, slots=True)
class _Looker:
    """Reads positions as a worker does, without being one."""

    settings: KafkaSettings
    layout: Layout
    cluster: Cluster
    source: "_Ranges"
    consent_gap_ms_max: int | None


@dataclass(frozen=True, slots=True)
class _Ranges:
    """How far the content partitions go for a reader of committed records."""

    ends: Ends
    topic: str

    async def range(self, partition: int) -> tuple[int, int]:
        place = TopicPartition(self.topic, partition)
        extent = (await self.ends.of([place]))[place]
        return extent.start, extent.stable


async def check_transactions(case: Case, ends: Ends) -> list[Finding]:
    """Transactions that stay open, on the topics that are read."""
    places = case.readable_places(case.config.topics.content, case.config.topics.consent)
    if not places:
        return []
    first = await ends.of(places)
    open_ = {place for place, extent in first.items() if extent.stable < extent.high}
    now: Mapping[TopicPartition, Extent] = first
    deadline = asyncio.get_running_loop().time() + STUCK_SECONDS
    while open_ and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(LOOK_MS / 1000)
        now = await ends.of(open_)
        # Others may have begun since; these are not what was seen.
        open_ = {place for place in open_ if now[place].stable == first[place].stable}
    return [
        error(
            "transactions",
            f"{hidden_text(place, now[place].stable, now[place].high)}, and has done so for "
            f"{STUCK_SECONDS:.0f} s",
            f"{case.tool('kafka-transactions.sh')} describe-producers --topic {place.topic} "
            f"--partition {place.partition} tells whose it is: have that producer end it. Where it "
            f"is gone, the same with abort --start-offset {now[place].stable}; what is aborted "
            "does not count, and has to be appended again",
        )
        for place in sorted(open_)
    ] or [fine("transactions", f"none stays open in {count(len(places), 'partition')} read")]


async def check_members(case: Case, cluster: Cluster) -> list[Finding]:
    """Who is in the group, and who has which partition."""
    content = case.config.topics.content
    try:
        group = await survey_group(cluster, case.config.group)
        may_join = group.rights is None or Right.READ in group.rights
    except GroupAuthorizationFailedError:
        may_join = False
    if not may_join:
        what = f"group {case.config.group}: this user may not Read, and so not join"
        return [error("group", what, case.grant("Read", on=f"--group {case.config.group}"))]
    if not group.members:
        return [fine("group", f"{case.config.group} has no members: nobody decides just now")]
    if group.state != "Stable":
        what = f"{case.config.group} is {group.state}, with {count(len(group.members), 'member')}"
        return [warning("group", what, f"Wait until it is Stable. {AGAIN}")]
    taken = Counter(
        place.partition for places in group.members for place in places if place.topic == content
    )
    partitions = case.partitions_of(content)
    found = [
        error(
            "group",
            f"{content}-{partition} is assigned to {number} members at once",
            "Stop all members but one, then start the others again",
        )
        for partition, number in sorted(taken.items())
        if number > 1
    ]
    if left := sorted(set(partitions) - set(taken)):
        what = f"nobody of {count(len(group.members), 'member')} has {content}-{listed(left)}"
        found.append(warning("group", what, f"See whether they read {content}. {AGAIN}"))
    return found or [
        fine(
            "group",
            f"{case.config.group} is Stable: {count(len(group.members), 'member')}, "
            f"{count(len(taken), 'partition')}",
        )
    ]


async def check_offsets(case: Case, layout: Layout, cluster: Cluster, ends: Ends) -> list[Finding]:
    """Where each partition would go on, as its worker would find out."""
    content = case.config.topics.content
    looker = _Looker(
        case.settings,
        layout,
        cluster,
        _Ranges(ends, content),
        layout.consent_keeps_ms // 2,
    )
    found, lag = [], 0
    for partition in layout.content_partitions:
        expired: list[str] = []
        chain = Chain(case.config.group, content, partition)
        try:
            position = await read_position(looker, chain, expired.append)
        except (StepFailed, ConfigError, ValueError) as refusal:
            found.append(error("offsets", f"{content}-{partition}: {refusal}", _OFFSET_ADVICE))
            continue
        place = TopicPartition(content, partition)
        extent = (await ends.of([place]))[place]
        lag += extent.high - max(position.next_offset, extent.start)
        found += [
            warning(
                "offsets",
                what,
                f"Nobody will decide them. Raise retention.ms of {content}, or run more "
                "workers, so that they keep up",
            )
            for what in expired
        ]
    return found or [fine("offsets", f"all follow the ledger; lag {count(lag, 'offset')}")]


async def check_policy(case: Case, layout: Layout, cluster: Cluster) -> list[Finding]:
    """Under which policy the last decision of each partition was made."""
    topics = case.config.topics
    bookmarks = await cluster.bookmarks(
        case.config.group, topics.content, layout.content_partitions
    )
    under: dict[str, list[int]] = {}
    for partition, (_, bookmark) in sorted(bookmarks.items()):
        if bookmark is not None and (policy := await _policy_at(case, bookmark)) is not None:
            under.setdefault(policy, []).append(partition)
    if not under:
        return [fine("policy", f"{case.policy.reference} is configured; no decision yet")]
    return [
        warning(
            "policy",
            f"the last decisions of {topics.content}-{listed(partitions)} were made under "
            f"{policy}, but {case.policy.reference} is configured",
            "Restart the workers that still run with the other policy, or correct policy and "
            "keys of this configuration; until then both are in force",
        )
        for policy, partitions in under.items()
        if policy != case.policy.reference
    ] or [fine("policy", f"all last decisions were made under {case.policy.reference}")]


async def _policy_at(case: Case, bookmark: Bookmark) -> str | None:
    place = TopicPartition(case.config.topics.decisions, bookmark.ledger_partition)
    entry = await entry_at(case.settings, place, bookmark.ledger_offset)
    return None if entry is None else entry.policy


async def check_clocks(case: Case, ends: Ends) -> list[Finding]:
    """Compare the clocks by records that a broker has stamped, the newest and the next."""
    topics = case.config.topics
    places = case.readable_places(topics.decisions, topics.consent)[:CLOCK_PLACES_MAX]
    if not places:
        return []
    asked = read_clock()
    extents = await ends.of(places)
    newest = 0
    async with (
        AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            **case.settings.client,
            **case.settings.consumer,
        ) as consumer,
        aclosing(_stamped(consumer, extents, asked)) as stamped,
    ):
        async for since, record in stamped:
            if record.offset >= extents[TopicPartition(record.topic, record.partition)].high:
                agreed = fine("clock", "this machine's and the broker's agree to a second")
                return [_skew(since.unix_ms, record.timestamp) or agreed]
            newest = max(newest, record.timestamp)
    if newest and (found := _skew(newest, newest)):
        return [found]
    what = "not compared: there is no record that a broker has stamped"
    if newest:
        what = (
            "this machine's is not behind the broker's; whether it runs ahead is not known, "
            "for nothing was appended just now"
        )
    do = "Run consentgate doctor while content is decided: then a broker tells its time"
    return [warning("clock", what, do)]


async def _stamped(
    consumer: AIOKafkaConsumer, extents: Mapping[TopicPartition, Extent], asked: Moment
) -> AsyncGenerator[tuple[Moment, Any], None]:
    """The newest records with a broker's time, then those that are appended for a while.

    With each a moment before it was appended, as far as it was after `asked`.
    """
    consumer.assign(list(extents))
    for place, extent in extents.items():
        consumer.seek(place, max(extent.start, extent.high - NEWEST_OFFSETS))
    before, ends_at = asked, read_clock().monotonic_ms + CLOCK_SECONDS * 1000
    while (now := read_clock()).monotonic_ms < ends_at:
        try:
            fetched = await consumer.getmany(timeout_ms=LOOK_MS)
        except UNREADABLE_ERRORS:
            # What cannot be read tells no time; what comes after it may.
            for place, extent in extents.items():
                consumer.seek(place, extent.high)
            continue
        for records in fetched.values():
            for record in records:
                if getattr(record, "timestamp_type", 0) == BROKER_TIME:
                    yield before, record
        # The client fetches ahead: what comes next may have been appended during this poll.
        before = now


def _skew(since_ms: int, stamped_ms: int) -> Finding | None:
    """What a broker's stamp since a moment of this machine's says of both clocks."""
    try:
        check_clock(since_ms, stamped_ms)
    except StepFailed as failure:
        do = "Set both by NTP: until they agree nothing is committed"
        return error("clock", str(failure), do)
    return None
