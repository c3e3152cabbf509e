"""What the cluster says of its brokers and replicas, without a cluster that is broken so."""

import pytest
from aiokafka.errors import TransactionalIdAuthorizationFailed

from consentgate.config import Config
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.survey import ClusterSurvey, PartitionSurvey, TopicSurvey
from consentgate.policies import load_policy
from consentgate.tools import topics_checked
from consentgate.tools.case import Case
from consentgate.tools.findings import Finding, Severity
from consentgate.tools.topics_checked import check_brokers, check_replicas, check_rights


def case_of(survey: ClusterSurvey) -> Case:
    return Case(Config(), load_policy("opt-in"), kafka_settings({}), survey)


async def test_an_address_that_leads_nowhere_is_the_broker_s_setting() -> None:
    case = case_of(ClusterSurvey([(3, "127.0.0.1", 1)], {}))
    (found,) = await check_brokers(case)
    assert found.severity is Severity.ERROR
    assert "broker 3 tells clients to find it at 127.0.0.1:1" in found.what
    assert "advertised.listeners of broker 3" in str(found.do)


async def test_the_addresses_that_were_tried_are_not_tried_again() -> None:
    # Nobody listens at the configured one, or this would be found here a second time.
    (found,) = await check_brokers(case_of(ClusterSurvey([(1, "localhost", 9092)], {})))
    assert (found.severity, found.what) == (Severity.OK, "1 broker in reach")


class _Cluster:
    """Tells `min.insync.replicas` of every topic."""

    def __init__(self, least: int | None) -> None:
        self._least = least

    async def topic_configs(self, topics: list[str]) -> dict[str, dict[str, str] | None]:
        told = None if self._least is None else {"min.insync.replicas": str(self._least)}
        return dict.fromkeys(topics, told)


async def of_replicas(least: int | None, *partitions: PartitionSurvey) -> list[Finding]:
    survey = TopicSurvey(None, partitions, None)
    case = case_of(ClusterSurvey([], {Config().topics.consent: survey}))
    return await check_replicas(case, _Cluster(least))  # type: ignore[arg-type]


ALL = (1, 2, 3)


async def test_three_replicas_of_which_two_must_have_a_record_are_fine() -> None:
    (found,) = await of_replicas(2, PartitionSurvey(0, 1, ALL, ALL))
    assert found.severity is Severity.OK


@pytest.mark.parametrize(
    ("least", "partition", "severity", "what"),
    [
        (1, PartitionSurvey(0, 1, ALL, ALL), Severity.WARNING, "min.insync.replicas is 1 with 3"),
        (2, PartitionSurvey(7, -1, ALL, (1,)), Severity.ERROR, "consent-state-7 has no leader"),
        (2, PartitionSurvey(7, 1, ALL, (1,)), Severity.ERROR, "min.insync.replicas=2: nothing can"),
        (2, PartitionSurvey(7, 1, ALL, (1, 2)), Severity.WARNING, "replicas out of sync"),
    ],
)
async def test_replicas_that_are_missing_are_told(
    least: int, partition: PartitionSurvey, severity: Severity, what: str
) -> None:
    (found,) = await of_replicas(least, partition)
    assert (found.severity, what in found.what) == (severity, True)


@pytest.mark.parametrize(("replicas", "is_advised"), [(ALL, False), ((1,), True)])
async def test_fewer_copies_are_advised_only_where_there_cannot_be_more(
    replicas: tuple[int, ...], is_advised: bool
) -> None:
    found, *_ = await of_replicas(2, PartitionSurvey(7, 1, replicas, (1,)))
    assert found.severity is Severity.ERROR
    assert ("lower min.insync.replicas" in str(found.do)) is is_advised


async def test_a_setting_that_may_not_be_read_is_not_taken_for_one() -> None:
    (found,) = await of_replicas(None, PartitionSurvey(0, 1, ALL, ALL))
    assert found.severity is Severity.OK


async def test_a_transactional_id_that_may_not_be_used_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_: object) -> None:
        raise TransactionalIdAuthorizationFailed

    monkeypatch.setattr(topics_checked, "ask_for_transactions", refuse)
    (found,) = await check_rights(case_of(ClusterSurvey([], {})), None)  # type: ignore[arg-type]
    assert found.severity is Severity.ERROR
    assert "consentgate/content-events-0" in found.what
    assert "--transactional-id consentgate/ --resource-pattern-type prefixed" in str(found.do)


async def test_rights_that_a_broker_does_not_tell_are_not_taken_for_granted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(*_: object) -> None:
        pass

    monkeypatch.setattr(topics_checked, "ask_for_transactions", answer)
    survey = TopicSurvey(None, [PartitionSurvey(0, 1, ALL, ALL)], None)
    case = case_of(ClusterSurvey([], {Config().topics.decisions: survey}))
    (found,) = await check_rights(case, None)  # type: ignore[arg-type]
    assert found.severity is Severity.WARNING
    assert "does not say what this user may do" in found.what
    assert "--operation Read --operation Write --topic consent-decisions" in str(found.do)


@pytest.mark.parametrize(
    ("kafka", "command"),
    [
        ({}, "kafka-acls.sh --bootstrap-server localhost:9092 --add --allow-principal 'User:…' "),
        (
            {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "a worker",
                "sasl.password": "secret",
            },
            "kafka-acls.sh --bootstrap-server localhost:9092 --command-config admin.properties "
            "--add --allow-principal 'User:a worker' ",
        ),
    ],
)
def test_what_to_run_can_be_pasted(kafka: dict[str, str], command: str) -> None:
    case = Case(Config(kafka=kafka), load_policy("opt-in"), kafka_settings(kafka))
    assert case.grant("Read", on="--topic t") == f"{command}--operation Read --topic t"
