"""A worker and the report as they are run, and what their two pages tell of one story."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from browser import Opened, chromium, opened
from consentgate.demo.show import next_minute_ms
from harness import QUICK_GROUP, Feed, Site, SiteFactory, WorkerProcess, consent, post, until

BEFORE_MS = 12_000
"""How long there is at least for the start and for what comes before the suspension."""

BRITISH = [f"gb{number}" for number in range(5)]
AMERICAN = [f"us{number}" for number in range(4)]

_POLICY = """
name: story
purpose: ai-training
rules:
  - {{jurisdictions: [GB], until: {at}, basis: opt-out}}
  - {{jurisdictions: [GB], from: {at}, basis: suspended}}
  - {{jurisdictions: ["*"], basis: opt-out}}
"""

Start = Callable[..., Awaitable[WorkerProcess]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a subcommand as a process of its own, which does not outlive the test."""
    async with AsyncExitStack() as stack:

        async def started(site: Site, subcommand: str, *options: str) -> WorkerProcess:
            log = tmp_path / f"{subcommand}.log"
            process = await WorkerProcess.start(site, log, *options, subcommand=subcommand)
            stack.push_async_callback(process.end)
            return process

        yield started


async def test_a_suspension_and_a_withdrawal_are_told_by_the_pages_of_the_real_programs(
    make_site: SiteFactory, feed: Feed, start: Start, tmp_path: Path
) -> None:
    suspension_ms = next_minute_ms(round(time.time() * 1000) + BEFORE_MS)
    await wait_until(suspension_ms - 60_000)  # The page would have a row for the minute before it.
    at = datetime.fromtimestamp(suspension_ms / 1000, UTC)
    policy = tmp_path / "story.yaml"
    policy.write_text(_POLICY.format(at=at.strftime("%Y-%m-%dT%H:%M:%SZ")))
    site = await make_site("story", partitions=2, policy=str(policy), kafka=QUICK_GROUP)
    people = [*((each, "GB") for each in BRITISH), *((each, "US") for each in AMERICAN)]
    await feed.many(site.consent, [consent(who, None, where) for who, where in people])
    worker = await start(site, "run")
    report = await start(site, "report", "--port", "0")
    await worker.ready()
    await feed.many(site.content, [post(who, f"{who}-1") for who, _ in people])
    await site.decided()
    assert time.time() * 1000 < suspension_ms, "the start took too long for the story"

    await wait_until(suspension_ms)
    await feed.one(site.consent, consent(AMERICAN[0], "withdrawn"))

    async def counted(number: int) -> dict[str, Any]:
        status, text = await report.get("/api/totals")
        totals: dict[str, Any] = json.loads(text) if status == 200 else {}
        seen = totals and (totals["totals"]["in"], totals["withdrawals"]["count"])
        return totals if seen == (number, 1) else {}

    await until(lambda: counted(9), "the withdrawal is counted")
    await feed.many(site.content, [post(who, f"{who}-2") for who, _ in people])
    totals = await until(lambda: counted(18), "all is counted")
    assert totals["totals"] == {"in": 18, "forwarded": 12, "withheld": 6, "quarantined": 0}
    assert totals["chain"]["state"] == "verified"

    async with chromium() as browser:
        for process, tells in ((report, the_report_tells), (worker, the_status_page_tells)):
            (begun,) = process.logged("started")
            async with opened(browser, f"{begun['http']}/") as page:
                await tells(page, totals)
                assert page.troubles == []


async def wait_until(time_ms: int) -> None:
    await asyncio.sleep(max(0.0, time_ms / 1000 - time.time()))


async def the_report_tells(page: Opened, totals: dict[str, Any]) -> None:
    await page.says("#state", "The ledger holds together")
    tiles = (await page.text("#tiles")).split("\n")
    shown = dict(zip(tiles[::3], tiles[1::3], strict=True))
    named = {name.capitalize(): n for name, n in totals["totals"].items() if name != "in"}
    expected = {"Came in": totals["totals"]["in"], **named, "Withdrawals": 1}
    assert shown == {name: str(number) for name, number in expected.items()}
    assert (await page.text("#withdrawal-tiles")).split("\n")[:2] == ["Withdrawals", "1"]

    assert await page.page.input_value("#size") == "minute"
    assert "GB, from opt-out to suspended" in await page.text("#changes")
    assert "still to come" not in await page.text("#changes")
    stretches = page.page.locator(".stretch")
    assert await stretches.all_inner_texts() == ["opt-out", "suspended"]
    figure = page.page.locator("#places figure", has_text="GB")
    await figure.get_by_text("Show as a table").click()
    await figure.locator("tbody").wait_for()
    rows = [row.split("\t") for row in await figure.locator("tbody tr").all_inner_texts()]
    # From the suspension on, which the first row is of, nothing is forwarded.
    assert [row[1:] for row in rows] == [["5", "0"], ["5", "5"]]


async def the_status_page_tells(page: Opened, totals: dict[str, Any]) -> None:
    await page.says("#once", f"{totals['totals']['in']}: each record has one")
    assert "jurisdiction-suspended" in await page.text("#outcomes")
    assert "withdrawn" in await page.text("#outcomes")
    assert "median; at most" in await page.text("#tiles")
    in_force = await page.page.locator("#in-force tbody tr", has_text="GB").inner_text()
    assert "suspended" in in_force
