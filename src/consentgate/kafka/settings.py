"""Kafka client settings under librdkafka's names, because those are the ones that people have."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from consentgate.config import KAFKA_SETTINGS
from consentgate.core.document import nearest
from consentgate.errors import ConfigError
from consentgate.kafka.tls import ReloadingContext, TlsFiles
from consentgate.kafka.tokens import (
    TokenEndpoint,
    TokenKeeper,
    UnsecuredTokens,
    heed_refused_tokens,
)

_CLIENT = {
    "bootstrap.servers": "bootstrap_servers",
    "client.id": "client_id",
    "security.protocol": "security_protocol",
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
    "transaction.timeout.ms": "transaction_timeout_ms",
}

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
_COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")
_ENDPOINT_SETTINGS = (
    "sasl.oauthbearer.token.endpoint.url",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.client.secret",
)

_TOKEN_SECONDS = 3_600
"""How long an unsecured token lives, if nothing is set; as with librdkafka."""

_Kafka = Mapping[str, str | int | float | bool]


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


def kafka_settings(kafka: _Kafka) -> KafkaSettings:
    """The clients' settings from the `kafka` section of the configuration.

    Raises:
        ConfigError: naming the setting, never its value where that may be secret.
    """
    for name in kafka:
        if name not in KAFKA_SETTINGS:
            hint = nearest(name, sorted(KAFKA_SETTINGS))
            raise ConfigError(f"kafka.{name}: unknown setting, {hint}")
    client = {"bootstrap_servers": "localhost:9092", **_pick(_CLIENT, kafka)}
    # librdkafka documents them in lower case, and takes either.
    protocol = _one_of(kafka, "security.protocol", _PROTOCOLS, "PLAINTEXT")
    _refuse_settings_without_effect(kafka, protocol)
    if "security.protocol" in kafka:
        client["security_protocol"] = protocol
    if protocol.endswith("SSL"):
        client["ssl_context"] = _tls_context(kafka)
    if protocol.startswith("SASL"):
        client |= _login(kafka)
    producer = {"transaction_timeout_ms": 10_000, **_pick(_PRODUCER, kafka)}
    compression = _one_of(kafka, "compression.type", _COMPRESSIONS, "none")
    if compression != "none":
        producer["compression_type"] = compression
    return KafkaSettings(
        client=client,
        consumer={"max_partition_fetch_bytes": 4 << 20, **_pick(_CONSUMER, kafka)},
        group=_pick(_GROUP, kafka),
        producer=producer,
    )


def _pick(names: Mapping[str, str], kafka: _Kafka) -> dict[str, Any]:
    return {
        ours: _number(name, kafka[name]) if name.endswith((".ms", ".bytes")) else str(kafka[name])
        for name, ours in names.items()
        if name in kafka
    }


def _number(name: str, value: str | int | float | bool) -> int:
    try:
        number = int(value)
    except (ValueError, OverflowError):
        raise ConfigError(f"kafka.{name}: must be an integer") from None
    if number < 1:
        raise ConfigError(f"kafka.{name}: must be at least 1")
    return number


def _text(kafka: _Kafka, name: str) -> str | None:
    return str(kafka[name]) if name in kafka else None


def _needed(kafka: _Kafka, name: str, for_what: str) -> str:
    text = _text(kafka, name)
    if not text:
        raise ConfigError(f"kafka.{name}: must be set for {for_what}, and not be empty")
    return text


def _one_of(kafka: _Kafka, name: str, choices: tuple[str, ...], default: str) -> str:
    """One of the choices, in whichever case it is written."""
    value = str(kafka.get(name, default))
    for choice in choices:
        if value.upper() == choice.upper():
            return choice
    raise ConfigError(f"kafka.{name}: must be one of {', '.join(choices)}")


def _refuse_settings_without_effect(kafka: _Kafka, protocol: str) -> None:
    """Refuse what somebody takes for protection, and that protects nothing."""
    for prefix, part, other in (("ssl.", "SSL", "SASL_SSL or SSL"), ("sasl.", "SASL", "SASL_SSL")):
        unused = sorted(name for name in kafka if name.startswith(prefix))
        if unused and part not in protocol.split("_"):
            raise ConfigError(
                f"kafka.{unused[0]}: has no effect while kafka.security.protocol is {protocol}; "
                f"set that to {other}, or leave this out"
            )


def _tls_context(kafka: _Kafka) -> ReloadingContext:
    checked = _one_of(kafka, "ssl.endpoint.identification.algorithm", ("https", "none"), "https")
    certificate = _text(kafka, "ssl.certificate.location")
    if certificate is None and (key := _text(kafka, "ssl.key.location")) is not None:
        raise ConfigError(
            f"kafka.ssl.key.location: {key} is of no use without kafka.ssl.certificate.location"
        )
    return ReloadingContext(
        TlsFiles(
            authorities=_text(kafka, "ssl.ca.location"),
            certificate=certificate,
            key=_text(kafka, "ssl.key.location"),
            password=_text(kafka, "ssl.key.password"),
            check_hostname=checked != "none",
        )
    )


# Logging in.


def _login(kafka: _Kafka) -> dict[str, Any]:
    names = [name for name in ("sasl.mechanism", "sasl.mechanisms") if name in kafka]
    name = names[0] if names else "sasl.mechanism"
    mechanism = _one_of(kafka, name, _MECHANISMS, "PLAIN")
    if len(names) == 2 and _one_of(kafka, names[1], _MECHANISMS, "PLAIN") != mechanism:
        raise ConfigError("kafka.sasl.mechanisms: must be what kafka.sasl.mechanism is")
    if mechanism == "OAUTHBEARER":
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": _tokens(kafka)}
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": _needed(kafka, "sasl.username", mechanism),
        "sasl_plain_password": _needed(kafka, "sasl.password", mechanism),
    }


def _tokens(kafka: _Kafka) -> TokenKeeper:
    heed_refused_tokens()
    method = _one_of(kafka, "sasl.oauthbearer.method", ("default", "oidc"), "default")
    if method == "default":
        return _unsecured_tokens(kafka)
    url, client_id, secret = (_needed(kafka, name, "OAUTHBEARER") for name in _ENDPOINT_SETTINGS)
    if not re.fullmatch(r"https?://[^\s]+", url):
        raise ConfigError("kafka.sasl.oauthbearer.token.endpoint.url: must begin with https://")
    tls = None
    if url.startswith("https://"):
        authorities = _text(kafka, "https.ca.location")
        tls = ReloadingContext(TlsFiles(authorities, "https.ca.location"))
    scope = _text(kafka, "sasl.oauthbearer.scope")
    endpoint = TokenEndpoint(url, client_id, secret, scope, tls)
    return TokenKeeper(endpoint.fetch, _extensions(kafka))


def _extensions(kafka: _Kafka) -> dict[str, str]:
    name = "sasl.oauthbearer.extensions"
    return _pairs(name, str(kafka.get(name, "")).split(","))


def _pairs(name: str, texts: list[str]) -> dict[str, str]:
    """Extensions by their names; RFC 7628 allows these to have letters only, and `auth` is taken.

    What else a value may not hold would end it in the message.
    """
    pairs = dict(text.strip().partition("=")[::2] for text in texts if text.strip())
    for key, value in pairs.items():
        if not re.fullmatch(r"[A-Za-z]+", key) or key == "auth":
            raise ConfigError(f"kafka.{name}: must be like name=value, where names are letters")
        if not re.fullmatch(r"[\x21-\x7e \t\r\n]+", value):
            raise ConfigError(f"kafka.{name}: the value of {key} must be plain text")
    return pairs


def _unsecured_tokens(kafka: _Kafka) -> TokenKeeper:
    """Tokens without a signature, for brokers to try things out with; only where that is meant."""
    if str(kafka.get("enable.sasl.oauthbearer.unsecure.jwt", False)).lower() != "true":
        raise ConfigError(
            "kafka.sasl.oauthbearer.method: must be oidc; what default stands for, tokens that "
            "nobody has signed, also needs kafka.enable.sasl.oauthbearer.unsecure.jwt: true"
        )
    name = "sasl.oauthbearer.config"
    given = dict(text.partition("=")[::2] for text in str(kafka.get(name, "")).split())
    extensions = {k.partition("_")[2]: given.pop(k) for k in list(given) if k[:10] == "extension_"}
    known = ("principalClaimName", "principal", "scopeClaimName", "scope", "lifeSeconds")
    if unknown := sorted(given.keys() - set(known)):
        raise ConfigError(f"kafka.{name}: {unknown[0]}: unknown, {nearest(unknown[0], known)}")
    if not given.get("principal"):
        raise ConfigError(f"kafka.{name}: must hold principal=NAME")
    claims: dict[str, Any] = {given.get("principalClaimName", "sub"): given["principal"]}
    if "scope" in given:
        claims[given.get("scopeClaimName", "scope")] = given["scope"].split(",")
    life = given.get("lifeSeconds", str(_TOKEN_SECONDS))
    if not re.fullmatch(r"[1-9][0-9]{0,8}", life):
        raise ConfigError(f"kafka.{name}: lifeSeconds must be a number of seconds")
    tokens = UnsecuredTokens(claims, 1_000 * int(life))
    return TokenKeeper(tokens.fetch, _pairs(name, [f"{k}={v}" for k, v in extensions.items()]))
