"""Two outcomes of each record: what is counted as a change, and what is kept of it."""

import pytest

from consentgate.core.compare import EXAMPLES_MAX, Comparison, Decided
from consentgate.core.gate import POLICY_HEADER, Headers, Output
from consentgate.core.model import Reason, decision

FREE = Decided(decision(Reason.NOT_OPTED_OUT, "*", 1))
GRANTED = Decided(decision(Reason.OPTED_IN, "*", 1))
PAUSED = Decided(decision(Reason.JURISDICTION_SUSPENDED, "EEA", 1))
MINOR = Decided(decision(Reason.MINOR, "*", 1))


def test_the_same_reason_is_no_change_under_whatever_label() -> None:
    comparison = Comparison()
    comparison.take("a", PAUSED, Decided(decision(Reason.JURISDICTION_SUSPENDED, "DE", 1)))
    comparison.take("b", FREE, FREE)
    assert (comparison.records, comparison.changed, comparison.rows()) == (2, 0, [])


def test_changes_are_counted_by_jurisdiction_and_both_reasons() -> None:
    comparison = Comparison()
    for place, before, after in [
        ("a", PAUSED, FREE),
        ("b", FREE, MINOR),
        ("c", FREE, MINOR),
        ("d", FREE, GRANTED),
        ("e", PAUSED, MINOR),
        ("f", FREE, FREE),
    ]:
        comparison.take(place, before, after)
    rows = comparison.rows()
    assert [(c.jurisdiction, c.before, c.after, n) for c, n, _ in rows] == [
        ("*", Reason.NOT_OPTED_OUT, Reason.MINOR, 2),
        ("*", Reason.NOT_OPTED_OUT, Reason.OPTED_IN, 1),
        ("EEA -> *", Reason.JURISDICTION_SUSPENDED, Reason.MINOR, 1),
        ("EEA -> *", Reason.JURISDICTION_SUSPENDED, Reason.NOT_OPTED_OUT, 1),
    ]
    assert (comparison.records, comparison.changed) == (6, 5)
    assert (comparison.started, comparison.stopped) == (1, 2)


def test_the_first_places_of_a_change_are_kept_and_no_more() -> None:
    comparison = Comparison()
    for number in range(1_000):
        comparison.take(str(number), FREE, MINOR)
    ((_, number, examples),) = comparison.rows()
    assert (number, examples) == (1_000, ["0", "1", "2"])
    assert len(examples) == EXAMPLES_MAX


def leaving(
    value: bytes = b'{"n": 1e400}', key: bytes = b"m", headers: Headers | None = None
) -> Decided:
    return Decided(FREE.decision, Output(1, key, value, headers or []))


@pytest.mark.parametrize(
    "after",
    [leaving(b'{"n": 2}'), leaving(key=b"other"), leaving(headers=[("who", b"m")])],
)
def test_another_value_key_or_header_is_a_change(after: Decided) -> None:
    comparison = Comparison()
    comparison.take("a", leaving(), after)
    ((change, number, examples),) = comparison.rows()
    assert (change.before, change.after, change.otherwise) == (FREE.reason, FREE.reason, True)
    assert (number, examples, comparison.otherwise) == (1, ["a"], 1)
    assert (comparison.started, comparison.stopped) == (0, 0)


@pytest.mark.parametrize(
    "after",
    [leaving(b'{"n":1e400}'), leaving(headers=[(POLICY_HEADER, b"p@2")]), MINOR],
    ids=["spaces", "policy", "withheld"],
)
def test_spaces_and_the_policy_s_name_are_no_other_content(after: Decided) -> None:
    comparison = Comparison()
    comparison.take("a", leaving(headers=[(POLICY_HEADER, b"p@1")]), after)
    assert comparison.otherwise == 0
