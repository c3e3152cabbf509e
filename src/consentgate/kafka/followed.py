"""A consent table that is kept up to date: who needs it, who listens, and whether it is whole."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.model import Record
from consentgate.core.partition import Moment
from consentgate.core.snapshot import Head, Sample, sample_of

SAMPLES_MAX = 16
"""Of each partition: so many people would have to change their minds for none to be left."""

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
    restoring: "asyncio.Task[None] | None" = None
    followers: int = 0
    unneeded_since: Moment | None = None
    listeners: list[Listener] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)  # the first offset of each partition
    # By partition, each of another subject as far as that is known; the newest last.
    samples: dict[int, dict[bytes, Sample]] = field(default_factory=dict)
    kept: tuple[Mapping[int, int], Moment] | None = None  # the frontier, and when it was whole
    _restored: tuple[Moment, Moment] | None = None  # as of when it was whole, and when that was
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

    def is_restored(self) -> bool:
        """Whether a snapshot has been looked for, so that the topic can be followed."""
        return self.restoring is None or self.restoring.done()

    def restored(self, head: Head, table: ConsentTable, whole_at: Moment, now: Moment) -> None:
        """Go on from a snapshot. Whoever listened has missed what it has beyond the present one."""
        self.table.take_over(table)
        self.starts = dict(head.starts)
        self.samples = {p: {s.digest: s for s in samples} for p, samples in head.samples.items()}
        self.whole_at, self._restored = whole_at, (whole_at, now)
        self.kept = (dict(table.frontier), whole_at)
        self.listeners.clear()

    def behind_ms(self, now: Moment) -> int:
        """For how long at the most the table has not been whole, now or when it was restored."""
        behind_ms = now.since_ms(self.whole_at)
        if self._restored is None:
            return behind_ms
        whole_at, restored_at = self._restored
        # The wall clock alone told that, and may have been set right since.
        passed_ms = now.monotonic_ms - restored_at.monotonic_ms
        return max(behind_ms, now.unix_ms - whole_at.unix_ms - passed_ms)

    def sample(self, partition: int, record: Record) -> None:
        """Remember this record, which has been applied, as one that the topic holds."""
        if record.key is not None:
            samples = self.samples.setdefault(partition, {})
            samples.pop(record.key, None)
            samples[record.key] = sample_of(record)
            if len(samples) > SAMPLES_MAX:
                del samples[next(iter(samples))]

    def reset(self, now: Moment) -> None:
        """Begin anew. Whoever listened has missed changes by then, and so listens no more."""
        self.table.reset()
        self.whole_at, self._asked = now, None
        self.kept = self._restored = None
        self.starts.clear()
        self.samples.clear()
        self.listeners.clear()
