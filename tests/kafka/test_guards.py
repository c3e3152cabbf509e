"""What would break the promises is refused at the start, by name and with the remedy."""

import asyncio
import dataclasses
import socket
import time
from collections.abc import Mapping

import msgspec
import pytest
import yaml

from consentgate.errors import ConfigError
from consentgate.kafka.cluster import connected
from consentgate.kafka.settings import kafka_settings
from consentgate.policies import load_policy
from consentgate.service.worker import Worker
from harness import Site, SiteFactory, StartWorker, consent, post, run_python, working

EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78


async def refusal(site: Site) -> str:
    """The message with which the worker refuses to start."""
    worker = Worker(site.config, load_policy(site.config.policy))
    with pytest.raises(ConfigError) as refused:
        async with asyncio.timeout(5):
            await worker.run()
    assert refused.value.exit_code == EXIT_CONFIG
    return str(refused.value)


FAULTS = {
    "consent is not compacted": ("consent", "cleanup.policy", "delete", "compact"),
    "consent is deleted, too": ("consent", "cleanup.policy", "compact,delete", "compact"),
    "unclean leaders": ("consent", "unclean.leader.election.enable", "true", "false"),
    "the ledger is compacted": ("decisions", "cleanup.policy", "compact", "delete"),
    "the ledger expires": ("decisions", "retention.ms", "604800000", "-1"),
    "the ledger is bounded": ("decisions", "retention.bytes", "1000000", "-1"),
    "the ledger's times": ("decisions", "message.timestamp.type", "CreateTime", "LogAppendTime"),
    "retractions expire": ("retractions", "retention.ms", "604800000", "-1"),
    "training's times": ("training", "message.timestamp.type", "LogAppendTime", "CreateTime"),
    "training is narrow": ("training", "max.message.bytes", "500000", "1048588"),
    "training's future": ("training", "message.timestamp.after.max.ms", "1000", "3600000"),
    "quarantine is narrow": ("quarantine", "max.message.bytes", "500000", "1048588"),
}


@pytest.mark.parametrize(("role", "setting", "value", "remedy"), FAULTS.values(), ids=FAULTS)
async def test_a_topic_with_a_wrong_setting_is_refused(
    make_site: SiteFactory, role: str, setting: str, value: str, remedy: str
) -> None:
    # Checked: every one of them starts where `topic_problems` finds nothing.
    site = await make_site("guards", topics={role: {setting: value}})
    message = await refusal(site)
    assert message.splitlines() == [line for line in message.splitlines() if setting in line]
    assert f"topic {getattr(site.config.topics, role)}: {setting} is {value}" in message
    assert remedy in message


async def test_a_worker_whose_topics_are_wrong_exits_with_78(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    wrong = {
        "consent": {"cleanup.policy": "compact,delete"},
        "decisions": {"retention.ms": "604800000"},
        "training": {"max.message.bytes": "500000"},
    }
    site = await make_site("faults", topics=wrong)
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", "1")])
    worker = await start_worker(site)
    assert await worker.wait() == EXIT_CONFIG
    for role, settings in wrong.items():
        for setting in settings:
            assert f"{getattr(site.config.topics, role)}: {setting} is" in worker.errors()
    # It did not touch anything.
    assert (await site.lag())[0] == 1
    assert not (await site.seen()).decisions[0]


async def test_missing_topics_are_named_with_the_command_that_makes_them(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    site = await make_site("missing", create=False)
    worker = await start_worker(site)
    assert await worker.wait() == EXIT_CONFIG
    topics = site.config.topics
    for topic in (topics.content, topics.consent, topics.training, topics.decisions):
        assert topic in worker.errors()
    assert "consentgate topics create" in worker.errors()


async def test_what_topics_create_makes_is_accepted(make_site: SiteFactory) -> None:
    site = await make_site("created", create=False)
    command = ("-m", "consentgate", "topics", "create", "-c", str(site.path))
    exit_code, _, errors = await run_python(*command)
    assert exit_code == 0, errors
    async with working(site) as running:
        await running.ready()


async def test_settings_that_cannot_be_read_are_not_taken_for_right(make_site: SiteFactory) -> None:
    # Checked: finds no settings, and so nothing wrong, where `Cluster` passes over the refusal.
    site = await make_site("unread", create=False)
    async with connected(kafka_settings(site.config.kafka), timeout_seconds=10) as cluster:
        with pytest.raises(ConfigError, match="not a topic cannot be read"):
            # No broker tells the settings of a topic that cannot be, as if it were not allowed.
            await cluster.topic_configs(["not a topic"])


# The rights of the user.

CONSENT = {
    "cleanup.policy": "compact",
    "unclean.leader.election.enable": False,
    "delete.retention.ms": 86_400_000,
    "min.compaction.lag.ms": 0,
}


def declaring(site: Site, settings: Mapping[str, str | int | bool]) -> Site:
    """The same, with a configuration that says what the consent topic is like."""
    config = msgspec.structs.replace(site.config, declared={site.consent: dict(settings)})
    return dataclasses.replace(site, config=config)


async def test_a_topic_whose_settings_may_not_be_read_is_refused(make_site: SiteFactory) -> None:
    # Checked: starts where `Cluster` takes the refusal for settings as they must be.
    site = await make_site("hidden")
    await site.probe.hide_configs(site.consent)
    message = await refusal(site)
    assert message.startswith(f"topic {site.consent}: its settings may not be read: ")
    assert "DescribeConfigs" in message
    assert f"declared.{site.consent}" in message


async def test_what_is_declared_of_a_hidden_topic_is_taken_on_trust(make_site: SiteFactory) -> None:
    # Checked: silent where `Worker._start` does not look at `Layout.on_trust`.
    site = declaring(await make_site("declared"), CONSENT)
    await site.probe.hide_configs(site.consent)
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", "1"), post("ben", "1")])
    async with working(site) as running:
        (warned,) = [entry for entry in running.log if "on trust" in entry["event"]]
        assert (warned["topic"], warned["declared"]) == (site.consent, CONSENT)
        assert warned["log_level"] == "warning"
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 1, "no-consent-record": 1}


async def test_what_is_declared_of_a_hidden_topic_is_judged(make_site: SiteFactory) -> None:
    site = declaring(await make_site("judged"), {**CONSENT, "cleanup.policy": "delete"})
    await site.probe.hide_configs(site.consent)
    message = await refusal(site)
    # At once, not when the watch over what runs looks for the first time.
    assert message.startswith(f"topic {site.consent}: cleanup.policy is delete, but must be")


async def test_what_is_declared_does_not_outweigh_what_the_broker_tells(
    make_site: SiteFactory,
) -> None:
    # Checked: starts where `with_declared` prefers what is declared.
    topics = {"consent": {"cleanup.policy": "delete"}}
    site = declaring(await make_site("outweighed", topics=topics), CONSENT)
    message = await refusal(site)
    # At once, not when the watch over what runs looks for the first time.
    assert message.startswith(f"topic {site.consent}: cleanup.policy is delete, but must be")


async def test_an_unknown_key_is_refused_with_its_line_and_the_nearest_key(
    make_site: SiteFactory, start_worker: StartWorker
) -> None:
    site = await make_site("unknown", create=False)
    settings = yaml.safe_load(site.path.read_text()) | {"limits": {"max_dept": 32}}
    site.path.write_text(yaml.safe_dump(settings))
    lines = site.path.read_text().splitlines()
    worker = await start_worker(site)
    assert await worker.wait() == EXIT_CONFIG
    line = lines.index("  max_dept: 32") + 1
    assert f"{site.path}:{line}: limits.max_dept: unknown key" in worker.errors()
    assert "max_depth" in worker.errors()


@pytest.mark.parametrize("listens", [False, True], ids=["nobody", "silent"])
async def test_without_a_broker_the_worker_exits_with_69(
    make_site: SiteFactory, listens: bool
) -> None:
    # The constant is lowered, so that the test need not take a minute.
    # Checked: exits with another code where `Cluster.start` lets the client's error pass, and much
    # later where it does not bound the attempt.
    with socket.socket() as bound:
        # Nobody else can begin to listen there.
        bound.bind(("127.0.0.1", 0))
        if listens:
            bound.listen()
        port = bound.getsockname()[1]
        site = await make_site("no-broker", create=False)
        settings = yaml.safe_load(site.path.read_text())
        settings["kafka"]["bootstrap.servers"] = f"127.0.0.1:{port}"
        site.path.write_text(yaml.safe_dump(settings))
        code = (
            "import sys, consentgate.service.worker as worker\n"
            "worker.BROKER_SECONDS_MAX = 1.0\n"
            f"sys.argv = ['consentgate', 'run', '-c', {str(site.path)!r}]\n"
            "from consentgate.cli import main\n"
            "main()"
        )
        began = time.monotonic()
        exit_code, _, errors = await run_python("-c", code)
    assert exit_code == EXIT_UNAVAILABLE, errors
    assert f"127.0.0.1:{port}" in errors
    assert "kafka.bootstrap.servers" in errors
    assert 1 < time.monotonic() - began < 15
