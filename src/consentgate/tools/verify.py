"""`consentgate verify`: S1 to S7 checked from the topics alone."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import orjson
from aiokafka import TopicPartition

from consentgate.config import Config
from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.decode import consent_decoder, content_decoder, subject_reader
from consentgate.core.gate import Batch
from consentgate.core.histogram import nearest_rank
from consentgate.core.ledger import Chain, LedgerRecord, read_codes
from consentgate.core.model import Verdict
from consentgate.core.policy import Policy
from consentgate.core.verify import (
    BROKER_TIME,
    PROPERTIES,
    ChainVerifier,
    Figures,
    Owners,
    Placed,
    Slice,
    Verification,
    source_of,
)
from consentgate.engines import gates_of_all_times, load_pseudonyms
from consentgate.errors import ConfigError
from consentgate.kafka.cursor import Cursor, await_stable, open_cursor
from consentgate.kafka.layout import Layout, read_layout
from consentgate.kafka.reader import count_offsets
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.kafka.unreadable import UnreadableRecord, placed, read_state
from consentgate.memory import collect_garbage_rarely
from consentgate.signing import SignatureCheck

CHAINS_AT_ONCE = 4
"""While one waits for the broker the other is checked; each holds a table of consent states."""

_NO_ERRORS = source_of((), Verdict.QUARANTINE)
"""Where a record came from that is in quarantine without saying so."""


async def verify(
    config: Config,
    policies: Sequence[Policy],
    on_progress: Callable[[int, int], None],
    is_signed: SignatureCheck | None = None,
    earlier: Sequence[Config] = (),
) -> Verification:
    """Check every chain of the group; `on_progress` gets offsets done and offsets in all.

    With `is_signed` every ledger entry must pass it. `earlier` are configurations that were in
    force before; of these, how content is read (`content` and `limits`) counts.

    Raises:
        BrokerUnavailable: if no broker answers.
        ConfigError: if topics are missing, if the policies are for several purposes, or if content
            belonged to other subjects under an earlier configuration.
    """
    for before in earlier:
        if _whose(before) != _whose(config):
            raise ConfigError(
                "content.key_is_subject and content.fields.subject must be the same in all "
                "configurations: else the topics do not tell whose a record is"
            )
    purposes = sorted({policy.purpose for policy in policies})
    if len(purposes) != 1:
        raise ConfigError(
            f"the policies must be for one purpose, but are for {', '.join(purposes) or 'none'}: "
            "a group enforces one, so verify its policies alone"
        )
    settings = kafka_settings(config.kafka)
    layout = await read_layout(config)
    subject = _Subject(config, settings, layout, policies, purposes[0], is_signed, earlier)
    collect_garbage_rarely()
    total = await count_offsets(settings, config.topics.content, layout.content_partitions)
    done = 0
    turn = asyncio.Semaphore(CHAINS_AT_ONCE)

    async def check(partition: int) -> Verification:
        nonlocal done
        verification = Verification()
        async with turn:
            async for offsets in _ChainWalk(subject, partition, verification).run():
                done += offsets
                on_progress(done, total)
        return verification

    checks = [asyncio.create_task(check(partition)) for partition in layout.content_partitions]
    try:
        return Verification.of(await asyncio.gather(*checks))
    finally:
        for unfinished in checks:
            unfinished.cancel()


def verification_json(verification: Verification) -> dict[str, Any]:
    """What `verify --format json` prints."""
    return {
        "properties": {
            name: {
                "checked": tally.checked,
                "violations": tally.violations,
                "findings": tally.findings,
                "unchecked": dict(tally.unchecked),
            }
            for name, tally in verification.tallies.items()
        },
        **_figures_json(verification.figures),
        "exposed_records_min": verification.exposed_records_min,
        "exposed_records_max": verification.exposed_records_max,
        "exposure_ms_max": verification.exposure_ms_max,
    }


def _figures_json(figures: Figures) -> dict[str, Any]:
    """In the shape of the transparency report, so that one can be held against the other."""
    effects_ms = figures.effects_ms
    return {
        "outcomes": [
            {"jurisdiction": label, "reason": reason, "policy": policy, "count": count}
            for (label, reason, policy), count in sorted(figures.outcomes.items())
        ],
        "withdrawals": {
            "count": effects_ms.total(),
            "effect_ms": {
                "p50": nearest_rank(effects_ms, 50),
                "p95": nearest_rank(effects_ms, 95),
                "max": max(effects_ms, default=None),
            },
            "retracted_records": figures.retractions,
        },
    }


def verification_lines(verification: Verification) -> list[str]:
    """What `verify` prints: a line for each property, its findings, and what was not checked."""
    lines = []
    for name, tally in verification.tallies.items():
        state = f"{tally.violations:,} VIOLATIONS" if tally.violations else "holds"
        if not tally.violations and not tally.checked:
            state = "nothing to check"
        lines.append(f"{name} {PROPERTIES[name]}: {state} ({tally.checked:,} checked)")
        lines += [f"     {finding}" for finding in tally.findings]
        lines += [f"     not checked: {why}, {n:,}" for why, n in tally.unchecked.items()]
    lines.append(_exposure_line(verification))
    return lines


def _exposure_line(verification: Verification) -> str:
    if not verification.exposed_records_max:
        return "exposure: no record found that was committed after its owner's withdrawal"
    return (
        f"exposure: at least {verification.exposed_records_min:,} and at most "
        f"{verification.exposed_records_max:,} records were committed after their owners' "
        f"withdrawals were appended, at most {verification.exposure_ms_max:,} ms after"
    )


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is verified."""

    config: Config
    settings: KafkaSettings
    layout: Layout
    policies: Sequence[Policy]
    purpose: str
    is_signed: SignatureCheck | None
    earlier: Sequence[Config]


def _whose(config: Config) -> tuple[bool, str]:
    """What tells whose a content record is."""
    content = config.content
    return content.key_is_subject, "" if content.key_is_subject else content.fields.subject


class _ChainWalk:
    """Walks along the topics of one input partition, an entry of the ledger at a time."""

    def __init__(self, subject: _Subject, partition: int, verification: Verification) -> None:
        self._config = config = subject.config
        self._settings = subject.settings
        self._layout = layout = subject.layout
        policies, topics = subject.policies, config.topics
        self._partition = partition
        self._chain = Chain(config.group, topics.content, partition)
        self._source = f"{topics.content}-{partition}@".encode()
        self._table = ConsentTable(layout.consent_partitions(partition))
        decode = content_decoder(config.content.fields, config.limits.max_depth)
        self._verifier = ChainVerifier(
            [
                gates_of_all_times(
                    msgspec.structs.replace(config, content=each.content, limits=each.limits),
                    policies,
                    partition,
                    self._table,
                )
                for each in (config, *subject.earlier)
            ],
            self._table,
            verification,
            subject.is_signed,
            Owners(
                subject_reader(decode, key_is_subject=config.content.key_is_subject),
                load_pseudonyms(config).forms,
            ),
        )
        self._decode_consent = consent_decoder(
            config.consent.fields, subject.purpose, config.limits.max_depth
        )
        self._retractions: dict[tuple[str, bytes | None], tuple[int, Placed]] = {}
        self._last = -1

    async def run(self) -> AsyncIterator[int]:
        """Check the chain; yields the number of offsets that each entry accounts for."""
        topics, at = self._config.topics, self._layout.outputs(self._partition)
        async with AsyncExitStack() as stack:

            async def cursor(topic: str, partition: int) -> Cursor:
                opened = open_cursor(self._settings, topic, partition)
                return await stack.enter_async_context(opened)

            # The ledger first, so that the outputs of all its entries are there; what comes while
            # we read belongs to later ones.
            ledger = await cursor(topics.decisions, at.decisions.partition)
            for output in at.all():
                await await_stable(self._settings, output)
            training = await cursor(topics.training, at.training.partition)
            quarantine = await cursor(topics.quarantine, at.quarantine.partition)
            retractions = await cursor(topics.retractions, at.retractions.partition)
            content = await cursor(topics.content, self._partition)
            consent = {p: await cursor(topics.consent, p) for p in self._table.frontier}
            if training.start > 0:
                self._verifier.expired(Verdict.FORWARD)
            if quarantine.start > 0:
                self._verifier.expired(Verdict.QUARANTINE)
            while (entry := await ledger.next()) is not None:
                if entry.key != self._chain.key:
                    continue
                record = self._ledger_record(entry.value)
                if record is None:
                    self._verifier.unreadable(ledger.place(entry))
                    continue
                await self._apply_consent(consent, record.consent)
                slice_ = Slice(
                    content=await self._content(content, record),
                    training=await self._outputs(training, record),
                    quarantine=await self._outputs(quarantine, record),
                    retractions=await self._retracted(retractions, record.source.first),
                )
                self._verifier.entry(ledger.place(entry), entry.value, record, slice_)
                self._verifier.committed(entry.timestamp)
                self._last = record.source.last
                yield record.source.last - record.source.first + 1
            next_offset = await self._next_offset(at.decisions, ledger.end)
            await self._rest(training, "forwarded", next_offset)
            await self._rest(quarantine, "quarantined", next_offset)
            await self._judge_unused_partitions()
            await self._apply_consent(consent, {str(p): c.end for p, c in consent.items()})
            self._verifier.finish()

    async def _next_offset(self, ledger: Any, since: int) -> int:
        """Where the chain ends by now, after entries that came while we read."""
        await await_stable(self._settings, ledger)
        next_offset = self._last + 1
        async with open_cursor(self._settings, ledger.topic, ledger.partition, since) as cursor:
            while (entry := await cursor.next()) is not None:
                record = self._ledger_record(entry.value) if entry.key == self._chain.key else None
                if record is not None:
                    next_offset = max(next_offset, record.source.last + 1)
        return next_offset

    async def _apply_consent(
        self, cursors: Mapping[int, Cursor], frontier: Mapping[str, int]
    ) -> None:
        for name, offset in frontier.items():
            cursor = cursors[int(name)]
            async for run in cursor.runs_up_to(offset):
                keys = [record.key for record in run if record.key is not None]
                misplaced = frozenset(self._layout.misplaced(cursor.partition, keys))
                for record in run:
                    self._apply(cursor, record, misplaced)
            if offset >= self._table.frontier[cursor.partition]:
                self._table.advance(cursor.partition, offset)

    def _apply(self, cursor: Cursor, record: Any, misplaced: Collection[bytes]) -> None:
        if record.key is None:
            return
        state, _ = read_state(self._decode_consent, record)
        self._table.apply(cursor.partition, record.key, placed(state, record.key in misplaced))
        held = self._table.holdings.get(record.key)
        change = ConsentChange(cursor.partition, record.offset, record.timestamp, record.key, held)
        broker_time = getattr(record, "timestamp_type", 0) == BROKER_TIME
        self._verifier.consent(change, cursor.place(record), broker_time=broker_time)

    async def _content(self, cursor: Cursor, record: LedgerRecord) -> Batch | None:
        first, next_offset = record.source.first, record.source.last + 1
        fetched = await cursor.below(next_offset)
        # What an entry before this one should have accounted for is that one's finding.
        records = [r for r in fetched if r.offset >= first]
        if self._last < 0:
            self._verifier.skipped(len(fetched) - len(records))
        if first < cursor.start and first < next_offset:
            return None
        return Batch(
            first,
            next_offset,
            [r for r in records if not isinstance(r, UnreadableRecord)],
            [r.offset for r in records if isinstance(r, UnreadableRecord)],
        )

    async def _outputs(self, cursor: Cursor, record: LedgerRecord) -> list[Placed]:
        """The outputs that came of the entry's offsets."""
        found = []
        source_offset = partial(self._source_offset, cursor)
        async for run in cursor.while_at_most(record.source.last, source_offset):
            for offset, output in run:
                if offset is None:
                    self._judge_stranger(cursor, output)
                elif offset < record.source.first:
                    self._verifier.surplus(cursor.place(output), "an output")
                else:
                    found.append(Placed(cursor.place(output), output, offset))
        return found

    async def _retracted(self, cursor: Cursor, first: int) -> list[Placed]:
        """The retractions of the chain whose `before` is this offset."""
        async for run in cursor.while_at_most(first, self._before):
            for before, output in run:
                if before is not None:
                    change = str(orjson.loads(output.value)["consent"]), output.key
                    self._retractions[change] = (before, Placed(cursor.place(output), output))
        self._retractions = {
            change: kept for change, kept in self._retractions.items() if kept[0] >= first
        }
        return [placed for _, placed in self._retractions.values()]

    def _before(self, retraction: Any) -> int | None:
        """The content offset before which it retracts; None where it is none of this chain's."""
        try:
            body = orjson.loads(retraction.value or b"")
            name, _, offset = str(body["before"]).rpartition("@")
            _ = body["consent"]
            return int(offset) if f"{name}@".encode() == self._source else None
        except (ValueError, KeyError, TypeError):
            return None

    async def _rest(self, cursor: Cursor, what: str, next_offset: int) -> None:
        """Outputs behind the last entry, for which there is no outcome."""
        while (output := await cursor.next()) is not None:
            offset = self._source_offset(cursor, output)
            if offset is None:
                self._judge_stranger(cursor, output)
            elif not self._last < offset < next_offset:
                self._verifier.surplus(cursor.place(output), what)

    async def _judge_unused_partitions(self) -> None:
        """Whatever lies where no chain writes; each chain looks at its share of these."""
        topics, chains = self._config.topics, len(self._layout.content_partitions)
        for topic in (topics.training, topics.quarantine):
            for partition in range(self._partition + chains, self._layout.counts[topic], chains):
                async with open_cursor(self._settings, topic, partition) as cursor:
                    while (output := await cursor.next()) is not None:
                        self._judge_stranger(cursor, output)

    def _judge_stranger(self, cursor: Cursor, output: Any) -> None:
        """An output that is not this chain's: another chain's, or nobody's."""
        if self._partition != cursor.partition % len(self._layout.content_partitions):
            return  # Said once, though several chains may write there.
        source = self._source_in(cursor, output)
        place, topic = cursor.place(output), self._config.topics.content.encode()
        if source in (b"", _NO_ERRORS):
            self._verifier.surplus(place, "without a source")
        elif not source.startswith(topic + b"-"):
            self._verifier.foreign()
        elif not self._is_of_a_chain(cursor, source):
            self._verifier.surplus(place, "with a source that does not go there")

    def _is_of_a_chain(self, cursor: Cursor, source: bytes) -> bool:
        """Whether the source is a place in a content partition whose outputs go here."""
        name, _, offset = source.rpartition(b"@")
        here = TopicPartition(cursor.topic, cursor.partition)
        return offset.isdigit() and any(
            name == f"{self._config.topics.content}-{partition}".encode()
            and here in self._layout.outputs(partition).all()
            for partition in self._layout.content_partitions
        )

    def _ledger_record(self, value: bytes | None) -> LedgerRecord | None:
        """The entry in a ledger record's value; None where nobody can make sense of it."""
        try:
            record = msgspec.json.decode(value or b"", type=LedgerRecord)
            read_codes(record.outcomes)
        except (ValueError, LookupError, zlib.error):
            return None
        known = {str(partition) for partition in self._table.frontier}
        return record if record.consent.keys() <= known else None

    def _source_offset(self, cursor: Cursor, output: Any) -> int | None:
        """The content offset of which the output came; None where it is not of this chain."""
        source = self._source_in(cursor, output)
        if not source.startswith(self._source):
            return None
        offset = source.removeprefix(self._source)
        return int(offset) if offset.isdigit() else None

    def _source_in(self, cursor: Cursor, output: Any) -> bytes:
        is_training = cursor.topic == self._config.topics.training
        return source_of(output.headers, Verdict.FORWARD if is_training else Verdict.QUARANTINE)
