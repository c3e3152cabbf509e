"""The files of snapshots: written whole or not at all, readable by their owner alone, refused."""

import asyncio
import os
import time
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from consentgate.core.consent import ConsentTable
from consentgate.core.decode import ConsentFields
from consentgate.core.model import Choice, consent_state
from consentgate.core.snapshot import Head, Identity, SnapshotRefused
from consentgate.errors import ConfigError
from consentgate.kafka.snapshots import Snapshots

KEPT_MS = 86_400_000
GRANTED = consent_state("GB", True, Choice.GRANTED)
IDENTITY = Identity(
    cluster="c1",
    topic="consent-state",
    topic_partitions=4,
    scope="partition",
    purpose="ai-training",
    fields=ConsentFields(),
    max_depth=64,
    version="0.1.0",
)


def snapshots(directory: Path, kept_ms: int = KEPT_MS, identity: Identity = IDENTITY) -> Snapshots:
    return Snapshots(str(directory), "group", identity, kept_ms)


def table(subjects: int = 2) -> ConsentTable:
    made = ConsentTable([3])
    for number in range(subjects):
        made.apply(3, b"m%d" % number, GRANTED)
    made.advance(3, subjects)
    return made


def head(age_ms: int = 0, kept_ms: int = KEPT_MS) -> Head:
    now_ms = time.time_ns() // 1_000_000
    return Head(IDENTITY, now_ms - age_ms, kept_ms, {3: 2}, {3: 0}, {})


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def wait_for_file(directory: Path) -> None:
    while not files(directory):
        pass


async def confirmed(head: Head) -> None:
    """Nothing is wrong with it."""


async def refusal(where: Snapshots, partitions: tuple[int, ...] = (3,)) -> str:
    with pytest.raises(SnapshotRefused) as refused:
        await where.load(partitions, confirmed)
    return str(refused.value)


async def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    directory = tmp_path / "made"
    saved, of = table(), head()
    await snapshots(directory).save(of, saved.contents())
    found = await snapshots(directory).load([3], confirmed)
    assert found is not None
    assert (found[0], found[1].holdings) == (of, saved.holdings)
    (path,) = files(directory)
    assert path.name == "group-3.snapshot"
    assert (path.stat().st_mode & 0o777, directory.stat().st_mode & 0o777) == (0o600, 0o700)


async def test_without_a_snapshot_there_is_none(tmp_path: Path) -> None:
    assert await snapshots(tmp_path).load([3], confirmed) is None


async def test_all_partitions_of_a_topic_have_one_file(tmp_path: Path) -> None:
    identity = msgspec.structs.replace(IDENTITY, scope="global")
    where, all_of_it = snapshots(tmp_path, identity=identity), ConsentTable([0, 1])
    of = msgspec.structs.replace(head(), identity=identity, frontier={0: 0, 1: 0})
    await where.save(of, all_of_it.contents())
    assert [path.name for path in files(tmp_path)] == ["group-all.snapshot"]
    assert await where.load([0, 1], confirmed) is not None


async def test_a_snapshot_of_something_else_is_refused(tmp_path: Path) -> None:
    await snapshots(tmp_path).save(head(), table().contents())
    other = msgspec.structs.replace(IDENTITY, purpose="ads")
    why = await refusal(snapshots(tmp_path, identity=other))
    assert why == "it is of something else: its purpose is 'ai-training', and should be 'ads'"


async def test_a_snapshot_of_other_partitions_is_refused(tmp_path: Path) -> None:
    await snapshots(tmp_path).save(head(), table().contents())
    (path,) = files(tmp_path)
    path.rename(tmp_path / "group-2.snapshot")
    assert await refusal(snapshots(tmp_path), (2,)) == "it is of other partitions"


@pytest.mark.parametrize(
    ("age_ms", "kept_then_ms", "kept_now_ms"),
    [
        (50_000_000, KEPT_MS, KEPT_MS),
        # Whichever is shorter: the setting may have been changed meanwhile.
        (6_000, KEPT_MS, 10_000),
        (6_000, 10_000, KEPT_MS),
    ],
)
async def test_a_snapshot_from_before_deletions_that_may_be_gone_is_refused(
    tmp_path: Path, age_ms: int, kept_then_ms: int, kept_now_ms: int
) -> None:
    await snapshots(tmp_path).save(head(age_ms, kept_then_ms), table().contents())
    assert "some may have been missed" in await refusal(snapshots(tmp_path, kept_now_ms))


async def test_a_snapshot_that_is_young_enough_is_not_refused(tmp_path: Path) -> None:
    await snapshots(tmp_path).save(head(40_000_000), table().contents())
    found = await snapshots(tmp_path).load([3], confirmed)
    assert found is not None
    assert snapshots(tmp_path).age_ms(found[0]) == pytest.approx(40_000_000, abs=10_000)


async def test_a_snapshot_from_the_future_is_refused(tmp_path: Path) -> None:
    await snapshots(tmp_path).save(head(age_ms=-5_000), table().contents())
    assert "from the future" in await refusal(snapshots(tmp_path))


async def test_a_snapshot_that_is_not_confirmed_is_not_loaded(tmp_path: Path) -> None:
    async def refuse(head: Head) -> None:
        raise SnapshotRefused(f"frontier {head.frontier}")

    await snapshots(tmp_path).save(head(), table().contents())
    with pytest.raises(SnapshotRefused, match=r"frontier {3: 2}"):
        await snapshots(tmp_path).load([3], refuse)


async def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    await snapshots(tmp_path).save(head(), table().contents())
    (path,) = files(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "damaged" in await refusal(snapshots(tmp_path))
    path.write_bytes(data[:-1])
    assert "cut off" in await refusal(snapshots(tmp_path))
    path.write_bytes(b"")
    assert "another format" in await refusal(snapshots(tmp_path))


async def test_a_snapshot_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    await snapshots(tmp_path).save(head(), table().contents())
    (path,) = files(tmp_path)
    path.chmod(0o602)
    assert "anybody may write" in await refusal(snapshots(tmp_path))


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    await snapshots(tmp_path).save(head(), table().contents())
    (path,) = files(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        await snapshots(tmp_path).load([3], confirmed)


async def test_what_cannot_be_written_whole_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = snapshots(tmp_path)
    await where.save(head(), table().contents())

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        await where.save(head(), table(1).contents())
    monkeypatch.undo()
    assert [path.name for path in files(tmp_path)] == ["group-3.snapshot"]
    found = await where.load([3], confirmed)
    assert found is not None
    assert len(found[1]) == 2


async def test_it_is_on_the_disk_before_it_is_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def note(handle: int | BinaryIO) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        synced.append((place.name.split(".")[0], (tmp_path / "group-3.snapshot").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note)
    await snapshots(tmp_path).save(head(), table().contents())
    assert synced == [("group-3", False), (tmp_path.name, True)]


async def test_what_is_being_written_at_the_end_is_given_up(tmp_path: Path) -> None:
    where = snapshots(tmp_path)
    saving = asyncio.create_task(where.save(head(), table(2_000_000).contents()))
    await asyncio.to_thread(wait_for_file, tmp_path)
    where.close()
    with pytest.raises(InterruptedError):
        await saving
    assert not files(tmp_path)


async def test_only_what_is_too_old_and_ours_is_removed(tmp_path: Path) -> None:
    ours = ["group-0.snapshot", "group-all.snapshot", "group-1.snapshot.x7_abcde"]
    others = [
        "group-b-0.snapshot",
        "group-0.snapshot.b-0.snapshot",
        "other-0.snapshot",
        "group-0.snapshots",
        "notes",
    ]
    long_ago = time.time() - KEPT_MS / 1000
    for name in (*ours, *others, "group-5.snapshot"):
        (tmp_path / name).touch()
        if name != "group-5.snapshot":
            os.utime(tmp_path / name, (long_ago, long_ago))
    await snapshots(tmp_path).tidy()
    assert {path.name for path in files(tmp_path)} == {*others, "group-5.snapshot"}


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "missing/deeper"):
        with pytest.raises(ConfigError, match=f"snapshot: nothing can be written to .*{path}: "):
            snapshots(tmp_path / path)
