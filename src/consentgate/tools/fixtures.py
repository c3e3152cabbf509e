"""Fixtures: JSON lines as `kcat -J` prints them, with a clock and expectations."""

import base64
import binascii
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consentgate.core.decode import epoch_ms
from consentgate.core.model import Reason, Verdict
from consentgate.errors import FixtureError

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
        return ClockLine(number, _time(line["now"], "now"))
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
    if value is None:
        return None
    if not isinstance(value, str):
        raise _Malformed(f'"{name}" must be a string or null')
    return _bytes(value, name)


def _bytes(text: str, name: str) -> bytes:
    # kcat prints bytes that are no UTF-8 as lone surrogates or replaces them; keep what can be.
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise _Malformed(f'"{name}" has half of a surrogate pair, which no bytes mean') from None


def _payload(line: dict[str, Any]) -> bytes | None:
    if "payload_base64" in line:
        try:
            return base64.b64decode(line["payload_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise _Malformed('"payload_base64" is not base64') from None
    payload = line.get("payload")
    if payload is None:
        return None
    text = payload
    if not isinstance(payload, str):
        text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False)
    return _bytes(text, "payload")


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
