"""`consentgate receipt`: what the topics say of one person, for that person.

When each change of their consent was appended, when it took effect in each input partition, what
had been forwarded before, and where that was retracted - each with the place of its evidence.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from consentgate.config import Config
from consentgate.core.gate import SOURCE_HEADER
from consentgate.core.ledger import LedgerRecord
from consentgate.kafka.layout import read_layout
from consentgate.kafka.reader import read_topic
from consentgate.kafka.settings import kafka_settings


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


@dataclass(frozen=True, slots=True)
class _Entry:
    place: str
    appended_ms: int
    record: LedgerRecord


class _Placed(NamedTuple):
    """A record and where it stands."""

    place: str  # topic-partition@offset
    partition: int
    record: Any


async def make_receipt(config: Config, subject: str) -> Receipt:
    """Read the topics and gather what concerns the subject.

    Raises:
        BrokerUnavailable: if no broker answers.
        ConfigError: if topics are missing.
    """
    settings = kafka_settings(config.kafka)
    layout = await read_layout(config)

    async def records(topic: str) -> list[_Placed]:
        return [
            _Placed(f"{topic}-{partition}@{record.offset}", partition, record)
            async for partition, record in read_topic(settings, topic, layout.counts[topic])
            if record.key == subject.encode()
        ]

    topics = config.topics
    entries = [
        _Entry(f"{topics.decisions}-{partition}@{record.offset}", record.timestamp, entry)
        async for partition, record in read_topic(
            settings, topics.decisions, layout.counts[topics.decisions]
        )
        if (entry := msgspec.json.decode(record.value, type=LedgerRecord)).group == config.group
    ]
    retractions = [
        (place, msgspec.json.decode(record.value))
        for place, _, record in await records(topics.retractions)
    ]
    return Receipt(
        subject=subject,
        changes=[
            Change(
                consent=place,
                appended_at=record.timestamp,
                record=_readable(record.value),
                effects=_effects(entries, retractions, _Placed(place, partition, record)),
            )
            for place, partition, record in await records(topics.consent)
        ],
        forwarded=[
            _forwarded(place, record, retractions)
            for place, _, record in await records(topics.training)
        ],
    )


def receipt_lines(receipt: Receipt) -> list[str]:
    """What `receipt` prints for people."""
    lines = [f"{len(receipt.changes)} consent records, {len(receipt.forwarded)} records forwarded"]
    for change in receipt.changes:
        lines.append(f"{_time(change.appended_at)} {change.consent} {_choices(change.record)}")
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


def _effects(
    entries: list[_Entry], retractions: list[tuple[str, Any]], change: _Placed
) -> list[Effect]:
    effects = {}
    for entry in entries:
        source = f"{entry.record.source.topic}-{entry.record.source.partition}"
        covers = entry.record.consent.get(str(change.partition), 0) > change.record.offset
        if covers and source not in effects:
            effects[source] = Effect(
                source=source,
                entry=entry.place,
                hash=entry.record.hash,
                committed_at=entry.appended_ms,
                effect_ms=entry.appended_ms - change.record.timestamp,
                retraction=next(
                    (
                        place
                        for place, body in retractions
                        if body["consent"] == change.place
                        and body["before"].startswith(f"{source}@")
                    ),
                    None,
                ),
            )
    return list(effects.values())


def _forwarded(place: str, record: Any, retractions: list[tuple[str, Any]]) -> Forwarded:
    source = (dict(record.headers).get(SOURCE_HEADER) or b"").decode()
    name, _, offset = source.rpartition("@")
    for retraction, body in retractions:
        before_name, _, before = body["before"].rpartition("@")
        if before_name == name and int(offset) < int(before):
            return Forwarded(place, source, retraction)
    return Forwarded(place, source, None)


def _readable(value: bytes | None) -> Any:
    try:
        return None if value is None else msgspec.json.decode(value)
    except msgspec.DecodeError:
        return "unreadable"


def _choices(record: Any) -> str:
    if not isinstance(record, dict):
        return "deleted" if record is None else str(record)
    choices = record.get("choices") or {}
    return ", ".join(f"{purpose}: {entry.get('choice')}" for purpose, entry in choices.items())


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
