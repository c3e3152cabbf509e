"""What the members of a group come to, in states that no broker can be brought into at will."""

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError

from consentgate.config import Config
from consentgate.kafka.settings import kafka_settings
from consentgate.kafka.survey import ClusterSurvey, GroupSurvey, PartitionSurvey, Right, TopicSurvey
from consentgate.policies import load_policy
from consentgate.tools import group_checked
from consentgate.tools.case import Case
from consentgate.tools.findings import Finding, Severity
from consentgate.tools.group_checked import check_members

CONTENT = Config().topics.content
RIGHTS = frozenset(Right)


async def of_group(
    monkeypatch: pytest.MonkeyPatch, group: GroupSurvey | type[Exception]
) -> Finding:
    """What is found of a group on three content partitions."""

    async def answer(*_: object) -> GroupSurvey:
        if isinstance(group, GroupSurvey):
            return group
        raise group

    monkeypatch.setattr(group_checked, "survey_group", answer)
    partitions = [PartitionSurvey(number, 1, (1,), (1,)) for number in range(3)]
    survey = ClusterSurvey([], {CONTENT: TopicSurvey(None, partitions, RIGHTS)})
    case = Case(Config(), load_policy("opt-in"), kafka_settings({}), survey)
    (found,) = await check_members(case, None)  # type: ignore[arg-type]
    return found


def has(*partitions: int) -> list[TopicPartition]:
    return [TopicPartition(CONTENT, partition) for partition in partitions]


async def test_members_that_share_all_partitions_are_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = await of_group(monkeypatch, GroupSurvey("Stable", [has(0), has(2, 1), []], RIGHTS))
    assert (found.severity, found.what) == (
        Severity.OK,
        "consentgate is Stable: 3 members, 3 partitions",
    )


@pytest.mark.parametrize(
    ("group", "severity", "what"),
    [
        (GroupSurvey("Stable", [has(0, 1), has(1, 2)], RIGHTS), Severity.ERROR, "content-events-1 "
         "is assigned to 2 members"),
        (GroupSurvey("Stable", [has(0), has(2)], RIGHTS), Severity.WARNING, "content-events-1"),
        (GroupSurvey("PreparingRebalance", [[], []], RIGHTS), Severity.WARNING, "2 members"),
        (GroupSurvey("Empty", [], RIGHTS - {Right.READ}), Severity.ERROR, "may not Read"),
        (GroupAuthorizationFailedError, Severity.ERROR, "may not Read"),
    ],
    ids=["twice", "nobody", "rebalance", "no Read", "no Describe"],
)  # fmt: skip
async def test_what_is_wrong_with_the_members_is_told(
    monkeypatch: pytest.MonkeyPatch,
    group: GroupSurvey | type[Exception],
    severity: Severity,
    what: str,
) -> None:
    found = await of_group(monkeypatch, group)
    assert (found.severity, found.check, what in found.what) == (severity, "group", True)
    assert found.do


async def test_partitions_of_another_topic_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    other = [TopicPartition("other", 1)]
    group = GroupSurvey("Stable", [has(0, 1, 2), other], RIGHTS)
    assert (await of_group(monkeypatch, group)).severity is Severity.OK
