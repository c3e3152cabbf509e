"""Fixtures: JSON lines as `kcat -J` prints them, with a clock and expectations."""

import base64
import binascii
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consentgate.core.decode import epoch_ms
from consentgate.core.model import Reason, Verdict
from consentgate.errors import FixtureError
from consentgate.testing import payload_bytes

_KNOWN = frozenset(
    ("topic", "key", "ts", "tstype", "broker", "headers", "payload", "payload_base64")
) | {"partition", "offset", "expect", "now"}


@dataclass(frozen=True, slots=True)
class FixtureRecord:
    """One record of a fixture."""

    line: int  # counted from 1
    topic: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)
    partition: int | None = None
    offset: int | None = None
    expect: str | None = None  # a verdict, or `verdict:reason`


@dataclass(frozen=True, slots=True)
class ClockLine:
    """From here on it is this moment, in epoch milliseconds."""

    line: int
    now_ms: int


def find_fixtures(paths: Iterable[Path]) -> list[Path]:
    """The files among the paths, and of each directory all `*.jsonl` below it, sorted.

    Raises:
        FixtureError: if there is none below a directory.
    """
    found = []
    for path in paths:
        below = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
        if not below:
            raise FixtureError(f"{path}: there is no *.jsonl below this directory")
        found += below
    return found


def read_fixture(path: Path) -> Iterator[FixtureRecord | ClockLine]:
    """The lines of a fixture file; blank lines and lines that begin with `#` are passed over.

    Raises:
        FixtureError: naming file, line and what is wrong with it.
    """
    try:
        with path.open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                if text.strip() and not text.lstrip().startswith(b"#"):
                    try:
                        yield _parse(number, text)
                    except _Malformed as problem:
                        raise FixtureError(f"{path}:{number}: {problem}") from None
    except OSError as error:
        raise FixtureError(f"{path}: cannot be read: {error.strerror}") from None


def write_expectations(path: Path, expect: Mapping[int, str]) -> None:
    """Set the `expect` of content lines, by line number; every other byte stays as it is.

    The file is replaced by a new one in one step, or not at all.

    Raises:
        FixtureError: if it cannot be read or written.
    """
    if not expect:
        return
    path = path.resolve()  # A link stays one.
    try:
        with path.open("rb") as file:
            lines = file.readlines()
        for number, outcome in expect.items():
            lines[number - 1] = _with_expectation(lines[number - 1], outcome)
        _replace(path, b"".join(lines))
    except OSError as error:
        raise FixtureError(f"{path}: cannot be updated: {error.strerror}") from None


def _replace(path: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            shutil.copymode(path, file.name)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


_SPACE = re.compile(r"[ \t\r\n]*")


def _with_expectation(line: bytes, outcome: str) -> bytes:
    """The line, a JSON object with members, with this expectation and else as it was."""
    text = line.decode(errors="surrogatepass")
    decode = json.JSONDecoder().raw_decode
    at = text.index("{")
    replaced = None
    gap = " "
    while text[at] != "}":
        key, at = decode(text, _after_space(text, at + 1))
        colon = _after_space(text, at)
        start = _after_space(text, colon + 1)
        gap = text[colon + 1 : start]
        _, end = decode(text, start)
        if key == "expect":
            replaced = (start, end)
        at = _after_space(text, end)
    # Of a repeated key the last one counts.
    start, end = replaced or (end, end)
    member = f'"{outcome}"' if replaced else f',{gap}"expect":{gap}"{outcome}"'
    return (text[:start] + member + text[end:]).encode(errors="surrogatepass")


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None, "it matches nothing, too"
    return space.end()


class _Malformed(Exception):
    """What is wrong with a line."""


def _parse(number: int, text: bytes) -> FixtureRecord | ClockLine:
    try:
        line = json.loads(text)
    except ValueError:
        raise _Malformed("the line is not JSON") from None
    except RecursionError:
        raise _Malformed("the line nests too deep, write such a payload as a string") from None
    if not isinstance(line, dict):
        raise _Malformed("the line is not a JSON object")
    unknown = sorted(line.keys() - _KNOWN)
    if unknown:
        raise _Malformed(f"unknown key {unknown[0]!r}")
    if "now" in line:
        clock = ClockLine(number, _time(line["now"], "now"))
        if len(line) > 1:
            raise _Malformed('"now" must stand in a line of its own')
        return clock
    if not isinstance(line.get("topic"), str):
        raise _Malformed('"topic" is missing or is not a string')
    return FixtureRecord(
        line=number,
        topic=line["topic"],
        key=_text(line.get("key"), "key"),
        value=_payload(line),
        timestamp_ms=None if line.get("ts") is None else _time(line["ts"], "ts"),
        headers=_headers(line.get("headers") or []),
        partition=_integer(line.get("partition"), "partition"),
        offset=_integer(line.get("offset"), "offset"),
        expect=_expectation(line.get("expect")),
    )


def _time(value: Any, name: str) -> int:
    try:
        if isinstance(value, str | int) and not isinstance(value, bool):
            return epoch_ms(value)
        raise ValueError
    except ValueError:
        raise _Malformed(
            f'"{name}" must be epoch milliseconds or a time with a zone, such as '
            "2024-09-20T10:00:00Z"
        ) from None


def _text(value: Any, name: str) -> bytes | None:
    if value is not None and not isinstance(value, str):
        raise _Malformed(f'"{name}" must be a string or null')
    try:
        return payload_bytes(value)
    except UnicodeEncodeError:
        raise _half_a_pair(name) from None


def _half_a_pair(name: str) -> _Malformed:
    return _Malformed(f'"{name}" has half of a surrogate pair, which no bytes mean')


def _payload(line: dict[str, Any]) -> bytes | None:
    if "payload_base64" in line:
        try:
            return base64.b64decode(line["payload_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise _Malformed('"payload_base64" is not base64') from None
    try:
        return payload_bytes(line.get("payload"))
    except UnicodeEncodeError:
        raise _half_a_pair("payload") from None


def _headers(flat: Any) -> list[tuple[str, bytes | None]]:
    if not isinstance(flat, list) or len(flat) % 2:
        raise _Malformed('"headers" must be a list of names and values in turn')
    return [
        (str(name), _text(value, "headers"))
        for name, value in zip(flat[::2], flat[1::2], strict=True)
    ]


def _integer(value: Any, name: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _Malformed(f'"{name}" must be an integer')
    return value


def _expectation(expect: Any) -> str | None:
    if expect is None:
        return None
    verdict, _, reason = str(expect).partition(":")
    verdicts = [str(known) for known in Verdict]
    if verdict not in verdicts:
        raise _Malformed(f'"expect" must begin with one of {", ".join(verdicts)}')
    reasons = [str(known) for known in Reason if known.verdict == verdict]
    if reason and reason not in reasons:
        raise _Malformed(f'"expect": {verdict} has the reasons {", ".join(reasons)}')
    return str(expect)
