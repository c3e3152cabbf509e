"""The topics of the report: what it reads, and the changelogs that it keeps its figures in."""

from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka.errors import GroupAuthorizationFailedError, TopicAuthorizationFailedError

from consentgate.config import Config
from consentgate.errors import ConfigError
from consentgate.kafka.cluster import Cluster, TopicPlan
from consentgate.kafka.layout import CREATE_TOPICS, missing_topics_text
from consentgate.kafka.survey import Right, survey_cluster, survey_group

CHANGELOG_SETTINGS = {
    "cleanup.policy": "compact",
    # What a worker that stood still writes late may be older than what is there. Both must be there
    # to be compared.
    "min.compaction.lag.ms": "86400000",
}


@dataclass(frozen=True, slots=True)
class Changelog:
    """A compacted topic with the figures of another topic, partition by partition."""

    table: str
    source: str  # the topic whose records are counted
    topic: str
    partitions: int  # of both


def report_id(config: Config) -> str:
    """The report's consumer group, and what the names of its topics begin with."""
    return f"{config.group}-report"


def changelog_topics(config: Config) -> dict[str, str]:
    """Table to its changelog: that of the ledger, and then that of the retractions."""
    return {table: f"{report_id(config)}-{table}-changelog" for table in ("ledger", "retractions")}


async def prepare_changelogs(config: Config, cluster: Cluster) -> tuple[Changelog, Changelog]:
    """The changelogs of the ledger and of the retractions; those that are missing are made.

    Raises:
        ConfigError: if what is to be counted is not there, or a changelog is not as it must be or
            cannot be made.
        TopicAuthorizationFailedError: if this user may not read or write what has to be.
        GroupAuthorizationFailedError: if it may not join the report's group.
    """
    sources = {"ledger": config.topics.decisions, "retractions": config.topics.retractions}
    names = changelog_topics(config)
    counts = await cluster.partition_counts([*sources.values(), *names.values()])
    if missing := [topic for topic in sources.values() if topic not in counts]:
        raise ConfigError(f"{missing_topics_text(missing)}. {CREATE_TOPICS}")
    ledger, retractions = (
        Changelog(table, topic, names[table], counts[topic]) for table, topic in sources.items()
    )
    for changelog in (ledger, retractions):
        plan = TopicPlan(changelog.topic, changelog.partitions, CHANGELOG_SETTINGS)
        if changelog.topic not in counts:
            await cluster.create(plan, None)
        elif counts[changelog.topic] != changelog.partitions:
            raise ConfigError(
                f"topic {changelog.topic} has {counts[changelog.topic]} partitions, but "
                f"{changelog.source} has {changelog.partitions}: delete it, and the report counts "
                "from the beginning"
            )
    await _refuse_other_settings(cluster, [ledger, retractions])
    await _refuse_missing_rights(report_id(config), cluster, [ledger, retractions])
    return ledger, retractions


async def _refuse_other_settings(cluster: Cluster, changelogs: Sequence[Changelog]) -> None:
    told = await cluster.topic_configs([changelog.topic for changelog in changelogs])
    for topic, settings in told.items():
        policy = (settings or {}).get("cleanup.policy", "compact")
        if policy != "compact":
            raise ConfigError(
                f"topic {topic}: cleanup.policy is {policy}, but must be compact: figures that are "
                "deleted would be missing from the report"
            )


async def _refuse_missing_rights(
    group: str, cluster: Cluster, changelogs: Sequence[Changelog]
) -> None:
    """Ask before Faust does, which goes on asking for ever, and says nothing of it."""
    needed = {changelog.source: {Right.READ} for changelog in changelogs}
    needed |= {changelog.topic: {Right.READ, Right.WRITE} for changelog in changelogs}
    survey = await survey_cluster(cluster, needed)
    lacking = set()
    for topic, rights in needed.items():
        held = survey.topics[topic].rights
        # Where the cluster does not tell, nothing is known to be missing.
        if held is not None and not rights <= held:
            lacking.add(topic)
    if lacking:
        raise TopicAuthorizationFailedError(lacking)
    held = (await survey_group(cluster, group)).rights
    if held is not None and Right.READ not in held:
        raise GroupAuthorizationFailedError(group)
