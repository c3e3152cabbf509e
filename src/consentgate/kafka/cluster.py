"""What the service asks of the cluster itself: topics, their settings, the group's bookmarks."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata

from consentgate.core.ledger import Bookmark
from consentgate.errors import BrokerUnavailable, ConfigError
from consentgate.kafka.connecting import why_shut_out
from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.unanswered import UNANSWERED, closing_unanswered

REPLICATION_FACTOR = 3

_REFUSALS = (TopicAuthorizationFailedError, ClusterAuthorizationFailedError)

COORDINATOR_SECONDS_MAX = 10.0
"""How long an answer of the group's coordinator is awaited."""

KNOWN_SECONDS_MAX = 10.0
"""How long a new topic is awaited."""

KNOWN_CHECK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic as it should be."""

    name: str
    partitions: int
    configs: Mapping[str, str] = field(default_factory=dict)


class Cluster:
    """An administrative connection."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._admin = AIOKafkaAdminClient(**settings.client)

    async def start(self, timeout_seconds: float) -> None:
        """Connect.

        Raises:
            BrokerUnavailable: if no broker answers within the time.
            ConfigError: if one answers, and refuses us or is not to be trusted.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                # Something may listen there that never answers.
                async with asyncio.timeout(timeout_seconds):
                    await self._admin.start()
                return
            except UNANSWERED as error:
                why = await self._why_shut_out()
                if time.monotonic() > deadline:
                    raise BrokerUnavailable(
                        f"no broker answered at {self._settings.bootstrap_servers} within "
                        f"{timeout_seconds:.0f} s ({type(error).__name__}); is Kafka running, and "
                        f"is kafka.bootstrap.servers right?{why}"
                    ) from None
            await asyncio.sleep(0.5)

    async def _why_shut_out(self) -> str:
        """Why no server lets us in, in lines of their own; nothing where one does by now.

        Raises:
            ConfigError: if waiting does not help.
        """
        attempts = await why_shut_out(self._settings)
        lines = dict.fromkeys(map(str, attempts))
        if any(each.refused for each in attempts):
            raise ConfigError("\n".join(lines))
        return "".join(f"\n{line}" for line in lines)

    async def stop(self) -> None:
        """Disconnect."""
        await self._admin.close()

    async def id(self) -> str:
        """The cluster's id; empty where it has none."""
        async with closing_unanswered(self._admin._client):
            return (await self._admin.describe_cluster())["cluster_id"] or ""

    async def partition_counts(self, topics: Iterable[str]) -> dict[str, int]:
        """Number of partitions of those topics that exist.

        Raises:
            TopicAuthorizationFailedError: if this user may not know whether they do.
        """
        async with closing_unanswered(self._admin._client):
            # The client's own way to ask lets a broker create what is missing, where it may.
            request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
            described = (await self._admin._send_request(request)).to_object()["topics"]
        denied = TopicAuthorizationFailedError.errno
        if hidden := {each["topic"] for each in described if each["error_code"] == denied}:
            # One that is not to be seen must not look like one that is gone.
            raise TopicAuthorizationFailedError(hidden)
        return {
            topic["topic"]: len(topic["partitions"])
            for topic in described
            if not topic["error_code"]
        }

    async def topic_configs(self, topics: Iterable[str]) -> dict[str, dict[str, str | None] | None]:
        """Every setting of the topics; None where the cluster does not let this user read them.

        Raises:
            KafkaError: if the cluster does not know just now.
            ConfigError: if it cannot tell.
        """
        asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
        configs: dict[str, dict[str, str | None] | None] = {}
        for response in await self._admin.describe_configs(asked):
            for error_code, _, _, topic, entries in response.resources:
                error = for_code(error_code)
                if error_code and error.retriable:
                    raise error
                if error in _REFUSALS:
                    configs[topic] = None
                elif error_code:
                    raise ConfigError(
                        f"the settings of topic {topic} cannot be read ({error.__name__})"
                    )
                else:
                    configs[topic] = {entry[0]: entry[1] for entry in entries}
        return configs

    async def create(self, plan: TopicPlan, replication_factor: int | None) -> bool:
        """Create the topic; False where it was there already.

        Without a replication factor it has three replicas, or as many as there are brokers.

        Raises:
            TopicAuthorizationFailedError: if this user may not.
            ConfigError: if the cluster refuses for another reason.
        """
        if replication_factor is None:
            brokers = (await self._admin.describe_cluster())["brokers"]
            replication_factor = min(REPLICATION_FACTOR, len(brokers))
        topic = NewTopic(
            plan.name, plan.partitions, replication_factor, topic_configs=dict(plan.configs)
        )
        response = await self._admin.create_topics([topic])
        for name, error_code, *message in response.topic_errors:
            error = for_code(error_code)
            if error is TopicAlreadyExistsError:
                return False
            if error is TopicAuthorizationFailedError:
                raise error({name})
            if error_code:
                detail = next((text for text in message if text), error.__name__)
                raise ConfigError(f"the topic {name} could not be created: {detail}")
        await self._await_known(plan)
        return True

    async def _await_known(self, plan: TopicPlan) -> None:
        """Return when the broker knows of a new topic: its metadata come a little later."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_SECONDS_MAX):
                while plan.name not in await self.partition_counts([plan.name]):  # noqa: ASYNC110
                    await asyncio.sleep(KNOWN_CHECK_SECONDS)

    async def delete(self, topics: Iterable[str]) -> list[str]:
        """Delete topics; the names of those that are there and that the cluster did not delete."""
        response = await self._admin.delete_topics(list(topics))
        gone = (0, UnknownTopicOrPartitionError.errno)
        return [name for name, code, *_ in response.topic_error_codes if code not in gone]

    async def bookmarks(
        self, group: str, topic: str, partitions: Iterable[int]
    ) -> dict[int, tuple[int, Bookmark | None]]:
        """Committed offset and bookmark of each of the partitions that has an offset.

        Raises:
            KafkaError: if the coordinator did not answer for every partition.
        """
        committed = await self.group_offsets(group, topic, partitions)
        return {
            partition: (answer.offset, Bookmark.decode(answer.metadata))
            for partition, answer in committed.items()
        }

    async def group_offsets(
        self, group: str, topic: str, partitions: Iterable[int]
    ) -> dict[int, OffsetAndMetadata]:
        """What the group has committed for each of the partitions that has an offset.

        Raises:
            KafkaError: if the coordinator did not answer for every partition.
        """
        asked = [TopicPartition(topic, partition) for partition in partitions]
        answers = await self._group_offsets(group, asked)
        return {tp.partition: answer for tp, answer in answers.items() if answer.offset >= 0}

    async def _group_offsets(
        self, group: str, asked: list[TopicPartition]
    ) -> Mapping[TopicPartition, OffsetAndMetadata]:
        deadline = time.monotonic() + COORDINATOR_SECONDS_MAX
        while True:
            try:
                answers: Mapping[
                    TopicPartition, OffsetAndMetadata
                ] = await self._admin.list_consumer_group_offsets(group, partitions=asked)
                if set(answers) == set(asked):
                    return answers
            except GroupAuthorizationFailedError:
                raise GroupAuthorizationFailedError(group) from None
            except KafkaError as error:
                # A cluster that has never had a group creates its coordinator's topic first.
                if not error.retriable or time.monotonic() > deadline:
                    raise
            # While it loads, the coordinator leaves partitions out, which must not look like a
            # group that has never committed.
            if time.monotonic() > deadline:
                raise KafkaError("the group coordinator gave no answer on the committed offsets")
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def connected(settings: KafkaSettings, timeout_seconds: float) -> AsyncIterator[Cluster]:
    """An administrative connection for the time of a block.

    Raises:
        BrokerUnavailable: if no broker answers within the time.
        ConfigError: if one answers, and refuses us or is not to be trusted.
    """
    cluster = Cluster(settings)
    try:
        await cluster.start(timeout_seconds)
        yield cluster
    finally:
        await cluster.stop()
