"""The words of the decision: verdicts, reasons, consent states and records."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Protocol


class Verdict(StrEnum):
    """What becomes of a record."""

    FORWARD = "forward"
    WITHHOLD = "withhold"
    QUARANTINE = "quarantine"


class Reason(StrEnum):
    """Why a record was forwarded, withheld or quarantined; a closed set.

    The order of the members is their order in every table, never their precedence: that is in
    `consentgate.core.decide`.
    """

    verdict: Verdict

    def __new__(cls, name: str, verdict: Verdict) -> "Reason":
        reason = str.__new__(cls, name)
        reason._value_ = name
        reason.verdict = verdict
        return reason

    OPTED_IN = "opted-in", Verdict.FORWARD
    NOT_OPTED_OUT = "not-opted-out", Verdict.FORWARD

    NO_CONSENT_RECORD = "no-consent-record", Verdict.WITHHOLD
    CONSENT_UNREADABLE = "consent-unreadable", Verdict.WITHHOLD
    JURISDICTION_UNKNOWN = "jurisdiction-unknown", Verdict.WITHHOLD
    JURISDICTION_SUSPENDED = "jurisdiction-suspended", Verdict.WITHHOLD
    JURISDICTION_PROHIBITED = "jurisdiction-prohibited", Verdict.WITHHOLD
    NO_RULE = "no-rule", Verdict.WITHHOLD
    OPTED_OUT = "opted-out", Verdict.WITHHOLD
    WITHDRAWN = "withdrawn", Verdict.WITHHOLD
    OBJECTED = "objected", Verdict.WITHHOLD
    NOT_OPTED_IN = "not-opted-in", Verdict.WITHHOLD
    MINOR = "minor", Verdict.WITHHOLD
    AGE_UNKNOWN = "age-unknown", Verdict.WITHHOLD
    NOT_PUBLIC = "not-public", Verdict.WITHHOLD
    KIND_NOT_COVERED = "kind-not-covered", Verdict.WITHHOLD
    OUTSIDE_DATES = "outside-dates", Verdict.WITHHOLD
    REDACTION_FAILED = "redaction-failed", Verdict.WITHHOLD
    ERROR = "error", Verdict.WITHHOLD

    TOMBSTONE = "tombstone", Verdict.QUARANTINE
    TOO_LARGE = "too-large", Verdict.QUARANTINE
    UNDECODABLE = "undecodable", Verdict.QUARANTINE
    MISSING_FIELD = "missing-field", Verdict.QUARANTINE
    SUBJECT_MISMATCH = "subject-mismatch", Verdict.QUARANTINE
    BAD_TIMESTAMP = "bad-timestamp", Verdict.QUARANTINE


class Choice(StrEnum):
    """What a person chose for one purpose."""

    GRANTED = "granted"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"
    OBJECTED = "objected"


@dataclass(frozen=True, slots=True, eq=False)
class ConsentState:
    """One person's consent as far as the policy's purpose needs it. Made by `consent_state` only.

    States are interned, so that identity is equality, a hash costs nothing and millions of
    subjects share a few hundred objects.
    """

    jurisdiction: str | None  # ISO 3166-1 alpha-2; None where it is missing or is no such code
    adult: bool | None  # None: the age is not known
    choice: Choice | None  # None: the person never chose


@cache
def consent_state(
    jurisdiction: str | None, adult: bool | None, choice: Choice | None
) -> ConsentState:
    """The one `ConsentState` of these values."""
    return ConsentState(jurisdiction, adult, choice)


UNREADABLE = ConsentState(None, None, None)
"""The state of a person whose consent record cannot be trusted; never eligible."""


class Record(Protocol):
    """A consumed Kafka record, as the core needs it."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int:
        """Epoch milliseconds."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """A reason and what it is counted under. Made by `decision` only, and so interned."""

    reason: Reason
    label: str  # of the jurisdiction: the matching rule's group or country, `*`, or `unknown`
    consent_partition: int | None  # that holds the person's state, where the state decided


@cache
def decision(reason: Reason, label: str, consent_partition: int | None = None) -> Decision:
    """The one `Decision` of these values."""
    return Decision(reason, label, consent_partition)


UNKNOWN_JURISDICTION = "unknown"
"""The jurisdiction label of a record that no rule matched."""
