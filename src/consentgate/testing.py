"""Policies and record shapes under test: the service's decisions in memory, at a time that is set.

    enforcer = Enforcer("linkedin", now="2024-09-19T12:00:00Z")
    enforcer.consent("m1", {"subject": "m1", "jurisdiction": "GB", "adult": True})
    post = {
        "id": "e1",
        "subject": "m1",
        "kind": "post",
        "visibility": "public",
        "created_at": "2024-09-19T10:00:00Z",
    }
    assert enforcer.content("m1", post).verdict == "forward"
    enforcer.clock.set("2024-09-20T00:00:00Z")
    assert enforcer.content("m1", post).reason == "jurisdiction-suspended"

What is used is the very code of the service, without Kafka: one content and one consent partition.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consentgate.config import Config
from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.decode import consent_decoder, epoch_ms, subject_reader
from consentgate.core.explain import Explanation, explain
from consentgate.core.gate import Batch, BatchOutcome, Output
from consentgate.core.ledger import GENESIS, LedgerRecord, read_entry
from consentgate.core.model import ConsentState, Reason, Verdict
from consentgate.core.policy import Policy, Rule
from consentgate.engines import gate_of
from consentgate.policies import load_policy

__all__ = ["Clock", "Enforcer", "Outcome", "Payload"]

Payload = bytes | str | Mapping[str, Any] | None
"""A record's value: bytes, a text, what is written as compact JSON, or nothing (a tombstone)."""


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now: str | int | None = None) -> None:
        self._now_ms = 0
        self.set(time.time_ns() // 1_000_000 if now is None else now)

    @property
    def now_ms(self) -> int:
        """The moment, in epoch milliseconds."""
        return self._now_ms

    def set(self, now: str | int) -> None:
        """It is now this moment: an RFC 3339 time with a zone, or epoch milliseconds.

        Raises:
            ValueError: if the string is no such time.
        """
        self._now_ms = epoch_ms(now)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one content record, and why."""

    reason: Reason
    label: str  # of the jurisdiction, as the metrics have it
    forwarded: Output | None  # the training record with its headers
    quarantined: Output | None
    retractions: tuple[Output, ...]  # for the consent changes since the last outcome
    entry: LedgerRecord
    state: ConsentState | None  # what was held of the person
    rule: Rule | None  # in force for the person's jurisdiction

    @property
    def verdict(self) -> Verdict:
        """Whether it is forwarded, withheld or quarantined."""
        return self.reason.verdict


@dataclass(frozen=True, slots=True)
class _Content:
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Enforcer:
    """A gate, a consent table and a clock in memory, fed one record at a time.

    `policy` is a policy, a preset's name or a path. `now` is where the clock begins, by default at
    this machine's time; it stands still until `clock.set`.

    Raises:
        ConfigError: if the policy has errors, or lacks keys or an engine to be carried out.
        ValueError: if `now` is no time.
    """

    def __init__(
        self, policy: Policy | str, *, config: Config | None = None, now: str | int | None = None
    ) -> None:
        config = Config() if config is None else config
        given = load_policy(policy) if isinstance(policy, str) else policy
        self.clock = Clock(now)
        self._table = ConsentTable([0])
        self._gate = gate_of(config, given, 0, self._table)
        self.policy = self._gate.policy
        self._read_consent = consent_decoder(
            config.consent.fields, self.policy.purpose, config.limits.max_depth
        )
        self._subject_of = subject_reader(
            self._gate.decode, key_is_subject=config.content.key_is_subject
        )
        self._changes: list[ConsentChange] = []
        self._previous = GENESIS
        self._next_offset = 0

    def consent(self, key: bytes | str | None, value: Payload) -> str | None:
        """Append a consent record; what makes it unreadable, if anything does.

        A record without a key changes nothing: a compacted topic takes none.
        """
        subject = payload_bytes(key)
        if subject is None:
            return "no-key"
        state, problem = self._read_consent(subject, payload_bytes(value))
        offset = self._table.frontier[0]
        self._table.apply(0, subject, state)
        after = self._table.holdings.get(subject)
        self._changes.append(ConsentChange(0, offset, self.clock.now_ms, subject, after))
        self._table.advance(0, offset + 1)
        return problem

    def content(
        self,
        key: bytes | str | None,
        value: Payload,
        *,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp_ms: int | None = None,
    ) -> Outcome:
        """Decide on one content record, now; without a timestamp it has that of the clock."""
        record = self._record(key, value, headers, timestamp_ms)
        made = self._judge(Batch(record.offset, record.offset + 1, [record]))
        state = self._state_of(record)
        return Outcome(
            reason=made.decisions[0].reason,
            label=made.decisions[0].label,
            forwarded=made.training[0] if made.training else None,
            quarantined=made.quarantine[0] if made.quarantine else None,
            retractions=tuple(made.retractions),
            entry=read_entry(made.entry.value),
            state=state,
            rule=self._rule_of(state),
        )

    def explain(
        self,
        key: bytes | str | None,
        value: Payload,
        *,
        headers: Sequence[tuple[str, bytes | None]] = (),
        timestamp_ms: int | None = None,
    ) -> Explanation:
        """Why `content` would come to what it comes to; the record is not taken in."""
        record = self._record(key, value, headers, timestamp_ms)
        return explain(self._gate, record, self.clock.now_ms)

    def settle(self) -> tuple[Output, ...]:
        """Commit without content, as an idle partition does: the retractions that were due."""
        offset = self._next_offset
        return tuple(self._judge(Batch(offset, offset, ())).retractions)

    def _record(
        self,
        key: bytes | str | None,
        value: Payload,
        headers: Sequence[tuple[str, bytes | None]],
        timestamp_ms: int | None,
    ) -> _Content:
        timestamp_ms = self.clock.now_ms if timestamp_ms is None else timestamp_ms
        known = payload_bytes(key), payload_bytes(value)
        return _Content(self._next_offset, timestamp_ms, *known, headers)

    def _judge(self, batch: Batch) -> BatchOutcome:
        made = self._gate.judge(batch, self._previous, self.clock.now_ms, self._changes)
        self._changes.clear()
        self._previous = made.entry.hash
        self._next_offset = batch.next_offset
        return made

    def _state_of(self, record: _Content) -> ConsentState | None:
        held = self._table.holdings.get(self._subject_of(record))
        return None if held is None else held.state

    def _rule_of(self, state: ConsentState | None) -> Rule | None:
        if state is None or state.jurisdiction is None:
            return None
        found = self.policy.at(self.clock.now_ms).find(state.jurisdiction)
        return None if found is None else found[0]


def payload_bytes(payload: Payload) -> bytes | None:
    """The bytes of a payload: a text's are UTF-8, anything else's its compact JSON.

    Raises:
        UnicodeEncodeError: if it has half of a surrogate pair, which no bytes mean.
    """
    if payload is None or isinstance(payload, bytes):
        return payload
    if not isinstance(payload, str):
        payload = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    # kcat prints bytes that are no UTF-8 as lone surrogates or replaces them; keep what can be.
    return payload.encode(errors="surrogateescape")
