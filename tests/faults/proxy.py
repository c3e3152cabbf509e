"""A TCP proxy before one broker that understands Kafka's frames, and misbehaves as it is told to.

A rule is a predicate over requests and an action: whichever request of whichever client it means,
it acts on that one, and remembers it, so that a test can prove that its fault has landed.

What the proxy does to a connection, TCP can do: bytes are lost only together with all that follow
them on that connection, and what a client has sent before it gave up still reaches the broker.
"""

import asyncio
import contextlib
import enum
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from consentgate.tools import broker
from consentgate.tools.broker import HOST, EmbeddedKafka

BUFFER_BYTES = 1 << 20


class Api(enum.IntEnum):
    """Requests that rules are about, by Kafka's numbers."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    JOIN_GROUP = 11
    HEARTBEAT = 12
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


TRANSACTIONAL = {
    Api.PRODUCE: 8,
    Api.INIT_PRODUCER_ID: 1,
    Api.ADD_PARTITIONS_TO_TXN: 2,
    Api.ADD_OFFSETS_TO_TXN: 2,
    Api.END_TXN: 2,
    Api.TXN_OFFSET_COMMIT: 2,
}
"""Begin with a transactional id. Up to these versions a string has a length of two bytes."""


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way; the times are monotonic, and None until it has come so far."""

    connection: int
    api_key: int
    api_version: int
    correlation_id: int
    client_id: str | None
    frame: bytes = field(repr=False)
    seen_at: float = field(default_factory=time.monotonic)
    passed_at: float | None = None
    answered_at: float | None = None
    returned_at: float | None = None
    answer: bytes | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, connection: int, frame: bytes) -> Self:
        """A request from its frame, without the size."""
        api_key, api_version, correlation_id, length = struct.unpack_from(">hhih", frame)
        client_id = None if length < 0 else frame[10 : 10 + length].decode()
        return cls(connection, api_key, api_version, correlation_id, client_id, frame)

    @property
    def transactional_id(self) -> str | None:
        """Whose transaction it is about, if it is about one."""
        if self.api_key not in TRANSACTIONAL:
            return None
        assert self.api_version <= TRANSACTIONAL[self.api_key], "encoded as it is known here"
        start = 10 + len((self.client_id or "").encode())
        (length,) = struct.unpack_from(">h", self.frame, start)
        return None if length < 0 else self.frame[start + 2 :][:length].decode()

    @property
    def commits(self) -> bool:
        """Whether it is an EndTxn that commits."""
        return self.api_key == Api.END_TXN and self.frame[-1] == 1


Predicate = Callable[[Request], bool]


class PassOn:
    """What happens to a request and its response that no rule is about."""

    async def request(self, link: "Link", request: Request) -> None:
        """Do what is to be done with a request that has come from the client."""
        await link.pass_request(request)

    async def response(self, link: "Link", request: Request, frame: bytes) -> None:
        """Do what is to be done with the broker's answer to the request."""
        await link.pass_response(request, frame)


@dataclass(frozen=True, slots=True)
class DelayRequest(PassOn):
    """The broker gets the request late, even if the client has given the connection up by then."""

    seconds: float

    async def request(self, link: "Link", request: Request) -> None:
        await asyncio.sleep(self.seconds)
        await link.pass_request(request)


@dataclass(frozen=True, slots=True)
class DelayResponse(PassOn):
    """The client gets the response late."""

    seconds: float

    async def response(self, link: "Link", request: Request, frame: bytes) -> None:
        await asyncio.sleep(self.seconds)
        await link.pass_response(request, frame)


@dataclass(frozen=True, slots=True)
class HoldRequest(PassOn):
    """The broker gets the request when it is let go."""

    let_go: asyncio.Event

    async def request(self, link: "Link", request: Request) -> None:
        await self.let_go.wait()
        await link.pass_request(request)


class DropRequest(PassOn):
    """The broker gets neither the request nor anything else on this connection; it stays open."""

    async def request(self, link: "Link", request: Request) -> None:
        link.broker_is_deaf = True


class SwallowResponse(PassOn):
    """The client gets neither the response nor anything else on this connection; it stays open."""

    async def response(self, link: "Link", request: Request, frame: bytes) -> None:
        link.client_is_deaf = True


class ResetInsteadOfResponse(PassOn):
    """The broker has answered; the client's connection is reset before it gets to know."""

    async def response(self, link: "Link", request: Request, frame: bytes) -> None:
        link.reset()


class ResetAfterRequest(PassOn):
    """The client's connection is reset as soon as the broker has been sent the request."""

    async def request(self, link: "Link", request: Request) -> None:
        await link.pass_request(request)
        link.reset()


PASS_ON = PassOn()


@dataclass(slots=True)
class Rule:
    """Acts on the next requests for which the predicate holds."""

    matches: Predicate
    action: PassOn
    times: int = 1
    landed: list[Request] = field(default_factory=list)
    """The requests that it has acted on."""

    def takes(self, request: Request) -> bool:
        """Whether the rule acts on this request; then it is counted."""
        if len(self.landed) >= self.times or not self.matches(request):
            return False
        self.landed.append(request)
        return True


class Proxy:
    """Listens on a port of its own and passes on to the broker's, as its rules say."""

    def __init__(self, port: int, broker_port: int) -> None:
        self._port = port
        self._broker_port = broker_port
        self._server: asyncio.Server | None = None
        self._links: dict[Link, asyncio.Task[None]] = {}
        self._numbers = 0
        self._rules: list[Rule] = []
        self._cut: dict[str, asyncio.Event] = {}
        self._failures: list[BaseException] = []
        self.requests: Counter[tuple[str | None, int]] = Counter()
        """How many requests came, by client id and api key."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._accept, HOST, self._port, limit=BUFFER_BYTES
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None, "entered"
        self._server.close()
        tasks = list(self._links.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not self._failures, self._failures

    @property
    def bootstrap_servers(self) -> str:
        """The address for clients that are to come through the proxy."""
        return f"{HOST}:{self._port}"

    def add(self, matches: Predicate, action: PassOn, times: int = 1) -> Rule:
        """Have the action done to the next requests that match; the first rule that does counts."""
        rule = Rule(matches, action, times)
        self._rules.append(rule)
        return rule

    def cut(self, client_id: str) -> None:
        """Pass nothing on any more for this client, either way, on no connection, and close none.

        What was under way is passed on once `heal` is called, as TCP would send it again.
        """
        self._cut[client_id] = asyncio.Event()

    def heal(self, client_id: str) -> None:
        """Undo `cut`."""
        self._cut.pop(client_id).set()

    def forget(self, client_id: str) -> int:
        """Let all connections that the client has be of no use for ever, and close none; how many.

        So does a firewall that has lost its state. New connections work.
        """
        links = self._links_of(client_id)
        for link in links:
            link.broker_is_deaf = link.client_is_deaf = True
        return len(links)

    def connections(self, client_id: str) -> int:
        """How many connections the client has open."""
        return len(self._links_of(client_id))

    def reset(self, client_id: str) -> int:
        """Reset all connections of the client (RST); how many that were."""
        links = self._links_of(client_id)
        for link in links:
            link.reset()
        return len(links)

    def action_on(self, request: Request) -> PassOn:
        """What is to be done with a request that has just come."""
        self.requests[request.client_id, request.api_key] += 1
        for rule in self._rules:
            if rule.takes(request):
                return rule.action
        return PASS_ON

    async def passable(self, client_id: str | None) -> None:
        """Return as soon as the client is not cut off."""
        while client_id is not None and client_id in self._cut:
            await self._cut[client_id].wait()

    def _links_of(self, client_id: str) -> list["Link"]:
        return [link for link in self._links if link.client_id == client_id and link.is_open]

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._numbers += 1
        link = Link(self, self._numbers, reader, writer)
        task = asyncio.create_task(link.run(self._broker_port))
        self._links[link] = task
        task.add_done_callback(lambda _: self._ended(link))

    def _ended(self, link: "Link") -> None:
        task = self._links.pop(link)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)


class Link:
    """One connection of a client, and the one to the broker that belongs to it."""

    def __init__(
        self,
        proxy: Proxy,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._proxy = proxy
        self._number = number
        self._client = (reader, writer)
        self._to_broker: asyncio.StreamWriter | None = None
        self._under_way: deque[tuple[Request, PassOn]] = deque()
        self._was_reset = False
        self.client_id: str | None = None
        self.broker_is_deaf = False
        self.client_is_deaf = False

    @property
    def is_open(self) -> bool:
        """Whether the client has not gone."""
        from_client, _ = self._client
        return not (self._was_reset or from_client.at_eof())

    async def run(self, broker_port: int) -> None:
        """Pass frames on until one side has closed and all it had sent was passed on."""
        _, to_client = self._client
        try:
            from_broker, self._to_broker = await asyncio.open_connection(
                HOST, broker_port, limit=BUFFER_BYTES
            )
        except OSError:
            # No broker listens; without a proxy the client would have been refused.
            self.reset()
            return
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._responses(from_broker))
                await self._requests()
        finally:
            self._to_broker.close()
            to_client.close()

    async def pass_request(self, request: Request) -> None:
        """Send the request to the broker."""
        assert self._to_broker is not None, "runs"
        request.passed_at = time.monotonic()
        with contextlib.suppress(ConnectionError):
            _write(self._to_broker, request.frame)
            await self._to_broker.drain()

    async def pass_response(self, request: Request, frame: bytes) -> None:
        """Send the response to the client, if it is still there."""
        _, to_client = self._client
        if not self.is_open:
            return
        request.returned_at = time.monotonic()
        with contextlib.suppress(ConnectionError):
            _write(to_client, frame)
            await to_client.drain()

    def reset(self) -> None:
        """Reset the client's connection; what the broker was sent it goes on to process."""
        _, to_client = self._client
        self._was_reset = True
        if to_client.is_closing():
            return
        connection: socket.socket = to_client.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        to_client.transport.abort()

    async def _requests(self) -> None:
        from_client, _ = self._client
        while (frame := await _read(from_client)) is not None:
            request = Request.parse(self._number, frame)
            self.client_id = request.client_id
            action = self._proxy.action_on(request)
            await self._proxy.passable(self.client_id)
            if not self.broker_is_deaf:
                self._under_way.append((request, action))
                await action.request(self, request)
        assert self._to_broker is not None, "runs"
        with contextlib.suppress(OSError):
            self._to_broker.write_eof()

    async def _responses(self, from_broker: asyncio.StreamReader) -> None:
        while (frame := await _read(from_broker)) is not None:
            request, action = self._under_way.popleft()
            (correlation_id,) = struct.unpack_from(">i", frame)
            assert correlation_id == request.correlation_id, "a broker answers in order"
            request.answered_at, request.answer = time.monotonic(), frame
            await self._proxy.passable(self.client_id)
            if not self.client_is_deaf:
                await action.response(self, request, frame)
        # The broker has closed, and so has the proxy.
        if self.is_open:
            self._client[1].close()


async def _read(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame without its size; None at the end."""
    try:
        (size_bytes,) = struct.unpack(">i", await reader.readexactly(4))
        return await reader.readexactly(size_bytes)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _write(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(struct.pack(">i", len(frame)))
    writer.write(frame)


class ProxiedKafka(EmbeddedKafka):
    """A broker that tells those who come through the proxy the proxy's address."""

    def __init__(self, *, log_path: Path | None = None, config: Mapping[str, str] | None = None):
        with ExitStack() as held:
            sockets = [held.enter_context(broker._free_port()) for _ in range(4)]
            own, behind, controller, self._proxy_port = (s.getsockname()[1] for s in sockets)
        self._port_behind = behind
        names = ("PLAINTEXT", "PROXIED", "CONTROLLER")
        settings = {
            "listeners": _addresses(names, (own, behind, controller)),
            "advertised.listeners": _addresses(names, (own, self._proxy_port)),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in names),
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.quorum.voters": f"1@{HOST}:{controller}",
            **(config or {}),
        }
        super().__init__(port=own, log_path=log_path, config=settings)

    def proxy(self) -> Proxy:
        """The proxy, to be entered."""
        return Proxy(self._proxy_port, self._port_behind)


def _addresses(names: Iterable[str], ports: Iterable[int]) -> str:
    # There are fewer ports where the controller, which is for nobody else, is not advertised.
    pairs = zip(names, ports, strict=False)
    return ",".join(f"{name}://{HOST}:{port}" for name, port in pairs)
