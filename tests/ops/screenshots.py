"""Takes the pictures of the web pages for docs: `make screenshots`, two minutes.

The status page is that of a worker on the embedded Kafka, while posts come in, the United Kingdom
is suspended and people withdraw; the report page shows the answers of `reported`.
"""

import asyncio
import random
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from playwright.async_api import Browser

import reported
from browser import NARROW, WIDE, Scheme, chromium, opened, report_site
from consentgate.tools.broker import EmbeddedKafka
from harness import Feed, Probe, Sent, Site, SiteFactory, WorkerProcess, consent, meanwhile, post

DOCS = Path(__file__).parents[2] / "docs"
VIEWS: list[tuple[str, Scheme, int]] = [
    ("", "light", WIDE),
    ("-dark", "dark", WIDE),
    ("-narrow", "light", NARROW),
]
HEIGHT_PX = {"status": 1_320, "report": 1_790}

SECONDS = 100
SUSPENDED_AFTER_SECONDS = 55
PEOPLE = 3_000

_POLICY = """
name: linkedin-2024-09
purpose: ai-training
groups: {{EEA: [DE, ES, FR, IE, IT, NL, PL, SE]}}
rules:
  - {{jurisdictions: [EEA, CH], basis: suspended}}
  - {{jurisdictions: [GB], until: {at}, basis: opt-out}}
  - {{jurisdictions: [GB], from: {at}, basis: suspended}}
  - {{jurisdictions: ["*"], basis: opt-out}}
"""


async def main() -> None:
    async with chromium() as browser:
        async with report_site(*reported.answers()) as url:
            await picture(browser, url, "report", "#shown")
        with tempfile.TemporaryDirectory() as directory, EmbeddedKafka() as kafka:
            async with Probe(kafka) as probe, Feed(kafka) as feed:
                await of_a_worker(browser, SiteFactory(kafka, probe, feed, Path(directory)))


async def of_a_worker(browser: Browser, make_site: SiteFactory) -> None:
    """Pictures of a worker that has a minute and a half of work behind it."""
    at = datetime.fromtimestamp(time.time() + SUSPENDED_AFTER_SECONDS, UTC)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as policy:
        policy.write(_POLICY.format(at=at.strftime("%Y-%m-%dT%H:%M:%SZ")))
        policy.flush()
        site = await make_site("consentgate", partitions=4, policy=policy.name)
        await site.feed.many(site.consent, (person(number) for number in range(PEOPLE)))
        worker = await WorkerProcess.start(site, site.path.with_suffix(".log"))
        try:
            await worker.ready()
            async with meanwhile(partial(work, site, random.Random(3))):
                await asyncio.sleep(SECONDS)
                (started,) = worker.logged("started")
                await picture(browser, started["http"] + "/", "status", "#flow canvas")
        finally:
            await worker.end()


async def work(site: Site, chance: random.Random) -> None:
    """Some of the posts that come in by day, and a withdrawal now and then."""
    posts = round(180 + 110 * chance.random() ** 2)
    await site.feed.many(site.content, [posted(chance) for _ in range(posts)])
    if chance.random() < 0.3:
        who = chance.randrange(0, PEOPLE, 10)
        await site.feed.one(site.consent, consent(f"m{who}", "withdrawn", "US"))
    await asyncio.sleep(0.4)


def person(number: int) -> Sent:
    country = ("US", "US", "GB", "DE", "BR", "FR", "US", "IN", "GB", "US")[number % 10]
    return consent(f"m{number}", "denied" if number % 11 == 3 else None, country)


def posted(chance: random.Random) -> Sent:
    if chance.random() < 0.004:
        return Sent(b"m1", b"no JSON")
    return post(f"m{chance.randrange(PEOPLE + 20)}", f"e{chance.randrange(10**9)}")


async def picture(browser: Browser, url: str, name: str, ready: str) -> None:
    for suffix, scheme, width in VIEWS:
        async with opened(browser, url, scheme=scheme, width=width) as page:
            await page.page.set_viewport_size({"width": width, "height": HEIGHT_PX[name]})
            await page.page.locator(ready).wait_for()
            await page.page.wait_for_timeout(2_500)
            await page.page.screenshot(path=DOCS / f"{name}{suffix}.png")
            assert page.troubles == []


if __name__ == "__main__":
    asyncio.run(main())
