"""Snapshots as bytes: what was written comes back, and nothing that was damaged does."""

import hashlib
import io
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core import snapshot
from consentgate.core.consent import ConsentTable
from consentgate.core.countries import COUNTRIES
from consentgate.core.decode import ConsentFields
from consentgate.core.model import UNREADABLE, Choice, ConsentState, consent_state
from consentgate.core.snapshot import (
    MAGIC,
    Head,
    Identity,
    Sample,
    SnapshotRefused,
    read_head,
    read_table,
    sample_of,
    write_snapshot,
)

IDENTITY = Identity(
    cluster="c1",
    topic="consent-state",
    topic_partitions=3,
    scope="global",
    purpose="ai-training",
    fields=ConsentFields(),
    max_depth=64,
    version="0.1.0",
)
STATES = st.builds(
    consent_state,
    st.sampled_from([None, *sorted(COUNTRIES)]),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, *Choice]),
) | st.just(UNREADABLE)
CHANGES = st.lists(
    st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=3), st.none() | STATES)
)


@dataclass
class Consumed:
    """A record as the client gives it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[()] = ()


def table_of(changes: list[tuple[int, bytes, ConsentState | None]]) -> ConsentTable:
    table = ConsentTable([0, 1, 2])
    for offset, (partition, subject, state) in enumerate(changes):
        table.apply(partition, subject, state)
        table.advance(partition, offset + 1)
    return table


def head_of(table: ConsentTable) -> Head:
    return Head(
        identity=IDENTITY,
        whole_at_ms=1_700_000_000_000,
        deletions_kept_ms=86_400_000,
        frontier=dict(table.frontier),
        starts={0: 0, 1: 0, 2: 0},
        samples={1: [Sample(7, b"digest")]},
    )


def written(table: ConsentTable) -> bytes:
    return b"".join(write_snapshot(head_of(table), table.contents()))


def read(data: bytes) -> tuple[Head, ConsentTable]:
    head, frames = read_head(io.BytesIO(data).read)
    return head, read_table(head, frames)


def refused(data: bytes) -> str:
    with pytest.raises(SnapshotRefused) as refusal:
        read(data)
    return str(refusal.value)


SMALL = table_of(
    [
        (0, b"anna", consent_state("GB", True, Choice.GRANTED)),
        (1, b"ben", consent_state(None, None, None)),
        (2, b"cleo", UNREADABLE),
        (2, b"anna", consent_state("GB", True, Choice.WITHDRAWN)),
    ]
)


@settings(max_examples=200)
@given(CHANGES, CHANGES)
def test_what_was_written_comes_back(
    changes: list[tuple[int, bytes, ConsentState | None]],
    later: list[tuple[int, bytes, ConsentState | None]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "SUBJECTS_MAX", 4)
        table = table_of(changes)
        head, found = read(written(table))
    assert head == head_of(table)
    assert (found.frontier, found.holdings) == (table.frontier, table.holdings)
    assert {s: found.holders(s) for s in found.holdings} == {
        s: table.holders(s) for s in table.holdings
    }
    # It also goes on as the other one does.
    for change in later:
        table.apply(*change)
        found.apply(*change)
    assert found.holdings == table.holdings
    assert found.scattered() == table.scattered()


@given(CHANGES, CHANGES)
def test_contents_do_not_change_with_the_table(
    changes: list[tuple[int, bytes, ConsentState | None]],
    later: list[tuple[int, bytes, ConsentState | None]],
) -> None:
    table = table_of(changes)
    expected, pieces = written(table), write_snapshot(head_of(table), table.contents())
    for change in later:
        table.apply(*change)
    assert b"".join(pieces) == expected


def test_who_is_unreadable_is_not_somebody_of_whom_nothing_is_known() -> None:
    _, found = read(written(SMALL))
    assert found.holdings[b"cleo"].state is UNREADABLE
    assert found.holdings[b"ben"].state is consent_state(None, None, None)


def test_whatever_byte_is_wrong_it_is_refused() -> None:
    data = written(SMALL)
    for place in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            refused(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])


def test_wherever_it_is_cut_off_it_is_refused() -> None:
    data = written(SMALL)
    for length in range(len(data)):
        refused(data[:length])


def test_what_follows_the_end_is_refused() -> None:
    data = written(SMALL)
    assert "follows its end" in refused(data + b"\0")
    assert "follows its end" in refused(data + data)


def frames_of(data: bytes) -> list[bytes]:
    frames, place = [], len(MAGIC)
    while place < len(data):
        end = place + 20 + int.from_bytes(data[place : place + 4], "big")
        frames.append(data[place:end])
        place = end
    return frames


def test_frames_that_are_missing_or_out_of_order_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(snapshot, "SUBJECTS_MAX", 1)
    head, *body, end = frames_of(written(SMALL))
    assert len(body) == 4
    for others in ([*body[1:]], [body[1], body[0], *body[2:]], [body[0], *body]):
        assert "digest" in refused(MAGIC + head + b"".join(others) + end)


def test_frames_of_another_snapshot_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "SUBJECTS_MAX", 1)
    other = table_of([(0, b"anna", consent_state("GB", True, Choice.GRANTED))] * 2)
    frames, others = frames_of(written(SMALL)), frames_of(written(other))
    assert "digest" in refused(MAGIC + frames[0] + others[1] + b"".join(frames[2:]))


def made_of(*payloads: bytes) -> bytes:
    """Frames with the right digests, whatever they hold."""
    data, digest = MAGIC, b""
    for payload in payloads:
        digest = hashlib.blake2b(payload, digest_size=16, key=digest).digest()
        data += len(payload).to_bytes(4, "big") + digest + payload
    return data


def payloads_of(data: bytes) -> list[bytes]:
    return [frame[20:] for frame in frames_of(data)]


def body_of(kind: str, *fields: object) -> bytes:
    return msgspec.msgpack.encode([kind, *fields])


@pytest.mark.parametrize(
    ("frame", "counts"),
    [
        (body_of("_Subjects", [(9, None)], [b"a"], [0]), (1, 0)),  # a partition it is not of
        (body_of("_Subjects", [(0, ("XX", None, None))], [b"a"], [0]), (1, 0)),  # no country
        (body_of("_Subjects", [(0, ("GB", None, "maybe"))], [b"a"], [0]), (1, 0)),  # no choice
        (body_of("_Subjects", [(0, None)], [b"a"], [1]), (1, 0)),  # a holding that is not there
        (body_of("_Subjects", [(0, None)], [b"a", b"b"], [0]), (1, 0)),  # who holds nothing
        (body_of("_Subjects", [(0, None)], [b"a", b"a"], [0, 0]), (2, 0)),  # somebody twice
        (body_of("_Subjects", [(0, None)], [b"a"], [0]), (2, 0)),  # somebody is missing
        (body_of("_Scattered", [(0, None)], [b"a"], [[0]]), (0, 2)),
        (body_of("_Scattered", [(0, None)], [b"a"], [[1]]), (0, 1)),
        (body_of("Head"), (0, 0)),
        (b"\xc1", (0, 0)),
    ],
)
def test_what_makes_no_sense_is_refused_although_the_digests_are_right(
    frame: bytes, counts: tuple[int, int]
) -> None:
    head, *_ = payloads_of(written(SMALL))
    read(made_of(head, body_of("_Subjects", [(0, None)], [b"a"], [0]), body_of("_End", 1, 0)))
    refused(made_of(head, frame, body_of("_End", *counts)))


def test_a_second_head_and_a_missing_one_are_refused() -> None:
    head, subjects, scattered, end = payloads_of(written(SMALL))
    read(made_of(head, subjects, scattered, end))
    assert "two heads" in refused(made_of(head, subjects, head, scattered, end))
    assert "no head" in refused(made_of(subjects, scattered, end))


def test_another_format_is_refused() -> None:
    assert "another format" in refused(written(SMALL).replace(b"table 2", b"table 3", 1))


OTHERS = {
    "cluster": "c2",
    "topic": "other",
    "topic_partitions": 4,
    "scope": "partition",
    "purpose": "ads",
    "fields": ConsentFields(adult="of_age"),
    "max_depth": 8,
    "version": "0.2.0",
}


@pytest.mark.parametrize("field", Identity.__struct_fields__)
def test_what_is_of_something_else_is_told(field: str) -> None:
    other = msgspec.structs.replace(IDENTITY, **{field: OTHERS[field]})
    assert IDENTITY.difference(IDENTITY) is None
    assert f"its {field} is " in (IDENTITY.difference(other) or "")


RECORD = Consumed(7, 1_700_000_000_000, b"anna", b"{}")


@pytest.mark.parametrize(
    "other",
    [
        Consumed(8, 1_700_000_000_000, b"anna", b"{}"),
        Consumed(7, 1_700_000_000_001, b"anna", b"{}"),
        Consumed(7, 1_700_000_000_000, b"ann", b"{}"),
        Consumed(7, 1_700_000_000_000, b"anna", b"[]"),
        Consumed(7, 1_700_000_000_000, b"anna{", b"}"),
        Consumed(7, 1_700_000_000_000, b"anna", b""),
        Consumed(7, 1_700_000_000_000, b"anna", None),
    ],
)
def test_a_sample_is_of_one_record_only(other: Consumed) -> None:
    assert sample_of(RECORD) == sample_of(Consumed(**vars(RECORD)))
    assert sample_of(RECORD) != sample_of(other)
    assert sample_of(Consumed(7, 1, b"a", None)) != sample_of(Consumed(7, 1, b"a", b""))
