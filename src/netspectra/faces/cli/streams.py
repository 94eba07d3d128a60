"""The three standard streams, made safe before anything is imported: nothing but data reaches standard output."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO

__all__ = ["data_only", "drain"]


def data_only() -> None:
    """Give ``sys.stdout`` a descriptor of its own, and let descriptor 1 lead to standard error.

    What native libraries print (MKL tells of bad arguments on standard output) ends with the messages, not in the
    data. Characters that a stream's encoding lacks are escaped. A stream that the caller closed is opened again, so
    that no file of ours gets its number: standard error leads nowhere, writing to standard output fails.
    """
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for number in closed:  # the lowest free number is the one that is given
        os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
    before = sys.stdout
    if before is not None and (not isinstance(before, io.TextIOWrapper) or before.fileno() != 1):
        return  # somebody's own stream
    if isinstance(before, io.TextIOWrapper):
        before.flush()
    data = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = _writer(data, before)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def drain() -> OSError | None:
    """Write out what is buffered; give the reason why that failed, and drop the rest so that nothing fails at exit."""
    failed: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as wrong:
            failed = failed if failed is not None or stream is sys.stderr else wrong
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return failed


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _writer(descriptor: int, like: TextIO | None) -> TextIO:
    encoding = like.encoding if like is not None else "utf-8"
    lines = like.line_buffering if isinstance(like, io.TextIOWrapper) else False
    raw = io.FileIO(descriptor, "w")
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=lines)
