"""Consent records that are alike are decoded once.

Nearly all records of a topic differ from some hundreds of them in nothing but whose they are and
in digits, such as those of the time of a choice. What is left without these is a record's pattern.
It is remembered only where the strict decoder reads it, with somebody as the subject, and where
neither the subject nor any digit can make a difference to what is read.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from consentgate.core.decode import ConsentDecoder
from consentgate.core.model import ConsentState

PATTERNS_MAX = 8_192
"""How many patterns are remembered; the first ones, so that odd ones do not drive others out."""

PATTERN_BYTES_MAX = 1_024

_SOMEBODY = b"\0"
"""Stands for the subject in a pattern; no JSON has that byte."""
_PLAIN = bytes(
    byte if 0x20 <= byte < 0x7F and byte not in b'"\\' else ord("?") for byte in range(256)
)
"""Changes each byte that does not stand for itself in a JSON string."""
_ZERO = ord("0")
_ONES = bytes.maketrans(b"0123456789", b"1111111111")
_STRING_OR_NUMBER = re.compile(rb'"[^"]*"|1{2,}')
"""Strings, so that the digits in them are passed over, and numbers that could begin with a zero."""

_Pattern = tuple[ConsentState, tuple[int, ...]]
"""What all its records come to, and the places where none of them may have a zero."""


@dataclass(slots=True)
class _Patterns:
    """The patterns that have come, and what those come to that have come again."""

    decode: ConsentDecoder
    known: dict[bytes, _Pattern | None] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def take_note(self, pattern: bytes) -> None:
        """A record of it was read."""
        if pattern in self.known or len(pattern) > PATTERN_BYTES_MAX:
            return
        # Only what comes again is worth the time that it takes to see what it comes to.
        if pattern in self.seen:
            self.known[pattern] = _come_to(pattern, self.decode)
        elif len(self.seen) < PATTERNS_MAX:
            self.seen.add(pattern)


def decoding_alike_once(decode: ConsentDecoder) -> ConsentDecoder:
    """The same decoder, which remembers what patterns come to."""
    patterns = _Patterns(decode)
    known = patterns.known

    def decode_alike(
        key: bytes | None, value: bytes | None
    ) -> tuple[ConsentState | None, str | None]:
        if not key or value is None or key.translate(_PLAIN) != key:
            return decode(key, value)
        text = value.replace(b'"%b"' % key, _SOMEBODY, 1)
        if len(text) == len(value):
            return decode(key, value)
        pattern = text.translate(_ONES)
        found = known.get(pattern)
        if found is None:
            result = decode(key, value)
            # What cannot be read has to say why, each time.
            if result[1] is None:
                patterns.take_note(pattern)
            return result
        state, numbers = found
        for place in numbers:
            if text[place] == _ZERO:
                return decode(key, value)
        return state, None

    return decode_alike


def _come_to(pattern: bytes, decode: ConsentDecoder) -> _Pattern | None:
    """What every record of the pattern comes to; None if that depends on more than the pattern."""
    # No pattern has a zero in it, so that it is the subject only where somebody stands.
    somebody = pattern.replace(_SOMEBODY, b'"0"')
    state, problem = decode(b"0", somebody)
    # In an escape, digits say which character it is.
    if problem is not None or state is None or b"\\" in pattern:
        return None
    if not _digits_do_not_count(orjson.loads(somebody)):
        return None
    tokens = _STRING_OR_NUMBER.finditer(pattern)
    return state, tuple(token.start() for token in tokens if token[0].isdigit())


def _digits_do_not_count(part: Any) -> bool:
    """Whether they stand in values alone: those in a name say which field or purpose it is.

    And not in those of numbers that are no integers, which may become too large to be read.
    """
    if isinstance(part, dict):
        named = not any("1" in name for name in part)
        return named and all(map(_digits_do_not_count, part.values()))
    if isinstance(part, list):
        return all(map(_digits_do_not_count, part))
    return not isinstance(part, float)
