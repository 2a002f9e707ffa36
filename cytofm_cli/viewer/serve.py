"""Run the viewer's server on loopback until a signal ends it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from cytofm_cli.errors import UsageError
from cytofm_cli.viewer.guard import LOOPBACK
from cytofm_cli.work.signals import catch_signals

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_PARTING_S = 2  # for requests that are being answered when it ends


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback.

    Args:
        port: 0 takes one that is free.

    Raises:
        UsageError: the port is taken, or not for users.
    """
    # asyncio sends what is small at once only where the protocol is named; without it each answer
    # waits 40 ms for the browser to acknowledge its head.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A port whose last server has just ended can be had again; one that is in use cannot.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((LOOPBACK, port))
        sock.listen(128)
    except (OSError, OverflowError) as error:
        sock.close()
        number = getattr(error, "errno", None)
        why = "is in use" if number == errno.EADDRINUSE else f"cannot be had ({error})"
        raise UsageError(
            f"--port {port}: {why}.", hint="name another one; without --port a free one is taken"
        ) from error
    return sock


def serve(app: ASGIApp, sock: socket.socket, started: Callable[[], None]) -> None:
    """Answer requests until Ctrl-C, SIGTERM or another signal of `work.signals`.

    Args:
        app: answers them.
        sock: of `listen`; it is closed.
        started: called once before the first request is answered.
    """
    import asyncio

    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to cytofm: uvicorn would raise them again when it has ended."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Begin, and say so."""
            await super().startup(sockets=sockets)
            started()

        async def on_tick(self, counter: int) -> bool:
            """Tell, ten times a second, whether to end."""
            return bool(stop) or await super().on_tick(counter)

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=False,
        ws="none",
        timeout_graceful_shutdown=_PARTING_S,
    )
    with sock, catch_signals() as stop:
        asyncio.run(Server(config)._serve([sock]))
