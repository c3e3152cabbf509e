"""`consentgate receipt`: what the topics say of one person, for that person.

When each change of their consent was appended, when it took effect in each input partition, what
had been forwarded before, and where that was retracted - each with the place of its evidence.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from consentgate.config import Config
from consentgate.core.decode import content_decoder, nested_too_deep, subject_reader
from consentgate.core.explain import moment_text
from consentgate.core.gate import SOURCE_HEADER
from consentgate.core.ledger import LedgerRecord
from consentgate.engines import load_pseudonyms
from consentgate.kafka.cursor import open_cursor
from consentgate.kafka.layout import Layout, read_layout
from consentgate.kafka.reader import count_offsets, settle_topic
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.unreadable import UnreadableRecord

PROGRESS_RECORDS = 1_000
"""After how many records the progress is told."""


class Effect(msgspec.Struct, frozen=True):
    """When a change took effect in one input partition."""

    source: str  # topic-partition
    entry: str  # of the ledger, topic-partition@offset
    hash: str  # of that entry
    committed_at: int  # epoch milliseconds, the broker's
    effect_ms: int  # from the change to there
    retraction: str | None  # topic-partition@offset; None where none was needed


class Change(msgspec.Struct, frozen=True):
    """One consent record of the person."""

    consent: str  # topic-partition@offset
    appended_at: int  # epoch milliseconds
    record: Any  # as it stands in the topic; None for a deletion
    effects: list[Effect]


class Forwarded(msgspec.Struct, frozen=True):
    """One record of the person that went on."""

    record: str  # topic-partition@offset
    source: str  # topic-partition@offset
    retracted_by: str | None  # topic-partition@offset


class Receipt(msgspec.Struct, frozen=True):
    """All that the topics say of one person."""

    subject: str
    changes: list[Change]
    forwarded: list[Forwarded]
    unreadable: int  # records that may concern the person, and that nobody can make sense of


class Placed(NamedTuple):
    """A record and where it stands."""

    place: str  # topic-partition@offset
    partition: int
    record: Any


class Retraction(msgspec.Struct, frozen=True):
    """What a retraction says, as far as it counts here."""

    consent: str  # topic-partition@offset of the change
    before: str  # topic-partition@offset of the content


class _Entry(NamedTuple):
    """The first ledger entry of a source that covers a change."""

    place: str
    appended_ms: int
    hash: str


class Coverage:
    """Which ledger entry of each source is the first that covers each of a person's changes.

    Keeps nothing of the entries that are none of these.
    """

    def __init__(self, group: str, changes: Sequence[Placed]) -> None:
        self._prefix = f"{group}/".encode()
        self._changes = changes
        self._uncovered: dict[bytes, list[Placed]] = {}
        self._first: dict[str, dict[str, _Entry]] = {change.place: {} for change in changes}
        self.unreadable = 0

    def see(self, placed: Placed) -> None:
        """Take in a record of the ledger; those of a chain come in their order."""
        record, key = placed.record, placed.record.key or b""
        uncovered = self._uncovered.get(key, self._changes)
        # Another group's, or one of a chain in which everything is in effect already.
        if not key.startswith(self._prefix) or not uncovered:
            return
        try:
            entry = msgspec.json.decode(record.value or b"", type=LedgerRecord)
        except msgspec.DecodeError:
            self.unreadable += 1
            return
        source = f"{entry.source.topic}-{entry.source.partition}"
        left = []
        for change in uncovered:
            if entry.consent.get(str(change.partition), 0) > change.record.offset:
                found = _Entry(placed.place, record.timestamp, entry.hash)
                self._first[change.place].setdefault(source, found)
            else:
                left.append(change)
        self._uncovered[key] = left

    def effects(
        self, change: Placed, retractions: Sequence[tuple[str, Retraction]]
    ) -> list[Effect]:
        """When the change took effect in each source, and what then retracted."""
        return [
            Effect(
                source=source,
                entry=entry.place,
                hash=entry.hash,
                committed_at=entry.appended_ms,
                effect_ms=entry.appended_ms - change.record.timestamp,
                retraction=next(
                    (
                        place
                        for place, retraction in retractions
                        if retraction.consent == change.place
                        and retraction.before.startswith(f"{source}@")
                    ),
                    None,
                ),
            )
            for source, entry in self._first[change.place].items()
        ]


async def make_receipt(
    config: Config, subject: str, on_progress: Callable[[int, int], None]
) -> Receipt:
    """Read the topics and gather what concerns the subject.

    `on_progress` gets offsets done and offsets in all.

    Raises:
        BrokerUnavailable: if no broker answers.
        ConfigError: if topics are missing.
    """
    topics, key = config.topics, subject.encode()
    forms = load_pseudonyms(config).forms(key)
    walk = _Walk(config, await read_layout(config), on_progress)
    await walk.measure((topics.consent, topics.decisions, topics.retractions, topics.training))
    changes = [placed async for placed in walk.along(topics.consent) if placed.record.key == key]
    coverage = Coverage(config.group, changes)
    async for placed in walk.along(topics.decisions):
        coverage.see(placed)
    unreadable = coverage.unreadable
    # The outputs after the ledger, so that those of all its entries are there.
    await walk.settle((topics.retractions, topics.training))
    retractions: dict[bytes, list[tuple[str, Retraction]]] = {form: [] for form in forms}
    async for placed in walk.along(topics.retractions):
        if placed.record.key in retractions:
            if (retraction := _retraction(placed.record.value)) is None:
                unreadable += 1
            else:
                retractions[placed.record.key].append((placed.place, retraction))
    subject_of = subject_reader(
        content_decoder(config.content.fields, config.limits.max_depth),
        key_is_subject=config.content.key_is_subject,
    )
    forwarded = [
        forwarded_record(placed, retractions[owner])
        async for placed in walk.along(topics.training)
        if (owner := subject_of(placed.record)) in retractions
    ]
    return Receipt(
        subject=subject,
        changes=[
            Change(
                consent=change.place,
                appended_at=change.record.timestamp,
                record=_shown(change.record, config.limits.max_depth),
                effects=coverage.effects(change, retractions[key]),
            )
            for change in changes
        ],
        forwarded=forwarded,
        unreadable=unreadable,
    )


def forwarded_record(placed: Placed, retractions: Sequence[tuple[str, Retraction]]) -> Forwarded:
    """A training record of the person, and the first retraction that takes it back."""
    # The last header of the name: ours comes behind what came with the record.
    source = (dict(placed.record.headers).get(SOURCE_HEADER) or b"").decode(errors="replace")
    name, offset = _parted(source)
    for place, retraction in retractions:
        before_name, before = _parted(retraction.before)
        if before_name == name and 0 <= offset < before:
            return Forwarded(placed.place, source, place)
    return Forwarded(placed.place, source, None)


def receipt_lines(receipt: Receipt, choices: str = "choices") -> list[str]:
    """What `receipt` prints for people; `choices` is where a consent record has them."""
    lines = [
        f"consent records: {len(receipt.changes)}, records forwarded: {len(receipt.forwarded)}"
    ]
    if receipt.unreadable:
        lines.append(
            f"{receipt.unreadable} records that nobody can read may say more: see what "
            "consentgate verify finds"
        )
    for change in receipt.changes:
        lines.append(
            f"{moment_text(change.appended_at)} {change.consent} {_choices(change.record, choices)}"
        )
        if not change.effects:
            lines.append("  not in effect yet: no ledger entry covers it")
        for effect in change.effects:
            lines.append(
                f"  in effect for {effect.source} after {effect.effect_ms} ms: {effect.entry}, "
                f"hash {effect.hash[:12]}"
            )
            if effect.retraction is not None:
                lines.append(f"    what had gone on before is retracted by {effect.retraction}")
    for forwarded in receipt.forwarded:
        state = f"retracted by {forwarded.retracted_by}" if forwarded.retracted_by else "in use"
        lines.append(f"{forwarded.record} of {forwarded.source}: {state}")
    return lines


class _Walk:
    """Reads one topic after the other, and tells how far it is."""

    def __init__(
        self, config: Config, layout: Layout, on_progress: Callable[[int, int], None]
    ) -> None:
        self._settings = kafka_settings(config.kafka)
        self._counts = layout.counts
        self._on_progress = on_progress
        self._done = 0
        self._total = 0

    async def measure(self, topics: Sequence[str]) -> None:
        """Count what there is to be read."""
        for topic in topics:
            partitions = range(self._counts[topic])
            self._total += await count_offsets(self._settings, topic, partitions)

    async def settle(self, topics: Sequence[str]) -> None:
        """Return when nothing is hidden any more behind transactions that are open now."""
        for topic in topics:
            await settle_topic(self._settings, topic, range(self._counts[topic]))

    async def along(self, topic: str) -> AsyncIterator[Placed]:
        """Every record of the topic now, one partition after the other."""
        for partition in range(self._counts[topic]):
            async with open_cursor(self._settings, topic, partition) as cursor:
                number = 0
                while (record := await cursor.next()) is not None:
                    yield Placed(cursor.place(record), partition, record)
                    number += 1
                    if number % PROGRESS_RECORDS == 0:
                        self._tell(record.offset + 1 - cursor.start)
                self._done += cursor.end - cursor.start
                self._tell(0)

    def _tell(self, offsets: int) -> None:
        done = self._done + offsets
        # The topics may have grown since they were measured.
        self._total = max(self._total, done)
        self._on_progress(done, self._total)


def _retraction(value: bytes | None) -> Retraction | None:
    try:
        return msgspec.json.decode(value or b"", type=Retraction)
    except (msgspec.DecodeError, RecursionError):
        return None


def _parted(place: str) -> tuple[str, int]:
    """Topic and partition of a place, and its offset; -1 where it has none."""
    name, _, offset = place.rpartition("@")
    return name, int(offset) if offset.isdecimal() and len(offset) < 20 else -1


def _shown(record: Any, max_depth: int) -> Any:
    value = record.value
    if isinstance(record, UnreadableRecord) or nested_too_deep(value or b"", max_depth):
        return "unreadable"
    try:
        return None if value is None else msgspec.json.decode(value)
    except msgspec.DecodeError:
        return "unreadable"


def _choices(record: Any, path: str) -> str:
    if not isinstance(record, dict):
        return "deleted" if record is None else str(record)
    choices = record
    try:
        for name in path.split("."):
            choices = choices.get(name) or {}
        shown = (f"{purpose}: {entry.get('choice')}" for purpose, entry in choices.items())
        return ", ".join(shown) or "no choice"
    except AttributeError:
        return "unreadable"
