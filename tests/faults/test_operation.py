"""Workers that are rolled out, told to end, out of disk and out of time: all promises are kept."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from consentgate.core.verify import Verification
from consentgate.policies import load_policy
from consentgate.tools.verify import verify
from harness import (
    QUICK_GROUP,
    SMALL_BYTES,
    SMALL_FETCHES,
    Site,
    SiteFactory,
    StartWorker,
    WorkerProcess,
    consent,
    meanwhile,
    post,
    until,
)
from processes import PHASES, POLITE_SECONDS_MAX

HERE = Path(__file__).parent
PEOPLE = [f"m{number}" for number in range(200)]
ROUND_SECONDS = 0.05
DRAIN_SECONDS_MAX = 120.0
"""How long a worker may take for all that was appended meanwhile, in batches of some records."""
AHEAD_SECONDS = 3 * 3600
SNAPSHOT_BYTES_MAX = 65_536

OTHER_POLICY = """\
name: other
purpose: ai-training
rules:
  - jurisdictions: ["*"]
    basis: opt-out
"""

Start = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
def start(start_worker: StartWorker) -> Start:
    """Starts workers, each run by a program of this directory where one is named."""

    async def run(site: Site, *program: str, options: tuple[str, ...] = ()) -> WorkerProcess:
        what = (str(HERE / program[0]), *program[1:]) if program else ("-m", "consentgate")
        return await start_worker(site, *options, program=what)

    return run


@asynccontextmanager
async def under_load(site: Site) -> AsyncIterator[None]:
    """Everybody has granted and posts; some withdraw, and some of these grant again."""
    await site.feed.many(site.consent, [consent(p) for p in PEOPLE[2:]])
    await site.feed.many(site.consent, [consent(p, None) for p in PEOPLE[:2]])
    rounds = 0

    async def post_and_change() -> None:
        nonlocal rounds
        rounds += 1
        posts = [post(person, f"{rounds}") for person in PEOPLE]
        await site.feed.many(site.content, posts, batch_bytes=SMALL_BYTES)
        person = PEOPLE[2 + rounds % 50]
        await site.feed.one(site.consent, consent(person, "withdrawn" if rounds % 3 else "granted"))
        await asyncio.sleep(ROUND_SECONDS)

    async with meanwhile(post_and_change):
        yield


async def verified(site: Site, *policies: str) -> Verification:
    """What the product's own verifier says, after the tests' has found nothing."""
    loaded = [load_policy(policy) for policy in policies or (site.config.policy,)]
    verification = await verify(site.config, loaded, lambda done, total: None)
    found = {name: t.findings for name, t in verification.tallies.items() if t.violations}
    assert found == {}
    return verification


async def is_under_way(site: Site) -> bool:
    return all((await site.committed()).values())


async def test_a_worker_is_told_to_end_in_each_phase(make_site: SiteFactory, start: Start) -> None:
    # Checked: a transaction is left open where `Worker._put_away` does not wait for those that a
    # rebalance gives up.
    site = await make_site("phases", partitions=2, kafka={**QUICK_GROUP, **SMALL_FETCHES})
    took = {}
    async with under_load(site):
        for number, phase in enumerate(PHASES):
            times = "term-twice" if number % 2 else "term"
            worker = await start(site, "launcher.py", times, phase, "1")
            other = None
            if phase == "revoked":
                await worker.ready()
                other = await start(site)
            (line,) = await until(lambda w=worker: w.logged("tampered"), phase)
            assert await worker.wait() == 0, worker.errors()
            took[phase] = time.time() - line["at"]
            if other is not None:
                other.signal(signal.SIGTERM)
                assert await other.wait() == 0
            ends = await site.probe.ends(site.config.topics.training, 2)
            assert not ends.open(range(2)), f"{phase}: a transaction was left open"
    assert max(took.values()) < POLITE_SECONDS_MAX, took
    print("; ".join(f"{phase} {seconds:.2f} s" for phase, seconds in took.items()))
    last = await start(site, options=("--until-drained",))
    assert await last.wait(DRAIN_SECONDS_MAX) == 0
    await site.check()
    await verified(site)


async def test_two_policies_work_side_by_side_in_a_rollout(
    make_site: SiteFactory, start: Start, tmp_path: Path
) -> None:
    site = await make_site("rollout", partitions=4, kafka={**QUICK_GROUP, **SMALL_FETCHES})
    other_path = tmp_path / "other-policy.yaml"
    other_path.write_text(OTHER_POLICY)
    other = ("--policy", str(other_path))
    async with under_load(site):
        old = [await start(site), await start(site)]
        for worker in old:
            await worker.ready()
        # One after the other, as a Deployment does.
        new = []
        for leaving in old:
            new.append(await start(site, options=other))
            await new[-1].ready()
            await until(lambda: is_under_way(site), "they work")
            leaving.signal(signal.SIGTERM)
            assert await leaving.wait() == 0
        before = await new[0].consumed()

        async def works() -> bool:
            return await new[0].consumed() > before + 500

        await until(works, "the new ones work")
        # And back again.
        back = await start(site)
        await back.ready()
        for leaving in new:
            leaving.signal(signal.SIGTERM)
            assert await leaving.wait() == 0
    await site.decided()
    back.signal(signal.SIGTERM)
    assert await back.wait() == 0

    await verified(site, site.config.policy, str(other_path))
    seen = await site.seen()
    names = {entry.policy.partition("@")[0] for chain in seen.chains.values() for entry in chain}
    assert names == {"opt-in", "other"}
    headers = [dict(r.headers or ())["consentgate.policy"] for r in seen.forwarded()]
    assert {header.decode().partition("@")[0] for header in headers} == names
    assert {"opted-in", "not-opted-out", "not-opted-in", "withdrawn"} <= set(seen.reasons())


async def test_another_version_takes_over_and_gives_back(
    make_site: SiteFactory, start: Start, tmp_path: Path
) -> None:
    site = await make_site(
        "version", partitions=2, kafka=QUICK_GROUP, snapshot=str(tmp_path / "snapshots")
    )
    async with under_load(site):
        for number, version in enumerate(("9.9.1", "9.9.2", "9.9.1")):
            worker = await start(site, "renamed.py", version)
            await worker.ready()
            await until(lambda: is_under_way(site), "it works")
            worker.signal(signal.SIGTERM)
            assert await worker.wait() == 0
            # The first finds none; each of the others finds one that the other version has made.
            refused = f"its version is '9.9.{3 - int(version[-1])}'" in worker.errors()
            assert refused == (number > 0)
    last = await start(site, options=("--until-drained",))
    assert await last.wait(DRAIN_SECONDS_MAX) == 0
    await site.check()
    await verified(site)


async def test_a_snapshot_for_which_there_is_no_room_is_missed_and_no_more(
    make_site: SiteFactory, start: Start, tmp_path: Path
) -> None:
    directory = tmp_path / "snapshots"
    site = await make_site("full", kafka=QUICK_GROUP, snapshot=str(directory))
    await site.feed.many(site.consent, [consent(f"p{n}") for n in range(20_000)])
    worker = await start(site, "limited.py", str(SNAPSHOT_BYTES_MAX))
    await worker.ready()
    await site.feed.many(site.content, [post("p1", "1")])
    await site.decided()
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    assert "a snapshot could not be written: File too large" in worker.errors()
    assert list(directory.iterdir()) == []
    await site.feed.many(site.content, [post("p2", "1")])
    last = await start(site, options=("--until-drained",))
    assert await last.wait(DRAIN_SECONDS_MAX) == 0
    assert [path.name for path in directory.iterdir()] == [f"{site.config.group}-0.snapshot"]
    await site.check()
    await verified(site)


@pytest.mark.parametrize("seconds", [AHEAD_SECONDS, -AHEAD_SECONDS], ids=["ahead", "behind"])
async def test_a_clock_that_jumps_stops_the_work_until_it_is_right(
    make_site: SiteFactory, start: Start, tmp_path: Path, seconds: int
) -> None:
    shift = tmp_path / "shift"
    shift.write_text("0")
    site = await make_site("jumps", kafka={**QUICK_GROUP, **SMALL_FETCHES})
    async with under_load(site):
        worker = await start(site, "shifted.py", str(shift))
        await worker.ready()
        await until(lambda: is_under_way(site), "it works")
        shift.write_text(str(seconds))

        def notices() -> bool:
            # Where there is something to retract, the broker is the first to object.
            return any("machine's clock" in e["why"] for e in worker.logged("recycled"))

        await until(notices, "it notices")
        before = await site.committed()
        await asyncio.sleep(1)
        assert await site.committed() == before
        assert (await worker.get("/readyz"))[0] == 503
        assert (await worker.get("/livez"))[0] == 200
        shift.write_text("0")

        async def goes_on() -> bool:
            return (await site.committed())[0] > before[0]

        await until(goes_on, "it goes on")
    await site.decided()
    worker.signal(signal.SIGTERM)
    assert await worker.wait() == 0
    for record in (await site.check()).decisions[0]:
        decided_at = json.loads(record.value or b"")["decided_at"] / 1000
        assert abs(decided_at - time.time()) < AHEAD_SECONDS / 2, "nothing by a wrong clock"
    await verified(site)
