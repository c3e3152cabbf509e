"""Tokens for SASL/OAUTHBEARER (RFC 7628, KIP-255, KIP-768): fetched, kept, and renewed in time."""

import asyncio
import base64
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
from aiokafka import conn
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError, SaslAuthenticationFailed

from consentgate.core.partition import Moment
from consentgate.kafka.clock import read_clock
from consentgate.kafka.tls import ReloadingContext

log = logging.getLogger(__name__)

FETCH_SECONDS_MAX = 10.0
"""How long the token endpoint may take; a connection to a broker waits for it."""

RENEWED_AFTER = 0.8
"""The part of its life after which a token is renewed; so long as it lives, it serves meanwhile."""

BACKOFF_SECONDS_MIN, BACKOFF_SECONDS_MAX = 0.5, 30.0
"""How long the endpoint is left alone after a failure: several clients connect over and over."""

ANSWER_BYTES_MAX = 1 << 20

SECONDS_MAX = 1e9
"""No token lives longer."""

_ERROR_CODE = re.compile(r"[a-z_]{1,40}")


class NoToken(KafkaError):  # type: ignore[misc]
    """There is no token to log in with. The client takes it for a connection that failed."""

    def __init__(self, problem: str, advice: str, *, refused: bool) -> None:
        """`refused`: somebody was there and said no, so that the configuration has to be mended."""
        super().__init__(problem)
        self.problem = problem
        self.advice = advice
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and when it was asked for."""

    text: str = field(repr=False)
    asked_at: Moment
    lives_ms: int  # 0: not known

    def age_of(self, now: Moment) -> float:
        """Which part of its life is over; 1 and more: all of it."""
        return now.since_ms(self.asked_at) / self.lives_ms if self.lives_ms else 1.0


class TokenKeeper(AbstractTokenProvider):  # type: ignore[misc]
    """The token of all connections: one that lives is used by all, and fetched once for all."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Token]],
        extensions: Mapping[str, str],
        clock: Callable[[], Moment] = read_clock,
    ) -> None:
        """`fetch` gets a new token, or raises `NoToken`; `extensions` are sent along with each."""
        self._fetch = fetch
        self._extensions = dict(extensions)
        self._clock = clock
        self._token: Token | None = None
        self._fetching: asyncio.Task[Token] | None = None
        self._failure: NoToken | None = None
        self._backoff_seconds = BACKOFF_SECONDS_MIN
        self._again_at = 0.0

    async def token(self) -> str:
        """A token that has not expired.

        Raises:
            NoToken: if there is none, and none is to be had.
        """
        kept = self._token
        if kept is not None and kept.age_of(self._clock()) < RENEWED_AFTER:
            return kept.text
        try:
            return (await self._renewed()).text
        except NoToken as failure:
            if kept is None or kept.age_of(self._clock()) >= 1:
                raise
            log.warning("the token could not be renewed, and serves on: %s", failure)
            return kept.text

    def extensions(self) -> dict[str, str]:
        """What is sent along with the token (KIP-342)."""
        return self._extensions

    async def _renewed(self) -> Token:
        if self._fetching is None or self._fetching.done():
            if self._failure is not None and time.monotonic() < self._again_at:
                raise self._failure.with_traceback(None)
            self._fetching = asyncio.create_task(self._fetch_and_keep())
        # Whoever waits may be cancelled; what is fetched is for the others, too.
        return await asyncio.shield(self._fetching)

    async def _fetch_and_keep(self) -> Token:
        try:
            token = await self._fetch()
        except NoToken as failure:
            self._failure = failure
            self._again_at = time.monotonic() + self._backoff_seconds
            self._backoff_seconds = min(2 * self._backoff_seconds, BACKOFF_SECONDS_MAX)
            raise
        self._token, self._failure = token, None
        self._backoff_seconds = BACKOFF_SECONDS_MIN
        return token


@dataclass(frozen=True, slots=True)
class TokenEndpoint:
    """Where tokens are fetched by the client credentials grant (RFC 6749, section 4.4)."""

    url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str | None
    tls: ReloadingContext | None  # None: the endpoint is not reached by TLS

    async def fetch(self) -> Token:
        """A new token.

        Raises:
            NoToken: saying which setting to look at.
        """
        asked_at = read_clock()
        try:
            status, body = await self._ask()
        except TimeoutError:
            raise self._unreachable(f"did not answer within {FETCH_SECONDS_MAX:.0f} s") from None
        except aiohttp.ClientConnectorCertificateError as error:
            message = getattr(error.certificate_error, "verify_message", "no reason given")
            raise NoToken(
                f"the certificate of the token endpoint {self._shown} is not accepted: {message}",
                "Name the authority that signed it in kafka.https.ca.location",
                refused=True,
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._unreachable(f"cannot be reached ({type(error).__name__})") from None
        if status != 200:
            raise self._refusal(status, body)
        return self._read(body, asked_at)

    async def _ask(self) -> tuple[int, bytes]:
        form = {"grant_type": "client_credentials"}
        if self.scope is not None:
            form["scope"] = self.scope
        login = base64.b64encode(f"{self.client_id}:{self.client_secret}".encode()).decode()
        timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS_MAX)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(
                self.url,
                data=form,
                headers={"Accept": "application/json", "Authorization": f"Basic {login}"},
                # A redirect would take the secret to somewhere else.
                allow_redirects=False,
                ssl=True if self.tls is None else self.tls,
            ) as response,
        ):
            return response.status, await response.content.read(ANSWER_BYTES_MAX)

    def _refusal(self, status: int, body: bytes) -> NoToken:
        code = _member(body, "error")
        # Only what RFC 6749 defines is shown: a description may hold anything.
        named = f" {code}" if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""
        problem = f"the token endpoint {self._shown} refuses (HTTP {status}{named})"
        if status >= 500 or status == 429:
            return NoToken(problem, "See its log, or wait until it is well", refused=False)
        settings = (
            "kafka.sasl.oauthbearer.scope"
            if code == "invalid_scope"
            else "kafka.sasl.oauthbearer.client.id and kafka.sasl.oauthbearer.client.secret"
            if code == "invalid_client" or status in {401, 403}
            else "kafka.sasl.oauthbearer.token.endpoint.url, and see that the client may use the "
            "grant client_credentials"
        )
        return NoToken(problem, f"Correct {settings}", refused=True)

    def _read(self, body: bytes, asked_at: Moment) -> Token:
        text = _member(body, "access_token")
        # By RFC 6750 a token has no other characters; they would tear the message apart.
        if not isinstance(text, str) or not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", text):
            raise NoToken(
                f"the token endpoint {self._shown} answers without an access_token",
                "See that kafka.sasl.oauthbearer.token.endpoint.url is the URL of tokens",
                refused=True,
            )
        return Token(text, asked_at, _lives_ms(_member(body, "expires_in"), text))

    def _unreachable(self, how: str) -> NoToken:
        return NoToken(
            f"the token endpoint {self._shown} {how}",
            "See whether kafka.sasl.oauthbearer.token.endpoint.url is right, and whether it can be "
            "reached from this machine",
            refused=False,
        )

    @property
    def _shown(self) -> str:
        """The URL without what may be secret in it."""
        return shown_url(self.url)


@dataclass(frozen=True, slots=True)
class UnsecuredTokens:
    """Makes tokens that nobody has signed (RFC 7519, section 6), for brokers that take them."""

    claims: Mapping[str, Any]
    lives_ms: int

    async def fetch(self) -> Token:
        """A new token."""
        now = read_clock()
        times = {"iat": now.unix_ms / 1000, "exp": (now.unix_ms + self.lives_ms) / 1000}
        parts = [
            _base64url(orjson.dumps(each)) for each in ({"alg": "none"}, {**self.claims, **times})
        ]
        return Token(".".join([*parts, ""]), now, self.lives_ms)


class _HeedfulAuthenticator(conn.OAuthAuthenticator):  # type: ignore[misc]
    """Looks at what the broker says of the token (RFC 7628, section 3.2.2)."""

    async def step(self, payload: bytes | None) -> tuple[bytes, bool] | None:
        if payload:
            raise SaslAuthenticationFailed("the broker refuses the token")
        sent: tuple[bytes, bool] | None = await super().step(payload)
        return sent


def heed_refused_tokens() -> None:
    """Have the client notice that a token is refused.

    By itself version 0.14 takes any answer for a consent, and what it asks next is answered with
    nothing: a cluster without brokers, without topics and without records.
    """
    conn.OAuthAuthenticator = _HeedfulAuthenticator


def shown_url(url: str) -> str:
    """A URL without what may be secret in it: user, query and fragment."""
    scheme, _, rest = url.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def _lives_ms(expires_in: object, text: str) -> int:
    """How long the token lives; 0 where nobody says."""
    # RFC 6749 recommends to say it, and does not ask for it; a JWT says it, too. Some say it in a
    # string.
    seconds = _number(expires_in)
    if seconds is None:
        issued, expires = (_number(_claims(text).get(name)) for name in ("iat", "exp"))
        seconds = None if issued is None or expires is None else expires - issued
    return 0 if seconds is None else int(1000 * max(0.0, min(seconds, SECONDS_MAX)))


def _number(value: object) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value):
        return float(value)
    return float(value) if isinstance(value, int | float) else None


def _claims(text: str) -> dict[str, Any]:
    """What a JWT claims; nothing where the token is no JWT. It is not verified: brokers do that."""
    try:
        body = text.split(".")[1]
        found = orjson.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _member(body: bytes, name: str) -> object:
    try:
        found = orjson.loads(body)
    except ValueError:
        return None
    return found.get(name) if isinstance(found, dict) else None


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
