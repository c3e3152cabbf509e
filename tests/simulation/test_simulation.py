"""Thousands of seeds: whatever chance does to workers and replies, the promises hold.

A failure names its seed; `SIMULATION_SEED=n` runs that one alone, `SIMULATION_SEEDS=n` as many.
"""

import os

from oracle import violations
from world import World

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "2000"))
TURNS = 400


def seeds() -> range:
    """The seeds to run."""
    if (only := os.environ.get("SIMULATION_SEED")) is not None:
        return range(int(only), int(only) + 1)
    return range(SEEDS)


def test_the_promises_hold_whatever_chance_does() -> None:
    commits = 0
    for seed in seeds():
        world = World(seed)
        world.run(TURNS)
        assert list(violations(world)) == [], f"SIMULATION_SEED={seed}"
        commits += world.commits
    assert commits > len(seeds()), "work was done"


def test_a_seed_gives_the_same_world_again() -> None:
    def ledgers() -> list[list[str]]:
        world = World(42)
        world.run(TURNS)
        return [[e.hash for e in world.broker.ledger(p)] for p in range(world.partitions)]

    assert ledgers() == ledgers()
