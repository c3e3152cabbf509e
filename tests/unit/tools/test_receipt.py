"""What a receipt is made of: the first entry that covers a change, and who takes a record back."""

from dataclasses import dataclass
from typing import Any

from consentgate.core.gate import SOURCE_HEADER
from consentgate.core.ledger import GENESIS, BatchFacts, Chain, write_entry
from consentgate.tools.receipt import (
    Change,
    Coverage,
    Forwarded,
    Placed,
    Receipt,
    Retraction,
    forwarded_record,
    receipt_lines,
)


@dataclass(frozen=True)
class Record:
    """A consumed record."""

    offset: int
    key: bytes | None
    value: bytes | None
    timestamp: int = 1_000
    headers: tuple[tuple[str, bytes | None], ...] = ()


def change(offset: int, partition: int = 0) -> Placed:
    return Placed(f"consent-{partition}@{offset}", partition, Record(offset, b"anna", b"{}"))


def entry(offset: int, frontier: dict[int, int], partition: int = 0, group: str = "g") -> Placed:
    """A ledger entry of an input partition, appended a millisecond after the one before."""
    chain = Chain(group, "content", partition)
    facts = BatchFacts(0, -1, 1, frontier, "p@1", (), ())
    written = write_entry(chain, facts, GENESIS)
    return Placed(f"ledger-0@{offset}", 0, Record(offset, chain.key, written.value, 1_000 + offset))


def unreadable(offset: int, key: bytes, value: bytes | None = b"{") -> Placed:
    return Placed(f"ledger-0@{offset}", 0, Record(offset, key, value))


def effects(*changes: Placed, ledger: list[Placed]) -> list[list[tuple[str, str, int]]]:
    coverage = Coverage("g", changes)
    for placed in ledger:
        coverage.see(placed)
    assert not coverage.unreadable
    return [
        [(e.source, e.entry, e.effect_ms) for e in coverage.effects(each, [])] for each in changes
    ]


def test_a_change_is_in_effect_with_the_first_entry_beyond_it() -> None:
    ledger = [entry(n, {0: frontier}) for n, frontier in enumerate([4, 5, 6, 7])]
    assert effects(change(5), ledger=ledger) == [[("content-0", "ledger-0@2", 2)]]


def test_each_change_has_its_own_entry_in_each_source() -> None:
    ledger = [
        entry(0, {0: 6}, partition=1),
        entry(1, {0: 6}),
        entry(2, {0: 9}, partition=1),
        entry(3, {0: 9}, partition=1),
    ]
    assert effects(change(5), change(8), ledger=ledger) == [
        [("content-1", "ledger-0@0", 0), ("content-0", "ledger-0@1", 1)],
        [("content-1", "ledger-0@2", 2)],
    ]


def test_an_entry_that_does_not_look_at_the_partition_covers_nothing_in_it() -> None:
    ledger = [entry(0, {0: 100}), entry(1, {0: 100, 1: 6})]
    assert effects(change(5, partition=1), ledger=ledger) == [[("content-0", "ledger-0@1", 1)]]


def test_other_groups_put_nothing_into_effect() -> None:
    ledger = [entry(0, {0: 100}, group="g2"), entry(1, {0: 100}, group="gg")]
    assert effects(change(5), ledger=ledger) == [[]]


def test_an_unreadable_entry_is_counted_and_passed() -> None:
    coverage = Coverage("g", [change(5)])
    coverage.see(unreadable(0, b"g/content-0"))
    coverage.see(unreadable(1, b"g/content-0", None))
    coverage.see(unreadable(2, b"g/content-0", b'{"group": 1}'))
    coverage.see(unreadable(3, b"other/content-0"))
    coverage.see(entry(4, {0: 100}))
    # The change is in effect by now: what comes later may say anything.
    coverage.see(unreadable(5, b"g/content-0"))
    assert coverage.unreadable == 3
    assert [e.entry for e in coverage.effects(change(5), [])] == ["ledger-0@4"]


def test_the_retraction_of_an_effect_is_that_of_its_change_and_source() -> None:
    coverage = Coverage("g", [change(5)])
    coverage.see(entry(0, {0: 6}, partition=1))
    retractions = [
        ("r-0@0", Retraction("consent-0@4", "content-1@9")),
        ("r-0@1", Retraction("consent-0@5", "content-11@9")),
        ("r-0@2", Retraction("consent-0@5", "content-1@9")),
        ("r-0@3", Retraction("consent-0@5", "content-1@10")),
    ]
    (effect,) = coverage.effects(change(5), retractions)
    assert effect.retraction == "r-0@2"


def forwarded(source: bytes | None, *retractions: str) -> str | None:
    headers = () if source is None else ((SOURCE_HEADER, source),)
    placed = Placed("t-0@0", 0, Record(0, b"anna", b"{}", headers=headers))
    made = [(f"r-0@{n}", Retraction("c-0@0", before)) for n, before in enumerate(retractions)]
    return forwarded_record(placed, made).retracted_by


def test_a_record_is_taken_back_by_the_first_retraction_beyond_it() -> None:
    assert forwarded(b"content-0@7", "content-0@7", "content-0@8", "content-0@9") == "r-0@1"
    assert forwarded(b"content-0@7", "content-1@8") is None
    assert forwarded(b"content-0@7") is None


def test_what_has_no_source_is_not_said_to_be_taken_back() -> None:
    for source in (None, b"", b"content-0", b"content-0@", b"content-0@x", b"\xff@1"):
        assert forwarded(source, "content-0@8", "@8", "content-0@") is None
    assert forwarded(b"content-0@" + b"9" * 5_000, "content-0@8") is None
    assert forwarded(b"content-0@7", "content-0@x", "8", "") is None


def lines(record: Any, unreadable: int = 0) -> list[str]:
    return receipt_lines(Receipt("anna", [Change("c-0@1", 0, record, [])], [], unreadable))


def test_whatever_a_consent_record_is_its_line_can_be_printed() -> None:
    start = "1970-01-01T00:00:00.000Z c-0@1 "
    choices = {"ai-training": {"choice": "granted"}, "ads": {"choice": "denied"}}
    assert lines({"choices": choices})[1] == f"{start}ai-training: granted, ads: denied"
    assert lines({})[1] == f"{start}no choice"
    assert lines(None)[1] == f"{start}deleted"
    assert lines("unreadable")[1] == f"{start}unreadable"
    for odd in ([1], {"a": 1}, "x", 5):
        assert lines({"choices": odd})[1] == f"{start}unreadable"


def test_a_receipt_says_which_change_is_not_in_effect() -> None:
    assert lines(None)[2] == "  not in effect yet: no ledger entry covers it"


def test_a_receipt_says_what_it_could_not_read() -> None:
    assert "2 records that nobody can read" in lines(None, unreadable=2)[1]


def test_a_receipt_prints_what_went_on() -> None:
    went_on = [Forwarded("t-0@1", "c-0@1", None), Forwarded("t-0@2", "c-0@2", "r-0@3")]
    assert receipt_lines(Receipt("anna", [], went_on, 0))[1:] == [
        "t-0@1 of c-0@1: in use",
        "t-0@2 of c-0@2: retracted by r-0@3",
    ]


def test_choices_are_found_where_the_configuration_has_them() -> None:
    record = {"data": {"choices": {"ai-training": {"choice": "withdrawn"}}}}
    change = Change("c-0@1", 0, record, [])
    (_, line) = receipt_lines(Receipt("anna", [change], [], 0), "data.choices")[:2]
    assert line.endswith("c-0@1 ai-training: withdrawn")
