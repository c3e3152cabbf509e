"""What the topics must be like: what `topics create` makes passes, what differs is named."""

import random
from typing import Any

import msgspec
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from consentgate.config import Config, LimitsConfig, Topics
from consentgate.core.consent import ConsentChange, ConsentTable
from consentgate.core.countries import COUNTRIES
from consentgate.core.decide import headers_bytes
from consentgate.core.decode import ContentFields, content_decoder
from consentgate.core.gate import Batch, Gate, Output
from consentgate.core.ledger import GENESIS, BatchFacts, Chain, write_entry
from consentgate.core.model import Reason, consent_state, decision
from consentgate.core.partition import BATCH_OFFSETS_MAX, BATCH_RECORDS_MAX
from consentgate.core.policy import Basis, Policy, Rule
from consentgate.errors import ConfigError
from consentgate.kafka.guards import (
    ENVELOPE_BYTES,
    OWN_BYTES,
    consent_keeps_ms,
    judged_settings,
    plan_topics,
    topic_problems,
    with_declared,
)
from consentgate.kafka.unreadable import UnreadableRecord

BROKER = {
    "cleanup.policy": "delete",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": "3600000",
    "message.timestamp.before.max.ms": "9223372036854775807",
    "unclean.leader.election.enable": "false",
}
"""What a topic has for which nothing is said."""

Configs = dict[str, dict[str, str | None]]


def as_created(config: Config, broker: dict[str, str]) -> Configs:
    return {plan.name: {**broker, **plan.configs} for plan in plan_topics(config, 4)}


def problems_with(topic: str, **changed: str | None) -> list[str]:
    config = Config()
    configs = as_created(config, BROKER)
    configs[topic] |= {name.replace("_", "."): value for name, value in changed.items()}
    return topic_problems(config, configs)


LIMITS = [LimitsConfig(), LimitsConfig(max_value_bytes=5_000_000, max_future_ms=10**9)]


@pytest.mark.parametrize("limits", LIMITS)
def test_topics_as_created_are_as_they_must_be(limits: LimitsConfig) -> None:
    config = Config(limits=limits)
    assert topic_problems(config, as_created(config, BROKER)) == []


def test_topics_as_created_do_not_depend_on_the_brokers_defaults() -> None:
    contrary = {
        "cleanup.policy": "compact,delete",
        "retention.bytes": "1000000",
        "max.message.bytes": "1000",
        "message.timestamp.type": "LogAppendTime",
        "message.timestamp.after.max.ms": "1",
        "message.timestamp.before.max.ms": "1",
        "unclean.leader.election.enable": "true",
    }
    config = Config()
    assert topic_problems(config, as_created(config, {**BROKER, **contrary})) == []


def test_every_topic_is_planned_once_and_under_its_configured_name() -> None:
    names = msgspec.structs.asdict(Topics())
    topics = Topics(**{name: f"x.{topic}" for name, topic in names.items()})
    plans = plan_topics(Config(topics=topics), 7)
    assert sorted(plan.name for plan in plans) == sorted(msgspec.structs.astuple(topics))


def test_all_topics_but_the_ledger_have_as_many_partitions_as_asked_for() -> None:
    counts = {plan.name: plan.partitions for plan in plan_topics(Config(), 7)}
    assert counts.pop("consent-decisions") == 1
    assert set(counts.values()) == {7}


@pytest.mark.parametrize(
    ("topic", "setting", "value", "needed"),
    [
        ("consent-state", "cleanup.policy", "delete", "compact"),
        ("consent-state", "cleanup.policy", "compact,delete", "compact"),
        ("consent-state", "unclean.leader.election.enable", "true", "false"),
        ("consent-decisions", "cleanup.policy", "compact", "delete"),
        ("consent-decisions", "retention.ms", "604800000", "-1"),
        ("consent-decisions", "retention.bytes", "1000", "-1"),
        ("consent-decisions", "message.timestamp.type", "CreateTime", "LogAppendTime"),
        ("training-retractions", "cleanup.policy", "compact", "delete"),
        ("training-retractions", "retention.ms", "1", "-1"),
        ("training-retractions", "retention.bytes", "1", "-1"),
        ("training-data", "message.timestamp.type", "LogAppendTime", "CreateTime"),
    ],
)
def test_a_setting_that_breaks_a_promise_is_refused(
    topic: str, setting: str, value: str, needed: str
) -> None:
    (problem,) = problems_with(topic, **{setting.replace(".", "_"): value})
    assert problem.startswith(f"topic {topic}: {setting} is {value}, but must be {needed}: ")
    # What cannot be seen is not taken for granted.
    (unknown,) = problems_with(topic, **{setting.replace(".", "_"): None})
    assert unknown.startswith(f"topic {topic}: {setting} is None, but must be {needed}: ")


@pytest.mark.parametrize(
    ("topic", "setting", "least"),
    [
        ("training-data", "max.message.bytes", 1_048_588),
        ("content-quarantine", "max.message.bytes", 1_048_588),
        ("training-data", "message.timestamp.after.max.ms", 3_600_000),
        ("training-data", "message.timestamp.before.max.ms", 2**63 - 1),
    ],
)
def test_an_output_topic_that_is_narrower_than_the_limits_is_refused(
    topic: str, setting: str, least: int
) -> None:
    name = setting.replace(".", "_")
    assert problems_with(topic, **{name: str(least)}) == []
    (problem,) = problems_with(topic, **{name: str(least - 1)})
    assert problem.startswith(
        f"topic {topic}: {setting} is {least - 1}, but must be at least {least}: "
    )


@pytest.mark.parametrize("topic", ["consent-decisions", "training-retractions"])
def test_an_output_topic_without_room_for_the_largest_record_is_refused(topic: str) -> None:
    assert problems_with(topic, max_message_bytes="1000") != []


def test_a_bound_that_the_broker_does_not_know_is_none() -> None:
    assert problems_with("training-data", message_timestamp_before_max_ms=None) == []


def test_wider_limits_need_wider_topics() -> None:
    config = Config(limits=LimitsConfig(max_value_bytes=2_000_000, max_future_ms=7_200_000))
    problems = topic_problems(config, as_created(Config(), BROKER))
    assert [problem.split(", but")[0] for problem in problems] == [
        "topic training-data: max.message.bytes is 1048588",
        "topic training-data: message.timestamp.after.max.ms is 3600000",
        "topic content-quarantine: max.message.bytes is 1048588",
    ]


def test_every_problem_is_told_at_once() -> None:
    config = Config()
    configs: Configs = {name: {} for name in msgspec.structs.astuple(config.topics)}
    required = 2 + 2 + 1 + 4 + 3
    assert len(topic_problems(config, configs)) == required


@pytest.mark.parametrize(
    ("configs", "keeps_ms"),
    [
        ({"delete.retention.ms": "86400000", "min.compaction.lag.ms": "0"}, 86_400_000),
        ({"delete.retention.ms": "86400000", "min.compaction.lag.ms": "5000"}, 5_000),
        ({"delete.retention.ms": "5000", "min.compaction.lag.ms": "86400000"}, 86_400_000),
        ({"delete.retention.ms": "86400000"}, 86_400_000),
        ({"delete.retention.ms": None, "min.compaction.lag.ms": None}, 0),
        ({"delete.retention.ms": "0", "min.compaction.lag.ms": "0"}, 0),
        ({}, 0),
    ],
)
def test_a_change_of_consent_is_kept_for_its_compaction_lag_or_else_as_long_as_a_tombstone(
    configs: dict[str, str | None], keeps_ms: int
) -> None:
    assert consent_keeps_ms(configs) == keeps_ms


# What the broker does not let us read.

CONSENT = {
    "cleanup.policy": "compact",
    "unclean.leader.election.enable": False,
    "delete.retention.ms": 86_400_000,
    "min.compaction.lag.ms": "0",
}


def completed(
    declared: dict[str, dict[str, Any]], told: dict[str, dict[str, str | None] | None]
) -> dict[str, Any]:
    return dict(with_declared(Config(declared=declared), told))


def test_what_is_declared_counts_where_the_broker_refuses_to_tell() -> None:
    assert completed({"consent-state": CONSENT}, {"consent-state": None}) == {
        "consent-state": {
            "cleanup.policy": "compact",
            "unclean.leader.election.enable": "false",
            "delete.retention.ms": "86400000",
            "min.compaction.lag.ms": "0",
        }
    }


def test_what_is_declared_never_counts_where_the_broker_tells() -> None:
    told: dict[str, dict[str, str | None] | None] = {"consent-state": {"cleanup.policy": "delete"}}
    assert completed({"consent-state": CONSENT}, told) == told
    nothing: dict[str, dict[str, str | None] | None] = {"consent-state": {}}
    assert completed({"consent-state": CONSENT}, nothing) == nothing


def test_what_is_declared_is_judged_like_what_the_broker_tells() -> None:
    config = Config(declared={"consent-state": {**CONSENT, "cleanup.policy": "compact,delete"}})
    told: dict[str, Any] = {**as_created(config, BROKER), "consent-state": None}
    (problem,) = topic_problems(config, with_declared(config, told))
    assert problem.startswith("topic consent-state: cleanup.policy is compact,delete, but must be ")


@pytest.mark.parametrize("left_out", CONSENT)
def test_a_declaration_must_be_complete(left_out: str) -> None:
    declared = {name: value for name, value in CONSENT.items() if name != left_out}
    with pytest.raises(ConfigError) as refused:
        completed({"consent-state": declared}, {"consent-state": None})
    assert str(refused.value) == (
        "topic consent-state: its settings may not be read: grant this user DescribeConfigs on "
        "it, or say in the configuration, under declared.consent-state, what they are: " + left_out
    )


def test_settings_that_nobody_has_told_are_refused_for_all_topics_at_once() -> None:
    config = Config()
    with pytest.raises(ConfigError) as refused:
        with_declared(config, dict.fromkeys(as_created(config, BROKER).keys() - {"content-events"}))
    lines = str(refused.value).splitlines()
    assert len(lines) == 5
    for topic, names in judged_settings(config).items():
        (line,) = (line for line in lines if f"declared.{topic}," in line)
        assert line.startswith(f"topic {topic}: ")
        assert line.endswith(f": {', '.join(names)}")
        assert "DescribeConfigs" in line


# The broker never has to refuse a record that the limits allow.

LIMITS_OF_CONTENT = Config().limits.of_content()
LONG = "t" * 249


def on_the_wire(output: Output) -> int:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=1,
        producer_id=2**62,
        producer_epoch=1,
        base_sequence=0,
        batch_size=1,
    )
    timestamp_ms, key, value, headers = output
    assert builder.append(0, timestamp_ms, key, value, list(headers)) is not None
    return len(builder.build())


def largest(**changes: Any) -> UnreadableRecord:
    """A record that is as large as it may be in every respect, over topics with long names."""
    limits = LIMITS_OF_CONTENT
    name, rest = "n" * 8, limits.max_headers_bytes // limits.max_headers - 8
    record = {
        "offset": 2**62,
        "timestamp": 2**52,
        "key": b"m" * limits.max_key_bytes,
        "value": b"",
        "headers": [(name, b"v" * rest)] * limits.max_headers,
    }
    assert headers_bytes(record["headers"]) == limits.max_headers_bytes  # type: ignore[arg-type]
    return UnreadableRecord(**(record | changes))  # type: ignore[arg-type]


def gate() -> Gate:
    """A gate with names and numbers as long as they may be."""
    table = ConsentTable([99_999])
    owner = b"m" * LIMITS_OF_CONTENT.max_key_bytes
    table.apply(99_999, owner, consent_state("GB", True, None))
    table.advance(99_999, 2**62)
    rules = (Rule(("*",), Basis.OPT_OUT),)
    policy = Policy("p" * 100, "ai-training", {}, rules)
    chain = Chain("g" * 128, LONG, 99_999)
    decode = content_decoder(ContentFields(), 64)
    return Gate(chain, LONG, table, policy, decode, LIMITS_OF_CONTENT, True)


def outputs(record: UnreadableRecord) -> list[Output]:
    batch = Batch(record.offset, record.offset + 1, [record])
    outcome = gate().judge(batch, GENESIS, 2**52)
    return [*outcome.training, *outcome.quarantine]


def test_the_largest_record_that_the_limits_allow_fits_into_the_topics() -> None:
    limits = LIMITS_OF_CONTENT
    event = {"id": "e", "subject": "m" * limits.max_key_bytes, "kind": "k", "visibility": "v"}
    value = msgspec.json.encode({**event, "created_at": 0})
    value += b" " * (limits.max_value_bytes - len(value))
    for broken in (value, b"x" * limits.max_value_bytes):
        (output,) = outputs(largest(value=broken))
        assert output.value == broken
        assert on_the_wire(output) <= limits.max_value_bytes + ENVELOPE_BYTES


@pytest.mark.parametrize(
    "subject",
    [
        b"m" * LIMITS_OF_CONTENT.max_key_bytes,
        pytest.param(
            b"\x00" * LIMITS_OF_CONTENT.max_key_bytes,
        ),
        pytest.param(
            b"\xff" * LIMITS_OF_CONTENT.max_key_bytes,
        ),
    ],
    ids=["letters", "escaped", "replaced"],
)
def test_the_largest_retraction_fits_into_its_topic(subject: bytes) -> None:
    change = ConsentChange(99_999, 2**62, 2**52, subject, None)
    outcome = gate().catch_up(2**62, [change], {99_999: 2**62 + 1}, GENESIS, 2**52)
    (retraction,) = outcome.retractions
    assert on_the_wire(retraction) <= OWN_BYTES


def test_the_largest_entry_fits_into_the_ledger() -> None:
    # As many records as a batch may have, far apart, of every country and with every reason.
    made = [decision(reason, country) for country in sorted(COUNTRIES) for reason in sorted(Reason)]
    shuffled = random.Random(5)
    decisions = shuffled.choices(made, k=BATCH_RECORDS_MAX)
    last = 2**62 + BATCH_OFFSETS_MAX - 1
    facts = BatchFacts(
        first=2**62,
        last=last,
        decided_at_ms=2**52,
        frontier=dict.fromkeys(range(1_000), 2**62),
        policy="p" * 100 + "@" + "0" * 12,
        offsets=sorted(shuffled.sample(range(2**62, last + 1), k=len(decisions))),
        decisions=decisions,
    )
    entry = write_entry(gate().chain, facts, GENESIS)
    assert on_the_wire(Output(2**52, entry.key, entry.value, [])) <= OWN_BYTES


def test_a_record_beyond_the_limits_leaves_nothing_large_behind() -> None:
    limits = LIMITS_OF_CONTENT
    for record in (
        largest(value=b"x" * (limits.max_value_bytes + 1)),
        largest(headers=[("", None)] * 2_000_000),
        largest(value=None, headers=[("h", b"x" * 2_000_000)]),
        largest(value=b"x" * limits.max_value_bytes, key=b"k" * 1_000_000),
    ):
        for output in outputs(record):
            assert on_the_wire(output) <= 100_000
