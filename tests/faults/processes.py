"""Faults of workers, of the broker, of the group, and of transactions."""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial

from aiokafka import AIOKafkaProducer

from arena import Arena, Scenario
from consentgate.errors import EXIT_INTERNAL, BrokerError
from consentgate.service.worker import STOP_SECONDS_MAX
from consentgate.tools.broker import EmbeddedKafka
from harness import WorkerProcess, consent, freeze_mid_transaction, until

POINT_NUMBER_MAX = 30

OPEN_SECONDS = 0.3
"""What stays open for so long is no transaction that is just being committed."""

STEP_SECONDS_MAX = 15.0
"""A worker gives a step up that takes longer."""

ANSWER_SECONDS = 1.0

STORM_SECONDS, STORM_ROUNDS, STORM_WORKERS_MAX = 2.0, 5, 4

PHASES_ONCE = ("starting", "bootstrapping", "assigned", "revoked")
PHASES = (
    *PHASES_ONCE,
    "after-fetch",
    "after-barrier",
    "before-begin",
    "after-send",
    "after-offsets",
    "before-commit",
    "during-commit",
)
POLITE_SECONDS_MAX = 10.0
"""How long an end takes at the most where the broker answers; most take less than one."""

TRANSACTION_TIMEOUT_MS = 2_000
HANGING_TIMEOUT_MS = 8_000


async def has_open_transaction(arena: Arena, partition: int) -> bool:
    """Whether a transaction is and stays open in this training partition."""
    topic, count = arena.site.config.topics.training, arena.site.partitions
    before = await arena.probe.ends(topic, count)
    await asyncio.sleep(OPEN_SECONDS)
    after = await arena.probe.ends(topic, count)
    return before.stable[partition] == after.stable[partition] < before.high[partition]


async def halt(arena: Arena, rng: random.Random, *, point: str) -> None:
    """Have a worker kill itself at a point of a transaction; another one comes in its place."""
    victim = await arena.replace("halt", point, str(rng.randint(1, POINT_NUMBER_MAX)))
    reached = await arena.tampered(victim)
    await arena.ended(victim, -signal.SIGKILL)
    arena.over()
    if point in ("before-begin", "after-send", "after-offsets"):
        is_open = await has_open_transaction(arena, reached["partition"])
        assert is_open == (point != "before-begin"), f"{reached}: open is {is_open}"
    await arena.start_worker()


async def kill_all_workers(arena: Arena, rng: random.Random) -> None:
    """Kill all workers at once, whatever they are at, and start others."""
    await arena.under_way()
    await asyncio.sleep(rng.uniform(0, 0.1))
    victims = list(arena.workers)
    for victim in victims:
        victim.signal(signal.SIGKILL)
    for victim in victims:
        await arena.ended(victim, -signal.SIGKILL)
    arena.over()
    lag = await arena.site.lag()
    assert all(lag.values()), f"there is work left: {lag}"
    for _ in victims:
        await arena.start_worker()


async def freeze_and_thaw(arena: Arena, rng: random.Random) -> None:
    """Stop a worker within a transaction until others have its work, and let it go on."""
    await arena.under_way()
    zombie = rng.choice(arena.working())
    recycled, assigned = len(zombie.logged("recycled")), len(zombie.logged("assigned"))
    await freeze_mid_transaction(arena.site, zombie)
    before = await arena.site.committed()

    async def taken_over() -> bool:
        committed = await arena.site.committed()
        return all(committed[p] > before[p] for p in zombie.assigned())

    await until(taken_over, "others have taken over")
    zombie.signal(signal.SIGCONT)
    arena.over()
    await until(lambda: len(zombie.logged("recycled")) > recycled, "its transaction failed")
    await until(lambda: len(zombie.logged("assigned")) > assigned, "it is a member again")


async def terminate(arena: Arena, rng: random.Random) -> None:
    """Have a worker told to end at some point, once or twice, and another one come."""
    point = rng.choice(PHASES)
    number = 1 if point in PHASES_ONCE else rng.randint(1, POINT_NUMBER_MAX)
    worker = await arena.replace(rng.choice(("term", "term-twice")), point, str(number))
    if point == "revoked":
        await until(lambda: worker in arena.working(), "it has partitions to give up")
        await arena.leave(arena.workers[0])
        await arena.start_worker()
    await arena.tampered(worker)
    began = time.monotonic()
    await arena.ended(worker, 0)
    assert time.monotonic() - began < POLITE_SECONDS_MAX, f"{point}: an end took too long"
    arena.over()
    await arena.start_worker()


async def terminate_in_outage(arena: Arena, rng: random.Random) -> None:
    """Have a worker told to end while the broker stands still and a transaction is open."""
    await arena.under_way()
    worker = rng.choice(arena.working())
    await asyncio.to_thread(arena.kafka.suspend)
    try:
        began = time.monotonic()
        worker.signal(signal.SIGTERM)
        await arena.ended(worker, 0)
        took = time.monotonic() - began
    finally:
        await asyncio.to_thread(arena.kafka.resume)
    assert took < STOP_SECONDS_MAX, f"an end took {took:.1f} s"
    arena.over()
    await arena.start_worker()


async def scale(arena: Arena, _: random.Random) -> None:
    """Have four workers where there was one, and one again."""
    while len(arena.workers) > 1:
        await arena.leave(arena.workers[0])
    await arena.under_way()
    while len(arena.workers) < STORM_WORKERS_MAX:
        await arena.start_worker()
    await until(lambda: len(arena.working()) == STORM_WORKERS_MAX, "all have a share")
    await arena.under_way()
    for worker in arena.workers[:-1]:
        worker.signal(signal.SIGTERM)
    for worker in arena.workers[:-1]:
        await arena.ended(worker, 0)
    arena.over()
    await arena.watch.two_commits_of_each()
    while len(arena.workers) < arena.scenario.workers:
        await arena.start_worker()


async def storm(arena: Arena, rng: random.Random) -> None:
    """Every two seconds a worker comes or goes."""
    await arena.under_way()
    decided = arena.watch.decided()
    for _ in range(STORM_ROUNDS):
        comes = len(arena.workers) < 2 or (
            len(arena.workers) < STORM_WORKERS_MAX and rng.random() < 0.5
        )
        if comes:
            await arena.start_worker()
        else:
            await arena.leave(rng.choice(arena.workers))
        await asyncio.sleep(STORM_SECONDS)
    while len(arena.workers) > arena.scenario.workers:
        await arena.leave(arena.workers[0])
    while len(arena.workers) < arena.scenario.workers:
        await arena.start_worker()
    arena.over()
    assert arena.watch.decided() > decided, "the storm lets some work be done"


async def kill_broker(arena: Arena, rng: random.Random) -> None:
    """Kill the broker, and start it again after a while."""
    await arena.under_way()
    await asyncio.to_thread(arena.kafka.kill)
    assert not is_running(arena.kafka), "the broker is dead"
    await asyncio.sleep(rng.uniform(0, 5))
    await asyncio.to_thread(arena.kafka.restart)
    arena.over()


def is_running(kafka: EmbeddedKafka) -> bool:
    """Whether the broker's process is there."""
    try:
        return kafka.pid > 0
    except BrokerError:
        return False


async def restart_broker(arena: Arena, _: random.Random) -> None:
    """Stop the broker as an upgrade does, and start it again on the same data."""
    await arena.under_way()
    pid = arena.kafka.pid
    await asyncio.to_thread(arena.kafka.restart)
    arena.over()
    assert arena.kafka.pid != pid, "it is another process"


async def suspend_broker(arena: Arena, rng: random.Random) -> None:
    """Let the broker stand still for a few seconds."""
    await suspend_broker_for(arena, rng.uniform(2, 6))


async def suspend_broker_beyond_step(arena: Arena, rng: random.Random) -> None:
    """Let the broker stand still for longer than a worker waits for anything."""
    recycled = {worker: len(worker.logged("recycled")) for worker in arena.workers}
    await suspend_broker_for(arena, STEP_SECONDS_MAX + rng.uniform(2, 5))
    for worker, before in recycled.items():
        reasons = [entry["why"] for entry in worker.logged("recycled")[before:]]
        assert any("took too long" in why for why in reasons), f"no step timed out: {reasons}"


async def suspend_broker_for(arena: Arena, seconds: float) -> None:
    """Let the broker stand still for so long."""
    await arena.under_way()
    await asyncio.to_thread(arena.kafka.suspend)
    try:
        # What was answered before may be read a moment after.
        await asyncio.sleep(ANSWER_SECONDS)
        decided = arena.watch.decided()
        await asyncio.sleep(seconds - ANSWER_SECONDS)
        assert arena.watch.decided() == decided, "the broker answers nothing"
    finally:
        await asyncio.to_thread(arena.kafka.resume)
    arena.over()


async def hold_listener(arena: Arena, rng: random.Random, *, point: str) -> None:
    """Have a listener take seconds for a rebalance."""
    worker = await rebalance_onto(arena, f"hold:{rng.uniform(2, 6)}", point)
    await until(lambda: len(worker.logged("tampered")) == 2, "the listener goes on")
    arena.over()


async def raise_in_listener(arena: Arena, _: random.Random, *, point: str) -> None:
    """Have a listener fail: the process must end, rather than leave partitions unserved."""
    worker = await rebalance_onto(arena, "raise", point)
    await arena.ended(worker, EXIT_INTERNAL)
    arena.over()
    while len(arena.workers) < arena.scenario.workers:
        await arena.start_worker()


async def rebalance_onto(arena: Arena, action: str, point: str) -> WorkerProcess:
    """Start a worker that is tampered with at a point of a rebalance, and bring that about."""
    worker = await arena.replace(action, point, "1")
    if point in ("revoked", "stopped"):
        await until(lambda: worker in arena.working(), "it has partitions to give up")
        await arena.under_way()
        await arena.leave(arena.workers[0])
        await arena.start_worker()
    await arena.tampered(worker)
    return worker


async def time_transaction_out(arena: Arena, rng: random.Random) -> None:
    """Hold a transaction until the broker aborts it."""
    # The longer one is beyond the exposure that the worker allows itself, too.
    seconds = rng.choice((4.5, 8))
    point = rng.choice(("after-send", "after-offsets", "before-commit"))
    worker = await arena.replace(f"hold:{seconds}", point, str(rng.randint(1, POINT_NUMBER_MAX)))
    reached = await arena.tampered(worker)
    partition = reached["partition"]
    assert await has_open_transaction(arena, partition), "the transaction is open"

    async def is_aborted() -> bool:
        ends = await arena.probe.ends(arena.site.config.topics.training, arena.site.partitions)
        return ends.stable[partition] == ends.high[partition]

    await until(is_aborted, "the broker aborts the transaction")
    assert len(worker.logged("tampered")) == 1, "the worker is still held"
    await until(lambda: len(worker.logged("tampered")) == 2, "it goes on")
    arena.over()
    await until(lambda: worker.logged("recycled"), "it cannot commit")


async def race(arena: Arena, rng: random.Random, *, point: str) -> None:
    """Have somebody of the batch in hand withdraw, and then post, at a point of a transaction."""
    worker = await arena.replace("hold:4", point, str(rng.randint(1, POINT_NUMBER_MAX)))
    reached = await arena.tampered(worker)
    await arena.load.withdraw(reached["subject"])
    assert len(worker.logged("tampered")) == 1, "the transaction is still in hand"
    worker.signal(signal.SIGUSR1)
    await until(lambda: len(worker.logged("tampered")) == 2, "it goes on")
    arena.over()


async def freeze_consent(arena: Arena, rng: random.Random) -> None:
    """Have a transaction hang in a consent partition, with withdrawals in it and behind it."""
    await arena.under_way()
    partition = rng.randrange(arena.site.partitions)
    inside, behind = rng.sample(arena.load.withdrawable(partition), 2)
    owner = await arena.owner(partition)
    stalls = len(owner.logged("stalled"))
    producer = AIOKafkaProducer(
        bootstrap_servers=arena.kafka.bootstrap_servers,
        transactional_id=f"{arena.site.config.group}-app",
        transaction_timeout_ms=HANGING_TIMEOUT_MS,
    )
    async with producer:
        await producer.begin_transaction()
        sent = consent(inside, "withdrawn")
        await producer.send_and_wait(arena.site.consent, sent.value, sent.key)
        await arena.load.withdraw(behind)

        def has_stalled() -> bool:
            return any(s["partition"] == partition for s in owner.logged("stalled")[stalls:])

        await until(has_stalled, "the partition says that it stalls")
        before = (await arena.site.committed())[partition]
        status, body = await owner.get("/readyz")
        assert (status, "stalled" in body) == (503, True), body
        assert await is_frozen(arena, partition, before)
        match rng.choice(("commit", "abort", "time out")):
            case "commit":
                await producer.commit_transaction()
            case "abort":
                await producer.abort_transaction()
            case "time out":
                await until(lambda: is_thawed(arena, partition), "the broker aborts it")
        arena.over()


async def is_frozen(arena: Arena, partition: int, committed: int) -> bool:
    """Whether nothing of the partition has been decided, though there is work left."""
    lag = await arena.site.lag()
    return (await arena.site.committed())[partition] == committed and lag[partition] > 0


async def is_thawed(arena: Arena, partition: int) -> bool:
    """Whether no transaction is open in the consent partition."""
    ends = await arena.probe.ends(arena.site.consent, arena.site.partitions)
    return not ends.open([partition])


Inject = Callable[[Arena, random.Random], Awaitable[None]]

HALTS = (
    ("before-begin", "before it begins a transaction"),
    ("after-send", "when it has written a transaction's records"),
    ("after-offsets", "when it has put the offsets into a transaction"),
    ("during-commit", "when it has sent the commit and has no answer"),
)
RACES = (
    ("after-fetch", "after a batch with something of theirs was fetched"),
    ("after-barrier", "after the barrier"),
    ("after-send", "after the records have been written"),
    ("after-offsets", "after the offsets have been added"),
    ("before-commit", "after the last look at the consent topic, before the commit"),
)

SCENARIOS = (
    *(
        Scenario(
            f"worker-sigkill-{point}", f"A worker is killed {when}.", partial(halt, point=point)
        )
        for point, when in HALTS
    ),
    Scenario("workers-sigkill", "All workers are killed at once.", kill_all_workers),
    Scenario(
        "worker-zombie",
        "A worker stands still within a transaction, beyond its session, and then goes on.",
        freeze_and_thaw,
    ),
    Scenario("rebalance-storm", "Every 2 s a worker comes or goes.", storm),
    *(
        Scenario(
            f"listener-slow-{point}",
            f"A worker takes 2 to 6 s before it {does} partitions in a rebalance.",
            partial(hold_listener, point=point),
        )
        for point, does in (("assigned", "takes"), ("revoked", "gives up"))
    ),
    *(
        Scenario(
            f"listener-raises-{point}",
            f"A worker fails while it {does} partitions in a rebalance.",
            partial(raise_in_listener, point=point),
        )
        for point, does in (("taken", "takes"), ("stopped", "gives up"))
    ),
    Scenario("broker-sigkill", "The broker is killed and started again.", kill_broker),
    Scenario(
        "worker-sigterm",
        "A worker is told to end at some point of its life, once or twice.",
        terminate,
    ),
    Scenario(
        "worker-sigterm-in-outage",
        "A worker is told to end within a transaction, while the broker stands still.",
        terminate_in_outage,
    ),
    Scenario("scale-1-4-1", "One worker becomes four, and four become one.", scale),
    Scenario("broker-restart", "The broker is stopped politely and started again.", restart_broker),
    Scenario("broker-sigstop", "The broker stands still for 2 to 6 s.", suspend_broker),
    Scenario(
        "broker-sigstop-beyond-step",
        "The broker stands still for 17 to 20 s, longer than a worker waits.",
        suspend_broker_beyond_step,
    ),
    Scenario(
        "transaction-time-out",
        "A worker is held within a transaction until the broker aborts that.",
        time_transaction_out,
        kafka={"transaction.timeout.ms": TRANSACTION_TIMEOUT_MS},
    ),
    *(
        Scenario(
            f"withdrawal-{point}",
            f"Somebody withdraws, and then posts, {when}.",
            partial(race, point=point),
        )
        for point, when in RACES
    ),
    Scenario(
        "consent-frozen",
        "A transaction hangs in the consent topic, with withdrawals in it and behind it.",
        freeze_consent,
    ),
)
