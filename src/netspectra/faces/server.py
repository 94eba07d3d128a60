"""A page of a training on this machine alone, which asks for what is new while the training runs."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.report.page import encode
from netspectra.report.timeline_page import render_timeline
from netspectra.timeline import Timeline

__all__ = ["application", "listening", "serve"]

HOSTS = ["127.0.0.1", "localhost"]
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def application(runs: list[Path], token: str) -> Any:
    """The ASGI application: ``/`` the page, ``/data.json`` its data; both want the token, and a host of this machine.

    The page says in its content security policy that only its own script runs and only this server is asked; a web
    page of a stranger can guess neither the token nor, by a name that leads here, pass the check of the host.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import Request
        from starlette.responses import HTMLResponse, PlainTextResponse, Response
        from starlette.routing import Route
    except ImportError:
        raise _missing() from None

    def allowed(request: Request) -> bool:
        return secrets.compare_digest(request.query_params.get("token", "").encode(), token.encode())

    def page(request: Request) -> Response:
        if not allowed(request):
            return PlainTextResponse("the address lacks its token: copy all of it from the terminal\n", 403, HEADERS)
        return HTMLResponse(render_timeline([Timeline.read(run).page_data() for run in runs], live=True), 200, HEADERS)

    def data(request: Request) -> Response:
        if not allowed(request):
            return PlainTextResponse("no token\n", 403, HEADERS)
        try:
            found = [Timeline.read(run).page_data() for run in runs]
        except (InputRefused, EnvironmentFailure) as wrong:  # being moved or written anew: the page asks again
            return PlainTextResponse(f"{wrong}\n", 503, HEADERS)
        now = found[0]["state"]["seconds"] if found[0]["state"] else -1
        if request.query_params.get("seen") == str(now):
            return Response(status_code=204, headers=HEADERS)
        return Response(encode({"runs": found}), 200, HEADERS, "application/json")

    return Starlette(
        routes=[Route("/", page), Route("/data.json", data)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
    )


@contextlib.contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket of this machine alone; any free port for 0."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", port))
        except OSError as wrong:
            raise EnvironmentFailure(f"port {port}: {wrong.strerror}. Give another --port, or none") from None
        yield held


def serve(runs: list[Path], held: socket.socket, token: str) -> None:
    """Serve until interrupted."""
    try:
        import uvicorn
    except ImportError:
        raise _missing() from None
    config = uvicorn.Config(application(runs, token), log_level="warning", lifespan="off", server_header=False)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[held])


def _missing() -> InputRefused:
    return InputRefused("the page needs starlette and uvicorn: pip install 'netspectra[watch]', or use --terminal")
