"""What the topics must be like, checked at the start and created by `consentgate topics create`."""

from collections.abc import Mapping
from dataclasses import dataclass

from consentgate.config import Config, Topics
from consentgate.errors import ConfigError
from consentgate.kafka.cluster import TopicPlan

ENVELOPE_BYTES = 148_588
"""Room beside a value for its key, its headers and ours: with the default limits 1,048,588."""

OWN_BYTES = 524_288
"""Room for a ledger entry of the longest batch, and for a retraction under the longest key."""

_FOR_EVER = "-1"
_NO_BOUND = str(2**63 - 1)
_LEDGER = {"cleanup.policy": "delete", "retention.ms": _FOR_EVER, "retention.bytes": _FOR_EVER}

ConfigsOfTopic = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class UnfitSetting:
    """A setting of a topic that is not as it must be."""

    topic: str
    name: str
    needed: str
    problem: str


def plan_topics(config: Config, partitions: int) -> list[TopicPlan]:
    """The topics as `topics create` makes them."""
    topics = config.topics
    room = {"max.message.bytes": str(config.limits.max_value_bytes + ENVELOPE_BYTES)}
    own = {"max.message.bytes": str(OWN_BYTES)}
    times = {
        **_required(topics)[topics.training],
        "message.timestamp.after.max.ms": str(config.limits.max_future_ms),
        "message.timestamp.before.max.ms": _NO_BOUND,
    }
    return [
        TopicPlan(topics.content, partitions),
        TopicPlan(
            topics.consent,
            partitions,
            # The broker's times are evidence; nobody's decision depends on them.
            {**_required(topics)[topics.consent], "message.timestamp.type": "LogAppendTime"},
        ),
        TopicPlan(topics.training, partitions, {**room, **times}),
        TopicPlan(topics.decisions, 1, {**own, **_required(topics)[topics.decisions]}),
        TopicPlan(topics.quarantine, partitions, {**room, **_required(topics)[topics.quarantine]}),
        TopicPlan(topics.retractions, partitions, {**own, **_required(topics)[topics.retractions]}),
    ]


def topic_problems(config: Config, configs: Mapping[str, ConfigsOfTopic]) -> list[str]:
    """What is wrong with the settings of the topics; each names topic, setting and remedy."""
    return [unfit.problem for unfit in unfit_settings(config, configs)]


def unfit_settings(config: Config, configs: Mapping[str, ConfigsOfTopic]) -> list[UnfitSetting]:
    """The settings of the topics that are not as they must be."""
    unfit = [
        UnfitSetting(
            topic,
            name,
            needed,
            f"topic {topic}: {name} is {configs[topic].get(name)}, but must be {needed}: "
            f"{_WHY[name]}",
        )
        for topic, needs in _required(config.topics).items()
        for name, needed in needs.items()
        if configs[topic].get(name) != needed
    ]
    for topic, bounds in _bounds(config).items():
        for name, bound in bounds.items():
            value = configs[topic].get(name)
            if value is not None and int(value) < bound:
                problem = (
                    f"topic {topic}: {name} is {value}, but must be at least {bound}: the broker "
                    "would refuse records that the limits allow"
                )
                unfit.append(UnfitSetting(topic, name, str(bound), problem))
    return unfit


def judged_settings(config: Config) -> dict[str, list[str]]:
    """Topic to the names of its settings that are looked at."""
    topics, bounds = config.topics, _bounds(config)
    times = {topics.consent: ("delete.retention.ms", "min.compaction.lag.ms")}
    return {
        topic: [*needs, *bounds.get(topic, ()), *times.get(topic, ())]
        for topic, needs in _required(topics).items()
    }


def with_declared(
    config: Config, told: Mapping[str, ConfigsOfTopic | None]
) -> dict[str, ConfigsOfTopic]:
    """The settings of the topics, those that the cluster does not let us read as declared.

    What the cluster tells always counts; None is what it refuses to tell.

    Raises:
        ConfigError: naming each topic with settings that nobody has told, right and key.
    """
    configs: dict[str, ConfigsOfTopic] = {}
    problems = []
    for topic, settings in told.items():
        if settings is not None:
            configs[topic] = settings
            continue
        declared = {n: _as_told(value) for n, value in config.declared.get(topic, {}).items()}
        # A setting that is left out must not look like one that the broker does not know.
        if missing := [n for n in judged_settings(config)[topic] if n not in declared]:
            problems.append(
                f"topic {topic}: its settings may not be read: grant this user DescribeConfigs on "
                f"it, or say in the configuration, under declared.{topic}, what they are: "
                f"{', '.join(missing)}"
            )
        configs[topic] = declared
    if problems:
        raise ConfigError("\n".join(problems))
    return configs


def _as_told(value: str | int | bool) -> str:
    """A declared value as a broker would write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def consent_keeps_ms(configs: ConfigsOfTopic) -> int:
    """How long a consent change is there to be read, before compaction may remove it."""
    lag_ms = int(configs.get("min.compaction.lag.ms") or 0)
    # Without a lag a change can be superseded and gone at once; a tombstone stays for this long.
    return lag_ms or deletions_kept_ms(configs)


def deletions_kept_ms(configs: ConfigsOfTopic) -> int:
    """How long a tombstone is there to be read, at the least, counted from its compaction."""
    return int(configs.get("delete.retention.ms") or 0)


def _required(topics: Topics) -> dict[str, dict[str, str]]:
    return {
        topics.consent: {"cleanup.policy": "compact", "unclean.leader.election.enable": "false"},
        topics.training: {"cleanup.policy": "delete", "message.timestamp.type": "CreateTime"},
        topics.quarantine: {"cleanup.policy": "delete"},
        topics.decisions: {**_LEDGER, "message.timestamp.type": "LogAppendTime"},
        topics.retractions: _LEDGER,
    }


def _bounds(config: Config) -> dict[str, dict[str, int]]:
    """The least that each topic must allow."""
    least = {"max.message.bytes": config.limits.max_value_bytes + ENVELOPE_BYTES}
    training = {
        **least,
        "message.timestamp.after.max.ms": config.limits.max_future_ms,
        "message.timestamp.before.max.ms": int(_NO_BOUND),
    }
    topics, own = config.topics, {"max.message.bytes": OWN_BYTES}
    return {
        topics.training: training,
        topics.quarantine: least,
        topics.decisions: own,
        topics.retractions: own,
    }


_WHY = {
    "cleanup.policy": (
        "consent is kept by key, and all else whole; compaction also refuses records without a key"
    ),
    "unclean.leader.election.enable": "an unclean leader could forget a withdrawal",
    "retention.ms": "what was decided must stay provable",
    "retention.bytes": "what was decided must stay provable",
    "message.timestamp.type": (
        "training records keep their times, and the ledger's are the broker's, so that a wrong "
        "clock is noticed"
    ),
}
