"""The metrics: their names, and how they follow from what happened.

Nothing here is created at import; each worker has a registry of its own. The values that belong
to one input partition are read from the partitions when Prometheus asks, so that the series of a
revoked partition vanish with it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from consentgate import __version__
from consentgate.core.partition import Aborted, Committed, Event, Moment, Ready, Recycled, Stalled

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_RECORDS = (0, 1, 10, 50, 100, 250, 500, 1_000, 2_000)
_PARTITION_GAUGES = {
    "consentgate_lag_records": "Offsets between the partition's position and its high watermark.",
    "consentgate_lag_seconds": "Age of the last decided record where the partition lags, else 0.",
    "consentgate_consent_staleness_seconds": "Age of the last completed barrier.",
    "consentgate_partition_ready": "1 where the partition decides; 0 while it waits or recovers.",
}


@dataclass(frozen=True, slots=True)
class PartitionGauges:
    """What one input partition looks like now."""

    partition: int
    lag_records: int
    lag_seconds: float
    consent_staleness_seconds: float
    ready: bool

    def values(self) -> tuple[float, float, float, float]:
        """In the order of the gauges."""
        return (
            self.lag_records,
            self.lag_seconds,
            self.consent_staleness_seconds,
            float(self.ready),
        )


class Metrics:
    """Everything that `/metrics` shows."""

    def __init__(
        self,
        partitions: Callable[[], Iterable[PartitionGauges]],
        subjects: Callable[[], int],
        scattered: Callable[[], int],
    ) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
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
            buckets=_SECONDS,
            registry=registry,
        )
        self.withdrawal_effect_seconds = Histogram(
            "consentgate_withdrawal_effect_seconds",
            "From a consent change that leaves somebody ineligible to the commit that covers and "
            "retracts it, once for each input partition.",
            buckets=_SECONDS,
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
        subjects_gauge = Gauge(
            "consentgate_consent_subjects",
            "Subjects in this worker's consent tables.",
            registry=registry,
        )
        subjects_gauge.set_function(subjects)
        scattered_gauge = Gauge(
            "consentgate_consent_scattered_subjects",
            "Subjects that several consent partitions hold, and that are therefore withheld.",
            registry=registry,
        )
        scattered_gauge.set_function(scattered)
        registry.register(_PartitionCollector(partitions))
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
            case Ready():
                pass

    def _committed(self, event: Committed) -> None:
        outcome = event.outcome
        records = outcome.batch.records
        self.transactions.labels("committed").inc()
        self.batch_records.observe(len(records))
        for made, number in outcome.counts.items():
            self.decisions.labels(made.reason.verdict, made.reason, made.label).inc(number)
        self.consumed_records.inc(len(records) + len(outcome.batch.unreadable))
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


class _PartitionCollector(Collector):
    def __init__(self, partitions: Callable[[], Iterable[PartitionGauges]]) -> None:
        self._partitions = partitions

    def describe(self) -> Iterator[Metric]:
        yield from self._families()

    def collect(self) -> Iterator[Metric]:
        families = self._families()
        for gauges in self._partitions():
            for family, value in zip(families, gauges.values(), strict=True):
                family.add_metric([str(gauges.partition)], value)
        yield from families

    def _families(self) -> list[GaugeMetricFamily]:
        return [
            GaugeMetricFamily(name, text, labels=["partition"])
            for name, text in _PARTITION_GAUGES.items()
        ]
