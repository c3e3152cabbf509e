"""The web pages, and the routes that serve them: plain files, and nothing from elsewhere.

A page has a URL of its own to ask for its figures. It shows them as text only, and the headers
below have the browser hold it to that, whatever somebody has named a policy or a jurisdiction.
"""

import hashlib
import mimetypes
from importlib.resources import files
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler

HEADERS = {
    # Trusted Types: no text ever becomes markup or a script, not even by a mistake in a page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept, but asked about each time: the files of two versions never mix.
    "Cache-Control": "no-cache",
}
"""What every file of a page is served with."""

FRESH_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
"""What the figures of a page are to be served with."""

_STATIC = files(__name__) / "static"


def add_page(app: web.Application, page: Literal["status", "report"]) -> None:
    """Serve a page at `/`, and what it loads below `/static/`."""
    app.router.add_get("/", _serve(f"{page}.html"))
    for file in _STATIC.iterdir():
        if not file.name.endswith(".html"):
            app.router.add_get(f"/static/{file.name}", _serve(file.name))


def _serve(name: str) -> Handler:
    body = (_STATIC / name).read_bytes()
    content_type = mimetypes.guess_type(name)[0] or "text/plain"
    tag = hashlib.sha256(body).hexdigest()[:32]

    async def answer(request: web.Request) -> web.StreamResponse:
        known = any(etag.value in (tag, "*") for etag in request.if_none_match or ())
        response = web.Response(
            body=None if known else body,
            status=304 if known else 200,
            content_type=content_type,
            charset="utf-8",
            headers=HEADERS,
        )
        response.etag = tag
        return response

    return answer
