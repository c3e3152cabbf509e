"""What the worker and the report serve alike: an address to listen on, and their health."""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from consentgate.errors import ConfigError

Health = Callable[[], Mapping[str, str]]
"""Component to what is wrong with it; `ok` where nothing is."""

OK = "ok"

DIGITS_MAX = 15
"""Of a time in a query."""


def health_of(components: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    """The answer about these components, and its HTTP status."""
    healthy = all(state == OK for state in components.values())
    body = {"status": OK if healthy else "unavailable", "components": components}
    return body, 200 if healthy else 503


def epoch_ms(text: str) -> int | None:
    """A time in a query, epoch milliseconds; None for anything else.

    Python refuses to read thousands of digits, and no time has more than these.
    """
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX else None


async def listen(runner: web.AppRunner, host: str, port: int, remedy: str) -> int:
    """Serve from now on; the port that was bound, which differs from `port` where that is 0.

    Raises:
        ConfigError: if the address cannot be bound; `remedy` says what to do.
    """
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise ConfigError(
            f"http: cannot listen on {host}:{port} ({error.strerror}); {remedy}"
        ) from None
    bound: int = runner.addresses[0][1]
    return bound
