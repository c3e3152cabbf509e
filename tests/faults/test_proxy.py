"""The proxy does to plain clients what its actions say, and what the product must guard against."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, KafkaTimeoutError

from consentgate.kafka.unanswered import closing_unanswered
from harness import until
from proxy import (
    Api,
    DelayRequest,
    DelayResponse,
    DropRequest,
    HoldRequest,
    PassOn,
    Predicate,
    ProxiedKafka,
    Proxy,
    ResetAfterRequest,
    ResetInsteadOfResponse,
    SwallowResponse,
)

REQUEST_TIMEOUT_MS = 1_000
"""How long a client waits for an answer before it closes the connection and asks again."""

SOON_SECONDS = 0.5
"""Well below the time-out."""


@pytest.fixture(scope="module")
def kafka() -> Iterator[ProxiedKafka]:
    with ProxiedKafka() as running:
        yield running


@pytest.fixture
async def proxy(kafka: ProxiedKafka) -> AsyncIterator[Proxy]:
    async with kafka.proxy() as running:
        yield running


@pytest.fixture
async def topic(kafka: ProxiedKafka) -> str:
    name = f"proxied-{uuid.uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(name, 1, 1)])
    await admin.close()
    # A topic that has no leader yet would have the first request repeated.
    await Reader(kafka, name).values()
    return name


@asynccontextmanager
async def producing(proxy: Proxy, name: str) -> AsyncIterator[AIOKafkaProducer]:
    """A transactional producer behind the proxy; its client id is its transactional id."""
    producer = AIOKafkaProducer(
        bootstrap_servers=proxy.bootstrap_servers,
        client_id=name,
        transactional_id=name,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )
    await producer.start()
    try:
        yield producer
    finally:
        # Where the broker has refused a request for good, it says so once more.
        with contextlib.suppress(KafkaError):
            await producer.stop()


def asked(name: str, api: Api) -> Predicate:
    return lambda request: request.client_id == name and request.api_key == api


def commit_of(name: str) -> Predicate:
    return lambda request: request.commits and request.transactional_id == name


class Reader:
    """What is in the topic, asked of the broker itself."""

    def __init__(self, kafka: ProxiedKafka, topic: str) -> None:
        self._kafka = kafka
        self._tp = TopicPartition(topic, 0)

    async def values(self, isolation_level: str = "read_committed") -> list[bytes]:
        async with AIOKafkaConsumer(
            bootstrap_servers=self._kafka.bootstrap_servers, isolation_level=isolation_level
        ) as consumer:
            consumer.assign([self._tp])
            await consumer.seek_to_beginning(self._tp)
            end = (await consumer.end_offsets([self._tp]))[self._tp]
            values: list[bytes] = []
            while await consumer.position(self._tp) < end:
                records = await consumer.getmany(self._tp, timeout_ms=100)
                values += [record.value for record in records.get(self._tp, [])]
            return values

    async def becomes(self, *values: bytes) -> None:
        async def reached() -> bool:
            return await self.values() == list(values)

        await until(reached, f"{values} can be read")


@pytest.fixture
def reader(kafka: ProxiedKafka, topic: str) -> Reader:
    return Reader(kafka, topic)


async def send(producer: AIOKafkaProducer, topic: str, value: bytes) -> None:
    await producer.send_and_wait(topic, value)


async def seconds_of(awaitable: Any) -> float:
    began = time.monotonic()
    await awaitable
    return time.monotonic() - began


# What it does to requests and responses.


async def test_clients_behind_it_stay_behind_it(proxy: Proxy, topic: str, reader: Reader) -> None:
    async with producing(proxy, topic) as producer, producer.transaction():
        await send(producer, topic, b"1")
    assert await reader.values() == [b"1"]
    for api in (Api.INIT_PRODUCER_ID, Api.ADD_PARTITIONS_TO_TXN, Api.PRODUCE, Api.END_TXN):
        assert proxy.requests[topic, api] > 0


@pytest.mark.parametrize("action", [DelayRequest(SOON_SECONDS), DelayResponse(SOON_SECONDS)])
async def test_a_delay(proxy: Proxy, topic: str, reader: Reader, action: PassOn) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        rule = proxy.add(asked(topic, Api.PRODUCE), action)
        assert await seconds_of(send(producer, topic, b"1")) >= SOON_SECONDS
        await producer.commit_transaction()
    (request,) = rule.landed
    assert request.passed_at is not None
    held = request.passed_at - request.seen_at
    assert (held >= SOON_SECONDS) == isinstance(action, DelayRequest)
    assert proxy.requests[topic, Api.PRODUCE] == 1
    assert await reader.values() == [b"1"]


async def test_a_swallowed_response_leaves_the_client_waiting_for_what_was_committed(
    proxy: Proxy, topic: str, reader: Reader
) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        await send(producer, topic, b"1")
        rule = proxy.add(commit_of(topic), SwallowResponse())
        commit = asyncio.create_task(producer.commit_transaction())
        await until(lambda: rule.landed and rule.landed[0].answered_at, "the broker has answered")
        await reader.becomes(b"1")
        assert not commit.done()
        assert rule.landed[0].returned_at is None
        # It asks again on a new connection once its time is up.
        await commit
    assert proxy.requests[topic, Api.END_TXN] == 2


async def test_a_reset_instead_of_the_response(proxy: Proxy, topic: str, reader: Reader) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        await send(producer, topic, b"1")
        rule = proxy.add(commit_of(topic), ResetInsteadOfResponse())
        assert await seconds_of(producer.commit_transaction()) < REQUEST_TIMEOUT_MS / 1000
    assert rule.landed[0].answered_at is not None
    assert rule.landed[0].returned_at is None
    assert proxy.requests[topic, Api.END_TXN] == 2
    assert await reader.values() == [b"1"]


async def test_a_reset_after_the_request(proxy: Proxy, topic: str, reader: Reader) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        rule = proxy.add(asked(topic, Api.PRODUCE), ResetAfterRequest())
        await send(producer, topic, b"1")
        await producer.commit_transaction()
    await until(lambda: rule.landed[0].answered_at, "the broker has answered the first request")
    # The broker got it twice, and knew it again by its sequence number.
    assert proxy.requests[topic, Api.PRODUCE] == 2
    assert await reader.values() == [b"1"]


async def test_a_dropped_request(proxy: Proxy, topic: str, reader: Reader) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        rule = proxy.add(asked(topic, Api.PRODUCE), DropRequest())
        assert await seconds_of(send(producer, topic, b"1")) >= REQUEST_TIMEOUT_MS / 1000
        await producer.commit_transaction()
    assert rule.landed[0].passed_at is None
    assert proxy.requests[topic, Api.PRODUCE] == 2
    assert await reader.values() == [b"1"]


async def test_a_request_arrives_though_the_client_has_gone(
    proxy: Proxy, topic: str, reader: Reader
) -> None:
    let_go = asyncio.Event()
    producer = AIOKafkaProducer(bootstrap_servers=proxy.bootstrap_servers, client_id=topic)
    await producer.start()
    rule = proxy.add(asked(topic, Api.PRODUCE), HoldRequest(let_go))
    sending = asyncio.create_task(send(producer, topic, b"1"))
    await until(lambda: rule.landed, "the request is on its way")
    producer._sender.sender_task.cancel()
    await producer.client.close()
    await until(lambda: not proxy.connections(topic), "the client has gone")
    assert await reader.values() == []
    let_go.set()
    await reader.becomes(b"1")
    sending.cancel()


async def test_a_client_that_is_cut_off_and_healed(
    proxy: Proxy, topic: str, reader: Reader
) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        await send(producer, topic, b"1")
        open_before = proxy.connections(topic)
        proxy.cut(topic)
        sending = asyncio.create_task(send(producer, topic, b"2"))
        # Long enough for new connections, which are of no more use than the old ones.
        fresh = AIOKafkaProducer(bootstrap_servers=proxy.bootstrap_servers, client_id=topic)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON_SECONDS):
                await fresh.start()
        await fresh.stop()
        assert open_before > 0
        assert not sending.done()
        assert await reader.values("read_uncommitted") == [b"1"]
        proxy.heal(topic)
        await sending
        await producer.commit_transaction()
    assert await reader.values() == [b"1", b"2"]


async def test_all_connections_are_reset(proxy: Proxy, topic: str, reader: Reader) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        await send(producer, topic, b"1")
        assert proxy.reset(topic) == 2
        await until(lambda: not proxy.connections(topic), "they are closed")
        await producer.commit_transaction()
    assert await reader.values() == [b"1"]


async def test_connections_that_are_forgotten(proxy: Proxy, topic: str, reader: Reader) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        await send(producer, topic, b"1")
        assert proxy.forget(topic) == 2
        assert await seconds_of(producer.commit_transaction()) >= REQUEST_TIMEOUT_MS / 1000
    assert await reader.values() == [b"1"]


# Why a producer is not used again after any doubt.


async def test_a_repeated_commit_that_arrives_late_commits_half_of_the_next_transaction(
    proxy: Proxy, topic: str, reader: Reader
) -> None:
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        await send(producer, topic, b"1")
        let_go = asyncio.Event()
        late = proxy.add(commit_of(topic), HoldRequest(let_go))
        # The client gives the connection up and asks again on another one, successfully.
        await producer.commit_transaction()
        assert proxy.requests[topic, Api.END_TXN] == 2
        assert await reader.values() == [b"1"]
        await producer.begin_transaction()
        await send(producer, topic, b"half of the next one")
        let_go.set()
        await until(lambda: late.landed[0].answered_at, "the first request arrives")
        # Nobody has asked for this to be committed, and it can not be aborted any more.
        await reader.becomes(b"1", b"half of the next one")
        with pytest.raises(KafkaError):
            await producer.abort_transaction()
        assert await reader.values() == [b"1", b"half of the next one"]


async def test_a_new_producer_is_safe_from_what_its_predecessor_sent(
    proxy: Proxy, topic: str, reader: Reader
) -> None:
    let_go = asyncio.Event()
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        await send(producer, topic, b"1")
        late = proxy.add(commit_of(topic), HoldRequest(let_go))
        await producer.commit_transaction()
    async with producing(proxy, topic) as producer:
        await producer.begin_transaction()
        await send(producer, topic, b"half of the next one")
        let_go.set()
        await until(lambda: late.landed[0].answered_at, "the first request arrives")
        await producer.abort_transaction()
    assert await reader.values() == [b"1"]


# Why whoever gives up waiting for the end of a partition closes the connection.


@asynccontextmanager
async def asking(proxy: Proxy, name: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer behind the proxy that only asks for offsets, with one connection for it."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=proxy.bootstrap_servers,
        client_id=name,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        fetch_max_wait_ms=REQUEST_TIMEOUT_MS // 2,
    )
    async with consumer:
        await consumer.end_offsets([TopicPartition(name, 0)])
        yield consumer


async def test_a_consumer_stays_with_a_connection_that_does_not_answer(
    proxy: Proxy, topic: str
) -> None:
    async with asking(proxy, topic) as consumer:
        assert proxy.forget(topic) == 1
        for _ in range(3):
            with pytest.raises(KafkaTimeoutError):
                await consumer.end_offsets([TopicPartition(topic, 0)])
        assert proxy.connections(topic) == 1


@pytest.mark.parametrize("patience_seconds", [0.3, 3.0])
async def test_a_connection_that_does_not_answer_is_left(
    proxy: Proxy, topic: str, patience_seconds: float
) -> None:
    async with asking(proxy, topic) as consumer:
        assert proxy.forget(topic) == 1
        with pytest.raises((TimeoutError, KafkaTimeoutError)):
            async with asyncio.timeout(patience_seconds), closing_unanswered(consumer._client):
                await consumer.end_offsets([TopicPartition(topic, 0)])
        async with asyncio.timeout(patience_seconds):
            assert await consumer.end_offsets([TopicPartition(topic, 0)])
