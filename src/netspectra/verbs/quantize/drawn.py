"""Bits drawn at random, to compare an allocation with."""

from __future__ import annotations

import random
from collections.abc import Sequence

from netspectra.forms.rounded import bits_of
from netspectra.verbs.compress.allocate import Choice, Option

__all__ = ["drawn"]


def drawn(layers: Sequence[Sequence[Choice]], limit: float, seed: int) -> list[Option]:
    """All layers at the fewest bits, then steps up that still fit, drawn at random until none does.

    Args:
        layers: the choices of each; corrections and forms other than few bits are not drawn.
        limit: bytes.
        seed: of the draws.
    """
    order = random.Random(seed)
    levels = [
        sorted((Option((c,), c.cost, c.loss) for c in some if bits_of(c.form) and not c.size),
               key=lambda option: option.cost.bytes)
        for some in layers
    ]  # fmt: skip
    levels = [some for some in levels if some]
    at = [0] * len(levels)
    spent = sum(some[0].cost.bytes for some in levels)

    def step(i: int) -> int:
        return levels[i][at[i] + 1].cost.bytes - levels[i][at[i]].cost.bytes

    while True:
        up = [i for i, some in enumerate(levels) if at[i] + 1 < len(some) and spent + step(i) <= limit]
        if not up:
            return [some[i] for some, i in zip(levels, at, strict=True)]
        i = order.choice(up)
        spent += step(i)
        at[i] += 1
