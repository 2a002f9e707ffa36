"""Who may ask the viewer: this machine's own browser, with the token that the command printed.

The server listens on loopback alone. Still any page that a browser has open may send requests to
it, and other users of the machine may too. So every address begins with a random token, which is
compared in constant time; names that lead to loopback by a trick of DNS are refused; and what is
sent may not be shown within other pages, nor load or run anything from elsewhere.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.responses import PlainTextResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK: Final = "127.0.0.1"
_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
MOST_BODY_BYTES: Final = 1 << 16
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def new_token() -> str:
    """Return a token that nobody guesses: 256 bits."""
    return secrets.token_urlsafe(32)


class Guard:
    """Lets requests through that may be answered, and takes the token off their path.

    Args:
        app: answers them.
        token: what every path begins with.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":  # starting and stopping; there are no sockets of other kinds
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, careful)
            return
        rest = scope["path"][1:].partition("/")[2]
        inner = {**scope, "path": f"/{rest}", "raw_path": None, "root_path": ""}
        await self._app(inner, receive, careful)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        from starlette.responses import PlainTextResponse

        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if host.rpartition(":")[0] not in _NAMES and host not in _NAMES:
            return PlainTextResponse("This viewer answers to 127.0.0.1 alone.\n", 421)
        given, slash, _ = scope["path"][1:].partition("/")
        if not secrets.compare_digest(given.encode("utf-8", "replace"), self._token) or not slash:
            text = "Open the whole address that `cytofm view` printed: it has a token.\n"
            return PlainTextResponse(text, 403)
        length = headers.get(b"content-length", b"" if scope["method"] == "POST" else b"0")
        if not length.isdigit() or int(length) > MOST_BODY_BYTES:
            return PlainTextResponse("Too long.\n", 413)
        return None
