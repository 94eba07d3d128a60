"""What was derived from a layer last: kept up to so many bytes, then made anew when it is asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np
from torch import Tensor

__all__ = ["Shelf"]

ROOM = 3 << 28  # bytes
T = TypeVar("T")


class Shelf:
    """Derived things by key; beyond its room, what was asked for longest ago goes.

    Whoever uses one holds it meanwhile, so nothing is lost by letting go but the time to make it again.

    >>> shelf, made = Shelf(room=40), []
    >>> for key in ("a", "b", "a", "c", "a", "b"):
    ...     _ = shelf.get(key, lambda: made.append(key) or np.zeros(2))
    >>> made
    ['a', 'b', 'c', 'b']
    """

    def __init__(self, room: int = ROOM) -> None:
        """Empty."""
        self.room, self._taken = room, 0
        self._held: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What lies under the key, made where nothing does."""
        if key in self._held:
            self._held.move_to_end(key)
            return cast(T, self._held[key][0])
        found = make()
        size = held_bytes(found)
        self._held[key] = found, size
        self._taken += size
        while self._taken > self.room and len(self._held) > 1:
            self._taken -= self._held.popitem(last=False)[1][1]
        return found


def held_bytes(found: Any) -> int:
    """Bytes of the tensors and arrays in nested tuples, lists and dataclasses."""
    if isinstance(found, Tensor):
        return found.numel() * found.element_size()
    if isinstance(found, np.ndarray):
        return found.nbytes
    if isinstance(found, tuple | list):
        return sum(map(held_bytes, found))
    if is_dataclass(found):
        return sum(held_bytes(getattr(found, f.name)) for f in fields(found))
    return 0
