"""`/livez`, `/readyz` and `/metrics` on a port of their own."""

from collections.abc import Awaitable, Callable, Mapping

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from consentgate.errors import ConfigError

Health = Callable[[], Mapping[str, str]]
"""Component to what is wrong with it; `ok` where nothing is."""

OK = "ok"


class HttpServer:
    """Serves health and metrics until stopped."""

    def __init__(self, registry: CollectorRegistry, live: Health, ready: Health) -> None:
        app = web.Application()
        app.router.add_get("/livez", _health(live))
        app.router.add_get("/readyz", _health(ready))
        app.router.add_get("/metrics", make_aiohttp_handler(registry))
        # Whoever is asking when it stops gets an answer at once, or none.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that was bound, which differs from `port` where that is 0.

        Raises:
            ConfigError: if the address cannot be bound.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            raise ConfigError(
                f"http: cannot listen on {host}:{port} ({error.strerror}); "
                "set http.port to a free one, or to 0"
            ) from None
        bound: int = self._runner.addresses[0][1]
        return bound

    async def stop(self) -> None:
        """Close all connections."""
        await self._runner.cleanup()


def _health(components: Health) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        found = components()
        healthy = all(state == OK for state in found.values())
        body = {"status": OK if healthy else "unavailable", "components": found}
        return web.Response(
            body=orjson.dumps(body), status=200 if healthy else 503, content_type="application/json"
        )

    return answer
