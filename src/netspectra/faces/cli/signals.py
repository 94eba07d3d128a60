"""Ctrl-C and SIGTERM end the program within two seconds, even from within an hour of LAPACK."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType

__all__ = ["INTERRUPTED", "TERMINATED", "watch"]

INTERRUPTED, TERMINATED = 130, 143
CODES = {int(signal.SIGINT): INTERRUPTED, int(signal.SIGTERM): TERMINATED}
GRACE = 1.0


def watch() -> None:
    """Turn SIGTERM into an orderly exit, and end the process where the main thread does not get to it.

    Python runs its handlers between two of its own instructions in the main thread: a native call that takes minutes
    holds them back. A second thread is told of the signal at once and waits a second. Leaving without ceremony is safe
    at any moment: findings are committed one by one, and files appear whole or not at all.
    """
    signal.signal(signal.SIGTERM, _terminated)
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end, args=(reading,), name="signals", daemon=True).start()


def _end(reading: int) -> None:
    while True:
        code = CODES.get(os.read(reading, 1)[0])
        if code is not None:
            time.sleep(GRACE)
            with contextlib.suppress(OSError):
                os.write(2, b"error: interrupted\n")
            os._exit(code)


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
