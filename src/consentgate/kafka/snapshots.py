"""Snapshots of consent tables on the local disk, one file for each table."""

import asyncio
import os
import re
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from consentgate.core.consent import ConsentTable, Contents
from consentgate.core.snapshot import (
    Head,
    Identity,
    SnapshotRefused,
    read_head,
    read_table,
    write_snapshot,
)
from consentgate.errors import ConfigError
from consentgate.kafka.clock import read_clock

CLOCKS_MS_MAX = 1_000
"""How far the clocks of two machines may be apart."""


class Snapshots:
    """The snapshots of a group's tables in a directory that several workers may share.

    A snapshot is written beside its place and then moved there, so that what lies there is whole.
    Where two workers write that of the same table, either is good, and the later one stays.
    """

    def __init__(
        self, directory: str, group: str, identity: Identity, deletions_kept_ms: int
    ) -> None:
        """Make the directory if it is not there.

        Raises:
            ConfigError: if nothing can be written there.
        """
        self._directory = Path(directory)
        self._group = group
        self.identity = identity
        self.deletions_kept_ms = deletions_kept_ms
        # One thread, so that snapshots are written in the order in which they were taken.
        self._thread = ThreadPoolExecutor(1, "snapshots")
        self._closed = False
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._directory):
                pass
        except OSError as error:
            raise ConfigError(
                f"snapshot: nothing can be written to {directory}: {error.strerror}"
            ) from None

    def close(self) -> None:
        """Give up what is being written."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)

    def age_ms(self, head: Head) -> int:
        """How long ago a table was whole.

        Raises:
            SnapshotRefused: if deletions may have been compacted away since.
        """
        age_ms = read_clock().unix_ms - head.whole_at_ms
        if age_ms < -CLOCKS_MS_MAX:
            raise SnapshotRefused("it is from the future: a clock is wrong")
        # As while running, half of it, because the time counts from a compaction that nobody saw.
        age_ms_max = min(self.deletions_kept_ms, head.deletions_kept_ms) // 2
        if age_ms > age_ms_max:
            raise SnapshotRefused(
                f"it is {age_ms / 1000:.0f} s old, and deletions are kept for "
                f"{age_ms_max / 1000:.0f} s with safety: some may have been missed"
            )
        return max(0, age_ms)

    async def load(
        self, partitions: Collection[int], confirm: Callable[[Head], Awaitable[None]]
    ) -> tuple[Head, ConsentTable] | None:
        """The table of the partitions and its head, which `confirm` may refuse; None without any.

        Raises:
            SnapshotRefused: if there is one that must not be used.
            OSError: if it cannot be read.
        """
        try:
            file = await asyncio.to_thread(_open, self._path(partitions))
        except FileNotFoundError:
            return None
        with file:
            head, frames = await asyncio.to_thread(read_head, file.read)
            if difference := self.identity.difference(head.identity):
                raise SnapshotRefused(f"it is of something else: {difference}")
            if set(head.frontier) != set(partitions):
                raise SnapshotRefused("it is of other partitions")
            self.age_ms(head)
            await confirm(head)
            return head, await asyncio.to_thread(read_table, head, frames)

    async def save(self, head: Head, contents: Contents) -> None:
        """Put a snapshot of a table into its place.

        Raises:
            OSError: if it cannot be written.
        """
        loop, path = asyncio.get_running_loop(), self._path(head.frontier)
        await loop.run_in_executor(self._thread, self._write, path, write_snapshot(head, contents))

    async def tidy(self) -> None:
        """Remove what is too old to be of use. It holds personal data."""
        await asyncio.to_thread(self._tidy)

    def _path(self, partitions: Iterable[int]) -> Path:
        name = "all" if self.identity.scope == "global" else str(min(partitions))
        return self._directory / f"{self._group}-{name}.snapshot"

    def _write(self, path: Path, pieces: Iterable[bytes]) -> None:
        # Readable by its owner alone, as is what has got no other name yet.
        handle, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=self._directory)
        try:
            with os.fdopen(handle, "wb") as file:
                for piece in pieces:
                    if self._closed:
                        raise InterruptedError("the worker has no more time")
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(name)
            raise
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _tidy(self) -> None:
        ours = re.compile(rf"{re.escape(self._group)}-(\d+|all)\.snapshot(\.\w{{8}})?")
        for path in self._directory.glob("*.snapshot*"):
            # Another worker may have replaced or removed it meanwhile.
            with suppress(OSError):
                age_ms = (time.time() - path.stat().st_mtime) * 1000
                if ours.fullmatch(path.name) and age_ms > self.deletions_kept_ms // 2:
                    path.unlink()


def _open(path: Path) -> BinaryIO:
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")
    status = os.fstat(file.fileno())
    if status.st_uid != os.geteuid() or status.st_mode & stat.S_IWOTH:
        file.close()
        # Whoever can write a snapshot can say who has consented.
        raise SnapshotRefused("it belongs to another user, or anybody may write to it")
    return file
