"""Where a partition goes on: its committed offset, and the ledger entry that goes with it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from aiokafka import TopicPartition

from consentgate.core.ledger import GENESIS, Bookmark, Chain, LedgerRecord
from consentgate.core.partition import Position, StepFailed
from consentgate.errors import ConfigError
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.layout import Layout
from consentgate.kafka.ledger import entry_at, last_entry
from consentgate.kafka.reader import read_range
from consentgate.kafka.settings import KafkaSettings

log = logging.getLogger(__name__)


class Ranges(Protocol):
    """Tells how far the content partitions go."""

    async def range(self, partition: int) -> tuple[int, int]:
        """The first offset that the log still holds, and the last stable offset."""


class Sources(Protocol):
    """What a position is read from."""

    @property
    def settings(self) -> KafkaSettings: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def source(self) -> Ranges: ...
    @property
    def cluster(self) -> Cluster: ...
    @property
    def consent_gap_ms_max(self) -> int | None: ...


async def read_position(
    clients: Sources, chain: Chain, on_expired: Callable[[str], None] = log.warning
) -> Position:
    """The position after the chain's last committed transaction; the producer is fenced by now.

    `on_expired` is told, for people, which offsets are gone that nobody has decided.

    A committed offset without a bookmark was set by somebody else; an entry without an offset is
    what is left where the group's offsets have expired. Either must agree with the other.

    Raises:
        StepFailed: if offset, ledger and content topic do not fit together.
        ConfigError: if consent changes may have been compacted away before they were read.
    """
    partition = chain.partition
    # Not the consumer's own way to ask, which takes "not the coordinator" for "never committed".
    found = await clients.cluster.bookmarks(chain.group, chain.topic, [partition])
    committed, bookmark = found.get(partition, (None, None))
    # In this order, also for one who looks on while the partition's owner commits.
    log_start, log_end = await clients.source.range(partition)
    entry = await _last_ledger_entry(clients, chain, bookmark)
    if entry is None:
        next_offset = log_start if committed is None else committed
        position = Position(next_offset, GENESIS, None)
    else:
        await _refuse_consent_gap(clients, entry)
        frontier = {int(p): offset for p, offset in entry.consent.items()}
        position = Position(entry.source.last + 1, entry.hash, frontier)
    if committed not in (None, position.next_offset):
        raise StepFailed(
            f"the committed offset {committed} does not follow the ledger, whose last entry "
            f"accounts for offsets up to {position.next_offset - 1}"
        )
    if position.next_offset > log_end:
        raise StepFailed(
            f"the content partition ends at {log_end}, before the committed offset "
            f"{position.next_offset}: it was truncated or made anew"
        )
    if position.next_offset < log_start:
        on_expired(
            f"{chain.topic}-{partition}: offsets {position.next_offset} to {log_start - 1} "
            "expired before they were decided"
        )
        return replace(position, expired=log_start - position.next_offset)
    return position


async def _last_ledger_entry(
    clients: Sources, chain: Chain, bookmark: Bookmark | None
) -> LedgerRecord | None:
    """The chain's last entry: where the bookmark says, else searched for in the whole topic."""
    topic = clients.layout.topics.decisions
    if bookmark is None:
        counts = clients.layout.counts
        return await last_entry(clients.settings, topic, counts[topic], chain.key)
    place = TopicPartition(topic, bookmark.ledger_partition)
    entry = await entry_at(clients.settings, place, bookmark.ledger_offset)
    if entry is None or entry.hash != bookmark.hash:
        raise StepFailed(
            f"the ledger entry at {topic}-{bookmark.ledger_partition}@{bookmark.ledger_offset} "
            "is not the one that was committed"
        )
    return entry


async def _refuse_consent_gap(clients: Sources, entry: LedgerRecord) -> None:
    """Refuse to go on where the topic's retention may have removed changes that nobody read.

    What was appended since the entry is as old as the entry at most. It is all still there if the
    first of it is, and is young enough.
    """
    gap_ms_max = clients.consent_gap_ms_max
    now_ms = read_clock().unix_ms
    if gap_ms_max is None or now_ms - entry.decided_at <= gap_ms_max:
        return
    topic = clients.layout.topics.consent
    for name, frontier in entry.consent.items():
        place = TopicPartition(topic, int(name))
        records, _ = await read_range(clients.settings, place, (frontier, 2**63 - 1), 1)
        if not records:
            continue
        (first,) = records
        if first.offset > frontier or now_ms - first.timestamp > gap_ms_max:
            raise ConfigError(
                f"{topic}-{name}: changes from offset {frontier} on were never read, and are up to "
                f"{(now_ms - entry.decided_at) / 3.6e6:.1f} h old, while compaction keeps changes "
                f"for {gap_ms_max / 3.6e6:.1f} h with safety. Some may be gone, and with them "
                "retractions. Start once with --accept-consent-gap to go on without them."
            )
