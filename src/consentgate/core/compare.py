"""Two decisions on each of many records, and what is different between them."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from consentgate.core.model import Reason, Verdict

EXAMPLES_MAX = 3
"""How many places are kept of each kind of change."""


class Outcome(Protocol):
    """What became of a record."""

    @property
    def reason(self) -> Reason: ...
    @property
    def label(self) -> str: ...


class Change(NamedTuple):
    """A reason that becomes another one, and the jurisdictions under which either is counted."""

    label_before: str
    before: Reason
    label_after: str
    after: Reason

    @property
    def jurisdiction(self) -> str:
        """The label, or both where they differ."""
        if self.label_before == self.label_after:
            return self.label_after
        return f"{self.label_before} -> {self.label_after}"


@dataclass(slots=True)
class Comparison:
    """Counts and the first places of each change; so it stays small over any number of records."""

    records: int = 0
    counts: Counter[Change] = field(default_factory=Counter)
    examples: dict[Change, list[str]] = field(default_factory=dict)

    def take(self, place: str, before: Outcome, after: Outcome) -> None:
        """Compare the two outcomes of the record at `place`.

        A record that is counted under another label for the same reason has not changed.
        """
        self.records += 1
        if before.reason is after.reason:
            return
        change = Change(before.label, before.reason, after.label, after.reason)
        self.counts[change] += 1
        places = self.examples.setdefault(change, [])
        if len(places) < EXAMPLES_MAX:
            places.append(place)

    @property
    def changed(self) -> int:
        """Number of records whose reason changes."""
        return self.counts.total()

    @property
    def started(self) -> int:
        """Number of records that are forwarded after, and were not before."""
        return self._turned(to_forward=True)

    @property
    def stopped(self) -> int:
        """Number of records that were forwarded before, and are not after."""
        return self._turned(to_forward=False)

    def rows(self) -> list[tuple[Change, int, list[str]]]:
        """The changes with their counts and examples, the most frequent first."""
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return [(change, number, self.examples[change]) for change, number in ranked]

    def _turned(self, *, to_forward: bool) -> int:
        return sum(
            number
            for change, number in self.counts.items()
            if (change.before.verdict is Verdict.FORWARD) is not to_forward
            and (change.after.verdict is Verdict.FORWARD) is to_forward
        )
