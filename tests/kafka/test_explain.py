"""Records of real topics are explained as they were decided, whatever has come since."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from consentgate.core.model import Reason
from consentgate.errors import EXIT_FOUND, EXIT_USAGE, ConfigError, NoSuchRecord
from consentgate.kafka import ledger
from consentgate.kafka.reader import read_topic
from consentgate.kafka.settings import kafka_settings
from consentgate.policies import load_policy
from consentgate.tools.broker import EmbeddedKafka
from consentgate.tools.diff import Side, compare_topics
from consentgate.tools.explain import (
    Answer,
    Place,
    Question,
    answer_json,
    answer_lines,
    explain_record,
)
from harness import (
    SPOILT_NAME,
    Feed,
    Probe,
    Sent,
    Site,
    SiteFactory,
    consent,
    post,
    run_python,
    spoil_header_names,
    until,
    working,
)

OPT_OUT = "{name: free, purpose: ai-training, rules: [{jurisdictions: ['*'], basis: opt-out}]}"


async def explained(
    site: Site, offset: int, *, partition: int = 0, policy: str = "", now_ms: int | None = None
) -> Answer:
    name = policy or site.config.policy
    question = Question(site.config, load_policy(name), name, now_ms)
    place = Place(site.content, partition, offset)
    return await explain_record(question, place, lambda done, total: None)


@pytest.fixture(scope="module")
async def story(
    shared_kafka: EmbeddedKafka,
    probe: Probe,
    feed: Feed,
    tmp_path_factory: pytest.TempPathFactory,
) -> Site:
    """Posts that were decided, a change of everybody's mind after that, and one post more."""
    site = await SiteFactory(shared_kafka, probe, feed, tmp_path_factory.mktemp("told"))("told")
    await feed.many(site.consent, [consent("anna"), consent("ben")])
    await feed.many(
        site.content, [post("anna", "1"), post("ben", "1"), Sent(b"ben", b"{"), post("cleo", "1")]
    )
    async with working(site):
        await site.decided()
        await feed.one(site.consent, consent("ben", "withdrawn"))
        await feed.one(site.content, post("ben", "2"))
        await site.decided()
    await feed.many(site.consent, [consent("anna", "objected"), consent("ben")])
    await feed.one(site.content, post("anna", "2"))
    return site


async def test_a_forwarded_record_is_explained_by_the_state_that_was_seen(story: Site) -> None:
    # Checked: says `objected` where the table is not cut off at the entry's frontier.
    answer = await explained(story, 0)
    assert answer.explanation.decision.reason is Reason.OPTED_IN
    assert answer.consent == (f"{story.consent}-0@0",)
    assert answer.recorded is not None
    assert answer.recorded.reason is Reason.OPTED_IN
    assert answer.explanation.now_ms == answer.recorded.decided_at_ms
    assert answer.recorded.entry.startswith(f"{story.config.topics.decisions}-0@")
    assert answer.notes == (
        f"the person's consent record has changed since, at {story.consent}-0@3",
    )
    assert answer.explanation.unmet == ()


async def test_a_withheld_record_is_explained_by_the_state_that_was_seen(story: Site) -> None:
    answer = await explained(story, 4)
    assert answer.explanation.decision.reason is Reason.WITHDRAWN
    assert answer.consent == (f"{story.consent}-0@2",)
    assert answer.explanation.remedies == ("the person would have to grant ai-training",)
    assert answer.notes == (
        f"the person's consent record has changed since, at {story.consent}-0@4",
    )


async def test_a_quarantined_record_and_a_stranger_s_are_explained(story: Site) -> None:
    broken = await explained(story, 2)
    assert broken.explanation.decision.reason is Reason.UNDECODABLE
    assert [c.name for c in broken.explanation.unmet] == ["content"]
    strange = await explained(story, 3)
    assert strange.explanation.decision.reason is Reason.NO_CONSENT_RECORD
    assert (strange.consent, strange.notes) == ((), ())


async def test_a_record_that_is_not_decided_is_explained_as_of_now(story: Site) -> None:
    answer = await explained(story, 5)
    assert answer.explanation.decision.reason is Reason.OBJECTED
    assert answer.recorded is None
    assert answer.consent == (f"{story.consent}-0@3",)
    (note,) = answer.notes
    assert "not decided yet" in note


async def test_another_policy_and_another_moment_are_told_from_what_was(story: Site) -> None:
    # Checked: says nothing where `_ledger_notes` does not compare the references.
    other = await explained(story, 0, policy="linkedin")
    assert other.explanation.decision.reason is Reason.NOT_OPTED_OUT
    assert any(note.startswith("it was decided under opt-in@") for note in other.notes)
    early = await explained(story, 0, now_ms=1)
    assert early.explanation.now_ms == 1
    assert early.explanation.decision.reason is Reason.OPTED_IN
    assert any("as --now says" in note for note in early.notes)


async def test_the_command_prints_places_and_neither_subject_nor_payload(story: Site) -> None:
    command = ("-m", "consentgate", "explain", "-c", str(story.path), f"{story.content}-0@0")
    exit_code, text, _ = await run_python(*command)
    assert exit_code == 0
    assert text.startswith(f"{story.content}-0@0: forward: opted-in\n")
    exit_code, document, _ = await run_python(*command, "--format", "json")
    assert exit_code == 0
    answer = await explained(story, 0)
    expected = answer_json(answer)
    expected["rule"]["place"] = json.loads(document)["rule"]["place"]
    assert json.loads(document) == json.loads(json.dumps(expected))
    for output in (text, document, "\n".join(answer_lines(answer))):
        assert "anna" not in output
        assert "has to say" not in output


async def test_what_is_not_there_is_told_as_that(story: Site) -> None:
    for place, what in [
        (Place(story.content, 0, 6), "not appended yet, the partition ends at 6"),
        (Place(story.content, 1, 0), "the topic has the partitions 0 to 0"),
        (Place(story.config.topics.training, 0, 0), "only records of the content topic"),
    ]:
        question = Question(story.config, load_policy("opt-in"), "opt-in")
        with pytest.raises(NoSuchRecord, match=what) as refused:
            await explain_record(question, place, lambda done, total: None)
        assert refused.value.exit_code == EXIT_USAGE


async def test_offsets_without_a_record_are_told_as_that(make_site: SiteFactory) -> None:
    site = await make_site("markers")
    producer = AIOKafkaProducer(
        bootstrap_servers=site.kafka.bootstrap_servers, transactional_id=f"{site.config.group}-app"
    )
    async with producer:
        place = {"topic": site.content, "partition": 0}
        async with producer.transaction():
            await producer.send_and_wait(key=b"a", value=b"{}", **place)
        await producer.begin_transaction()
        await producer.send_and_wait(key=b"a", value=b"{}", **place)
        await producer.abort_transaction()
        await producer.begin_transaction()
        await producer.send_and_wait(key=b"a", value=b"{}", **place)
        for offset in (1, 2, 3):
            with pytest.raises(NoSuchRecord, match="there is no record at this offset"):
                await explained(site, offset)
        with pytest.raises(NoSuchRecord, match="not committed yet: from 4 on"):
            await explained(site, 4)
        await producer.commit_transaction()
    assert (await explained(site, 4)).explanation.unmet
    first = {TopicPartition(site.content, 0): RecordsToDelete(before_offset=1)}
    await site.probe.admin.delete_records(first)
    with pytest.raises(NoSuchRecord, match="the partition begins at 1"):
        await explained(site, 0)


async def test_a_record_that_the_client_cannot_read_is_explained(make_site: SiteFactory) -> None:
    site = await make_site("unreadable")
    spoilt = Sent(b"anna", b"{}", None, [(SPOILT_NAME, b"x")])
    await site.feed.batch(site.content, [spoilt], patch=spoil_header_names)
    async with working(site):
        await site.decided()
    answer = await explained(site, 0)
    assert answer.recorded is not None
    assert answer.explanation.decision.reason is answer.recorded.reason is Reason.UNDECODABLE
    assert [c.name for c in answer.explanation.unmet] == ["headers"]


async def test_a_state_that_compaction_has_removed_is_missed(make_site: SiteFactory) -> None:
    # Checked: says that there never was a consent record where `_Seen.notes` does not ask for it.
    quickly = {"segment.ms": "100", "min.cleanable.dirty.ratio": "0.001"}
    site = await make_site("compacted", topics={"consent": quickly})
    await site.feed.one(site.consent, consent("anna"))
    await site.feed.many(site.content, [post("anna", "1"), post("stranger", "1")])
    async with working(site):
        await site.decided()
    await site.feed.one(site.consent, consent("anna", "withdrawn"))

    async def is_compacted() -> bool:
        # The cleaner works on what is no longer being appended to.
        await site.feed.one(site.consent, consent("ben"))
        await asyncio.sleep(0.2)
        settings = kafka_settings(site.config.kafka)
        left = [r.offset async for _, r in read_topic(settings, site.consent, 1)]
        return 0 not in left

    await until(is_compacted, "the grant is gone", 60)
    answer = await explained(site, 0)
    assert answer.recorded is not None
    assert answer.recorded.reason is Reason.OPTED_IN
    assert any("does not hold any more: compaction" in note for note in answer.notes)
    assert answer_lines(answer)[1].startswith("note: ")
    assert (await explained(site, 1)).notes == ()


@pytest.mark.parametrize("scope", ["partition", "global"])
async def test_every_record_has_its_entry_however_long_the_ledger_is(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    # Checked: finds none where the halving goes the other way.
    site = await make_site("long", partitions=2, consent={"scope": scope})
    people = [f"m{number}" for number in range(6)]
    await site.feed.many(site.consent, [consent(p) for p in people[:3]])
    async with working(site):
        for number in range(6):
            await site.feed.many(site.content, [post(p, str(number)) for p in people])
            await site.decided()
    seen = await site.seen()
    assert sum(map(len, seen.chains.values())) > 10
    monkeypatch.setattr(ledger, "ENTRIES_READ_MAX", 2)
    for partition, ends in (await site.probe.ends(site.content, 2)).high.items():
        for offset in range(ends):
            answer = await explained(site, offset, partition=partition)
            assert answer.recorded is not None
            reason = answer.explanation.decision.reason
            assert answer.recorded.reason is reason
            assert reason == seen.reason_of(partition, offset)
            assert answer.notes == ()


async def test_a_changed_ledger_is_not_believed(make_site: SiteFactory) -> None:
    site = await make_site("forged")
    await site.feed.many(site.content, [post("anna", "1")])
    async with working(site):
        await site.decided()
    topic = site.config.topics.decisions
    records = [r async for _, r in read_topic(kafka_settings(site.config.kafka), topic, 1)]
    forged = json.loads(records[-1].value)
    forged["source"].update(first=1, last=1)
    await site.feed.one(site.content, post("anna", "2"))
    await site.feed.one(topic, Sent(records[-1].key, json.dumps(forged).encode()), 0)
    with pytest.raises(ConfigError, match=r"hash is not that of its content\. consentgate verify"):
        await explained(site, 1)


# diff


async def compared(site: Site, before: Side, after: Side, last: int = 1_000) -> Any:
    return await compare_topics(site.config, before, after, last, lambda done, total: None)


@pytest.mark.parametrize("scope", ["partition", "global"])
async def test_two_policies_over_real_topics(
    make_site: SiteFactory, tmp_path: Path, scope: str
) -> None:
    site = await make_site("differ", partitions=2, consent={"scope": scope})
    free = tmp_path / "free.yaml"
    free.write_text(OPT_OUT)
    people = [f"m{number}" for number in range(40)]
    await site.feed.many(site.consent, [consent(p, None) for p in people])
    await site.feed.many(site.consent, [consent(p, "withdrawn") for p in people[:10]])
    await site.feed.many(site.content, [post(p, "1") for p in (*people, "stranger")])
    before, after = Side(load_policy("opt-in")), Side(load_policy(str(free)))
    comparison = await compared(site, before, after)
    assert (comparison.records, comparison.changed) == (41, 30)
    assert (comparison.started, comparison.stopped) == (30, 0)
    ((change, number, examples),) = comparison.rows()
    assert (change.before, change.after) == (Reason.NOT_OPTED_IN, Reason.NOT_OPTED_OUT)
    assert (number, len(examples)) == (30, 3)
    assert all(place.startswith(f"{site.content}-") for place in examples)
    assert (await compared(site, before, before)).changed == 0
    few = await compared(site, before, after, last=3)
    assert few.records == 6
    ends = (await site.probe.ends(site.content, 2)).high
    assert all(
        int(place.rpartition("@")[2]) >= min(ends.values()) - 3
        for _, _, places in few.rows()
        for place in places
    )

    command = ("-m", "consentgate", "diff", "-c", str(site.path), "opt-in", str(free))
    exit_code, text, _ = await run_python(*command, "--last", "100")
    assert exit_code == EXIT_FOUND
    assert "withhold: not-opted-in  forward: not-opted-out  30" in text
    exit_code, document, _ = await run_python(*command, "--last", "100", "--format", "json")
    assert exit_code == EXIT_FOUND
    assert json.loads(document)["started"] == 30


async def test_one_policy_at_two_moments_over_real_topics(make_site: SiteFactory) -> None:
    # Checked: all is `bad-timestamp` where `Side.config` holds the records' times against them.
    site = await make_site("moments")
    await site.feed.one(site.consent, consent("anna", None, "GB"))
    await site.feed.many(site.content, [post("anna", "1"), post("anna", "2")])
    linkedin = load_policy("linkedin")
    suspended_ms = 1_726_790_400_000
    comparison = await compared(
        site, Side(linkedin, suspended_ms - 1), Side(linkedin, suspended_ms)
    )
    ((change, number, _),) = comparison.rows()
    assert (change.before, change.after) == (Reason.NOT_OPTED_OUT, Reason.JURISDICTION_SUSPENDED)
    assert number == comparison.stopped == 2
