"""The API: what it answers, and what it refuses in words."""

import json
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer

from consentgate.errors import ConfigError
from consentgate.report.answers import Answers
from consentgate.report.http import make_http, serve
from unit.report.test_answers import answers_of, folded, ledger
from unit.report.test_figures import NOW_MS


@pytest.fixture
def answers() -> Answers:
    made = answers_of((0, folded(ledger(0))))
    made.are_read = True
    return made


@pytest.fixture
async def client(answers: Answers) -> AsyncIterator[TestClient]:
    health = {"figures": "ok"}
    async with TestClient(TestServer(make_http(answers, lambda: health, lambda: "ok"))) as client:
        yield client


@pytest.mark.parametrize("path", ["/api/totals", "/api/windows?size=day", "/livez", "/readyz"])
async def test_answers_are_json_that_nobody_keeps(client: TestClient, path: str) -> None:
    response = await client.get(path)
    assert response.status == 200
    assert response.content_type == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    await response.json()


async def test_the_page_is_at_the_root(client: TestClient) -> None:
    response = await client.get("/")
    assert response.content_type == "text/html"
    assert "Transparency report" in await response.text()
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


async def test_the_totals_are_of_this_moment(client: TestClient) -> None:
    totals = await (await client.get("/api/totals")).json()
    assert totals["totals"]["in"] == 3
    assert totals["generated_at_ms"] > NOW_MS


async def test_the_csv_is_a_download(client: TestClient) -> None:
    response = await client.get("/api/outcomes.csv?size=hour")
    assert response.content_type == "text/csv"
    disposition = response.headers["Content-Disposition"]
    assert disposition == 'attachment; filename="consentgate-outcomes-hour.csv"'
    assert (await response.text()).startswith("row,window_start,")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/api/windows", "size must be one of minute, hour, day"),
        ("/api/windows?size=week", "size must be one of minute, hour, day"),
        ("/api/outcomes.csv?size=", "size must be one of minute, hour, day"),
        ("/api/windows?size=day&from_ms=-1", "from_ms must be a time in epoch milliseconds"),
        ("/api/windows?size=day&until_ms=x", "until_ms must be a time in epoch milliseconds"),
        ("/api/windows?size=day&from_ms=999999999999999", "from_ms must be a time in epoch"),
        ("/api/windows?size=day&from_ms=%C2%B2", "from_ms must be a time in epoch milliseconds"),
        ("/api/windows?size=day&from_ms=2&until_ms=1", "from_ms must not be after until_ms"),
        ("/api/windows?size=minute&from_ms=0&until_ms=90000001", "at the most, which is 25 hours;"),
        (
            "/api/windows?size=hour&from_ms=0&until_ms=5400000001",
            "at the most, which is 62.5 days;",
        ),
        (
            "/api/windows?size=day&from_ms=0&until_ms=129600000001",
            "which is 1,500 days; ask in parts",
        ),
    ],
)
async def test_what_cannot_be_answered_is_refused_in_words(
    client: TestClient, path: str, message: str
) -> None:
    response = await client.get(path)
    assert response.status == 400
    assert message in json.loads(await response.text())["error"]


@pytest.mark.parametrize("path", ["totals", "windows?size=day", "outcomes.csv?size=day"])
async def test_half_of_the_figures_are_not_told(
    client: TestClient, answers: Answers, path: str
) -> None:
    # Checked: whoever asks early takes some figures for all.
    answers.are_read = False
    response = await client.get(f"/api/{path}")
    assert response.status == 503
    assert "still being read" in (await response.json())["error"]


async def test_what_is_not_well_is_not_ready(answers: Answers) -> None:
    http = make_http(
        answers, lambda: {"figures": "ok", "counting": "recovering"}, lambda: "recovering"
    )
    async with TestClient(TestServer(http)) as client:
        response = await client.get("/readyz")
        assert response.status == 503
        assert (await response.json())["components"]["counting"] == "recovering"
        assert (await client.get("/livez")).status == 200
        assert (await (await client.get("/api/totals")).json())["counting"] == "recovering"


async def test_a_port_that_is_taken_is_refused(answers: Answers) -> None:
    runner, port = await serve(make_http(answers, dict, str), "127.0.0.1", 0)
    try:
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            await serve(make_http(answers, dict, str), "127.0.0.1", port)
    finally:
        await runner.cleanup()
