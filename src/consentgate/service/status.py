"""`/status.json`: how the worker is doing, for the page that people look at. Nothing personal."""

import asyncio
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import prometheus_client

from consentgate import __version__
from consentgate.config import Config
from consentgate.core.model import Verdict
from consentgate.core.partition import Phase
from consentgate.core.policy import Policy
from consentgate.core.timeline import courses
from consentgate.service.metrics import Metrics, PartitionGauges

SAMPLE_SECONDS = 2.0
SAMPLES_MAX = 450
"""A page that is opened shows the quarter of an hour before."""

WITHDRAWALS_MAX = 100
"""How many of the last withdrawals the effect is stated of."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What is drawn over time. Records are counted since the start of the worker."""

    at_ms: int
    forwarded: int
    withheld: int
    quarantined: int
    lag_records: int
    consent_staleness_seconds: float | None
    """The highest of the partitions that decide; None where none does."""


class Status:
    """The worker's state in a form for `/status.json`, and its last quarter of an hour."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        metrics: Metrics,
        partitions: Callable[[], Iterable[PartitionGauges]],
        components: Callable[[], Mapping[str, str]],
    ) -> None:
        self._config = config
        self._policy = policy
        self._courses = courses(policy)
        self._metrics = metrics
        self._partitions = partitions
        self._components = components
        self._started_ms = _now_ms()
        self._samples: deque[Sample] = deque(maxlen=SAMPLES_MAX)
        self._effects_ms: deque[int] = deque(maxlen=WITHDRAWALS_MAX)
        self._withdrawals = 0

    def observe_withdrawal(self, effect_ms: int) -> None:
        """Somebody became ineligible, with effect on one input partition after so long."""
        self._withdrawals += 1
        self._effects_ms.append(max(0, effect_ms))

    async def keep(self) -> None:
        """Take a sample every two seconds, for ever."""
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)

    def sample(self) -> None:
        """Add what is drawn over time."""
        verdicts = self._verdicts()
        partitions = list(self._partitions())
        stalenesses = (p.consent_staleness_seconds for p in partitions if p.phase is Phase.READY)
        self._samples.append(
            Sample(
                at_ms=_now_ms(),
                forwarded=verdicts[Verdict.FORWARD],
                withheld=verdicts[Verdict.WITHHOLD],
                quarantined=verdicts[Verdict.QUARANTINE],
                lag_records=sum(p.lag_records for p in partitions),
                consent_staleness_seconds=max(stalenesses, default=None),
            )
        )

    def shown(self, since_ms: int) -> Mapping[str, Any]:
        """All of it, with the samples that were taken after `since_ms`, epoch milliseconds."""
        metrics, now_ms, verdicts = self._metrics, _now_ms(), self._verdicts()
        return {
            "now_ms": now_ms,
            "started_ms": self._started_ms,
            "version": __version__,
            "group": self._config.group,
            "content_topic": self._config.topics.content,
            "policy": {
                "name": self._policy.name,
                "hash": self._policy.hash,
                "purpose": self._policy.purpose,
                "in_force": list(self._in_force(now_ms)),
            },
            "components": self._components(),
            "partitions": sorted(self._partitions(), key=lambda each: each.partition),
            "totals": {
                "in": _total(metrics.consumed_records),
                "forwarded": verdicts[Verdict.FORWARD],
                "withheld": verdicts[Verdict.WITHHOLD],
                "quarantined": verdicts[Verdict.QUARANTINE],
            },
            "outcomes": [
                {**labels, "count": count} for labels, count in _series(metrics.decisions)
            ],
            "withdrawals": {
                "count": self._withdrawals,
                "recent": len(self._effects_ms),
                "effect_ms": {
                    "p50": statistics.median_low(self._effects_ms) if self._effects_ms else None,
                    "max": max(self._effects_ms, default=None),
                },
            },
            "transactions": {
                labels["outcome"]: count for labels, count in _series(metrics.transactions)
            },
            "stalls": _total(metrics.stalls),
            "rebalances": _total(metrics.rebalances),
            "consent": {
                "unreadable": _total(metrics.consent_unreadable),
                "misplaced": _total(metrics.consent_misplaced),
            },
            "sample_ms": round(SAMPLE_SECONDS * 1000),
            "samples": [sample for sample in self._samples if sample.at_ms > since_ms],
        }

    def _verdicts(self) -> Counter[str]:
        verdicts: Counter[str] = Counter()
        for labels, count in _series(self._metrics.decisions):
            verdicts[labels["verdict"]] += count
        return verdicts

    def _in_force(self, now_ms: int) -> Iterator[Mapping[str, Any]]:
        """What the policy says at a moment, for each set of countries that it treats alike."""
        for course in self._courses:
            stretch = course.at(now_ms)
            yield {
                "jurisdictions": course.labels,
                "basis": None if stretch.rule is None else stretch.rule.basis,
                "from_ms": stretch.from_ms,
                "until_ms": stretch.until_ms,
            }


def _series(counter: prometheus_client.Counter) -> Iterator[tuple[dict[str, str], int]]:
    """Labels and value of each series of a counter."""
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                yield sample.labels, round(sample.value)


def _total(counter: prometheus_client.Counter) -> int:
    return sum(count for _, count in _series(counter))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
