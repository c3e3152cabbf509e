"""What is counted: once each, whatever comes again or is lost, and only what fits together."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentgate.core.ledger import GENESIS, BatchFacts, Chain, write_entry
from consentgate.core.model import Reason, decision
from consentgate.report.figures import (
    KEPT_MS,
    PROBLEMS_MAX,
    SIZES_MS,
    Arrived,
    Key,
    LedgerHead,
    LedgerWindow,
    RetractionHead,
    RetractionWindow,
    Source,
    Writes,
    counted_up_to,
    fold_ledger,
    fold_retractions,
    is_expired,
)

SOURCE = Source("gate", "content-events")
NOW_MS = 1_726_826_400_000
DAY_MS = SIZES_MS["day"]
POLICY = "mine@0123456789ab"
MADE = [
    decision(Reason.OPTED_IN, "*"),
    decision(Reason.MINOR, "EEA"),
    decision(Reason.TOMBSTONE, "unknown"),
]


@dataclass
class Ledger:
    """A partition of the ledger, with the entries of several chains."""

    arrived: list[Arrived] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _last: dict[int, tuple[str, int]] = field(default_factory=dict)

    def append(self, partition: int, number: int, time_ms: int, policy: str = POLICY) -> None:
        """An entry of an input partition, with `number` records."""
        previous, first = self._last.get(partition, (GENESIS, 0))
        decisions = [MADE[n % len(MADE)] for n in range(number)]
        offsets = range(first, first + number)
        facts = BatchFacts(first, first + number - 1, time_ms, {0: 1}, policy, offsets, decisions)
        entry = write_entry(Chain(SOURCE.group, SOURCE.topic, partition), facts, previous)
        self._last[partition] = entry.hash, first + number
        self.counts.update((made.label, str(made.reason)) for made in decisions)
        self.raw(entry.key, entry.value, time_ms)

    def raw(self, key: bytes | None, value: bytes | None, time_ms: int = NOW_MS) -> None:
        """Any record; every second offset is a marker's."""
        self.arrived.append(Arrived(2 * len(self.arrived), time_ms, key, value))


def put(table: dict[bytes, bytes], writes: Writes, number: int | None = None) -> None:
    """Write into a table; the first `number` writes alone, and then it crashes."""
    for key, value in list(writes.items())[:number]:
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value


def folded(arrived: Sequence[Arrived], partition: int = 0) -> dict[bytes, bytes]:
    table: dict[bytes, bytes] = {}
    put(table, fold_ledger(SOURCE, table, partition, arrived))
    return table


def head_of(table: dict[bytes, bytes], partition: int = 0) -> LedgerHead:
    return msgspec.json.decode(table[Key(partition).encode()], type=LedgerHead)


def counted(outcomes: Any) -> Counter[tuple[str, str]]:
    return Counter(
        {
            (label, reason): number
            for by_label in outcomes.values()
            for label, by_reason in by_label.items()
            for reason, number in by_reason.items()
        }
    )


def windows_of(table: dict[bytes, bytes], size: str) -> dict[int, Counter[tuple[str, str]]]:
    return {
        key.start_ms: counted(msgspec.json.decode(value, type=LedgerWindow).outcomes)
        for key, value in ((Key.decode(k), v) for k, v in table.items())
        if key.size == size
    }


entries = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 4 * DAY_MS)), max_size=25
)


@given(entries, st.data())
def test_any_interleaving_with_replays_and_crashes_gives_the_same_figures(
    made: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    # Checked: fails where a window or the head does not look at `at`, and where the head is
    # written before the windows.
    ledger = Ledger()
    for partition, number, later_ms in made:
        ledger.append(partition, number, NOW_MS + later_ms)
    everything, table = folded(ledger.arrived), dict[bytes, bytes]()
    reached = 0
    for _ in range(data.draw(st.integers(0, 8), "rounds")):
        # Never beyond what was counted, for the source goes on from the head, or before it.
        begun = data.draw(st.integers(0, reached), "from")
        ended = data.draw(st.integers(begun, len(ledger.arrived)), "until")
        writes = fold_ledger(SOURCE, table, 0, ledger.arrived[begun:ended])
        put(table, writes, data.draw(st.integers(0, len(writes)), "written"))
        held = counted_up_to(table.get(Key(0).encode()))
        reached = sum(record.offset <= held for record in ledger.arrived)
    put(table, fold_ledger(SOURCE, table, 0, ledger.arrived[reached:]))
    assert table == everything


@given(entries)
def test_everything_is_counted_in_the_head_and_in_a_window_of_each_size_that_is_kept(
    made: list[tuple[int, int, int]],
) -> None:
    ledger = Ledger()
    for partition, number, later_ms in made:
        ledger.append(partition, number, NOW_MS + later_ms)
    table = folded(ledger.arrived)
    if not made:
        assert table == {}
        return
    head = head_of(table)
    assert counted(head.outcomes) == ledger.counts
    assert sum(link.entries for link in head.links.values()) == len(made)
    assert (head.problems, head.newest_ms) == ([], NOW_MS + max(each[2] for each in made))
    for size in ("hour", "day"):
        assert sum(windows_of(table, size).values(), Counter()) == ledger.counts


def test_a_window_begins_at_a_multiple_of_its_length() -> None:
    ledger = Ledger()
    ledger.append(0, 3, NOW_MS + 59_999)
    ledger.append(0, 3, NOW_MS + 60_000)
    table = folded(ledger.arrived)
    assert set(windows_of(table, "minute")) == {NOW_MS, NOW_MS + 60_000}
    assert set(windows_of(table, "hour")) == {NOW_MS}
    assert set(windows_of(table, "day")) == {NOW_MS - NOW_MS % DAY_MS}


def test_windows_go_by_when_something_was_decided_not_by_when_it_was_written() -> None:
    ledger = Ledger()
    ledger.append(0, 3, NOW_MS)
    written_ms = NOW_MS + 2 * DAY_MS
    table = folded([ledger.arrived[0]._replace(time_ms=written_ms)])
    assert set(windows_of(table, "minute")) == {NOW_MS}
    assert (head_of(table).newest_ms, head_of(table).links[0].time_ms) == (NOW_MS, written_ms)
    late = retraction(0, 5, NOW_MS + 40)._replace(time_ms=written_ms)
    assert Key(0, "minute", NOW_MS).encode() in fold_retractions(SOURCE, {}, 0, [late])


def test_old_windows_are_deleted_and_do_not_come_back() -> None:
    ledger = Ledger()
    ledger.append(0, 3, NOW_MS)
    ledger.append(0, 3, NOW_MS + KEPT_MS["minute"] + DAY_MS)
    ledger.append(1, 3, NOW_MS + 1)  # By a clock that is far behind.
    table: dict[bytes, bytes] = {}
    for record in ledger.arrived:
        put(table, fold_ledger(SOURCE, table, 0, [record]))
    assert set(windows_of(table, "minute")) == {NOW_MS + KEPT_MS["minute"] + DAY_MS}
    assert windows_of(table, "hour")[NOW_MS].total() == 6
    assert table == folded(ledger.arrived)


def test_windows_of_days_are_kept_for_ever() -> None:
    assert not is_expired(Key(0, "day", 0), NOW_MS)
    assert is_expired(Key(0, "hour", 0), NOW_MS)
    assert not is_expired(Key(0), NOW_MS)


def test_other_groups_and_topics_do_not_count() -> None:
    ledger = Ledger()
    ledger.append(0, 3, NOW_MS)
    chain, value = ledger.arrived[0].key, ledger.arrived[0].value
    for key in (None, b"", b"gate/content-events-x", b"other/content-events-0", b"gate/other-0"):
        ledger.raw(key, value)
    head = head_of(folded(ledger.arrived))
    assert (counted(head.outcomes), head.problems) == (ledger.counts, [])
    assert head.at == ledger.arrived[-1].offset
    assert chain == b"gate/content-events-0"


# The chain.


def test_a_chain_is_followed_through_several_input_partitions() -> None:
    ledger = Ledger()
    for number in range(6):
        ledger.append(number % 2, number, NOW_MS + number)
    head = head_of(folded(ledger.arrived))
    assert {p: (link.at, link.entries) for p, link in head.links.items()} == {0: (8, 3), 1: (10, 3)}
    assert head.links[1].time_ms == NOW_MS + 5
    assert all(link.from_the_beginning for link in head.links.values())


def test_a_ledger_that_does_not_reach_back_is_no_break() -> None:
    ledger = Ledger()
    ledger.append(0, 3, NOW_MS)
    ledger.append(0, 3, NOW_MS)
    head = head_of(folded(ledger.arrived[1:]))
    assert (head.problems, head.links[0].from_the_beginning) == ([], False)


def edited(value: bytes | None, **changes: Any) -> bytes:
    return json.dumps(json.loads(value or b"") | changes).encode()


def test_an_entry_that_is_left_out_is_a_break_once() -> None:
    ledger = Ledger()
    for _ in range(4):
        ledger.append(0, 3, NOW_MS)
    head = head_of(folded([ledger.arrived[n] for n in (0, 2, 3)], partition=7), partition=7)
    (problem,) = head.problems
    assert problem == (
        "ledger partition 7, offset 4: the entry of input partition 0 does not follow the one "
        "before: other hash"
    )


def test_an_entry_that_was_changed_is_a_break_and_does_not_count() -> None:
    # Checked: it counts where the hash is not compared with the content.
    ledger = Ledger()
    ledger.append(0, 3, NOW_MS)
    ledger.raw(ledger.arrived[0].key, edited(ledger.arrived[0].value, decided_at=NOW_MS + 1))
    head = head_of(folded(ledger.arrived))
    assert counted(head.outcomes) == ledger.counts
    (problem,) = head.problems
    assert problem.startswith("ledger partition 0, offset 2: there should be a ledger entry of")


def test_offsets_without_an_outcome_are_a_break() -> None:
    # Checked: passed where only the hashes are compared; whoever signs can leave offsets out.
    ledger = Ledger()
    ledger.append(0, 3, NOW_MS)
    hashed, _ = ledger._last[0]
    ledger._last[0] = hashed, 5
    ledger.append(0, 1, NOW_MS)
    (problem,) = head_of(folded(ledger.arrived)).problems
    assert problem.endswith("begins with offset 5, but 3 is the next without an outcome")


@pytest.mark.parametrize(
    "changes",
    [
        {"decided_at": -1},
        {"decided_at": 2**70},
        {"decided_at": 10**15},
        {"counts": {"*": {"opted-in": -1}}},
        {"counts": {"*": {"opted-in": 4}}},
        {"counts": {"*": {"of-a-later-version": 1}}},
        {"group": "other"},
        {"source": {"topic": "content-events", "partition": 1, "first": 0, "last": 2}},
        {"source": {"topic": "content-events", "partition": 0, "first": 5, "last": 2}},
        {"source": {"topic": "content-events", "partition": 0, "first": 0, "last": 2**64}},
    ],
)
def test_what_cannot_be_counted_is_told_and_stops_nothing(changes: dict[str, Any]) -> None:
    ledger = Ledger()
    ledger.append(0, 3, NOW_MS)
    spoilt = json.loads(edited(ledger.arrived[0].value, **changes))
    kept = {name: spoilt[name] for name in spoilt if name != "hash"}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    spoilt["hash"] = hashlib.sha256(text.encode()).hexdigest()
    head = head_of(folded([Arrived(0, NOW_MS, ledger.arrived[0].key, json.dumps(spoilt).encode())]))
    assert (head.outcomes, head.problem_count, head.links) == ({}, 1, {})


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_entry_is_told(value: bytes | None) -> None:
    ledger = Ledger()
    ledger.raw(b"gate/content-events-0", value)
    assert head_of(folded(ledger.arrived)).problem_count == 1


def test_so_many_problems_are_told_and_all_are_counted() -> None:
    ledger = Ledger()
    for _ in range(PROBLEMS_MAX + 5):
        ledger.raw(b"gate/content-events-0", None)
    head = head_of(folded(ledger.arrived))
    assert (len(head.problems), head.problem_count) == (PROBLEMS_MAX, PROBLEMS_MAX + 5)


def test_the_policies_are_known_since_they_were_first_seen() -> None:
    ledger = Ledger()
    ledger.append(0, 1, NOW_MS + 5)
    ledger.append(1, 1, NOW_MS, "other@0123456789ab")
    ledger.append(2, 1, NOW_MS + 1)
    assert head_of(folded(ledger.arrived)).policies == {
        POLICY: NOW_MS + 1,
        "other@0123456789ab": NOW_MS,
    }


# Retractions.


def retraction(
    offset: int, change: int, at: int, changed_at: int | None = NOW_MS, partition: int = 0
) -> Arrived:
    body = {
        "subject": "anna",
        "reason": "withdrawn",
        "consent": f"consent-state-0@{change}",
        "before": f"content-events-{partition}@12",
        "changed_at": changed_at,
        "at": at,
    }
    return Arrived(offset, at, b"anna", json.dumps(body).encode())


def retracted(arrived: Sequence[Arrived]) -> RetractionHead:
    table: dict[bytes, bytes] = {}
    put(table, fold_retractions(SOURCE, table, 0, arrived))
    for size in SIZES_MS:
        withdrawals = [
            msgspec.json.decode(value, type=RetractionWindow).withdrawals
            for key, value in table.items()
            if Key.decode(key).size == size
        ]
        head = msgspec.json.decode(table[b"0/head"], type=RetractionHead)
        assert sum(each.records for each in withdrawals) == head.withdrawals.records
        assert sum(each.count for each in withdrawals) == head.withdrawals.count
    assert not any(b"anna" in value for value in table.values())
    return head


def test_a_change_counts_once_in_each_input_partition_however_many_retractions_it_has() -> None:
    # Checked: twice where the place of the change is not remembered.
    head = retracted(
        [
            retraction(0, 5, NOW_MS + 40),
            retraction(1, 5, NOW_MS + 40),
            retraction(2, 5, NOW_MS + 90_000, partition=1),
            retraction(3, 6, NOW_MS + 41),
            retraction(4, 6, NOW_MS + 41),
        ]
    )
    assert (head.withdrawals.count, head.withdrawals.records) == (3, 5)
    assert head.withdrawals.effects_ms == {40: 1, 41: 1, 90_111: 1}
    assert head.withdrawals.max_ms == 90_000


def test_an_effect_by_another_clock_is_not_negative_and_an_unknown_one_is_none() -> None:
    head = retracted([retraction(0, 5, NOW_MS - 3), retraction(1, 6, NOW_MS, changed_at=None)])
    assert (head.withdrawals.count, head.withdrawals.effects_ms) == (2, {0: 1})


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"{",
        b'{"consent": "c-0@1", "before": "other-0@1", "at": 1}',
        b'{"consent": "c-0@1", "before": "content-events-x@1", "at": 1}',
        b'{"consent": "c-0@1", "before": "content-events-0@1", "at": 1e300}',
        b'{"consent": "c-0@1", "before": "content-events-0@1", "at": 99999999999999999999}',
        b'{"consent": "c-0@1", "before": "content-events-0@1", "at": 1, "changed_at": -9e9}',
    ],
)
def test_what_is_no_retraction_of_the_source_does_not_count(value: bytes | None) -> None:
    head = retracted([Arrived(3, NOW_MS, b"anna", value)])
    assert (head.at, head.withdrawals.records) == (3, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=20), st.data())
def test_retractions_that_come_again_do_not_count_again(
    made: list[tuple[int, int]], data: st.DataObject
) -> None:
    arrived = [
        retraction(offset, change, NOW_MS + 1_000 * offset, partition=partition)
        for offset, (change, partition) in enumerate(made)
    ]
    everything: dict[bytes, bytes] = {}
    put(everything, fold_retractions(SOURCE, everything, 0, arrived))
    table: dict[bytes, bytes] = {}
    for _ in range(data.draw(st.integers(0, 6))):
        begun = data.draw(st.integers(0, counted_up_to(table.get(b"0/head")) + 1))
        writes = fold_retractions(
            SOURCE, table, 0, arrived[begun : data.draw(st.integers(begun, len(arrived)))]
        )
        put(table, writes, data.draw(st.integers(0, len(writes))))
    put(table, fold_retractions(SOURCE, table, 0, arrived))
    assert table == everything
