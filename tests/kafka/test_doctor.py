"""What usually goes wrong, brought about on a real broker: the doctor finds just that."""

import asyncio
import dataclasses
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from consentgate.engines import equip
from consentgate.errors import ConfigError
from consentgate.kafka import sink
from consentgate.policies import load_policy
from consentgate.service.worker import Worker
from consentgate.tools import doctor as doctor_module
from consentgate.tools import group_checked
from consentgate.tools.doctor import Doctor
from consentgate.tools.findings import Finding, Severity
from harness import (
    DESCRIBE,
    READ,
    SPOILT_NAME,
    WRITE,
    Sent,
    Site,
    SiteFactory,
    clock_off_by,
    commit_by_hand,
    consent,
    meanwhile,
    post,
    run_python,
    spoil_header_names,
    until,
    working,
)

PEOPLE = [f"secret{number}" for number in range(24)]

EXIT_FOUND = 1
EXIT_UNAVAILABLE = 69

USUAL = {
    ("warning", "replicas", "all topics have one replica only"),
    ("warning", "clock", "this machine's is not behind"),
    ("warning", "clock", "not compared"),
}
"""What is to be said of every cluster of one broker where nothing is going on."""


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_checked, "STUCK_SECONDS", 0.3)
    monkeypatch.setattr(group_checked, "CLOCK_SECONDS", 0.3)


async def all_findings(site: Site, policy: str | None = None, sample: int = 1_000) -> list[Finding]:
    """Everything that the doctor says; never about whom."""
    enforced, _ = equip(site.config, load_policy(policy or site.config.policy))
    examination = Doctor(site.config, enforced)
    found = [finding async for finding in examination.look()]
    samples = await examination.sample(sample, lambda done, total: None)
    found += examination.judge(samples)
    assert not re.search(r"secret\d|What .* has to say", str(found)), "no ids and no payloads"
    assert all(finding.do for finding in found if finding.severity != Severity.OK)
    return found


async def findings(site: Site, policy: str | None = None, sample: int = 1_000) -> list[Finding]:
    """What is wrong, but for what is usual here."""
    return [
        finding
        for finding in await all_findings(site, policy, sample)
        if finding.severity != Severity.OK
        and not any(
            (finding.severity, finding.check) == (severity, check) and finding.what.startswith(what)
            for severity, check, what in USUAL
        )
    ]


async def the_finding(site: Site, policy: str | None = None) -> Finding:
    """The one thing that is wrong."""
    (found,) = await findings(site, policy)
    return found


async def refusal(site: Site) -> str:
    """The message with which a worker refuses to start."""
    worker = Worker(site.config, load_policy(site.config.policy))
    with pytest.raises(ConfigError) as refused:
        async with asyncio.timeout(10):
            await worker.run()
    return str(refused.value)


async def delete(site: Site, topic: str) -> None:
    """Delete a topic, and wait until the broker has forgotten it."""
    await site.probe.admin.delete_topics([topic])

    async def is_gone() -> bool:
        (found,) = await site.probe.admin.describe_topics([topic])
        return bool(found["error_code"])

    await until(is_gone, "the topic is gone")


async def fill(site: Site, people: Iterable[str] = PEOPLE) -> None:
    people = list(people)
    await site.feed.many(site.consent, map(consent, people))
    await site.feed.many(site.content, [post(person, "1") for person in people])


async def decide(site: Site) -> None:
    async with working(site):
        await site.decided()


# Nothing is wrong.


async def test_nothing_is_wrong_with_a_healthy_site(make_site: SiteFactory) -> None:
    site = await make_site("healthy", partitions=3)
    await fill(site)
    await decide(site)
    found = {finding.check: finding for finding in await all_findings(site)}
    assert await findings(site) == []
    assert found["partitioner"].what.endswith("24 keys in 3 partitions, as murmur2 puts them")
    assert "lag 0" in found["offsets"].what
    assert load_policy("opt-in").reference in found["policy"].what
    assert "every country in 24 sampled" in found["jurisdictions"].what
    page = (Path(__file__).parents[2] / "docs/doctor.md").read_text("utf-8")
    documented = re.findall(r"^\| `([a-z ]+)` \|", page, re.MULTILINE)
    # In the order of the page; only where something cannot be sampled is there a finding on that.
    assert [*found] == [check for check in documented if check != "sample"]


async def test_the_doctor_leaves_everything_as_it_was(make_site: SiteFactory) -> None:
    site = await make_site("untouched", partitions=2)
    await fill(site)
    names = msgspec.structs.astuple(site.config.topics)

    async def ends() -> list[object]:
        return [(await site.probe.ends(name, 1 if "decisions" in name else 2)) for name in names]

    before = await ends()
    assert await findings(site) == []
    assert await ends() == before
    assert await site.probe.offsets(site.config.group, site.content, range(2)) == {0: -1, 1: -1}


async def test_members_are_told_and_the_clocks_compared_while_a_worker_works(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_checked, "CLOCK_SECONDS", 10.0)
    site = await make_site("working", partitions=2)
    await fill(site)
    async with working(site) as running:
        await running.ready()

        async def append() -> None:
            await site.feed.one(site.consent, consent(PEOPLE[0]))
            await asyncio.sleep(0.05)

        async with meanwhile(append):
            found = {finding.check: finding for finding in await all_findings(site)}
    assert found["group"].what.endswith("is Stable: 1 member, 2 partitions")
    assert found["clock"].what == "this machine's and the broker's agree to a second"
    assert found["offsets"].severity == "ok"


async def test_the_command_prints_each_finding_and_exits_with_0_or_1(
    make_site: SiteFactory,
) -> None:
    site = await make_site("command")
    command = ("-m", "consentgate", "doctor", "-c", str(site.path))
    exit_code, out, errors = await run_python(*command, "--format", "json")
    *found, last = map(json.loads, out.splitlines())
    assert (exit_code, errors) == (0, "")
    assert last["summary"]["error"] == 0
    assert last["summary"]["warning"] == sum(f["severity"] == "warning" for f in found) > 0
    # One replica is a warning already.
    assert (await run_python(*command, "--strict"))[0] == EXIT_FOUND
    await delete(site, site.config.topics.retractions)
    exit_code, out, _ = await run_python(*command)
    assert exit_code == EXIT_FOUND
    assert f"error    topics: missing topics: {site.config.topics.retractions}\n" in out
    assert out.splitlines()[-1].startswith("1 error, ")


# Connections.


@pytest.mark.parametrize(
    ("changed", "what", "exit_code"),
    [
        ({"bootstrap.servers": "127.0.0.1:1"}, "nobody can be reached", EXIT_UNAVAILABLE),
        ({"security.protocol": "ssl"}, "lets nobody in by SSL", EXIT_UNAVAILABLE),
        (
            {"security.protocol": "sasl_plaintext", "sasl.mechanism": "PLAIN",
             "sasl.username": "a", "sasl.password": "hidden"},
            "is one without SASL",
            EXIT_FOUND,
        ),
    ],
    ids=["nobody", "no TLS", "no SASL"],
)  # fmt: skip
async def test_why_no_broker_lets_us_in(
    make_site: SiteFactory, changed: dict[str, str], what: str, exit_code: int
) -> None:
    site = await make_site("shut-out", create=False, kafka=changed)
    command = ("-m", "consentgate", "doctor", "-c", str(site.path))
    code, out, _ = await run_python(*command)
    assert (code, "hidden" in out) == (exit_code, False)
    finding, advice, summary = out.splitlines()
    assert finding.startswith("error    connection: ")
    assert what in finding
    assert "kafka." in advice
    assert summary == "1 error, 0 warnings, 0 ok"


async def test_one_server_of_several_that_is_away_is_a_warning(make_site: SiteFactory) -> None:
    site = await make_site("one-away")
    servers = f"127.0.0.1:1,{site.kafka.bootstrap_servers}"
    kafka = {**site.config.kafka, "bootstrap.servers": servers}
    site = configured(site, kafka=kafka)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("warning", "connection")
    assert "127.0.0.1:1" in found.what


def configured(site: Site, **sections: Any) -> Site:
    """The same site with other sections in the configuration."""
    config = msgspec.structs.replace(site.config, **sections)
    return dataclasses.replace(site, config=config)


# Topics.


async def test_a_missing_topic_is_named_as_a_start_names_it(make_site: SiteFactory) -> None:
    site = await make_site("missing")
    await delete(site, site.config.topics.quarantine)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "topics")
    assert found.what == f"missing topics: {site.config.topics.quarantine}"
    assert await refusal(site) == f"{found.what}. {found.do}"


@pytest.mark.parametrize(
    ("role", "setting", "value", "needed"),
    [
        ("consent", "cleanup.policy", "delete", "compact"),
        ("decisions", "retention.ms", "604800000", "-1"),
        ("training", "max.message.bytes", "500000", "1048588"),
    ],
)
async def test_a_wrong_setting_is_found_in_the_words_of_a_start(
    make_site: SiteFactory, role: str, setting: str, value: str, needed: str
) -> None:
    site = await make_site("settings", topics={role: {setting: value}})
    found = await the_finding(site)
    assert (found.severity, found.check, found.what) == ("error", "settings", await refusal(site))
    topic = getattr(site.config.topics, role)
    assert f"--entity-name {topic} --add-config {setting}={needed}" in str(found.do)


@pytest.mark.parametrize("setting", ["delete.retention.ms", "message.timestamp.type"])
async def test_settings_that_only_surprise_later_are_warnings(
    make_site: SiteFactory, setting: str
) -> None:
    value = {"delete.retention.ms": "60000", "message.timestamp.type": "CreateTime"}[setting]
    site = await make_site("weak", topics={"consent": {setting: value}})
    found = await findings(site)
    assert found
    assert {(f.severity, f.check) for f in found} == {("warning", "settings")}
    assert all(f"topic {site.consent}: {setting} " in f.what for f in found[-1:])


async def test_more_replicas_in_sync_than_there_are_is_an_error(make_site: SiteFactory) -> None:
    site = await make_site("replicas", topics={"training": {"min.insync.replicas": "2"}})
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "replicas")
    assert f"{site.config.topics.training}-0 has fewer replicas in sync" in found.what


async def test_partition_counts_that_do_not_fit_are_refused_or_told(make_site: SiteFactory) -> None:
    counts = {"partitions": 2, "consent_partitions": 3}
    site = await make_site("counts", **counts, consent={"scope": "partition"})
    found = await the_finding(site)
    assert (found.severity, found.check, found.what) == ("error", "partitions", await refusal(site))
    site = await make_site("counts", **counts)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("warning", "partitions")
    assert "scope global" in found.what
    site = await make_site("counts", **counts, consent={"scope": "global"})
    assert await findings(site) == []


# Rights.


@pytest.mark.parametrize("role", ["training", "decisions", "quarantine", "retractions"])
async def test_a_topic_that_may_not_be_written_is_found_without_writing(
    make_site: SiteFactory, role: str
) -> None:
    site = await make_site("read-only")
    topic = getattr(site.config.topics, role)
    await site.probe.deny(topic, WRITE)
    await until(lambda: is_told(site, "may not Write"), "the right is gone")
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "rights")
    assert found.what == f"topic {topic}: this user may not Write"
    assert f"--operation Write --topic {topic}" in str(found.do)


async def is_told(site: Site, what: str) -> bool:
    return any(what in finding.what for finding in await findings(site))


@pytest.mark.parametrize("role", ["content", "consent"])
async def test_a_topic_that_may_not_be_read_is_an_error_and_not_sampled(
    make_site: SiteFactory, role: str
) -> None:
    site = await make_site("unread")
    topic = getattr(site.config.topics, role)
    await site.probe.deny(topic, READ)
    await until(lambda: is_told(site, "may not Read"), "the right is gone")
    error, sample = await findings(site)
    assert (error.severity, error.check) == ("error", "rights")
    assert error.what == f"topic {topic}: this user may not Read"
    assert (sample.severity, sample.check) == ("warning", "sample")
    assert sample.what.startswith("not checked: this user lacks a right")
    assert topic in sample.what


async def test_a_topic_that_may_not_be_seen_is_not_taken_for_missing(
    make_site: SiteFactory,
) -> None:
    site = await make_site("unseen")
    topic = site.config.topics.retractions
    await site.probe.deny(topic, DESCRIBE)
    await until(lambda: is_told(site, "may not see"), "the right is gone")
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "topics")
    assert found.what == f"topic {topic}: this user may not see whether it is there"


async def test_settings_that_may_not_be_read_are_told_as_a_start_tells_them(
    make_site: SiteFactory,
) -> None:
    site = await make_site("hidden")
    await site.probe.hide_configs(site.consent)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "settings")
    message = await refusal(site)
    assert message == f"{found.what}: {str(found.do).replace('Grant', 'grant', 1)}"


async def test_what_is_declared_of_hidden_settings_is_a_warning(make_site: SiteFactory) -> None:
    site = await make_site("declared")
    await site.probe.hide_configs(site.consent)
    settings = {
        "cleanup.policy": "compact",
        "unclean.leader.election.enable": False,
        "delete.retention.ms": 86_400_000,
        "min.compaction.lag.ms": 0,
    }
    found = await the_finding(configured(site, declared={site.consent: settings}))
    assert (found.severity, found.check) == ("warning", "settings")
    assert "taken on trust" in found.what


# Transactions, offsets, policy and clock.


@pytest.mark.parametrize("role", ["content", "consent"])
async def test_a_transaction_that_stays_open_is_found(make_site: SiteFactory, role: str) -> None:
    site = await make_site("hanging")
    await fill(site)
    topic = getattr(site.config.topics, role)
    sent = consent(PEOPLE[0], "withdrawn") if role == "consent" else post(PEOPLE[0], "2")
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers,
        transactional_id=f"{site.config.group}-app",
    ) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, sent.value, sent.key)
        found = await the_finding(site)
        await producer.abort_transaction()
    assert (found.severity, found.check) == ("error", "transactions")
    hidden = f"{topic}-0: an open transaction hides what was appended from offset 24 on, up to 25"
    assert found.what.startswith(hidden)
    assert f"--topic {topic} --partition 0" in str(found.do)
    # There may be a withdrawal in it.
    assert "has to be appended again" in str(found.do)
    assert await findings(site) == []


async def test_an_offset_beyond_the_end_is_an_error(make_site: SiteFactory) -> None:
    site = await make_site("beyond")
    await commit_by_hand(site, 7)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "offsets")
    assert "ends at 0, before the committed offset 7" in found.what


async def test_an_offset_that_does_not_follow_the_ledger_is_an_error(
    make_site: SiteFactory,
) -> None:
    site = await make_site("moved")
    await fill(site)
    await decide(site)
    await commit_by_hand(site, 2)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "offsets")
    assert "the committed offset 2 does not follow the ledger" in found.what


async def test_offsets_that_expired_undecided_are_told(make_site: SiteFactory) -> None:
    site = await make_site("expired")
    await fill(site)
    await decide(site)
    await site.feed.many(site.content, [post(person, "2") for person in PEOPLE])
    place = TopicPartition(site.content, 0)
    await site.probe.admin.delete_records({place: RecordsToDelete(before_offset=30)})
    found = await the_finding(site)
    assert (found.severity, found.check) == ("warning", "offsets")
    assert found.what == f"{site.content}-0: offsets 24 to 29 expired before they were decided"


async def test_decisions_under_another_policy_are_told(make_site: SiteFactory) -> None:
    site = await make_site("skew")
    await fill(site)
    await decide(site)
    found = await the_finding(site, "linkedin")
    assert (found.severity, found.check) == ("warning", "policy")
    assert load_policy("opt-in").reference in found.what
    assert load_policy("linkedin").reference in found.what


@pytest.mark.parametrize("ahead_ms", [-5_000, 5_000], ids=["behind", "ahead"])
async def test_a_clock_that_is_wrong_is_an_error(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, ahead_ms: int
) -> None:
    monkeypatch.setattr(group_checked, "CLOCK_SECONDS", 10.0)
    site = await make_site("clock")

    wrong = clock_off_by(ahead_ms)

    for module in (sink, group_checked):
        monkeypatch.setattr(module, "read_clock", wrong)

    async def append() -> None:
        await site.feed.one(site.consent, consent(PEOPLE[0]))
        await asyncio.sleep(0.05)

    async with meanwhile(append):
        found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "clock")
    assert "this machine's clock and the broker's differ by" in found.what


async def test_a_clock_that_is_behind_is_found_by_what_lies_there(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = await make_site("behind")
    await fill(site)

    early = clock_off_by(-60_000)

    monkeypatch.setattr(sink, "read_clock", early)
    assert (await the_finding(site)).check == "clock"


# Samples.


def by_crc32(people: Iterable[str], partitions: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for person in people:
        found.setdefault(zlib.crc32(person.encode()) % partitions, []).append(person)
    return found


@pytest.mark.parametrize("role", ["content", "consent"])
async def test_keys_that_librdkafka_has_placed_are_found(make_site: SiteFactory, role: str) -> None:
    site = await make_site("crc32", partitions=4)
    topic = getattr(site.config.topics, role)
    if role == "consent":
        await site.feed.many(site.content, [post(person, "1") for person in PEOPLE])
    else:
        await site.feed.many(site.consent, map(consent, PEOPLE))
    for partition, people in by_crc32(PEOPLE, 4).items():
        records = [consent(p) if role == "consent" else post(p, "1") for p in people]
        await site.feed.many(topic, records, partition)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "partitioner")
    assert found.what.startswith(f"{topic}: ")
    assert "crc32 100.0 %" in found.what
    assert "partitioner=murmur2_random" in str(found.do)


async def test_in_global_scope_a_key_must_only_lie_in_one_partition(
    make_site: SiteFactory,
) -> None:
    site = await make_site("global", partitions=4, consent={"scope": "global"})
    for partition, people in by_crc32(PEOPLE, 4).items():
        await site.feed.many(site.consent, map(consent, people), partition)
    assert await findings(site) == []
    for partition in range(2):
        await site.feed.one(site.consent, consent("secret-twice"), partition)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "partitioner")
    assert "1 key of 26 lie in more than one partition" in found.what


@pytest.mark.parametrize(("broken", "severity"), [(3, "warning"), (40, "error")])
async def test_content_that_cannot_be_decoded_is_counted_with_an_example(
    make_site: SiteFactory, broken: int, severity: str
) -> None:
    site = await make_site("undecodable")
    await fill(site)
    bad = [Sent(PEOPLE[0].encode(), b"\x00\x00\x00\x00\x07secret1")] * broken
    await site.feed.many(site.content, bad)
    found = await the_finding(site)
    assert (found.severity, found.check) == (severity, "content records")
    assert f"undecodable {broken} (such as {site.content}-0@24)" in found.what
    assert f"{broken} begin like those of a schema registry" in str(found.do)


async def test_content_under_another_key_than_its_subject_is_told(make_site: SiteFactory) -> None:
    site = await make_site("keys")
    await site.feed.many(site.consent, map(consent, PEOPLE))
    posts = [Sent(b"thread", post(person, "1").value) for person in PEOPLE]
    await site.feed.many(site.content, posts)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("error", "keys")
    assert "24 of 24" in found.what
    assert "key_is_subject: false" in str(found.do)
    content = msgspec.structs.replace(site.config.content, key_is_subject=False)
    assert await findings(configured(site, content=content)) == []


async def test_consent_that_cannot_be_read_is_counted_by_cause(make_site: SiteFactory) -> None:
    site = await make_site("unreadable")
    await fill(site)
    await site.feed.many(
        site.consent,
        [
            Sent(PEOPLE[0].encode(), b"{"),
            Sent(PEOPLE[1].encode(), consent(PEOPLE[2]).value),
            consent(PEOPLE[3], "maybe"),
        ],
    )
    spoilt = Sent(b"secret9", consent("secret9").value, headers=[(SPOILT_NAME, b"x")])
    await site.feed.batch(site.consent, [spoilt], patch=spoil_header_names)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("warning", "consent records")
    assert "4 of 28 sampled cannot be read" in found.what
    for offset, cause in enumerate(("not-json", "key-is-not-subject", "unknown-choice", "headers")):
        assert f"{cause} 1 (such as {site.consent}-0@{24 + offset})" in found.what


async def test_countries_without_a_rule_are_counted(make_site: SiteFactory, tmp_path: Path) -> None:
    policy = tmp_path / "usa.yaml"
    rules = "[{jurisdictions: [US], basis: opt-in}]"
    policy.write_text(f"name: usa\npurpose: ai-training\nrules: {rules}\n")
    site = await make_site("coverage", policy=str(policy))
    await fill(site)
    await site.feed.many(
        site.consent,
        [consent(f"secret{n}-x", jurisdiction=c) for n, c in enumerate(["BR", "BR", "JP"])],
    )
    found = await the_finding(site)
    assert (found.severity, found.check) == ("warning", "jurisdictions")
    assert "usa has no rule now for BR 2, JP 1 of 27 sampled" in found.what
    assert await findings(site, "opt-in") != [found]


async def test_codes_that_are_no_countries_are_counted(make_site: SiteFactory) -> None:
    site = await make_site("codes")
    await fill(site)
    await site.feed.one(site.consent, consent("secret-uk", jurisdiction="UK"))
    found = await the_finding(site)
    assert (found.severity, found.check) == ("warning", "jurisdictions")
    assert "1 of 25 sampled consent records have no country" in found.what
    assert f"{site.consent}-0@24" in found.what


async def test_the_newest_records_are_sampled(make_site: SiteFactory) -> None:
    site = await make_site("newest")
    await site.feed.many(site.content, [Sent(person.encode(), b"{") for person in PEOPLE])
    await fill(site)
    found = {finding.check: finding for finding in await all_findings(site, sample=12)}
    assert found["content records"].what == "all of 12 sampled can be decoded"
    assert (await the_finding(site)).what.startswith(f"{site.content}: 24 of 48 sampled")


async def test_offsets_without_a_record_are_no_samples(make_site: SiteFactory) -> None:
    site = await make_site("gaps", partitions=2)
    await fill(site)
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers,
        transactional_id=f"{site.config.group}-app",
    ) as producer:
        for _ in range(10):
            await producer.begin_transaction()
            for partition in range(2):
                await producer.send_and_wait(site.content, b"{", b"a", partition=partition)
            await producer.abort_transaction()
    # What is asked for of each partition lies behind twenty offsets without a record.
    found = {finding.check: finding for finding in await all_findings(site, sample=12)}
    assert found["content records"].what == "all of 12 sampled can be decoded"


# Whatever happens, the others are checked.


async def test_a_check_that_breaks_is_a_finding(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("secret1")

    async def silent(*_: object) -> None:
        await asyncio.sleep(60)

    site = await make_site("broken")
    await fill(site)
    monkeypatch.setattr(group_checked, "survey_group", broken)
    found = await the_finding(site)
    assert (found.severity, found.check) == ("warning", "group")
    assert found.what == "not checked: RuntimeError"
    monkeypatch.setattr(doctor_module, "CHECK_SECONDS_MAX", 3.0)
    monkeypatch.setattr(group_checked, "survey_group", silent)
    assert "no answer within" in (await the_finding(site)).what
