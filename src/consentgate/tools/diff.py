"""`consentgate diff`: what two policies, or one at two moments, decide differently."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consentgate.config import Config
from consentgate.core.compare import Change, Comparison, Decided
from consentgate.core.consent import ConsentTable
from consentgate.core.decode import consent_decoder
from consentgate.core.explain import moment_text
from consentgate.core.gate import Gate
from consentgate.core.model import UNKNOWN_JURISDICTION, Reason, decision
from consentgate.core.policy import Policy
from consentgate.engines import gate_of
from consentgate.kafka.clock import read_clock
from consentgate.kafka.cursor import open_cursor
from consentgate.kafka.layout import Layout, read_layout
from consentgate.kafka.reader import count_offsets
from consentgate.kafka.settings import KafkaSettings, kafka_settings
from consentgate.kafka.unreadable import UnreadableRecord, placed, read_state
from consentgate.tools.fixtures import ClockLine, read_fixture
from consentgate.tools.lookback import aligned, at_any_moment
from consentgate.tools.replay import Replay

OnProgress = Callable[[int, int], None]
"""Gets the offsets that were read, and how many there are to read."""

_PROGRESS_RECORDS = 10_000


@dataclass(frozen=True, slots=True)
class Side:
    """A policy, and the moment at which it is asked; None: as the records come."""

    policy: Policy
    at_ms: int | None = None  # epoch milliseconds

    def __str__(self) -> str:
        at = "" if self.at_ms is None else f" at {moment_text(self.at_ms)}"
        return f"{self.policy.reference}{at}"

    def config(self, config: Config) -> Config:
        """The configuration as this side decides with it."""
        return config if self.at_ms is None else at_any_moment(config)


def compare_fixtures(
    config: Config, before: Side, after: Side, paths: Iterable[Path]
) -> Comparison:
    """Replay fixtures, each from an empty consent table, on both sides.

    Raises:
        FixtureError: if a line cannot be read.
    """
    comparison = Comparison()
    for path in paths:
        memories = [_memory(config, side, path) for side in (before, after)]
        for line in read_fixture(path):
            outcomes = [
                memory.feed(line)
                for memory, side in zip(memories, (before, after), strict=True)
                # A moment that was named stands still.
                if side.at_ms is None or not isinstance(line, ClockLine)
            ]
            first, *others = outcomes or [None]
            if first is not None and others[0] is not None:
                comparison.take(f"{path}:{first.line}", first.decided, others[0].decided)
    return comparison


def _memory(config: Config, side: Side, path: Path) -> Replay:
    memory = Replay(side.config(config), side.policy, path)
    if side.at_ms is not None:
        memory.feed(ClockLine(0, side.at_ms))
    return memory


async def compare_topics(
    config: Config, before: Side, after: Side, last: int, on_progress: OnProgress
) -> Comparison:
    """Decide on the last offsets of each content partition on both sides; consent is as of now.

    Where a side names no moment, it is now.

    Raises:
        BrokerUnavailable: if no broker answers.
        ConfigError: if topics are missing.
    """
    settings = kafka_settings(config.kafka)
    layout = await read_layout(config)
    topics = config.topics
    counts = [
        min(last, await count_offsets(settings, topics.content, [partition]))
        for partition in layout.content_partitions
    ]
    consent = range(layout.counts[topics.consent])
    total = sum(counts) + await count_offsets(settings, topics.consent, consent)
    walk = _Walk(config, settings, layout, (before, after), lambda done: on_progress(done, total))
    if layout.scope == "global":
        await walk.read_consent(consent)
    for partition, number in zip(layout.content_partitions, counts, strict=True):
        if layout.scope == "partition":
            await walk.read_consent([partition])
        await walk.decide(partition, number)
    on_progress(total, total)
    return walk.comparison


class _Walk:
    """Reads the consent that a content partition needs, and decides on its last records."""

    def __init__(
        self,
        config: Config,
        settings: KafkaSettings,
        layout: Layout,
        sides: Sequence[Side],
        on_progress: Callable[[int], None],
    ) -> None:
        self.comparison = Comparison()
        self._config = config
        self._settings = settings
        self._layout = layout
        self._sides = sides
        self._on_progress = on_progress
        self._done = 0
        self._now_ms = read_clock().unix_ms
        self._tables: dict[str, ConsentTable] = {}

    async def read_consent(self, partitions: Sequence[int]) -> None:
        """What these partitions hold now; by purpose, and so once where both have the same."""
        config = self._config
        self._tables = {side.policy.purpose: ConsentTable(partitions) for side in self._sides}
        decoders = {
            purpose: consent_decoder(config.consent.fields, purpose, config.limits.max_depth)
            for purpose in self._tables
        }
        for partition in partitions:
            async with open_cursor(self._settings, config.topics.consent, partition) as cursor:
                async for record in cursor.up_to(cursor.end):
                    self._count()
                    if record.key is None:
                        continue
                    misplaced = self._layout.misplaced(partition, [record.key])
                    for purpose, table in self._tables.items():
                        state, _ = read_state(decoders[purpose], record)
                        table.apply(partition, record.key, placed(state, bool(misplaced)))

    async def decide(self, partition: int, number: int) -> None:
        """Decide on the last offsets of a content partition, as many as that."""
        gates = [self._gate(side, partition) for side in self._sides]
        moments_ms = [self._now_ms if side.at_ms is None else side.at_ms for side in self._sides]
        topic = self._config.topics.content
        async with open_cursor(self._settings, topic, partition) as whole:
            first = whole.end - number
        async with open_cursor(self._settings, topic, partition, first) as cursor:
            async for record in cursor.up_to(cursor.end):
                self._count()
                if isinstance(record, UnreadableRecord):
                    lost = decision(Reason.UNDECODABLE, UNKNOWN_JURISDICTION)
                    before = after = Decided(lost)
                else:
                    before, after = (
                        Decided(*gate.outcome(record, now_ms))
                        for gate, now_ms in zip(gates, moments_ms, strict=True)
                    )
                self.comparison.take(cursor.place(record), before, after)

    def _gate(self, side: Side, partition: int) -> Gate:
        table = self._tables[side.policy.purpose]
        return gate_of(side.config(self._config), side.policy, partition, table)

    def _count(self) -> None:
        self._done += 1
        if self._done % _PROGRESS_RECORDS == 0:
            self._on_progress(self._done)


def diff_json(before: Side, after: Side, comparison: Comparison) -> dict[str, Any]:
    """What `diff --format json` prints."""
    return {
        "before": {"policy": before.policy.reference, "at": before.at_ms},
        "after": {"policy": after.policy.reference, "at": after.at_ms},
        "records": comparison.records,
        "changed": comparison.changed,
        "started": comparison.started,
        "stopped": comparison.stopped,
        "otherwise": comparison.otherwise,
        "changes": [
            {
                "before": _outcome_json(change.label_before, change.before),
                "after": _outcome_json(change.label_after, change.after),
                "otherwise": change.otherwise,
                "count": number,
                "examples": examples,
            }
            for change, number, examples in comparison.rows()
        ],
    }


def _outcome_json(label: str, reason: Reason) -> dict[str, str]:
    return {"verdict": str(reason.verdict), "reason": str(reason), "label": label}


def _after(change: Change) -> str:
    what = ", with other content" if change.otherwise else ""
    return f"{change.after.verdict}: {change.after}{what}"


def diff_lines(before: Side, after: Side, comparison: Comparison) -> list[str]:
    """What `diff` prints for people: a row for each change, and the totals."""
    lines = [f"before  {before}", f"after   {after}", ""]
    rows = [
        (
            change.jurisdiction,
            f"{change.before.verdict}: {change.before}",
            _after(change),
            f"{number:,}",
            ", ".join(examples),
        )
        for change, number, examples in comparison.rows()
    ]
    if rows:
        lines += [*aligned([("jurisdiction", "before", "after", "records", "such as"), *rows]), ""]
    if not comparison.changed:
        return [*lines, f"nothing changes: {comparison.records:,} records come out alike"]
    others = comparison.changed - comparison.started - comparison.stopped - comparison.otherwise
    return [
        *lines,
        f"{comparison.changed:,} of {comparison.records:,} records change: {comparison.started:,} "
        f"would be forwarded that were not, {comparison.stopped:,} no longer would, "
        f"{comparison.otherwise:,} would be forwarded with other content, and {others:,} have "
        "another reason for the same, or for not being forwarded",
    ]
