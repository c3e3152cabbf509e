"""A consent table as bytes, and back: frames, each with a digest of all that went before it.

The digests tell what was damaged, cut off or mixed. They do not tell who wrote it.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import islice

import msgspec

from consentgate.core.consent import ConsentTable, Contents, Holding, holding
from consentgate.core.countries import COUNTRIES
from consentgate.core.decode import ConsentFields
from consentgate.core.model import UNREADABLE, Choice, ConsentState, Record, consent_state

MAGIC = b"consentgate table 2\n"

SUBJECTS_MAX = 8_192
"""In one frame: what is encoded or decoded at once, which others wait for."""

FRAME_BYTES_MAX = 1 << 30
"""More is no frame. The longest key that a broker takes by default is a thousandth of that."""

_DIGEST_BYTES = 16
_LENGTH_BYTES = 4

Read = Callable[[int], bytes]
"""So many of the next bytes, or all where fewer are left."""


class SnapshotRefused(Exception):
    """Why a snapshot is not used, for people. It holds no subject."""


class Identity(msgspec.Struct, frozen=True):
    """What a table is made from and how. Of another identity, it is another table."""

    cluster: str  # the cluster's id
    topic: str
    topic_partitions: int
    scope: str
    purpose: str
    fields: ConsentFields
    max_depth: int
    version: str  # of this program, which may have read records otherwise

    def difference(self, other: "Identity") -> str | None:
        """The first thing in which they differ, for people."""
        for name in self.__struct_fields__:
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                return f"its {name} is {there!r}, and should be {here!r}"
        return None


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """A record that was applied, by which its topic is known again."""

    offset: int
    digest: bytes


def sample_of(record: Record) -> Sample:
    """The sample of a record that has a key."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in (record.timestamp.to_bytes(8, "big", signed=True), record.key, record.value):
        # With their lengths, so that nothing can move from one to the other.
        digest.update(b"-" if part is None else b"%d:%b" % (len(part), part))
    return Sample(record.offset, digest.digest())


class Head(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """What must be known of a snapshot before it is read."""

    identity: Identity
    whole_at_ms: int  # by the wall clock: all that stood in the topic then had been applied
    deletions_kept_ms: int
    frontier: dict[int, int]
    starts: dict[int, int]  # the first offset of each partition
    samples: dict[int, list[Sample]]  # by partition; the newest last


class _Subjects(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Some subjects, and for each the number of its holding; holdings count from 0."""

    holdings: list[tuple[int, tuple[str | None, bool | None, Choice | None] | None]]  # new ones
    subjects: list[bytes]
    held: list[int]


class _Scattered(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Some subjects that several partitions hold."""

    holdings: list[tuple[int, tuple[str | None, bool | None, Choice | None] | None]]  # new ones
    subjects: list[bytes]
    held: list[list[int]]


class _End(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The last frame, and how many subjects came before it."""

    subjects: int
    scattered: int


_Frame = Head | _Subjects | _Scattered | _End
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Frame).decode


class _Numbers(dict[Holding, int]):
    """Holdings numbered in the order in which they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._written = 0

    def __missing__(self, held: Holding) -> int:
        number = self[held] = len(self)
        return number

    def new(self) -> list[tuple[int, tuple[str | None, bool | None, Choice | None] | None]]:
        """Those that were not asked for before the last call."""
        new = list(islice(self, self._written, None))
        self._written = len(self)
        return [(held.partition, _plain(held.state)) for held in new]


def _plain(state: ConsentState) -> tuple[str | None, bool | None, Choice | None] | None:
    # Its fields do not tell it from the state of somebody of whom nothing is known.
    if state is UNREADABLE:
        return None
    return state.jurisdiction, state.adult, state.choice


def write_snapshot(head: Head, contents: Contents) -> Iterator[bytes]:
    """The snapshot, piece by piece."""
    digest = b""
    yield MAGIC
    for frame in _frames(head, contents):
        payload = _encode(frame)
        digest = _digest(digest, payload)
        yield len(payload).to_bytes(_LENGTH_BYTES, "big") + digest + payload


def _frames(head: Head, contents: Contents) -> Iterator[_Frame]:
    yield head
    numbers = _Numbers()
    for first in range(0, len(contents.subjects), SUBJECTS_MAX):
        part = slice(first, first + SUBJECTS_MAX)
        held = [numbers[each] for each in contents.held[part]]
        yield _Subjects(numbers.new(), list(contents.subjects[part]), held)
    scattered = iter(contents.scattered.items())
    while some := list(islice(scattered, SUBJECTS_MAX)):
        several = [[numbers[holding(*each)] for each in states.items()] for _, states in some]
        yield _Scattered(numbers.new(), [subject for subject, _ in some], several)
    yield _End(len(contents.subjects), len(contents.scattered))


def read_head(read: Read) -> tuple[Head, Generator[_Frame, None, None]]:
    """The head of a snapshot, and what `read_table` takes.

    Raises:
        SnapshotRefused: if it is damaged, or of another format.
    """
    if read(len(MAGIC)) != MAGIC:
        raise SnapshotRefused("it is of another format")
    frames = _read_frames(read)
    head = next(frames)
    if not isinstance(head, Head):
        raise SnapshotRefused("it is damaged: it has no head")
    return head, frames


def read_table(head: Head, frames: Iterable[_Frame]) -> ConsentTable:
    """The table that the rest of a snapshot makes.

    Raises:
        SnapshotRefused: if it is damaged or cut off.
    """
    numbered: list[Holding] = []
    holdings: dict[bytes, Holding] = {}
    scattered: dict[bytes, dict[int, ConsentState]] = {}
    try:
        for frame in frames:
            match frame:
                case _Subjects(new, subjects, held):
                    numbered.extend(_read_holding(head.frontier, *each) for each in new)
                    holdings.update(zip(subjects, map(numbered.__getitem__, held), strict=True))
                case _Scattered(new, subjects, several):
                    numbered.extend(_read_holding(head.frontier, *each) for each in new)
                    for subject, numbers in zip(subjects, several, strict=True):
                        states = [numbered[number] for number in numbers]
                        scattered[subject] = {each.partition: each.state for each in states}
                case _End(subjects, scattered_subjects):
                    if (len(holdings), len(scattered)) != (subjects, scattered_subjects):
                        raise SnapshotRefused("it is damaged: subjects are missing")
                case Head():
                    raise SnapshotRefused("it is damaged: it has two heads")
    except (IndexError, ValueError) as error:
        raise SnapshotRefused("it is damaged: what it says makes no sense") from error
    table = ConsentTable(head.frontier, holdings, scattered)
    for partition, frontier in head.frontier.items():
        table.advance(partition, frontier)
    return table


def _read_holding(
    partitions: Mapping[int, int],
    partition: int,
    state: tuple[str | None, bool | None, Choice | None] | None,
) -> Holding:
    if partition not in partitions:
        raise ValueError("a holding of another partition")
    if state is None:
        return holding(partition, UNREADABLE)
    if state[0] is not None and state[0] not in COUNTRIES:
        raise ValueError("no country")
    return holding(partition, consent_state(*state))


def _read_frames(read: Read) -> Generator[_Frame, None, None]:
    digest, frame = b"", None
    while not isinstance(frame, _End):
        start = read(_LENGTH_BYTES + _DIGEST_BYTES)
        length = int.from_bytes(start[:_LENGTH_BYTES], "big")
        if len(start) < _LENGTH_BYTES + _DIGEST_BYTES:
            raise SnapshotRefused("it is cut off")
        payload = read(length) if length <= FRAME_BYTES_MAX else b""
        if len(payload) < length:
            raise SnapshotRefused("it is cut off")
        digest = _digest(digest, payload)
        if digest != start[_LENGTH_BYTES:]:
            raise SnapshotRefused("it is damaged: a digest is not that of its frame")
        try:
            frame = _decode(payload)
        except msgspec.DecodeError:
            raise SnapshotRefused("it is of another format: a frame cannot be read") from None
        yield frame
    if read(1):
        raise SnapshotRefused("it is damaged: something follows its end")


def _digest(previous: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES, key=previous).digest()
