"""`/livez`, `/readyz`, `/metrics` and the status page on a port of their own."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from consentgate.pages import FRESH_HEADERS, add_page
from consentgate.web import Health, epoch_ms, health_of, listen

Figures = Callable[[int], Mapping[str, Any]]
"""What the status page shows, with what it draws over time since a moment in epoch milliseconds."""


class HttpServer:
    """Serves health, metrics and the status page until stopped."""

    def __init__(
        self, registry: CollectorRegistry, live: Health, ready: Health, status: Figures
    ) -> None:
        app = web.Application()
        app.router.add_get("/livez", _health(live))
        app.router.add_get("/readyz", _health(ready))
        app.router.add_get("/metrics", make_aiohttp_handler(registry))
        app.router.add_get("/status.json", _figures(status))
        add_page(app, "status")
        # Whoever is asking when it stops gets an answer at once, or none.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that was bound, which differs from `port` where that is 0.

        Raises:
            ConfigError: if the address cannot be bound.
        """
        return await listen(self._runner, host, port, "set http.port to a free one, or to 0")

    async def stop(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()


def _health(components: Health) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        body, status = health_of(components())
        return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")

    return answer


def _figures(shown: Figures) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        since_ms = epoch_ms(request.query.get("since_ms", "0"))
        if since_ms is None:
            raise web.HTTPBadRequest(text="since_ms: give epoch milliseconds")
        return web.Response(
            body=orjson.dumps(shown(since_ms)),
            content_type="application/json",
            headers=FRESH_HEADERS,
        )

    return answer
