"""The topics as they were found at the start, and in which scope content is judged."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
from aiokafka import TopicPartition

from consentgate.config import Config, Topics
from consentgate.core.ledger import Bookmark
from consentgate.errors import ConfigError
from consentgate.kafka.cluster import Cluster, connected
from consentgate.kafka.guards import (
    consent_keeps_ms,
    deletions_kept_ms,
    judged_settings,
    topic_problems,
    with_declared,
)
from consentgate.kafka.murmur2 import murmur2_of_each, partition_of_hash
from consentgate.kafka.settings import kafka_settings

Scope = Literal["partition", "global"]

CREATE_TOPICS = "Create them with consentgate topics create, and the same -c"
"""What to do about topics that are missing."""


@dataclass(frozen=True, slots=True)
class OutputPartitions:
    """Where the outputs of one input partition go."""

    training: TopicPartition
    decisions: TopicPartition
    quarantine: TopicPartition
    retractions: TopicPartition

    def all(self) -> tuple[TopicPartition, ...]:
        """All of them."""
        return self.training, self.decisions, self.quarantine, self.retractions


@dataclass(frozen=True, slots=True)
class Layout:
    """Topics, partitions and scope; settled for the life of a group."""

    topics: Topics
    counts: dict[str, int]  # topic to number of partitions
    scope: Scope
    consent_keeps_ms: int  # how long compaction is sure to keep a change of consent
    deletions_kept_ms: int  # how long it is sure to keep the deletion of a consent record
    on_trust: frozenset[str] = frozenset()  # topics whose settings nobody but the user has told

    @property
    def content_partitions(self) -> range:
        """The input partitions."""
        return range(self.counts[self.topics.content])

    @property
    def settled_counts(self) -> list[int]:
        """Number of content and of consent partitions, as bookmarks carry them."""
        return [self.counts[self.topics.content], self.counts[self.topics.consent]]

    def consent_partitions(self, content_partition: int) -> list[int]:
        """The consent partitions that content of this partition is judged against."""
        if self.scope == "partition":
            return [content_partition]
        return list(range(self.counts[self.topics.consent]))

    def misplaced(self, consent_partition: int, subjects: Iterable[bytes]) -> list[bytes]:
        """Those whose consent lies where their content is not judged against it, in some order."""
        if self.scope == "global":
            return []
        count = self.counts[self.topics.consent]
        return [
            subject
            for subject, hashed in murmur2_of_each(subjects)
            if partition_of_hash(hashed, count) != consent_partition
        ]

    def outputs(self, content_partition: int) -> OutputPartitions:
        """Where the outputs of this content partition go."""

        def at(topic: str) -> TopicPartition:
            return TopicPartition(topic, content_partition % self.counts[topic])

        topics = self.topics
        return OutputPartitions(
            at(topics.training),
            at(topics.decisions),
            at(topics.quarantine),
            at(topics.retractions),
        )


async def read_layout(config: Config) -> Layout:
    """The topics as they are, over a connection for this question alone.

    Raises:
        BrokerUnavailable: if no broker answers within a minute.
        ConfigError: as `find_layout` does.
    """
    async with connected(kafka_settings(config.kafka), timeout_seconds=60) as cluster:
        return await find_layout(config, cluster)


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
        raise ConfigError(f"{missing_topics_text(missing)}. {CREATE_TOPICS}")
    told = await cluster.topic_configs(judged_settings(config))
    configs = with_declared(config, told)
    problems = topic_problems(config, configs)
    if problems:
        raise ConfigError("\n".join(problems))
    bookmarks = await cluster.bookmarks(config.group, topics.content, range(counts[topics.content]))
    scope = settle_scope(
        config.consent.scope,
        config.content.key_is_subject,
        [counts[topics.content], counts[topics.consent]],
        (bookmark for _, bookmark in bookmarks.values() if bookmark is not None),
    )
    return Layout(
        topics,
        counts,
        scope,
        consent_keeps_ms(configs[topics.consent]),
        deletions_kept_ms(configs[topics.consent]),
        _untold(told),
    )


def missing_topics_text(missing: Iterable[str]) -> str:
    """That these topics are missing, for people."""
    return f"missing topics: {', '.join(missing)}"


async def refuse_changes(config: Config, cluster: Cluster, layout: Layout) -> list[str]:
    """See that the topics are what they were at the start; those that are missing now.

    Raises:
        ConfigError: if they are not.
    """
    found = await cluster.partition_counts(layout.counts)
    if missing := [topic for topic in layout.counts if topic not in found]:
        return missing
    if found != layout.counts:
        raise ConfigError(
            f"the topics' partitions changed while running: {layout.counts} became {found}"
        )
    told = await cluster.topic_configs(judged_settings(config))
    configs = with_declared(config, told)
    problems = topic_problems(config, configs)
    if untold := _untold(told) - layout.on_trust:
        problems.append(
            f"the settings of {', '.join(sorted(untold))} may not be read any more: grant this "
            "user DescribeConfigs again, or start again to go on with what is declared"
        )
    kept_ms = deletions_kept_ms(configs[layout.topics.consent])
    if kept_ms < layout.deletions_kept_ms:
        problems.append(
            f"topic {layout.topics.consent}: delete.retention.ms is {kept_ms}, and was "
            f"{layout.deletions_kept_ms} at the start: start again to go on with it"
        )
    if problems:
        raise ConfigError("\n".join(["topics were changed while running:", *problems]))
    return []


def _untold(told: Mapping[str, object | None]) -> frozenset[str]:
    return frozenset(topic for topic, settings in told.items() if settings is None)


def settle_scope(
    configured: Literal["auto", "partition", "global"],
    key_is_subject: bool,
    counts: list[int],
    bookmarks: Iterable[Bookmark],
) -> Scope:
    """The scope in which content is judged; `counts`: partitions of content and of consent.

    Raises:
        ConfigError: if it does not fit the topics, or is not what the group started with.
    """
    content, consent = counts
    matching = content == consent and key_is_subject
    settled = sorted({(bookmark.scope, *bookmark.partitions) for bookmark in bookmarks})
    for started_scope, *started_counts in settled:
        possible = started_scope == "global" or matching
        wanted = (
            configured in ("auto", started_scope) and len({scope for scope, *_ in settled}) == 1
        )
        if started_counts != counts or not possible or not wanted:
            raise ConfigError(
                f"the group was started with {started_scope} scope over {started_counts[0]} "
                f"content and {started_counts[1]} consent partitions, which is no longer so: "
                f"consent.scope is {configured}, and there are {content} and {consent} "
                "partitions. Start a new group, or restore what was."
            )
    if settled:
        return "partition" if settled[0][0] == "partition" else "global"
    if configured == "partition" and not matching:
        raise ConfigError(
            "consent.scope: partition needs content that is keyed by its subject, and as many "
            f"content partitions as consent partitions; there are {content} and {consent}"
        )
    return "partition" if configured != "global" and matching else "global"
