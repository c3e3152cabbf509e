"""A broker that asks who is there: TLS, every way to log in, and access control lists."""

import argparse
import base64
import json
import re
import shlex
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from certificates import Authority
from consentgate.tools.broker import HOST, EmbeddedKafka
from harness import until

ROOT = Path(__file__).parents[2]

WORKER, PASSWORD = "worker", "scram-secret-Xy9"
"""Who may log in by SCRAM."""

CLIENT_SECRET = "client-secret-Zq7"

SECURITY = "org.apache.kafka.common.security"

_OPERATIONS = {
    "Read": 3,
    "Write": 4,
    "Create": 5,
    "Delete": 6,
    "Describe": 8,
    "DescribeConfigs": 10,
}
_TOPIC, _GROUP, _CLUSTER, _TRANSACTIONAL_ID = 2, 3, 4, 5
_LITERAL, _PREFIXED = 3, 4
_ALLOW = 3


class Acl(NamedTuple):
    """One right of one user."""

    kind: int
    name: str
    pattern: int
    operation: str

    def __str__(self) -> str:
        kind = {_TOPIC: "topic", _GROUP: "group", _CLUSTER: "cluster", _TRANSACTIONAL_ID: "id"}
        return f"{self.operation} on {kind[self.kind]} {self.name}"


def documented_acls() -> dict[str, list[Acl]]:
    """The access control lists that docs/security.md grants, by the command that needs them."""
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    commands: dict[str, list[Acl]] = {}
    for block in re.findall(r"^```sh\n(# consentgate .*?)^```$", page, re.MULTILINE | re.DOTALL):
        acls: list[Acl] = []
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("# consentgate "):
                acls = []
                for command in line.removeprefix("# consentgate ").split(", "):
                    assert command not in commands, f"{command} stands there twice"
                    commands[command] = acls
            elif line:
                acls.extend(_read(line))
    return commands


def _read(line: str) -> Iterator[Acl]:
    program, *arguments = shlex.split(line)
    assert program == "grant", line
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--operation", action="append", required=True)
    parser.add_argument("--topic", action="append", default=[])
    parser.add_argument("--group")
    parser.add_argument("--transactional-id")
    parser.add_argument("--cluster", action="store_const", const="kafka-cluster")
    parser.add_argument("--resource-pattern-type", default="literal")
    found = parser.parse_args(arguments)
    pattern = {"literal": _LITERAL, "prefixed": _PREFIXED}[found.resource_pattern_type]
    resources = [(_TOPIC, topic) for topic in found.topic] + [
        (_GROUP, found.group),
        (_TRANSACTIONAL_ID, found.transactional_id),
        (_CLUSTER, found.cluster),
    ]
    for kind, name in resources:
        for operation in found.operation if name else ():
            yield Acl(kind, name, pattern, operation)


class Rights:
    """Grants rights and takes them away, as somebody who may."""

    def __init__(self, admin: AIOKafkaAdminClient) -> None:
        self._admin = admin

    async def grant(self, user: str, acls: Iterable[Acl]) -> None:
        for acl in acls:
            request = CreateAclsRequest(*acl[:3], f"User:{user}", "*", *_rest(acl))
            response = await self._admin._send_request(request)
            assert [error[0] for error in response.creation_responses] == [0], response
            await until(lambda acl=acl: self._has(user, acl), f"{acl} is granted")

    async def revoke(self, user: str, acls: Iterable[Acl]) -> None:
        for acl in acls:
            request = DeleteAclsRequest(*acl[:3], f"User:{user}", "*", *_rest(acl))
            (answer,) = (await self._admin._send_request(request)).filter_responses
            assert (answer[0], len(answer[2])) == (0, 1), answer

            async def is_gone(acl: Acl = acl) -> bool:
                return not await self._has(user, acl)

            await until(is_gone, f"{acl} is taken away")

    async def _has(self, user: str, acl: Acl) -> bool:
        """What the broker itself knows of; the controller decides a little earlier."""
        request = DescribeAclsRequest(*acl[:3], f"User:{user}", "*", *_rest(acl))
        return bool((await self._admin._send_request(request)).resources)


def _rest(acl: Acl) -> tuple[int, int]:
    return _OPERATIONS[acl.operation], _ALLOW


# Tokens.


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Issuer:
    """Signs tokens."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwks(self) -> str:
        """The key with which signatures are checked (RFC 7517)."""
        numbers = self._key.public_key().public_numbers()
        key = {
            "kty": "RSA",
            "alg": "RS256",
            "use": "sig",
            "kid": "k1",
            "n": _encoded(numbers.n.to_bytes(256)),
            "e": _encoded(numbers.e.to_bytes(3)),
        }
        return json.dumps({"keys": [key]})

    def token(self, subject: str, seconds: float) -> str:
        now = time.time()
        claims = {"sub": subject, "iat": now, "exp": now + seconds, "aud": "kafka", "scope": "k"}
        head = {"alg": "RS256", "typ": "JWT", "kid": "k1"}
        signed = ".".join(_encoded(json.dumps(part).encode()) for part in (head, claims))
        signature = self._key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"


@dataclass(slots=True)
class Endpoint:
    """Where tokens are fetched: what it was asked, and how it answers."""

    issuer: Issuer
    url: str = ""
    seconds: float = 3600.0
    away: bool = False
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        form = dict(await request.post())
        self.asked.append(form)
        if self.away:
            return web.Response(status=503)
        expected = base64.b64encode(f"{WORKER}:{CLIENT_SECRET}".encode()).decode()
        if request.headers.get("Authorization") != f"Basic {expected}":
            return web.json_response({"error": "invalid_client"}, status=401)
        token = self.issuer.token(WORKER, self.seconds)
        return web.json_response(
            {"access_token": token, "token_type": "Bearer", "expires_in": self.seconds}
        )

    def settings(self) -> dict[str, Any]:
        """Settings of a client that gets its tokens here."""
        return {
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": self.url,
            "sasl.oauthbearer.client.id": WORKER,
            "sasl.oauthbearer.client.secret": CLIENT_SECRET,
            "sasl.oauthbearer.scope": "kafka",
        }


@asynccontextmanager
async def serving(endpoint: Endpoint) -> AsyncIterator[Endpoint]:
    app = web.Application()
    app.router.add_post("/token", endpoint.answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, 0).start()
    endpoint.url = f"http://{HOST}:{runner.addresses[0][1]}/token"
    try:
        yield endpoint
    finally:
        await runner.cleanup()


# The broker.


@dataclass(slots=True)
class Secured:
    """The broker, and the files that it was made with."""

    kafka: EmbeddedKafka
    directory: Path
    authority: Authority
    issuer: Issuer

    def keep(self) -> None:
        """Write the broker's own certificate, and whom it trusts; a restart reads them."""
        pem, key = self.authority.sign("broker", hosts=(HOST,))
        (self.directory / "broker.pem").write_bytes(key + pem)
        (self.directory / "broker-trusts.pem").write_bytes(self.authority.pem)

    def tls(self, directory: Path, authority: Authority | None = None) -> dict[str, Any]:
        """Settings of a client that trusts the broker, by a file of its own."""
        path = directory / "ca.pem"
        path.write_bytes((authority or self.authority).pem)
        return {"ssl.ca.location": str(path)}

    def on(self, listener: str, **settings: Any) -> dict[str, Any]:
        return {"bootstrap.servers": f"{HOST}:{self.kafka.port_of(listener)}", **settings}

    def scram(self, directory: Path, mechanism: str = "SCRAM-SHA-512") -> dict[str, Any]:
        return {
            **self.on("LOGIN"),
            **self.tls(directory),
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "sasl.username": WORKER,
            "sasl.password": PASSWORD,
        }

    def plain(self, user: str) -> dict[str, Any]:
        """By a listener that takes anybody whose name is one of `USERS`."""
        return {
            **self.on("BASIC"),
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": user,
            "sasl.password": f"{user}-secret",
        }


USERS = tuple(f"user{number}" for number in range(20))


@contextmanager
def secured_kafka(directory: Path) -> Iterator[Secured]:
    authority, issuer = Authority.make(), Issuer()
    jwks = directory / "jwks.json"
    jwks.write_text(issuer.jwks())
    users = " ".join(f'user_{user}="{user}-secret"' for user in USERS)
    config = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "false",
        # Who comes by the listener without TLS: the broker itself, and the tests as its operator.
        "super.users": "User:ANONYMOUS",
        "group.min.session.timeout.ms": "1000",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(directory / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(directory / "broker-trusts.pem"),
        "ssl.principal.mapping.rules": "RULE:^CN=(.*?)$/$1/",
        "listener.name.mutual.ssl.client.auth": "required",
        "listener.name.login.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        **{
            f"listener.name.login.{mechanism}.sasl.jaas.config": (
                f"{SECURITY}.scram.ScramLoginModule required;"
            )
            for mechanism in ("scram-sha-256", "scram-sha-512")
        },
        "listener.name.login.oauthbearer.sasl.jaas.config": (
            f"{SECURITY}.oauthbearer.OAuthBearerLoginModule required;"
        ),
        "listener.name.login.oauthbearer.sasl.server.callback.handler.class": (
            f"{SECURITY}.oauthbearer.OAuthBearerValidatorCallbackHandler"
        ),
        # A session is as long as the token that it began with lives, as with many services.
        "listener.name.login.oauthbearer.connections.max.reauth.ms": "3600000",
        "sasl.oauthbearer.jwks.endpoint.url": jwks.as_uri(),
        "sasl.oauthbearer.expected.audience": "kafka",
        "sasl.oauthbearer.clock.skew.seconds": "0",
        "listener.name.basic.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.basic.plain.sasl.jaas.config": (
            f"{SECURITY}.plain.PlainLoginModule required {users};"
        ),
    }
    kafka = EmbeddedKafka(
        config=config,
        listeners={"MUTUAL": "SSL", "LOGIN": "SASL_SSL", "BASIC": "SASL_PLAINTEXT"},
        scram=[(WORKER, PASSWORD)],
        system_properties={"org.apache.kafka.sasl.oauthbearer.allowed.urls": jwks.as_uri()},
    )
    secured = Secured(kafka, directory, authority, issuer)
    secured.keep()
    with kafka:
        yield secured
