"""What the cluster answers incompletely is asked again, and never taken for an answer."""

from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, GroupLoadInProgressError, KafkaError
from aiokafka.structs import OffsetAndMetadata

from consentgate.kafka import cluster as cluster_module
from consentgate.kafka.cluster import Cluster
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
