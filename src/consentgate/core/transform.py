"""What a rule makes of a record before it goes on: fields selected, texts redacted, pseudonyms.

It works on the JSON text: what is not changed keeps its bytes, down to how a number is written.
Whatever cannot be done raises, and the record is withheld.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from consentgate.core.decode import ContentFields
from consentgate.core.policy import Rule
from consentgate.core.pseudonym import Pseudonyms

Redact = Callable[[Sequence[str], Sequence[str], str | None], Sequence[str]]
"""The texts of one record, the names of detectors and the subject's jurisdiction to the texts
without what was detected."""

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_string = msgspec.json.Decoder(str).decode


class Work(NamedTuple):
    """A record to be transformed."""

    value: bytes
    subject: bytes
    rule: Rule
    jurisdiction: str | None  # of the subject: national formats follow it


def cannot_redact(texts: Sequence[str], detectors: Sequence[str], jurisdiction: str | None) -> Any:
    """Stands where no engine is: nothing that is to be redacted goes on."""
    raise LookupError("there is no engine to redact with")


@dataclass(frozen=True, slots=True)
class Transformer:
    """Carries out what rules ask for. Raises for whatever cannot be done."""

    fields: ContentFields = field(default_factory=ContentFields)
    pseudonyms: Pseudonyms = field(default_factory=Pseudonyms)
    redact: Redact = cannot_redact

    def value(self, work: Work) -> bytes:
        """The record's value as it may go on."""
        rule, value = work.rule, work.value
        if rule.fields is not None or rule.redact:
            body = self.fields.body.split(".")
            value = _change_at(value, body, lambda raw: self._change_body(raw, work))
        if rule.pseudonymize:
            value = _replace_string(value, work.subject, self.pseudonyms.of(work.subject))
        return value

    def subject_or_pseudonym(self, found: bytes | None, work: Work) -> bytes | None:
        """A key or a header's value as it may go on: the subject's id only where it may be seen."""
        if work.rule.pseudonymize and found == work.subject:
            return self.pseudonyms.of(work.subject)
        return found

    def _change_body(self, body: bytes, work: Work) -> bytes:
        if body == b"null":
            return body
        if work.rule.fields is not None:
            body = _select(body, [name.split(".") for name in work.rule.fields])
        return self._redact_strings(body, work) if work.rule.redact else body

    def _redact_strings(self, body: bytes, work: Work) -> bytes:
        tokens = [found.group() for found in _STRING.finditer(body)]
        texts = [_decode_string(token) for token in tokens]
        redacted = self.redact(texts, work.rule.redact, work.jurisdiction)
        changed = iter(
            token if before == after else msgspec.json.encode(after)
            for token, before, after in zip(tokens, texts, redacted, strict=True)
        )
        return _STRING.sub(lambda _: next(changed), body)


def _change_at(value: bytes, path: Sequence[str], change: Callable[[bytes], bytes]) -> bytes:
    """Change what stands at the path, where something does.

    The text is always written anew: of a repeated key only the last one was looked at, and so only
    that one may go on.
    """
    members = _decode_members(value)
    name, *rest = path
    if name in members:
        inner = bytes(members[name])
        changed = _change_at(inner, rest, change) if rest else change(inner)
        members[name] = msgspec.Raw(changed)
    return msgspec.json.encode(members)


def _select(value: bytes, paths: Sequence[Sequence[str]]) -> bytes:
    """Only what stands at the paths, in the order in which it stood."""
    selected = {}
    for name, inner in _decode_members(value).items():
        rests = [path[1:] for path in paths if path[0] == name]
        if [] in rests:
            selected[name] = inner
        elif rests:
            selected[name] = msgspec.Raw(_select(bytes(inner), rests))
    return msgspec.json.encode(selected)


def _replace_string(value: bytes, subject: bytes, pseudonym: bytes) -> bytes:
    """Put the pseudonym wherever the subject's id is a whole string: a value, or a key."""
    plain, replacement = msgspec.json.encode(subject.decode()), b'"%b"' % pseudonym

    def replace(found: re.Match[bytes]) -> bytes:
        token = found.group()
        escaped = b"\\" in token and _decode_string(token).encode() == subject
        return replacement if escaped or token == plain else token

    return _STRING.sub(replace, value)
