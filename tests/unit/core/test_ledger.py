"""The decision ledger: entries that anybody can check with a standard library alone."""

import base64
import hashlib
import json
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.ledger import (
    GENESIS,
    NO_RECORD,
    BatchFacts,
    Bookmark,
    Chain,
    LedgerEntry,
    entry_hash,
    read_codes,
    read_entry,
    write_entry,
)
from consentgate.core.model import Decision, Reason, decision

CHAIN = Chain("consentgate", "content-events", 3)
FORWARD = decision(Reason.OPTED_IN, "GB", 0)
WITHHOLD = decision(Reason.MINOR, "EEA", 0)
REASONS = st.sampled_from(list(Reason))
LABELS = st.sampled_from(["GB", "EEA", "*", "unknown", "z-9.x"])


def facts(
    first: int = 100,
    last: int = 103,
    decided: dict[int, Decision] | None = None,
    frontier: dict[int, int] | None = None,
) -> BatchFacts:
    decided = {100: FORWARD, 101: WITHHOLD, 103: FORWARD} if decided is None else decided
    return BatchFacts(
        first=first,
        last=last,
        decided_at_ms=1_726_826_400_000,
        frontier={3: 567} if frontier is None else frontier,
        policy="linkedin@9f2c41d07a3b",
        offsets=list(decided),
        decisions=list(decided.values()),
    )


def entry(**changes: Any) -> LedgerEntry:
    return write_entry(CHAIN, facts(**changes), GENESIS)


def by_the_standard_library(value: bytes) -> str:
    """The hash of an entry as the specification words it."""
    document = json.loads(value)
    for name in ("hash", "signature"):
        document.pop(name, None)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def codes_by_the_standard_library(document: dict[str, Any]) -> list[str | None]:
    reasons, codes = document["outcomes"]["reasons"], document["outcomes"]["codes"]
    packed = zlib.decompress(base64.b64decode(codes, validate=True)) if codes else b""
    return [None if code == 255 else reasons[code] for code in packed]


@st.composite
def batches(draw: st.DrawFn) -> BatchFacts:
    first = draw(st.integers(0, 10**12))
    length = draw(st.integers(0, 40))
    made = {
        first + place: decision(draw(REASONS), draw(LABELS))
        for place in sorted(draw(st.sets(st.integers(0, max(0, length - 1)), max_size=length)))
        if length
    }
    frontier = draw(st.dictionaries(st.integers(0, 20), st.integers(0, 2**62), min_size=1))
    return facts(first, first + length - 1, made, frontier)


# What an entry says.


def test_an_entry_is_as_documented() -> None:
    written = entry()
    assert written.key == b"consentgate/content-events-3"
    document = json.loads(written.value)
    codes = document["outcomes"].pop("codes")
    assert zlib.decompress(base64.b64decode(codes)) == bytes([1, 0, NO_RECORD, 1])
    assert document == {
        "group": "consentgate",
        "source": {"topic": "content-events", "partition": 3, "first": 100, "last": 103},
        "decided_at": 1_726_826_400_000,
        "consent": {"3": 567},
        "policy": "linkedin@9f2c41d07a3b",
        "counts": {"GB": {"opted-in": 2}, "EEA": {"minor": 1}},
        "outcomes": {"reasons": ["minor", "opted-in"]},
        "previous": "0" * 64,
        "hash": written.hash,
    }


def test_an_entry_without_content_has_no_outcomes() -> None:
    document = json.loads(entry(first=100, last=99, decided={}).value)
    assert document["source"] == {
        "topic": "content-events",
        "partition": 3,
        "first": 100,
        "last": 99,
    }
    assert document["counts"] == {}
    assert document["outcomes"] == {"reasons": [], "codes": ""}


def test_an_entry_over_nothing_but_gaps_says_so_for_each_offset() -> None:
    written = entry(first=5, last=9, decided={})
    assert read_codes(read_entry(written.value).outcomes) == [None] * 5
    assert json.loads(written.value)["counts"] == {}


def test_an_entry_over_one_offset_has_one_outcome() -> None:
    written = entry(first=5, last=5, decided={5: FORWARD})
    assert read_codes(read_entry(written.value).outcomes) == [Reason.OPTED_IN]
    nothing = entry(first=5, last=5, decided={})
    assert read_codes(read_entry(nothing.value).outcomes) == [None]


def test_an_entry_is_written_with_sorted_keys_and_without_spaces() -> None:
    value = entry().value
    text = json.dumps(json.loads(value), sort_keys=True, separators=(",", ":"))
    assert value == text.encode()


def test_two_labels_of_one_reason_are_counted_apart_and_one_label_together() -> None:
    made = {
        100: decision(Reason.MINOR, "EEA", 0),
        101: decision(Reason.MINOR, "EEA", 1),
        102: decision(Reason.MINOR, "GB", 0),
        103: decision(Reason.TOMBSTONE, "EEA"),
    }
    document = json.loads(entry(decided=made).value)
    assert document["counts"] == {"EEA": {"minor": 2, "tombstone": 1}, "GB": {"minor": 1}}


@settings(max_examples=150)
@given(batches())
def test_an_entry_accounts_for_every_offset(batch: BatchFacts) -> None:
    record = read_entry(write_entry(CHAIN, batch, GENESIS).value)
    made = dict(zip(batch.offsets, batch.decisions, strict=True))
    offsets = range(batch.first, batch.last + 1)
    expected = [made[offset].reason if offset in made else None for offset in offsets]
    assert read_codes(record.outcomes) == expected
    assert (record.source.first, record.source.last) == (batch.first, batch.last)


@settings(max_examples=150)
@given(batches())
def test_an_entry_can_be_read_with_the_standard_library_alone(batch: BatchFacts) -> None:
    written = write_entry(CHAIN, batch, GENESIS)
    document = json.loads(written.value)
    assert by_the_standard_library(written.value) == written.hash == document["hash"]
    outcomes = codes_by_the_standard_library(document)
    assert len(outcomes) == batch.last - batch.first + 1
    recounted = [reason for reason in outcomes if reason is not None]
    counted = {
        reason: sum(counts.get(reason, 0) for counts in document["counts"].values())
        for reason in map(str, Reason)
    }
    assert counted == {reason: recounted.count(reason) for reason in map(str, Reason)}
    assert document["outcomes"]["reasons"] == sorted(set(recounted))


@settings(max_examples=50)
@given(batches())
def test_the_same_facts_give_the_same_bytes(batch: BatchFacts) -> None:
    assert write_entry(CHAIN, batch, GENESIS) == write_entry(CHAIN, batch, GENESIS)


def test_the_order_of_partitions_in_the_frontier_does_not_matter() -> None:
    forth = entry(frontier={2: 5, 10: 6})
    assert forth == entry(frontier={10: 6, 2: 5})
    assert json.loads(forth.value)["consent"] == {"10": 6, "2": 5}


def test_a_million_offsets_fit_into_one_entry() -> None:
    written = entry(first=0, last=999_999, decided={999_999: FORWARD})
    outcomes = read_codes(read_entry(written.value).outcomes)
    assert len(outcomes) == 1_000_000
    assert outcomes[-2:] == [None, Reason.OPTED_IN]
    assert len(written.value) < 10_000


def test_every_reason_has_a_code() -> None:
    made = {offset: decision(reason, "*") for offset, reason in enumerate(Reason)}
    written = entry(first=0, last=len(made) - 1, decided=made)
    assert read_codes(read_entry(written.value).outcomes) == list(Reason)


def test_an_entry_holds_no_more_than_its_documented_names() -> None:
    # So that nothing of a person or of a payload can be in it.
    source, reasons = {"topic", "partition", "first", "last"}, {"opted-in", "minor"}
    outcomes, labels = {"reasons", "codes"}, {"GB", "EEA"}
    members = {"group", "source", "decided_at", "consent", "policy", "counts", "outcomes"}
    known = members | source | outcomes | labels | reasons | {"3", "previous", "hash"}
    assert names_of(json.loads(entry().value)) == known


def names_of(document: Any) -> set[str]:
    if not isinstance(document, dict):
        return set()
    return set(document).union(*map(names_of, document.values()))


# The chain.


def test_the_chain_begins_with_sixty_four_zeros() -> None:
    assert GENESIS == "0" * 64


def test_each_group_and_partition_has_a_key_of_its_own() -> None:
    keys = {
        Chain(group, topic, partition).key
        for group in ("a", "b")
        for topic in ("x", "y")
        for partition in (1, 11)
    }
    assert len(keys) == 8
    assert Chain("g", "t", 7).key == b"g/t-7"


def test_every_entry_names_the_hash_of_the_one_before() -> None:
    previous, values = GENESIS, []
    for number in range(5):
        written = write_entry(CHAIN, facts(number, number, {number: FORWARD}), previous)
        values.append(written.value)
        previous = written.hash
    records = [read_entry(value) for value in values]
    assert [each.previous for each in records] == [GENESIS, *(each.hash for each in records[:-1])]
    assert [by_the_standard_library(value) for value in values] == [each.hash for each in records]


def test_the_hash_covers_everything_but_itself_and_the_signature() -> None:
    document = json.loads(entry().value)
    for name in set(document) - {"hash"}:
        assert entry_hash({**document, name: "changed"}) != document["hash"]
    assert entry_hash({**document, "hash": "x", "signature": "y"}) == document["hash"]


def test_the_hash_depends_on_the_entry_before() -> None:
    assert write_entry(CHAIN, facts(), GENESIS).hash != write_entry(CHAIN, facts(), "1" * 64).hash


# Reading back.


def test_a_chain_that_signs_signs_each_entry_by_its_hash() -> None:
    signing = Chain("consentgate", "content-events", 3, sign=lambda hash_: f"signed {hash_}")
    signed = write_entry(signing, facts(), GENESIS)
    record = read_entry(signed.value)
    # The signature changes neither the hash nor the key.
    assert (record.hash, signed.hash, signed.key) == (entry().hash, entry().hash, entry().key)
    assert record.signature == f"signed {record.hash}"
    assert by_the_standard_library(signed.value) == record.hash
    assert read_entry(entry().value).signature is None


def changes_of(value: Any) -> list[Any]:
    """Other values of the same type, one change each."""
    if isinstance(value, dict):
        inside = [{**value, name: other} for name in value for other in changes_of(value[name])]
        return [*inside, *({k: v for k, v in value.items() if k != name} for name in value)]
    if isinstance(value, list):
        return [value[::-1], value[1:]]
    if isinstance(value, int):
        return [value + 1]
    return [value[:-1] + ("b" if value[-1:] == "a" else "a")]


def test_any_change_of_an_entry_is_detected() -> None:
    document = json.loads(entry().value)
    tampered = changes_of(document)
    assert len(tampered) > 25
    for changed in tampered:
        with pytest.raises(ValueError, match=r"hash is not that|missing required|Expected"):
            read_entry(json.dumps(changed).encode())


def test_a_changed_entry_with_a_new_hash_no_longer_fits_the_chain() -> None:
    first = entry()
    second = write_entry(CHAIN, facts(104, 104, {104: FORWARD}), first.hash)
    forged = {**json.loads(first.value), "decided_at": 0}
    forged["hash"] = entry_hash(forged)
    assert read_entry(json.dumps(forged).encode()).hash != read_entry(second.value).previous


@pytest.mark.parametrize(
    "value", [b"", b"{}", b"[]", b"null", b"\xff", b'{"group": 1}', b'{"hash": "x"}']
)
def test_what_is_no_entry_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_entry(value)


def test_an_unknown_member_is_refused() -> None:
    document = {**json.loads(entry().value), "subject": "m1"}
    document["hash"] = entry_hash(document)
    with pytest.raises(ValueError, match="unknown field `subject`"):
        read_entry(json.dumps(document).encode())


# The bookmark.

BOOKMARK = Bookmark(0, 12_345, "ab" * 32, "partition", [12, 12])


def test_a_bookmark_comes_back_as_it_was() -> None:
    assert Bookmark.decode(BOOKMARK.encode()) == BOOKMARK


@settings(max_examples=50)
@given(
    st.builds(
        Bookmark,
        st.integers(0, 1000),
        st.integers(0, 2**62),
        st.text("0123456789abcdef", min_size=64, max_size=64),
        st.sampled_from(["partition", "global"]),
        st.lists(st.integers(1, 100_000), min_size=2, max_size=2),
    )
)
def test_a_bookmark_fits_into_the_metadata_of_an_offset(bookmark: Bookmark) -> None:
    encoded = bookmark.encode()
    assert Bookmark.decode(encoded) == bookmark
    assert len(encoded.encode()) < 4_096


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        " ",
        "x",
        "null",
        "1",
        "[]",
        "{}",
        '"text"',
        BOOKMARK.encode()[:-1],
        BOOKMARK.encode() + "x",
        BOOKMARK.encode().replace('"hash":', '"hush":'),
        BOOKMARK.encode().replace("12345", '"12345"'),
        BOOKMARK.encode().replace("12345", "null"),
        BOOKMARK.encode().replace('partition"}', 'topic"}'),
        BOOKMARK.encode().replace("[12,12]", "[]"),
        BOOKMARK.encode().replace("[12,12]", "[12]"),
        BOOKMARK.encode().replace("[12,12]", "[12,12,12]"),
    ],
)
def test_what_somebody_else_noted_is_no_bookmark(metadata: str) -> None:
    assert Bookmark.decode(metadata) is None


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_no_metadata_raises(metadata: str) -> None:
    assert Bookmark.decode(metadata) is None
