"""Kafka's settings: librdkafka's names in, aiokafka's arguments out, and no secret in between."""

import base64
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from certificates import Authority
from consentgate.config import KAFKA_SETTINGS
from consentgate.errors import ConfigError
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.kafka.tls import ReloadingContext

SECRET = "hunter2"
BEGIN = "-----BEGIN CERTIFICATE-----\nMIIBezCC"


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
        ("security.protocol", "PLAINTEXT", "security_protocol", "PLAINTEXT"),
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


SASL = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "SCRAM-SHA-512",
    "sasl.username": "somebody",
    "sasl.password": SECRET,
}


@pytest.mark.parametrize(
    ("name", "value", "argument", "given"),
    [
        ("security.protocol", "sasl_plaintext", "security_protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN", "sasl_mechanism", "PLAIN"),
        ("sasl.mechanism", "scram-sha-256", "sasl_mechanism", "SCRAM-SHA-256"),
        ("sasl.username", "u", "sasl_plain_username", "u"),
        ("sasl.password", 123, "sasl_plain_password", "123"),
    ],
)
def test_each_setting_of_a_login_becomes_its_argument(
    name: str, value: Any, argument: str, given: Any
) -> None:
    assert kafka_settings({**SASL, name: value}).client[argument] == given


def test_the_mechanism_has_two_names_and_one_value() -> None:
    plain = {**SASL, "sasl.mechanisms": "PLAIN"}
    assert refused(plain) == "kafka.sasl.mechanisms: must be what kafka.sasl.mechanism is"
    del plain["sasl.mechanism"]
    assert kafka_settings(plain).client["sasl_mechanism"] == "PLAIN"
    del plain["sasl.mechanisms"]
    assert kafka_settings(plain).client["sasl_mechanism"] == "PLAIN"


def test_every_setting_that_the_configuration_knows_is_taken(tmp_path: Path) -> None:
    certificate, key = Authority.make().give(tmp_path, "client", password="1")
    kafka: dict[str, Any] = dict.fromkeys(KAFKA_SETTINGS, "1") | {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.mechanisms": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": "https://idp/token",
        "sasl.oauthbearer.extensions": "a=1",
        "https.ca.location": str(certificate),
        "ssl.ca.location": str(certificate),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(key),
        "ssl.endpoint.identification.algorithm": "none",
        "compression.type": "zstd",
    }
    settings = everything(kafka_settings(kafka))
    # All those of tokens are one argument, and so are those of TLS.
    parts = [name for name in kafka if name.startswith(("ssl.", "sasl.", "https.", "enable."))]
    assert len(settings) == len(kafka) - len(parts) + 3


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


@pytest.mark.parametrize("name", ["session.timeout.ms", "fetch.max.bytes"])
@pytest.mark.parametrize("value", [0, "-5"])
def test_what_must_be_more_than_nothing_is_so(name: str, value: Any) -> None:
    assert refused({name: value}) == f"kafka.{name}: must be at least 1"


def test_infinity_is_no_number_of_milliseconds() -> None:
    refused({"retry.backoff.ms": float("inf")})


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("security.protocol", "TLS", "PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL"),
        ("compression.type", "lz5", "none, gzip, snappy, lz4, zstd"),
        ("sasl.mechanism", "GSSAPI", "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER"),
        ("sasl.mechanism", SECRET, "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER"),
    ],
)
def test_what_is_one_of_a_few_is_refused_with_them(name: str, value: str, choices: str) -> None:
    assert refused({**SASL, name: value}) == f"kafka.{name}: must be one of {choices}"


@pytest.mark.parametrize("missing", ["sasl.username", "sasl.password"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_login_needs_a_name_and_a_password(missing: str, value: str | None) -> None:
    kafka = {name: text for name, text in SASL.items() if name != missing}
    message = refused(kafka if value is None else {**kafka, missing: value})
    assert message == f"kafka.{missing}: must be set for SCRAM-SHA-512, and not be empty"


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        (None, "sasl.password"),
        ("PLAINTEXT", "sasl.mechanism"),
        ("SSL", "sasl.username"),
        (None, "ssl.ca.location"),
        ("SASL_PLAINTEXT", "ssl.ca.location"),
        ("SASL_PLAINTEXT", "ssl.key.password"),
    ],
)
def test_a_protection_without_effect_is_refused(protocol: str | None, name: str) -> None:
    # Who forgets the protocol would send everything in the clear, and believe otherwise.
    kafka = {} if protocol is None else {"security.protocol": protocol}
    message = refused({**kafka, name: SECRET})
    assert message.startswith(f"kafka.{name}: has no effect while kafka.security.protocol is ")


def test_no_secret_is_shown() -> None:
    settings = kafka_settings(SASL)
    assert SECRET not in repr(settings)
    assert "somebody" not in repr(settings)
    assert SECRET not in str(settings)


# TLS.


@pytest.mark.parametrize("protocol", ["SSL", "SASL_SSL"])
def test_tls_checks_the_broker_s_certificate_and_name(protocol: str) -> None:
    context = context_of({"security.protocol": protocol})
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname


def context_of(kafka: dict[str, Any]) -> ssl.SSLContext:
    """What connections are made with just now."""
    login = {n: v for n, v in SASL.items() if "SASL" in kafka["security.protocol"].upper()}
    context = kafka_settings({**login, **kafka}).client["ssl_context"]
    assert isinstance(context, ReloadingContext)
    return context.current


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SASL_PLAINTEXT"])
def test_without_tls_there_is_no_context(protocol: str) -> None:
    login = SASL if "SASL" in protocol else {}
    settings = kafka_settings({**login, "security.protocol": protocol})
    assert "ssl_context" not in settings.client
    assert "ssl_context" not in kafka_settings({}).client


@pytest.mark.parametrize("protocol", ["ssl", "sasl_ssl"])
def test_a_protocol_may_be_written_as_librdkafka_documents_it(protocol: str) -> None:
    login = SASL if "sasl" in protocol else {}
    client = kafka_settings({**login, "security.protocol": protocol}).client
    assert client["security_protocol"] == protocol.upper()
    assert "ssl_context" in client


def test_an_authority_of_one_s_own_is_the_only_one_trusted(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(Authority.make("mine").pem)
    context = context_of({"security.protocol": "SSL", "ssl.ca.location": str(authority)})
    (trusted,) = context.get_ca_certs()
    assert trusted["subject"] == ((("commonName", "mine"),),)


def test_the_check_of_the_name_can_be_switched_off_and_that_of_the_certificate_cannot() -> None:
    kafka = {"security.protocol": "SSL", "ssl.endpoint.identification.algorithm": "none"}
    context = context_of(kafka)
    assert not context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    kafka["ssl.endpoint.identification.algorithm"] = "https"
    assert context_of(kafka).check_hostname
    kafka["ssl.endpoint.identification.algorithm"] = "off"
    assert refused(kafka).endswith("must be one of https, none")


@pytest.mark.parametrize("setting", ["ssl.ca.location", "ssl.certificate.location"])
@pytest.mark.parametrize("content", [None, "", "no certificate", BEGIN])
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


def test_a_key_without_a_certificate_is_refused() -> None:
    kafka = {"security.protocol": "SSL", "ssl.key.location": "client.key"}
    assert "of no use without kafka.ssl.certificate.location" in refused(kafka)


# Tokens.


OIDC = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "OAUTHBEARER",
    "sasl.oauthbearer.method": "oidc",
    "sasl.oauthbearer.token.endpoint.url": "https://idp/token",
    "sasl.oauthbearer.client.id": "client",
    "sasl.oauthbearer.client.secret": SECRET,
}


def test_tokens_are_fetched_as_the_settings_say() -> None:
    client = kafka_settings({**OIDC, "sasl.oauthbearer.extensions": "a=1, b=x=y"}).client
    assert client["sasl_mechanism"] == "OAUTHBEARER"
    assert client["sasl_oauth_token_provider"].extensions() == {"a": "1", "b": "x=y"}
    assert not {"sasl_plain_username", "sasl_plain_password"} & set(client)


@pytest.mark.parametrize(
    "missing",
    [
        "sasl.oauthbearer.token.endpoint.url",
        "sasl.oauthbearer.client.id",
        "sasl.oauthbearer.client.secret",
    ],
)
def test_tokens_need_an_endpoint_and_a_client(missing: str) -> None:
    kafka = {name: text for name, text in OIDC.items() if name != missing}
    assert refused(kafka) == f"kafka.{missing}: must be set for OAUTHBEARER, and not be empty"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sasl.oauthbearer.method": "device"}, "must be one of default, oidc"),
        ({"sasl.oauthbearer.token.endpoint.url": f"idp/{SECRET}"}, "must begin with https://"),
        ({"sasl.oauthbearer.extensions": "auth=1"}, "must be like name=value"),
        ({"sasl.oauthbearer.extensions": "a1=1"}, "must be like name=value"),
        ({"sasl.oauthbearer.extensions": f"a={SECRET}\x01"}, "the value of a must be plain text"),
        ({"https.ca.location": "/nowhere"}, "kafka.https.ca.location: cannot be loaded"),
    ],
)
def test_settings_of_tokens_that_cannot_work_are_refused(
    changed: dict[str, str], said: str
) -> None:
    assert said in refused({**OIDC, **changed})


UNSECURED = {
    "security.protocol": "SASL_PLAINTEXT",
    "sasl.mechanism": "OAUTHBEARER",
    "enable.sasl.oauthbearer.unsecure.jwt": True,
    "sasl.oauthbearer.config": "principal=worker scope=a,b lifeSeconds=60 extension_x=1",
}


async def test_tokens_that_nobody_has_signed_are_made_where_that_is_meant() -> None:
    provider = kafka_settings(UNSECURED).client["sasl_oauth_token_provider"]
    body = (await provider.token()).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert (claims["sub"], claims["scope"]) == ("worker", ["a", "b"])
    assert claims["exp"] - claims["iat"] == pytest.approx(60)
    assert provider.extensions() == {"x": "1"}


def test_tokens_that_nobody_has_signed_are_not_made_by_oversight() -> None:
    for value in (False, "false"):
        message = refused({**UNSECURED, "enable.sasl.oauthbearer.unsecure.jwt": value})
        assert message.startswith("kafka.sasl.oauthbearer.method: must be oidc")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("", "must hold principal=NAME"),
        ("principal=a life=5", "life: unknown"),
        ("principal=a lifeSeconds=0", "lifeSeconds must be a number of seconds"),
    ],
)
def test_a_token_that_nobody_has_signed_needs_a_name(config: str, said: str) -> None:
    assert said in refused({**UNSECURED, "sasl.oauthbearer.config": config})
