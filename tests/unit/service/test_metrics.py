"""The metrics: every event counted once, nothing personal, and series that vanish."""

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from consentgate import __version__
from consentgate.core.consent import ConsentChange, ConsentTable, holding
from consentgate.core.countries import COUNTRIES
from consentgate.core.decide import Limits
from consentgate.core.decode import ConsentFields, ContentFields, consent_decoder, content_decoder
from consentgate.core.gate import Batch, BatchOutcome, Gate
from consentgate.core.ledger import GENESIS, Chain
from consentgate.core.model import Choice, Reason, consent_state
from consentgate.core.partition import (
    Aborted,
    Committed,
    Moment,
    Phase,
    Position,
    Ready,
    Recycled,
    Stalled,
)
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.core.policyfile import parse_policy
from consentgate.errors import ConfigError
from consentgate.service.assigned import exposures_ms
from consentgate.service.metrics import Metrics, PartitionGauges, WorkerGauges

NOW_MS = 1_726_826_400_000
GRANTED = consent_state("GB", True, Choice.GRANTED)
WITHDRAWN = consent_state("FR", True, Choice.WITHDRAWN)
DECISIONS = "consentgate_decisions_total"
READY = Ready(Position(0, GENESIS, None))


@dataclass(frozen=True)
class Content:
    """A consumed record."""

    offset: int
    key: bytes
    value: bytes | None
    timestamp: int = NOW_MS
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Watched:
    """Metrics, and what they are asked about."""

    def __init__(self) -> None:
        self.partitions: list[PartitionGauges] = []
        self.worker = WorkerGauges(0, 0, 0, 0.0, False)
        self.metrics = Metrics(lambda: self.partitions, lambda: self.worker)

    def text(self) -> str:
        return generate_latest(self.metrics.registry).decode()

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """The values of all series of a name, by their labels' values in the order of names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
            if sample.name == name
        }

    def value(self, name: str, *labels: str) -> float:
        return self.series(name)[labels]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def post(offset: int, subject: str, timestamp: int = NOW_MS) -> Content:
    event = {"id": "e", "subject": subject, "kind": "k", "visibility": "v", "created_at": 0}
    return Content(offset, subject.encode(), json.dumps(event).encode(), timestamp)


def outcome(*records: Content, unreadable: tuple[int, ...] = ()) -> BatchOutcome:
    table = ConsentTable([0])
    table.apply(0, b"alice", GRANTED)
    table.apply(0, b"bob", WITHDRAWN)
    groups = {"EEA": frozenset({"FR"})}
    policy = Policy("p", "ai-training", groups, (Rule(("EEA", "GB"), Basis.OPT_OUT),))
    decode = content_decoder(ContentFields(), 64)
    gate = Gate(Chain("g", "content", 0), "consent", table, policy, decode, Limits(), True)
    change = ConsentChange(0, 0, NOW_MS, b"bob", holding(0, WITHDRAWN))
    batch = Batch(0, 100, records, unreadable)
    return gate.judge(batch, GENESIS, NOW_MS, [change])


def committed(*records: Content, unreadable: tuple[int, ...] = ()) -> Committed:
    """A batch that was fetched at 0 ms, and spent 10, 200, 400 and 3,000 ms in its stages."""
    fetched, fresh, judged, sent, done = (
        Moment(NOW_MS + late_ms, 7_000 + late_ms) for late_ms in (0, 10, 210, 610, 3_610)
    )
    made = outcome(*records, unreadable=unreadable)
    return Committed(made, fetched, fresh, judged, sent, done, age_ms=600, advanced=100)


MIXED = (post(1, "alice"), post(2, "bob"), post(5, "carol"), Content(6, b"alice", None))


# What is counted.


def test_every_decision_of_a_committed_batch_is_counted(watched: Watched) -> None:
    watched.metrics.observe(committed(*MIXED, unreadable=(9,)))
    watched.metrics.observe(committed(post(1, "alice")))
    # By jurisdiction, reason and verdict.
    assert watched.series(DECISIONS) == {
        ("GB", "not-opted-out", "forward"): 2,
        ("EEA", "withdrawn", "withhold"): 1,
        ("unknown", "no-consent-record", "withhold"): 1,
        ("unknown", "tombstone", "quarantine"): 1,
        ("unknown", "undecodable", "quarantine"): 1,
    }


def test_decisions_add_up_to_the_records_that_were_consumed(watched: Watched) -> None:
    for records in ((), MIXED, MIXED[:2]):
        watched.metrics.observe(committed(*records, unreadable=(9, 10)))
        decided = sum(watched.series(DECISIONS).values())
        assert decided == watched.value("consentgate_consumed_records_total")
    assert decided == 4 + 2 + 3 * 2


def unaccounted(watched: Watched) -> float:
    """What came in less what became of it, as the recording rule has it."""
    came_in = watched.value("consentgate_consumed_offsets_total") - watched.value(
        "consentgate_vacant_offsets_total"
    )
    return came_in - sum(watched.series(DECISIONS).values())


def test_what_came_in_is_what_became_of_it(watched: Watched) -> None:
    for records in ((), MIXED, MIXED[:2]):
        watched.metrics.observe(committed(*records, unreadable=(9, 10)))
        assert unaccounted(watched) == 0
    assert watched.value("consentgate_consumed_offsets_total") == 300
    assert watched.value("consentgate_vacant_offsets_total") == 300 - 12


def test_a_record_without_a_decision_is_noticed(watched: Watched) -> None:
    event = committed(*MIXED)
    counts = dict(event.outcome.counts)
    counts.popitem()
    watched.metrics.observe(replace(event, outcome=replace(event.outcome, counts=counts)))
    assert unaccounted(watched) == 1


def test_a_record_that_is_counted_twice_is_noticed(watched: Watched) -> None:
    event = committed(*MIXED)
    counts = {made: 2 * number for made, number in event.outcome.counts.items()}
    watched.metrics.observe(replace(event, outcome=replace(event.outcome, counts=counts)))
    assert unaccounted(watched) == -len(MIXED)


def test_a_position_that_skips_offsets_is_noticed(watched: Watched) -> None:
    watched.metrics.observe(replace(committed(*MIXED), advanced=103))
    assert unaccounted(watched) == 3


def test_offsets_that_expired_undecided_are_counted(watched: Watched) -> None:
    watched.metrics.observe(READY)
    watched.metrics.observe(Ready(Position(7, GENESIS, None, expired=20)))
    assert watched.value("consentgate_expired_offsets_total") == 20


def test_bytes_are_those_of_values(watched: Watched) -> None:
    watched.metrics.observe(committed(*MIXED))
    sizes = [len(record.value or b"") for record in MIXED]
    assert watched.value("consentgate_consumed_bytes_total") == sum(sizes)
    assert watched.value("consentgate_forwarded_bytes_total") == sizes[0]


def test_transactions_are_counted_by_their_end(watched: Watched) -> None:
    for event in (committed(), committed(*MIXED), Aborted("x"), Recycled("y"), Aborted("z")):
        watched.metrics.observe(event)
    assert watched.series("consentgate_transactions_total") == {
        ("committed",): 2,
        ("aborted",): 2,
        ("recycled",): 1,
    }


def test_stalls_are_counted(watched: Watched) -> None:
    for _ in range(2):
        watched.metrics.observe(Stalled("x"))
    assert watched.value("consentgate_stalls_total") == 2


def test_a_partition_that_gets_ready_is_no_count_of_anything(watched: Watched) -> None:
    before = counted(watched)
    watched.metrics.observe(READY)
    assert counted(watched) == before


def counted(watched: Watched) -> str:
    lines = watched.text().splitlines()
    return "\n".join(line for line in lines if not line.startswith("process_"))


def test_what_was_not_committed_is_not_counted(watched: Watched) -> None:
    for event in (Aborted("x"), Recycled("y"), Stalled("z"), READY):
        watched.metrics.observe(event)
    assert watched.series(DECISIONS) == {}
    assert watched.value("consentgate_consumed_records_total") == 0


# What is measured.


def test_the_time_of_each_stage_is_measured(watched: Watched) -> None:
    watched.metrics.observe(committed(post(1, "alice")))
    assert watched.series("consentgate_batch_stage_seconds_sum") == {
        ("barrier",): 0.01,
        ("judge",): 0.2,
        ("send",): 0.4,
        ("commit",): 3.0,
    }
    assert watched.value("consentgate_decision_age_seconds_sum") == 0.6


def test_latency_is_that_of_the_oldest_record_of_a_batch(watched: Watched) -> None:
    old = post(1, "alice", timestamp=NOW_MS - 1_390)
    watched.metrics.observe(committed(post(0, "alice"), old, post(2, "alice")))
    assert watched.value("consentgate_commit_latency_seconds_sum") == 5.0
    assert watched.value("consentgate_commit_latency_seconds_count") == 1


def test_a_record_from_the_future_has_no_negative_latency(watched: Watched) -> None:
    watched.metrics.observe(committed(post(1, "alice", timestamp=NOW_MS + 10**9)))
    assert watched.value("consentgate_commit_latency_seconds_sum") == 0


def test_a_commit_without_content_says_nothing_of_latency(watched: Watched) -> None:
    watched.metrics.observe(committed())
    assert watched.value("consentgate_commit_latency_seconds_count") == 0
    assert watched.series("consentgate_batch_stage_seconds_count") == {}
    assert watched.value("consentgate_batch_records_count") == 1
    assert watched.value("consentgate_batch_records_sum") == 0


def test_the_effect_of_a_withdrawal_is_measured_in_seconds(watched: Watched) -> None:
    watched.metrics.observe_withdrawal(1_500, 30)
    watched.metrics.observe_withdrawal(-20, 0)  # Clocks differ.
    assert watched.value("consentgate_withdrawal_effect_seconds_sum") == 1.5
    assert watched.value("consentgate_withdrawal_effect_seconds_count") == 2
    assert watched.value("consentgate_exposure_seconds_sum") == 0.03
    assert watched.value("consentgate_exposure_seconds_count") == 2


def test_exposed_is_whose_record_was_committed_after_their_change() -> None:
    last = committed(post(1, "alice"), post(2, "bob"))  # Bob's was not forwarded.
    ended_ms = last.committed.unix_ms

    def exposures(*changes: tuple[bytes, int], since: Committed | None = last) -> list[int]:
        made = [ConsentChange(0, 0, ended_ms - before_ms, who, None) for who, before_ms in changes]
        return list(exposures_ms(since, made))

    assert exposures((b"alice", 40), (b"bob", 40), (b"carol", 40), (b"alice", -5)) == [40, 0, 0, 0]
    assert exposures((b"alice", 40), since=None) == [0]
    assert exposures() == []


# What belongs to a partition, and to the worker.


def gauges(partition: int, **changed: Any) -> PartitionGauges:
    known = PartitionGauges(partition, 7, None, 12, 3.5, 0.25, Phase.READY, 1.5, 0.75)
    return replace(known, **changed)


def test_each_partition_has_its_own_gauges(watched: Watched) -> None:
    watched.partitions = [gauges(0), gauges(7, lag_records=0, lag_seconds=0.0, phase=Phase.STALLED)]
    assert watched.series("consentgate_lag_records") == {("0",): 12, ("7",): 0}
    assert watched.series("consentgate_lag_seconds") == {("0",): 3.5, ("7",): 0}
    assert watched.series("consentgate_consent_staleness_seconds") == {("0",): 0.25, ("7",): 0.25}
    assert watched.series("consentgate_partition_ready") == {("0",): 1, ("7",): 0}
    assert watched.series("consentgate_partition_phase") == {("0", "ready"): 1, ("7", "stalled"): 1}
    assert watched.series("consentgate_stuck_seconds") == {("0",): 1.5, ("7",): 1.5}
    assert watched.series("consentgate_consent_uncovered_seconds") == {("0",): 0.75, ("7",): 0.75}


def test_a_partition_has_one_phase_at_a_time(watched: Watched) -> None:
    for phase in Phase:
        watched.partitions = [gauges(3, phase=phase)]
        assert watched.series("consentgate_partition_phase") == {("3", str(phase)): 1}


def test_the_series_of_a_revoked_partition_vanish(watched: Watched) -> None:
    watched.partitions = [gauges(0), gauges(7)]
    assert 'partition="7"' in watched.text()
    del watched.partitions[1]
    assert 'partition="7"' not in watched.text()
    assert 'partition="0"' in watched.text()
    watched.partitions.clear()
    assert 'partition="' not in watched.text()


def test_partitions_are_asked_anew_each_time(watched: Watched) -> None:
    watched.partitions = [gauges(0)]
    watched.text()
    watched.partitions = [gauges(0, lag_records=5)]
    assert watched.value("consentgate_lag_records", "0") == 5


def test_the_worker_is_asked_how_it_is_doing(watched: Watched) -> None:
    watched.worker = WorkerGauges(200_000, 3, 12, 1.5, True)
    assert watched.value("consentgate_consent_subjects") == 200_000
    assert watched.value("consentgate_consent_scattered_subjects") == 3
    assert watched.value("consentgate_content_partitions") == 12
    assert watched.value("consentgate_broker_silence_seconds") == 1.5
    assert watched.value("consentgate_group_member") == 1


def test_the_version_is_shown(watched: Watched) -> None:
    assert watched.series("consentgate_build_info") == {(__version__,): 1}


def test_what_befalls_the_group_and_its_consent_is_counted() -> None:
    watched = busy()
    assert watched.value("consentgate_rebalances_total") == 1
    assert watched.value("consentgate_consent_misplaced_total") == 1
    assert watched.value("consentgate_consent_unreadable_total", "not-json") == 1
    assert watched.value("consentgate_policy_info", "ab" * 32, "linkedin") == 1


# The manners of Prometheus.


def busy() -> Watched:
    """Metrics with a series for everything."""
    watched = Watched()
    watched.partitions = [gauges(0)]
    for event in (committed(*MIXED), Aborted("alice"), Recycled("alice"), Stalled("alice"), READY):
        watched.metrics.observe(event)
    watched.metrics.observe_withdrawal(5, 0)
    watched.metrics.rebalances.inc()
    watched.metrics.consent_misplaced.inc()
    watched.metrics.consent_unreadable.labels("not-json").inc()
    watched.metrics.policy_info.labels("linkedin", "ab" * 32).set(1)
    return watched


def test_there_are_no_series_of_creation_times() -> None:
    watched = busy()
    assert "_created" not in watched.text()
    openmetrics = generate_openmetrics(watched.metrics.registry)  # type: ignore[no-untyped-call]
    assert "_created" not in openmetrics.decode()


def test_every_metric_has_the_prefix_and_a_help_text() -> None:
    for family in text_string_to_metric_families(busy().text()):
        assert family.name.startswith(("consentgate_", "process_"))
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")


def test_counters_end_in_total_and_only_counters_do() -> None:
    for family in text_string_to_metric_families(busy().text()):
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")


def test_units_are_base_units() -> None:
    names = [family.name for family in text_string_to_metric_families(busy().text())]
    for unit in ("_ms", "_milliseconds", "_minutes", "_kb", "_percent"):
        assert not [name for name in names if unit in name]


def test_labels_are_few_and_hold_nothing_personal() -> None:
    watched = busy()
    labels = {
        name
        for family in text_string_to_metric_families(watched.text())
        for sample in family.samples
        for name in sample.labels
    }
    assert labels == {
        *("verdict", "reason", "jurisdiction", "stage", "outcome", "cause", "le", "partition"),
        *("name", "hash", "version", "phase"),
    }
    for subject in ("alice", "bob", "carol"):
        assert subject not in watched.text()


HOSTILE = (
    *sorted(COUNTRIES),
    *("gb", " GB", "UK", "XX", "EU", "*", "EEA", "unknown", "", "G" * 10_000),
    *('GB"} 1', "GB\n# HELP x", "\\", "{{ $value }}", "\u216d\u202e", 7, None, ["GB"], {"GB": 1}),
)


def test_the_series_are_bounded_by_the_rules_whatever_people_say_where_they_live(
    watched: Watched,
) -> None:
    decode = consent_decoder(ConsentFields(), "ai-training", 64)
    table = ConsentTable([0])
    subjects = [f"m{number}".encode() for number in range(len(HOSTILE))]
    for subject, jurisdiction in zip(subjects, HOSTILE, strict=True):
        said = {"subject": subject.decode(), "jurisdiction": jurisdiction, "choices": {}}
        state, _ = decode(subject, json.dumps(said).encode())
        table.apply(0, subject, state)
    groups = {"EEA": frozenset({"FR", "DE", "NO"})}
    rules = (Rule(("EEA", "GB"), Basis.OPT_OUT), Rule(("*",), Basis.OPT_OUT))
    policy = Policy("p", "ai-training", groups, rules)
    content = content_decoder(ContentFields(), 64)
    gate = Gate(Chain("g", "content", 0), "consent", table, policy, content, Limits(), True)
    records = [post(number, subject.decode()) for number, subject in enumerate(subjects)]
    made = gate.judge(Batch(0, len(records), records), GENESIS, NOW_MS)
    watched.metrics.observe(replace(committed(), outcome=made, advanced=len(records)))
    labels = {jurisdiction for jurisdiction, *_ in watched.series(DECISIONS)}
    assert labels == {"EEA", "GB", "*", "unknown"}
    assert len(watched.series(DECISIONS)) <= len(labels) * len(Reason)
    assert unaccounted(watched) == 0


@pytest.mark.parametrize("name", ['p"} 1', "p\n# HELP x", "Policy", "p p", "ü", "m1@example.org"])
def test_a_policy_has_no_name_that_a_label_should_not_hold(name: str) -> None:
    rules = [{"jurisdictions": ["*"], "basis": "opt-out"}]
    text = json.dumps({"name": name, "purpose": "ai-training", "rules": rules})
    with pytest.raises(ConfigError):
        parse_policy(text, "p")


def test_every_worker_has_a_registry_of_its_own() -> None:
    first, second = Watched(), Watched()
    assert first.metrics.registry is not second.metrics.registry
    first.metrics.observe(Stalled("x"))
    assert second.value("consentgate_stalls_total") == 0
    assert isinstance(first.metrics.registry, CollectorRegistry)


def test_nothing_is_sampled_when_there_is_nothing_yet(watched: Watched) -> None:
    assert watched.value("consentgate_stalls_total") == 0
    assert watched.series(DECISIONS) == {}
