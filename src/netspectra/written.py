"""How results are written: whole or not at all, in the format that the suffix names; JSON and tables as text."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from netspectra.errors import EnvironmentFailure, InputRefused

__all__ = ["columns", "strict_json", "write_atomically", "write_by_suffix"]


def write_by_suffix(path: str | Path, writers: Mapping[str, Callable[[], str]]) -> None:
    """Write what the suffix of ``path`` asks for, atomically.

    Args:
        path: where to.
        writers: by suffix, what gives the text.

    Raises:
        InputRefused: another suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in writers:
        *others, last = writers
        known = f"there are {', '.join(others)} and {last}" if others else f"it is written as {last}"
        raise InputRefused(f"{path}: cannot tell the format from {suffix!r}; {known}")
    write_atomically(path, writers[suffix]())


def write_atomically(path: str | Path, text: str | bytes) -> None:
    """Write the whole file or nothing: to a temporary neighbour, synced, then renamed."""
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".netspectra-", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode() if isinstance(text, str) else text)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as wrong:
        raise EnvironmentFailure(f"{path}: cannot be written: {wrong.strerror}") from None


def strict_json(data: Any, *, indent: int | None = None) -> str:
    """JSON that every parser reads: ASCII, no NaN or infinity, a newline at the end; the same bytes for the same data.

    Raises:
        ValueError: a number is not finite.

    >>> strict_json({"name": "\u03c3", "value": None})
    '{"name":"\\\\u03c3","value":null}\\n'
    """
    separators = (",", ":") if indent is None else None
    return json.dumps(data, indent=indent, ensure_ascii=True, allow_nan=False, separators=separators) + "\n"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right.

    >>> columns([("a", "long head"), ("name", "1")])
    ['a     long head', 'name          1']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
