"""Before the first decision the whole consent topic has been applied."""

from collections import Counter
from typing import Any

import pytest

from consentgate.service import worker as worker_module
from harness import Sent, SiteFactory, SlowView, consent, post, working

SUBJECTS = 50_000


@pytest.mark.parametrize("scope", ["partition", "global"])
async def test_a_long_consent_backlog_is_applied_before_the_first_decision(
    make_site: SiteFactory, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: decides early where `ConsentView.await_frontier` returns at once, and where
    # `ConsentView.high_watermarks` answers with the positions that the view has already reached.
    monkeypatch.setattr(SlowView, "delay_seconds", 0.05)
    monkeypatch.setattr(worker_module, "ConsentView", SlowView)
    site = await make_site("bootstrap", partitions=2, consent={"scope": scope})
    subjects = [f"m{number}" for number in range(SUBJECTS)]
    withdrawn = subjects[::10]
    # All of them granted it. The withdrawals are the very last thing that the topic says.
    await site.feed.many(site.consent, map(consent, subjects))
    await site.feed.many(site.consent, [consent(subject, "withdrawn") for subject in withdrawn])
    await site.feed.many(site.content, [post(subject, subject) for subject in subjects[::5]])
    consent_ends = (await site.probe.ends(site.consent, 2)).high

    async with working(site):
        await site.decided()

    seen = await site.check()
    assert seen.reasons() == {"opted-in": 5_000, "withdrawn": 5_000}
    for partition, entries in seen.chains.items():
        covered = consent_ends if scope == "global" else {partition: consent_ends[partition]}
        assert entries[0].frontier == covered


async def test_a_subject_in_two_consent_partitions_is_unreadable(make_site: SiteFactory) -> None:
    # Checked: forwards the divided one's posts where `ConsentTable` lets the later record win.
    site = await make_site(
        "scattered", partitions=1, consent_partitions=3, consent={"scope": "global"}
    )
    for partition, subject in enumerate(("anna", "ben", "cleo")):
        await site.feed.many(site.consent, [consent(subject)], partition)
    await site.feed.many(site.consent, [consent("divided", "withdrawn")], 0)
    await site.feed.many(site.consent, [consent("divided", "granted")], 2)
    await site.feed.many(site.consent, [consent("moved", "withdrawn"), Sent(b"moved", None)], 0)
    await site.feed.many(site.consent, [consent("moved")], 1)
    everybody = ("anna", "divided", "ben", "moved", "cleo", "divided", "nobody")
    await site.feed.many(site.content, [post(subject, "before") for subject in everybody])

    async with working(site):
        await site.decided()
        # Once only one partition holds the person again, that one's word counts.
        await site.feed.many(site.consent, [Sent(b"divided", None)], 0)
        await site.feed.many(site.content, [post("divided", "after")])
        await site.decided()

    seen = await site.check()
    assert seen.reasons() == {"opted-in": 5, "consent-unreadable": 2, "no-consent-record": 1}
    forwarded = Counter(record.key for record in seen.forwarded())
    assert forwarded == Counter([b"anna", b"ben", b"moved", b"cleo", b"divided"])
    assert len(set(seen.chains[0][0].frontier)) == 3


async def test_what_was_fetched_and_not_applied_is_fetched_again(
    make_site: SiteFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Checked: the withdrawals are lost where `ConsentView.run` goes on where the consumer stands.
    site = await make_site("again")
    people = [f"m{number}" for number in range(10)]
    await site.feed.many(site.consent, map(consent, people))
    async with working(site) as running:
        await running.ready()
        view, failures = running.worker._view, [RuntimeError("a bug")]
        read = view._read_all

        def fail_once(records: Any) -> Any:
            if records and failures:
                raise failures.pop()
            return read(records)

        monkeypatch.setattr(view, "_read_all", fail_once)
        await site.feed.many(site.consent, [consent(person, "withdrawn") for person in people])
        await site.feed.many(site.content, [post(person, "1") for person in people])
        await site.decided()
    assert not failures
    assert (await site.check()).reasons() == {"withdrawn": len(people)}
