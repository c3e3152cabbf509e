"""A browser, and pages in it that hold against themselves whatever goes wrong in them."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from consentgate.pages import add_page

AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"
WIDE, NARROW = 1280, 360

Scheme = Literal["light", "dark"]

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The system's Chromium, with a profile of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=_ARGUMENTS
        )
        yield browser
        await browser.close()


class Opened:
    """A page, and what went wrong in it: errors, warnings, and what its policy kept from it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.troubles: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(message.text)

    async def text(self, selector: str) -> str:
        """The text of an element as it is seen."""
        return await self.page.locator(selector).inner_text()

    async def says(self, selector: str, text: str) -> None:
        """Wait until an element holds a text."""
        await self.page.locator(selector).filter(has_text=text).first.wait_for()

    async def headings(self) -> list[int]:
        """The levels of the headings, in their order."""
        levels = "all => all.filter(each => each.checkVisibility()).map(each => +each.tagName[1])"
        found: list[int] = await self.page.locator("h1, h2, h3, h4").evaluate_all(levels)
        return found

    async def regions(self) -> list[str]:
        """The names of the regions, with all open that can be opened."""
        await self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        await self.page.locator("details:not(:has(> div > *))").wait_for(state="detached")
        named = """all => all.filter(each => each.checkVisibility()).map(each => each.ariaLabel
            ?? document.getElementById(each.getAttribute("aria-labelledby")).innerText)"""
        found: list[str] = await self.page.locator("section, [role=region]").evaluate_all(named)
        return found

    async def drawn(self, selector: str) -> list[str]:
        """The texts in a chart's canvas, when it is drawn once more."""
        await self.page.evaluate(
            """() => {
                const prototype = CanvasRenderingContext2D.prototype;
                const { fillText } = prototype;
                window.drawn = [];
                prototype.fillText = function (text, ...rest) {
                    window.drawn.push([this.canvas, text]);
                    return fillText.call(this, text, ...rest);
                };
                dispatchEvent(new Event("look"));
            }"""
        )
        texts = "(one) => drawn.filter(([canvas]) => canvas === one).map(([, text]) => text)"
        canvas = self.page.locator(f"{selector} canvas")
        while not (found := await canvas.evaluate(texts)):
            await self.page.wait_for_timeout(50)
        return list(found)

    async def violations(self) -> list[str]:
        """What axe-core finds that is serious or critical."""
        # Not as a script of the page: its policy lets none in that the page does not bring along.
        await self.page.evaluate(AXE.read_text("utf-8"))
        found = await self.page.evaluate("axe.run({resultTypes: ['violations']})")
        return [
            f"{each['id']}: {each['help']}: {[node['html'] for node in each['nodes']][:3]}"
            for each in found["violations"]
            if each["impact"] in ("serious", "critical")
        ]


@asynccontextmanager
async def opened(
    browser: Browser, url: str, *, scheme: Scheme = "light", width: int = WIDE
) -> AsyncIterator[Opened]:
    """A page of a visitor who has never been there."""
    context = await browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
    )
    page = Opened(await context.new_page())
    page.page.set_default_timeout(15_000)
    await page.page.goto(url)
    yield page
    await context.close()


@asynccontextmanager
async def report_site(totals: dict[str, Any], windows: dict[str, Any]) -> AsyncIterator[str]:
    """The report page over these answers, which are the same whatever is asked for; its URL."""
    app = web.Application()
    add_page(app, "report")

    def answer(path: str, body: dict[str, Any]) -> None:
        async def handler(_: web.Request) -> web.Response:
            return web.json_response(body, dumps=json.dumps)

        app.router.add_get(path, handler)

    answer("/api/totals", totals)
    answer("/api/windows", windows)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()
