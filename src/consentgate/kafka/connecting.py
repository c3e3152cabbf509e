"""Attempts to connect, and why they failed: said with the setting that is to be looked at."""

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from consentgate.kafka.settings import KafkaSettings
from consentgate.kafka.tls import ReloadingContext
from consentgate.kafka.tokens import NoToken
from consentgate.kafka.unanswered import UNANSWERED

CONNECT_SECONDS_MAX = 10.0
"""How long a broker may take to let us in."""

_NOT_FOR_CONNECTIONS = ("bootstrap_servers", "metadata_max_age_ms", "retry_backoff_ms")

_DENIED = "AuthorizationFailed"
"""What the names of the errors have in common by which a broker says that a right is missing."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """How an attempt to connect to one address ended."""

    address: str
    problem: str | None = None  # None: the broker let us in
    advice: str = ""
    answered: bool = True  # Whether there is a broker at all
    refused: bool = False  # Whether it will not do until something is set otherwise
    versions: Mapping[int, tuple[int, int]] = field(default_factory=dict)  # of requests, by key

    def __str__(self) -> str:
        return f"{self.problem}. {self.advice}"


def bootstrap_addresses(settings: KafkaSettings) -> list[tuple[str, int]]:
    """Host and port of each server of `bootstrap.servers`."""
    found = collect_hosts(settings.bootstrap_servers, randomize=False)
    return [(host, port) for host, port, _ in found]


async def attempt(settings: KafkaSettings, host: str, port: int) -> Attempt:
    """Connect as the service does, and say how that went."""
    address = f"{host}:{port}"
    client = {k: v for k, v in settings.client.items() if k not in _NOT_FOR_CONNECTIONS}
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            connection = await create_conn(host, port, **client)
    except UNANSWERED as error:
        return _failed(address, settings, error)
    connection.close()
    return Attempt(address, versions=dict(connection._versions))


async def why_shut_out(settings: KafkaSettings) -> Sequence[Attempt]:
    """The failed attempts at all servers; none where one of them lets us in."""
    addresses = bootstrap_addresses(settings)
    attempts = await asyncio.gather(*(attempt(settings, *each) for each in addresses))
    return attempts if all(each.problem is not None for each in attempts) else ()


def denial(error: BaseException | None) -> str | None:
    """That this user lacks a right, and where the rights are listed; None for other errors."""
    while error is not None and _DENIED not in type(error).__name__:
        error = error.__cause__  # The client hides some behind errors of its own.
    if not isinstance(error, KafkaError):
        return None
    kind = type(error).__name__.partition(_DENIED)[0].lower().replace("id", " id")
    # Their arguments are names of topics, a group or a transactional id, and nothing else.
    named = sorted({str(each) for argument in error.args for each in _each(argument)})
    where = f"{kind} {', '.join(named)}".rstrip()
    return (
        f"this user lacks a right on the {where}; grant it what docs/security.md lists under "
        "Rights for this command"
    )


def _each(argument: object) -> Sequence[object]:
    if isinstance(argument, TopicPartition):
        return [argument.topic]
    return list(argument) if isinstance(argument, set | frozenset | list | tuple) else [argument]


def _token_refused(address: str) -> Attempt:
    return Attempt(
        address,
        f"{address} refuses the token",
        "See in the broker's log why; often the audience or the scope is another than it expects "
        "(kafka.sasl.oauthbearer.scope), or kafka.sasl.oauthbearer.extensions are missing",
        refused=True,
    )


def _failed(address: str, settings: KafkaSettings, error: BaseException) -> Attempt:
    # TLS 1.3 has the client finish first: that its certificate was refused comes later, and the
    # client then says no more than that the connection was closed.
    if isinstance(error, KafkaConnectionError) and isinstance(error.__cause__, ssl.SSLError):
        error = error.__cause__
    if isinstance(error, NoToken):
        return Attempt(
            address, error.problem, error.advice, answered=error.refused, refused=error.refused
        )
    if isinstance(error, ssl.SSLError):
        return _tls_failed(address, settings, error)
    return _login_failed(address, settings, error) or _not_answered(address, settings, error)


def _tls_failed(address: str, settings: KafkaSettings, error: ssl.SSLError) -> Attempt:
    protocol = settings.client["security_protocol"]
    reason = error.reason or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        what = f"the certificate of {address} is not accepted: {error.verify_message}"
        return Attempt(address, what, _certificate_advice(error), refused=True)
    if "ALERT" in reason:  # What the broker says of us.
        what = f"{address} refuses this client in the TLS handshake ({reason})"
        return Attempt(address, what, _own_certificate_advice(settings), refused=True)
    what = f"TLS fails at {address} ({reason})"
    advice = f"See whether that listener speaks TLS: kafka.security.protocol is {protocol}"
    return Attempt(address, what, advice, answered=False)


def _certificate_advice(error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case 9 | 10:  # Not valid yet; expired.
            return "Renew the broker's certificate, or correct this machine's clock"
        case 62 | 64:  # Another name; another IP address.
            return (
                "In kafka.bootstrap.servers, use a name that the certificate is made out for, or "
                "have it made out for this one, too"
            )
        case _:
            return "Name the authority that signed it in kafka.ssl.ca.location"


def _own_certificate_advice(settings: KafkaSettings) -> str:
    context = settings.client["ssl_context"]
    assert isinstance(context, ReloadingContext), "it was made with the settings"
    if context.files.certificate is None:
        return (
            "It may ask for a certificate: set kafka.ssl.certificate.location and "
            "kafka.ssl.key.location"
        )
    if (expired_at := context.files.expired_at()) is not None:
        return (
            f"The certificate in kafka.ssl.certificate.location expired at {expired_at:%FT%TZ}: "
            "put a new one in its place"
        )
    return (
        "See that the certificate in kafka.ssl.certificate.location is signed by an authority that "
        "the broker trusts"
    )


def _login_failed(address: str, settings: KafkaSettings, error: BaseException) -> Attempt | None:
    mechanism = settings.client.get("sasl_mechanism", "PLAIN")
    match error:
        case AuthenticationFailedError() | SaslAuthenticationFailed():
            if mechanism == "OAUTHBEARER":
                return _token_refused(address)
            what = f"{address} refuses the user by {mechanism}"
            advice = "Correct kafka.sasl.username and kafka.sasl.password"
            if mechanism.startswith("SCRAM"):
                advice += (
                    "; a SCRAM user must exist for just this mechanism, and docs/security.md says "
                    "under Rights how to make one"
                )
        case UnsupportedSaslMechanismError():
            what = f"{address} does not take kafka.sasl.mechanism {mechanism}"
            advice = "Set kafka.sasl.mechanism to one that the listener has enabled"
        case IllegalSaslStateError():
            what = f"the listener at {address} is one without SASL"
            advice = "Set kafka.security.protocol to PLAINTEXT or SSL, or name a listener with SASL"
        case _:
            return None
    return Attempt(address, what, advice, refused=True)


def _not_answered(address: str, settings: KafkaSettings, error: BaseException) -> Attempt:
    protocol = settings.client.get("security_protocol", "PLAINTEXT")
    match error:
        case socket.gaierror():
            what = f"the name in {address} cannot be resolved"
            advice = "Correct kafka.bootstrap.servers, or this machine's DNS"
        case TimeoutError() | ConnectionResetError() | KafkaConnectionError():
            what = f"something listens at {address}, but lets nobody in by {protocol}"
            advice = (
                f"See whether kafka.security.protocol ({protocol}) is the listener's, and whether "
                "a firewall is in between"
            )
        case OSError():
            what = f"nobody can be reached at {address} ({type(error).__name__})"
            advice = "See whether Kafka is running, and whether kafka.bootstrap.servers is right"
        case _:
            what = f"{address} answers with an error ({type(error).__name__})"
            advice = "See the broker's log, and the settings under kafka in the configuration"
            return Attempt(address, what, advice)
    return Attempt(address, what, advice, answered=False)
