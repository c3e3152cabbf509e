"""What is answered: all partitions together, as of one position, and nobody's formula."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consentgate.core.policyfile import parse_policy
from consentgate.policies import load_policy
from consentgate.report.answers import (
    CSV_COLUMNS,
    WINDOWS_MAX,
    Answers,
    BadRange,
    ConfiguredPolicy,
    policy_changes,
)
from consentgate.report.figures import (
    KEPT_MS,
    TIME_MS_END,
    Key,
    Writes,
    counted_up_to,
    fold_ledger,
    fold_retractions,
)
from unit.report.test_figures import NOW_MS, POLICY, SOURCE, Ledger, put, retraction

LINKEDIN = load_policy("linkedin")
TOPICS = ("ledger-changelog", "retractions-changelog")


def answers_of(*written: tuple[int, Writes], policy_hash: str | None = None) -> Answers:
    """With what was written to the changelogs; 0 is the ledger's, 1 that of the retractions."""
    answers = Answers(ConfiguredPolicy(LINKEDIN, policy_hash), TOPICS)
    for table, writes in written:
        for key, value in writes.items():
            answers.apply(TOPICS[table], key, value)
    return answers


def ledger(*partitions: int, time_ms: int = NOW_MS, policy: str = POLICY) -> Ledger:
    """Entries with three records each: one forwarded, one withheld, one quarantined."""
    made = Ledger()
    for partition in partitions:
        made.append(partition, 3, time_ms, policy)
    return made


def folded(made: Ledger, partition: int = 0) -> Writes:
    return fold_ledger(SOURCE, {}, partition, made.arrived)


def test_the_totals_are_those_of_all_partitions() -> None:
    retracted = fold_retractions(
        SOURCE, {}, 0, [retraction(0, 5, NOW_MS + 40), retraction(1, 6, NOW_MS + 900)]
    )
    made = ledger(0, 2, 0)
    answers = answers_of((0, folded(made)), (0, folded(ledger(1), 1)), (1, retracted))
    totals = answers.totals(NOW_MS + 5)
    assert totals["generated_at_ms"] == NOW_MS + 5
    assert totals["totals"] == {"in": 12, "forwarded": 4, "withheld": 4, "quarantined": 4}
    row = {"jurisdiction": "EEA", "reason": "minor", "verdict": "withhold", "policy": POLICY}
    assert {**row, "count": 4} in totals["outcomes"]
    assert [(p["partition"], p["ledger_offset"]) for p in totals["through"]] == [
        (0, 4),
        (1, 0),
        (2, 2),
    ]
    assert {p["ledger_time_ms"] for p in totals["through"]} == {NOW_MS}
    assert totals["retractions_through"] == [{"partition": 0, "offset": 1}]
    windows = answers.windows("day", None, None)
    assert windows["retractions_through"] == totals["retractions_through"]
    assert totals["withdrawals"] == {
        "count": 2,
        "effect_ms": {"p50": 40, "p95": 900, "max": 900},  # Not 911, the longest of the bucket.
        "retracted_records": 2,
    }
    assert totals["chain"] == {"state": "verified", "entries": 4, "problems": []}


def test_without_anything_there_is_nothing_and_the_chain_is_unknown() -> None:
    totals = answers_of().totals(NOW_MS)
    assert totals["totals"] == {"in": 0, "forwarded": 0, "withheld": 0, "quarantined": 0}
    assert totals["withdrawals"]["effect_ms"] == {"p50": None, "p95": None, "max": None}
    assert totals["through"] == totals["retractions_through"] == []
    assert totals["chain"]["state"] == "unknown"
    assert answers_of().windows("day", None, None)["windows"] == []


def test_windows_and_totals_are_as_of_one_position() -> None:
    # Checked: a window would be told that is ahead of the positions beside it.
    made, table = ledger(0, 0), dict[bytes, bytes]()
    first = fold_ledger(SOURCE, table, 0, made.arrived[:1])
    put(table, first)
    second = fold_ledger(SOURCE, table, 0, made.arrived[1:])
    answers = answers_of((0, first))
    *windows, head = second.items()
    for key, value in windows:
        answers.apply(TOPICS[0], key, value)
        assert count_of(answers) == (3, 3)
    answers.apply(TOPICS[0], *head)
    assert count_of(answers) == (6, 6)


def count_of(answers: Answers) -> tuple[int, int]:
    windows = answers.windows("minute", None, None)["windows"]
    in_windows = sum(row["count"] for window in windows for row in window["outcomes"])
    return answers.totals(NOW_MS)["totals"]["in"], in_windows


def test_what_has_counted_less_does_not_replace_what_has_counted_more() -> None:
    # Checked: figures go back where a worker that stood still writes late.
    made = ledger(0, 0)
    late, all_of_it = fold_ledger(SOURCE, {}, 0, made.arrived[:1]), folded(made)
    assert count_of(answers_of((0, all_of_it), (0, late))) == (6, 6)


@given(st.lists(st.integers(1, 3), max_size=8), st.data())
def test_windows_and_totals_agree_whoever_writes_in_between(
    rounds: list[int], data: st.DataObject
) -> None:
    """Two workers with the same records; the one that is behind writes what is older."""
    # Checked: they differ where a head tells windows that are ahead of it, or the older of two.
    made = ledger(*range(6))
    answers = answers_of()
    tables: list[dict[bytes, bytes]] = [{}, {}]
    pending: list[list[tuple[bytes, bytes | None]]] = [[], []]
    for number in rounds:
        worker = data.draw(st.integers(0, 1))
        at = counted_up_to(tables[worker].get(Key(0).encode()))
        new = [record for record in made.arrived if record.offset > at][:number]
        writes = fold_ledger(SOURCE, tables[worker], 0, new)
        put(tables[worker], writes)
        pending[worker] += writes.items()
        for each in (0, 1):
            sent = data.draw(st.integers(0, len(pending[each])))
            for key, value in pending[each][:sent]:
                answers.apply(TOPICS[0], key, value)
                in_totals, in_windows = count_of(answers)
                assert in_totals == in_windows
            del pending[each][:sent]
    for each in (0, 1):
        for key, value in pending[each]:
            answers.apply(TOPICS[0], key, value)
    in_totals, in_windows = count_of(answers)
    most = max(counted_up_to(table.get(Key(0).encode())) for table in tables)
    assert in_totals == in_windows == 3 * sum(record.offset <= most for record in made.arrived)


def test_a_break_stays_and_is_told_before_a_late_beginning() -> None:
    made = ledger(0, 0, 0, 1, 1)
    broken = [made.arrived[n] for n in (0, 2, 4)]
    answers = answers_of((0, fold_ledger(SOURCE, {}, 0, broken)))
    chain = answers.totals(NOW_MS)["chain"]
    assert (chain["state"], chain["entries"]) == ("broken", 3)
    assert [problem.partition(":")[0] for problem in chain["problems"]] == [
        "ledger partition 0, offset 4",
        "input partition 1",
    ]


def test_problems_that_are_not_listed_are_counted() -> None:
    made = Ledger()
    for _ in range(25):
        made.raw(b"gate/content-events-0", None)
    chain = answers_of((0, folded(made))).totals(NOW_MS)["chain"]
    assert chain["problems"][-1] == "and 5 more"


def test_a_ledger_that_does_not_reach_back_is_unknown() -> None:
    made = ledger(0, 0)
    answers = answers_of((0, fold_ledger(SOURCE, {}, 0, made.arrived[1:])))
    chain = answers.totals(NOW_MS)["chain"]
    assert chain["state"] == "unknown"
    assert chain["problems"] == [
        "input partition 0: the ledger does not reach back to its first entry"
    ]


# Windows.


def spread(*times_ms: int) -> Answers:
    made = Ledger()
    for time_ms in times_ms:
        made.append(0, 1, time_ms)
    return answers_of((0, folded(made)))


def starts(answers: Answers, *asked: Any) -> list[int]:
    return [window["start_ms"] for window in answers.windows(*asked)["windows"]]


def test_windows_from_a_time_to_before_another() -> None:
    minute_ms = 60_000
    answers = spread(NOW_MS, NOW_MS + minute_ms, NOW_MS + 2 * minute_ms)
    assert starts(answers, "minute", NOW_MS, NOW_MS + 2 * minute_ms) == [NOW_MS, NOW_MS + minute_ms]
    assert starts(answers, "minute", NOW_MS + 1, None) == [NOW_MS + minute_ms, NOW_MS + 120_000]
    assert starts(answers, "minute", None, NOW_MS + 1) == [NOW_MS]
    answer = answers.windows("minute", None, None)
    assert answer["size_ms"] == minute_ms
    assert [place["ledger_offset"] for place in answer["through"]] == [4]


def test_only_what_was_asked_for_is_gathered() -> None:
    # Checked: each request merges all windows that there are where the range is applied behind it.
    held = spread(*[NOW_MS + number * 60_000 for number in range(100)])._ledger
    found = held.windows("minute", range(NOW_MS, NOW_MS + 120_000))
    assert list(found) == [NOW_MS, NOW_MS + 60_000]


def test_an_answer_is_bounded() -> None:
    answers, reach_ms = spread(NOW_MS, NOW_MS + WINDOWS_MAX * 60_000), WINDOWS_MAX * 60_000
    assert starts(answers, "minute", None, None) == [NOW_MS + reach_ms]
    assert starts(answers, "minute", NOW_MS, None) == [NOW_MS]
    assert starts(answers, "minute", NOW_MS, NOW_MS + reach_ms) == [NOW_MS]
    with pytest.raises(BadRange, match="1,500 windows"):
        answers.windows("minute", NOW_MS, NOW_MS + reach_ms + 1)
    with pytest.raises(BadRange, match="must not be after"):
        answers.windows("minute", NOW_MS, NOW_MS - 1)


def test_what_is_no_longer_kept_is_not_told_though_nobody_has_deleted_it_yet() -> None:
    later_ms = NOW_MS + KEPT_MS["minute"] + 60_000
    answers = answers_of((0, folded(ledger(0), 0)), (0, folded(ledger(1, time_ms=later_ms), 1)))
    assert starts(answers, "minute", NOW_MS, None) == []
    assert len(starts(answers, "hour", None, None)) == 2


def test_a_window_that_was_deleted_is_gone() -> None:
    first, table = ledger(0), dict[bytes, bytes]()
    writes = folded(first)
    put(table, writes)
    first.append(0, 3, NOW_MS + 3 * 86_400_000)
    answers = answers_of((0, writes), (0, fold_ledger(SOURCE, table, 0, first.arrived)))
    assert Key(0, "minute", NOW_MS) not in answers._ledger._windows


# Policies.


def test_the_policies_of_the_ledger_are_listed_with_the_timeline_of_the_configured_one() -> None:
    made = ledger(0, policy=f"linkedin@{'0' * 12}", time_ms=NOW_MS + 1)
    made.append(0, 3, NOW_MS, POLICY)
    listed = answers_of((0, folded(made)), policy_hash="0" * 12).totals(NOW_MS)["policies"]
    assert [(each["name"], each["hash"], each["first_seen_ms"]) for each in listed] == [
        ("mine", "0123456789ab", NOW_MS),
        ("linkedin", "0" * 12, NOW_MS + 1),
    ]
    assert listed[0]["timeline"] == []
    assert listed[1]["timeline"] == policy_changes(LINKEDIN)


@pytest.mark.parametrize("policy_hash", [None, "f" * 12])
def test_a_configured_policy_that_was_not_seen_is_listed(policy_hash: str | None) -> None:
    made = ledger(0, policy=f"linkedin@{'0' * 12}")
    listed = answers_of((0, folded(made)), policy_hash=policy_hash).totals(NOW_MS)["policies"]
    assert [each["hash"] for each in listed] == ["0" * 12, policy_hash]
    assert listed[1]["first_seen_ms"] is None
    assert listed[1]["timeline"] != []


def test_the_timeline_has_each_change_of_each_label() -> None:
    policy = parse_policy(
        "name: p\npurpose: ai-training\nrules:\n"
        "  - {jurisdictions: [GB, CH], basis: opt-out, until: 2024-09-20T00:00:00Z}\n"
        "  - {jurisdictions: [GB, CH], basis: suspended, from: 2024-09-20T00:00:00Z}\n"
        "  - {jurisdictions: ['*'], basis: opt-in, from: 2024-01-01T00:00:00Z}\n",
        "p.yaml",
    )
    changes = policy_changes(policy)
    assert [tuple(change.values()) for change in changes] == [
        (1704067200000, "*", "everywhere else", None, "opt-in"),
        (1726790400000, "CH", "CH", "opt-out", "suspended"),
        (1726790400000, "GB", "GB", "opt-out", "suspended"),
    ]


# CSV.


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_csv_has_the_positions_and_each_outcome() -> None:
    made = ledger(0, 1)
    text = answers_of((0, folded(made))).outcomes_csv("day")
    rows = rows_of(text)
    assert tuple(rows[0]) == CSV_COLUMNS
    positions = [row for row in rows if row["row"] == "position"]
    assert [row["ledger_offset"] for row in positions] == ["0", "2"]
    assert all(len(row["ledger_hash"]) == 64 for row in positions)
    outcomes = [row for row in rows if row["row"] == "outcome"]
    assert {row["window_start"] for row in outcomes} == {"2024-09-20T00:00:00.000Z"}
    assert sum(int(row["count"]) for row in outcomes) == 6
    assert {row["verdict"] for row in outcomes} == {"forward", "withhold", "quarantine"}


@pytest.mark.parametrize("time_ms", [TIME_MS_END, 2**62, -(2**62)])
def test_a_record_of_no_time_on_any_calendar_has_its_line(time_ms: int) -> None:
    # Checked: the CSV fails for ever.
    made = ledger(0)
    copied = [record._replace(time_ms=time_ms) for record in made.arrived]
    answers = answers_of((0, fold_ledger(SOURCE, {}, 0, copied)))
    position, *_ = rows_of(answers.outcomes_csv("day"))
    assert position["ledger_time"] in ("1970-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z")
    assert answers.totals(NOW_MS)["chain"]["state"] == "verified"


def test_no_cell_is_a_formula() -> None:
    # Checked: a spreadsheet would work it out.
    made = ledger(0, policy="=HYPERLINK(1)@0123456789ab")
    for row in rows_of(answers_of((0, folded(made))).outcomes_csv("hour")):
        assert not any(cell.startswith("=") for cell in row.values())
