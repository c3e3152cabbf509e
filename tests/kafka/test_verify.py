"""The verifier passes what the enforcer did, and finds what somebody else did."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from consentgate.config import Config
from consentgate.core.verify import Verification
from consentgate.errors import ConfigError
from consentgate.kafka.reader import read_topic
from consentgate.kafka.settings import kafka_settings
from consentgate.policies import load_policy
from consentgate.signing import load_signature_check
from consentgate.tools.broker import EmbeddedKafka
from consentgate.tools.receipt import make_receipt, receipt_lines
from consentgate.tools.verify import verify
from harness import (
    DEADLINE_SECONDS,
    SPOILT_NAME,
    Feed,
    Probe,
    Sent,
    Site,
    SiteFactory,
    commit_by_hand,
    consent,
    post,
    spoil_header_names,
    until,
    working,
)

Edit = Callable[[int, bytes], bytes | None]
"""Number and value of a record to its new value; None leaves the record out."""


def unseen(done: int, total: int) -> None:
    """Progress that nobody looks at."""


async def verified(config: Config) -> Verification:
    return await verify(config, [load_policy(config.policy)], unseen)


@pytest.fixture(scope="module")
async def site(
    shared_kafka: EmbeddedKafka,
    probe: Probe,
    feed: Feed,
    tmp_path_factory: pytest.TempPathFactory,
) -> Site:
    """Some people's posts, withdrawals among them, and all kinds of input."""
    make_site = SiteFactory(shared_kafka, probe, feed, tmp_path_factory.mktemp("verified"))
    site = await make_site("verified", partitions=2)
    people = [f"p{number}" for number in range(50)]
    await site.feed.many(site.consent, [consent(person) for person in people])
    posts = [post(person, f"e{n}") for n in range(20) for person in [*people, "stranger"]]
    broken = [Sent(b"p1", None), Sent(b"p2", b"{"), Sent(b"p3", b"{}"), Sent(b"p4", b'"\xff"')]
    await site.feed.many(site.content, [*posts, *broken, *posts])
    async with working(site):
        await site.decided()
        await site.feed.many(site.consent, [consent(p, "withdrawn") for p in people[:10]])
        await site.feed.many(site.content, posts)
        await site.decided()

        async def all_covered() -> bool:
            return (
                not (await verified(site.config)).violations
                and len((await site.seen()).chains) == 2
            )

        await until(all_covered, "the withdrawals are covered")
    return site


async def edited(site: Site, role: str, edit: Edit, partitions: int | None = None) -> Config:
    """A configuration that names a copy of one topic in which something was edited.

    The copy can have more partitions than the topic.
    """
    topic = getattr(site.config.topics, role)
    name = f"{topic}-{uuid.uuid4().hex[:4]}"
    settings = kafka_settings(site.config.kafka)
    counts = 1 if role == "decisions" else site.partitions
    configs = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
    if role == "decisions":
        configs["message.timestamp.type"] = "LogAppendTime"
    new = NewTopic(name, partitions or counts, 1, topic_configs=configs)
    await site.probe.admin.create_topics([new])

    async def described() -> bool:
        (found,) = await site.probe.admin.describe_topics([name])
        return not found["error_code"]

    await until(described, "the copy is known")
    number = 0
    kept: dict[int, list[Sent]] = {}
    async for partition, record in read_topic(settings, topic, counts):
        value = edit(number, record.value)
        number += 1
        if value is not None:
            sent = Sent(record.key, value, record.timestamp, record.headers)
            kept.setdefault(partition, []).append(sent)
    for partition, those in kept.items():
        await site.feed.many(name, those, partition)
    topics = msgspec.structs.replace(site.config.topics, **{role: name})
    return msgspec.structs.replace(site.config, topics=topics)


def findings(verification: Verification) -> dict[str, list[str]]:
    return {name: t.findings for name, t in verification.tallies.items() if t.violations}


async def test_what_the_enforcer_did_is_passed(site: Site) -> None:
    verification = await verified(site.config)
    assert findings(verification) == {}
    tallies = verification.tallies
    assert tallies["S1"].checked == tallies["S7"].checked == 3 * 20 * 51 + 4
    assert tallies["S3"].checked == 2 * 20 * 50 + 20 * 40
    assert tallies["S6"].checked == 10
    assert tallies["S4"].checked > 0


async def test_a_record_that_was_added_is_found(site: Site) -> None:
    # Withdrawn before, forwarded by nobody, and with headers as if it had been.
    async for partition, record in read_topic(  # noqa: B007
        kafka_settings(site.config.kafka), site.config.topics.training, 2
    ):
        headers = record.headers
    config = await edited(site, "training", lambda number, value: value)
    forged = Sent(b"p0", b"{}", None, headers)
    offset = await site.feed.one(config.topics.training, forged, partition)
    found = findings(await verified(config))
    place = f"{config.topics.training}-{partition}@{offset}: "
    assert all(finding.startswith(place) for those in found.values() for finding in those)
    assert "S7" in found


async def test_a_record_without_a_source_is_found(site: Site) -> None:
    config = await edited(site, "training", lambda number, value: value)
    offset = await site.feed.one(config.topics.training, Sent(b"p0", b"{}"), 1)
    found = findings(await verified(config))
    assert found["S7"][0].startswith(f"{config.topics.training}-1@{offset}: ")


def claiming(source: str) -> Sent:
    """A record that nobody forwarded."""
    return Sent(b"p0", b"{}", None, [("consentgate.source", source.encode())])


async def test_a_record_that_claims_a_place_whose_outputs_go_elsewhere_is_found(
    site: Site,
) -> None:
    # Each chain reads the partition of its own outputs, and so nobody saw these.
    content = site.config.topics.content
    sources = [f"{content}-0@0", f"{content}-2@0", f"{content}-01@0", f"{content}-1@x"]
    config = await edited(site, "training", lambda number, value: value)
    topic = config.topics.training
    offsets = [await site.feed.one(topic, claiming(source), 1) for source in sources]
    assert findings(await verified(config)) == {
        "S7": [
            f"{topic}-1@{offset}: with a source that does not go there, "
            "but no ledger entry accounts for it"
            for offset in offsets
        ]
    }


async def test_a_record_where_no_chain_writes_is_found(site: Site) -> None:
    config = await edited(site, "training", lambda number, value: value, partitions=4)
    topic = config.topics.training
    forged = claiming(f"{config.topics.content}-1@0")
    offset = await site.feed.one(topic, forged, 3)
    (finding,) = findings(await verified(config))["S7"]
    assert finding.startswith(f"{topic}-3@{offset}: ")


async def test_a_record_that_claims_another_topic_is_not_passed_in_silence(site: Site) -> None:
    # Several groups may share a topic; whose chains these are, nobody knows here.
    config = await edited(site, "training", lambda number, value: value)
    await site.feed.one(config.topics.training, claiming("elsewhere-0@0"), 1)
    verification = await verified(config)
    assert findings(verification) == {}
    assert verification.tallies["S7"].unchecked == {"outputs that name another content topic": 1}


async def test_a_ledger_entry_that_was_changed_is_found(site: Site) -> None:
    changed: list[int] = []

    def turn_a_refusal(number: int, value: bytes) -> bytes:
        entry = json.loads(value)
        if "stranger" not in value.decode() and not changed and entry["counts"].get("*"):
            entry["counts"]["*"]["opted-in"] += 1
            changed.append(number)
        return json.dumps(entry, separators=(",", ":")).encode()

    config = await edited(site, "decisions", turn_a_refusal)
    found = findings(await verified(config))
    assert f"{config.topics.decisions}-0@{changed[0]}: " in found["S7"][0]
    assert "hash" in found["S7"][0]


async def test_a_ledger_entry_that_was_left_out_is_found(site: Site) -> None:
    config = await edited(site, "decisions", lambda n, value: None if n == 3 else value)
    assert "S7" in findings(await verified(config))


def garble(number: int, replacement: Callable[[bytes], bytes]) -> Edit:
    """Replace the value of one record."""
    return lambda n, value: replacement(value) if n == number else value


async def test_a_ledger_entry_that_nobody_can_read_is_found(site: Site) -> None:
    # Checked: ends with an error of its own where `_ledger_record` lets the decoder's pass.
    for broken in (lambda value: b"{", lambda value: b'{"group": 1}', no_codes, foreign_consent):
        config = await edited(site, "decisions", garble(3, broken))
        found = findings(await verified(config))
        assert f"{config.topics.decisions}-0@3: there should be a ledger entry" in found["S7"][0]


def no_codes(value: bytes) -> bytes:
    """The entry with outcomes that nobody can unpack."""
    entry = json.loads(value)
    entry["outcomes"]["codes"] = "bm90IHppcHBlZA=="
    return json.dumps(entry).encode()


def foreign_consent(value: bytes) -> bytes:
    """The entry with a frontier of a consent partition that is not the chain's."""
    entry = json.loads(value)
    entry["consent"]["9"] = 1
    return json.dumps(entry).encode()


async def test_a_retraction_that_nobody_can_read_is_as_good_as_left_out(site: Site) -> None:
    # Checked: ends with an error of its own where `_before` lets the decoder's pass.
    for broken in (lambda value: b"{", lambda value: b"[]", lambda value: b'{"before": "x@y"}'):
        config = await edited(site, "retractions", garble(4, broken))
        assert list(findings(await verified(config))) == ["S6"]


async def test_the_progress_ends_at_the_number_of_offsets(site: Site) -> None:
    seen: list[tuple[int, int]] = []
    policy = load_policy(site.config.policy)
    await verify(site.config, [policy], lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (await site.appended(), await site.appended())


async def test_a_retraction_that_was_left_out_is_found(site: Site) -> None:
    dropped: list[Any] = []

    def drop(number: int, value: bytes) -> bytes | None:
        if number == 4:
            dropped.append(msgspec.json.decode(value)["consent"])
            return None
        return value

    config = await edited(site, "retractions", drop)
    found = findings(await verified(config))
    assert list(found) == ["S6"]
    (finding,) = found["S6"]
    assert dropped[0] in finding


async def test_a_policy_that_is_not_given_is_not_passed(site: Site) -> None:
    verification = await verify(site.config, [load_policy("meta")], lambda done, total: None)
    assert verification.violations == 0
    assert verification.tallies["S1"].checked == 0
    assert verification.tallies["S1"].unchecked.total() == 3 * 20 * 51 + 4


async def test_policies_of_several_purposes_are_refused(site: Site) -> None:
    # A person's choice for one of them would be taken for that of the other.
    policies = [load_policy("meta"), replace(load_policy("linkedin"), purpose="advertising")]
    with pytest.raises(ConfigError, match="advertising, ai-training"):
        await verify(site.config, policies, lambda done, total: None)


@pytest.fixture
async def short_lived(make_site: SiteFactory) -> Site:
    """A few posts of two people, and a withdrawal between them."""
    site = await make_site("expired")
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    async with working(site):
        for choice in ("withdrawn", "granted"):
            await site.feed.many(site.content, [post("anna", "1"), post("ben", "1")])
            await site.decided()
            await site.feed.many(site.consent, [consent("anna", choice)])
        await site.feed.many(site.content, [post("anna", "2"), Sent(b"ben", b"{")])
        await site.decided()
    assert (await site.check()).reasons() == {"opted-in": 4, "withdrawn": 1, "undecodable": 1}
    return site


async def test_content_before_the_first_entry_is_not_passed_in_silence(
    make_site: SiteFactory,
) -> None:
    # A group goes on from an offset that somebody else has set, and accounts for nothing before.
    site = await make_site("midst")
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", str(number)) for number in range(5)])
    await commit_by_hand(site, 3)
    async with working(site):
        await site.decided()
    verification = await verified(site.config)
    assert findings(verification) == {}
    assert verification.tallies["S7"].unchecked == {"content before the first ledger entry": 3}


async def delete_below(site: Site, role: str, offset: int) -> None:
    """What retention does."""
    place = TopicPartition(getattr(site.config.topics, role), 0)
    await site.probe.admin.delete_records({place: RecordsToDelete(before_offset=offset)})


async def test_expired_content_is_not_checked_and_not_passed(short_lived: Site) -> None:
    # Checked: offsets count as missing where `_ChainWalk._content` does not ask where it begins.
    await delete_below(short_lived, "content", 1)
    verification = await verified(short_lived.config)
    assert findings(verification) == {}
    assert verification.tallies["S1"].unchecked == {"content has expired": 2}
    assert verification.tallies["S1"].checked == 4


async def test_expired_training_records_are_not_checked_and_not_passed(short_lived: Site) -> None:
    # Checked: they count as missing without `ChainVerifier.expired`.
    training = [r async for _, r in read_training(short_lived)]
    await delete_below(short_lived, "training", training[1].offset)
    verification = await verified(short_lived.config)
    assert findings(verification) == {}
    assert verification.tallies["S7"].unchecked == {"forwarded records have expired": 1}
    await delete_below(short_lived, "training", training[-1].offset + 1)
    quarantine = (await short_lived.probe.ends(short_lived.config.topics.quarantine, 1)).high
    await delete_below(short_lived, "quarantine", quarantine[0])
    verification = await verified(short_lived.config)
    assert findings(verification) == {}
    assert verification.tallies["S7"].unchecked == {
        "forwarded records have expired": 4,
        "quarantined records have expired": 1,
    }


def read_training(site: Site) -> AsyncIterator[tuple[int, Any]]:
    return read_topic(kafka_settings(site.config.kafka), site.config.topics.training, 1)


async def test_compacted_consent_is_not_checked_and_not_passed(short_lived: Site) -> None:
    # Checked: wrong decisions are reported where `ChainVerifier` does not put doubts off until a
    # later record of the person, or the end, explains them.
    settings, topic = kafka_settings(short_lived.config.kafka), short_lived.consent
    quickly = {
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "delete.retention.ms": "1",
    }
    configs = {"cleanup.policy": "compact", "unclean.leader.election.enable": "false", **quickly}
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs)
    await short_lived.probe.admin.alter_configs([resource])
    await short_lived.feed.one(topic, Sent(b"ben", None))

    async def is_compacted() -> bool:
        # The cleaner works on what is no longer being appended to.
        await short_lived.feed.one(topic, consent("cleo"))
        await asyncio.sleep(0.2)
        left = [r async for _, r in read_topic(settings, topic, 1) if r.key != b"cleo"]
        return [(r.offset, r.key) for r in left] == [(3, b"anna")]

    await until(is_compacted, "of Anna only the last record is left, of Ben none")
    verification = await verified(short_lived.config)
    assert findings(verification) == {}
    # Two posts of hers, three of his.
    assert verification.tallies["S1"].unchecked == {"consent history is compacted": 5}
    assert "consent offsets that hold no record: compacted, or a marker" in (
        verification.tallies["S6"].unchecked
    )


async def test_a_receipt_says_when_a_withdrawal_took_effect_and_what_it_took_back(
    site: Site,
) -> None:
    receipt = await make_receipt(site.config, "p3", unseen)
    granted, withdrawn = receipt.changes
    assert [effect.retraction for effect in granted.effects] == [None]
    (effect,) = withdrawn.effects
    assert effect.effect_ms >= 0
    assert effect.retraction is not None
    assert effect.entry.startswith(f"{site.config.topics.decisions}-0@")
    assert len(receipt.forwarded) == 40
    assert {forwarded.retracted_by for forwarded in receipt.forwarded} == {effect.retraction}
    text = "\n".join(receipt_lines(receipt))
    assert effect.hash[:12] in text
    assert (await make_receipt(site.config, "nobody", unseen)).changes == []


async def test_who_did_not_withdraw_is_not_retracted(site: Site) -> None:
    receipt = await make_receipt(site.config, "p49", unseen)
    assert len(receipt.forwarded) == 60
    assert {forwarded.retracted_by for forwarded in receipt.forwarded} == {None}


async def test_a_ledger_can_be_signed(make_site: SiteFactory, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    private = tmp_path / "private.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    publics = []
    for number, each in enumerate((key, Ed25519PrivateKey.generate())):
        publics.append(tmp_path / f"public-{number}.pem")
        public = each.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        publics[-1].write_bytes(public)
    site = await make_site("signed", keys={"signing": str(private)})
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", "1")])
    async with working(site):
        await site.decided()

    policies = [load_policy(site.config.policy)]
    ours, other = [
        await verify(
            site.config, policies, lambda done, total: None, load_signature_check(str(public))
        )
        for public in publics
    ]
    assert findings(ours) == {}
    assert "not signed" in findings(other)["S7"][0]
    assert (await verified(site.config)).tallies["S7"].unchecked.total() > 0


@pytest.mark.parametrize("role", ["training", "quarantine"])
@pytest.mark.parametrize("source_offset", [0, 10**6])
async def test_an_output_of_an_offset_that_has_its_outcome_or_none_is_found(
    short_lived: Site, role: str, source_offset: int
) -> None:
    # Behind the last entry, with the place of one long before it, or of one that never was.
    config = short_lived.config
    topic, source = getattr(config.topics, role), f"{config.topics.content}-0@{source_offset}"
    places = {"topic": config.topics.content, "partition": "0", "offset": str(source_offset)}
    headers = [(f"__connect.errors.{name}", text.encode()) for name, text in places.items()]
    headers.append(("consentgate.source", source.encode()))
    offset = await short_lived.feed.one(topic, Sent(b"anna", b"{}", None, headers))
    found = findings(await verified(config))
    assert list(found) == ["S7"]
    (finding,) = found["S7"]
    assert finding.startswith(f"{topic}-0@{offset}: ")
    assert finding.endswith("no ledger entry accounts for it")


async def test_what_the_client_cannot_read_is_unreadable_and_not_missing(
    make_site: SiteFactory,
) -> None:
    # Checked: something is found where `_apply` or `_content` passes it over.
    site, spoilt = await make_site("spoilt"), [(SPOILT_NAME, b"")]
    await site.feed.many(site.consent, [consent("anna"), consent("ben")])
    broken = consent("anna")._replace(headers=spoilt)
    await site.feed.batch(site.consent, [broken], 0, spoil_header_names)
    broken = post("ben", "2")._replace(headers=spoilt)
    await site.feed.many(site.content, [post("anna", "1"), post("ben", "1")])
    await site.feed.batch(site.content, [broken], 0, spoil_header_names)
    async with working(site):
        await site.decided()
    verification = await verified(site.config)
    assert findings(verification) == {}
    assert verification.tallies["S1"].checked == 3
    assert verification.tallies["S3"].checked == 1


@asynccontextmanager
async def open_transaction(site: Site, topic: str) -> AsyncIterator[AIOKafkaProducer]:
    """A transaction of somebody else's, with a record in the topic's first partition."""
    async with AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers, transactional_id=f"other-{topic}"
    ) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"", b"somebody else", partition=0)
        yield producer


async def still_waits(task: "asyncio.Task[Verification]") -> bool:
    """Whether the verification has not ended within a second."""
    done, _ = await asyncio.wait([task], timeout=1.0)
    return not done


async def test_what_is_hidden_and_what_comes_while_it_reads_is_waited_for(
    make_site: SiteFactory,
) -> None:
    # Checked: it does not wait where `run` does not await a stable end of the outputs; and finds
    # surplus ones where `_next_offset` does not see the later entries, or not those hidden then.
    site = await make_site("hidden")
    topics = site.config.topics
    await site.feed.many(site.consent, [consent("anna")])
    async with (
        working(site),
        open_transaction(site, topics.retractions) as hides_outputs,
        open_transaction(site, topics.decisions) as hides_entries,
    ):
        await hides_entries.abort_transaction()
        await site.feed.many(site.content, [post("anna", "1")])
        await site.decided()
        verifying = asyncio.create_task(verified(site.config))
        assert await still_waits(verifying)
        await hides_entries.begin_transaction()
        await hides_entries.send_and_wait(topics.decisions, b"", b"somebody else", partition=0)
        await site.feed.many(site.content, [post("anna", "2")])
        await site.decided()
        await hides_outputs.abort_transaction()
        assert await still_waits(verifying)
        await hides_entries.abort_transaction()
        async with asyncio.timeout(DEADLINE_SECONDS):
            verification = await verifying
    assert findings(verification) == {}
    assert verification.tallies["S3"].checked == 1


async def test_each_partition_is_held_against_its_own_entries(make_site: SiteFactory) -> None:
    site, people = await make_site("chains", partitions=2), ["anna", "ben", "cleo", "dora"]
    await site.feed.many(site.consent, map(consent, people))
    await site.feed.many(site.content, [post(person, "1") for person in people])
    async with working(site):
        await site.decided()
    assert all((await site.probe.ends(site.content, 2)).high.values())
    verification = await verified(site.config)
    assert findings(verification) == {}
    assert verification.tallies["S3"].checked == len(people)
