"""The checker finds what it is there to find: a sound set of topics, spoilt in one place each."""

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from checker import GENESIS, NO_RECORD, Kept, Names, Seen, Tally, problems, tally
from harness import consent, post

NAMES = Names("g", "content", "consent", "training", "decisions", "quarantine", "retractions")
REASONS = ["opted-in", "withdrawn", "undecodable"]
POLICY = "opt-in@000000000000"


def kept(partition: int, offset: int, sent: Any, *headers: tuple[str, str]) -> Kept:
    encoded = [(name, value.encode()) for name, value in headers]
    return Kept(partition, offset, 1_000 + offset, sent.key, sent.value, encoded)


def entry(first: int, codes: list[int], frontier: int, previous: str) -> dict[str, Any]:
    """A ledger entry of the first content partition; a code is an index into `REASONS`."""
    counts: dict[str, int] = {}
    for code in codes:
        if code != NO_RECORD:
            counts[REASONS[code]] = counts.get(REASONS[code], 0) + 1
    packed = base64.b64encode(zlib.compress(bytes(codes))).decode() if codes else ""
    return {
        "group": "g",
        "source": {
            "topic": "content",
            "partition": 0,
            "first": first,
            "last": first + len(codes) - 1,
        },
        "decided_at": 5_000,
        "consent": {"0": frontier},
        "policy": POLICY,
        "counts": {"*": counts} if counts else {},
        "outcomes": {"reasons": REASONS if codes else [], "codes": packed},
        "previous": previous,
    }


def sealed(body: dict[str, Any]) -> dict[str, Any]:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return body | {"hash": hashlib.sha256(canonical.encode()).hexdigest()}


def ledger(*bodies: Callable[[str], dict[str, Any]]) -> dict[int, list[Kept]]:
    """Entries in a chain, each made from the hash of the one before."""
    records, previous = [], GENESIS
    for offset, body in enumerate(bodies):
        made = sealed(body(previous))
        previous = made["hash"]
        records.append(Kept(0, offset, 0, b"g/content-0", json.dumps(made).encode(), ()))
    return {0: records}


def training(offset: int, source: Kept, frontier: int) -> Kept:
    own = (
        ("consentgate.source", f"content-0@{source.offset}".encode()),
        ("consentgate.consent", f"consent-0@{frontier}".encode()),
        ("consentgate.policy", POLICY.encode()),
    )
    return source._replace(offset=offset, headers=[*(source.headers or ()), *own])


def sound() -> Seen:
    """Anna grants, posts and withdraws, Ben grants and posts; one record cannot be read."""
    content = [
        kept(0, 0, post("anna", "e0"), ("trace", "1")),
        kept(0, 1, post("ben", "e1")),
        kept(0, 3, post("ben", "e3")._replace(value=b"{")),  # An offset before it is a marker.
        kept(0, 4, post("anna", "e4")),
        kept(0, 5, post("ben", "e5")),
    ]
    said = [consent("anna"), consent("ben"), consent("anna", "withdrawn")]
    errors = {"topic": "content", "partition": "0", "offset": "3"}
    headers = [(f"__connect.errors.{name}", value) for name, value in errors.items()]
    retraction = {"subject": "anna", "consent": "consent-0@2", "before": "content-0@4"}
    return Seen(
        names=NAMES,
        content={0: content},
        consent={0: [kept(0, offset, sent) for offset, sent in enumerate(said)]},
        training={
            0: [
                training(0, content[0], 2),
                training(1, content[1], 2),
                training(2, content[4], 3),
            ]
        },
        decisions=ledger(
            lambda previous: entry(0, [0, 0], 2, previous),
            lambda previous: entry(2, [NO_RECORD, 2], 2, previous),
            lambda previous: entry(4, [], 3, previous),
            lambda previous: entry(4, [1, 0], 3, previous),
        ),
        quarantine={0: [kept(0, 0, content[2], *headers)]},
        retractions={0: [Kept(0, 0, 0, b"anna", json.dumps(retraction).encode(), ())]},
        committed={0: 6},
    )


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert problems(sound()) == []
    assert tally(sound()) == (0, 0, 0)


def spoilt_entry(number: int, **fields: Any) -> Callable[[Seen], None]:
    """Change an entry, and seal it anew; the next one names another entry then."""

    def spoil(seen: Seen) -> None:
        record = seen.decisions[0][number]
        body = json.loads(record.value or b"") | fields
        del body["hash"]
        seen.decisions[0][number] = record._replace(value=json.dumps(sealed(body)).encode())

    return spoil


def without(log: str, number: int) -> Callable[[Seen], None]:
    return lambda seen: getattr(seen, log)[0].pop(number)


def twice(log: str, number: int) -> Callable[[Seen], None]:
    return lambda seen: getattr(seen, log)[0].append(getattr(seen, log)[0][number])


def with_training(number: int, **parts: Any) -> Callable[[Seen], None]:
    def spoil(seen: Seen) -> None:
        records = seen.training[0]
        records[number] = records[number]._replace(**parts)

    return spoil


def with_header(name: str, value: bytes) -> Callable[[Seen], None]:
    def spoil(seen: Seen) -> None:
        record = seen.training[0][0]
        headers = [(n, value if n == name else v) for n, v in record.headers or ()]
        seen.training[0][0] = record._replace(headers=headers)

    return spoil


def with_ledger(*bodies: Callable[[str], dict[str, Any]]) -> Callable[[Seen], None]:
    def spoil(seen: Seen) -> None:
        seen.decisions = ledger(*bodies)

    return spoil


def swap_training(seen: Seen) -> None:
    records = seen.training[0]
    records[1], records[2] = (
        records[2]._replace(offset=1),
        records[1]._replace(offset=2),
    )


def forward_the_withdrawn(seen: Seen) -> None:
    """Forward Anna's second post, with a ledger that says so."""
    seen.training[0].append(training(3, seen.content[0][3], 3))
    seen.decisions = ledger(
        lambda previous: entry(0, [0, 0], 2, previous),
        lambda previous: entry(2, [NO_RECORD, 2], 2, previous),
        lambda previous: entry(4, [0, 0], 3, previous),
    )


def change_unsealed(seen: Seen) -> None:
    record = seen.decisions[0][3]
    body = json.loads(record.value or b"") | {"decided_at": 1}
    seen.decisions[0][3] = record._replace(value=json.dumps(body).encode())


def drop_a_header(seen: Seen) -> None:
    record = seen.training[0][0]
    seen.training[0][0] = record._replace(headers=list(record.headers or ())[1:])


SPOILS: dict[str, Callable[[Seen], None]] = {
    "entry 1 (4..3) does not begin at 2": without("decisions", 1),
    "entry 4 (4..5) does not begin at 6": twice("decisions", 3),
    "does not name the entry before it": spoilt_entry(0, decided_at=1),
    "has another hash than its content": change_unsealed,
    "counts other outcomes than its codes": with_ledger(
        lambda p: entry(0, [0, 0], 2, p) | {"counts": {}}
    ),
    "has a frontier that went back": with_ledger(
        lambda p: entry(0, [0, 0], 3, p),
        lambda p: entry(2, [NO_RECORD, 2], 2, p),
        lambda p: entry(4, [1, 0], 3, p),
    ),
    "decided up to 2, the last is 5": with_ledger(lambda p: entry(0, [0, 0], 2, p)),
    "the group has committed 5": lambda seen: seen.committed.update({0: 5}),
    "(0, 0) was forwarded 2 times": twice("training", 0),
    "forwarded are 1 fewer than": without("training", 1),
    "(0, 3) was quarantined 2 times": twice("quarantine", 0),
    "quarantined are 1 fewer than": without("quarantine", 0),
    "accounts for 1 that the content does not have": without("content", 1),
    "out of its key's order": swap_training,
    "forwarded with another value": with_training(0, value=b"{}"),
    "forwarded with another key": with_training(0, key=b"other"),
    "forwarded with another timestamp": with_training(0, timestamp=0),
    "with other headers": drop_a_header,
    "rests on b'consent-0@1'": with_header("consentgate.consent", b"consent-0@1"),
    "names another policy": with_header("consentgate.policy", b"other@000000000000"),
    "is opted-in, but consent below {0: 3} says withdrawn": forward_the_withdrawn,
    "is withdrawn, but consent below {0: 2} says opted-in": with_ledger(
        lambda p: entry(0, [0, 1], 2, p),
        lambda p: entry(2, [NO_RECORD, 2], 2, p),
        lambda p: entry(4, [1, 0], 3, p),
    ),
    "content-0@1: is no record, says the ledger": with_ledger(
        lambda p: entry(0, [0, NO_RECORD], 2, p),
        lambda p: entry(2, [NO_RECORD, 2], 2, p),
        lambda p: entry(4, [1, 0], 3, p),
    ),
    "no retraction for consent consent-0@2, before 4": without("retractions", 0),
    "was forwarded, and not retracted in the end": without("retractions", 0),
}


@pytest.mark.parametrize(("finding", "spoil"), SPOILS.items(), ids=SPOILS)
def test_what_is_wrong_is_found(finding: str, spoil: Callable[[Seen], None]) -> None:
    seen = sound()
    spoil(seen)
    assert any(finding in problem for problem in problems(read_anew(seen)))


def read_anew(seen: Seen) -> Seen:
    return Seen(**{f: getattr(seen, f) for f in Seen.__slots__ if f != "chains"})


@pytest.mark.parametrize(
    ("counted", "spoil"),
    [
        (Tally(1, 0, 0), without("training", 1)),
        (Tally(5, 0, 3), lambda seen: seen.decisions.clear()),
        (Tally(0, 1, 0), twice("training", 0)),
        (Tally(0, 0, 1), forward_the_withdrawn),
    ],
)
def test_what_is_wrong_is_counted(counted: Tally, spoil: Callable[[Seen], None]) -> None:
    seen = sound()
    spoil(seen)
    assert tally(read_anew(seen)) == counted
