"""Who may ask: one shared token, as a bearer token or, for browsers, as the password of Basic auth."""

import base64
import hmac
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

_OPEN = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked by machines that hold no token; they tell counts, no names."""


def _shown(request: web.Request) -> bytes:
    """Return the token that a request shows, b"" for none."""
    kind, _, value = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return value.strip().encode()
    if kind.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value, validate=True).partition(b":")[2]
    except ValueError:
        return b""


def require_token(token: str, refused: Callable[[], None]) -> Middleware:
    """Return a middleware that answers 401 without the token; `refused` is called for each.

    Without a configured token everybody may ask.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        right = not token or hmac.compare_digest(_shown(request), token.encode())
        if right or request.path in _OPEN:
            answer: Awaitable[web.StreamResponse] = handler(request)
            return await answer
        refused()
        raise web.HTTPUnauthorized(
            text="the token is missing or wrong: send http.token of the aggregator's configuration"
            " as a bearer token, or as the password with any user name\n",
            headers={"WWW-Authenticate": 'Basic realm="hedgerow", charset="UTF-8"'},
        )

    return check
