"""The view and its snapshots: how old a restored table is, and when another one is written."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import TopicPartition

from consentgate.core.consent import ConsentTable
from consentgate.core.decode import ConsentFields, consent_decoder
from consentgate.core.model import UNREADABLE, Choice, consent_state
from consentgate.core.partition import Moment
from consentgate.core.snapshot import Head, Identity, Sample
from consentgate.kafka.clock import read_clock
from consentgate.kafka.consent import ConsentView
from consentgate.kafka.followed import FollowedTable
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.snapshots import Snapshots

KEPT_MS = 86_400_000
OLD_MS = 40_000_000
NEAR_MS = 30_000
POLLS = 1_000


class Offline(ConsentView):
    """A view that asks no broker."""

    def __init__(self, snapshots: Snapshots) -> None:
        decode = consent_decoder(ConsentFields(), "ai-training", 64)
        super().__init__(kafka_settings({}), "consent-state", decode, print, print)
        self._behind_ms_max = KEPT_MS // 2
        self._snapshots = snapshots

    async def _confirm(self, head: Head) -> None:
        """Nothing is wrong with it."""


@pytest.fixture
async def view(snapshots: Snapshots) -> AsyncIterator[Offline]:
    made = Offline(snapshots)
    yield made
    await made.stop()


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    identity = Identity("c", "consent-state", 4, "partition", "ads", ConsentFields(), 64, "0.1.0")
    return Snapshots(str(tmp_path), "group", identity, KEPT_MS)


def ago(ms: int) -> Moment:
    now = read_clock()
    return Moment(now.unix_ms - ms, now.monotonic_ms - ms)


def followed(whole_ms_ago: int) -> FollowedTable:
    """A table of partition 3 that was whole so long ago."""
    table = ConsentTable([3])
    table.apply(3, b"anna", consent_state("GB", True, Choice.GRANTED))
    table.advance(3, 1)
    made = FollowedTable(table, whole_at=ago(whole_ms_ago))
    made.starts, made.samples = {3: 0}, {3: {b"anna": Sample(0, b"digest")}}
    return made


def empty() -> FollowedTable:
    return FollowedTable(ConsentTable([3]), whole_at=read_clock())


@dataclass(frozen=True)
class Appended:
    """A record of the consent topic."""

    key: bytes
    value: bytes | None
    offset: int = 1
    timestamp: int = 0
    headers: tuple[()] = ()


@pytest.mark.parametrize("listens", [False, True])
async def test_consent_in_the_wrong_place_permits_nothing_there(
    view: Offline, listens: bool
) -> None:
    # Where it belongs there may be a withdrawal after it, which nobody sees from here.
    made, told = followed(0), []
    view._followed[3] = made
    view._misplaced = lambda partition, subjects: [s for s in subjects if s == b"ben"]
    if listens:
        made.listeners.append(told.append)
    choices = {"ai-training": {"choice": "granted", "at": 0}}
    granted = [
        Appended(
            name.encode(),
            orjson.dumps(
                {"subject": name, "jurisdiction": "GB", "adult": True, "choices": choices}
            ),
        )
        for name in ("ben", "carla")
    ]
    view._apply(3, granted, 2)
    holdings = made.table.holdings
    assert holdings[b"ben"].state is UNREADABLE
    assert holdings[b"carla"].state.choice is Choice.GRANTED
    assert [change.after for change in told] == [holdings[b"ben"], holdings[b"carla"]] * listens
    view._apply(3, [Appended(b"ben", None)], 3)
    assert b"ben" not in holdings


async def none(head: Head) -> None:
    """Refuse nothing."""


async def test_a_restored_table_is_as_old_as_its_snapshot(
    view: Offline, snapshots: Snapshots
) -> None:
    # Else it would count as whole from now on, and a deletion that was missed as none.
    restored = empty()
    await view._save(followed(OLD_MS), snapshots)
    await view._restore(restored, snapshots)
    assert restored.table.holdings.keys() == {b"anna"}
    assert restored.behind_ms(read_clock()) == pytest.approx(OLD_MS, abs=NEAR_MS)


async def test_a_snapshot_is_of_the_time_when_its_table_was_whole(
    view: Offline, snapshots: Snapshots
) -> None:
    await view._save(followed(OLD_MS), snapshots)
    found = await snapshots.load([3], none)
    assert found is not None
    assert snapshots.age_ms(found[0]) == pytest.approx(OLD_MS, abs=NEAR_MS)


async def test_what_lies_there_is_written_again_only_where_that_is_of_use(
    view: Offline, snapshots: Snapshots, tmp_path: Path
) -> None:
    table, path = followed(0), tmp_path / "group-3.snapshot"

    async def is_written() -> bool:
        path.unlink(missing_ok=True)
        await view._save(table, snapshots)
        return path.exists()

    assert await is_written()
    assert not await is_written()
    table.table.advance(3, 2)
    assert await is_written()
    assert table.kept is not None
    # Nothing has changed; but what lies there will be too old one day.
    table.kept = (table.kept[0], ago(KEPT_MS // 2 // 10))
    assert await is_written()
    table.reset(read_clock())
    assert not await is_written()


async def test_a_table_that_is_being_restored_is_not_written(
    view: Offline, snapshots: Snapshots, tmp_path: Path
) -> None:
    # Else what lies there would be replaced by nothing.
    table, gate = followed(0), asyncio.Event()

    async def restore() -> None:
        await gate.wait()

    table.restoring, view._followed = asyncio.create_task(restore()), {3: table}
    await view.save()
    assert not (tmp_path / "group-3.snapshot").exists()
    gate.set()
    await table.restoring
    await view.save()
    assert (tmp_path / "group-3.snapshot").exists()


class Buffered:
    """A client that has fetched a lot, and hands it over without waiting for anything."""

    def __init__(self) -> None:
        self.polls = 0

    async def getmany(self, **_: int) -> dict[TopicPartition, list[Any]]:
        self.polls += 1
        if self.polls == POLLS:
            await asyncio.Event().wait()
        return {}

    async def position(self, place: TopicPartition) -> int:
        return self.polls


async def test_others_get_their_turn_while_much_is_read(view: Offline) -> None:
    reader, client = Buffered(), view._reader
    view._reader, view._followed, view._following = reader, {3: followed(0)}, {3}
    running = asyncio.create_task(view.run())
    await asyncio.sleep(0)
    assert 0 < reader.polls < POLLS
    running.cancel()
    view._reader = client
