"""Tokens: fetched once for all, renewed in time, and no word of a secret when that fails."""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiokafka import conn
from aiokafka.errors import KafkaError, SaslAuthenticationFailed

from certificates import Authority
from consentgate.core.partition import Moment
from consentgate.kafka import tokens
from consentgate.kafka.tls import ReloadingContext, TlsFiles
from consentgate.kafka.tokens import (
    NoToken,
    Token,
    TokenEndpoint,
    TokenKeeper,
    UnsecuredTokens,
    heed_refused_tokens,
    shown_url,
)

SECRET = "hunter2"
LIVES_MS = 100_000


class World:
    """A clock that stands still, and an endpoint that counts."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.fetched = 0
        self.failure: NoToken | None = None
        self.lives_ms = LIVES_MS
        self.keeper = TokenKeeper(self.fetch, {"a": "b"}, self.clock)

    def clock(self) -> Moment:
        return Moment(self.now_ms, self.now_ms)

    async def fetch(self) -> Token:
        self.fetched += 1
        asked_at = self.clock()
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return Token(f"t{self.fetched}", asked_at, self.lives_ms)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(tokens, "BACKOFF_SECONDS_MIN", 0.0)
    return World()


async def test_connections_at_the_same_time_share_one_fetch(world: World) -> None:
    assert await asyncio.gather(*(world.keeper.token() for _ in range(20))) == ["t1"] * 20
    assert (await world.keeper.token(), world.fetched) == ("t1", 1)


async def test_a_token_is_renewed_before_it_expires(world: World) -> None:
    await world.keeper.token()
    world.now_ms = int(0.79 * LIVES_MS)
    assert await world.keeper.token() == "t1"
    world.now_ms = int(0.81 * LIVES_MS)
    assert await world.keeper.token() == "t2"


async def test_a_token_that_lives_serves_on_where_it_cannot_be_renewed(world: World) -> None:
    await world.keeper.token()
    world.failure = NoToken("away", "wait", refused=False)
    world.now_ms = int(0.99 * LIVES_MS)
    assert await world.keeper.token() == "t1"
    world.now_ms = LIVES_MS
    with pytest.raises(NoToken):
        await world.keeper.token()
    world.failure = None
    assert await world.keeper.token() == f"t{world.fetched}"


async def test_a_token_of_unknown_life_is_not_used_twice(world: World) -> None:
    world.lives_ms = 0
    assert [await world.keeper.token(), await world.keeper.token()] == ["t1", "t2"]


async def test_an_endpoint_that_refuses_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    world.failure = NoToken("no", "set it", refused=True)
    monkeypatch.setattr(tokens.time, "monotonic", lambda: world.now_ms / 1000)
    for at_ms, fetched in ((0, 1), (499, 1), (500, 2), (1_499, 2), (1_500, 3)):
        world.now_ms = at_ms
        with pytest.raises(NoToken):
            await world.keeper.token()
        assert world.fetched == fetched, at_ms
    for _ in range(10):
        world.now_ms += 40_000
        with pytest.raises(NoToken):
            await world.keeper.token()
    assert world.fetched == 13, "and never for longer than half a minute"


async def test_one_that_waits_can_be_cancelled_and_the_others_get_their_token(
    world: World,
) -> None:
    first, second = (asyncio.create_task(world.keeper.token()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "t1"
    assert first.cancelled()


def test_a_failure_is_one_that_the_client_outlasts() -> None:
    # It goes on after these, and its tasks end with any other.
    assert issubclass(NoToken, KafkaError)


async def test_extensions_are_sent_along(world: World) -> None:
    sent = conn.OAuthAuthenticator(sasl_oauth_token_provider=world.keeper)
    assert await sent.step(None) == (b"n,,\x01auth=Bearer t1\x01a=b\x01\x01", True)


async def test_a_token_that_the_broker_refuses_is_noticed(world: World) -> None:
    heed_refused_tokens()
    for answer, refused in ((b"", False), (b'{"status":"invalid_token"}', True)):
        sending = conn.OAuthAuthenticator(sasl_oauth_token_provider=world.keeper)
        await sending.step(None)
        if refused:
            with pytest.raises(SaslAuthenticationFailed):
                await sending.step(answer)
        else:
            assert await sending.step(answer) is None


def test_a_token_is_not_shown() -> None:
    assert SECRET not in repr(Token(SECRET, Moment(0, 0), 1))
    assert SECRET not in repr(TokenEndpoint("https://idp", "id", SECRET, None, None))


# The endpoint.


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def endpoint(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/token", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()


def replying(body: Any, status: int = 200, **headers: str) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status, headers=headers)

    return answer


async def fetched(answer: Answer, scope: str | None = None) -> Token:
    async with endpoint(answer) as place:
        return await TokenEndpoint(f"http://{place}", "id", SECRET, scope, None).fetch()


async def refused(answer: Answer) -> NoToken:
    with pytest.raises(NoToken) as raised:
        await fetched(answer)
    assert SECRET not in f"{raised.value} {raised.value.advice}"
    return raised.value


async def test_client_and_scope_are_sent_as_the_standard_says() -> None:
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.headers["Authorization"], dict(await request.post())))
        return web.json_response({"access_token": "abc", "expires_in": 60})

    for scope in (None, "a b"):
        found = await fetched(answer, scope)
        assert (found.text, found.lives_ms) == ("abc", 60_000)
    login = "Basic " + base64.b64encode(f"id:{SECRET}".encode()).decode()
    form = {"grant_type": "client_credentials"}
    assert asked == [(login, form), (login, {**form, "scope": "a b"})]


def jwt(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.c2ln"


@pytest.mark.parametrize(
    ("text", "expires_in", "lives_ms"),
    [
        ("opaque", 60, 60_000),
        ("opaque", "3599", 3_599_000),
        ("opaque", None, 0),
        ("opaque", "soon", 0),
        ("opaque", -5, 0),
        ("opaque", 1e300, 1_000_000_000_000),
        (jwt({"iat": 100, "exp": 160}), None, 60_000),
        (jwt({"iat": 100, "exp": 160}), 30, 30_000),
        (jwt({"exp": 160}), None, 0),
        (jwt([]), None, 0),
        ("a.%%%.c".replace("%", "_"), None, 0),
    ],
)
async def test_how_long_a_token_lives(text: str, expires_in: object, lives_ms: int) -> None:
    found = await fetched(replying({"access_token": text, "expires_in": expires_in}))
    assert found.lives_ms == lives_ms


@pytest.mark.parametrize(
    ("status", "body", "setting", "is_refusal"),
    [
        (401, {"error": "invalid_client"}, "client.secret", True),
        (400, {"error": "invalid_client"}, "client.secret", True),
        (400, {"error": "invalid_scope"}, "scope", True),
        (400, {"error": "unsupported_grant_type"}, "token.endpoint.url", True),
        (403, "Forbidden", "client.secret", True),
        (404, "", "token.endpoint.url", True),
        (500, "", "log", False),
        (503, "", "log", False),
        (429, "", "log", False),
    ],
)
async def test_a_refusal_names_what_to_look_at(
    status: int, body: object, setting: str, is_refusal: bool
) -> None:
    failure = await refused(replying(body, status))
    assert f"(HTTP {status}" in failure.problem
    assert setting in failure.advice
    assert failure.refused is is_refusal


async def test_no_description_is_shown() -> None:
    body = {"error": f"no {SECRET}", "error_description": f"{SECRET} is not the secret"}
    assert "(HTTP 401)" in (await refused(replying(body, 401))).problem


async def test_the_secret_does_not_follow_a_redirect() -> None:
    asked: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization", ""))
        return web.json_response({"access_token": "abc"})

    async with endpoint(elsewhere) as place:
        failure = await refused(replying("", 307, Location=f"http://{place}"))
    assert ("HTTP 307" in failure.problem, asked) == (True, [])


@pytest.mark.parametrize(
    "body", ["", "<html>", "[]", {}, {"access_token": 5}, {"access_token": "a\x01b"}]
)
async def test_an_answer_without_a_token_is_refused(body: object) -> None:
    assert "without an access_token" in (await refused(replying(body))).problem


async def test_an_endpoint_that_is_not_there_is_told() -> None:
    with pytest.raises(NoToken) as raised:
        await TokenEndpoint("http://127.0.0.1:1/token", "id", SECRET, None, None).fetch()
    assert not raised.value.refused
    assert "cannot be reached" in raised.value.problem


async def test_an_endpoint_that_does_not_answer_is_not_awaited_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokens, "FETCH_SECONDS_MAX", 0.2)

    async def wait(_: web.Request) -> web.Response:
        await asyncio.sleep(1)
        return web.Response()

    assert "did not answer" in (await refused(wait)).problem


async def test_the_endpoint_s_certificate_is_checked(tmp_path: Path) -> None:
    authority = Authority.make()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*authority.give(tmp_path, "idp", hosts=("127.0.0.1",)))
    trusted = tmp_path / "ca.pem"
    async with endpoint(replying({"access_token": "abc"}), server) as place:
        for trusts, is_taken in ((authority, True), (Authority.make("another"), False)):
            trusted.write_bytes(trusts.pem)
            tls = ReloadingContext(TlsFiles(str(trusted), "https.ca.location"))
            asking = TokenEndpoint(f"https://{place}", "id", SECRET, None, tls).fetch()
            if is_taken:
                assert (await asking).text == "abc"
                continue
            with pytest.raises(NoToken) as raised:
                await asking
            assert raised.value.refused
            assert "kafka.https.ca.location" in raised.value.advice


def test_a_url_is_shown_without_what_may_be_secret() -> None:
    shown = shown_url(f"https://user:{SECRET}@idp:8443/a/token?key={SECRET}#{SECRET}")
    assert shown == "https://idp:8443/a/token"


async def test_an_unsecured_token_says_who_for_how_long() -> None:
    made = await UnsecuredTokens({"sub": "worker"}, 60_000).fetch()
    head, body, signature = made.text.split(".")
    assert json.loads(base64.urlsafe_b64decode(head + "==")) == {"alg": "none"}
    claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert (claims["sub"], signature, made.lives_ms) == ("worker", "", 60_000)
    assert claims["exp"] - claims["iat"] == pytest.approx(60)
