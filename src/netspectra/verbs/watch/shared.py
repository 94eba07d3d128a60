"""Between the processes of one training: layers are shared out, findings go to the first process, nobody waits.

No collective operation is used. A process leaves its findings in the key-value store that torch.distributed keeps for
its own rendezvous, and the first process takes what is there: a process that died, or looks at other steps because it
is slower, holds nobody up.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch.distributed as dist

__all__ = ["Mail", "mail"]

_number = count()  # monitors are made in the same order in every process


@dataclass(eq=False)
class Mail:
    """The way from every process to the first one.

    Attributes:
        store: torch.distributed's.
        rank: of this process.
        world: how many there are.
    """

    store: Any
    rank: int
    world: int
    _sent: int = 0
    _taken: dict[int, int] = field(default_factory=dict)

    def send(self, letter: Mapping[str, Any]) -> None:
        """Leave a letter for the first process; bytes in it travel as they are."""
        self.store.set(f"{self.rank}/{self._sent}", json.dumps(letter, default=_packed))
        self._sent += 1

    def take(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Take the letters that are there: (rank, letter) each."""
        for rank in range(1, self.world):
            while self.store.check([key := f"{rank}/{self._taken.get(rank, 0)}"]):
                letter = json.loads(self.store.get(key), object_hook=_unpacked)
                self.store.delete_key(key)
                self._taken[rank] = self._taken.get(rank, 0) + 1
                yield rank, letter


def mail() -> Mail | None:
    """The way between the processes of this training; None where it is one process."""
    number = next(_number)
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    c10d = dist.distributed_c10d
    store = c10d.PrefixStore(f"netspectra-{number}", c10d._get_default_store())
    return Mail(store, dist.get_rank(), dist.get_world_size())


def _packed(value: Any) -> dict[str, str]:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    raise TypeError(f"{type(value).__name__} is nothing to send")


def _unpacked(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["bytes"]) if set(value) == {"bytes"} else value
