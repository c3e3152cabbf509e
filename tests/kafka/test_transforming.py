"""What rules make of records, on a real Kafka: redacted, selected, under a pseudonym."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import yaml

from consentgate.core.pseudonym import Pseudonyms
from consentgate.policies import load_policy
from consentgate.service.transforming import TransformPool
from consentgate.tools.receipt import make_receipt
from consentgate.tools.verify import verify
from harness import Site, SiteFactory, consent, post, until, working

NEW, OLD = b"new" * 20, b"old" * 20
PSEUDONYMS = Pseudonyms((NEW, OLD))
ADDRESS = "anna@example.org"
PEOPLE = [f"p{number}" for number in range(40)]


async def transforming_site(make_site: SiteFactory, directory: Path, **rule: Any) -> Site:
    """Opt-in everywhere under a rule that transforms; two keys, of which one is retired."""
    rules = [{"jurisdictions": ["*"], "basis": "opt-in", **rule}]
    policy = directory / "policy.yaml"
    policy.write_text(yaml.safe_dump({"name": "p", "purpose": "ai-training", "rules": rules}))
    paths = []
    for name, key in (("new", NEW), ("old", OLD)):
        paths.append(directory / name)
        paths[-1].write_bytes(key + b"\n")
    return await make_site(
        "transforming",
        partitions=2,
        policy=str(policy),
        keys={"pseudonym": [str(path) for path in paths]},
        redaction={"processes": 2},
    )


async def violations(site: Site) -> tuple[dict[str, list[str]], dict[str, dict[str, int]]]:
    """What the verifier finds, and what it could not check."""
    policies = [load_policy(site.config.policy)]
    verification = await verify(site.config, policies, lambda done, total: None)
    tallies = verification.tallies.items()
    return (
        {name: tally.findings for name, tally in tallies if tally.violations},
        {name: dict(tally.unchecked) for name, tally in tallies if tally.unchecked},
    )


async def test_a_person_leaves_redacted_and_under_a_pseudonym_and_is_retracted(
    make_site: SiteFactory, tmp_path: Path
) -> None:
    site = await transforming_site(
        make_site, tmp_path, fields=["text"], redact=["email"], pseudonymize=True
    )
    await site.feed.many(site.consent, [consent(person) for person in PEOPLE])
    body = {"text": f"write to {ADDRESS}", "author": "Anna"}
    posts = [post(person, f"e{n}", body=body) for n in range(20) for person in PEOPLE]
    await site.feed.many(site.content, posts)
    async with working(site):
        await site.decided()
        await site.feed.many(site.consent, [consent("p1", "withdrawn")])

        async def retractions() -> list[bytes | None]:
            seen = await site.seen()
            return [record.key for log in seen.retractions.values() for record in log]

        keys = await until(retractions, "the withdrawal is retracted")
        assert sorted(key or b"" for key in keys) == sorted(PSEUDONYMS.forms(b"p1"))
        # The verifier reads what is committed, all of it.
        await until(lambda: committed_everything(site), "the retraction is covered")
    forwarded = (await site.seen()).forwarded()
    assert len(forwarded) == len(posts)
    for record in forwarded:
        value = json.loads(record.value or b"")
        assert value["body"] == {"text": "write to [EMAIL]"}
        assert value["subject"].encode() == record.key
    assert {record.key for record in forwarded} == {PSEUDONYMS.of(p.encode()) for p in PEOPLE}
    found, unchecked = await violations(site)
    assert found == {}
    assert "S1" not in unchecked
    receipt = await make_receipt(site.config, "p1", lambda done, total: None)
    assert len(receipt.forwarded) == 20
    assert all(each.retracted_by for each in receipt.forwarded)


async def committed_everything(site: Site) -> bool:
    found, _ = await violations(site)
    return not found


async def test_a_rotated_key_leaves_nothing_unproven(
    make_site: SiteFactory, tmp_path: Path
) -> None:
    site = await transforming_site(make_site, tmp_path, pseudonymize=True)
    keys = msgspec.structs.replace(site.config.keys, pseudonym=[str(tmp_path / "old")])
    before = replace(site, config=msgspec.structs.replace(site.config, keys=keys))
    await site.feed.many(site.consent, [consent("anna")])
    for each, name in ((before, "1"), (site, "2")):
        await site.feed.many(site.content, [post("anna", name)])
        async with working(each):
            await site.decided()
    assert {record.key for record in (await site.seen()).forwarded()} == {
        Pseudonyms((key,)).of(b"anna") for key in (OLD, NEW)
    }
    assert (await violations(site)) == ({}, {})


async def test_another_key_is_another_policy(make_site: SiteFactory, tmp_path: Path) -> None:
    site = await transforming_site(make_site, tmp_path, pseudonymize=True)
    await site.feed.many(site.consent, [consent("anna")])
    await site.feed.many(site.content, [post("anna", "1")])
    async with working(site):
        await site.decided()
    assert (await violations(site)) == ({}, {})
    (tmp_path / "new").write_bytes(b"x" * 40)
    found, unchecked = await violations(site)
    assert found == {}
    # A pseudonym that was made with another key cannot be made again, and so is not passed.
    assert sum(unchecked["S1"].values()) == 1


async def test_a_process_that_dies_while_it_redacts_loses_nothing(
    make_site: SiteFactory, tmp_path: Path
) -> None:
    # Checked: never gets on where `TransformPool` keeps the broken executor.
    site = await transforming_site(make_site, tmp_path, redact=["email"])
    await site.feed.many(site.consent, [consent(person) for person in PEOPLE])
    async with working(site) as running:
        pool = running.worker._pool
        for wave in range(3):
            body = {"text": f"{wave}: {ADDRESS}"}
            posts = [post(p, f"{wave}-{n}", body=body) for n in range(10) for p in PEOPLE]
            await site.feed.many(site.content, posts)
            await site.decided()
            await kill_one_of(pool)
    forwarded = (await site.seen()).forwarded()
    assert len(forwarded) == 3 * 10 * len(PEOPLE)
    assert not [record for record in forwarded if ADDRESS.encode() in (record.value or b"")]
    assert (await violations(site))[0] == {}


async def kill_one_of(pool: TransformPool) -> None:
    """SIGKILL one of the pool's processes, and wait until it has gone."""
    assert pool._executor is not None, "it has redacted something"
    process = next(iter(pool._executor._processes.values()))
    process.kill()
    await asyncio.to_thread(process.join)
