"""Two decisions on each of many records, and what is different between them."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from consentgate.core.gate import OWN_HEADERS, Output
from consentgate.core.model import Decision, Reason, Verdict

EXAMPLES_MAX = 3
"""How many places are kept of each kind of change."""


class Outcome(Protocol):
    """What became of a record."""

    @property
    def reason(self) -> Reason: ...
    @property
    def label(self) -> str: ...
    @property
    def forwarded(self) -> Output | None: ...


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision, and what goes on of the record."""

    decision: Decision
    forwarded: Output | None = None

    @property
    def reason(self) -> Reason:
        """The reason."""
        return self.decision.reason

    @property
    def label(self) -> str:
        """The jurisdiction's label."""
        return self.decision.label


class Change(NamedTuple):
    """A reason that becomes another one, and the jurisdictions under which either is counted.

    The reasons are the same where only what goes on is another.
    """

    label_before: str
    before: Reason
    label_after: str
    after: Reason
    otherwise: bool = False  # forwarded on both sides, but not with the same key, value and headers

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

        A record that is counted under another label for the same reason has not changed, unless
        what goes on of it is another.
        """
        self.records += 1
        otherwise = _goes_on_otherwise(before.forwarded, after.forwarded)
        if before.reason is after.reason and not otherwise:
            return
        change = Change(before.label, before.reason, after.label, after.reason, otherwise)
        self.counts[change] += 1
        places = self.examples.setdefault(change, [])
        if len(places) < EXAMPLES_MAX:
            places.append(place)

    @property
    def changed(self) -> int:
        """Number of records whose reason changes, or what goes on of them."""
        return self.counts.total()

    @property
    def started(self) -> int:
        """Number of records that are forwarded after, and were not before."""
        return self._turned(to_forward=True)

    @property
    def stopped(self) -> int:
        """Number of records that were forwarded before, and are not after."""
        return self._turned(to_forward=False)

    @property
    def otherwise(self) -> int:
        """Number of records that are forwarded before and after, but not alike."""
        return sum(number for change, number in self.counts.items() if change.otherwise)

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


def _goes_on_otherwise(before: Output | None, after: Output | None) -> bool:
    if before is None or after is None:
        return False
    return before.key != after.key or _foreign(before) != _foreign(after) or _differ(before, after)


def _foreign(output: Output) -> list[tuple[str, bytes | None]]:
    """The headers that came with the record; ours name the policy, and so differ anyway."""
    return [header for header in output.headers if header[0] not in OWN_HEADERS]


def _differ(before: Output, after: Output) -> bool:
    # A rule that finds nothing to redact may still write the record without its spaces.
    assert before.value is not None, "a forwarded record has a value"
    assert after.value is not None, "a forwarded record has a value"
    return before.value != after.value and _read(before.value) != _read(after.value)


def _read(value: bytes) -> object:
    # The numbers as texts: they may be longer than Python reads, and none of them is changed.
    return json.loads(value, parse_int=str, parse_float=str)
