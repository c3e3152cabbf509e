"""The consent table: the last record of each subject counts, and the frontier never goes back."""

import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.core.consent import ConsentTable, holding
from consentgate.core.model import UNREADABLE, Choice, ConsentState, consent_state

GRANTED = consent_state("GB", True, Choice.GRANTED)
WITHDRAWN = consent_state("GB", True, Choice.WITHDRAWN)
DENIED = consent_state("FR", None, Choice.DENIED)

BYTES_PER_SUBJECT_MAX = 140

Change = tuple[int, bytes, ConsentState | None]


def folded(changes: Iterable[Change], partitions: Iterable[int] = (0, 1, 2)) -> ConsentTable:
    table = ConsentTable(partitions)
    for change in changes:
        table.apply(*change)
    return table


def reference(changes: list[Change]) -> dict[bytes, set[tuple[int, ConsentState]]]:
    """What each partition's last record of each subject says, by subject; tombstones left out."""
    last = {(subject, partition): state for partition, subject, state in changes}
    found: dict[bytes, set[tuple[int, ConsentState]]] = {}
    for (subject, partition), state in last.items():
        if state is not None:
            found.setdefault(subject, set()).add((partition, state))
    return found


def agrees(table: ConsentTable, changes: list[Change]) -> bool:
    expected = reference(changes)
    assert table.holdings.keys() == expected.keys()
    assert len(table) == len(expected)
    assert table.scattered() == sum(len(holders) > 1 for holders in expected.values())
    for subject, holders in expected.items():
        held = table.holdings[subject]
        if len(holders) == 1:
            assert (held.partition, held.state) in holders
        else:
            assert held.state is UNREADABLE
            assert held.partition == min(partition for partition, _ in holders)
    return True


def test_a_table_takes_over_all_that_another_one_holds() -> None:
    other = folded([(0, b"a", GRANTED), (1, b"a", DENIED), (2, b"b", WITHDRAWN)])
    other.advance(2, 7)
    table = folded([(0, b"c", GRANTED)])
    table.take_over(other)
    assert table.frontier == {0: 0, 1: 0, 2: 7}
    assert table.holdings.keys() == {b"a", b"b"}
    assert table.holders(b"a") == [0, 1]
    table.apply(0, b"a", None)
    assert table.holdings[b"a"] is holding(1, DENIED)


SUBJECTS = st.sampled_from([b"a", b"b", b"c"])
STATES = st.sampled_from([GRANTED, WITHDRAWN, DENIED, UNREADABLE, None])


@settings(max_examples=200)
@given(st.lists(st.tuples(st.just(5), SUBJECTS, STATES), max_size=30))
def test_in_one_partition_the_last_record_of_a_subject_counts(changes: list[Change]) -> None:
    table = folded(changes, [5])
    assert agrees(table, changes)
    assert table.scattered() == 0


@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 2), SUBJECTS, STATES), max_size=40))
def test_over_several_partitions_each_has_its_last_record_of_a_subject(
    changes: list[Change],
) -> None:
    for number in range(len(changes) + 1):
        assert agrees(folded(changes[:number]), changes[:number])


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2), SUBJECTS, STATES), max_size=20))
def test_the_order_in_which_partitions_are_read_does_not_matter(changes: list[Change]) -> None:
    one_after_another = sorted(changes, key=lambda change: change[0])
    assert folded(changes).holdings == folded(one_after_another).holdings


def test_an_unknown_subject_has_no_holding() -> None:
    assert folded([(0, b"a", GRANTED)]).holdings.get(b"b") is None


def test_a_tombstone_forgets() -> None:
    table = folded([(0, b"a", GRANTED), (0, b"b", GRANTED), (0, b"a", None), (0, b"c", None)])
    assert set(table.holdings) == {b"b"}


def test_a_withdrawal_replaces_a_grant_and_a_grant_a_withdrawal() -> None:
    table = folded([(0, b"a", GRANTED), (0, b"a", WITHDRAWN)])
    assert table.holdings[b"a"] is holding(0, WITHDRAWN)
    table.apply(0, b"a", GRANTED)
    assert table.holdings[b"a"] is holding(0, GRANTED)


def test_an_unreadable_record_counts_until_a_readable_one_follows() -> None:
    table = folded([(0, b"a", GRANTED), (0, b"a", UNREADABLE)])
    assert table.holdings[b"a"].state is UNREADABLE
    table.apply(0, b"a", GRANTED)
    assert table.holdings[b"a"].state is GRANTED


def test_a_subject_in_two_partitions_is_unreadable_for_as_long_as_it_is() -> None:
    table = folded([(0, b"a", GRANTED), (1, b"a", GRANTED)])
    assert table.holdings[b"a"].state is UNREADABLE
    assert table.scattered() == 1
    # Neither a newer record in either partition nor a tombstone elsewhere makes it readable.
    for change in ((0, b"a", GRANTED), (1, b"a", GRANTED), (2, b"a", None)):
        table.apply(*change)
        assert table.holdings[b"a"].state is UNREADABLE
    table.apply(0, b"a", None)
    assert table.holdings[b"a"] is holding(1, GRANTED)
    assert table.scattered() == 0


def test_a_tombstone_in_another_partition_takes_nothing_away() -> None:
    table = folded([(0, b"a", GRANTED), (1, b"a", None)])
    assert table.holdings[b"a"] is holding(0, GRANTED)
    assert table.scattered() == 0


def test_a_subject_that_moved_belongs_to_its_new_partition() -> None:
    table = folded([(0, b"a", GRANTED), (0, b"a", None), (1, b"a", WITHDRAWN)])
    assert table.holdings[b"a"] is holding(1, WITHDRAWN)


def test_a_table_begins_with_nothing_applied() -> None:
    table = ConsentTable(iter([3, 4]))
    assert table.frontier == {3: 0, 4: 0}
    assert len(table) == 0
    assert table.covers({3: 0, 4: 0})
    assert not table.covers({3: 1, 4: 0})


def test_the_frontier_never_goes_back() -> None:
    table = ConsentTable([3, 4])
    table.advance(3, 10)
    table.advance(3, 10)
    with pytest.raises(ValueError, match="partition 3 would go back from 10 to 9"):
        table.advance(3, 9)
    assert table.frontier == {3: 10, 4: 0}


@settings(max_examples=100)
@given(st.lists(st.integers(0, 20), max_size=20))
def test_the_frontier_is_the_highest_that_was_reached(offsets: list[int]) -> None:
    table = ConsentTable([0])
    for number, offset in enumerate(offsets, start=1):
        if offset < max(offsets[: number - 1], default=0):
            with pytest.raises(ValueError, match="would go back"):
                table.advance(0, offset)
        else:
            table.advance(0, offset)
        assert table.frontier[0] == max(offsets[:number])


def test_a_table_has_no_frontier_of_a_partition_that_it_does_not_cover() -> None:
    with pytest.raises(KeyError):
        ConsentTable([3]).advance(4, 1)


def test_a_table_covers_offsets_up_to_its_frontier_in_every_partition() -> None:
    table = ConsentTable([0, 1])
    table.advance(0, 10)
    table.advance(1, 5)
    assert table.covers({0: 10, 1: 5})
    assert table.covers({0: 9})
    assert table.covers({})
    assert not table.covers({0: 11, 1: 5})
    assert not table.covers({0: 10, 1: 6})


def test_a_reset_table_is_as_new() -> None:
    table = folded([(0, b"a", GRANTED), (1, b"a", GRANTED), (0, b"b", GRANTED)])
    holdings = table.holdings
    table.advance(0, 10)
    table.reset()
    assert table.frontier == {0: 0, 1: 0, 2: 0}
    assert (len(table), table.scattered()) == (0, 0)
    # The gate keeps hold of the mapping itself.
    assert table.holdings is holdings
    table.apply(1, b"a", GRANTED)
    assert table.holdings[b"a"] is holding(1, GRANTED)


def test_a_subject_costs_no_more_memory_than_promised() -> None:
    # Just after the mapping has grown, which is when each entry costs most; ids as long as UUIDs.
    number = 350_000
    states = [consent_state(code, adult, None) for code in ("GB", "FR") for adult in (True, None)]
    tracemalloc.start(1)
    try:
        table = ConsentTable([0])
        for subject in range(number):
            table.apply(0, b"%036d" % subject, states[subject % len(states)])
        table.advance(0, number)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == number
    assert used / number <= BYTES_PER_SUBJECT_MAX


def test_the_holders_of_a_subject_are_the_partitions_that_have_it_now() -> None:
    table = ConsentTable([0, 1, 2])
    state = consent_state("GB", True, None)
    assert table.holders(b"m1") == []
    table.apply(2, b"m1", state)
    assert table.holders(b"m1") == [2]
    table.apply(0, b"m1", state)
    assert table.holders(b"m1") == [0, 2]
    table.apply(2, b"m1", None)
    assert table.holders(b"m1") == [0]
