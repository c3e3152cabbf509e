"""What the cluster answers incompletely is asked again, and never taken for an answer."""

from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    GroupLoadInProgressError,
    InvalidTopicError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.metadata import MetadataRequest_v5, MetadataResponse_v5
from aiokafka.structs import OffsetAndMetadata

from consentgate.errors import BrokerUnavailable, ConfigError
from consentgate.kafka import cluster as cluster_module
from consentgate.kafka.cluster import Cluster
from consentgate.kafka.connecting import Attempt
from consentgate.kafka.settings import kafka_settings

COMPLETE = {TopicPartition("content", p): OffsetAndMetadata(p, "") for p in range(2)}


def cluster_that_answers(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> Cluster:
    """A cluster whose coordinator answers so, one after another, and then the last for ever."""
    cluster, left = Cluster(kafka_settings({})), list(answers)

    async def answer(group: str, partitions: list[TopicPartition]) -> Any:
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(cluster._admin, "list_consumer_group_offsets", answer)
    return cluster


async def test_a_coordinator_that_leaves_partitions_out_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Else a group whose offsets are still being loaded would begin at the beginning.
    left_out = {TopicPartition("content", 0): OffsetAndMetadata(0, "")}
    cluster = cluster_that_answers(monkeypatch, {}, left_out, COMPLETE)
    assert await cluster.bookmarks("g", "content", range(2)) == {0: (0, None), 1: (1, None)}


async def test_a_coordinator_that_never_answers_in_full_is_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cluster_module, "COORDINATOR_SECONDS_MAX", 0.0)
    with pytest.raises(KafkaError, match="no answer"):
        await cluster_that_answers(monkeypatch, {}).bookmarks("g", "content", range(2))


async def test_a_coordinator_that_is_not_ready_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = cluster_that_answers(monkeypatch, GroupLoadInProgressError(), COMPLETE)
    assert len(await cluster.bookmarks("g", "content", range(2))) == 2


async def test_a_refusal_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_that_answers(monkeypatch, GroupAuthorizationFailedError(), COMPLETE)
    with pytest.raises(GroupAuthorizationFailedError):
        await cluster.bookmarks("g", "content", range(2))


async def test_a_partition_without_an_offset_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    never = {**COMPLETE, TopicPartition("content", 0): OffsetAndMetadata(-1, "")}
    cluster = cluster_that_answers(monkeypatch, never)
    assert await cluster.bookmarks("g", "content", range(2)) == {1: (1, None)}


# The settings of topics.


def cluster_that_tells(monkeypatch: pytest.MonkeyPatch, error_code: int) -> Cluster:
    """A cluster that says this of one topic, and tells the settings of another."""
    cluster = Cluster(kafka_settings({}))

    @dataclass
    class Told:
        resources: list[Any]

    async def describe(asked: list[Any]) -> list[Told]:
        entry = ("cleanup.policy", "compact", False, 1, False, [])
        return [Told([(error_code, "", 2, "one", [])]), Told([(0, "", 2, "two", [entry])])]

    monkeypatch.setattr(cluster._admin, "describe_configs", describe)
    return cluster


@pytest.mark.parametrize(
    "refusal", [TopicAuthorizationFailedError, ClusterAuthorizationFailedError]
)
async def test_settings_that_may_not_be_read_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, refusal: type[KafkaError]
) -> None:
    cluster = cluster_that_tells(monkeypatch, refusal.errno)
    assert await cluster.topic_configs(["one", "two"]) == {
        "one": None,
        "two": {"cleanup.policy": "compact"},
    }


async def test_settings_that_cannot_be_read_for_another_reason_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = cluster_that_tells(monkeypatch, InvalidTopicError.errno)
    with pytest.raises(ConfigError, match="topic one cannot be read"):
        await cluster.topic_configs(["one", "two"])
    cluster = cluster_that_tells(monkeypatch, UnknownTopicOrPartitionError.errno)
    with pytest.raises(UnknownTopicOrPartitionError):
        await cluster.topic_configs(["one", "two"])


# Topics that are missing.


async def test_a_topic_that_is_asked_for_is_not_created(monkeypatch: pytest.MonkeyPatch) -> None:
    # A broker may create what the client's own question names, with settings of its choice.
    cluster, asked = Cluster(kafka_settings({})), []

    async def answer(request: Any) -> MetadataResponse_v5:
        asked.append(request.build(MetadataRequest_v5))
        missing = UnknownTopicOrPartitionError.errno
        return MetadataResponse_v5(0, [], "cluster", 1, [(missing, "one", False, [])])

    monkeypatch.setattr(cluster._admin, "_send_request", answer)
    assert await cluster.partition_counts(["one"]) == {}
    (request,) = asked
    assert request.allow_auto_topic_creation is False


async def test_a_topic_that_may_not_be_seen_does_not_look_like_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(kafka_settings({}))

    async def answer(_: Any) -> MetadataResponse_v5:
        hidden = TopicAuthorizationFailedError.errno
        return MetadataResponse_v5(0, [], "cluster", 1, [(hidden, "one", False, [])])

    monkeypatch.setattr(cluster._admin, "_send_request", answer)
    with pytest.raises(TopicAuthorizationFailedError, match="one"):
        await cluster.partition_counts(["one"])


async def test_a_refused_group_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_that_answers(monkeypatch, GroupAuthorizationFailedError("Unable to get it"))
    with pytest.raises(GroupAuthorizationFailedError) as raised:
        await cluster.bookmarks("g", "content", range(2))
    assert raised.value.args == ("g",)


# Connecting.


async def test_a_refusal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, refused = Cluster(kafka_settings({})), True

    async def fail() -> None:
        raise KafkaError("shut out")

    async def tell(_: Any) -> list[Attempt]:
        attempts = [Attempt("a:1", "it is away", "Wait", answered=False)]
        return [*attempts, Attempt("b:1", "it says no", "Set it", refused=True)][: 1 + refused]

    monkeypatch.setattr(cluster._admin, "start", fail)
    monkeypatch.setattr(cluster_module, "why_shut_out", tell)
    with pytest.raises(ConfigError) as raised:
        await cluster.start(timeout_seconds=5)
    assert str(raised.value).splitlines() == ["it is away. Wait", "it says no. Set it"]
    refused = False
    with pytest.raises(BrokerUnavailable, match=r"(?s)no broker answered at localhost:9092.*away"):
        await cluster.start(timeout_seconds=0)
