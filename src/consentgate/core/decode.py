"""Bytes to typed content events and consent states; whatever cannot be read gets its reason.

Content: a typed fast path accepts, a slow path explains what it refused. Consent: strict, because
a record that is read wrongly here would forward somebody's posts.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Annotated, Any, NoReturn

import msgspec
import orjson

from consentgate.core.countries import COUNTRIES
from consentgate.core.model import UNREADABLE, Choice, ConsentState, Reason, consent_state

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_UTC = datetime(1970, 1, 1)  # noqa: DTZ001 - of times that are known to be UTC
_PLAIN_LENGTH = len("2024-09-20T10:00:00Z")
_MILLISECOND = timedelta(milliseconds=1)
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{}\[\]]', re.DOTALL)
"""Brackets, and whole strings so that the brackets in them are passed over.

A string without an end reaches to the end, and nothing is tried twice: else the quotes in it, each
taken for a beginning, would cost the square of their number.
"""

_Name = Annotated[str, msgspec.Meta(min_length=1)]
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_Moment = str | int
_CHOICES = {choice.value: choice for choice in Choice}
_CONTENT_TYPES: dict[str, Any] = {
    "id": _Name,
    "subject": _Name,
    "kind": _Name,
    "visibility": _Name,
    "created_at": _Moment,
}


@dataclass(frozen=True, slots=True)
class ContentFields:
    """Where a content event keeps its fields, each as a dotted path."""

    id: str = "id"
    subject: str = "subject"
    kind: str = "kind"
    visibility: str = "visibility"
    created_at: str = "created_at"
    body: str = "body"


@dataclass(frozen=True, slots=True)
class ConsentFields:
    """Where a consent record keeps its fields, each as a dotted path."""

    subject: str = "subject"
    jurisdiction: str = "jurisdiction"
    adult: str = "adult"
    choices: str = "choices"


class ContentEvent(msgspec.Struct, frozen=True, gc=False):
    """What the decision needs to know of a content event."""

    id: str
    subject: str
    kind: str
    visibility: str
    created_at_ms: int


ContentDecoder = Callable[[bytes], ContentEvent | Reason]
"""Gives `Reason.UNDECODABLE` or `Reason.MISSING_FIELD` where there is no event in the bytes."""

ConsentDecoder = Callable[[bytes | None, bytes | None], tuple[ConsentState | None, str | None]]
"""Key and value to the state (None: no consent record) and what is wrong with the record."""


def nested_too_deep(value: bytes, max_depth: int) -> bool:
    """Whether brackets nest beyond `max_depth` outside of strings."""
    # Most records have no lists, and to find out is faster than to count them.
    lists = 0 if value.find(b"[") < 0 else value.count(b"[")
    if lists + value.count(b"{") <= max_depth:
        return False
    depth = 0
    for token in _BRACKETS.finditer(value):
        bracket = token.group()
        depth += (bracket in (b"{", b"[")) - (bracket in (b"}", b"]"))
        if depth > max_depth:
            return True
    return False


def path_problems(fields: ContentFields | ConsentFields) -> dict[str, str]:
    """Why some fields cannot be where their paths say, by the field's name.

    What a path comes to in a record is not known here: one that leads nowhere is a missing field.
    """
    paths: dict[str, str] = asdict(fields)
    problems = {}
    for name, path in paths.items():
        others = {other for other in paths if other != name and _meet(path, paths[other])}
        # The body may well hold other fields: they are read before rules change anything of it.
        met = min(others - {"body"}, default=None)
        if "" in path.split("."):
            problems[name] = f"the path {path!r} has an empty name in it"
        elif met is not None and name != "body":
            problems[name] = f"the path {path!r} meets another field's path, {paths[met]!r} ({met})"
    return problems


def _meet(path: str, other: str) -> bool:
    """Whether the paths are the same, or one leads through the other's field."""
    return f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}.")


def _refuse_paths(fields: ContentFields | ConsentFields) -> None:
    for name, problem in path_problems(fields).items():
        raise ValueError(f"{name}: {problem}")


def content_decoder(fields: ContentFields, max_depth: int) -> ContentDecoder:
    """A decoder of content events that keep their fields at these paths.

    Raises:
        ValueError: if one path leads through another's field, or has an empty name in it.
    """
    _refuse_paths(fields)
    paths = {name: getattr(fields, name) for name in _CONTENT_TYPES}
    decode_struct = msgspec.json.Decoder(_struct_of(paths)).decode
    pick = attrgetter(*(".".join(map(_attribute, path.split("."))) for path in paths.values()))

    def decode(value: bytes) -> ContentEvent | Reason:
        if nested_too_deep(value, max_depth) or not _is_utf8(value):
            return Reason.UNDECODABLE
        try:
            id_, subject, kind, visibility, created_at = pick(decode_struct(value))
            return ContentEvent(id_, subject, kind, visibility, epoch_ms(created_at))
        except ValueError:
            # What the typed decoder refuses is a ValueError, too.
            return _decode_field_by_field(value, paths)

    return decode


def subject_reader(decode: ContentDecoder, *, key_is_subject: bool) -> Callable[[Any], bytes]:
    """Tells whose a content or training record is; nobody's, b"", where that cannot be read."""

    def subject_of(record: Any) -> bytes:
        if key_is_subject:
            return record.key or b""
        event = decode(record.value or b"")
        return event.subject.encode() if isinstance(event, ContentEvent) else b""

    return subject_of


def epoch_ms(moment: str | int) -> int:
    """Epoch milliseconds of a time with a zone (RFC 3339), rounded down; an integer is just that.

    Raises:
        ValueError: if the string is no such time.
    """
    if isinstance(moment, int):
        return moment
    if len(moment) == _PLAIN_LENGTH and moment[4::3] == "--T::Z" and moment.isascii():
        # Nearly all are written like 2024-09-20T10:00:00Z, which is much faster to read.
        since = datetime.fromisoformat(moment[:-1]) - _EPOCH_UTC
        return since.days * 86_400_000 + since.seconds * 1000
    found = _RFC3339.fullmatch(moment)
    if found is None:
        raise ValueError("not a time with a zone, such as 2024-09-20T10:00:00Z")
    day, time, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone
    seconds = datetime.fromisoformat(f"{day}T{time}{zone}") - _EPOCH
    return seconds // _MILLISECOND + int((fraction or "0")[:3].ljust(3, "0"))


def _is_utf8(value: bytes) -> bool:
    # The typed decoder skips the strings that it does not need without looking at their bytes.
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _struct_of(paths: dict[str, str]) -> Any:
    """A typed structure with just the fields at the paths, nested as the dots say."""
    tree: dict[str, Any] = {}
    for name, path in paths.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _CONTENT_TYPES[name]
    return _define(tree)


def _define(tree: dict[str, Any]) -> Any:
    fields = [
        (_attribute(name), _define(kind) if isinstance(kind, dict) else kind)
        for name, kind in tree.items()
    ]
    rename = {_attribute(name): name for name in tree}
    return msgspec.defstruct("Content", fields, rename=rename, gc=False)


def _attribute(name: str) -> str:
    """An attribute for a JSON name, which need not be an identifier."""
    return f"field_{name.encode().hex()}"


def _decode_field_by_field(value: bytes, paths: dict[str, str]) -> ContentEvent | Reason:
    """What the typed decoder refused, read again: the last of repeated keys counts."""
    try:
        msgspec.json.decode(value, type=msgspec.Raw)
    except msgspec.DecodeError:
        return Reason.UNDECODABLE
    try:
        id_, subject, kind, visibility, created_at = (
            msgspec.json.decode(_raw_at(value, paths[name]), type=kind)
            for name, kind in _CONTENT_TYPES.items()
        )
        return ContentEvent(id_, subject, kind, visibility, epoch_ms(created_at))
    except (ValueError, KeyError):
        return Reason.MISSING_FIELD


def _raw_at(value: bytes, path: str) -> bytes:
    raw = msgspec.Raw(value)
    for name in path.split("."):
        raw = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])[name]
    return bytes(raw)


_Names = tuple[str, ...]
"""A dotted path, taken apart."""


class _Unreadable(Exception):
    """Why a consent record cannot be trusted; a word for logs and metrics, never a payload."""


def consent_decoder(fields: ConsentFields, purpose: str, max_depth: int) -> ConsentDecoder:
    """A decoder of consent records that keeps only what `purpose` needs.

    Raises:
        ValueError: if one path leads through another's field, or has an empty name in it.
    """
    _refuse_paths(fields)
    find = _finder({name: tuple(path.split(".")) for name, path in asdict(fields).items()})

    def decode(key: bytes | None, value: bytes | None) -> tuple[ConsentState | None, str | None]:
        if value is None:
            return None, None
        try:
            return _read_consent(key, find(_strict_json(value, max_depth)), purpose), None
        except _Unreadable as problem:
            return UNREADABLE, str(problem)

    return decode


def _strict_json(value: bytes, max_depth: int) -> Any:
    if nested_too_deep(value, max_depth):
        raise _Unreadable("nested-too-deep")
    try:
        # What comes out again byte for byte had no repeated key and no number out of range. The
        # strict parser, which sees repeated keys, takes several times as long.
        document = orjson.loads(value)
        if orjson.dumps(document) == value:
            return document
        return _STRICT.decode(value.decode())
    except ValueError:
        raise _Unreadable("not-json") from None


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise _Unreadable("duplicate-key")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise _Unreadable("not-json")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)


def _finder(paths: Mapping[str, _Names]) -> Callable[[Any], tuple[Any, Any, Any, Any]]:
    """Gives what stands at the paths of subject, jurisdiction, adult and choices."""
    places = paths["subject"], paths["jurisdiction"], paths["adult"], paths["choices"]

    def find(document: Any) -> tuple[Any, Any, Any, Any]:
        subject, jurisdiction, adult, choices = places
        return (
            _at(document, subject),
            _at(document, jurisdiction),
            _at(document, adult),
            _at(document, choices, {}),
        )

    if any(len(place) > 1 for place in places):
        return find
    (subject,), (jurisdiction,), (adult,), (choices,) = places

    def find_at_the_top(document: Any) -> tuple[Any, Any, Any, Any]:
        # The same for nearly all that there are, without asking four times what the document is.
        if not isinstance(document, dict):
            raise _Unreadable("wrong-type")
        get = document.get
        return get(subject), get(jurisdiction), get(adult), get(choices, {})

    return find_at_the_top


def _read_consent(
    key: bytes | None, found: tuple[Any, Any, Any, Any], purpose: str
) -> ConsentState:
    subject, jurisdiction, adult, choices = found
    if not isinstance(subject, str) or not subject:
        raise _Unreadable("no-subject")
    if key != subject.encode(errors="surrogatepass"):
        raise _Unreadable("key-is-not-subject")
    return consent_state(
        _read_jurisdiction(jurisdiction), _read_adult(adult), _read_choice(choices, purpose)
    )


def _at(document: Any, path: _Names, default: Any = None) -> Any:
    for name in path:
        if not isinstance(document, dict):
            raise _Unreadable("wrong-type")
        if name not in document:
            return default
        document = document[name]
    return document


def _read_jurisdiction(jurisdiction: Any) -> str | None:
    if jurisdiction is not None and not isinstance(jurisdiction, str):
        raise _Unreadable("wrong-type")
    return jurisdiction if jurisdiction in COUNTRIES else None


def _read_adult(adult: Any) -> bool | None:
    if adult is not None and not isinstance(adult, bool):
        raise _Unreadable("wrong-type")
    return adult


def _read_choice(choices: Any, purpose: str) -> Choice | None:
    """The choice for the purpose; every choice must be readable, whatever it is for."""
    if not isinstance(choices, dict):
        raise _Unreadable("wrong-type")
    read: dict[str, Choice] = {}
    for name, entry in choices.items():
        if not isinstance(entry, dict):
            raise _Unreadable("wrong-type")
        choice = entry.get("choice")
        # Only a string can be looked up.
        chosen = _CHOICES.get(choice) if isinstance(choice, str) else None
        if chosen is None:
            raise _Unreadable("unknown-choice")
        read[name] = chosen
    return read.get(purpose)
