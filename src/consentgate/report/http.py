"""The report's page and its HTTP API."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from aiohttp import web

from consentgate.errors import ConfigError
from consentgate.pages import FRESH_HEADERS, add_page
from consentgate.report.answers import Answers, BadRange
from consentgate.report.figures import SIZES_MS, TIME_MS_END, Size
from consentgate.web import OK, Health, epoch_ms, health_of, listen


def make_http(answers: Answers, health: Health, counting: Callable[[], str]) -> web.Application:
    """The page, and the API over these answers that it shows, as soon as all is well once.

    `counting`: `ok` where what is decided now comes into the figures, else why it does not.
    """
    api = _Api(answers, health, counting)
    app = web.Application()
    app.router.add_get("/livez", api.live)
    app.router.add_get("/readyz", api.ready)
    app.router.add_get("/api/totals", api.totals)
    app.router.add_get("/api/windows", api.windows)
    app.router.add_get("/api/outcomes.csv", api.outcomes_csv)
    add_page(app, "report")
    return app


async def serve(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Listen; what is to be cleaned up, and the port that was bound.

    Raises:
        ConfigError: if the address cannot be bound.
    """
    runner = web.AppRunner(app, access_log=None)
    try:
        bound = await listen(runner, host, port, "name a free port with --port, or 0")
    except ConfigError:
        await runner.cleanup()
        raise
    return runner, bound


class _Api:
    def __init__(self, answers: Answers, health: Health, counting: Callable[[], str]) -> None:
        self._answers = answers
        self._health = health
        self._counting = counting

    async def live(self, _: web.Request) -> web.Response:
        """Whether the process answers."""
        return _json({"status": OK})

    async def ready(self, _: web.Request) -> web.Response:
        """Whether the figures are there and go on."""
        body, status = health_of(self._health())
        return _json(body, status)

    async def totals(self, _: web.Request) -> web.Response:
        """Everything since the beginning."""
        self._refuse_unread()
        totals = self._answers.totals(time.time_ns() // 1_000_000)
        return _json({**totals, "counting": self._counting()})

    async def windows(self, request: web.Request) -> web.Response:
        """Windows of one size, between two times."""
        self._refuse_unread()
        size = _size(request)
        from_ms, until_ms = _time_ms(request, "from_ms"), _time_ms(request, "until_ms")
        try:
            return _json(self._answers.windows(size, from_ms, until_ms))
        except BadRange as error:
            raise _refusal(web.HTTPBadRequest, str(error)) from None

    async def outcomes_csv(self, request: web.Request) -> web.Response:
        """All windows of one size, for an auditor's spreadsheet."""
        self._refuse_unread()
        size = _size(request)
        name = f'attachment; filename="consentgate-outcomes-{size}.csv"'
        return web.Response(
            text=self._answers.outcomes_csv(size),
            content_type="text/csv",
            charset="utf-8",
            headers={**FRESH_HEADERS, "Content-Disposition": name},
        )

    def _refuse_unread(self) -> None:
        """Half of the figures look like all of them: tell none before they have been read."""
        if not self._answers.are_read:
            raise _refusal(web.HTTPServiceUnavailable, "the figures are still being read")


def _size(request: web.Request) -> Size:
    asked = request.query.get("size", "")
    for size in SIZES_MS:
        if size == asked:
            return size
    raise _refusal(web.HTTPBadRequest, f"size must be one of {', '.join(SIZES_MS)}")


def _time_ms(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    time_ms = epoch_ms(text)
    if time_ms is None or time_ms >= TIME_MS_END:
        raise _refusal(web.HTTPBadRequest, f"{name} must be a time in epoch milliseconds")
    return time_ms


def _refusal(kind: type[web.HTTPException], message: str) -> web.HTTPException:
    text = orjson.dumps({"error": message}).decode()
    return kind(text=text, content_type="application/json", headers=FRESH_HEADERS)


def _json(body: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(body),
        status=status,
        content_type="application/json",
        headers=FRESH_HEADERS,
    )
