"""What ways to spend the same bytes lose, at several sizes: measured, for the picture of a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netspectra.forms.rounded import bits_of
from netspectra.verbs.compress.allocate import Budget, Choice, Option, allocate
from netspectra.verbs.compress.replace import tried
from netspectra.verbs.compress.workshop import Workshop
from netspectra.verbs.quantize.drawn import drawn

__all__ = ["frontier"]

SIZES = (4, 3, 2)  # bits everywhere, whose bytes are spent in each way
JUDGING = 32  # samples, at most


def frontier(shop: Workshop, way: str, seed: int) -> list[dict[str, Any]]:
    """Held-out losses at the bytes of 4, 3 and 2 bits everywhere, of those that there are: a few samples each.

    Args:
        shop: with its predictions.
        way: what bits are chosen by; the name of the plan's own way among the losses.
        seed: of the bits that are drawn at random.

    Returns:
        For each size ``bits``, ``bytes``, and ``losses`` by way: ``uniform``, ``random`` and the plan's own.
    """
    assert shop.held is not None
    judge = shop.held.few(JUDGING)
    layers = shop.singles
    ways: dict[int, dict[str, list[Option]]] = {}
    for bits in SIZES:
        even = [_plain(some, bits) for some in layers]
        if None not in even:
            same = [option for option in even if option is not None]
            limit = sum(option.cost.bytes for option in same)
            own = allocate(shop.parts, Budget("bytes", limit))
            ways[bits] = {"uniform": same, "random": drawn(layers, limit, seed), way: own}
    _fitted(shop, ways)
    found = []
    for bits, some in ways.items():
        losses = {}
        for name, options in some.items():
            with tried(shop.model, shop.fit(options)) as changed:
                losses[name] = judge.loss(changed)
        size = sum(option.cost.bytes for option in some["uniform"])
        found.append({"bits": bits, "bytes": size, "samples": judge.samples, "losses": losses})
    return found


def _plain(choices: Sequence[Choice], bits: int) -> Option | None:
    """A layer at so many bits, without a correction."""
    found = next((c for c in choices if bits_of(c.form) == bits and not c.size), None)
    return None if found is None else Option((found,), found.cost, found.loss)


def _fitted(shop: Workshop, ways: Mapping[int, Mapping[str, Sequence[Option]]]) -> None:
    """Fit what is asked for layer by layer, while what each needs is at hand."""
    place = {id(site): i for i, site in enumerate(shop.sites.found)}
    wanted = [c for some in ways.values() for options in some.values() for o in options for c in o.choices]
    for choice in sorted(wanted, key=lambda c: place[id(c.site)]):
        shop.fit([Option((choice,), choice.cost, choice.loss)])
