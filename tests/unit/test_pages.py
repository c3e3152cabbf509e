"""The pages: how they are served, and that nothing in them could bring in what is not theirs."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from consentgate import pages
from consentgate.core.model import Reason, Verdict
from consentgate.core.partition import Phase
from consentgate.core.policy import Basis
from consentgate.pages import HEADERS, add_page

ROOT = Path(__file__).parents[2]
STATIC = Path(pages.__file__).parent / "static"
OURS = sorted(path for path in STATIC.iterdir() if not path.name.startswith("uPlot."))
NAMES = ["", *(f"static/{path.name}" for path in STATIC.iterdir() if path.suffix != ".html")]


@pytest.fixture
async def url() -> AsyncIterator[str]:
    app = web.Application()
    add_page(app, "report")
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


@pytest.mark.parametrize("name", NAMES)
async def test_a_file_is_served_with_all_headers_and_once(url: str, name: str) -> None:
    async with ClientSession() as client:
        async with client.get(url + name) as first:
            assert first.status == 200
            assert HEADERS.items() <= first.headers.items()
            assert await first.read()
        known = {"If-None-Match": first.headers["ETag"]}
        async with client.get(url + name, headers=known) as again:
            assert (again.status, await again.read()) == (304, b"")
            assert HEADERS.items() <= again.headers.items()


def test_nothing_but_the_page_s_own_files_runs_or_is_shown() -> None:
    policy = dict(each.split(" ", 1) for each in HEADERS["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert policy.pop("frame-ancestors") == "'none'"
    assert set(policy.values()) == {"'self'", "'none'"}


@pytest.mark.parametrize("path", ["static/", "static/status.html", "static/../__init__.py", "x"])
async def test_nothing_else_is_served(url: str, path: str) -> None:
    async with ClientSession() as client, client.get(url + path) as got:
        assert got.status == 404


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_a_page_needs_nothing_from_elsewhere(path: Path) -> None:
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?:|//[a-z]+\.|url\(|@import", text) == []


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_no_text_becomes_markup_or_a_script(path: Path) -> None:
    text = path.read_text("utf-8")
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|srcdoc"
    assert re.findall(sinks, text) == []
    if path.suffix == ".html":
        assert re.findall(r"<style|\sstyle=|\son[a-z]+=|<script(?! src=)", text) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("REASONS", Reason), ("VERDICTS", Verdict), ("BASES", Basis), ("PHASES", Phase)],
)
def test_the_pages_explain_every_word_in_the_order_of_the_code(name: str, words: Any) -> None:
    text = (STATIC / "words.js").read_text("utf-8")
    (body,) = re.findall(rf"export const {name} = \{{(.*?)\}};", text, re.DOTALL)
    assert re.findall(r'(?:^|[\n{,]) *"?([a-z-]+)"?: "', body) == [str(word) for word in words]


def test_the_notice_names_the_library_that_comes_along() -> None:
    (version,) = re.findall(r"\(v([0-9.]+)\)", (STATIC / "uPlot.iife.min.js").read_text("utf-8"))
    assert f"uPlot {version}" in (ROOT / "NOTICE").read_text("utf-8")
