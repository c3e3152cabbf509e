"""Kafka client settings under librdkafka's names, because those are the ones that people have."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from consentgate.config import KAFKA_SETTINGS
from consentgate.core.document import nearest
from consentgate.errors import ConfigError

_CLIENT = {
    "bootstrap.servers": "bootstrap_servers",
    "client.id": "client_id",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "socket.timeout.ms": "request_timeout_ms",
    "metadata.max.age.ms": "metadata_max_age_ms",
    "retry.backoff.ms": "retry_backoff_ms",
}
_CONSUMER = {
    "fetch.wait.max.ms": "fetch_max_wait_ms",
    "fetch.max.bytes": "fetch_max_bytes",
    "max.partition.fetch.bytes": "max_partition_fetch_bytes",
}
_GROUP = {
    "session.timeout.ms": "session_timeout_ms",
    "heartbeat.interval.ms": "heartbeat_interval_ms",
}
_PRODUCER = {
    "compression.type": "compression_type",
    "transaction.timeout.ms": "transaction_timeout_ms",
}


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Keyword arguments for aiokafka's clients; `repr` shows no secrets."""

    client: Mapping[str, Any] = field(repr=False)
    consumer: Mapping[str, Any]
    group: Mapping[str, Any]
    producer: Mapping[str, Any]

    @property
    def bootstrap_servers(self) -> str:
        """The servers as they were configured."""
        return str(self.client["bootstrap_servers"])


def kafka_settings(kafka: Mapping[str, str | int | float | bool]) -> KafkaSettings:
    """The clients' settings from the `kafka` section of the configuration.

    Raises:
        ConfigError: naming the setting, never its value.
    """
    for name in kafka:
        if name not in KAFKA_SETTINGS:
            hint = nearest(name, sorted(KAFKA_SETTINGS))
            raise ConfigError(f"kafka.{name}: unknown setting, {hint}")
    client = {"bootstrap_servers": "localhost:9092", **_pick(_CLIENT, kafka)}
    if "security_protocol" in client:
        # librdkafka documents them in lower case, and takes either.
        client["security_protocol"] = client["security_protocol"].upper()
    if "SSL" in str(client.get("security_protocol", "")).split("_"):
        client["ssl_context"] = _tls_context(kafka)
    if client.get("sasl_mechanism") == "OAUTHBEARER":
        raise ConfigError("kafka.sasl.mechanism: OAUTHBEARER is not supported by this version")
    producer = {"transaction_timeout_ms": 10_000, **_pick(_PRODUCER, kafka)}
    if producer.get("compression_type") == "none":
        del producer["compression_type"]
    return KafkaSettings(
        client=client,
        consumer={"max_partition_fetch_bytes": 4 << 20, **_pick(_CONSUMER, kafka)},
        group=_pick(_GROUP, kafka),
        producer=producer,
    )


def _pick(
    names: Mapping[str, str], kafka: Mapping[str, str | int | float | bool]
) -> dict[str, Any]:
    return {
        ours: _number(name, kafka[name]) if name.endswith((".ms", ".bytes")) else str(kafka[name])
        for name, ours in names.items()
        if name in kafka
    }


def _number(name: str, value: str | int | float | bool) -> int:
    try:
        return int(value)
    except (ValueError, OverflowError):
        raise ConfigError(f"kafka.{name}: must be an integer") from None


def _tls_context(kafka: Mapping[str, str | int | float | bool]) -> ssl.SSLContext:
    setting = "ssl.ca.location"
    try:
        context = ssl.create_default_context(cafile=_text(kafka, setting))
        certificate = _text(kafka, "ssl.certificate.location")
        if certificate is not None:
            setting = "ssl.certificate.location"
            context.load_cert_chain(
                certificate, _text(kafka, "ssl.key.location"), _text(kafka, "ssl.key.password")
            )
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"kafka.{setting}: cannot be loaded: {type(error).__name__}") from None
    if _text(kafka, "ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    return context


def _text(kafka: Mapping[str, str | int | float | bool], name: str) -> str | None:
    return str(kafka[name]) if name in kafka else None
