"""A followed table: since when it is whole, and whom it wakes."""

import asyncio

from consentgate.core.consent import ConsentTable
from consentgate.core.partition import Moment
from consentgate.kafka.followed import FollowedTable


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
