"""A piece of work that is no weight, as every engine takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Job"]


@dataclass(frozen=True, eq=False)
class Job:
    """Something to do that takes a whole process, such as a share of a calibration.

    It runs with nothing beside it in its process and as many threads as the driver has, wherever that is, so that the
    engine does not change a bit.

    Attributes:
        name: for messages.
        what: names and places that it needs, no numbers.
        nbytes: of memory at its peak.
        flops: about how many operations, to put the largest first.
    """

    name: str
    what: Any
    nbytes: int
    flops: float = 0.0
    beside: int = 0
