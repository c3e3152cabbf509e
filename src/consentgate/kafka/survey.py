"""What a cluster tells of itself to one who only asks: requests, topics, rights, groups, ends.

Nothing here writes, joins a group or has a topic created.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataResponse_v5
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from consentgate.kafka.cluster import COORDINATOR_SECONDS_MAX, Cluster
from consentgate.kafka.settings import KafkaSettings

ASK_AGAIN_SECONDS = 0.2

_TRANSACTIONS = 1
"""The kind of coordinator that looks after transactional ids."""


class Right(IntEnum):
    """An operation that an access control list is about, by Kafka's number."""

    READ = 3
    WRITE = 4
    DESCRIBE = 8

    def __str__(self) -> str:
        return self.name.title()


@dataclass(frozen=True, slots=True)
class PartitionSurvey:
    """Who has a partition; broker ids."""

    number: int
    leader: int  # -1: none
    replicas: Sequence[int]
    in_sync: Sequence[int]


@dataclass(frozen=True, slots=True)
class TopicSurvey:
    """A topic as the cluster describes it."""

    error: type[KafkaError] | None
    partitions: Sequence[PartitionSurvey]
    rights: frozenset[Right] | None  # None: not told


@dataclass(frozen=True, slots=True)
class ClusterSurvey:
    """The cluster as it describes itself."""

    brokers: Sequence[tuple[int, str, int]]  # id, host and port, as it tells them to clients
    topics: Mapping[str, TopicSurvey]


@dataclass(frozen=True, slots=True)
class GroupSurvey:
    """A consumer group, and the partitions of each of its members."""

    state: str
    members: Sequence[Sequence[TopicPartition]]
    rights: frozenset[Right] | None


@dataclass(frozen=True, slots=True)
class Extent:
    """How far a partition goes; offsets."""

    start: int
    stable: int  # The last stable offset
    high: int  # The high watermark


# Requests.


def unsupported(versions: Mapping[int, tuple[int, int]]) -> list[str]:
    """The needed requests that a broker does not take, of which these versions are known."""
    return [
        name
        for name, request in _NEEDED_REQUESTS.items()
        if not _is_supported(request, versions.get(request.API_KEY))
    ]


def _is_supported(request: Any, versions: tuple[int, int] | None) -> bool:
    known = [struct.API_VERSION for struct in request._CLASSES]
    return versions is not None and any(versions[0] <= each <= versions[1] for each in known)


# Topics and rights.


class _TopicsResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        *zip(
            MetadataResponse_v5.SCHEMA.names[:-1], MetadataResponse_v5.SCHEMA.fields, strict=False
        ),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _TopicsRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _TopicsResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _RightsOnTopics(Request[_TopicsRequest]):  # type: ignore[misc]
    """The topics with what this user may do with them; the client knows no version that tells."""

    API_KEY = 3

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = list(topics)

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._topics, False, False, True)


class _GroupsRequest(RequestStruct):  # type: ignore[misc]
    # As the client has it, but with the answer of its own version, which has the rights in it.
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = DescribeGroupsRequest_v3.SCHEMA


class _RightsOnGroups(Request[_GroupsRequest]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class([self._group], True)


_NEEDED_REQUESTS = {
    "AddOffsetsToTxn": AddOffsetsToTxnRequest,
    "AddPartitionsToTxn": AddPartitionsToTxnRequest,
    "DescribeGroups": _RightsOnGroups,
    "EndTxn": EndTxnRequest,
    "Fetch": FetchRequest,
    "FindCoordinator": FindCoordinatorRequest,
    "InitProducerId": InitProducerIdRequest,
    "ListOffsets": OffsetRequest,
    "Metadata": _RightsOnTopics,
    "TxnOffsetCommit": TxnOffsetCommitRequest,
}
"""What a broker must take in a version that the client, or this module, has."""


async def survey_cluster(cluster: Cluster, topics: Collection[str]) -> ClusterSurvey:
    """The brokers, and these topics; one that is missing stays missing.

    Raises:
        NotImplementedError: if the broker is older than Kafka 2.3.
        KafkaError: if it does not answer.
    """
    response = await cluster._admin._send_request(_RightsOnTopics(topics))
    return ClusterSurvey(
        brokers=[(node, host, port) for node, host, port, _ in response.brokers],
        topics={
            name: TopicSurvey(
                for_code(error_code) if error_code else None,
                sorted(
                    (
                        PartitionSurvey(number, leader, replicas, in_sync)
                        for _, number, leader, _, replicas, in_sync, _ in partitions
                    ),
                    key=lambda each: each.number,
                ),
                _rights(rights),
            )
            for error_code, name, _, partitions, rights in response.topics
        },
    )


async def survey_group(cluster: Cluster, group: str) -> GroupSurvey:
    """The group's members and what this user may do with it.

    Raises:
        NotImplementedError: if the broker is older than Kafka 2.3.
        KafkaError: if it refuses, or does not answer.
    """

    async def describe() -> Any:
        node = await cluster._admin.find_coordinator(group)
        response = await cluster._admin._send_request(_RightsOnGroups(group), node)
        (described,) = response.groups
        if described[0]:
            raise for_code(described[0])(group)
        return described

    _, _, state, _, _, members, rights = await _answered(describe)
    return GroupSurvey(
        state,
        [
            ConsumerProtocolMemberAssignment.decode(assignment).partitions() if assignment else []
            for *_, assignment in members
        ],
        _rights(rights),
    )


async def ask_for_transactions(cluster: Cluster, transactional_id: str) -> None:
    """Ask who looks after a transactional id, which needs the right to describe it.

    Raises:
        KafkaError: if the cluster refuses, or does not answer.
    """
    await _answered(lambda: cluster._admin.find_coordinator(transactional_id, _TRANSACTIONS))


async def _answered(ask: Callable[[], Awaitable[Any]]) -> Any:
    """A coordinator's answer, awaited where it is not ready, as in a cluster that is new."""
    deadline = time.monotonic() + COORDINATOR_SECONDS_MAX
    while True:
        try:
            return await ask()
        except KafkaError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
        await asyncio.sleep(ASK_AGAIN_SECONDS)


def _rights(bits: int) -> frozenset[Right] | None:
    """The rights in a bit field; the smallest number says that the broker does not tell."""
    if bits == -(2**31):
        return None
    return frozenset(right for right in Right if bits >> right & 1)


# Partitions.


class Ends:
    """Connections that ask how far partitions go, as readers of all and of committed records."""

    def __init__(self, everything: AIOKafkaConsumer, committed: AIOKafkaConsumer) -> None:
        self._everything = everything
        self._committed = committed

    async def of(self, places: Collection[TopicPartition]) -> dict[TopicPartition, Extent]:
        """How far each of the partitions goes.

        Raises:
            KafkaError: if not all of them answer.
        """
        asked = list(places)
        # In this order: what is appended in between must not look like an open transaction.
        starts = await self._everything.beginning_offsets(asked)
        high = await self._everything.end_offsets(asked)
        stable = await self._committed.end_offsets(asked)
        return {place: Extent(starts[place], stable[place], high[place]) for place in asked}


@asynccontextmanager
async def open_ends(settings: KafkaSettings) -> AsyncIterator[Ends]:
    """An `Ends` for the time of a block."""
    common = {"group_id": None, "enable_auto_commit": False, **settings.client}
    async with (
        AIOKafkaConsumer(isolation_level="read_uncommitted", **common) as everything,
        AIOKafkaConsumer(isolation_level="read_committed", **common) as committed,
    ):
        yield Ends(everything, committed)
