"""The metrics: their names, and how they follow from what happened.

Nothing here is created at import; each worker has a registry of its own. The values that belong
to one input partition are read from the partitions when Prometheus asks, so that the series of a
revoked partition vanish with it. All else is counted once a batch, never once a record.

What came in is counted apart from what became of it: `consumed_offsets` by how far the committed
positions moved, `vacant_offsets` by where the batches held no record, and `decisions` by outcomes.
The first minus the second is the third, or something was lost or counted twice.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from consentgate import __version__
from consentgate.core.partition import (
    Aborted,
    Committed,
    Event,
    Moment,
    Phase,
    Ready,
    Recycled,
    Stalled,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SECONDS_TO_HOURS = (*_SECONDS, 300.0, 1_800.0, 3_600.0, 21_600.0)
_RECORDS = (0, 1, 10, 50, 100, 250, 500, 1_000, 2_000)
_PARTITION_GAUGES = {
    "consentgate_lag_records": "Offsets between the partition's position and its high watermark.",
    "consentgate_lag_seconds": "Age of the last decided record where the partition lags, else 0; "
    "0, too, until this worker has decided one.",
    "consentgate_consent_staleness_seconds": "Age of the last completed barrier.",
    "consentgate_partition_ready": "1 where the partition decides; 0 while it waits or recovers.",
    "consentgate_stuck_seconds": "Time since the last commit where the partition lags, else 0.",
    "consentgate_consent_uncovered_seconds": "Age of the oldest consent change that was read and "
    "that no commit covers yet, else 0.",
}
_PHASE_GAUGE = {
    "consentgate_partition_phase": "The phase that the partition is in now; always 1. One that is "
    "`stalled` or `bootstrapping` waits for consent, one that is `fencing` or `recycling` for its "
    "producer.",
}
_WORKER_GAUGES = {
    "consentgate_consent_subjects": "Subjects in this worker's consent tables.",
    "consentgate_consent_scattered_subjects": "Subjects that several consent partitions hold, and "
    "that are therefore withheld.",
    "consentgate_content_partitions": "Partitions of the content topic, of all workers together.",
    "consentgate_broker_silence_seconds": "Time since the cluster last answered this worker.",
    "consentgate_group_member": "1 where the consumer group counts on this worker, else 0.",
}


@dataclass(frozen=True, slots=True)
class PartitionGauges:
    """What one input partition looks like now: the metrics show the numbers, the page also why."""

    partition: int
    next_offset: int
    why: str | None  # what keeps it from deciding; None where nothing is known to
    lag_records: int
    lag_seconds: float
    consent_staleness_seconds: float
    phase: Phase
    stuck_seconds: float
    consent_uncovered_seconds: float

    def values(self) -> tuple[float, ...]:
        """In the order of the gauges."""
        return (
            self.lag_records,
            self.lag_seconds,
            self.consent_staleness_seconds,
            self.phase is Phase.READY,
            self.stuck_seconds,
            self.consent_uncovered_seconds,
        )


@dataclass(frozen=True, slots=True)
class WorkerGauges:
    """What the whole worker looks like now."""

    consent_subjects: int
    consent_scattered_subjects: int
    content_partitions: int
    broker_silence_seconds: float
    group_member: bool

    def values(self) -> tuple[float, ...]:
        """In the order of the gauges."""
        return (
            self.consent_subjects,
            self.consent_scattered_subjects,
            self.content_partitions,
            self.broker_silence_seconds,
            self.group_member,
        )


class Metrics:
    """Everything that `/metrics` shows."""

    def __init__(
        self,
        partitions: Callable[[], Iterable[PartitionGauges]],
        worker: Callable[[], WorkerGauges],
    ) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.consumed_offsets = Counter(
            "consentgate_consumed_offsets",
            "Offsets by which the committed positions of the input partitions moved.",
            registry=registry,
        )
        self.vacant_offsets = Counter(
            "consentgate_vacant_offsets",
            "Those of them that hold no record: transaction markers, aborted, compacted, expired.",
            registry=registry,
        )
        self.expired_offsets = Counter(
            "consentgate_expired_offsets",
            "Offsets that retention removed from the content topic before they were decided; found "
            "when a partition is taken over, and counted each time until its next commit.",
            registry=registry,
        )
        self.consumed_records = Counter(
            "consentgate_consumed_records",
            "Input records that were decided and committed.",
            registry=registry,
        )
        self.consumed_bytes = Counter(
            "consentgate_consumed_bytes",
            "Bytes of the values of these input records.",
            registry=registry,
        )
        self.forwarded_bytes = Counter(
            "consentgate_forwarded_bytes",
            "Bytes of the values of forwarded records.",
            registry=registry,
        )
        self.decisions = Counter(
            "consentgate_decisions",
            "Committed outcomes; every input record is counted once.",
            ["verdict", "reason", "jurisdiction"],
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "consentgate_batch_stage_seconds",
            "Time that a batch spent in each stage: barrier, judge, send, commit.",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_records = Histogram(
            "consentgate_batch_records",
            "Input records of a committed batch.",
            buckets=_RECORDS,
            registry=registry,
        )
        self.commit_latency_seconds = Histogram(
            "consentgate_commit_latency_seconds",
            "From a record's timestamp to its commit; the oldest record of each batch.",
            buckets=_SECONDS_TO_HOURS,
            registry=registry,
        )
        self.withdrawal_effect_seconds = Histogram(
            "consentgate_withdrawal_effect_seconds",
            "From a consent change that leaves somebody ineligible to the commit that covers and "
            "retracts it, once for each input partition.",
            buckets=_SECONDS_TO_HOURS,
            registry=registry,
        )
        self.exposure_seconds = Histogram(
            "consentgate_exposure_seconds",
            "From a consent change that leaves somebody ineligible to the last commit of a record "
            "of theirs after it by this worker, 0 where there is none; for each input partition.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.decision_age_seconds = Histogram(
            "consentgate_decision_age_seconds",
            "From reading the consent topic's high watermark to sending the commit.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.transactions = Counter(
            "consentgate_transactions",
            "Transactions by outcome: committed, aborted on purpose, or given up with their "
            "producer.",
            ["outcome"],
            registry=registry,
        )
        for ended in ("committed", "aborted", "recycled"):
            # The first of a kind is seen as a rise only where there was a series before.
            self.transactions.labels(ended)
        self.stalls = Counter(
            "consentgate_stalls",
            "Times that a partition stopped deciding to wait for something to get well.",
            registry=registry,
        )
        self.rebalances = Counter(
            "consentgate_rebalances", "Assignments received from the group.", registry=registry
        )
        self.consent_unreadable = Counter(
            "consentgate_consent_unreadable",
            "Consent records that cannot be trusted; their subjects are withheld.",
            ["cause"],
            registry=registry,
        )
        self.consent_misplaced = Counter(
            "consentgate_consent_misplaced",
            "Consent records that the partitioner would have put into another partition.",
            registry=registry,
        )
        self.policy_info = Gauge(
            "consentgate_policy_info",
            "The policy in force; always 1.",
            ["name", "hash"],
            registry=registry,
        )
        build_info = Gauge(
            "consentgate_build_info",
            "The version of the software; always 1.",
            ["version"],
            registry=registry,
        )
        build_info.labels(__version__).set(1)
        registry.register(
            _GaugeCollector(
                _PARTITION_GAUGES,
                ["partition"],
                lambda: (([str(each.partition)], each.values()) for each in partitions()),
            )
        )
        registry.register(
            _GaugeCollector(
                _PHASE_GAUGE,
                ["partition", "phase"],
                lambda: (([str(each.partition), each.phase], [1]) for each in partitions()),
            )
        )
        registry.register(_GaugeCollector(_WORKER_GAUGES, [], lambda: [([], worker().values())]))
        ProcessCollector(registry=registry)

    def observe_withdrawal(self, effect_ms: int, exposure_ms: int) -> None:
        """Somebody became ineligible: how long until the effect on one input partition, and until
        the last commit of a record of theirs.
        """
        self.withdrawal_effect_seconds.observe(max(0, effect_ms) / 1000)
        self.exposure_seconds.observe(max(0, exposure_ms) / 1000)

    def observe(self, event: Event) -> None:
        """Count what happened to a partition."""
        match event:
            case Committed():
                self._committed(event)
            case Aborted():
                self.transactions.labels("aborted").inc()
            case Recycled():
                self.transactions.labels("recycled").inc()
            case Stalled():
                self.stalls.inc()
            case Ready(position):
                self.expired_offsets.inc(position.expired)

    def _committed(self, event: Committed) -> None:
        outcome = event.outcome
        batch, records = outcome.batch, outcome.batch.records
        present = len(records) + len(batch.unreadable)
        self.consumed_offsets.inc(event.advanced)
        self.vacant_offsets.inc(batch.next_offset - batch.first - present)
        self.transactions.labels("committed").inc()
        self.batch_records.observe(len(records))
        for made, number in outcome.counts.items():
            self.decisions.labels(made.reason.verdict, made.reason, made.label).inc(number)
        self.consumed_records.inc(present)
        self.consumed_bytes.inc(outcome.value_bytes)
        self.forwarded_bytes.inc(_bytes(map(attrgetter("value"), outcome.training)))
        self.decision_age_seconds.observe(event.age_ms / 1000)
        if records:
            oldest_ms = min(map(attrgetter("timestamp"), records))
            latency_ms = event.committed.unix_ms - oldest_ms
            self.commit_latency_seconds.observe(max(0, latency_ms) / 1000)
            for stage, since, until in (
                ("barrier", event.fetched, event.fresh),
                ("judge", event.fresh, event.judged),
                ("send", event.judged, event.sent),
                ("commit", event.sent, event.committed),
            ):
                self.stage_seconds.labels(stage).observe(_seconds(since, until))


def _bytes(values: Iterable[bytes | None]) -> int:
    return sum(map(len, filter(None, values)))


def _seconds(since: Moment, until: Moment) -> float:
    return (until.monotonic_ms - since.monotonic_ms) / 1000


class _GaugeCollector(Collector):
    """Gauges of the same labels, by name and meaning; their values are asked for at each scrape."""

    def __init__(
        self,
        gauges: Mapping[str, str],
        labels: Sequence[str],
        now: Callable[[], Iterable[tuple[Sequence[str], Iterable[float]]]],
    ) -> None:
        self._gauges = gauges
        self._labels = labels
        self._now = now

    def describe(self) -> Iterator[Metric]:
        yield from self._families()

    def collect(self) -> Iterator[Metric]:
        families = self._families()
        for labels, values in self._now():
            for family, value in zip(families, values, strict=True):
                family.add_metric(labels, value)
        yield from families

    def _families(self) -> list[GaugeMetricFamily]:
        return [
            GaugeMetricFamily(name, text, labels=self._labels)
            for name, text in self._gauges.items()
        ]
