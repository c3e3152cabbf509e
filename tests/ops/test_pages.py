"""The two pages in a real browser: that they show what is so, and nothing else."""

import json
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser
from prometheus_client import CollectorRegistry

import reported
from browser import NARROW, WIDE, Opened, Scheme, chromium, opened, report_site
from consentgate.pages import __file__ as pages_file
from consentgate.service.http import HttpServer
from harness import Feed, Site, SiteFactory, StartWorker, consent, post, until

HERE = Path(__file__).parent
STATIC = Path(pages_file).parent / "static"
HOSTILE = "<img src=x onerror=window.injected=1></script><script>window.injected=2</script>"

VIEWS: list[tuple[Scheme, int]] = [("light", WIDE), ("dark", WIDE), ("light", NARROW)]


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


@pytest.fixture
async def report_url() -> AsyncIterator[str]:
    async with report_site(*reported.answers()) as url:
        yield url


async def loaded(page: Opened) -> None:
    """Wait until the report's figures are there."""
    await page.page.locator("#shown").wait_for()


def test_the_scripts_have_the_types_that_they_say() -> None:
    command = [str(HERE / "node_modules/.bin/tsc"), "--project", str(HERE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_library_of_the_charts_is_what_its_package_holds() -> None:
    package = HERE / "node_modules/uplot"
    for ours, theirs in (
        ("uPlot.iife.min.js", "dist/uPlot.iife.min.js"),
        ("uPlot.min.css", "dist/uPlot.min.css"),
        ("uPlot.LICENSE.txt", "LICENSE"),
    ):
        assert (STATIC / ours).read_bytes() == (package / theirs).read_bytes(), "run: make vendor"


async def test_a_suspension_shows_when_it_came_and_what_came_of_it(
    browser: Browser, report_url: str
) -> None:
    async with opened(browser, f"{report_url}?jurisdiction=GB") as page:
        await loaded(page)
        changes = await page.text("#changes")
        assert "20 Sept 2024, 00:00 UTC: GB, from opt-out to suspended" in changes
        # The row of the policy begins to be another where a third less than half is drawn.
        stretches = page.page.locator(".stretch")
        assert await stretches.all_inner_texts() == ["opt-out", "suspended"]
        assert await stretches.evaluate_all("all => all.map(each => each.style.left)") == [
            "0%",
            "50%",
        ]
        figure = page.page.locator("#places figure", has_text="GB")
        await figure.get_by_text("Show as a table").click()
        await figure.locator("tbody").wait_for()
        rows = [row.split("\t") for row in await figure.locator("tbody tr").all_inner_texts()]
        forwarded = {time: int(count) for time, _, count in rows}
        # Each window once, so that its column adds up to what is said of it.
        assert len(rows) == len(forwarded) == reported.HOURS
        came_in = sum(int(count) for _, count, _ in rows)
        drawn = await figure.locator(".plot").get_attribute("aria-label")
        assert f"{came_in:,} came in" in (drawn or "")
        assert rows[0][0] in await figure.locator(".legend").inner_text()
        assert forwarded["19 Sept 2024, 23:00 UTC"] > 0
        assert not any(n for time, n in forwarded.items() if re.match("2[01] Sept", time))
        assert page.troubles == []


async def test_withdrawals_show_how_long_they_took(browser: Browser, report_url: str) -> None:
    totals, _ = reported.answers()
    async with opened(browser, report_url) as page:
        await loaded(page)
        tiles = (await page.text("#withdrawal-tiles")).split("\n")
        assert str(totals["withdrawals"]["count"]) in tiles
        assert {"412 ms", "1.35 s", "4.2 s"} <= set(tiles)


async def test_every_part_says_what_it_was_computed_from(browser: Browser, report_url: str) -> None:
    totals, _ = reported.answers()
    async with opened(browser, report_url) as page:
        await loaded(page)
        # When that was told says nothing of how far it goes.
        assert await page.text("#heard") == (
            "Told 21 Sept 2024, 12:00:04 UTC, up to the entry of 21 Sept 2024, 11:59:59 UTC"
        )
        for part in ("totals", "time", "places", "reasons"):
            text = await basis_of(page, part)
            for position in totals["through"]:
                assert position["hash"] in text
                assert f"{position['ledger_offset']:,}" in text
        for part in ("totals", "withdrawals"):
            text = await basis_of(page, part)
            for position in totals["retractions_through"]:
                assert f"{position['partition']}\t{position['offset']:,}" in text


async def basis_of(page: Opened, part: str) -> str:
    """What a part of the report says that it was computed from."""
    basis = page.page.locator(f"#{part}-basis")
    if not await basis.locator("table").count():
        await basis.get_by_text("Computed from").click()
        await basis.locator("table").first.wait_for()
    return await basis.inner_text()


async def test_filters_stand_in_the_url_and_come_back_from_it(
    browser: Browser, report_url: str
) -> None:
    async with opened(browser, report_url) as page:
        await loaded(page)
        await page.page.select_option("#jurisdiction", "EEA")
        await page.page.select_option("#size", "day")
        await page.page.wait_for_url("**/?jurisdiction=EEA&size=day")
        await page.page.reload()
        await loaded(page)
        assert await page.page.input_value("#jurisdiction") == "EEA"
        assert await page.page.input_value("#size") == "day"
        assert await page.page.locator("#places h3").all_inner_texts() == ["EEA"]
        assert await page.page.get_attribute("#csv", "href") == "api/outcomes.csv?size=day"
        await page.page.go_back()
        await page.page.wait_for_url("**/?jurisdiction=EEA&size=hour")
        assert page.troubles == []


async def test_a_broken_ledger_is_the_first_that_is_said(browser: Browser) -> None:
    totals, windows = reported.answers()
    problem = "consent-decisions-1@17: the hash is not that of the entry"
    totals["chain"] = {"state": "broken", "entries": 17, "problems": [problem]}
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await page.says("#state", "The ledger does not hold together")
        assert problem in await page.text("#problems")


async def test_figures_that_stand_still_are_said_to(browser: Browser) -> None:
    totals, windows = reported.answers()
    totals["counting"] = "Kafka has not answered for 12 s"
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await page.says("#state", "The figures stand still")
        assert await page.text("#detail") == (
            "What is decided now is not counted: Kafka has not answered for 12 s. What is below "
            "holds up to the entry of 21 Sept 2024, 11:59:59 UTC."
        )
        await page.page.locator("#banner.wait").wait_for()
        assert await page.violations() == []
        totals["counting"] = "ok"
        await page.says("#state", "The ledger holds together")


async def test_an_empty_ledger_is_no_error(browser: Browser) -> None:
    totals, windows = reported.answers()
    totals |= {"through": [], "retractions_through": [], "outcomes": [], "policies": []}
    totals["withdrawals"] = {
        "count": 0,
        "effect_ms": {"p50": None, "p95": None, "max": None},
        "retracted_records": 0,
    }
    windows |= {"through": [], "retractions_through": [], "windows": []}
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await page.says("#state", "The ledger is empty")
        assert "Nothing was decided in this time." in await page.text("#time-lead")
        outcomes = await page.text("#outcomes")
        assert outcomes == "All outcomes since the ledger began: nothing yet."
        assert await page.page.locator("table:visible").count() == 0
        assert await page.violations() == []
        assert page.troubles == []


async def test_what_is_not_known_of_a_policy_is_said(browser: Browser) -> None:
    totals, windows = reported.answers()
    problem = "input partition 1: the ledger does not reach back to its first entry"
    totals["chain"] = {"state": "unknown", "entries": 17, "problems": [problem]}
    (seen,) = totals["policies"]
    change = seen["timeline"][0] | {"basis_before": None, "jurisdiction": "*"}
    configured = seen | {"hash": None, "first_seen_ms": None, "timeline": [change]}
    totals["policies"] = [seen | {"timeline": []}, configured]
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await page.says("#state", "could not be checked from its first entry")
        assert problem in await page.text("#detail")
        changes = await page.text("#changes")
        assert "everywhere else (*), from no rule to suspended" in changes
        assert "of which it is not known that it decided" in changes
        rows = await page.page.locator("#policies tbody tr").all_inner_texts()
        assert rows[1].split("\t") == [configured["name"], "not known here", "not known here"]
        totals["policies"] = [configured | {"timeline": [change | {"basis_after": None}]}]
        await page.page.get_by_text("Load again").click()
        await page.says("#changes", "from no rule to no rule (nothing goes on)")
        assert await page.page.locator(".stretch").all_inner_texts() == ["no rule", "no rule"]
        assert page.troubles == []


@pytest.mark.parametrize(
    ("seconds", "size"),
    [(40, "minute"), (5 * 3600, "minute"), (7 * 3600, "hour"), (22 * 86_400, "day")],
)
async def test_windows_are_as_large_as_the_history_asks_for(
    browser: Browser, seconds: int, size: str
) -> None:
    totals, windows = reported.answers()
    begun_ms = totals["policies"][0]["first_seen_ms"]
    for position in totals["through"]:
        position["ledger_time_ms"] = begun_ms + seconds * 1000
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await loaded(page)
        assert await page.page.input_value("#size") == size
        assert await page.page.get_attribute("#windows", "href") == f"api/windows?size={size}"


async def test_figures_that_cannot_be_had_are_said_to_be_missing(
    browser: Browser, report_url: str
) -> None:
    async with opened(browser, report_url) as page:
        await loaded(page)
        await page.page.route(
            "**/api/windows*",
            lambda route: route.fulfill(status=503, json={"error": "still being read"}),
        )
        await page.page.get_by_text("Load again").click()
        await page.says("#state", "could not be loaded")
        assert await page.text("#detail") == (
            "The answer was 503: still being read. What is below is of 21 Sept 2024, 12:00:04 UTC, "
            "and may no longer hold. Asking again."
        )
        await page.page.locator("body.is-stale #tiles").wait_for()
        assert await page.violations() == []
        await page.page.unroute("**/api/windows*")
        await page.says("#state", "The ledger holds together")
        await page.page.locator("body:not(.is-stale)").wait_for()


async def test_the_report_goes_on_by_itself_and_leaves_what_somebody_is_at(
    browser: Browser,
) -> None:
    totals, windows = reported.answers()
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await loaded(page)
        await page.page.select_option("#jurisdiction", "GB")
        await page.says("#totals-lead", "Only GB")
        figure = page.page.locator("#places figure")
        await figure.get_by_text("Show as a table").click()
        await figure.locator(".scroll").evaluate("each => each.scrollTo(0, 300)")
        await basis_of(page, "withdrawals")
        await figure.locator("summary").focus()
        await page.page.evaluate("scrollTo(0, 700)")
        place = "[scrollY, document.documentElement.scrollHeight]"
        before = await page.page.evaluate(place)
        totals["through"][0]["ledger_offset"] += 1
        totals["outcomes"].append({**totals["outcomes"][0], "jurisdiction": "GB", "count": 10**9})
        await page.says("#tiles", "1B")
        assert await page.page.input_value("#jurisdiction") == "GB"
        assert await figure.locator("details").get_attribute("open") is not None
        assert await figure.locator(".scroll").evaluate("each => each.scrollTop") == 300
        assert await page.page.locator("#withdrawals-basis table").count() == 1
        assert await page.page.evaluate("document.activeElement.closest('#places') !== null")
        assert await page.page.evaluate(place) == before
        assert page.troubles == []


async def test_the_report_is_neither_drawn_nor_announced_where_nothing_is_new(
    browser: Browser,
) -> None:
    totals, windows = reported.answers()
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await loaded(page)
        await page.page.evaluate(
            """() => {
                const observer = new MutationObserver(() => { window.announced = true; });
                const options = { subtree: true, childList: true, characterData: true };
                observer.observe(document.querySelector("[role=status]"), options);
                document.querySelector("#time figure").id = "drawn-before";
            }"""
        )
        totals["generated_at_ms"] += 60_000
        await page.says("#heard", "Told 21 Sept 2024, 12:01:04 UTC")
        assert await page.page.locator("#drawn-before").count() == 1
        # The moment of a change comes without a record.
        totals["policies"][0]["timeline"][0]["at_ms"] = totals["generated_at_ms"] + 1
        await page.says("#changes", "still to come")
        totals["chain"]["entries"] += 1
        totals["through"][0]["ledger_offset"] += 1
        await page.says("#detail", "48,214 entries checked")
        assert await page.page.evaluate("window.announced") is None


async def test_the_report_waits_for_figures_that_are_still_read(
    browser: Browser, report_url: str
) -> None:
    async with opened(browser, "about:blank") as page:
        refusal = {"error": "the figures are still being read"}
        await page.page.route("**/api/*", lambda route: route.fulfill(status=503, json=refusal))
        await page.page.goto(report_url)
        await page.says("#detail", "still being read. Asking again.")
        await page.page.unroute("**/api/*")
        await page.says("#state", "The ledger holds together")


async def test_the_report_asks_once_at_a_time_and_only_where_somebody_looks(
    browser: Browser, report_url: str
) -> None:
    async with opened(browser, "about:blank") as page:
        await page.page.clock.install()
        await page.page.goto(report_url)
        await page.says("#state", "The ledger holds together")
        await page.page.evaluate(
            """() => {
                window.look = (hidden) => {
                    const seen = { get: () => hidden, configurable: true };
                    Object.defineProperty(document, "hidden", seen);
                    document.dispatchEvent(new Event("visibilitychange"));
                };
                const answered = window.fetch;
                const held = new Promise((release) => { window.release = release; });
                window.asked = 0;
                window.fetch = (...all) => {
                    window.asked += 1;
                    return held.then(() => answered(...all));
                };
            }"""
        )
        await page.page.evaluate("look(true)")
        await page.page.clock.run_for(60_000)
        assert await page.page.evaluate("asked") == 0
        await page.page.evaluate("look(false)")
        await page.page.evaluate("look(false)")
        await page.page.get_by_text("Load again").click()
        await page.page.clock.run_for(6_000)
        assert await page.page.evaluate("asked") == 1
        await page.page.evaluate("release()")
        await page.page.locator("#figures:not([aria-busy])").wait_for()
        assert await page.page.evaluate("asked") == 2  # The windows, too, for the button.
        await page.page.clock.run_for(5_000)
        assert await page.page.evaluate("asked") == 3


async def test_what_others_have_named_is_text_on_the_report(browser: Browser) -> None:
    totals, windows = reported.answers(HOSTILE, f"{HOSTILE}@{HOSTILE}")
    totals["chain"] = {"state": HOSTILE, "entries": 1, "problems": [HOSTILE]}
    totals["policies"][0]["timeline"][0] |= {"label": HOSTILE + "!", "basis_after": HOSTILE}
    for position in totals["through"]:
        position["hash"] = HOSTILE
    for each in [*totals["outcomes"], *windows["windows"][0]["outcomes"]]:
        each["reason"] = HOSTILE
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await loaded(page)
        for part in ("#changes", "#places", "#outcomes", "#problems", "#policies", "#positions"):
            assert HOSTILE in await page.text(part), part
        await nothing_was_injected(page)


async def test_what_others_have_named_is_text_on_the_status_page(browser: Browser) -> None:
    shown = status_of_somebody_hostile()
    server = HttpServer(CollectorRegistry(), dict, dict, lambda _: shown)
    port = await server.start("127.0.0.1", 0)
    async with opened(browser, f"http://127.0.0.1:{port}/") as page:
        await page.page.locator("#figures").wait_for()
        for part in ("#whose", "#detail", "#partitions", "#outcomes", "#policy", "#in-force"):
            assert HOSTILE in await page.text(part), part
        await nothing_was_injected(page)
    await server.stop()


def status_of_somebody_hostile() -> dict[str, Any]:
    now_ms = time.time_ns() // 1_000_000
    outcome = {"jurisdiction": HOSTILE, "reason": HOSTILE, "verdict": HOSTILE, "count": 3}
    rule = {"jurisdictions": [HOSTILE], "basis": HOSTILE, "from_ms": None, "until_ms": None}
    partition = {
        "partition": 0,
        "phase": HOSTILE,
        "why": HOSTILE,
        "next_offset": 3,
        "lag_records": 0,
        "lag_seconds": 0.0,
        "consent_staleness_seconds": 0.1,
    }
    return {
        "now_ms": now_ms,
        "started_ms": now_ms,
        "version": HOSTILE,
        "group": HOSTILE,
        "content_topic": HOSTILE,
        "policy": {"name": HOSTILE, "hash": HOSTILE, "purpose": HOSTILE, "in_force": [rule]},
        "components": {HOSTILE: HOSTILE},
        "partitions": [partition],
        "totals": {"in": 3, "forwarded": 3, "withheld": 0, "quarantined": 0},
        "outcomes": [outcome],
        "withdrawals": {"count": 0, "recent": 0, "effect_ms": {"p50": None, "max": None}},
        "transactions": {"committed": 1, "aborted": 0, "recycled": 0},
        "stalls": 0,
        "rebalances": 1,
        "consent": {"unreadable": 0, "misplaced": 0},
        "sample_ms": 2_000,
        "samples": [],
    }


async def nothing_was_injected(page: Opened) -> None:
    """Neither has what was shown become markup, nor would it, had the page's scripts tried."""
    assert await page.page.evaluate("window.injected") is None
    assert await page.page.locator("img").count() == 1
    assert page.troubles == []
    refused = await page.page.evaluate(
        """() => {
            try { document.body.insertAdjacentHTML("beforeend", "<b>bold</b>"); }
            catch (error) { return error instanceof TypeError; }
            return false;
        }"""
    )
    assert refused


async def test_parts_of_the_report_are_headed_in_order_and_named_apart(
    browser: Browser, report_url: str
) -> None:
    async with opened(browser, report_url) as page:
        await loaded(page)
        await parts_can_be_told(page)


async def parts_can_be_told(page: Opened) -> None:
    """Whoever hears the page goes by its headings and the names of its regions."""
    levels = await page.headings()
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels)), levels
    regions = await page.regions()
    assert len(regions) > 5
    assert [name for name, number in Counter(regions).items() if number > 1] == []


async def test_where_few_are_counted_the_axis_has_whole_numbers(browser: Browser) -> None:
    totals, windows = reported.answers()
    for window in windows["windows"]:
        window["outcomes"] = [{**window["outcomes"][0], "count": 2}]
    async with report_site(totals, windows) as url, opened(browser, url) as page:
        await loaded(page)
        await ticks_are_whole(page, "#time")


async def test_where_few_wait_the_axis_of_the_lag_has_whole_numbers(browser: Browser) -> None:
    shown = status_of_somebody_hostile()
    sample = {"forwarded": 3, "withheld": 0, "quarantined": 0, "consent_staleness_seconds": 0.1}
    times = (shown["now_ms"] - 4_000, shown["now_ms"] - 2_000)
    shown["samples"] = [{"at_ms": at_ms, "lag_records": 7, **sample} for at_ms in times]
    server = HttpServer(CollectorRegistry(), dict, dict, lambda _: shown)
    port = await server.start("127.0.0.1", 0)
    async with opened(browser, f"http://127.0.0.1:{port}/") as page:
        await page.page.locator("#delays canvas").first.wait_for()
        await parts_can_be_told(page)
        await ticks_are_whole(page, "#delays figure:first-child")
    await server.stop()


async def ticks_are_whole(page: Opened, selector: str) -> None:
    ticks = [text for text in await page.drawn(selector) if re.fullmatch(r"[\d.,]+", text)]
    assert len(ticks) > 1
    assert all(re.fullmatch(r"\d+", text) for text in ticks), ticks


@pytest.mark.parametrize(("scheme", "width"), VIEWS)
async def test_the_report_can_be_used_by_everybody(
    browser: Browser, report_url: str, scheme: Scheme, width: int
) -> None:
    async with opened(browser, report_url, scheme=scheme, width=width) as page:
        await loaded(page)
        await page.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert await page.violations() == []
        assert await page.page.evaluate("document.documentElement.scrollWidth") == width
        assert page.troubles == []


async def test_the_report_is_printed_with_all_that_it_can_show(
    browser: Browser, report_url: str
) -> None:
    async with opened(browser, report_url, scheme="dark") as page:
        await loaded(page)
        await page.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        await page.page.emulate_media(media="print")
        background = "getComputedStyle(document.querySelector('section')).backgroundColor"
        assert await page.page.evaluate(background) == "rgb(255, 255, 255)"
        assert not await page.page.locator("form").is_visible()
        figure = page.page.locator("#time figure")
        assert await figure.get_by_role("table").is_visible()
        await page.page.emulate_media(media="screen")
        await page.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not await figure.get_by_role("table").is_visible()


@pytest.fixture
async def site(make_site: SiteFactory, feed: Feed) -> Site:
    made = await make_site("pages", partitions=2, kafka={"session.timeout.ms": 6_000})
    await feed.many(made.consent, [consent("ada"), consent("bob"), consent("cy", "denied")])
    return made


async def test_the_status_page_follows_a_worker_until_it_is_gone(
    browser: Browser, site: Site, feed: Feed, start_worker: StartWorker
) -> None:
    worker = await start_worker(site)
    await worker.ready()
    (started,) = worker.logged("started")
    async with opened(browser, started["http"] + "/") as page:
        await page.says("#state", "Deciding on 2 partitions")
        assert "none since the start" in await page.text("#tiles")
        people = ("ada", "bob", "cy", "dee")
        await feed.many(site.content, [post(each, f"{each}-1") for each in people])
        await page.says("#once", "4: each record has one")
        outcomes = await page.text("#outcomes")
        assert "opted-in" in outcomes
        assert "no-consent-record" in outcomes
        await feed.one(site.consent, consent("ada", "withdrawn"))
        await page.says("#tiles", "median; at most")
        await feed.one(site.content, post("ada", "ada-2"))
        await page.says("#outcomes", "withdrawn")
        await page.says("#once", "5: each record has one")
        drawn = await page.page.get_attribute("#flow .plot", "aria-label")
        assert drawn is not None
        assert re.search(r"Now .+/s forwarded", drawn)
        await nobody_is_named(worker, people)
        assert page.troubles == []
        for scheme, width in VIEWS:
            await page.page.emulate_media(color_scheme=scheme)
            await page.page.set_viewport_size({"width": width, "height": 900})
            assert await page.violations() == []
            assert await page.page.evaluate("document.documentElement.scrollWidth") == width
        worker.signal(signal.SIGTERM)
        await worker.wait()
        await page.says("#state", "The worker does not answer")
        assert "There is no connection. All figures below are of" in await page.text("#detail")
        assert re.fullmatch(r"Last heard \d+ s ago", await page.text("#heard"))
        assert await page.violations() == []


async def nobody_is_named(worker: Any, people: tuple[str, ...]) -> None:
    _, text = await worker.get("/status.json")
    assert json.loads(text)["totals"]["in"] == 5
    assert [each for each in people if f'"{each}' in text] == []


async def test_a_page_that_is_opened_late_shows_the_minutes_before(
    browser: Browser, site: Site, start_worker: StartWorker
) -> None:
    worker = await start_worker(site)
    await worker.ready()

    async def two_samples() -> bool:
        return len(json.loads((await worker.get("/status.json"))[1])["samples"]) > 2

    await until(two_samples, "the worker has taken samples")
    (started,) = worker.logged("started")
    async with opened(browser, started["http"] + "/") as page:
        await page.page.locator("#flow canvas").wait_for()
        assert page.troubles == []
