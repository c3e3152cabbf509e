"""In which scope content is judged: settled at a group's first start, and never by accident."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consentgate.config import Topics
from consentgate.core.ledger import Bookmark
from consentgate.errors import ConfigError
from consentgate.kafka.layout import Layout, settle_scope

TOPICS = Topics()


def bookmark(scope: str, content: int, consent: int) -> Bookmark:
    return Bookmark(0, 5, "ab" * 32, scope, [content, consent])  # type: ignore[arg-type]


def layout(scope: str, content: int = 4, consent: int = 4, outputs: int = 4) -> Layout:
    counts = {
        TOPICS.content: content,
        TOPICS.consent: consent,
        TOPICS.training: outputs,
        TOPICS.decisions: 1,
        TOPICS.quarantine: outputs,
        TOPICS.retractions: 2,
    }
    return Layout(TOPICS, counts, scope, 86_400_000, 86_400_000)  # type: ignore[arg-type]


# The first start.


def test_auto_is_partition_scope_where_the_counts_match() -> None:
    assert settle_scope("auto", True, [4, 4], []) == "partition"


def test_auto_is_global_scope_where_they_do_not() -> None:
    assert settle_scope("auto", True, [4, 5], []) == "global"
    assert settle_scope("auto", True, [4, 1], []) == "global"


def test_a_key_that_is_not_the_subject_is_possible_in_global_scope_only() -> None:
    assert settle_scope("auto", False, [4, 4], []) == "global"
    assert settle_scope("global", False, [4, 4], []) == "global"
    with pytest.raises(ConfigError, match="scope: partition"):
        settle_scope("partition", False, [4, 4], [])


def test_global_scope_can_be_asked_for_where_the_counts_match() -> None:
    assert settle_scope("global", True, [4, 4], []) == "global"


def test_partition_scope_is_refused_where_the_counts_differ() -> None:
    assert settle_scope("partition", True, [4, 4], []) == "partition"
    with pytest.raises(ConfigError, match="there are 4 and 5"):
        settle_scope("partition", True, [4, 5], [])


# Every later start.


def test_auto_stays_what_it_was_settled_to() -> None:
    assert settle_scope("auto", True, [4, 4], [bookmark("partition", 4, 4)]) == "partition"
    assert settle_scope("auto", True, [4, 4], [bookmark("global", 4, 4)]) == "global"
    assert settle_scope("auto", True, [4, 5], [bookmark("global", 4, 5)]) == "global"


@pytest.mark.parametrize("counts", [[5, 4], [4, 5], [5, 5], [3, 3]])
@pytest.mark.parametrize("configured", ["auto", "global"])
@pytest.mark.parametrize("settled", ["partition", "global"])
def test_changed_counts_are_refused(configured: str, settled: str, counts: list[int]) -> None:
    with pytest.raises(ConfigError, match="over 4 content and 4 consent partitions"):
        settle_scope(configured, True, counts, [bookmark(settled, 4, 4)])  # type: ignore[arg-type]


def test_a_refusal_names_what_the_group_was_started_with() -> None:
    with pytest.raises(ConfigError, match="global scope over 3 content and 4 consent partitions"):
        settle_scope("auto", True, [5, 6], [bookmark("global", 3, 4)])


def test_a_changed_scope_is_refused() -> None:
    with pytest.raises(ConfigError, match="started with partition scope"):
        settle_scope("global", True, [4, 4], [bookmark("partition", 4, 4)])
    with pytest.raises(ConfigError, match="started with global scope"):
        settle_scope("partition", True, [4, 4], [bookmark("global", 4, 4)])


def test_a_key_that_stops_being_the_subject_does_not_stay_in_partition_scope() -> None:
    with pytest.raises(ConfigError, match="started with partition scope"):
        settle_scope("auto", False, [4, 4], [bookmark("partition", 4, 4)])


def test_every_partition_s_bookmark_counts() -> None:
    bookmarks = [bookmark("partition", 4, 4), bookmark("partition", 8, 8)]
    with pytest.raises(ConfigError, match="over 8 content and 8 consent partitions"):
        settle_scope("auto", True, [4, 4], bookmarks)


def test_bookmarks_of_two_scopes_are_refused() -> None:
    for scopes in (("partition", "global"), ("global", "partition")):
        bookmarks = [bookmark(scope, 4, 4) for scope in scopes]
        with pytest.raises(ConfigError, match="the group was started with"):
            settle_scope("auto", True, [4, 4], bookmarks)


@settings(max_examples=100)
@given(
    st.sampled_from(["auto", "partition", "global"]),
    st.lists(st.integers(1, 3), min_size=2, max_size=2),
)
def test_what_was_settled_at_the_first_start_is_settled_at_the_second(
    configured: str, counts: list[int]
) -> None:
    try:
        first = settle_scope(configured, True, counts, [])  # type: ignore[arg-type]
    except ConfigError:
        return
    noted = [bookmark(first, *counts)] * 3
    assert settle_scope(configured, True, counts, noted) == first  # type: ignore[arg-type]


# What follows from it.


def test_in_partition_scope_content_is_judged_against_the_partition_of_its_number() -> None:
    assert [layout("partition").consent_partitions(n) for n in range(4)] == [[0], [1], [2], [3]]


def test_in_global_scope_content_is_judged_against_all_partitions() -> None:
    assert layout("global", 4, 3).consent_partitions(2) == [0, 1, 2]


def test_an_output_goes_to_the_partition_of_its_input_where_there_are_as_many() -> None:
    outputs = layout("partition").outputs(3)
    assert tuple(outputs.training) == ("training-data", 3)
    assert tuple(outputs.quarantine) == ("content-quarantine", 3)
    assert tuple(outputs.decisions) == ("consent-decisions", 0)
    assert tuple(outputs.retractions) == ("training-retractions", 1)


def test_the_settled_counts_are_of_content_and_of_consent() -> None:
    assert layout("global", 4, 3).settled_counts == [4, 3]
    assert list(layout("global", 4, 3).content_partitions) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("subject", "hash_"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
@pytest.mark.parametrize("partitions", [1, 4, 7, 12])
def test_consent_is_misplaced_where_kafkas_default_partitioner_would_not_put_it(
    subject: bytes, hash_: int, partitions: int
) -> None:
    # The hashes are those of the test of Kafka's own clients.
    home = (hash_ & 0x7FFFFFFF) % partitions
    wrong = [
        number
        for number in range(partitions)
        if layout("partition", partitions, partitions).misplaced(number, [subject])
    ]
    assert wrong == [number for number in range(partitions) if number != home]


def test_each_of_many_that_are_misplaced_is_named() -> None:
    # The same one twice is two records.
    subjects = [*(b"%d" % number for number in range(100)), b"7"]
    placed = layout("partition", 4, 4)
    named = [each for number in range(4) for each in placed.misplaced(number, subjects)]
    assert sorted(named) == sorted(subjects * 3)


def test_in_global_scope_consent_may_lie_anywhere() -> None:
    assert not any(layout("global").misplaced(number, [b"abc"]) for number in range(4))
