"""What was set aside: who it was of, which of it goes back to the content topic, and what has gone.

A record that goes back is a new one there, and is decided as any other.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import msgspec

from consentgate.core.decide import Limits, is_too_large
from consentgate.core.gate import (
    ERRORS_PREFIX,
    OWN_HEADERS,
    REDRIVEN_HEADER,
    SIZE_HEADER,
    Headers,
    Output,
)
from consentgate.core.model import Reason, Record, Verdict

REASONS = tuple(reason for reason in Reason if reason.verdict is Verdict.QUARANTINE)
"""Why a record can be set aside."""

_NUMBER = re.compile(rb"[0-9]{1,19}")
_TOPIC = re.compile(rb"[a-zA-Z0-9._-]{1,249}")


@dataclass(frozen=True, slots=True)
class SetAside:
    """What the headers of a quarantined record say of it."""

    topic: str  # of the input
    partition: int
    offset: int
    group: str
    reason: Reason
    bytes: int | None  # of the value that came; None where there was none, or it is not known
    attempts: int | None  # how often it was redriven before; None where that cannot be read

    @property
    def source(self) -> str:
        """Where it came from, as topic-partition@offset."""
        return f"{self.topic}-{self.partition}@{self.offset}"


def read_set_aside(record: Record) -> SetAside | None:
    """What a record of the quarantine topic is; None where it is none that a worker put there."""
    # The last header of a name: ours come behind what came with the record.
    by_name = dict(record.headers)

    def told(name: str) -> bytes:
        return by_name.get(ERRORS_PREFIX + name) or b""

    topic, partition, offset = told("topic"), told("partition"), told("offset")
    reason = _REASON_OF.get(told("exception.class.name"))
    numbers = _NUMBER.fullmatch(partition) and _NUMBER.fullmatch(offset)
    if reason is None or not numbers or not _TOPIC.fullmatch(topic):
        return None
    if record.value is None:
        size = by_name.get(SIZE_HEADER) or b""
        size_bytes = int(size) if _NUMBER.fullmatch(size) else None
    else:
        size_bytes = len(record.value)
    return SetAside(
        topic=topic.decode(),
        partition=int(partition),
        offset=int(offset),
        group=told("connector.name").decode(errors="replace"),
        reason=reason,
        bytes=size_bytes,
        attempts=_attempts(record.headers),
    )


_REASON_OF = {str(reason).encode(): reason for reason in REASONS}


def _attempts(headers: Any) -> int | None:
    found = [value or b"" for name, value in headers if name == REDRIVEN_HEADER]
    if not found:
        return 0
    number = found[-1].partition(b" ")[0]
    return int(number) if _NUMBER.fullmatch(number) else None


class Selection(NamedTuple):
    """Which quarantined records are meant; times in epoch milliseconds, of the quarantining."""

    reasons: Collection[Reason] = REASONS
    since_ms: int | None = None  # included
    until_ms: int | None = None  # excluded
    partition: int | None = None  # of the input

    def holds(self, found: SetAside, timestamp_ms: int) -> bool:
        """Whether this record is meant."""
        return (
            found.reason in self.reasons
            and (self.since_ms is None or timestamp_ms >= self.since_ms)
            and (self.until_ms is None or timestamp_ms < self.until_ms)
            and (self.partition is None or found.partition == self.partition)
        )


def redriven(record: Record, found: SetAside, place: str, now_ms: int) -> Output:
    """What is appended to the content topic again: key, value and headers as they once came.

    The time is now: it is a new record there, which retention must not delete before it is
    decided. `place` is where the record stands in the quarantine.
    """
    assert found.attempts is not None, "how often it was redriven is known"
    came_with: Headers = [
        header
        for header in record.headers
        if not header[0].startswith(ERRORS_PREFIX) and header[0] not in OWN_HEADERS
    ]
    mark = (REDRIVEN_HEADER, f"{found.attempts + 1} {place}".encode())
    return Output(now_ms, record.key, record.value, [*came_with, mark])


def grew_too_large(output: Output, limits: Limits) -> bool:
    """Whether the record would now be quarantined as too large, and so lose its value."""
    return is_too_large(_Appended(0, *output), limits)


class _Appended(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Progress:
    """Which records of one partition of the quarantine have been redriven.

    Of each kind - the input partition, the reason and the earlier attempts - it keeps ranges of
    offsets of which all records of this kind have been redriven. So it does not matter with which
    filters that was: whatever the next ones are, no record goes twice, and none is passed over.
    What is of another kind does not break a range, so there are few of them.

    Records are to be told in the order of their offsets, from the first that is left on.
    """

    def __init__(self, ranges: Mapping[str, list[list[int]]] | None = None) -> None:
        self._ranges: dict[str, list[list[int]]] = dict(ranges or {})
        self._last: dict[str, int] = {}

    @classmethod
    def decode(cls, text: str) -> "Progress | None":
        """From the metadata of a committed offset; None where that is none of ours."""
        try:
            return cls(msgspec.json.decode(text, type=_Written).redriven)
        except msgspec.DecodeError:
            return None

    def encode(self) -> str:
        """As metadata of a committed offset."""
        return msgspec.json.encode(_Written(self._ranges)).decode()

    def forget_below(self, first: int) -> None:
        """Forget what is no longer there: everything below the first offset that is left."""
        for kind, ranges in list(self._ranges.items()):
            left = [each for each in ranges if each[1] >= first]
            if left:
                self._ranges[kind] = left
            else:
                del self._ranges[kind]

    def has(self, found: SetAside, offset: int) -> bool:
        """Whether this record has been redriven."""
        ranges = self._ranges.get(_kind(found), [])
        at = bisect_right(ranges, offset, key=itemgetter(0)) - 1
        return at >= 0 and offset <= ranges[at][1]

    def redriven(self, found: SetAside, offset: int) -> None:
        """Take in a record that is being redriven, or has been before."""
        kind = _kind(found)
        ranges = self._ranges.setdefault(kind, [])
        if not self.has(found, offset):
            ranges.insert(bisect_right(ranges, offset, key=itemgetter(0)), [offset, offset])
        at = bisect_right(ranges, offset, key=itemgetter(0)) - 1
        last = self._last.get(kind)
        if last is not None and at > 0 and ranges[at - 1][0] <= last <= ranges[at - 1][1]:
            # No record of this kind that was left lies in between.
            ranges[at - 1 : at + 1] = [[ranges[at - 1][0], ranges[at][1]]]
        self._last[kind] = offset

    def left(self, found: SetAside) -> None:
        """Take in a record that is left where it is, and may be redriven another time."""
        self._last.pop(_kind(found), None)


class _Written(msgspec.Struct, frozen=True):
    redriven: dict[str, list[list[int]]]


def _kind(found: SetAside) -> str:
    return f"{found.partition} {found.reason} {found.attempts}"
