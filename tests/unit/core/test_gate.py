"""The gate: every record has one outcome, and what leaves is what came or nothing of it."""

import hashlib
import json
import zlib
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.consent import ConsentChange, ConsentTable, holding
from consentgate.core.decide import Limits, headers_bytes
from consentgate.core.decode import ContentDecoder, ContentFields, content_decoder
from consentgate.core.gate import Batch, BatchOutcome, Gate, Output
from consentgate.core.ledger import GENESIS, Chain, read_codes, read_entry
from consentgate.core.model import (
    UNREADABLE,
    Choice,
    ConsentState,
    Reason,
    Verdict,
    consent_state,
)
from consentgate.core.policy import Basis, Policy, Rule
from unit.core.reference import OF_THE_PERSON, Case

NOW_MS = 1_726_826_400_000
LIMITS = Limits(max_value_bytes=2_000, max_headers_bytes=300, max_headers=8, max_key_bytes=40)
GRANTED = consent_state("GB", True, Choice.GRANTED)
WITHDRAWN = consent_state("GB", True, Choice.WITHDRAWN)
OPT_OUT = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_OUT),))
DECODE = content_decoder(ContentFields(), LIMITS.max_depth)
OWN = ("consentgate.source", "consentgate.consent", "consentgate.policy")
FORWARD = Verdict.FORWARD
Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Content:
    """A consumed record."""

    offset: int
    key: bytes | None = b"m1"
    value: bytes | None = None
    timestamp: int = NOW_MS
    headers: Headers = ()


def event(subject: str = "m1", **changes: Any) -> bytes:
    known = {"id": "e1", "subject": subject, "kind": "post", "visibility": "public"}
    return json.dumps({**known, "created_at": NOW_MS, **changes}).encode()


def content(offset: int = 100, **changes: Any) -> Content:
    return replace(Content(offset, value=event()), **changes)


def gate(
    states: dict[bytes, ConsentState] | None = None,
    policy: Policy = OPT_OUT,
    decode: ContentDecoder = DECODE,
    *,
    key_is_subject: bool = True,
    limits: Limits = LIMITS,
) -> Gate:
    """A gate over partition 3, whose consent partitions 3 and 7 are read up to 567 and 890."""
    table = ConsentTable([3, 7])
    for subject, state in ({b"m1": GRANTED} if states is None else states).items():
        table.apply(3, subject, state)
    table.advance(3, 567)
    table.advance(7, 890)
    chain = Chain("group", "content-events", 3)
    return Gate(chain, "consent-state", table, policy, decode, limits, key_is_subject)


def judged(*records: Content, by: Gate | None = None, now_ms: int = NOW_MS) -> BatchOutcome:
    first = records[0].offset if records else 100
    last = records[-1].offset if records else first - 1
    return (by or gate()).judge(Batch(first, last + 1, records), GENESIS, now_ms)


def reasons(outcome: BatchOutcome) -> list[Reason | None]:
    return read_codes(read_entry(outcome.entry.value).outcomes)


def the_reason(record: Content, by: Gate | None = None) -> Reason | None:
    (reason,) = reasons(judged(record, by=by))
    return reason


def forwarded(record: Content, by: Gate | None = None) -> Output:
    outcome = judged(record, by=by)
    (output,) = outcome.training
    assert not outcome.quarantine
    return output


def quarantined(record: Content, by: Gate | None = None) -> Output:
    outcome = judged(record, by=by)
    (output,) = outcome.quarantine
    assert not outcome.training
    return output


# Every record has one outcome.

VALUES = [
    event(),
    event("m2"),
    event("m3"),
    event(id=""),
    event(created_at="2024-09-20T10:00:00"),
    event(text="x" * 2_000),
    b"\xff",
    b"",
    b"[]",
    None,
]
HEADERS: list[Headers] = [(), [("h", b"v"), ("n", None)], [("h", b"x" * 300)], [(OWN[0], b"x")]]
RECORDS = st.builds(
    Content,
    st.just(0),
    st.sampled_from([b"m1", b"m1", b"m2", b"m3", b"m4", b"", b"k" * 41, None]),
    st.sampled_from(VALUES),
    st.sampled_from([NOW_MS, 0, NOW_MS + LIMITS.max_future_ms + 1]),
    st.sampled_from(HEADERS),
)
STATES = {b"m1": GRANTED, b"m2": WITHDRAWN, b"m3": UNREADABLE}


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """Records, records that the client could not read, and offsets without a record."""
    first = draw(st.integers(0, 10**9))
    records, unreadable, offset = [], [], first
    for _ in range(draw(st.integers(0, 12))):
        offset += draw(st.sampled_from([0, 0, 0, 1, 5]))
        if draw(st.sampled_from([False] * 9 + [True])):
            unreadable.append(offset)
        else:
            records.append(replace(draw(RECORDS), offset=offset))
        offset += 1
    return Batch(first, offset + draw(st.sampled_from([0, 0, 3])), records, unreadable)


@settings(max_examples=150)
@given(batches(), st.booleans())
def test_in_is_forwarded_and_withheld_and_quarantined(batch: Batch, key_is_subject: bool) -> None:
    outcome = gate(STATES, key_is_subject=key_is_subject).judge(batch, GENESIS, NOW_MS)
    number = len(batch.records) + len(batch.unreadable)
    verdicts = Counter[Verdict]()
    for decision, count in outcome.counts.items():
        verdicts[decision.reason.verdict] += count
    assert sum(verdicts.values()) == number
    assert verdicts[FORWARD] == len(outcome.training)
    assert verdicts[Verdict.QUARANTINE] == len(outcome.quarantine)
    by_offset = zip(batch.records, outcome.decisions, strict=False)
    assert [record.offset for record, made in by_offset if made.reason.verdict is FORWARD] == [
        record.offset for _, record, _ in outcome.forwarded
    ]
    # And so says the entry, for each offset and in all.
    listed = reasons(outcome)
    assert len(listed) == batch.next_offset - batch.first
    found = {batch.first + place for place, reason in enumerate(listed) if reason is not None}
    assert found == {record.offset for record in batch.records} | set(batch.unreadable)
    assert Counter(reason for reason in listed if reason is not None) == {
        reason: sum(n for made, n in outcome.counts.items() if made.reason is reason)
        for reason in {made.reason for made in outcome.counts}
    }


@settings(max_examples=100)
@given(batches())
def test_what_is_forwarded_is_what_came_and_from_whom_may_be_used(batch: Batch) -> None:
    outcome = gate(STATES).judge(batch, GENESIS, NOW_MS)
    by_offset = {record.offset: record for record in batch.records}
    for output in outcome.training:
        source = dict(output.headers)["consentgate.source"]
        assert source is not None
        record = by_offset[int(source.decode().removeprefix("content-events-3@"))]
        assert (output.timestamp_ms, output.key) == (record.timestamp, record.key)
        assert output.value is record.value
        assert output.key == b"m1"


@settings(max_examples=100)
@given(batches())
def test_judging_twice_at_the_same_frontier_policy_and_moment_gives_the_same(batch: Batch) -> None:
    once = gate(STATES)
    first = once.judge(batch, GENESIS, NOW_MS)
    for again in (once, gate(STATES)):
        outcome = again.judge(batch, GENESIS, NOW_MS)
        assert outcome.training == first.training
        assert outcome.quarantine == first.quarantine
        assert outcome.entry == first.entry
        assert outcome.counts == first.counts


@settings(max_examples=100)
@given(batches(), st.integers(0, 40))
def test_judging_in_two_parts_gives_the_same_outcomes(batch: Batch, place: int) -> None:
    whole = gate(STATES).judge(batch, GENESIS, NOW_MS)
    before = batch.before(batch.first + place)
    after = Batch(
        before.next_offset,
        batch.next_offset,
        [record for record in batch.records if record.offset >= before.next_offset],
        [offset for offset in batch.unreadable if offset >= before.next_offset],
    )
    parts = [gate(STATES).judge(part, GENESIS, NOW_MS) for part in (before, after)]
    assert whole.training == [*parts[0].training, *parts[1].training]
    assert reasons(whole) == [*reasons(parts[0]), *reasons(parts[1])]


def test_many_records_are_decided_on_as_each_would_be_alone() -> None:
    keys = [b"m1", b"m2", b"m3", b"m4", b"m1"]
    values = [value for value in VALUES if value]
    records = [content(n, key=keys[n % 5], value=values[n % 7]) for n in range(100)]
    by = gate(STATES)
    outcome = judged(*records, by=by)
    assert list(outcome.decisions) == [by.decide(record, NOW_MS) for record in records]
    assert len({made.reason for made in outcome.decisions}) > 5
    assert outcome.value_bytes == sum(len(record.value or b"") for record in records)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [({"value": None}, Reason.TOMBSTONE), ({"key": None}, Reason.SUBJECT_MISMATCH)],
)
def test_what_is_wrong_with_one_record_comes_before_its_owner_also_among_many(
    broken: dict[str, Any], reason: Reason
) -> None:
    known, unknown = content(0), content(1, key=b"m4", value=event("m4"))
    outcome = judged(known, unknown, content(2, **{"key": b"m4", **broken}), content(3))
    expected = [Reason.NOT_OPTED_OUT, Reason.NO_CONSENT_RECORD, reason, Reason.NOT_OPTED_OUT]
    assert reasons(outcome) == expected


def test_an_empty_batch_has_no_outcome_but_an_entry() -> None:
    outcome = judged()
    assert (list(outcome.training), list(outcome.quarantine)) == ([], [])
    record = read_entry(outcome.entry.value)
    assert (record.source.first, record.source.last) == (100, 99)
    assert record.consent == {"3": 567, "7": 890}


# What is forwarded.


def test_a_forwarded_record_says_where_it_came_from_and_on_what_ground() -> None:
    output = forwarded(content(1234))
    assert output.headers == [
        ("consentgate.source", b"content-events-3@1234"),
        ("consentgate.consent", b"consent-state-3@567"),
        ("consentgate.policy", f"p@{OPT_OUT.hash[:12]}".encode()),
    ]


def test_the_consent_header_is_of_the_partition_that_holds_the_subject() -> None:
    by = gate({})
    by.table.apply(7, b"m1", GRANTED)
    assert ("consentgate.consent", b"consent-state-7@890") in forwarded(content(), by).headers


def test_incoming_headers_are_kept_and_those_of_our_names_are_dropped() -> None:
    mine: Headers = [("a", b"1"), ("a", b"2"), ("none", None)]
    forged: Headers = [(name, b"forged") for name in OWN]
    headers = forwarded(content(headers=[*forged, *mine, forged[0]])).headers
    assert list(headers[:3]) == list(mine)
    assert [name for name, _ in headers[3:]] == list(OWN)
    assert b"forged" not in dict(headers).values()


def test_the_mark_of_a_redrive_does_not_go_on() -> None:
    marked: Headers = [("a", b"1"), ("consentgate.redriven", b"1 content-quarantine-0@7")]
    names = [name for name, _ in forwarded(content(headers=marked)).headers]
    assert names == ["a", *OWN]


def test_key_timestamp_and_value_are_forwarded_as_they_came() -> None:
    odd = b'\n{"created_at":0 , "x":"\\u0041", "id":"e","subject":"m1","kind":"k","visibility":"v"}'
    output = forwarded(content(value=odd, timestamp=12_345))
    assert (output.timestamp_ms, output.key, output.value) == (12_345, b"m1", odd)


def test_a_batch_is_forwarded_in_order() -> None:
    records = [content(offset, value=event(id=f"e{offset}")) for offset in (100, 103, 104)]
    outcome = judged(*records)
    assert [output.value for output in outcome.training] == [each.value for each in records]


# What is withheld.


def test_nothing_of_a_withheld_record_leaves() -> None:
    outcome = judged(content(), by=gate({b"m1": WITHDRAWN}))
    assert (list(outcome.training), list(outcome.quarantine)) == ([], [])
    assert reasons(outcome) == [Reason.WITHDRAWN]


def test_nothing_of_a_record_leaves_that_is_withheld_for_its_content() -> None:
    public = Policy("p", "ai-training", {}, (Rule(("*",), Basis.OPT_OUT, visibility=("public",)),))
    outcome = judged(content(value=event(visibility="friends")), by=gate(policy=public))
    assert (list(outcome.training), list(outcome.quarantine)) == ([], [])
    assert reasons(outcome) == [Reason.NOT_PUBLIC]


def test_nothing_broken_of_somebody_who_may_not_be_used_is_quarantined() -> None:
    record = content(value=b"\xff", headers=[("h", b"x" * 1_000)])
    outcome = judged(record, by=gate({b"m1": WITHDRAWN}))
    assert list(outcome.quarantine) == []
    assert reasons(outcome) == [Reason.WITHDRAWN]


def raising(value: bytes) -> Any:
    raise RuntimeError(f"a fault of ours, met in {value!r}")


@pytest.mark.parametrize("key_is_subject", [True, False])
def test_an_error_in_deciding_is_no_permission(key_is_subject: bool) -> None:
    outcome = judged(content(), by=gate(decode=raising, key_is_subject=key_is_subject))
    (decision,) = outcome.counts
    assert (decision.reason, decision.label) == (Reason.ERROR, "unknown")
    assert (list(outcome.training), list(outcome.quarantine)) == ([], [])


def test_an_error_with_one_record_does_not_touch_the_others() -> None:
    decode = content_decoder(ContentFields(), 64)

    def sometimes(value: bytes) -> Any:
        return raising(value) if b"e2" in value else decode(value)

    records = [content(100 + n, value=event(id=f"e{n}")) for n in range(4)]
    good, bad = Reason.NOT_OPTED_OUT, Reason.ERROR
    assert reasons(judged(*records, by=gate(decode=sometimes))) == [good, good, bad, good]


# What is quarantined.

FUTURE_MS = NOW_MS + LIMITS.max_future_ms + 1
BROKEN = [
    (Reason.TOMBSTONE, content(value=None), "DECODE"),
    (Reason.UNDECODABLE, content(value=b"\xff"), "DECODE"),
    (Reason.MISSING_FIELD, content(value=b"{}"), "DECODE"),
    (Reason.SUBJECT_MISMATCH, content(value=event("m2")), "DECODE"),
    (Reason.SUBJECT_MISMATCH, content(key=None), "DECODE"),
    (Reason.TOO_LARGE, content(value=event(text="x" * 2_000)), "DECODE"),
    (Reason.TOO_LARGE, content(headers=[("h", b"x" * 300)]), "DECODE"),
    (Reason.TOO_LARGE, content(headers=[("h", None)] * 9), "DECODE"),
    (Reason.BAD_TIMESTAMP, content(timestamp=FUTURE_MS), "DECIDE"),
]
WITHOUT_VALUE = (Reason.TOO_LARGE, Reason.BAD_TIMESTAMP)


@pytest.mark.parametrize(("reason", "record", "stage"), BROKEN)
def test_a_quarantined_record_says_what_is_wrong_with_it(
    reason: Reason, record: Content, stage: str
) -> None:
    output = quarantined(record)
    headers = dict(output.headers)
    assert headers["__connect.errors.topic"] == b"content-events"
    assert headers["__connect.errors.partition"] == b"3"
    assert headers["__connect.errors.offset"] == b"100"
    assert headers["__connect.errors.stage"] == stage.encode()
    assert headers["__connect.errors.exception.class.name"] == str(reason).encode()
    assert headers["__connect.errors.exception.message"]
    assert the_reason(record) is reason
    # The quarantine's retention counts from now on.
    assert output.timestamp_ms == NOW_MS


@pytest.mark.parametrize(
    ("reason", "record"), [each[:2] for each in BROKEN if each[0] not in WITHOUT_VALUE]
)
def test_what_fits_is_quarantined_as_it_came(reason: Reason, record: Content) -> None:
    record = replace(record, headers=[("a", b"1"), ("consentgate.policy", b"x"), ("n", None)])
    output = quarantined(record)
    assert (output.key, output.value) == (record.key, record.value)
    assert output.headers[:3] == list(record.headers)
    assert "consentgate.size" not in dict(output.headers)


@pytest.mark.parametrize(
    ("reason", "record"), [each[:2] for each in BROKEN if each[0] in WITHOUT_VALUE]
)
def test_what_does_not_fit_is_quarantined_by_its_size_and_hash(
    reason: Reason, record: Content
) -> None:
    output = quarantined(record)
    assert (output.key, output.value) == (record.key, None)
    headers = dict(output.headers)
    assert record.value is not None
    assert headers["consentgate.size"] == str(len(record.value)).encode()
    assert headers["consentgate.sha256"] == hashlib.sha256(record.value).hexdigest().encode()
    assert "h" not in headers


def test_the_headers_of_an_earlier_quarantining_are_replaced() -> None:
    first = quarantined(content(value=b"\xff", headers=[("a", b"1")]))
    again = quarantined(content(200, value=first.value, headers=first.headers))
    names = [name for name, _ in again.headers]
    assert len(names) == len(set(names))
    assert dict(again.headers)["__connect.errors.offset"] == b"200"
    assert dict(again.headers)["a"] == b"1"
    stale = [("__connect.errors.task.id", b"1"), ("__connect.errors.offset", b"5")]
    output = quarantined(content(value=b"\xff", headers=stale))
    assert dict(output.headers)["__connect.errors.offset"] == b"100"
    assert "__connect.errors.task.id" not in dict(output.headers)


def test_a_second_quarantining_keeps_the_mark_of_the_redrive() -> None:
    mark = ("consentgate.redriven", b"1 content-quarantine-0@7")
    assert mark in quarantined(content(value=b"\xff", headers=[mark])).headers


def test_no_message_of_a_quarantined_record_shows_its_payload() -> None:
    for _, record, _ in BROKEN:
        secret = b'"secret-text"' if record.value is None else record.value + b'"secret-text"'
        for name, value in quarantined(replace(record, value=secret, key=None)).headers:
            assert b"secret" not in name.encode() + (value or b"")


@pytest.mark.parametrize("value", [None, b"x" * 2_001, event()])
@pytest.mark.parametrize("key", [None, b"k" * 40, b"k" * 41])
@pytest.mark.parametrize("headers", [(), [("h", b"x" * 300)], [("", None)] * 9])
def test_nothing_beyond_the_limits_is_ever_written(
    key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    # Tombstones and records without a key are quarantined for that, however large they are.
    plain = max(headers_bytes(quarantined(record).headers) for _, record, _ in BROKEN)
    for key_is_subject in (True, False):
        by = gate({}, key_is_subject=key_is_subject)
        for output in judged(content(key=key, value=value, headers=headers), by=by).quarantine:
            assert len(output.value or b"") <= LIMITS.max_value_bytes
            assert len(output.key or b"") <= LIMITS.max_key_bytes
            assert headers_bytes(output.headers) <= LIMITS.max_headers_bytes + plain
            assert len(output.headers) <= LIMITS.max_headers + 9
            if key is not None and len(key) <= LIMITS.max_key_bytes:
                assert output.key == key


def test_what_is_too_large_for_its_subject_loses_its_value_too() -> None:
    record = content(key=b"post-5", value=event("m" * (LIMITS.max_key_bytes + 1)))
    output = quarantined(record, gate(key_is_subject=False))
    assert (output.key, output.value) == (b"post-5", None)
    headers = dict(output.headers)
    assert headers["__connect.errors.exception.class.name"] == b"too-large"
    assert headers["consentgate.size"] == str(len(record.value or b"")).encode()


def test_an_oversized_tombstone_stays_a_tombstone() -> None:
    output = quarantined(content(value=None, headers=[("h", b"x" * 300)]))
    headers = dict(output.headers)
    assert headers["__connect.errors.exception.class.name"] == b"tombstone"
    assert headers["consentgate.size"] == b"0"
    assert headers["consentgate.sha256"] == hashlib.sha256(b"").hexdigest().encode()
    assert "h" not in headers


def test_an_oversized_record_without_a_key_loses_its_value() -> None:
    output = quarantined(content(key=None, value=b"x" * 2_001))
    assert output.value is None
    headers = dict(output.headers)
    assert headers["__connect.errors.exception.class.name"] == b"subject-mismatch"
    assert headers["consentgate.size"] == b"2001"


def test_what_the_client_cannot_read_is_quarantined_by_its_offset_alone() -> None:
    outcome = gate().judge(Batch(100, 103, [content(100)], [101]), GENESIS, NOW_MS)
    (output,) = outcome.quarantine
    assert (output.key, output.value, output.timestamp_ms) == (None, None, NOW_MS)
    headers = dict(output.headers)
    assert headers["__connect.errors.offset"] == b"101"
    assert headers["__connect.errors.exception.class.name"] == b"undecodable"
    assert reasons(outcome) == [Reason.NOT_OPTED_OUT, Reason.UNDECODABLE, None]
    assert len(outcome.training) == 1


# The entry.


def test_the_entry_pins_what_the_decisions_rest_on() -> None:
    outcome = judged(content(100), content(102))
    entry = read_entry(outcome.entry.value)
    assert (entry.group, entry.decided_at, entry.previous) == ("group", NOW_MS, GENESIS)
    assert entry.consent == {"3": 567, "7": 890}
    assert entry.policy == OPT_OUT.reference
    assert outcome.frontier == {3: 567, 7: 890}
    assert outcome.decided_at_ms == NOW_MS


def test_the_frontier_of_an_outcome_stays_what_it_was() -> None:
    by = gate()
    outcome = judged(content(), by=by)
    by.table.advance(3, 600)
    assert outcome.frontier == {3: 567, 7: 890}


def test_an_entry_holds_no_subject_and_no_payload() -> None:
    subject = "member-4711-secret"
    record = content(key=subject.encode(), value=event(subject, text="secret"))
    for states in ({subject.encode(): GRANTED}, {subject.encode(): WITHDRAWN}, {}):
        for value in (record.value, b"secret", None):
            entry = judged(replace(record, value=value), by=gate(states)).entry
            codes = json.loads(entry.value)["outcomes"]["codes"]
            everything = entry.key + entry.value + zlib.decompress(b64decode(codes))
            assert b"secret" not in everything
            assert b"4711" not in everything
            assert hashlib.sha256(subject.encode()).hexdigest().encode() not in everything


# Changes between batches.

PAUSE_MS = NOW_MS + 1_000
PAUSED = Policy(
    "paused",
    "ai-training",
    {},
    (
        Rule(("GB",), Basis.OPT_OUT, until_ms=PAUSE_MS),
        Rule(("GB",), Basis.SUSPENDED, from_ms=PAUSE_MS, until_ms=PAUSE_MS + 10),
        Rule(("GB",), Basis.OPT_IN, from_ms=PAUSE_MS + 10),
    ),
)


def test_a_boundary_of_the_policy_between_two_batches_changes_the_outcome() -> None:
    by = gate(policy=PAUSED)
    moments = (NOW_MS, PAUSE_MS - 1, PAUSE_MS, PAUSE_MS + 9, PAUSE_MS + 10, PAUSE_MS - 1)
    assert [reasons(judged(content(), by=by, now_ms=now_ms)) for now_ms in moments] == [
        [Reason.NOT_OPTED_OUT],
        [Reason.NOT_OPTED_OUT],
        [Reason.JURISDICTION_SUSPENDED],
        [Reason.JURISDICTION_SUSPENDED],
        [Reason.OPTED_IN],
        [Reason.NOT_OPTED_OUT],
    ]


def test_a_withdrawal_between_two_batches_changes_the_outcome() -> None:
    by = gate()
    assert the_reason(content(), by) is Reason.NOT_OPTED_OUT
    by.table.apply(3, b"m1", WITHDRAWN)
    by.table.advance(3, 568)
    assert the_reason(content(), by) is Reason.WITHDRAWN
    assert read_entry(judged(content(), by=by).entry.value).consent == {"3": 568, "7": 890}


def test_a_subject_that_a_second_partition_holds_is_no_longer_forwarded() -> None:
    by = gate()
    assert the_reason(content(), by) is Reason.NOT_OPTED_OUT
    by.table.apply(7, b"m1", GRANTED)
    assert the_reason(content(), by) is Reason.CONSENT_UNREADABLE


# Retractions.


def change(
    offset: int, state: ConsentState | None, subject: bytes = b"m1", partition: int = 3
) -> ConsentChange:
    after = None if state is None else holding(partition, state)
    return ConsentChange(partition, offset, NOW_MS - 40, subject, after)


def test_a_retraction_is_as_documented() -> None:
    batch = Batch(1234, 1234, ())
    outcome = gate().judge(batch, GENESIS, NOW_MS, [change(566, WITHDRAWN)])
    (output,) = outcome.retractions
    assert (output.timestamp_ms, output.key, output.headers) == (NOW_MS, b"m1", [])
    assert output.value is not None
    assert json.loads(output.value) == {
        "subject": "m1",
        "reason": "withdrawn",
        "consent": "consent-state-3@566",
        "before": "content-events-3@1234",
        "changed_at": NOW_MS - 40,
        "at": NOW_MS,
    }
    assert [each.offset for each in outcome.retracted] == [566]


def test_a_retraction_takes_back_what_went_on_before_its_batch_and_nothing_of_it() -> None:
    records = [content(offset) for offset in (1234, 1235)]
    batch = Batch(1234, 1236, records)
    (output,) = gate().judge(batch, GENESIS, NOW_MS, [change(566, WITHDRAWN)]).retractions
    assert json.loads(output.value or b"")["before"] == "content-events-3@1234"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, "no-consent-record"),
        (UNREADABLE, "consent-unreadable"),
        (consent_state(None, True, Choice.GRANTED), "jurisdiction-unknown"),
        (consent_state("FR", True, Choice.GRANTED), "jurisdiction-suspended"),
        (consent_state("CH", True, Choice.GRANTED), "no-rule"),
        (consent_state("GB", True, Choice.DENIED), "opted-out"),
        (consent_state("GB", True, Choice.WITHDRAWN), "withdrawn"),
        (consent_state("GB", True, Choice.OBJECTED), "objected"),
        (consent_state("GB", True, None), "not-opted-in"),
        (consent_state("GB", False, Choice.GRANTED), "minor"),
        (consent_state("GB", None, Choice.GRANTED), "age-unknown"),
    ],
)
def test_whatever_leaves_a_person_ineligible_retracts_them(
    state: ConsentState | None, reason: str
) -> None:
    by_then = Rule(("CH",), Basis.OPT_OUT, until_ms=NOW_MS)
    rules = (Rule(("GB",), Basis.OPT_IN, adults_only=True), Rule(("FR",), Basis.SUSPENDED), by_then)
    by = gate(policy=Policy("p", "ai-training", {}, rules))
    outcome = by.judge(Batch(100, 100, ()), GENESIS, NOW_MS, [change(500, state)])
    assert [json.loads(output.value or b"")["reason"] for output in outcome.retractions] == [reason]


def test_a_change_that_leaves_a_person_eligible_retracts_nobody() -> None:
    outcome = gate().judge(Batch(100, 100, ()), GENESIS, NOW_MS, [change(500, GRANTED)])
    assert list(outcome.retractions) == []


def test_each_change_below_the_frontier_is_retracted_and_none_at_or_above_it() -> None:
    changes = [
        change(565, WITHDRAWN),
        change(566, WITHDRAWN, b"m2"),
        change(567, WITHDRAWN, b"m3"),
        change(889, WITHDRAWN, b"m4", partition=7),
        change(890, WITHDRAWN, b"m5", partition=7),
    ]
    outcome = gate().judge(Batch(100, 100, ()), GENESIS, NOW_MS, changes)
    assert [output.key for output in outcome.retractions] == [b"m1", b"m2", b"m4"]


def test_a_subject_that_is_no_text_is_retracted_by_its_key() -> None:
    outcome = gate().judge(Batch(100, 100, ()), GENESIS, NOW_MS, [change(500, UNREADABLE, b"\xff")])
    (output,) = outcome.retractions
    assert output.key == b"\xff"
    assert json.loads(output.value or b"")["subject"] == "\ufffd"


@pytest.mark.parametrize("surplus", [0, 1])
def test_a_subject_under_whose_key_nothing_can_have_left_is_not_retracted(surplus: int) -> None:
    # Its retraction would be twice as large as its key, which may be as large as a record.
    changes = [change(500, None, b"m" * (LIMITS.max_key_bytes + surplus))]
    outcome = gate().judge(Batch(100, 100, ()), GENESIS, NOW_MS, changes)
    assert len(outcome.retractions) == 1 - surplus
    caught_up = gate().catch_up(100, changes, {3: 567, 7: 890}, GENESIS, NOW_MS)
    assert len(caught_up.retractions) == 1 - surplus
    by = gate(key_is_subject=False)
    assert len(by.judge(Batch(100, 100, ()), GENESIS, NOW_MS, changes).retractions) == 1 - surplus


SOME_STATES = st.none() | st.sampled_from(
    [
        GRANTED,
        WITHDRAWN,
        UNREADABLE,
        consent_state("GB", True, None),
        consent_state("US", None, None),
    ]
)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 600), SOME_STATES), max_size=8), st.integers(-1, 11))
def test_who_is_retracted_is_who_may_not_be_used(
    drawn: list[tuple[int, ConsentState | None]], late_ms: int
) -> None:
    changes = [change(offset, state) for offset, state in drawn]
    now_ms = PAUSE_MS + late_ms
    outcome = gate(policy=PAUSED).judge(Batch(100, 100, ()), GENESIS, now_ms, changes)

    def may_be_used(state: ConsentState | None) -> bool:
        states = {b"m1": {} if state is None else {3: state}}
        case = Case(content(), states, PAUSED, now_ms, LIMITS)
        return not any(applies(case) for _, applies in OF_THE_PERSON)

    expected = [offset for offset, state in drawn if offset < 567 and not may_be_used(state)]
    assert [each.offset for each in outcome.retracted] == expected
    assert len(outcome.retractions) == len(expected)


def test_catching_up_decides_nothing_and_retracts_what_it_covers() -> None:
    changes = [change(500, WITHDRAWN), change(501, GRANTED, b"m2")]
    outcome = gate().catch_up(1234, changes, {3: 502, 7: 800}, "ab" * 32, NOW_MS)
    entry = read_entry(outcome.entry.value)
    assert (entry.source.first, entry.source.last) == (1234, 1233)
    assert (entry.consent, entry.previous) == ({"3": 502, "7": 800}, "ab" * 32)
    assert (entry.counts, entry.outcomes.codes) == ({}, "")
    assert (outcome.batch.first, outcome.batch.next_offset) == (1234, 1234)
    (output,) = outcome.retractions
    assert json.loads(output.value or b"")["before"] == "content-events-3@1234"
    assert (outcome.training, outcome.quarantine, outcome.counts) == ((), (), {})


# Looking again before the commit.


def overtaken(by: Gate, *changes: ConsentChange, now_ms: int = NOW_MS) -> bool:
    """Whether these changes turn an outcome that forwards a record of m1."""
    outcome = judged(content(), content(101, key=b"m9", value=event("m9")), by=by)
    assert len(outcome.training) == 1
    for each in changes:
        state = None if each.after is None else each.after.state
        by.table.apply(each.partition, each.subject, state)
        if each.offset >= by.table.frontier[each.partition]:
            by.table.advance(each.partition, each.offset + 1)
    return by.is_overtaken(outcome, changes, now_ms)


@pytest.mark.parametrize("key_is_subject", [True, False])
@pytest.mark.parametrize("state", [WITHDRAWN, UNREADABLE, None])
def test_a_newer_refusal_of_somebody_forwarded_overtakes(
    state: ConsentState | None, key_is_subject: bool
) -> None:
    assert overtaken(gate(key_is_subject=key_is_subject), change(567, state))
    assert overtaken(gate(key_is_subject=key_is_subject), change(600, state))


def test_a_second_partition_that_holds_somebody_forwarded_overtakes() -> None:
    assert overtaken(gate(), change(890, GRANTED, partition=7))


def test_what_the_decision_already_saw_does_not_overtake_it() -> None:
    by = gate()
    outcome = judged(content(), by=by)
    assert not by.is_overtaken(outcome, [change(566, WITHDRAWN)], NOW_MS)
    assert not by.is_overtaken(outcome, [], NOW_MS)


def test_a_newer_change_that_turns_nothing_forwarded_does_not_overtake() -> None:
    assert not overtaken(gate(), change(567, GRANTED))
    assert not overtaken(gate(), change(567, WITHDRAWN, b"m2"))
    assert not overtaken(gate(), change(567, WITHDRAWN, b"m9"))
    # Nor does one that would forward what was withheld: that is nobody's harm.
    assert not overtaken(gate(), change(567, GRANTED, b"m9"))
    # Nor one that was taken back before the commit.
    assert not overtaken(gate(), change(567, WITHDRAWN), change(568, GRANTED))


def test_a_rule_that_ends_before_the_commit_overtakes() -> None:
    assert not overtaken(gate(policy=PAUSED), now_ms=PAUSE_MS - 1)
    assert overtaken(gate(policy=PAUSED), now_ms=PAUSE_MS)
    # Another rule that permits as well turns nothing.
    assert not overtaken(gate(policy=PAUSED), now_ms=PAUSE_MS + 10)


# Batches.


def test_the_part_of_a_batch_below_an_offset() -> None:
    batch = Batch(100, 110, [content(100), content(104), content(105)], [103, 106])
    part = batch.before(105)
    assert (part.first, part.next_offset) == (100, 105)
    assert [record.offset for record in part.records] == [100, 104]
    assert part.unreadable == [103]
    assert batch.before(103).unreadable == []
    assert batch.before(104).unreadable == [103]
    assert batch.before(200).next_offset == 110
    assert batch.before(100) == Batch(100, 100, [], [])


@pytest.mark.parametrize(("number", "kept"), [(2, 1), (3, 1), (4, 2), (9, 4)])
def test_the_first_half_of_a_batch_ends_where_the_second_begins(number: int, kept: int) -> None:
    batch = Batch(100, 200, [content(100 + 10 * n) for n in range(number)], [105])
    half = batch.first_half()
    assert [record.offset for record in half.records] == [100 + 10 * n for n in range(kept)]
    assert (half.first, half.next_offset) == (100, 100 + 10 * kept)
    assert half.unreadable == [105]


def test_without_the_key_as_subject_the_content_tells_whose_it_is() -> None:
    by = gate(key_is_subject=False)
    output = forwarded(content(key=b"post-5"), by)
    assert output.key == b"post-5"
    assert forwarded(content(key=None), by).key is None
    assert the_reason(content(key=b"m1", value=event("m2")), by) is Reason.NO_CONSENT_RECORD
