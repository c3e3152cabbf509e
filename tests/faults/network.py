"""Faults of the network between the workers and the broker.

All workers come through a proxy; the load and the oracle do not.
"""

import asyncio
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aiokafka.errors import InvalidProducerEpoch, ProducerFenced, for_code

from arena import Arena, Scenario
from harness import WorkerProcess, until
from proxy import (
    PASS_ON,
    Api,
    DelayRequest,
    DelayResponse,
    HoldRequest,
    PassOn,
    Predicate,
    ProxiedKafka,
    Proxy,
    Request,
    ResetAfterRequest,
    ResetInsteadOfResponse,
    SwallowResponse,
)

IMPATIENT = Path(__file__).with_name("impatient.py")

STEP_SECONDS = 2.0
"""A worker gives up a step that takes longer, and with it the producer."""

PATIENT_STEP_SECONDS = 15.0
"""The same as users have it."""

SOCKET_TIMEOUT_MS = 1_500
"""A client closes the connection when an answer takes longer, and asks again on a new one."""

SLOW_SECONDS = 1.0
"""As late as is waited for."""

SLOW_TIMES = 20
LOST_TIMES = 3

RESETS = 12
CUT_SECONDS = 6.0

FENCED = (InvalidProducerEpoch, ProducerFenced)


@asynccontextmanager
async def behind_proxy(arena: Arena, *, step_seconds: float) -> AsyncIterator[Proxy]:
    """Have the workers come through a proxy, each with a client id of its own."""
    assert isinstance(arena.kafka, ProxiedKafka), "tells of the proxy"
    async with arena.kafka.proxy() as proxy:
        arena.worker_kafka["bootstrap.servers"] = proxy.bootstrap_servers
        arena.program = lambda number: (str(IMPATIENT), f"worker-{number}", str(step_seconds))
        yield proxy


def worker_of(arena: Arena, request: Request) -> WorkerProcess:
    """Whose request it is."""
    return next(worker for worker in arena.workers if client_of(worker) == request.client_id)


def client_of(worker: WorkerProcess) -> str:
    """The worker's client id, which is the name of its log."""
    return worker._log_path.stem


def clients(arena: Arena) -> list[str]:
    """The client ids of all workers."""
    return [client_of(worker) for worker in arena.workers]


def is_commit(request: Request) -> bool:
    """Whether it is an EndTxn that commits."""
    return request.commits


def is_abort(request: Request) -> bool:
    """Whether it is an EndTxn that aborts."""
    return request.api_key == Api.END_TXN and not request.commits


def is_write(request: Request) -> bool:
    """Whether it is a write within a transaction."""
    return request.api_key == Api.PRODUCE and request.transactional_id is not None


def asks(api: Api) -> Predicate:
    """Whether a request is of this kind."""
    return lambda request: request.api_key == api


def is_of(transactional_id: str | None, api: Api) -> Predicate:
    """Whether a request is of this kind and for this transactional id."""
    return lambda request: request.api_key == api and request.transactional_id == transactional_id


async def befall(arena: Arena, _: random.Random, *, matches: Predicate, action: PassOn) -> None:
    """Have the action done to one request of a transaction, after which its producer is dropped."""
    proxy: Proxy = arena.surroundings
    await arena.under_way()
    recycled = {worker: len(worker.logged("recycled")) for worker in arena.workers}
    rule = proxy.add(matches, action)
    (request,) = await until(lambda: rule.landed, "it lands")
    worker = worker_of(arena, request)
    await until(lambda: len(worker.logged("recycled")) > recycled[worker], "the worker has noticed")
    arena.over()
    await until(lambda: request.answered_at, "the broker has answered, though late")


async def arrive_late(arena: Arena, _: random.Random, *, matches: Predicate) -> None:
    """Hold a request of a transaction back until the next producer is within its transaction."""
    await arena.under_way()
    await hold_back(arena, matches)


async def hold_back(arena: Arena, matches: Predicate) -> None:
    """Let a request arrive when the producer after the one that sent it is in a transaction."""
    proxy: Proxy = arena.surroundings
    let_go = asyncio.Event()
    late = proxy.add(matches, HoldRequest(let_go))
    (request,) = await until(lambda: late.landed, "it is on its way")
    fence = proxy.add(is_of(request.transactional_id, Api.INIT_PRODUCER_ID), PASS_ON)
    await until(lambda: fence.landed, "its producer is replaced")
    # Whoever is within a transaction there is when the late request arrives stays within it.
    held = proxy.add(is_of(request.transactional_id, Api.END_TXN), HoldRequest(let_go))
    await until(lambda: held.landed, "the next transaction is to be committed")
    let_go.set()
    arena.over()
    await until(lambda: request.answered_at, "the broker has answered")
    if request.commits:
        assert error_of_end(request) in FENCED


def error_of_end(request: Request) -> type[Exception]:
    """What the broker has answered to an EndTxn."""
    assert request.answer is not None
    # Behind the correlation id and the throttle time.
    (code,) = struct.unpack_from(">h", request.answer, 8)
    error: type[Exception] = for_code(code)
    return error


async def lose_fence(arena: Arena, _: random.Random) -> None:
    """Have a producer dropped, and the answer lost to the request that fences it."""
    proxy: Proxy = arena.surroundings
    await arena.under_way()
    reset = proxy.add(is_commit, ResetInsteadOfResponse())
    fence = proxy.add(asks(Api.INIT_PRODUCER_ID), SwallowResponse())
    await until(lambda: reset.landed and fence.landed, "a producer is being replaced")
    (request,) = fence.landed
    await until(lambda: request.answered_at, "the broker has answered")
    arena.over()


async def fence_late(arena: Arena, _: random.Random) -> None:
    """Have a producer dropped; the request that fences it arrives after another one has."""
    proxy: Proxy = arena.surroundings
    await arena.under_way()
    reset = proxy.add(is_commit, ResetInsteadOfResponse())
    await hold_back(arena, asks(Api.INIT_PRODUCER_ID))
    assert reset.landed, "the producer was dropped because of the reset"


async def abort_late(arena: Arena, _: random.Random, *, at_takeover: bool) -> None:
    """Let an abort that was repeated arrive in the midst of the next transaction of the same id."""
    proxy: Proxy = arena.surroundings
    await arena.under_way()
    let_go, go_on = asyncio.Event(), asyncio.Event()
    if at_takeover:
        reset = proxy.add(is_commit, ResetInsteadOfResponse())
        await until(lambda: reset.landed, "a producer is being replaced")
    late = proxy.add(is_abort, HoldRequest(let_go))
    (request,) = await until(lambda: late.landed, "an abort is on its way")
    midst = is_of(request.transactional_id, Api.ADD_OFFSETS_TO_TXN)
    next_one = proxy.add(midst, HoldRequest(go_on))
    await until(lambda: next_one.landed, "the records of the next transaction are written")
    let_go.set()
    await until(lambda: request.answered_at, "the broker has answered")
    go_on.set()
    arena.over()
    assert error_of_end(request) in FENCED


async def befall_some(
    arena: Arena, _: random.Random, *, matches: Predicate, action: PassOn, times: int
) -> None:
    """Have the action done to some requests, whoever sends them."""
    proxy: Proxy = arena.surroundings
    await arena.under_way()
    rule = proxy.add(matches, action, times)
    await until(lambda: len(rule.landed) == times, "all have landed", 120)
    arena.over()


async def lose_join(arena: Arena, _: random.Random) -> None:
    """Have a worker replaced, and the answer lost to somebody who joins the group anew."""
    proxy: Proxy = arena.surroundings
    await arena.under_way()
    rule = proxy.add(asks(Api.JOIN_GROUP), SwallowResponse())
    await arena.replace()
    await until(lambda: rule.landed and rule.landed[0].answered_at, "the answer is lost")
    arena.over()


async def reset_now_and_then(arena: Arena, rng: random.Random) -> None:
    """Reset all connections of a worker, or of all, time and again."""
    proxy: Proxy = arena.surroundings
    hit = 0
    for _ in range(RESETS):
        await arena.under_way()
        await asyncio.sleep(rng.uniform(0, 0.2))
        chosen = clients(arena) if rng.random() < 0.3 else [rng.choice(clients(arena))]
        hit += sum(map(proxy.reset, chosen))
    arena.over()
    assert hit >= RESETS, f"{hit} connections were reset"


async def cut_all(arena: Arena, _: random.Random) -> None:
    """Let nothing through for a while, and close nothing, while a commit is on its way."""
    proxy: Proxy = arena.surroundings
    async with held_commit(arena):
        for client in clients(arena):
            proxy.cut(client)
        before = await arena.site.committed()
        await asyncio.sleep(CUT_SECONDS)
        assert await arena.site.committed() == before, "nothing is decided meanwhile"
    for client in clients(arena):
        proxy.heal(client)
    arena.over()


async def forget_all(arena: Arena, _: random.Random) -> None:
    """Let all connections that there are be of no use any more, while a commit is on its way."""
    proxy: Proxy = arena.surroundings
    async with held_commit(arena) as commit:
        assert all(map(proxy.forget, clients(arena))), "each worker has connections"
    arena.over()
    await until(lambda: commit.answered_at, "the broker has answered, for nobody")


async def cut_one_off(arena: Arena, _: random.Random) -> None:
    """Cut a worker off while its commit is on its way, until others have its work; heal it."""
    proxy: Proxy = arena.surroundings
    async with held_commit(arena) as commit:
        zombie = worker_of(arena, commit)
        partitions, assignments = zombie.assigned(), len(zombie.logged("assigned"))
        assert commit.client_id is not None
        proxy.cut(commit.client_id)
        before = await arena.site.committed()

        async def taken_over() -> bool:
            committed = await arena.site.committed()
            return all(committed[p] > before[p] for p in partitions)

        await until(taken_over, "others have taken over", 60)
    proxy.heal(commit.client_id)
    arena.over()
    await until(lambda: commit.answered_at, "the broker has answered")
    assert error_of_end(commit) in FENCED
    await until(
        lambda: len(zombie.logged("assigned")) > assignments, "it is in the group again", 60
    )


@asynccontextmanager
async def held_commit(arena: Arena) -> AsyncIterator[Request]:
    """Hold a commit back, for the time of a block."""
    proxy: Proxy = arena.surroundings
    await arena.under_way()
    let_go = asyncio.Event()
    rule = proxy.add(is_commit, HoldRequest(let_go))
    try:
        (request,) = await until(lambda: rule.landed, "a commit is on its way")
        yield request
    finally:
        let_go.set()


Inject = Callable[[Arena, random.Random], Awaitable[None]]


def behind(
    name: str,
    what: str,
    inject: Inject,
    step_seconds: float = STEP_SECONDS,
    kafka: Mapping[str, Any] | None = None,
) -> Scenario:
    """A scenario whose workers come through a proxy."""
    return Scenario(
        name,
        what,
        inject,
        kafka=kafka or {},
        make_broker=ProxiedKafka,
        surround=partial(behind_proxy, step_seconds=step_seconds),
    )


TRANSACTION_STEPS = (
    ("add-partitions", "to add partitions to a transaction", asks(Api.ADD_PARTITIONS_TO_TXN)),
    ("produce", "to write within a transaction", is_write),
    ("offset-commit", "to add offsets to a transaction", asks(Api.TXN_OFFSET_COMMIT)),
)
REQUESTS = (
    ("list-offsets", "for the ends of partitions", Api.LIST_OFFSETS),
    ("fetch", "for records", Api.FETCH),
    ("heartbeat", "to stay in the group", Api.HEARTBEAT),
)
DELAYS: Mapping[str, PassOn] = {
    "request": DelayRequest(SLOW_SECONDS),
    "answer": DelayResponse(SLOW_SECONDS),
}
QUICK_SOCKET = {"socket.timeout.ms": SOCKET_TIMEOUT_MS}

SCENARIOS = (
    behind(
        "commit-answer-lost",
        "The answer to a commit is lost, and the connection stays; the step is given up.",
        partial(befall, matches=is_commit, action=SwallowResponse()),
    ),
    behind(
        "commit-answer-lost-and-asked-again",
        "The answer to a commit is lost, and the connection stays; the client asks again.",
        partial(befall, matches=is_commit, action=SwallowResponse()),
        PATIENT_STEP_SECONDS,
        QUICK_SOCKET,
    ),
    behind(
        "commit-answer-reset",
        "The connection is reset when a commit has been answered.",
        partial(befall, matches=is_commit, action=ResetInsteadOfResponse()),
    ),
    behind(
        "commit-reset",
        "The connection is reset when a commit has been sent.",
        partial(befall, matches=is_commit, action=ResetAfterRequest()),
    ),
    behind(
        "commit-late",
        "A commit arrives when the next producer is within a transaction; the step was given up.",
        partial(arrive_late, matches=is_commit),
    ),
    behind(
        "commit-late-and-repeated",
        "A commit was repeated, and arrives when the next producer is within a transaction.",
        partial(arrive_late, matches=is_commit),
        PATIENT_STEP_SECONDS,
        QUICK_SOCKET,
    ),
    *(
        behind(
            f"abort-late-{name}",
            f"An abort {where} was repeated, and arrives in the midst of the next transaction.",
            partial(abort_late, at_takeover=at_takeover),
            PATIENT_STEP_SECONDS,
            QUICK_SOCKET,
        )
        for name, where, at_takeover in (
            ("on-purpose", "for a newer consent record", False),
            ("at-takeover", "of what its predecessor may have left open", True),
        )
    ),
    *(
        behind(
            f"{name}-answer-lost",
            f"The answer to {what} is lost, and the connection stays.",
            partial(befall, matches=matches, action=SwallowResponse()),
        )
        for name, what, matches in TRANSACTION_STEPS
    ),
    *(
        behind(
            f"{name}-late",
            f"The request {what} arrives when the next producer is within a transaction.",
            partial(arrive_late, matches=matches),
        )
        for name, what, matches in TRANSACTION_STEPS
    ),
    *(
        behind(
            f"produce-{part}-slow",
            f"Each {part} of some writes within transactions is delayed by a second.",
            partial(befall_some, matches=is_write, action=action, times=SLOW_TIMES),
        )
        for part, action in DELAYS.items()
    ),
    behind(
        "fence-answer-lost",
        "The answer is lost to the request that fences a dropped producer.",
        lose_fence,
    ),
    behind(
        "fence-late",
        "The request that fences a dropped producer arrives after another one has.",
        fence_late,
    ),
    *(
        behind(
            f"{name}-answer-slow",
            f"The answers to some requests {what} are delayed by a second.",
            partial(befall_some, matches=asks(api), action=DELAYS["answer"], times=SLOW_TIMES),
        )
        for name, what, api in REQUESTS
    ),
    *(
        behind(
            f"{name}-answer-lost",
            f"The answers to some requests {what} are lost, and the connections stay.",
            partial(befall_some, matches=asks(api), action=SwallowResponse(), times=LOST_TIMES),
            PATIENT_STEP_SECONDS,
            QUICK_SOCKET,
        )
        for name, what, api in REQUESTS
    ),
    *(
        behind(
            f"{name}-answer-lost-patient",
            f"The answers to some requests {what} are lost, and the connections stay.",
            partial(befall_some, matches=asks(api), action=SwallowResponse(), times=LOST_TIMES),
            PATIENT_STEP_SECONDS,
        )
        for name, what, api in REQUESTS
    ),
    *(
        behind(
            f"join-answer-lost{suffix}",
            "The answer is lost to a worker that joins the group anew, and the connection stays.",
            lose_join,
            PATIENT_STEP_SECONDS,
            kafka,
        )
        for suffix, kafka in (("", QUICK_SOCKET), ("-patient", {}))
    ),
    behind(
        "resets",
        "All connections of a worker, or of all of them, are reset, time and again.",
        reset_now_and_then,
    ),
    behind(
        "cut",
        "Nothing comes through for some seconds, either way, and no connection is closed.",
        cut_all,
        STEP_SECONDS,
        QUICK_SOCKET,
    ),
    behind(
        "cut-patient",
        "Nothing comes through for some seconds, either way, and no connection is closed.",
        cut_all,
        PATIENT_STEP_SECONDS,
    ),
    behind(
        "forgotten",
        "All connections that there are lead nowhere any more; new ones work.",
        forget_all,
        STEP_SECONDS,
        QUICK_SOCKET,
    ),
    behind(
        "forgotten-patient",
        "All connections that there are lead nowhere any more; new ones work.",
        forget_all,
        PATIENT_STEP_SECONDS,
    ),
    behind(
        "zombie",
        "A worker is cut off within a transaction until another has taken over, and is healed.",
        cut_one_off,
        60.0,
    ),
    behind(
        "zombie-that-recycles",
        "The same, but it gives its steps up and tries new connections meanwhile.",
        cut_one_off,
        STEP_SECONDS,
        QUICK_SOCKET,
    ),
)
