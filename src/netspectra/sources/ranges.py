"""Bytes of a file elsewhere by range requests: few at a time, tried again while the trouble can pass.

Small reads go through blocks that are kept for a while, so that a header costs one or two requests; large ones are cut
into pieces that travel side by side, straight into the memory they are for.
"""

from __future__ import annotations

import errno
import io
import os
import random
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from netspectra.errors import EnvironmentFailure, NetspectraError
from netspectra.sources.guard import printable, refuse

if TYPE_CHECKING:
    from netspectra.sources.remote import RemotePath

R = TypeVar("R")

__all__ = ["FAILURES", "RemoteFile", "attempted", "explain", "sampled", "warmed"]

AT_ONCE = 8  # requests of this process that are under way at a time
PIECE = 8 << 20  # bytes of one request of many
BLOCK = 32 << 10  # what a small read asks for
SMALL = 8 * BLOCK  # reads up to here go through kept blocks
KEPT = 2048  # blocks: 64 MB
DELAYS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds before each further try, by chance up to half more or less
# Where the libraries below fsspec keep the bases of what they raise; only those that are loaded can have raised.
RAISED = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("httpx", "HTTPError"),
    ("requests", "RequestException"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
)
PASSING = {408, 425, 429, 500, 502, 503, 504}  # of HTTP
BUSY = {errno.EBUSY, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETUNREACH, errno.EHOSTUNREACH}
UNSTEADY = ("ClientConnectionError", "ClientPayloadError", "TimeoutError", "TransportError", "EndpointConnectionError",
            "HTTPClientError", "ConnectTimeout", "ReadTimeout", "ConnectionError")  # fmt: skip


def FAILURES() -> tuple[type[BaseException], ...]:
    """Every class of error by which a store can fail."""
    found: list[type[BaseException]] = [OSError]
    for module, name in RAISED:
        known = getattr(sys.modules.get(module), name, None)
        if isinstance(known, type) and issubclass(known, Exception):
            found.append(known)
    return tuple(found)


def attempted(ask: Callable[[], R], path: RemotePath) -> R:
    """What ``ask`` gives, tried again with growing pauses while the failure is one that can pass.

    Raises:
        FileNotFoundError: there is nothing at the path.
        PermissionError: the credentials do not suffice.
        EnvironmentFailure: the store cannot be reached, or went on failing.
    """
    for delay in (*DELAYS, None):
        try:
            return ask()
        except NetspectraError:
            raise
        except FAILURES() as wrong:
            cause = wrong.__cause__ if isinstance(wrong, FileNotFoundError) and wrong.__cause__ else wrong
            status = _status(cause)
            if status in (404, 410) or (status is None and isinstance(cause, FileNotFoundError)):
                raise FileNotFoundError(str(path)) from None
            if status in (401, 403) or isinstance(cause, PermissionError):
                raise PermissionError(_first_line(cause)) from None
            if delay is None or not _passes(cause, status):
                explain(path, cause, tries=len(DELAYS) + 1 if delay is None else 1)
            time.sleep(delay * (0.5 + random.SystemRandom().random()))
    raise AssertionError("the last try either gives or raises")


def explain(path: RemotePath, wrong: BaseException, tries: int = 1) -> NoReturn:
    """Raise the one line about a store that failed."""
    often = f" (tried {tries} times)" if tries > 1 else ""
    raise EnvironmentFailure(
        f"{printable(str(path))}: cannot be reached{often}: {printable(_first_line(wrong))}. "
        "Check the address, the network and the credentials that fsspec finds"
    ) from None


def _status(wrong: BaseException) -> int | None:
    """The HTTP status that an error carries, in the ways of the several libraries."""
    for place in (wrong, getattr(wrong, "response", None)):
        for name in ("status", "status_code", "code"):
            found = getattr(place, name, None)
            if isinstance(found, int):
                return found
        if isinstance(place, dict):  # botocore's
            found = place.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(found, int):
                return found
    return None


def _passes(wrong: BaseException, status: int | None) -> bool:
    if status is not None:
        return status in PASSING
    if isinstance(wrong, ConnectionError | TimeoutError) or getattr(wrong, "errno", None) in BUSY:
        return True
    return any(kind.__name__ in UNSTEADY for kind in type(wrong).__mro__)


def _first_line(wrong: BaseException) -> str:
    return (str(wrong).splitlines() or [""])[0][:200] or type(wrong).__name__


class RemoteFile(io.RawIOBase):
    """A file elsewhere, open for reading at any place."""

    def __init__(self, path: RemotePath, size: int) -> None:
        """Begin at the start; nothing is asked for yet."""
        super().__init__()
        self._path, self._size, self._place = path, size, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; no request."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer, or as much of it as the file has."""
        view = memoryview(buffer).cast("B")
        start = self._place
        stop = min(start + len(view), self._size)
        if stop <= start:
            return 0
        view = view[: stop - start]
        if len(view) <= SMALL:
            view[:] = _from_blocks(self._path, self._size, start, stop)
        else:
            _in_pieces(self._path, start, view)
        self._place = stop
        return len(view)


def _in_pieces(path: RemotePath, start: int, view: memoryview) -> None:
    def piece(offset: int) -> None:
        stop = min(offset + PIECE, len(view))
        view[offset:stop] = _fetched(path, start + offset, start + stop)

    places = range(0, len(view), PIECE)
    if len(places) == 1:
        piece(0)
        return
    for _ in _pool(os.getpid()).map(piece, places):
        pass


def sampled(path: RemotePath, places: Sequence[int], length: int) -> list[bytes]:
    """``length`` bytes from each of the places, or up to the end, in their order; asked for side by side."""
    size = path.regular()
    return list(_pool(os.getpid()).map(lambda start: _fetched(path, start, min(start + length, size)), places))


def warmed(paths: Sequence[RemotePath]) -> None:
    """Ask for size and first block of each, side by side; what is wrong with one is told when it is read."""

    def begin(path: RemotePath) -> None:
        if path.is_file() and path.facts is not None and path.facts.size:
            _from_blocks(path, path.facts.size, 0, 1)

    for _ in _pool(os.getpid()).map(begin, paths):
        pass


def _fetched(path: RemotePath, start: int, stop: int) -> bytes:
    """Exactly these bytes, in one request."""
    if stop <= start:
        return b""
    system, name = path.store()

    def ask() -> bytes:
        if "http" not in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)):
            return system.cat_file(name, start=start, end=stop)
        # a server that knows no ranges would send the whole file to cat_file; a file of fsspec's notices
        with system.open(name, "rb", cache_type="none", size=path.regular()) as file:
            file.seek(start)
            return file.read(stop - start)

    try:
        data = attempted(ask, path)
    except FileNotFoundError:
        refuse(path, "is gone; was it moved while it was read?")
    except PermissionError as wrong:
        refuse(path, f"may not be read with these credentials ({printable(str(wrong), 120)})")
    except ValueError as wrong:
        if "range requests" not in str(wrong):
            raise
        refuse(path, "its server knows no range requests; download it first")
    if len(data) != stop - start:
        refuse(path, f"gave {len(data)} of {stop - start} bytes at {start}; was it changed while it was read?")
    return data


_blocks: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
_lock = threading.Lock()


def _from_blocks(path: RemotePath, size: int, start: int, stop: int) -> bytes:
    """A few bytes, by way of kept blocks; the missing ones in one request."""
    stamp = path.facts.stamp if path.facts else ""
    keys = [(path.url, f"{size} {stamp}", number) for number in range(start // BLOCK, -(-stop // BLOCK))]
    with _lock:
        held = {key: _blocks[key] for key in keys if key in _blocks}
    missing = [key[2] for key in keys if key not in held]
    if missing:
        first, last = missing[0] * BLOCK, min(size, (missing[-1] + 1) * BLOCK)
        data = _fetched(path, first, last)
        fresh = {key: data[key[2] * BLOCK - first :][:BLOCK] for key in keys if missing[0] <= key[2] <= missing[-1]}
        held |= fresh
        with _lock:
            _blocks.update(fresh)
            while len(_blocks) > KEPT:
                _blocks.popitem(last=False)
    begin = keys[0][2] * BLOCK
    return b"".join(held[key] for key in keys)[start - begin : stop - begin]


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Who asks; of this process, since threads do not survive a fork."""
    return ThreadPoolExecutor(AT_ONCE, "netspectra-remote")
