"""Histograms of durations: how exact they are, and that they add up."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentgate.core.histogram import bucket, nearest_rank

durations_ms = st.integers(0, 10**12)


@given(durations_ms)
def test_a_bucket_is_too_long_by_less_than_one_part_in_32_and_never_too_short(
    duration_ms: int,
) -> None:
    longest = bucket(duration_ms)
    assert duration_ms <= longest
    assert longest - duration_ms <= duration_ms / 32
    assert bucket(longest) == longest


@given(durations_ms, durations_ms)
def test_buckets_are_in_the_order_of_the_durations(one_ms: int, other_ms: int) -> None:
    assert (bucket(one_ms) <= bucket(other_ms)) or one_ms > other_ms


@pytest.mark.parametrize(("duration_ms", "longest"), [(-5, 0), (0, 0), (63, 63), (64, 65)])
def test_short_durations_are_exact(duration_ms: int, longest: int) -> None:
    assert bucket(duration_ms) == longest


@given(st.lists(durations_ms, max_size=50), st.sampled_from([50, 95, 100]))
def test_the_percentile_is_the_smallest_that_so_many_do_not_exceed(
    found: list[int], percent: int
) -> None:
    ranked = nearest_rank(Counter(found), percent)
    if not found:
        assert ranked is None
        return
    assert ranked in found
    assert sum(each <= ranked for each in found) * 100 >= percent * len(found)
    assert sum(each < ranked for each in found) * 100 < percent * len(found)
