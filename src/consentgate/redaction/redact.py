"""Texts in, texts out: every identifier that was found is a placeholder."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence

import phonenumbers
import stdnum

from consentgate.core.document import nearest
from consentgate.core.policy import DETECTORS
from consentgate.errors import ConfigError
from consentgate.redaction.detectors import DETECT, NEEDS, Found, Record

RULES_VERSION = "1"
"""The version of this package's own patterns; a change of what they find is a new one."""

MAX_PASSES = 8
"""How often what is left of a text is searched again.

Two passes are the rule: one that finds, and one that finds nothing more. Where the last one still
finds, the whole piece is taken for an identifier, because it is made to have no end of them.
"""

_PLACEHOLDER = re.compile(rf"\[(?:{'|'.join(name.upper() for name in DETECTORS)})(?:-\d{{1,9}})?\]")


class Redactor:
    """Replaces what some of the policy's detectors find.

    It has no state beside their names: it can be pickled, used by threads, and made anew cheaply.
    """

    def __init__(self, detectors: Collection[str]) -> None:
        """`detectors` are members of `DETECTORS`; raises `ConfigError` for any other name."""
        for name in detectors:
            if name not in DETECTORS:
                raise ConfigError(f"policy: redact: no such detector, {nearest(name, DETECTORS)}")
        self._names = tuple(name for name in DETECT if name in detectors)

    def redact(self, texts: Sequence[str], jurisdiction: str | None) -> list[str]:
        """The texts of one record, in their order, with placeholders for identifiers.

        `jurisdiction` is the ISO 3166-1 alpha-2 code of the country where the subject lives, None
        where nobody knows. The first identifier of a kind becomes `[EMAIL]`, the second different
        one `[EMAIL-2]`, and the same one the same placeholder in all texts of the call. What has
        been redacted stays as it is when it is redacted again.
        """
        record = Record(jurisdiction)
        numbers: dict[str, dict[str, int]] = {name: {} for name in self._names}
        return [self._redacted(text, record, numbers) for text in texts]

    def find(self, text: str, jurisdiction: str | None) -> list[Found]:
        """What would be replaced in `text`, in its order; no two of them overlap."""
        return self._find(text, Record(jurisdiction))

    def _redacted(self, text: str, record: Record, numbers: dict[str, dict[str, int]]) -> str:
        parts = []
        done = 0
        for found in self._find(text, record):
            known = numbers[found.kind]
            number = known.setdefault(found.key, len(known) + 1)
            suffix = "" if number == 1 else f"-{number}"
            parts += [text[done : found.start], f"[{found.kind.upper()}{suffix}]"]
            done = found.end
        return "".join([*parts, text[done:]]) if parts else text

    def _find(self, text: str, record: Record) -> list[Found]:
        folded = fold(text)
        found = sorted(self._search(folded, record))
        if len(folded) == len(text) or not found:
            return found
        places = [place for place, char in enumerate(text) if _FOLDED[ord(char)]]
        return [
            span._replace(start=places[span.start], end=places[span.end - 1] + 1) for span in found
        ]

    def _search(self, text: str, record: Record) -> list[Found]:
        # What lies between placeholders is searched until nothing is found there any more. So the
        # output has nothing left to find, whatever a placeholder brings about for its neighbours.
        found: list[Found] = []
        pieces = list(_gaps(_placeholders(text), 0, len(text)))
        for number in range(1, MAX_PASSES + 1):
            rest: list[tuple[int, int]] = []
            for start, end in pieces:
                spans = self._search_piece(text, start, end, record)
                if spans and number == MAX_PASSES:
                    spans = [spans[0]._replace(start=start, end=end)]
                if spans:
                    found += spans
                    rest += _gaps(((span.start, span.end) for span in spans), start, end)
            pieces = rest
        return found

    def _search_piece(self, text: str, start: int, end: int, record: Record) -> list[Found]:
        piece = text[start:end]
        spans = [
            span._replace(start=start + span.start, end=start + span.end)
            for name in self._names
            if NEEDS[name].search(piece)
            for span in DETECT[name](piece, record)
        ]
        return list(_merged(spans))


def redact(texts: Sequence[str], detectors: Collection[str], jurisdiction: str | None) -> list[str]:
    """The texts of one record without what these detectors find; as `Redactor.redact` does it."""
    return Redactor(detectors).redact(texts, jurisdiction)


def fold(text: str) -> str:
    """`text` as detectors read it: compatible characters as ASCII, invisible ones left out.

    Digits of all scripts, full-width and mathematical letters, dashes and spaces become their ASCII
    characters, one for one. Letters with accents stay.
    """
    return text if _PLAIN.fullmatch(text) else text.translate(_FOLDED)


def engine_versions(detectors: Collection[str]) -> dict[str, str]:
    """The versions of all that decides what `detectors` find, by name; for the policy's hash.

    Raises:
        ConfigError: if they find names, and what it takes is not installed.
    """
    versions = {"rules": RULES_VERSION} if detectors else {}
    if "phone" in detectors:
        versions["phonenumbers"] = phonenumbers.__version__
    if not {"iban", "card", "national-id"}.isdisjoint(detectors):
        versions["python-stdnum"] = stdnum.__version__
    if "name" in detectors:
        # It takes seconds to import, and needs an extra of its own.
        from consentgate.redaction.names import versions_of_names  # noqa: PLC0415

        versions |= versions_of_names()
    return versions


class _Folded(dict[int, str]):
    """What each character is folded to; filled as characters come up."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _folded(chr(code))
        return folded


def _folded(char: str) -> str:
    if _PLAIN.fullmatch(char):
        return char
    category = unicodedata.category(char)
    if category == "Cf" or "\ufe00" <= char <= "\ufe0f":
        return ""
    if category in ("Nd", "Pd", "Zs"):
        return {"Pd": "-", "Zs": " "}.get(category) or str(unicodedata.decimal(char))
    compatible = unicodedata.normalize("NFKC", char)
    return compatible if len(compatible) == 1 and compatible.isascii() else char


_FOLDED = _Folded()
_PLAIN = re.compile("[\x00-\x7f\xa1-\xac\xae-\u02af\u2018-\u201f\u2026\u20ac]*+")


def _placeholders(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _PLACEHOLDER.finditer(text))


def _gaps(spans: Iterable[tuple[int, int]], start: int, end: int) -> Iterator[tuple[int, int]]:
    """What of `start` to `end` lies between `spans`."""
    for span_start, span_end in spans:
        if start < span_start:
            yield start, span_start
        start = span_end
    if start < end:
        yield start, end


def _merged(spans: list[Found]) -> list[Found]:
    """One span for all that overlap, so that no part of what was found is left over.

    It has the kind of the longest. `spans` come with the most specific first, which wins where two
    are the same; they leave in their order in the text.
    """
    merged: list[Found] = []
    longest = 0
    for span in sorted(spans, key=lambda span: span.start):
        length = span.end - span.start
        if not merged or span.start >= merged[-1].end:
            merged.append(span)
            longest = length
            continue
        before = merged[-1]
        winner = span if length > longest else before
        longest = max(length, longest)
        merged[-1] = winner._replace(start=before.start, end=max(before.end, span.end))
    return merged
