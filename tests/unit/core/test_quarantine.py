"""What is read of a quarantined record, what goes back of it, and what is remembered of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentgate.core.decide import Limits
from consentgate.core.gate import Headers
from consentgate.core.model import Reason
from consentgate.core.quarantine import (
    REASONS,
    Progress,
    Selection,
    SetAside,
    grew_too_large,
    read_set_aside,
    redriven,
)

PLACE = "content-quarantine-3@17"
NOW_MS = 1_726_826_400_000


@dataclass(frozen=True)
class Kept:
    """A record of the quarantine."""

    headers: Sequence[tuple[str, bytes | None]]
    value: bytes | None = b"{}"
    key: bytes | None = b"m1"
    offset: int = 17
    timestamp: int = NOW_MS


def headers(*came_with: tuple[str, bytes | None], **changes: bytes | None) -> Headers:
    facts = {
        "topic": b"content-events",
        "partition": b"3",
        "offset": b"1234",
        "connector.name": b"consentgate",
        "stage": b"DECODE",
        "exception.class.name": b"missing-field",
    }
    facts.update({name.replace("_", "."): value for name, value in changes.items()})
    return [*came_with, *((f"__connect.errors.{name}", value) for name, value in facts.items())]


def found(**changes: Any) -> SetAside:
    known = {
        "topic": "content-events",
        "partition": 3,
        "offset": 1234,
        "group": "consentgate",
        "reason": Reason.MISSING_FIELD,
        "bytes": 2,
        "attempts": 0,
    }
    return SetAside(**{**known, **changes})


def test_the_headers_say_what_a_record_was() -> None:
    assert read_set_aside(Kept(headers())) == found()
    assert found().source == "content-events-3@1234"


def test_the_headers_that_we_added_count() -> None:
    forged = ("__connect.errors.offset", b"7")
    assert read_set_aside(Kept(headers(forged))) == found()


@pytest.mark.parametrize(
    "changes",
    [
        {"exception_class_name": b"opted-in"},
        {"exception_class_name": None},
        {"partition": b"-1"},
        {"partition": b""},
        {"offset": b"x"},
        {"offset": b"9" * 5_000},
        {"topic": b"\x1b[2J"},
        {"topic": None},
    ],
)
def test_what_no_worker_wrote_is_none_of_ours(changes: dict[str, bytes | None]) -> None:
    assert read_set_aside(Kept(headers(**changes))) is None


@pytest.mark.parametrize(
    ("value", "size", "number"),
    [(b"{}", b"9", 2), (None, b"950000", 950_000), (None, b"x", None), (None, None, None)],
)
def test_the_size_is_that_of_the_value_that_came(
    value: bytes | None, size: bytes | None, number: int | None
) -> None:
    record = Kept(headers(("consentgate.size", size)), value)
    assert read_set_aside(record) == found(bytes=number)


@pytest.mark.parametrize(
    ("marks", "attempts"),
    [
        ([], 0),
        ([b"1 content-quarantine-3@17"], 1),
        ([b"2"], 2),
        ([b"1 x", b"3 x"], 3),
        ([b""], None),
        ([None], None),
        ([b"-1 x"], None),
        ([b"many"], None),
    ],
)
def test_how_often_it_was_redriven_is_told_by_its_mark(
    marks: list[bytes | None], attempts: int | None
) -> None:
    marked = [("consentgate.redriven", mark) for mark in marks]
    assert read_set_aside(Kept(headers(*marked))) == found(attempts=attempts)


def test_what_goes_back_is_what_came_with_a_mark_and_the_time_of_now() -> None:
    came_with: Headers = [("trace", b"t"), ("none", None), ("trace", b"u")]
    own: Headers = [("consentgate.redriven", b"1 x"), ("consentgate.source", b"elsewhere-0@1")]
    record = Kept(headers(*came_with, *own), b"\xff", None)
    output = redriven(record, found(attempts=1), PLACE, NOW_MS + 5)
    assert (output.timestamp_ms, output.key, output.value) == (NOW_MS + 5, None, b"\xff")
    assert output.headers == [*came_with, ("consentgate.redriven", f"2 {PLACE}".encode())]


def test_the_mark_may_make_a_record_too_large() -> None:
    output = redriven(Kept(headers(("h", b"x" * 99))), found(), PLACE, NOW_MS)
    size = 100 + len("consentgate.redriven") + len(f"1 {PLACE}")
    assert not grew_too_large(output, Limits(max_headers_bytes=size))
    assert grew_too_large(output, Limits(max_headers_bytes=size - 1))


@pytest.mark.parametrize(
    ("selection", "is_meant"),
    [
        (Selection(), True),
        (Selection((Reason.MISSING_FIELD, Reason.TOO_LARGE)), True),
        (Selection((Reason.TOO_LARGE,)), False),
        (Selection(since_ms=NOW_MS), True),
        (Selection(since_ms=NOW_MS + 1), False),
        (Selection(until_ms=NOW_MS + 1), True),
        (Selection(until_ms=NOW_MS), False),
        (Selection(partition=3), True),
        (Selection(partition=0), False),
    ],
)
def test_who_is_meant(selection: Selection, is_meant: bool) -> None:
    assert selection.holds(found(), NOW_MS) is is_meant


# Whatever runs there are, what was redriven is known, and nothing else is.

KINDS = [found(reason=reason, attempts=n) for reason in REASONS[:2] for n in (0, 1)]
TOPICS = st.lists(st.sampled_from(KINDS), max_size=30)


@given(TOPICS, st.data())
def test_what_was_redriven_is_remembered_exactly(
    topic: list[SetAside], data: st.DataObject
) -> None:
    # Offsets without a record lie between, as markers do.
    offsets = {3 * number: kind for number, kind in enumerate(topic)}
    done: set[int] = set()
    text, first = Progress().encode(), 0
    for _ in range(data.draw(st.integers(0, 6))):
        progress = Progress.decode(text)
        assert progress is not None
        first = data.draw(st.integers(first, first + 10))
        progress.forget_below(first)
        stop = data.draw(st.integers(first, 90))
        meant = data.draw(st.sets(st.sampled_from(list(offsets) or [0])))
        for offset, kind in offsets.items():
            if not first <= offset < stop:
                continue
            assert progress.has(kind, offset) is (offset in done)
            if offset in meant or progress.has(kind, offset):
                progress.redriven(kind, offset)
                done.add(offset)
            else:
                progress.left(kind)
        text = progress.encode()
    progress = Progress.decode(text)
    assert progress is not None
    for offset, kind in offsets.items():
        if offset >= first:
            assert progress.has(kind, offset) is (offset in done)


def test_what_was_left_between_two_that_were_redriven_has_not_gone() -> None:
    progress = Progress()
    progress.redriven(KINDS[0], 0)
    progress.left(KINDS[0])
    progress.redriven(KINDS[0], 6)
    assert [progress.has(KINDS[0], offset) for offset in (0, 3, 6)] == [True, False, True]


@pytest.mark.parametrize(
    "other",
    [found(partition=4), found(reason=Reason.TOO_LARGE), found(attempts=1)],
)
def test_what_is_passed_over_between_two_that_were_redriven_has_not_gone(other: SetAside) -> None:
    # As a record is that was redriven too often already, and may be allowed more another time.
    progress = Progress()
    for offset in (0, 6):
        progress.redriven(found(), offset)
    assert progress.has(found(), 3)
    assert not progress.has(other, 3)


def test_what_is_redriven_in_full_is_one_range_whatever_lies_between() -> None:
    progress = Progress()
    for offset in range(0, 3_000, 3):
        progress.left(KINDS[1])
        progress.redriven(KINDS[0], offset)
    assert progress.encode() == '{"redriven":{"3 tombstone 0":[[0,2997]]}}'


def test_a_range_that_is_filled_up_is_one_again() -> None:
    progress = Progress()
    for offset in range(9):
        if offset % 2:
            progress.left(KINDS[0])
        else:
            progress.redriven(KINDS[0], offset)
    again = Progress.decode(progress.encode())
    assert again is not None
    for offset in range(9):
        again.redriven(KINDS[0], offset)
    assert again.encode() == '{"redriven":{"3 tombstone 0":[[0,8]]}}'


def test_what_is_no_longer_there_is_forgotten() -> None:
    progress = Progress({"0 undecodable 0": [[0, 5], [9, 12]], "0 too-large 0": [[1, 2]]})
    progress.forget_below(6)
    assert progress.encode() == '{"redriven":{"0 undecodable 0":[[9,12]]}}'


@pytest.mark.parametrize("text", ["", "{", "[]", '{"hash":"x"}', '{"redriven":[1]}'])
def test_what_somebody_else_has_noted_is_no_progress(text: str) -> None:
    assert Progress.decode(text) is None
