"""A followed table: since when it is whole, and whom it wakes."""

import asyncio
from dataclasses import dataclass

from consentgate.core.consent import ConsentTable
from consentgate.core.decode import ConsentFields
from consentgate.core.model import Choice, consent_state
from consentgate.core.partition import Moment
from consentgate.core.snapshot import Head, Identity, Sample
from consentgate.kafka.followed import SAMPLES_MAX, FollowedTable

GRANTED = consent_state("GB", True, Choice.GRANTED)


def at(ms: int) -> Moment:
    return Moment(ms, ms)


def followed() -> FollowedTable:
    return FollowedTable(ConsentTable([0]), whole_at=at(0))


def advance(table: FollowedTable, frontier: int) -> None:
    table.table.advance(0, frontier)
    table.advanced()


def test_a_table_is_whole_as_of_the_question_that_it_has_an_answer_to() -> None:
    table = followed()
    table.ask(at(10), {0: 5})
    advance(table, 4)
    assert table.whole_at == at(0)
    advance(table, 5)
    assert table.whole_at == at(10)


def test_a_table_that_covers_the_end_is_whole_at_once() -> None:
    table = followed()
    advance(table, 5)
    table.ask(at(10), {0: 5})
    assert table.whole_at == at(10)


def test_a_later_question_does_not_replace_one_that_is_open() -> None:
    # Else a table that is always a little behind would never be whole.
    table = followed()
    table.ask(at(10), {0: 5})
    table.ask(at(20), {0: 9})
    advance(table, 5)
    assert table.whole_at == at(10)


async def test_who_waits_is_woken_when_the_table_covers_the_offsets() -> None:
    table = followed()
    waiting = asyncio.create_task(table.covering({0: 5}))
    await asyncio.sleep(0)
    advance(table, 4)
    await asyncio.sleep(0)
    assert not waiting.done()
    advance(table, 5)
    async with asyncio.timeout(5):
        await waiting


async def test_who_is_woken_looks_again() -> None:
    table = followed()
    waiting = asyncio.create_task(table.covering({0: 5}))
    await asyncio.sleep(0)
    advance(table, 5)
    # Before the one who waits gets its turn.
    table.reset(at(10))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    advance(table, 5)
    async with asyncio.timeout(5):
        await waiting


def test_a_table_that_begins_anew_forgets_its_questions_and_its_listeners() -> None:
    table = followed()
    table.listeners.append(lambda change: None)
    table.ask(at(10), {0: 5})
    table.reset(at(20))
    assert table.listeners == []
    advance(table, 5)
    assert table.whole_at == at(20)


@dataclass
class Consumed:
    """A record as the client gives it."""

    offset: int
    key: bytes | None
    value: bytes | None = b"{}"
    timestamp: int = 1_700_000_000_000
    headers: tuple[()] = ()


def restored(table: FollowedTable, whole_at: Moment, now: Moment) -> None:
    identity = Identity("c", "t", 1, "partition", "ads", ConsentFields(), 64, "0.1.0")
    samples = {0: [Sample(4, b"old"), Sample(5, b"newer")]}
    head = Head(identity, whole_at.unix_ms, 1_000, {0: 7}, {0: 2}, samples)
    found = ConsentTable([0])
    found.apply(0, b"anna", GRANTED)
    found.advance(0, 7)
    table.restored(head, found, whole_at, now)


def test_a_restored_table_goes_on_from_its_snapshot() -> None:
    table = followed()
    table.listeners.append(lambda change: None)
    restored(table, at(30), at(100))
    assert table.table.frontier == {0: 7}
    assert table.table.holdings.keys() == {b"anna"}
    assert table.starts == {0: 2}
    assert [sample.offset for sample in table.samples[0].values()] == [4, 5]
    # Whoever listened before has missed what was in the snapshot.
    assert not table.listeners
    # It is as old as its snapshot, until it has got to an end that was asked for since.
    assert table.behind_ms(at(150)) == 120
    table.ask(at(150), {0: 8})
    assert table.behind_ms(at(151)) == 121
    advance(table, 8)
    assert table.whole_at == at(150)


def test_a_clock_that_is_set_right_tells_how_old_the_snapshot_was() -> None:
    table = followed()
    restored(table, at(30), at(100))
    table.ask(at(150), {0: 7})
    assert table.whole_at == at(150)
    # The wall clock was 5,000 ms behind when the snapshot was found to be 70 ms old.
    assert table.behind_ms(Moment(unix_ms=5_160, monotonic_ms=160)) == 5_070
    table.reset(at(200))
    assert table.behind_ms(Moment(unix_ms=5_210, monotonic_ms=210)) == 5_010
    assert table.behind_ms(at(210)) == 10


def test_samples_are_the_newest_of_so_many_subjects() -> None:
    table = followed()
    for offset in range(100):
        table.sample(0, Consumed(offset, b"m%d" % (offset % 20)))
    assert [sample.offset for sample in table.samples[0].values()] == list(range(84, 100))
    for offset in range(100, 200):
        table.sample(0, Consumed(offset, b"m19"))
    # One who changes their mind all the time does not crowd the others out.
    assert [sample.offset for sample in table.samples[0].values()] == [*range(84, 99), 199]
    table.sample(0, Consumed(200, None))
    assert len(table.samples[0]) == SAMPLES_MAX
    table.reset(at(0))
    assert not table.samples


def test_a_table_is_followed_after_a_snapshot_was_looked_for() -> None:
    async def look() -> None:
        table, gate = followed(), asyncio.Event()

        async def restore() -> None:
            await gate.wait()

        assert table.is_restored()
        table.restoring = asyncio.create_task(restore())
        assert not table.is_restored()
        gate.set()
        await table.restoring
        assert table.is_restored()

    asyncio.run(look())
