"""`consentgate doctor`: everything that usually goes wrong, checked without changing anything.

It never writes, never joins the group and never commits. The rules are those of the start; each is
asked where it stands, and what it would refuse becomes a finding.
"""

import asyncio
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from consentgate.config import Config
from consentgate.core.decode import consent_decoder
from consentgate.core.ledger import Bookmark, Chain
from consentgate.core.partition import Moment, StepFailed
from consentgate.core.policy import Policy
from consentgate.core.verify import BROKER_TIME
from consentgate.errors import ConfigError
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.consent import hidden_text
from consentgate.kafka.cursor import open_cursor
from consentgate.kafka.guards import (
    consent_keeps_ms,
    deletions_kept_ms,
    judged_settings,
    plan_topics,
    unfit_settings,
    with_declared,
)
from consentgate.kafka.layout import CREATE_TOPICS, Layout, missing_topics_text, settle_scope
from consentgate.kafka.ledger import entry_at
from consentgate.kafka.position import read_position
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.kafka.sink import check_clock
from consentgate.kafka.survey import (
    ClusterSurvey,
    Ends,
    Extent,
    Right,
    TopicSurvey,
    ask_for_transactions,
    attempt,
    bootstrap_addresses,
    open_ends,
    survey_cluster,
    survey_group,
)
from consentgate.kafka.unreadable import UNREADABLE_ERRORS
from consentgate.tools.findings import (
    Finding,
    Severity,
    consent_formats,
    content_formats,
    count,
    coverage,
    error,
    fine,
    keys,
    listed,
    placed,
    warning,
)
from consentgate.tools.sampling import (
    ConsentSample,
    ContentSample,
    Placement,
    consent_taster,
    content_taster,
)

CHECK_SECONDS_MAX = 60.0
"""How long one check may take."""

STUCK_SECONDS = 5.0
"""For how long a transaction must have stood open to be a finding."""

CLOCK_SECONDS = 2.0
"""For how long the clock check waits for a record that is appended meanwhile."""

CLOCK_PLACES_MAX = 32
LOOK_MS = 100
NEWEST_OFFSETS = 10

KEPT_MS_MIN = 3_600_000
"""Below this, a stop for maintenance may be longer than consent changes are sure to be kept."""

PROGRESS_RECORDS = 100
"""After how many records the progress is told."""

_AGAIN = "Run consentgate doctor again when that is put right"


@dataclass(frozen=True, slots=True)
class Samples:
    """What was sampled; None where a topic could not be read."""

    content: ContentSample | None
    consent: ConsentSample | None
    findings: tuple[Finding, ...]  # on topics that could not be read


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


@dataclass(slots=True)
class _Progress:
    """Tells how many of all records have been sampled."""

    on_progress: Callable[[int, int], None]
    done: int
    total: int

    def step(self) -> None:
        """One more."""
        self.done += 1
        if self.done % PROGRESS_RECORDS == 0:
            self.on_progress(self.done, self.total)


class Doctor:
    """Looks at one group's cluster. Of use for one run of `look`, then of `sample`."""

    def __init__(self, config: Config, policy: Policy) -> None:
        """`policy` is the one that is enforced, with its engines and keys.

        Raises:
            ConfigError: if a setting of the client cannot be used.
        """
        self._config = config
        self._policy = policy
        self._settings = kafka_settings(config.kafka)
        self._servers = self._settings.bootstrap_servers
        self._roles: dict[str, str] = msgspec.structs.asdict(config.topics)
        self._seen: ClusterSurvey | None = None
        self._layout: Layout | None = None
        self.answered = False
        """Whether there was a broker at all."""

    async def look(self) -> AsyncIterator[Finding]:
        """Check all that needs no records; each finding as soon as it is known."""
        connected = False
        for finding, let_in in await self._connect():
            connected |= let_in
            yield finding
        if not connected:
            return
        cluster = Cluster(self._settings)
        await cluster.start(CHECK_SECONDS_MAX)
        try:
            async with open_ends(self._settings) as ends:
                for name, check in self._checks(cluster, ends):
                    for finding in await _isolated(name, check):
                        yield finding
        finally:
            await cluster.stop()

    def _checks(
        self, cluster: Cluster, ends: Ends
    ) -> Iterator[tuple[str, Callable[[], Awaitable[list[Finding]]]]]:
        """The checks in their order; each may rely on what those before have found."""
        yield "topics", lambda: self._check_topics(cluster)
        if self._seen is None:
            return
        yield "brokers", self._check_brokers
        yield "rights", lambda: self._check_rights(cluster)
        yield "settings", lambda: self._check_settings(cluster)
        yield "replicas", lambda: self._check_replicas(cluster)
        if all(self._is_described(topic) for topic in self._roles.values()):
            yield "partitions", lambda: self._check_partitions(cluster)
        yield "transactions", lambda: self._check_transactions(ends)
        yield "group", lambda: self._check_members(cluster)
        if self._layout is not None:
            yield "offsets", lambda: self._check_offsets(cluster, ends)
            yield "policy", lambda: self._check_policy(cluster)
        yield "clock", lambda: self._check_clock(ends)

    # Connections.

    async def _connect(self) -> list[tuple[Finding, bool]]:
        """A finding for each server that is configured, and whether it let us in."""
        addresses = bootstrap_addresses(self._settings)
        attempts = await asyncio.gather(*(attempt(self._settings, *each) for each in addresses))
        self.answered = any(each.answered for each in attempts)
        anybody = any(each.problem is None for each in attempts)
        protocol = self._settings.client.get("security_protocol", "PLAINTEXT")
        found = []
        for each in attempts:
            if each.problem is not None:
                severity = Severity.WARNING if anybody else Severity.ERROR
                finding = Finding(severity, "connection", each.problem, each.advice)
            elif each.unsupported:
                what = f"{each.address} does not take {', '.join(each.unsupported)}"
                finding = error("connection", what, "Use Kafka 2.3 or later")
            else:
                finding = fine("connection", f"{each.address} lets us in by {protocol}")
            found.append((finding, each.problem is None))
        return found

    async def _check_brokers(self) -> list[Finding]:
        """Whether the addresses that brokers tell to clients lead to them from here."""
        assert self._seen is not None, "checked after the topics"
        known = set(bootstrap_addresses(self._settings))
        others = [each for each in self._seen.brokers if each[1:] not in known]
        attempts = await asyncio.gather(
            *(attempt(self._settings, host, port) for _, host, port in others)
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
        return found or [fine("brokers", f"{count(len(self._seen.brokers), 'broker')} in reach")]

    # Topics.

    async def _check_topics(self, cluster: Cluster) -> list[Finding]:
        self._seen = await survey_cluster(cluster, list(self._roles.values()))
        found, missing = [], []
        for topic, survey in self._seen.topics.items():
            if survey.error is TopicAuthorizationFailedError:
                what = f"topic {topic}: this user may not see whether it is there"
                found.append(error("topics", what, self._grant("Describe", topic)))
            elif survey.error is not None:
                missing.append(topic)
        if missing:
            missing.sort(key=list(self._roles.values()).index)
            found.append(error("topics", missing_topics_text(missing), CREATE_TOPICS))
        return found or [fine("topics", f"all {len(self._roles)} topics are there")]

    async def _check_rights(self, cluster: Cluster) -> list[Finding]:
        topics, group = self._config.topics, self._config.group
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
            if not self._is_described(topic):
                continue
            held = self._topic(topic).rights
            if held is None:
                what = f"topic {topic}: the broker does not say what this user may do"
                found.append(warning("rights", what, self._grant(listed(rights), topic)))
            found += [
                error(
                    "rights",
                    f"topic {topic}: this user may not {right}",
                    self._grant(str(right), topic),
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
                    f"{self._tool('kafka-acls.sh')} --add --allow-principal User:… --operation "
                    f"Write --transactional-id {group}/ --resource-pattern-type prefixed",
                )
            )
        return found or [
            fine(
                "rights",
                "Read and Write are granted where they are needed; Write on the transactional ids "
                f"{group}/… is not tried",
            )
        ]

    async def _check_settings(self, cluster: Cluster) -> list[Finding]:
        """The guards of the start, and how long changes of consent are kept."""
        config = self._config
        judged = judged_settings(config)
        # What is not there, or not to be seen, has its finding already.
        configs: dict[str, Any] = {p.name: p.configs for p in plan_topics(config, 1)}
        present = [topic for topic in judged if self._is_described(topic)]
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
            change = f"--entity-name {unfit.topic} --add-config {unfit.name}={unfit.needed}"
            tool = f"{self._tool('kafka-configs.sh')} --alter --entity-type topics"
            found.append(error("settings", unfit.problem, f"{tool} {change}"))
        found += self._weak_settings(configs, told)
        if present and not found:
            found.append(fine("settings", f"as they must be: {listed(present)}"))
        return found

    def _weak_settings(
        self, configs: Mapping[str, Mapping[str, str | None]], told: Collection[str]
    ) -> Iterator[Finding]:
        """Settings of the consent topic that no start refuses, and that may surprise later."""
        consent = self._config.topics.consent
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
                    f"{self._tool('kafka-configs.sh')} --alter --entity-type topics --entity-name "
                    f"{consent} --add-config {name}=86400000",
                )
        if kept.get("message.timestamp.type", "LogAppendTime") != "LogAppendTime":
            yield warning(
                "settings",
                f"topic {consent}: message.timestamp.type is CreateTime: how long a withdrawal "
                "took, as verify and receipt tell it, goes by its producer's clock",
                f"{self._tool('kafka-configs.sh')} --alter --entity-type topics --entity-name "
                f"{consent} --add-config message.timestamp.type=LogAppendTime",
            )

    async def _check_replicas(self, cluster: Cluster) -> list[Finding]:
        described = [topic for topic in self._roles.values() if self._is_described(topic)]
        told = await cluster.topic_configs(described)
        found: list[Finding] = []
        single = []
        for topic in described:
            survey = self._topic(topic)
            replicas = min(len(each.replicas) for each in survey.partitions)
            least = int((told[topic] or {}).get("min.insync.replicas") or 1)
            found += _sick_partitions(topic, survey, least)
            if replicas == 1:
                single.append(topic)
            elif least < 2 and told[topic] is not None:
                change = f"--entity-name {topic} --add-config min.insync.replicas=2"
                found.append(
                    warning(
                        "replicas",
                        f"topic {topic}: min.insync.replicas is {least} with {replicas} replicas: "
                        "what is acknowledged may be on one broker alone, and be lost with it",
                        f"{self._tool('kafka-configs.sh')} --alter --entity-type topics {change}",
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

    async def _check_partitions(self, cluster: Cluster) -> list[Finding]:
        """The scope as a start would settle it."""
        config, topics = self._config, self._config.topics
        counts = {topic: len(self._topic(topic).partitions) for topic in self._roles.values()}
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
            do = f"Give {topics.content} and {topics.consent} as many partitions as that asks for"
            return [error("partitions", str(refusal), f"{do}, or change consent.scope")]
        told = (await cluster.topic_configs([topics.consent]))[topics.consent]
        with suppress(ConfigError):
            kept = with_declared(config, {topics.consent: told})[topics.consent]
            self._layout = Layout(
                topics, counts, scope, consent_keeps_ms(kept), deletions_kept_ms(kept)
            )
        if key_is_subject and config.consent.scope == "auto" and content != consent:
            return [
                warning(
                    "partitions",
                    f"{topics.content} has {count(content, 'partition')} and {topics.consent} "
                    f"{consent}, so that all content is judged against all of the consent topic "
                    "(scope global), which each worker has to hold",
                    "Give both as many partitions before the first start, or set consent.scope: "
                    "global if it is meant",
                )
            ]
        shown = ", ".join(f"{role} {counts[topic]}" for role, topic in self._roles.items())
        return [fine("partitions", f"{shown}; scope {scope}")]

    # Transactions, the group and the clock.

    async def _check_transactions(self, ends: Ends) -> list[Finding]:
        """Transactions that stay open, on the topics that are read."""
        places = self._readable_places(self._config.topics.content, self._config.topics.consent)
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
                f"{self._tool('kafka-transactions.sh')} describe-producers --topic {place.topic} "
                f"--partition {place.partition}, then the same with abort --start-offset "
                f"{now[place].stable}",
            )
            for place in sorted(open_)
        ] or [fine("transactions", f"none stays open in {count(len(places), 'partition')} read")]

    async def _check_members(self, cluster: Cluster) -> list[Finding]:
        content = self._config.topics.content
        try:
            group = await survey_group(cluster, self._config.group)
            may_join = group.rights is None or Right.READ in group.rights
        except GroupAuthorizationFailedError:
            may_join = False
        if not may_join:
            what = f"group {self._config.group}: this user may not Read, and so not join"
            return [error("group", what, self._grant("Read", self._config.group, "--group"))]
        if not group.members:
            return [fine("group", f"{self._config.group} has no members: nobody decides just now")]
        if group.state != "Stable":
            what = (
                f"{self._config.group} is {group.state}, with {count(len(group.members), 'member')}"
            )
            return [warning("group", what, f"Wait until it is Stable. {_AGAIN}")]
        taken = Counter(
            place.partition
            for places in group.members
            for place in places
            if place.topic == content
        )
        partitions = self._partitions_of(content)
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
            found.append(warning("group", what, f"See whether they read {content}. {_AGAIN}"))
        return found or [
            fine(
                "group",
                f"{self._config.group} is Stable: {count(len(group.members), 'member')}, "
                f"{count(len(taken), 'partition')}",
            )
        ]

    async def _check_offsets(self, cluster: Cluster, ends: Ends) -> list[Finding]:
        """Where each partition would go on, as its worker would find out."""
        layout, content = self._known_layout(), self._config.topics.content
        looker = _Looker(
            self._settings,
            layout,
            cluster,
            _Ranges(ends, content),
            layout.consent_keeps_ms // 2,
        )
        found, lag = [], 0
        for partition in layout.content_partitions:
            expired: list[str] = []
            chain = Chain(self._config.group, content, partition)
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

    async def _check_policy(self, cluster: Cluster) -> list[Finding]:
        """Under which policy the last decision of each partition was made."""
        layout, topics = self._known_layout(), self._config.topics
        bookmarks = await cluster.bookmarks(
            self._config.group, topics.content, layout.content_partitions
        )
        under: dict[str, list[int]] = {}
        for partition, (_, bookmark) in sorted(bookmarks.items()):
            if bookmark is not None and (policy := await self._policy_at(bookmark)) is not None:
                under.setdefault(policy, []).append(partition)
        if not under:
            return [fine("policy", f"{self._policy.reference} is configured; no decision yet")]
        return [
            warning(
                "policy",
                f"the last decisions of {topics.content}-{listed(partitions)} were made under "
                f"{policy}, but {self._policy.reference} is configured",
                "Restart the workers that still run with the other policy, or correct policy and "
                "keys of this configuration; until then both are in force",
            )
            for policy, partitions in under.items()
            if policy != self._policy.reference
        ] or [fine("policy", f"all last decisions were made under {self._policy.reference}")]

    async def _policy_at(self, bookmark: Bookmark) -> str | None:
        place = TopicPartition(self._config.topics.decisions, bookmark.ledger_partition)
        entry = await entry_at(self._settings, place, bookmark.ledger_offset)
        return None if entry is None else entry.policy

    async def _check_clock(self, ends: Ends) -> list[Finding]:
        """Compare the clocks by records that a broker has stamped, the newest and the next."""
        topics = self._config.topics
        places = self._readable_places(topics.decisions, topics.consent)[:CLOCK_PLACES_MAX]
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
                **self._settings.client,
                **self._settings.consumer,
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

    # Samples.

    async def sample(self, number: int, on_progress: Callable[[int, int], None]) -> Samples:
        """Look at `number` of the newest records of content and of consent."""
        now_ms, topics = read_clock().unix_ms, self._config.topics
        content = ContentSample(Placement(len(self._partitions_of(topics.content)) or 1))
        consent = ConsentSample(Placement(len(self._partitions_of(topics.consent)) or 1))
        decode = consent_decoder(
            self._config.consent.fields, self._policy.purpose, self._config.limits.max_depth
        )
        tasters = {
            topics.content: content_taster(self._config, content, now_ms),
            topics.consent: consent_taster(decode, self._policy, consent, now_ms),
        }
        found: list[Finding] = []
        read: set[str] = set()
        for step, (topic, see) in enumerate(tasters.items()):
            if self._partitions_of(topic):
                progress = _Progress(on_progress, step * number, len(tasters) * number)
                taste = partial(self._taste, topic, number, see, progress)
                unread = await _isolated("sample", taste)
                found += unread
                read |= set() if unread else {topic}
        on_progress(len(tasters) * number, len(tasters) * number)
        return Samples(
            content if topics.content in read else None,
            consent if topics.consent in read else None,
            tuple(found),
        )

    async def _taste(
        self, topic: str, number: int, see: Callable[[str, int, Any], None], progress: "_Progress"
    ) -> list[Finding]:
        """Let the newest records be seen, as many of each partition."""
        places = self._readable_places(topic)
        if not places:
            raise TopicAuthorizationFailedError(topic)
        async with open_ends(self._settings) as ends:
            extents = await ends.of(places)
        quota = -(-number // len(places))
        for place, extent in extents.items():
            left, end, width = quota, extent.stable, quota
            while left and end > extent.start:
                start = max(extent.start, end - width)
                async with open_cursor(self._settings, topic, place.partition, start) as cursor:
                    async for record in cursor.up_to(end):
                        if not left:
                            break
                        see(cursor.place(record), place.partition, record)
                        left -= 1
                        progress.step()
                # Compaction and transactions leave gaps: look further back for what is missing.
                end, width = start, 4 * width
        return []

    def judge(self, samples: Samples) -> Iterator[Finding]:
        """What the samples say."""
        yield from samples.findings
        config, topics = self._config, self._config.topics
        content, consent = samples.content, samples.consent
        in_scope = self._layout is None or self._layout.scope == "partition"
        if consent is not None:
            yield from placed(topics.consent, consent.placement, in_scope=in_scope)
            yield from consent_formats(topics.consent, consent)
            yield from coverage(consent, self._policy)
        if content is not None:
            if config.content.key_is_subject:
                yield from placed(topics.content, content.placement, in_scope=in_scope)
            yield from content_formats(topics.content, content)
            yield from keys(content, key_is_subject=config.content.key_is_subject)

    # What was seen.

    def _topic(self, topic: str) -> TopicSurvey:
        assert self._seen is not None, "checked after the topics"
        return self._seen.topics[topic]

    def _is_described(self, topic: str) -> bool:
        return self._topic(topic).error is None

    def _partitions_of(self, topic: str) -> list[int]:
        """The partitions of a topic; none where it is not there or not to be seen."""
        if self._seen is None or not self._is_described(topic):
            return []
        return [each.number for each in self._topic(topic).partitions]

    def _readable_places(self, *topics: str) -> list[TopicPartition]:
        """The partitions of those of the topics that this user may read."""
        return [
            TopicPartition(topic, partition)
            for topic in topics
            for partition in self._partitions_of(topic)
            if Right.READ in (self._topic(topic).rights or {Right.READ})
        ]

    def _known_layout(self) -> Layout:
        assert self._layout is not None, "checked after the partitions"
        return self._layout

    def _tool(self, name: str) -> str:
        return f"{name} --bootstrap-server {self._servers}"

    def _grant(self, operation: str, name: str, kind: str = "--topic") -> str:
        tool = self._tool("kafka-acls.sh")
        return f"{tool} --add --allow-principal User:… --operation {operation} {kind} {name}"


_OFFSET_ADVICE = (
    "Put back what was changed, or give the group a new name, which begins anew and decides "
    "everything again"
)


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
            "replicas", f"{what}: nothing can be written", f"{do}, or lower min.insync.replicas"
        )
    lagging = [
        each.number
        for each in led
        if each.number not in few and len(each.in_sync) < len(each.replicas)
    ]
    if lagging:
        yield warning("replicas", f"{topic}-{listed(lagging)} has replicas out of sync", do)


async def _stamped(
    consumer: AIOKafkaConsumer, extents: Mapping[TopicPartition, Extent], asked: Moment
) -> AsyncGenerator[tuple[Moment, Any], None]:
    """The newest records with a broker's time, then those that are appended for a while.

    With each a moment before it was appended, as far as it was after `asked`.
    """
    consumer.assign(list(extents))
    for place, extent in extents.items():
        consumer.seek(place, max(extent.start, extent.high - NEWEST_OFFSETS))
    before, ends_at = asked, asked.monotonic_ms + CLOCK_SECONDS * 1000
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


async def _isolated(check: str, run: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    """What the check finds; that it cannot be made is a finding, too."""
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            return await run()
    except ConfigError as refusal:
        return [error(check, line, _AGAIN) for line in str(refusal).splitlines()]
    except TimeoutError:
        what = f"not checked: no answer within {CHECK_SECONDS_MAX:.0f} s"
        return [warning(check, what, "See whether the brokers are well, and try again")]
    except KafkaError as refusal:
        name = type(refusal).__name__
        if "Authorization" not in name:
            return [warning(check, f"not checked: the cluster answers with {name}", _AGAIN)]
        what = f"not checked: this user lacks a right ({name}{_named(refusal)})"
        return [warning(check, what, "Grant this user Describe and Read there, and try again")]
    except Exception as failure:
        # One check that fails must not keep the others from being made.
        what = f"not checked: {type(failure).__name__}"
        return [warning(check, what, "See whether the records in question are consentgate's own")]


def _named(error: KafkaError) -> str:
    """What a refusal is about: topics or a group; its text has nothing else in it."""
    names = [str(each) for argument in error.args for each in _each(argument)]
    return f": {listed(names)}" if names else ""


def _each(argument: Any) -> Collection[Any]:
    return argument if isinstance(argument, set | frozenset | list | tuple) else [argument]
