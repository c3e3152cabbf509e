"""Who goes first: one thread judges the batches of all partitions, one after the other."""

import asyncio
import contextlib
from collections.abc import Callable

GIVE_WAY_SECONDS_MAX = 0.03
"""How long one batch waits for the partitions that are in a hurry."""


class RightOfWay:
    """Lets partitions that have a consent change to cover go before those that have none.

    Without it the change waits at each step of its transaction for a batch of somebody else.
    """

    def __init__(self, anybody_hurries: Callable[[], bool]) -> None:
        self._anybody_hurries = anybody_hurries
        self._moved = asyncio.Event()

    def moved(self) -> None:
        """Something happened to a partition: it may be in a hurry no more."""
        self._moved.set()

    async def give(self) -> None:
        """Return when nobody is in a hurry, or when they have had time enough."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GIVE_WAY_SECONDS_MAX):
                while self._anybody_hurries():
                    self._moved.clear()
                    await self._moved.wait()
