"""Why a broker does not let us in, said with the setting that is to be looked at."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    AuthenticationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
)

from certificates import Authority
from consentgate.kafka import connecting
from consentgate.kafka.connecting import Attempt, attempt, bootstrap_addresses, denial, why_shut_out
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.tokens import NoToken

Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Served, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def tried(port: int, **settings: str) -> Attempt:
    named = {name.replace("_", "."): value for name, value in settings.items()}
    return await attempt(kafka_settings(named), "127.0.0.1", port)


def certificate(directory: Path) -> ssl.SSLContext:
    """A server's context with a certificate of an authority that nobody knows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*Authority.make().give(directory, "kafka"))
    return context


async def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path) -> None:
    async with listening(say_nothing, certificate(tmp_path)) as port:
        found = await tried(port, security_protocol="SSL")
    assert (found.answered, found.refused) == (True, True)
    assert "the certificate of 127.0.0.1" in str(found.problem)
    assert "kafka.ssl.ca.location" in found.advice


async def test_a_name_that_cannot_be_resolved_is_told() -> None:
    found = await attempt(kafka_settings({}), "kafka.invalid", 9092)
    assert (found.answered, found.problem) == (
        False,
        "the name in kafka.invalid:9092 cannot be resolved",
    )


@pytest.mark.parametrize("serve", [hang_up, say_nothing])
async def test_a_listener_that_lets_nobody_in_is_told(
    monkeypatch: pytest.MonkeyPatch, serve: Served
) -> None:
    monkeypatch.setattr(connecting, "CONNECT_SECONDS_MAX", 0.3)
    async with listening(serve) as port:
        found = await tried(port)
    assert (found.answered, "lets nobody in by PLAINTEXT" in str(found.problem)) == (False, True)
    assert "kafka.security.protocol" in found.advice


@pytest.mark.parametrize(
    ("error", "setting"),
    [
        (AuthenticationFailedError("secret"), "kafka.sasl.password"),
        (UnsupportedSaslMechanismError("secret"), "kafka.sasl.mechanism"),
    ],
)
async def test_a_user_who_is_refused_is_told_the_setting(
    monkeypatch: pytest.MonkeyPatch, error: Exception, setting: str
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(connecting, "create_conn", refuse)
    found = await tried(
        9092,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="somebody",
        sasl_password="secret",
    )
    assert (found.answered, found.refused) == (True, True)
    assert "SCRAM-SHA-512" in str(found.problem)
    assert setting in found.advice
    assert "secret" not in f"{found.problem} {found.advice}"


def test_the_servers_are_those_of_the_setting() -> None:
    settings = kafka_settings({"bootstrap.servers": "kafka-1:9093,kafka-2"})
    assert bootstrap_addresses(settings) == [("kafka-1", 9093), ("kafka-2", 9092)]


async def test_one_server_that_lets_us_in_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(_: object, host: str, port: int) -> Attempt:
        return Attempt(host, None if host == "good" else "no", refused=host != "good")

    monkeypatch.setattr(connecting, "attempt", answer)
    assert await why_shut_out(kafka_settings({"bootstrap.servers": "bad,good"})) == ()
    assert len(await why_shut_out(kafka_settings({"bootstrap.servers": "bad,worse"}))) == 2


async def test_what_is_wrong_with_a_token_is_told_of_the_broker_that_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise NoToken("no token", "set something", refused=False)

    monkeypatch.setattr(connecting, "create_conn", refuse)
    found = await tried(9092)
    assert (found.problem, found.advice, found.refused) == ("no token", "set something", False)


async def test_that_our_certificate_is_refused_is_seen_behind_the_closed_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusal = ssl.SSLError(1, "")
    refusal.reason = "SSLV3_ALERT_CERTIFICATE_UNKNOWN"

    async def close(*_: object, **__: object) -> None:
        raise KafkaConnectionError("closed") from refusal

    monkeypatch.setattr(connecting, "create_conn", close)
    found = await tried(9092, security_protocol="SSL")
    assert found.refused
    assert "refuses this client in the TLS handshake" in str(found.problem)


# Rights.


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (TopicAuthorizationFailedError({"b", "a"}), "topic a, b"),
        (TopicAuthorizationFailedError("a"), "topic a"),
        (TopicAuthorizationFailedError(TopicPartition("a", 3)), "topic a"),
        (GroupAuthorizationFailedError("g"), "group g"),
        (TransactionalIdAuthorizationFailed("g/a-0"), "transactional id g/a-0"),
    ],
)
def test_a_right_that_is_missing_is_named(error: Exception, named: str) -> None:
    assert str(denial(error)).startswith(f"this user lacks a right on the {named}; ")


def test_a_right_that_is_missing_is_seen_behind_other_errors() -> None:
    error = KafkaError("Unexpected error during batch delivery")
    assert denial(error) is None
    error.__cause__ = TopicAuthorizationFailedError()
    assert str(denial(error)).startswith("this user lacks a right on the topic; ")
    assert denial(OSError()) is None
