"""Kafka's settings: librdkafka's names in, aiokafka's arguments out, and no secret in between."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from consentgate.config import KAFKA_SETTINGS
from consentgate.errors import ConfigError
from consentgate.kafka.settings import KafkaSettings, kafka_settings

CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBezCCASGgAwIBAgIUXSNQBIkhSSYyatzl26Rj6qNwbhgwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdC1jYTAgFw0yNjExMjIwOTM2NDFaGA8yMTI2MTAyOTA5
MzY0MVowEjEQMA4GA1UEAwwHdGVzdC1jYTBZMBMGByqGSM49AgEGCCqGSM49AwEH
A0IABGRhNZlzRodbJ/k/ItTBhz8xyobaU6oPHcIlgPQPQU1voGnQ1+fUFupaGIcf
k+JNlYvFNVCFy0dhMU+8xGSDgzCjUzBRMB0GA1UdDgQWBBRSkCYilSkQaG/4hBXP
xmKK4HRP0jAfBgNVHSMEGDAWgBRSkCYilSkQaG/4hBXPxmKK4HRP0jAPBgNVHRMB
Af8EBTADAQH/MAoGCCqGSM49BAMCA0gAMEUCIQDC0RfOS07W5kbsa8ntp+puTEhT
14DumPNUWnLksgGNqQIgX4g1X8FfglT9nwx3hFQ0NtGLYpU13BB02bsxCcVBiJ4=
-----END CERTIFICATE-----
"""
"""A self-signed authority, whose key is not kept."""

SECRET = "hunter2"


def everything(settings: KafkaSettings) -> dict[str, Any]:
    return {**settings.client, **settings.consumer, **settings.group, **settings.producer}


def refused(kafka: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as raised:
        kafka_settings(kafka)
    return str(raised.value)


def test_without_settings_a_local_broker_is_used() -> None:
    settings = kafka_settings({})
    assert settings.bootstrap_servers == "localhost:9092"
    assert kafka_settings({"bootstrap.servers": "a:1,b:2"}).bootstrap_servers == "a:1,b:2"


@pytest.mark.parametrize(
    ("name", "value", "argument", "given"),
    [
        ("client.id", "x", "client_id", "x"),
        ("client.id", 5, "client_id", "5"),
        ("security.protocol", "SASL_PLAINTEXT", "security_protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "SCRAM-SHA-512", "sasl_mechanism", "SCRAM-SHA-512"),
        ("sasl.mechanisms", "PLAIN", "sasl_mechanism", "PLAIN"),
        ("sasl.username", "u", "sasl_plain_username", "u"),
        ("sasl.password", SECRET, "sasl_plain_password", SECRET),
        ("sasl.password", 123, "sasl_plain_password", "123"),
        ("socket.timeout.ms", 5, "request_timeout_ms", 5),
        ("metadata.max.age.ms", "5", "metadata_max_age_ms", 5),
        ("retry.backoff.ms", 5, "retry_backoff_ms", 5),
        ("fetch.wait.max.ms", 5, "fetch_max_wait_ms", 5),
        ("fetch.max.bytes", 5, "fetch_max_bytes", 5),
        ("max.partition.fetch.bytes", 5, "max_partition_fetch_bytes", 5),
        ("session.timeout.ms", 5, "session_timeout_ms", 5),
        ("heartbeat.interval.ms", 5, "heartbeat_interval_ms", 5),
        ("compression.type", "lz4", "compression_type", "lz4"),
        ("transaction.timeout.ms", 5, "transaction_timeout_ms", 5),
    ],
)
def test_each_setting_becomes_its_argument(
    name: str, value: Any, argument: str, given: Any
) -> None:
    found = everything(kafka_settings({name: value}))[argument]
    assert found == given
    assert type(found) is type(given)


def test_every_setting_that_the_configuration_knows_is_taken(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text(CERTIFICATE, "utf-8")
    kafka: dict[str, Any] = dict.fromkeys(KAFKA_SETTINGS, "1")
    for name in ("ssl.certificate.location", "ssl.key.location", "ssl.key.password"):
        del kafka[name]
    kafka |= {"security.protocol": "SASL_SSL", "ssl.ca.location": str(authority)}
    settings = kafka_settings(kafka)
    # The two names of the mechanism are one argument, and those of TLS are one context.
    assert len(everything(settings)) == len(kafka) - 1 - 2 + 1


async def test_the_clients_take_the_arguments() -> None:
    settings = kafka_settings(
        {"client.id": "x", "socket.timeout.ms": 1_000, "compression.type": "lz4"}
    )
    common = settings.client
    consumer = AIOKafkaConsumer(**common, **settings.consumer, **settings.group)
    producer = AIOKafkaProducer(transactional_id="t", **common, **settings.producer)
    admin = AIOKafkaAdminClient(**common)
    for client in (consumer, producer):
        await client.stop()
    await admin.close()


def test_only_the_group_s_members_get_the_group_s_settings() -> None:
    settings = kafka_settings({"session.timeout.ms": 5, "heartbeat.interval.ms": 6})
    assert settings.group == {"session_timeout_ms": 5, "heartbeat_interval_ms": 6}
    for other in (settings.client, settings.consumer, settings.producer):
        assert not {"session_timeout_ms", "heartbeat_interval_ms"} & set(other)


def test_a_hanging_transaction_ends_soon_by_default() -> None:
    assert kafka_settings({}).producer == {"transaction_timeout_ms": 10_000}


def test_no_compression_is_the_clients_default() -> None:
    assert "compression_type" not in kafka_settings({"compression.type": "none"}).producer


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("bootstrap.server", "did you mean 'bootstrap.servers'?"),
        ("sasl.mechansim", "did you mean 'sasl.mechanism'?"),
        ("acks", "use one of bootstrap.servers, "),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_one(name: str, hint: str) -> None:
    message = refused({name: SECRET})
    assert message.startswith(f"kafka.{name}: unknown setting, {hint}")
    assert SECRET not in message


@pytest.mark.parametrize("value", ["soon", "", "1e3", "5 s", float("nan")])
def test_what_must_be_a_number_is_one(value: Any) -> None:
    assert refused({"retry.backoff.ms": value}) == "kafka.retry.backoff.ms: must be an integer"


def test_infinity_is_no_number_of_milliseconds() -> None:
    refused({"retry.backoff.ms": float("inf")})


def test_a_mechanism_that_is_not_supported_is_refused() -> None:
    assert "OAUTHBEARER is not supported" in refused({"sasl.mechanism": "OAUTHBEARER"})


def test_no_secret_is_shown() -> None:
    settings = kafka_settings({"sasl.password": SECRET, "sasl.username": "somebody"})
    assert SECRET not in repr(settings)
    assert "somebody" not in repr(settings)
    assert SECRET not in str(settings)


# TLS.


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_tls_checks_the_broker_s_certificate_and_name(protocol: str) -> None:
    context = kafka_settings({"security.protocol": protocol}).client["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
def test_without_tls_there_is_no_context(protocol: str) -> None:
    assert "ssl_context" not in kafka_settings({"security.protocol": protocol}).client
    assert "ssl_context" not in kafka_settings({}).client


@pytest.mark.parametrize("protocol", ["ssl", "sasl_ssl"])
def test_a_protocol_may_be_written_as_librdkafka_documents_it(protocol: str) -> None:
    client = kafka_settings({"security.protocol": protocol}).client
    assert client["security_protocol"] == protocol.upper()
    assert "ssl_context" in client


def test_an_authority_of_one_s_own_is_the_only_one_trusted(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text(CERTIFICATE, "utf-8")
    settings = kafka_settings({"security.protocol": "SSL", "ssl.ca.location": str(authority)})
    (trusted,) = settings.client["ssl_context"].get_ca_certs()
    assert trusted["subject"] == ((("commonName", "test-ca"),),)


def test_the_check_of_the_name_can_be_switched_off_and_that_of_the_certificate_cannot() -> None:
    kafka = {"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "none"}
    context = kafka_settings(kafka).client["ssl_context"]
    assert not context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    kafka["ssl.endpoint.identification.algorithm"] = "https"
    assert kafka_settings(kafka).client["ssl_context"].check_hostname


@pytest.mark.parametrize("setting", ["ssl.ca.location", "ssl.certificate.location"])
@pytest.mark.parametrize("content", [None, "", "no certificate", CERTIFICATE[:200]])
def test_a_certificate_that_cannot_be_loaded_is_refused_by_its_setting(
    setting: str, content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_text(content, "utf-8")
    kafka = {"security.protocol": "SSL", setting: str(file), "ssl.key.password": SECRET}
    message = refused(kafka)
    assert message.startswith(f"kafka.{setting}: cannot be loaded: ")
    assert SECRET not in message
