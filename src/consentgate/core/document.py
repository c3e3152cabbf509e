"""A YAML document that knows its line numbers, for policy and configuration files.

What is read is the plain part of YAML 1.2: mappings with string keys, lists, and scalars of the
core schema with decimal numbers. So `NO`, `yes` and `2024-09-20T00:00:00Z` are strings, and only
`true` and `false` are booleans. A repeated key, an alias and a tag are problems: what a reader of
the file sees is what the program gets, and a small file stays small.

PyYAML's own scanner is used even where libyaml is there, so that one file is read, and refused,
alike on every machine.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypeAlias

import yaml

Value: TypeAlias = "bool | int | float | str | list[Value] | dict[str, Value] | None"
"""What a document holds."""

Path: TypeAlias = tuple[str | int, ...]
"""The keys and list indices that lead to a value; empty for the whole document."""

Severity: TypeAlias = Literal["error", "warning"]

MAX_DEPTH = 32
"""How deep lists and mappings may nest; policies need four levels, configurations fewer."""

_NAMED_DEPTH = 4

_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
}
# Eighteen digits fit into 64 bits. A longer row of digits is an identifier, and stays a string.
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one place of a file; its text is `file:line: key: message`."""

    file: str
    line: int
    """Counted from 1."""
    key: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.key}: {self.message}"


@dataclass(frozen=True, eq=False)
class Document:
    """A file's values, the lines they stand on, and what is wrong with the file as YAML."""

    file: str
    value: Value
    """None for an empty file, and for one that is not YAML at all."""
    lines: Mapping[Path, int]
    problems: tuple[Problem, ...]

    def line(self, path: Path) -> int:
        """The line (from 1) of the key or list item at `path`, or of what should hold it."""
        while path not in self.lines and path:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: Path, message: str, severity: Severity = "error") -> Problem:
        """A problem with the value at `path`."""
        return Problem(self.file, self.line(path), key_text(path), message, severity)

    def unknown_keys(
        self, path: Path, mapping: Mapping[str, Value], known: Collection[str]
    ) -> list[Problem]:
        """A problem for each key of `mapping`, which stands at `path`, that is not `known`."""
        return [
            self.problem((*path, key), f"unknown key, {nearest(key, known)}")
            for key in mapping
            if key not in known
        ]


def parse_document(text: str, file: str) -> Document:
    """Reads `text`, the content of `file`; never raises, what is wrong is in `problems`."""
    builder = _Builder(text, file)
    try:
        value = builder.build()
    except _Unreadable as error:
        value = None
        # Deeper than any of our files the path would only be long.
        key = key_text(builder.at[:_NAMED_DEPTH])
        builder.problems.append(Problem(file, error.line, key, str(error)))
    return Document(file, value, builder.lines, tuple(builder.problems))


def key_text(path: Path) -> str:
    """A path as people write it: `rules[0].basis`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{_printable(part)}" if text else _printable(part)
    return text or "(document)"


def shown(value: str) -> str:
    """A string of a file as a message quotes it: on one line and not too long."""
    return repr(value if len(value) <= 60 else f"{value[:57]}...")


def type_name(value: Value) -> str:
    """What people call the type of `value`: "a list", "a string"."""
    if value is None:
        return "nothing"
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "a mapping")


def did_you_mean(word: str, known: Collection[str]) -> str | None:
    """A hint at the known word that is most like a mistyped one; None where none is like it."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = get_close_matches(word.casefold(), by_folded, n=1)
    return f"did you mean {by_folded[close[0]]!r}?" if close else None


def nearest(word: str, known: Collection[str]) -> str:
    """A hint for a mistyped word: the known word that is most like it, or else all of them."""
    return did_you_mean(word, known) or f"use one of {', '.join(known)}"


class _Unreadable(Exception):
    """The text is no document of ours from this line on."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class _Builder:
    """Turns the events of PyYAML's parser into values.

    Events instead of nodes, because they come without recursion: the depth is bounded here before
    anything is built, and an alias is seen before it is followed.
    """

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._file = file
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        self._line_now = 1
        self.at: Path = ()
        """What is being read; where reading stops, the place that is named."""
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []

    def build(self) -> Value:
        self._next()  # The start of the stream.
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None
        value = self._node(self._next(), ())
        self._next()  # The end of the document.
        if not isinstance(self._next(), yaml.StreamEndEvent):
            message = "a second document begins, put it into a file of its own"
            raise _Unreadable(self._line_now, message)
        return value

    def _next(self) -> yaml.Event:
        try:
            event: yaml.Event = next(self._events)
        except yaml.MarkedYAMLError as error:
            raise _unreadable(error) from None
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            message = f"the character U+{error.character:04X}, which YAML does not allow"
            raise _Unreadable(line, f"{message}, take it out") from None
        except (ValueError, OverflowError):
            # PyYAML does not check the code point of an escape such as "\UFFFFFFFF".
            message = "a number or an escape that is out of range, here or below, correct it"
            raise _Unreadable(self._line_now, message) from None
        self._line_now = _line(event)
        return event

    def _node(self, event: yaml.Event, path: Path) -> Value:
        self.lines.setdefault(path, _line(event))
        if getattr(event, "tag", None) is not None:
            self._problem(path, event, "tags are not supported, quote what is meant as a string")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        if isinstance(event, yaml.AliasEvent):
            raise _Unreadable(_line(event), "aliases are not supported, write the value out")
        if len(path) >= MAX_DEPTH:
            raise _Unreadable(_line(event), f"lists and mappings nest deeper than {MAX_DEPTH}")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(path)
        return self._mapping(path)

    def _list(self, path: Path) -> list[Value]:
        values: list[Value] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self.at = (*path, len(values))
            values.append(self._node(event, self.at))
            self.at = path
        return values

    def _mapping(self, path: Path) -> dict[str, Value]:
        values: dict[str, Value] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event, path)
            first_line = lines.setdefault(key, _line(event))
            self.lines.setdefault((*path, key), first_line)
            self.at = (*path, key)
            value = self._node(self._next(), self.at)
            self.at = path
            if key in values:
                message = f"repeats the key of line {first_line}, take one of them out"
                self._problem((*path, key), event, message)
            values.setdefault(key, value)
        return values

    def _key(self, event: yaml.Event, path: Path) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            raise _Unreadable(
                _line(event), f"a key of {key_text(path)} is not a string, write a word"
            )
        if not isinstance(self._scalar(event, path), str):
            problem = f"the key {shown(event.value)} is not a string, put it into quotes"
            self._problem(path, event, problem)
        return str(event.value)

    def _scalar(self, event: yaml.ScalarEvent, path: Path) -> Value:
        text = str(event.value)
        if event.style is None:
            return _plain(text)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._problem(path, event, "an escape that is half of a surrogate pair")
        return text

    def _problem(self, path: Path, event: yaml.Event, message: str) -> None:
        self.problems.append(Problem(self._file, _line(event), key_text(path), message))


def _plain(text: str) -> Value:
    """The value of a scalar without quotes, by YAML 1.2's core schema."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


# What PyYAML says, by a part of it, in words for people who write no parsers.
_IN_OTHER_WORDS = {
    "scanning an alias": 'an asterisk without quotes would be an alias, write "*"',
    "scanning an anchor": "an ampersand without quotes would be an anchor, put it into quotes",
    "character '\\t'": "a tab, indent with spaces",
    "scanning a quoted scalar": "a text in quotes that does not end, close the quotes",
    "parsing a flow sequence": "a list in brackets that goes wrong, look for a missing comma or ]",
    "parsing a flow mapping": "a mapping in braces that goes wrong, look for a missing comma or }",
    "mapping values are not allowed": "a colon where no key can be, indent the line like its "
    "neighbours, or put a text with a colon into quotes",
    "could not find expected ':'": "a line that is neither a key nor an item of a list, write "
    "'key: value' or '- item'",
    "parsing a block": "a line that is indented otherwise than those it belongs to, indent them "
    "alike",
    "that cannot start any token": "a text that begins with a special character, put it into "
    "quotes",
}


def _unreadable(error: yaml.MarkedYAMLError) -> _Unreadable:
    said = f"{error.problem} {error.context or ''}".strip()
    words = (words for part, words in _IN_OTHER_WORDS.items() if part in said)
    # What is never closed is noticed at the end of the file, and mended where it begins.
    is_open = error.context is not None and ("quoted" in said or "flow" in said)
    mark = error.context_mark if is_open else error.problem_mark
    return _Unreadable(mark.line + 1 if mark else 1, next(words, f"not YAML: {said}"))


def _line(event: yaml.Event) -> int:
    assert event.start_mark is not None, "an event of the parser has a mark"
    return event.start_mark.line + 1


def _printable(part: str) -> str:
    return part if part.isprintable() and part else shown(part)
