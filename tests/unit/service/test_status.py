"""What the status page is told."""

from typing import Any

import orjson
import pytest

from consentgate.config import Config
from consentgate.core.model import Reason
from consentgate.core.partition import Aborted, Phase, Stalled
from consentgate.core.policy import Policy
from consentgate.core.policyfile import parse_policy
from consentgate.service import status as status_module
from consentgate.service.metrics import Metrics, PartitionGauges, WorkerGauges
from consentgate.service.status import SAMPLES_MAX, WITHDRAWALS_MAX, Status

SUSPENDED_MS = 1_726_790_400_000  # 2024-09-20
POLICY = parse_policy(
    """
name: p
purpose: ai-training
rules:
  - {jurisdictions: [GB], until: 2024-09-20T00:00:00Z, basis: opt-out}
  - {jurisdictions: [GB], from: 2024-09-20T00:00:00Z, basis: suspended}
  - {jurisdictions: ["*"], basis: opt-out}
""",
    "p.yaml",
)


class Watched:
    """A status, what it is told, and the clock."""

    def __init__(self, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = SUSPENDED_MS - 1
        monkeypatch.setattr(status_module, "_now_ms", lambda: self.now_ms)
        self.partitions: list[PartitionGauges] = []
        self.metrics = Metrics(lambda: (), lambda: WorkerGauges(0, 0, 0, 0.0, False))
        self.status = Status(
            Config(), policy, self.metrics, lambda: self.partitions, lambda: {"broker": "ok"}
        )

    def decided(self, reason: Reason, number: int, label: str = "GB") -> None:
        self.metrics.decisions.labels(reason.verdict, reason, label).inc(number)
        self.metrics.consumed_records.inc(number)

    def shown(self, since_ms: int = 0) -> Any:
        """As it leaves."""
        return orjson.loads(orjson.dumps(self.status.shown(since_ms)))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(POLICY, monkeypatch)


def partition(number: int, phase: Phase, **fields: Any) -> PartitionGauges:
    known: dict[str, Any] = {
        "why": None,
        "next_offset": 7,
        "lag_records": 0,
        "lag_seconds": 0.0,
        "consent_staleness_seconds": 0.5,
        "stuck_seconds": 0.0,
        "consent_uncovered_seconds": 0.0,
    }
    return PartitionGauges(partition=number, phase=phase, **(known | fields))


def test_outcomes_are_those_of_the_metrics(watched: Watched) -> None:
    watched.decided(Reason.NOT_OPTED_OUT, 5)
    watched.decided(Reason.WITHDRAWN, 3)
    watched.decided(Reason.UNDECODABLE, 2, "unknown")
    shown = watched.shown()
    assert shown["totals"] == {"in": 10, "forwarded": 5, "withheld": 3, "quarantined": 2}
    assert {
        (each["jurisdiction"], each["reason"], each["verdict"], each["count"])
        for each in shown["outcomes"]
    } == {
        ("GB", "not-opted-out", "forward", 5),
        ("GB", "withdrawn", "withhold", 3),
        ("unknown", "undecodable", "quarantine", 2),
    }


def test_transactions_are_counted_by_what_became_of_them(watched: Watched) -> None:
    watched.metrics.observe(Aborted("too slow"))
    watched.metrics.observe(Stalled("behind"))
    shown = watched.shown()
    assert shown["transactions"] == {"committed": 0, "aborted": 1, "recycled": 0}
    assert shown["stalls"] == 1


def test_partitions_are_in_order_each_with_what_keeps_it_from_deciding(watched: Watched) -> None:
    watched.partitions = [
        partition(3, Phase.STALLED, why="a transaction is open"),
        partition(1, Phase.READY),
    ]
    shown = [
        (each["partition"], each["phase"], each["why"]) for each in watched.shown()["partitions"]
    ]
    assert shown == [(1, "ready", None), (3, "stalled", "a transaction is open")]


def test_the_effect_is_that_of_the_last_withdrawals(watched: Watched) -> None:
    effect = {"p50": None, "max": None}
    assert watched.shown()["withdrawals"] == {"count": 0, "recent": 0, "effect_ms": effect}
    watched.status.observe_withdrawal(60_000)
    for effect_ms in range(WITHDRAWALS_MAX):
        watched.status.observe_withdrawal(effect_ms)
    assert watched.shown()["withdrawals"] == {
        "count": WITHDRAWALS_MAX + 1,
        "recent": WITHDRAWALS_MAX,
        "effect_ms": {"p50": 49, "max": 99},
    }


def test_clocks_that_differ_make_no_effect_before_its_cause(watched: Watched) -> None:
    watched.status.observe_withdrawal(-5)
    assert watched.shown()["withdrawals"]["effect_ms"] == {"p50": 0, "max": 0}


def test_the_rules_are_those_in_force_now(watched: Watched) -> None:
    def basis_of_gb() -> tuple[Any, ...]:
        (found,) = (
            each
            for each in watched.shown()["policy"]["in_force"]
            if each["jurisdictions"] == ["GB"]
        )
        return found["basis"], found["from_ms"], found["until_ms"]

    assert basis_of_gb() == ("opt-out", None, SUSPENDED_MS)
    watched.now_ms += 1
    assert basis_of_gb() == ("suspended", SUSPENDED_MS, None)


def test_a_sample_is_told_once_to_who_says_what_it_has(watched: Watched) -> None:
    for lag in (4, 9):
        watched.now_ms += 2_000
        watched.partitions = [partition(0, Phase.READY, lag_records=lag)]
        watched.decided(Reason.NOT_OPTED_OUT, 10)
        watched.status.sample()
    first, second = watched.shown()["samples"]
    assert (first["forwarded"], first["lag_records"]) == (10, 4)
    assert (second["forwarded"], second["lag_records"]) == (20, 9)
    assert watched.shown(first["at_ms"])["samples"] == [second]
    assert watched.shown(second["at_ms"])["samples"] == []


def test_a_view_is_as_old_as_the_oldest_that_is_decided_by(watched: Watched) -> None:
    watched.partitions = [partition(0, Phase.BOOTSTRAPPING, consent_staleness_seconds=80.0)]
    watched.status.sample()
    watched.partitions += [
        partition(1, Phase.READY, consent_staleness_seconds=0.2),
        partition(2, Phase.READY, consent_staleness_seconds=0.7),
    ]
    watched.status.sample()
    ages = [each["consent_staleness_seconds"] for each in watched.shown()["samples"]]
    assert ages == [None, 0.7]


def test_no_more_samples_are_kept_than_of_a_quarter_of_an_hour(watched: Watched) -> None:
    for _ in range(SAMPLES_MAX + 5):
        watched.now_ms += 2_000
        watched.status.sample()
    samples = watched.shown()["samples"]
    assert len(samples) == SAMPLES_MAX
    assert samples[-1]["at_ms"] == watched.now_ms
