"""Faults of workers, of the broker, of the group, and of transactions."""

import random
import signal

from arena import Arena, Scenario


async def halt_after_send(arena: Arena, rng: random.Random) -> None:
    await halt(arena, rng, "after-send")


async def halt(arena: Arena, rng: random.Random, point: str) -> None:
    """Have a worker end itself at the point, and start another one in its place."""
    victim = await arena.start_worker("halt", point, str(rng.randint(1, 30)))
    await arena.ended(victim, -signal.SIGKILL, seconds=60)
    arena.over()
    assert victim.logged("tampered"), victim.errors()
    await arena.start_worker()


SCENARIOS = (Scenario("worker-sigkill-after-send", "x", halt_after_send),)
