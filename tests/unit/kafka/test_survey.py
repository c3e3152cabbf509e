"""Why a broker does not let us in, said with the setting that is to be looked at."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka.errors import AuthenticationFailedError, UnsupportedSaslMechanismError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from consentgate.kafka import connecting, survey
from consentgate.kafka.connecting import Attempt, attempt, bootstrap_addresses
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.survey import Right

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
    """A server's context with a certificate that nobody has signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kafka")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = directory / "kafka.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    return context


async def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path) -> None:
    async with listening(say_nothing, certificate(tmp_path)) as port:
        found = await tried(port, security_protocol="SSL")
    assert found.answered
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
    found = await tried(9092, sasl_mechanism="SCRAM-SHA-512")
    assert found.answered
    assert "SCRAM-SHA-512" in str(found.problem)
    assert setting in found.advice
    assert "secret" not in f"{found.problem} {found.advice}"


def test_the_servers_are_those_of_the_setting() -> None:
    settings = kafka_settings({"bootstrap.servers": "kafka-1:9093,kafka-2"})
    assert bootstrap_addresses(settings) == [("kafka-1", 9093), ("kafka-2", 9092)]


def test_rights_are_read_from_the_bits() -> None:
    assert survey._rights(1 << 3 | 1 << 8) == {Right.READ, Right.DESCRIBE}
    assert survey._rights(0) == frozenset()
    assert survey._rights(-(2**31)) is None


class _Old:
    API_VERSION = 2


class _New:
    API_VERSION = 4


class _Request:
    _CLASSES = (_Old, _New)


@pytest.mark.parametrize(
    ("versions", "supported"), [((0, 1), False), ((3, 3), False), ((0, 2), True), ((4, 9), True)]
)
def test_a_request_needs_a_version_that_both_know(
    versions: tuple[int, int], supported: bool
) -> None:
    assert survey._is_supported(_Request, versions) is supported
    assert not survey._is_supported(_Request, None)
