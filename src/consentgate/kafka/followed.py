"""A consent table that is kept up to date: who needs it, who listens, and whether it is whole."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.partition import Moment

Listener = Callable[[ConsentChange], None]


@dataclass(slots=True, eq=False)
class FollowedTable:
    """A table and what is known of its following.

    The table is whole as of a moment when everything has been applied that stood in the topic at
    that moment. A deletion that came later stays in the topic for `delete.retention.ms` at the
    least; a table that has not been whole for longer may have missed one for good.
    """

    table: ConsentTable
    whole_at: Moment
    followers: int = 0
    unneeded_since: Moment | None = None
    listeners: list[Listener] = field(default_factory=list)
    _asked: tuple[Moment, Mapping[int, int]] | None = None
    _waiters: list[tuple[Mapping[int, int], "asyncio.Future[None]"]] = field(default_factory=list)

    def ask(self, asked_at: Moment, high_watermarks: Mapping[int, int]) -> None:
        """At this moment the topic went thus far; once the table has got there, it is whole."""
        if self._asked is None:
            self._asked = (asked_at, high_watermarks)
        self.advanced()

    def advanced(self) -> None:
        """The frontier has moved: see whether the table is whole, and wake whoever waits."""
        if self._asked is not None and self.table.covers(self._asked[1]):
            self.whole_at, self._asked = self._asked[0], None
        for high_watermarks, future in self._waiters:
            if self.table.covers(high_watermarks) and not future.done():
                future.set_result(None)

    async def covering(self, high_watermarks: Mapping[int, int]) -> None:
        """Return as soon as the table covers the offsets."""
        # Asked again after each waking: the table may have been reset in between.
        while not self.table.covers(high_watermarks):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiter = (high_watermarks, future)
            self._waiters.append(waiter)
            try:
                await future
            finally:
                self._waiters.remove(waiter)

    def reset(self, now: Moment) -> None:
        """Begin anew. Whoever listened has missed changes by then, and so listens no more."""
        self.table.reset()
        self.whole_at, self._asked = now, None
        self.listeners.clear()
