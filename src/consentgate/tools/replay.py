"""Fixtures through the same core, without a broker."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consentgate.config import Config
from consentgate.core.explain import Explanation
from consentgate.core.model import UNREADABLE, ConsentState, Reason, Verdict
from consentgate.core.policy import Policy, Rule, utc_text
from consentgate.errors import FixtureError
from consentgate.testing import Enforcer, Outcome
from consentgate.tools.fixtures import ClockLine, FixtureRecord, read_fixture, write_expectations


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one content line."""

    line: int
    decided: Outcome
    expect: str | None

    def __str__(self) -> str:
        text = f"{self.full_outcome} ({self.label})"
        return text if self.matches else f"{text}, but {self.expect} was expected"

    @property
    def outcome(self) -> Verdict:
        """The verdict."""
        return self.decided.verdict

    @property
    def reason(self) -> Reason:
        """The reason."""
        return self.decided.reason

    @property
    def full_outcome(self) -> str:
        """Verdict and reason, as `expect` has them."""
        return f"{self.outcome}:{self.reason}"

    @property
    def label(self) -> str:
        """The jurisdiction's label, as the metrics have it."""
        return self.decided.label

    @property
    def value(self) -> bytes | None:
        """The value that would be forwarded."""
        return None if self.decided.forwarded is None else self.decided.forwarded.value

    @property
    def matches(self) -> bool:
        """Whether the outcome is the expected one; so it is where nothing was expected."""
        return self.expect in (None, self.outcome, self.full_outcome)


class Replay:
    """An enforcer in memory, fed by the lines of a fixture file in their order."""

    def __init__(self, config: Config, policy: Policy, path: Path) -> None:
        self._path = path
        self._topics = config.topics
        self._enforcer = Enforcer(policy, config=config)
        self._has_clock = False

    def feed(self, line: FixtureRecord | ClockLine) -> Replayed | None:
        """Take in one line; the outcome, where it is a content line.

        Raises:
            FixtureError: if its topic is neither the content nor the consent topic, or if an
                outcome is expected of a consent line.
        """
        if isinstance(line, ClockLine):
            self._has_clock = True
            self._enforcer.clock.set(line.now_ms)
            return None
        self._set_clock(line)
        if line.topic == self._topics.content:
            decided = self._enforcer.content(
                line.key, line.value, headers=line.headers, timestamp_ms=line.timestamp_ms
            )
            return Replayed(line.line, decided, line.expect)
        if line.topic != self._topics.consent:
            raise FixtureError(
                f"{self._path}:{line.line}: the topic is {line.topic}, but must be "
                f"{self._topics.content} or {self._topics.consent}, as the configuration names them"
            )
        if line.expect is not None:
            raise FixtureError(
                f'{self._path}:{line.line}: "expect" stands in a consent line, but only content '
                "has an outcome"
            )
        self._enforcer.consent(line.key, line.value)
        return None

    def _set_clock(self, line: FixtureRecord) -> None:
        if not self._has_clock:
            now_ms = time.time_ns() // 1_000_000
            self._enforcer.clock.set(now_ms if line.timestamp_ms is None else line.timestamp_ms)

    def explain(self, line: FixtureRecord) -> Explanation:
        """Why a content line would come out as it does, were it fed next; it is not taken in."""
        self._set_clock(line)
        return self._enforcer.explain(
            line.key, line.value, headers=line.headers, timestamp_ms=line.timestamp_ms
        )


def replay(
    config: Config, policy: Policy, paths: Iterable[Path]
) -> Iterator[tuple[Path, Replayed]]:
    """Replay fixture files one after another, each from an empty consent table.

    Raises:
        FixtureError: if a line cannot be read or has no place in a replay.
    """
    for path in paths:
        memory = Replay(config, policy, path)
        for line in read_fixture(path):
            outcome = memory.feed(line)
            if outcome is not None:
                yield path, outcome


def update(path: Path, outcomes: Iterable[Replayed]) -> list[Replayed]:
    """Write into a file what came out where it expects something else or nothing; what changed.

    An expectation of the verdict alone stays where it is met.

    Raises:
        FixtureError: if the file cannot be written.
    """
    changed = [each for each in outcomes if each.expect is None or not each.matches]
    write_expectations(path, {each.line: each.full_outcome for each in changed})
    return changed


def difference(replayed: Replayed, policy: Policy) -> str:
    """What came out instead of what was expected, and why, in a few lines."""
    decided = replayed.decided
    moment = _describe_moment(decided.entry.decided_at)
    return (
        f"{replayed}\n"
        f"  at {moment} the author was: {_describe_state(decided.state)}\n"
        f"  policy {policy.reference}: {_describe_rule(decided.rule)}"
    )


def _describe_moment(now_ms: int) -> str:
    try:
        return utc_text(now_ms)
    except OverflowError:
        # A record may claim any timestamp.
        return f"{now_ms} ms"


def _describe_state(state: ConsentState | None) -> str:
    if state is None:
        return "not in the consent topic"
    if state is UNREADABLE:
        return "one whose consent record is unreadable"
    jurisdiction = state.jurisdiction or "in no known country"
    age = {True: "an adult", False: "a minor", None: "of unknown age"}[state.adult]
    return f"{jurisdiction}, {age}, {state.choice or 'no choice made'}"


def _describe_rule(rule: Rule | None) -> str:
    if rule is None:
        return "no rule applies"
    conditions = [
        "adults only" if rule.adults_only else "",
        f"visibility {', '.join(sorted(rule.visibility))}" if rule.visibility else "",
        f"kinds {', '.join(sorted(rule.kinds))}" if rule.kinds else "",
        f"created from {utc_text(rule.created_from_ms)}" if rule.created_from_ms else "",
        f"created until {utc_text(rule.created_until_ms)}" if rule.created_until_ms else "",
    ]
    return "; ".join([f"line {rule.line}, {rule.basis}", *filter(None, conditions)])


def line_json(replayed: Replayed) -> dict[str, Any]:
    """What `replay --format json` prints for one content line."""
    return {
        "line": replayed.line,
        "outcome": str(replayed.outcome),
        "reason": str(replayed.reason),
        "record": None if replayed.value is None else json.loads(replayed.value),
    }


def summary_json(outcomes: Iterable[Replayed]) -> dict[str, Any]:
    """What `replay --format json` prints last."""
    counts: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    mismatches = 0
    for replayed in outcomes:
        counts[replayed.reason] += 1
        verdicts[replayed.outcome] += 1
        mismatches += not replayed.matches
    return {
        "summary": {
            **{str(verdict): verdicts[verdict] for verdict in Verdict},
            "counts": {str(reason): counts[reason] for reason in sorted(counts)},
            "mismatches": mismatches,
        }
    }
