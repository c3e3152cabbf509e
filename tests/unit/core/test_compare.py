"""Two outcomes of each record: what is counted as a change, and what is kept of it."""

from consentgate.core.compare import EXAMPLES_MAX, Comparison
from consentgate.core.model import Reason, decision

FREE = decision(Reason.NOT_OPTED_OUT, "*", 1)
GRANTED = decision(Reason.OPTED_IN, "*", 1)
PAUSED = decision(Reason.JURISDICTION_SUSPENDED, "EEA", 1)
MINOR = decision(Reason.MINOR, "*", 1)


def test_the_same_reason_is_no_change_under_whatever_label() -> None:
    comparison = Comparison()
    comparison.take("a", PAUSED, decision(Reason.JURISDICTION_SUSPENDED, "DE", 1))
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
