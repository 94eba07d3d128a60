"""A web server on loopback that gives ranges, counts what it gives, and fails when it is told to."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Web:
    """What it holds, and what was asked of it.

    ``ranges`` off: it knows none and sends whole files. ``failures``: how many of the next requests get status 503.
    ``short``: how many bytes of each range it keeps back. ``pairs``: a range is answered when another is asked for too.
    """

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: Counter = field(default_factory=Counter)
    given: int = 0
    ranges: bool = True
    failures: int = 0
    status: int = 503
    short: int = 0
    denied: tuple[str, ...] = ()
    pairs: threading.Barrier | None = None
    together: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, asked: str | None) -> tuple[int, dict[str, str], bytes]:
        path = path.partition("?")[0]
        with self.lock:
            if self.failures:
                self.failures -= 1
                return self.status, {}, b"later"
        if path.lstrip("/") in self.denied:
            return 403, {}, b"no"
        data = self.files.get(path.lstrip("/"))
        if data is None:
            return 404, {}, b"not here"
        mark = {"ETag": f'"{len(data)}-{hash(data)}"'}
        if not asked or not self.ranges:
            return 200, mark, data
        if self.pairs:
            self.pairs.wait(timeout=60)
        first, last = (int(place) for place in asked.removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        told = {**mark, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}
        return 206, told, part[: max(0, len(part) - self.short)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        self._serve(body=True)

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def _serve(self, *, body: bool) -> None:
        web = self.web
        with web.lock:
            web.together += 1
            web.most = max(web.most, web.together)
        try:
            status, headers, data = web.answer(self.path, self.headers.get("Range") if body else None)
            with web.lock:
                web.requests[self.command] += 1
                web.given += len(data) if body and status in (200, 206) else 0
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with web.lock:
                web.together -= 1

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(files: dict[str, bytes]) -> Iterator[Web]:
    web = Web(files=dict(files))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"web": web}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
