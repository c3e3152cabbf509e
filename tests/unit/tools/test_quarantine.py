"""What `quarantine list` and `quarantine redrive` print, for people and as JSON."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson

from consentgate.core.model import Reason
from consentgate.core.quarantine import Selection, SetAside
from consentgate.tools.quarantine import (
    EXAMPLES_MAX,
    Entry,
    Left,
    Redriven,
    Request,
    counts_text,
    entry_json,
    entry_line,
    payload_lines,
    redriven_json,
    redriven_lines,
)

REQUEST = Request(Selection(), attempts_max=1, limit=None, dry_run=False)


@dataclass(frozen=True)
class Kept:
    """A record of the quarantine."""

    key: bytes | None = b"anna"
    value: bytes | None = b"{\x1b[2J\x9b\n"
    timestamp: int = 1_726_826_400_123


def entry(record: Kept | None = None, *, is_redriven: bool = False, **changes: Any) -> Entry:
    facts = {"topic": "content", "partition": 0, "offset": 7, "group": "g", "attempts": 0}
    facts |= {"reason": Reason.UNDECODABLE, "bytes": 1_131, **changes}
    return Entry("quarantine-0@3", record or Kept(), SetAside(**facts), is_redriven)


def test_a_line_says_where_why_when_and_how_large() -> None:
    assert entry_line(entry()) == (
        "quarantine-0@3  content-0@7  undecodable       2024-09-20T10:00:00.123Z     1,131 bytes"
        "  kept"
    )


def test_a_line_says_what_has_become_of_the_record() -> None:
    def state(*arguments: Any, **changes: Any) -> str:
        return entry_line(entry(*arguments, **changes)).rpartition("  ")[2]

    assert state(is_redriven=True) == "redriven"
    assert state(attempts=1) == "kept, had been redriven"
    assert state(Kept(value=None)) == "value not kept"
    assert state(Kept(value=None), bytes=None) == "no value"


def test_neither_key_nor_value_is_shown_unless_asked_for() -> None:
    assert "anna" not in entry_line(entry())
    shown = orjson.loads(orjson.dumps(entry_json(entry(), with_payload=False)))
    assert shown == {
        "record": "quarantine-0@3",
        "source": "content-0@7",
        "group": "g",
        "reason": "undecodable",
        "at": 1_726_826_400_123,
        "bytes": 1_131,
        "value_kept": True,
        "attempts": 0,
        "redriven": False,
    }
    payload = {"key": "anna", "payload_base64": "extbMkqbCg=="}
    assert entry_json(entry(), with_payload=True) == shown | payload


def test_a_payload_cannot_command_a_terminal() -> None:
    assert payload_lines(entry()) == [
        "  key    'anna'",
        r"  value  '{\x1b[2J\\x9b\n'",
    ]
    assert payload_lines(entry(Kept(None, None))) == ["  key    none", "  value  none"]


def test_the_sum_is_told_by_reason() -> None:
    assert counts_text({}) == "0 records"
    assert counts_text({"undecodable": 1}) == "1 record: 1 undecodable"
    counts = {"undecodable": 1_200, "too-large": 3}
    assert counts_text(counts) == "1,203 records: 3 too-large, 1,200 undecodable"


def result() -> Redriven:
    made = Redriven(Counter({"missing-field": 1_200, "undecodable": 1}))
    for number in range(EXAMPLES_MAX + 2):
        made.leave(Left.NO_VALUE, f"q-0@{number}")
    made.leave(Left.REDRIVEN, "q-0@99")
    return made


def test_what_is_left_is_counted_and_the_first_are_named() -> None:
    assert redriven_lines(REQUEST, result(), "content") == [
        "appended to content: 1,201 (1,200 missing-field, 1 undecodable)",
        "left: 1 redriven by an earlier run, such as q-0@99",
        "left: 5 whose value is not in the quarantine, such as q-0@0, q-0@1, q-0@2",
    ]


def test_a_dry_run_says_what_would_be() -> None:
    dry = REQUEST._replace(dry_run=True)
    assert redriven_lines(dry, Redriven(), "content") == ["would be appended to content: 0"]
    assert orjson.loads(orjson.dumps(redriven_json(dry, result()))) == {
        "dry_run": True,
        "appended": {"missing-field": 1_200, "undecodable": 1},
        "left": {
            "value-not-kept": {
                "records": 5,
                "such_as": ["q-0@0", "q-0@1", "q-0@2"],
            },
            "redriven-before": {"records": 1, "such_as": ["q-0@99"]},
        },
    }
