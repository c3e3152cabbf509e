"""`consentgate doctor`: everything that usually goes wrong, checked without changing anything.

It never writes, never joins the group and never commits. The rules are those of the start; each is
asked where it stands, and what it would refuse becomes a finding.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiokafka.errors import KafkaError, TopicAuthorizationFailedError

from consentgate.config import Config
from consentgate.core.decode import consent_decoder
from consentgate.core.policy import Policy
from consentgate.errors import ConfigError
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cluster import Cluster, connected
from consentgate.kafka.connecting import attempt, bootstrap_addresses
from consentgate.kafka.cursor import open_cursor
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.survey import Ends, open_ends, unsupported
from consentgate.tools.case import Case
from consentgate.tools.findings import (
    AGAIN,
    Finding,
    Severity,
    consent_formats,
    content_formats,
    coverage,
    error,
    fine,
    keys,
    listed,
    placed,
    warning,
)
from consentgate.tools.group_checked import (
    check_clocks,
    check_members,
    check_offsets,
    check_policy,
    check_transactions,
)
from consentgate.tools.sampling import (
    ConsentSample,
    ContentSample,
    Placement,
    consent_taster,
    content_taster,
)
from consentgate.tools.topics_checked import (
    check_brokers,
    check_partitions,
    check_replicas,
    check_rights,
    check_settings,
    check_topics,
)

CHECK_SECONDS_MAX = 60.0
"""How long one check may take."""

PROGRESS_RECORDS = 100
"""After how many records the progress is told."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What was sampled; None where a topic could not be read."""

    content: ContentSample | None
    consent: ConsentSample | None
    findings: tuple[Finding, ...]  # on topics that could not be read


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
        self._case = Case(config, policy, kafka_settings(config.kafka))
        self.answered = False
        """Whether there was a broker at all."""

    async def look(self) -> AsyncIterator[Finding]:
        """Check all that needs no records; each finding as soon as it is known."""
        is_let_in = False
        for finding, let_in in await self._connect():
            is_let_in |= let_in
            yield finding
        if not is_let_in:
            return
        settings = self._case.settings
        async with connected(settings, CHECK_SECONDS_MAX) as cluster, open_ends(settings) as ends:
            for name, check in self._checks(cluster, ends):
                for finding in await _isolated(name, check):
                    yield finding

    def _checks(
        self, cluster: Cluster, ends: Ends
    ) -> Iterator[tuple[str, Callable[[], Awaitable[list[Finding]]]]]:
        """The checks in their order; each may rely on what those before have found."""
        case = self._case
        yield "topics", lambda: check_topics(case, cluster)
        if not case.seen.topics:
            return
        yield "brokers", lambda: check_brokers(case)
        yield "rights", lambda: check_rights(case, cluster)
        yield "settings", lambda: check_settings(case, cluster)
        yield "replicas", lambda: check_replicas(case, cluster)
        if all(case.is_described(topic) for topic in case.roles.values()):
            yield "partitions", lambda: check_partitions(case, cluster)
        yield "transactions", lambda: check_transactions(case, ends)
        yield "group", lambda: check_members(case, cluster)
        if (layout := case.layout) is not None:
            yield "offsets", lambda: check_offsets(case, layout, cluster, ends)
            yield "policy", lambda: check_policy(case, layout, cluster)
        yield "clock", lambda: check_clocks(case, ends)

    async def _connect(self) -> list[tuple[Finding, bool]]:
        """A finding for each server that is configured, and whether it let us in."""
        addresses = bootstrap_addresses(self._case.settings)
        attempts = await asyncio.gather(
            *(attempt(self._case.settings, *each) for each in addresses)
        )
        self.answered = any(each.answered for each in attempts)
        anybody = any(each.problem is None for each in attempts)
        protocol = self._case.settings.client.get("security_protocol", "PLAINTEXT")
        found = []
        for each in attempts:
            if each.problem is not None:
                severity = Severity.WARNING if anybody else Severity.ERROR
                finding = Finding(severity, "connection", each.problem, each.advice)
            elif missing := unsupported(each.versions):
                what = f"{each.address} does not take {', '.join(missing)}"
                finding = error("connection", what, "Use Kafka 2.3 or later")
            else:
                finding = fine("connection", f"{each.address} lets us in by {protocol}")
            found.append((finding, each.problem is None))
        return found

    async def sample(self, number: int, on_progress: Callable[[int, int], None]) -> Samples:
        """Look at `number` of the newest records of content and of consent."""
        now_ms, topics = read_clock().unix_ms, self._case.config.topics
        content = ContentSample(Placement(len(self._case.partitions_of(topics.content)) or 1))
        consent = ConsentSample(Placement(len(self._case.partitions_of(topics.consent)) or 1))
        decode = consent_decoder(
            self._case.config.consent.fields,
            self._case.policy.purpose,
            self._case.config.limits.max_depth,
        )
        tasters = {
            topics.content: content_taster(self._case.config, content, now_ms),
            topics.consent: consent_taster(decode, self._case.policy, consent, now_ms),
        }
        found: list[Finding] = []
        read: set[str] = set()
        for step, (topic, see) in enumerate(tasters.items()):
            if self._case.partitions_of(topic):
                progress = _Progress(on_progress, step * number, len(tasters) * number)
                taste = partial(self._taste, topic, number, see, progress)
                unread = await _isolated("sample", taste)
                found += unread
                read |= set() if unread else {topic}
        if read:
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
        places = self._case.readable_places(topic)
        if not places:
            raise TopicAuthorizationFailedError(topic)
        async with open_ends(self._case.settings) as ends:
            extents = await ends.of(places)
        quota = -(-number // len(places))
        for place, extent in extents.items():
            left, end, width = quota, extent.stable, quota
            while left and end > extent.start:
                start = max(extent.start, end - width)
                async with open_cursor(
                    self._case.settings, topic, place.partition, start
                ) as cursor:
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
        config, topics = self._case.config, self._case.config.topics
        content, consent = samples.content, samples.consent
        in_scope = self._case.layout is None or self._case.layout.scope == "partition"
        if consent is not None:
            yield from placed(topics.consent, consent.placement, in_scope=in_scope)
            yield from consent_formats(topics.consent, consent)
            yield from coverage(consent, self._case.policy)
        if content is not None:
            if config.content.key_is_subject:
                yield from placed(topics.content, content.placement, in_scope=in_scope)
            yield from content_formats(topics.content, content)
            yield from keys(content, key_is_subject=config.content.key_is_subject)


async def _isolated(check: str, run: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    """What the check finds; that it cannot be made is a finding, too."""
    try:
        async with asyncio.timeout(CHECK_SECONDS_MAX):
            return await run()
    except ConfigError as refusal:
        return [error(check, line, AGAIN) for line in str(refusal).splitlines()]
    except TimeoutError:
        what = f"not checked: no answer within {CHECK_SECONDS_MAX:.0f} s"
        return [warning(check, what, "See whether the brokers are well, and try again")]
    except KafkaError as refusal:
        name = type(refusal).__name__
        if "Authorization" not in name:
            return [warning(check, f"not checked: the cluster answers with {name}", AGAIN)]
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
