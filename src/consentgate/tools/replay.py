"""Fixtures through the same core, without a broker."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consentgate.config import Config
from consentgate.core.consent import ConsentTable
from consentgate.core.decode import consent_decoder, content_decoder
from consentgate.core.explain import Explanation, explain
from consentgate.core.gate import Batch, Gate
from consentgate.core.ledger import GENESIS, Chain
from consentgate.core.model import Reason, Verdict
from consentgate.core.policy import Policy
from consentgate.engines import equip
from consentgate.errors import FixtureError
from consentgate.tools.fixtures import ClockLine, FixtureRecord, read_fixture


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of one content line."""

    line: int
    reason: Reason
    label: str
    value: bytes | None  # that would be forwarded
    expect: str | None

    def __str__(self) -> str:
        text = f"{self.outcome}:{self.reason} ({self.label})"
        return text if self.matches else f"{text}, but {self.expect} was expected"

    @property
    def outcome(self) -> Verdict:
        """The verdict."""
        return self.reason.verdict

    @property
    def matches(self) -> bool:
        """Whether the outcome is the expected one; so it is where nothing was expected."""
        return self.expect in (None, self.outcome, f"{self.outcome}:{self.reason}")


@dataclass(frozen=True, slots=True)
class _Content:
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


class Replay:
    """A gate and a consent table in memory, fed by fixture lines in file order."""

    def __init__(self, config: Config, policy: Policy) -> None:
        policy, transformer = equip(config, policy)
        self._topics = config.topics
        self._table = ConsentTable([0])
        self._read_consent = consent_decoder(
            config.consent.fields, policy.purpose, config.limits.max_depth
        )
        self._gate = Gate(
            chain=Chain(config.group, config.topics.content, 0),
            consent_topic=config.topics.consent,
            table=self._table,
            policy=policy,
            decode=content_decoder(config.content.fields, config.limits.max_depth),
            limits=config.limits.of_content(),
            key_is_subject=config.content.key_is_subject,
            transformer=transformer,
        )
        self._now_ms: int | None = None
        self._previous = GENESIS
        self._next_offset = 0

    def feed(self, line: FixtureRecord | ClockLine) -> Replayed | None:
        """Take in one line; the outcome, where it is a content line.

        Raises:
            FixtureError: if its topic is neither the content nor the consent topic.
        """
        if isinstance(line, ClockLine):
            self._now_ms = line.now_ms
            return None
        if line.topic == self._topics.consent:
            self._take_consent(line)
            return None
        if line.topic == self._topics.content:
            return self._take_content(line)
        raise FixtureError(
            f"line {line.line}: the topic is {line.topic}, but must be {self._topics.content} or "
            f"{self._topics.consent}, as the configuration names them"
        )

    def explain(self, line: FixtureRecord) -> Explanation:
        """Why a content line would come out as it does, were it fed next; it is not taken in."""
        return explain(self._gate, *self._record(line))

    def _take_consent(self, line: FixtureRecord) -> None:
        if line.key is not None:
            state, _ = self._read_consent(line.key, line.value)
            self._table.apply(0, line.key, state)
        self._table.advance(0, self._table.frontier[0] + 1)

    def _take_content(self, line: FixtureRecord) -> Replayed:
        record, now_ms = self._record(line)
        offset = record.offset
        outcome = self._gate.judge(Batch(offset, offset + 1, [record]), self._previous, now_ms)
        self._next_offset += 1
        self._previous = outcome.entry.hash
        (made,) = outcome.counts
        value = outcome.training[0].value if outcome.training else None
        return Replayed(line.line, made.reason, made.label, value, line.expect)

    def _record(self, line: FixtureRecord) -> tuple[_Content, int]:
        """The record of a content line, and the moment at which it is decided."""
        clock_ms, timestamp_ms = self._now_ms, line.timestamp_ms
        if timestamp_ms is None:
            timestamp_ms = time.time_ns() // 1_000_000 if clock_ms is None else clock_ms
        now_ms = timestamp_ms if clock_ms is None else clock_ms
        record = _Content(self._next_offset, timestamp_ms, line.key, line.value, line.headers)
        return record, now_ms


def replay(
    config: Config, policy: Policy, paths: Iterable[Path]
) -> Iterator[tuple[Path, Replayed]]:
    """Replay fixture files one after another, each from an empty consent table."""
    for path in paths:
        memory = Replay(config, policy)
        for line in read_fixture(path):
            outcome = memory.feed(line)
            if outcome is not None:
                yield path, outcome


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
