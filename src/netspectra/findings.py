"""What a run file may hold, field by field: it may come from a stranger, and is believed only after this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from netspectra.errors import InputRefused
from netspectra.record import LEVELS

__all__ = ["EVENT", "META", "MONITOR", "NOTES", "RECORD", "SKIPPED", "STATE", "check", "numbers"]

# A description says whether a value is as it must be.
Description = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _real(value: Any) -> bool:
    return type(value) in (int, float)


def _size(value: Any) -> bool:
    """A number from 0 on; infinite or NaN where nothing is known."""
    return _real(value) and not value < 0


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _any(value: Any) -> bool:
    return True


def _one_of(*values: Any) -> Description:
    return lambda value: isinstance(value, str) and value in values


def _or_none(inner: Description) -> Description:
    return lambda value: value is None or inner(value)


def _list(inner: Description, length: int | None = None) -> Description:
    def described(value: Any) -> bool:
        return isinstance(value, list) and (length is None or len(value) == length) and all(map(inner, value))

    return described


def _row(*inner: Description) -> Description:
    def described(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == len(inner)
            and all(i(v) for i, v in zip(inner, value, strict=True))
        )

    return described


def _table(**inner: Description) -> Description:
    def described(value: Any) -> bool:
        return isinstance(value, dict) and set(value) == set(inner) and all(inner[key](value[key]) for key in inner)

    return described


def _open_table(**inner: Description) -> Description:
    """A table with these entries, and perhaps others."""

    def described(value: Any) -> bool:
        return isinstance(value, dict) and all(key in value and inner[key](value[key]) for key in inner)

    return described


def _values(inner: Description) -> Description:
    return lambda value: isinstance(value, dict) and all(map(inner, value.values()))


SPECTRUM = _table(
    shape=_list(_whole, 2), frobenius2=_size, how=_one_of("exact", "partial", "estimated"), dtype=_text, route=_text,
    blocks=_whole,
)  # fmt: skip
OPERATOR = _table(spectrum=SPECTRUM, grid=_list(_whole), upper=_size, note=_text)
VERDICT = _table(rule=_text, level=_one_of(*LEVELS), message=_text, evidence=_values(_any))
METRIC = _row(_real, _or_none(_real), _or_none(_real), _or_none(_real), _text, _values(_any))
RECORD = _table(
    name=_text, kind=_text, shape=_list(_whole, 2), dtype=_text, parameters=_whole, aliases=_list(_text),
    notes=_list(_text), verdicts=_list(VERDICT), metrics=_values(METRIC), spectrum=SPECTRUM,
    operator=_or_none(OPERATOR),
)  # fmt: skip
SKIPPED = _table(name=_text, shape=_list(_whole), reason=_text, routine=_truth)
SOURCE = _open_table(path=_text, format=_text, fingerprint=_text, parameters=_whole, tensors=_whole)
EVENT = _table(
    step=_whole, name=_text, rule=_text, level=_one_of(*LEVELS), message=_text, evidence=_values(_any),
    until=_or_none(_whole),
)  # fmt: skip
WATCHED = _table(name=_text, kind=_text, shape=_list(_whole, 2))
LANE = _table(every=_whole, gap=_size, looks=_whole, seconds=_size)
STATE = _table(step=_whole, seconds=_size, own=_size, ended=_truth, lanes=_values(LANE))
NOTES = _values(_real)
MONITOR = _open_table(watched=_list(WATCHED), signals=_list(_text), leading=_whole)
META = _open_table(source=SOURCE, options=_values(_any), weights=_whole, skipped=_list(SKIPPED))


def check(value: Any, description: Description, what: str) -> Any:
    """Give the value back if it is as described.

    Raises:
        InputRefused: it is not.

    >>> check({"name": "w", "shape": [2], "reason": "a vector", "routine": True}, SKIPPED, "row 1")["name"]
    'w'
    """
    if not description(value):
        raise InputRefused(f"{what} is not as netspectra writes it: damaged? Repeat the job into a new file")
    return value


def numbers(data: Any, what: str, count: int | None = None) -> np.ndarray:
    """An array of numbers from 0 on, ``count`` of them, from its bytes.

    Raises:
        InputRefused: no bytes, not that many, negative or NaN.
    """
    if not isinstance(data, bytes) or len(data) % 8 or (count is not None and len(data) != 8 * count):
        raise InputRefused(f"{what} does not hold the numbers it should: damaged? Repeat the job into a new file")
    found = np.frombuffer(data)
    if not (np.isfinite(found) & (found >= 0)).all():
        raise InputRefused(f"{what} holds what are no singular values: damaged? Repeat the job into a new file")
    return found
