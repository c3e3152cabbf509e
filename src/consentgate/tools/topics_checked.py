"""The doctor's checks of brokers, topics, rights and settings: what a start would refuse."""

import asyncio
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any

from aiokafka.errors import TopicAuthorizationFailedError, TransactionalIdAuthorizationFailed

from consentgate.errors import ConfigError
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.connecting import attempt, bootstrap_addresses
from consentgate.kafka.guards import (
    consent_keeps_ms,
    deletions_kept_ms,
    judged_settings,
    plan_topics,
    unfit_settings,
    with_declared,
)
from consentgate.kafka.layout import CREATE_TOPICS, Layout, missing_topics_text, settle_scope
from consentgate.kafka.survey import (
    Right,
    TopicSurvey,
    ask_for_transactions,
    survey_cluster,
)
from consentgate.tools.case import Case
from consentgate.tools.findings import Finding, count, error, fine, listed, warning

KEPT_MS_MIN = 3_600_000
"""Below this, a stop for maintenance may be longer than consent changes are sure to be kept."""


_NOT_ADDED = (
    "Do not add partitions to a topic with records: keys move, and a withdrawal comes to lie "
    "elsewhere than older content"
)


async def check_topics(case: Case, cluster: Cluster) -> list[Finding]:
    """Whether all topics are there; from here on the case knows what the cluster tells."""
    case.seen = await survey_cluster(cluster, list(case.roles.values()))
    found, missing = [], []
    for topic, survey in case.seen.topics.items():
        if survey.error is TopicAuthorizationFailedError:
            what = f"topic {topic}: this user may not see whether it is there"
            found.append(error("topics", what, case.grant("Describe", on=f"--topic {topic}")))
        elif survey.error is not None:
            missing.append(topic)
    if missing:
        missing.sort(key=list(case.roles.values()).index)
        found.append(error("topics", missing_topics_text(missing), CREATE_TOPICS))
    return found or [fine("topics", f"all {len(case.roles)} topics are there")]


async def check_brokers(case: Case) -> list[Finding]:
    """Whether the addresses that brokers tell to clients lead to them from here."""
    known = set(bootstrap_addresses(case.settings))
    others = [each for each in case.seen.brokers if each[1:] not in known]
    attempts = await asyncio.gather(
        *(attempt(case.settings, host, port) for _, host, port in others)
    )
    found = [
        error(
            "brokers",
            f"broker {node} tells clients to find it at {tried.address}, but {tried.problem}",
            f"Set advertised.listeners of broker {node} to an address that leads there from "
            f"this machine. {tried.advice}",
        )
        for (node, *_), tried in zip(others, attempts, strict=True)
        if tried.problem is not None
    ]
    return found or [fine("brokers", f"{count(len(case.seen.brokers), 'broker')} in reach")]


async def check_rights(case: Case, cluster: Cluster) -> list[Finding]:
    """What this user may do, as the brokers say; nothing is tried that would leave a trace."""
    topics, group = case.config.topics, case.config.group
    needed = {
        topics.content: (Right.READ,),
        topics.consent: (Right.READ,),
        topics.training: (Right.WRITE,),
        topics.decisions: (Right.READ, Right.WRITE),
        topics.quarantine: (Right.WRITE,),
        topics.retractions: (Right.WRITE,),
    }
    found = []
    for topic, rights in needed.items():
        if not case.is_described(topic):
            continue
        held = case.topic(topic).rights
        if held is None:
            what = f"topic {topic}: the broker does not say what this user may do"
            do = case.grant(*rights, on=f"--topic {topic}")
            found.append(warning("rights", what, do))
        found += [
            error(
                "rights",
                f"topic {topic}: this user may not {right}",
                case.grant(right, on=f"--topic {topic}"),
            )
            for right in rights
            if held is not None and right not in held
        ]
    transactional_id = f"{group}/{topics.content}-0"
    try:
        await ask_for_transactions(cluster, transactional_id)
    except TransactionalIdAuthorizationFailed:
        found.append(
            error(
                "rights",
                f"this user may not use the transactional id {transactional_id}",
                case.grant(
                    "Write",
                    on=f"--transactional-id {group}/ --resource-pattern-type prefixed",
                ),
            )
        )
    return found or [
        fine(
            "rights",
            "Read and Write are granted where they are needed; Write on the transactional ids "
            f"{group}/… is not tried",
        )
    ]


async def check_settings(case: Case, cluster: Cluster) -> list[Finding]:
    """The guards of the start, and how long changes of consent are kept."""
    config = case.config
    judged = judged_settings(config)
    # What is not there, or not to be seen, has its finding already.
    configs: dict[str, Any] = {p.name: p.configs for p in plan_topics(config, 1)}
    present = [topic for topic in judged if case.is_described(topic)]
    told = await cluster.topic_configs(present)
    found = []
    for topic, settings in told.items():
        try:
            configs |= with_declared(config, {topic: settings})
        except ConfigError as refusal:
            what, _, advice = str(refusal).partition(": grant ")
            found.append(error("settings", what, f"Grant {advice}"))
        else:
            if settings is None:
                what = f"topic {topic}: its settings may not be read; what is declared is taken"
                do = "Grant this user DescribeConfigs, so that they can be checked"
                found.append(warning("settings", f"{what} on trust", do))
    for unfit in unfit_settings(config, configs):
        do = case.reconfigure(unfit.topic, unfit.name, unfit.needed)
        found.append(error("settings", unfit.problem, do))
    found += _weak_settings(case, configs, told)
    if present and not found:
        found.append(fine("settings", f"as they must be: {listed(present)}"))
    return found


def _weak_settings(
    case: Case, configs: Mapping[str, Mapping[str, str | None]], told: Collection[str]
) -> Iterator[Finding]:
    """Settings of the consent topic that no start refuses, and that may surprise later."""
    consent = case.config.topics.consent
    if consent not in told or not configs[consent].get("delete.retention.ms"):
        return
    kept = configs[consent]
    for name, kept_ms, otherwise in (
        (
            "min.compaction.lag.ms",
            consent_keeps_ms(kept),
            "needs --accept-consent-gap to start",
        ),
        ("delete.retention.ms", deletions_kept_ms(kept), "throws its table away"),
    ):
        if kept_ms < KEPT_MS_MIN:
            yield warning(
                "settings",
                f"topic {consent}: {name} lets changes go after {kept_ms} ms: a worker that "
                f"was away for more than {kept_ms // 2} ms {otherwise}",
                case.reconfigure(consent, name, "86400000"),
            )
    if kept.get("message.timestamp.type", "LogAppendTime") != "LogAppendTime":
        yield warning(
            "settings",
            f"topic {consent}: message.timestamp.type is CreateTime: how long a withdrawal "
            "took, as verify and receipt tell it, goes by its producer's clock",
            case.reconfigure(consent, "message.timestamp.type", "LogAppendTime"),
        )


async def check_replicas(case: Case, cluster: Cluster) -> list[Finding]:
    """Leaders and replicas in sync, and how many of these an acknowledgement needs."""
    described = [topic for topic in case.roles.values() if case.is_described(topic)]
    told = await cluster.topic_configs(described)
    found: list[Finding] = []
    single = []
    for topic in described:
        survey = case.topic(topic)
        replicas = min(len(each.replicas) for each in survey.partitions)
        least = int((told[topic] or {}).get("min.insync.replicas") or 1)
        found += _sick_partitions(topic, survey, least)
        if replicas == 1:
            single.append(topic)
        elif least < 2 and told[topic] is not None:
            found.append(
                warning(
                    "replicas",
                    f"topic {topic}: min.insync.replicas is {least} with {replicas} replicas: "
                    "what is acknowledged may be on one broker alone, and be lost with it",
                    case.reconfigure(topic, "min.insync.replicas", "2"),
                )
            )
    if single:
        which = "all topics" if single == described else listed(single)
        what = f"{which} have one replica only: what they hold is lost with its broker"
        do = "Fine for trying things out; else reassign their partitions to three brokers"
        found.append(warning("replicas", what, do))
    if described and not found:
        found.append(fine("replicas", "all are in sync, and min.insync.replicas is met"))
    return found


def _sick_partitions(topic: str, survey: TopicSurvey, least: int) -> Iterator[Finding]:
    """Partitions that cannot be written, or that have replicas out of sync."""
    do = "See which brokers are down, and their logs"
    if leaderless := [each.number for each in survey.partitions if each.leader < 0]:
        yield error("replicas", f"{topic}-{listed(leaderless)} has no leader", do)
    led = [each for each in survey.partitions if each.leader >= 0]
    few = [each.number for each in led if len(each.in_sync) < least]
    if few:
        what = f"{topic}-{listed(few)} has fewer replicas in sync than min.insync.replicas={least}"
        yield error(
            "replicas",
            f"{what}: nothing can be written",
            # As many as there are cannot be missing; else it would give up what is promised.
            f"{do}, or lower min.insync.replicas"
            if least > min(len(each.replicas) for each in led)
            else do,
        )
    lagging = [
        each.number
        for each in led
        if each.number not in few and len(each.in_sync) < len(each.replicas)
    ]
    if lagging:
        yield warning("replicas", f"{topic}-{listed(lagging)} has replicas out of sync", do)


async def check_partitions(case: Case, cluster: Cluster) -> list[Finding]:
    """The scope as a start would settle it."""
    config, topics = case.config, case.config.topics
    counts = {topic: len(case.topic(topic).partitions) for topic in case.roles.values()}
    content, consent = counts[topics.content], counts[topics.consent]
    bookmarks = await cluster.bookmarks(config.group, topics.content, range(content))
    key_is_subject = config.content.key_is_subject
    try:
        scope = settle_scope(
            config.consent.scope,
            key_is_subject,
            [content, consent],
            (bookmark for _, bookmark in bookmarks.values() if bookmark is not None),
        )
    except ConfigError as refusal:
        do = f"Make new topics for {topics.content} and {topics.consent}, with as many partitions"
        do = f"{do} as that asks for, or change consent.scope. {_NOT_ADDED}"
        return [error("partitions", str(refusal), do)]
    told = (await cluster.topic_configs([topics.consent]))[topics.consent]
    with suppress(ConfigError):
        kept = with_declared(config, {topics.consent: told})[topics.consent]
        case.layout = Layout(topics, counts, scope, consent_keeps_ms(kept), deletions_kept_ms(kept))
    if key_is_subject and config.consent.scope == "auto" and content != consent:
        return [
            warning(
                "partitions",
                f"{topics.content} has {count(content, 'partition')} and {topics.consent} "
                f"{consent}, so that all content is judged against all of the consent topic "
                "(scope global), which each worker has to hold",
                "Make both anew with as many partitions before the first start, or set "
                f"consent.scope: global if it is meant. {_NOT_ADDED}",
            )
        ]
    shown = ", ".join(f"{role} {counts[topic]}" for role, topic in case.roles.items())
    return [fine("partitions", f"{shown}; scope {scope}")]
