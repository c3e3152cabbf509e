"""The demo's story, told by the worker's page and by the report's, both as they are."""

import io
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.live import Live

from browser import Opened, chromium, opened
from consentgate.demo.show import Demo, Pace
from consentgate.demo.story import WITHDRAWS
from consentgate.tools.broker import EmbeddedKafka
from harness import until

QUICK = Pace(start=10.0, stop_after=4.0, posts=10.0)


async def totals_of(url: str) -> dict[str, Any]:
    """What the report counts now."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}api/totals") as answer:
        totals: dict[str, Any] = await answer.json()
    return totals


async def tells_of_the_suspension(page: Opened) -> None:
    """Wait until the page says that use is suspended in the United Kingdom."""
    await page.says("#changes", "GB, from opt-out to suspended")


async def test_the_story_of_the_demo_can_be_told_from_its_two_pages(
    shared_kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    demo = Demo(tmp_path, shared_kafka.bootstrap_servers, 5_000, QUICK)
    await demo.prepare()
    demo.write_policy()
    status_url = f"http://127.0.0.1:{demo.port}/"
    report_url = f"http://127.0.0.1:{demo.report_port}/"
    with demo.worker(), demo.report():
        await demo.tell(Live(console=Console(file=io.StringIO())))
        told = await demo.aftermath()

        async def is_counted() -> bool:
            return bool((await totals_of(report_url))["totals"]["in"] == told.posts)

        await until(is_counted, "the report has counted every post")
        totals = await totals_of(report_url)
        assert totals["chain"]["state"] == "verified"
        counts = {
            (each["jurisdiction"], each["reason"]): each["count"] for each in totals["outcomes"]
        }
        assert counts == dict(told.counts)
        async with chromium() as browser:
            async with opened(browser, f"{report_url}?size=minute") as page:
                await tells_of_the_suspension(page)
                tiles = await page.text("#shown")
                assert f"{told.posts:,} records" in tiles
                assert f"{told.total('forward') / told.posts:.1%} of what came in" in tiles
                withdrawals = (await page.text("#withdrawal-tiles")).split("\n")
                assert str(totals["withdrawals"]["count"]) in withdrawals
                assert totals["withdrawals"]["count"] > 0, f"{WITHDRAWS} withdrew"
                assert page.troubles == []
            async with opened(browser, status_url) as page:
                await page.says("body", "Deciding on 4 partitions")
                await page.says("#in-force tr", "GB")
                assert "suspended" in await page.text("#in-force")
                assert page.troubles == []
