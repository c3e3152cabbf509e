"""How much more it costs to decode records whose fields lie deeper, as in CloudEvents or Debezium.

The same events and consent states are decoded flat and in each shape; the two take turns in each
round, and the fastest round of each counts. A flat record is filled up to the size of the nested
one, so that the bytes alone make no difference.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from consentgate.core.decode import (
    ConsentFields,
    ContentEvent,
    ContentFields,
    consent_decoder,
    content_decoder,
)
from workload import Workload

RECORDS = 4_000
ROUNDS = 100
DEPTH = 64
PURPOSE = "ai-training"

Row = dict[str, Any]
Decode = Callable[[bytes, bytes], Any]


@dataclass(frozen=True, slots=True)
class Shape:
    """Where a record keeps its fields, and how such a record is made from a flat one."""

    name: str
    content: ContentFields
    consent: ConsentFields
    nest_content: Callable[[Row], Row]
    nest_consent: Callable[[Row], Row]


def _cloud_event(kind: str, time_: Any, data: Row) -> Row:
    head = {"specversion": "1.0", "source": "/posts", "type": kind, "time": time_}
    return {**head, "datacontenttype": "application/json", "data": data}


def _cloud_content(row: Row) -> Row:
    author = {"id": row["subject"], "name": "A. N. Other"}
    data = {"author": author, "audience": row["visibility"], "body": row["body"]}
    return {"id": row["id"], **_cloud_event(row["kind"], row["created_at"], data)}


def _cloud_consent(row: Row) -> Row:
    person = {"id": row["subject"], "residence": {"country": row["jurisdiction"]}}
    data = {"person": {**person, "adult": row["adult"]}, "preferences": row["choices"]}
    return {"id": "c1", **_cloud_event("preference.changed", 0, data)}


def _debezium(row: Row) -> Row:
    source = {"connector": "postgresql", "db": "posts", "table": "posts", "lsn": 24_023_128}
    payload = {
        "before": None,
        "after": row,
        "source": source,
        "op": "c",
        "ts_ms": 1_726_747_200_000,
    }
    return {"schema": {"type": "struct", "optional": False}, "payload": payload}


def _below(prefix: str, fields: type[ContentFields] | type[ConsentFields]) -> dict[str, str]:
    return {name: f"{prefix}.{name}" for name in fields.__dataclass_fields__}


FLAT = Shape("flat", ContentFields(), ConsentFields(), dict, dict)
CLOUD_EVENTS = Shape(
    "CloudEvents",
    ContentFields("id", "data.author.id", "type", "data.audience", "time", "data.body"),
    ConsentFields(
        "data.person.id", "data.person.residence.country", "data.person.adult", "data.preferences"
    ),
    _cloud_content,
    _cloud_consent,
)
DEBEZIUM = Shape(
    "Debezium",
    ContentFields(**_below("payload.after", ContentFields)),
    ConsentFields(**_below("payload.after", ConsentFields)),
    _debezium,
    _debezium,
)
SHAPES = (FLAT, CLOUD_EVENTS, DEBEZIUM)


def main() -> None:
    """Print microseconds a record for each shape, and the ratio to flat ones of the same size."""
    workload = Workload(RECORDS)
    content = [(event.key, json.loads(event.value)) for event in workload.events(RECORDS)]
    consent = [(key, json.loads(value)) for key, value in workload.consent()]
    for shape in SHAPES[1:]:
        _compare("content", shape, content)
        _compare("consent", shape, consent)


def _compare(kind: str, shape: Shape, rows: list[tuple[bytes, Row]]) -> None:
    nested = [(key, _bytes(_nest(kind, shape)(row))) for key, row in rows]
    # Beside the fields, so that the decoder passes over it as over what the shape adds.
    flat = [
        (key, _bytes({**row, "padding": "x" * max(0, len(value) - len(_bytes(row)) - 13)}))
        for (key, row), (_, value) in zip(rows, nested, strict=True)
    ]
    fastest = {FLAT.name: float("inf"), shape.name: float("inf")}
    for _ in range(ROUNDS):
        for each, records in ((FLAT, flat), (shape, nested)):
            seconds = _time(_decoder(kind, each), records)
            fastest[each.name] = min(fastest[each.name], seconds)
    flat_us, nested_us = (seconds / len(rows) * 1e6 for seconds in fastest.values())
    size = sum(len(value) for _, value in nested) / len(nested)
    print(
        f"{kind}, {shape.name}, {size:.0f} bytes: {nested_us:.2f} µs a record, flat "
        f"{flat_us:.2f} µs, ratio {nested_us / flat_us:.2f}"
    )


def _nest(kind: str, shape: Shape) -> Callable[[Row], Row]:
    return shape.nest_content if kind == "content" else shape.nest_consent


def _decoder(kind: str, shape: Shape) -> Decode:
    if kind == "consent":
        return consent_decoder(shape.consent, PURPOSE, DEPTH)
    decode = content_decoder(shape.content, DEPTH)
    return lambda _, value: decode(value)


def _time(decode: Decode, records: list[tuple[bytes, bytes]]) -> float:
    key, value = records[0]
    read = decode(key, value)
    assert isinstance(read, ContentEvent) or read[1] is None, "the records can be read"
    began = time.perf_counter()
    for key, value in records:
        decode(key, value)
    return time.perf_counter() - began


def _bytes(row: Row) -> bytes:
    return json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode()


if __name__ == "__main__":
    main()
