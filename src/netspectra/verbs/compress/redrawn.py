"""Samples with tokens drawn anew: what other texts may bring to the layers of a model that reads tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from netspectra.errors import InputRefused
from netspectra.live.batches import samples_in, selected
from netspectra.live.tokens import Tokens
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.options import CompressOptions

__all__ = ["SPREAD", "agreed", "redrawn"]

SPREAD = 0.4  # share of the moments that is of such samples, where nothing else is asked for
SHARES = (0.3, 1.0)  # of a sample's tokens, in turn


def redrawn(batches: Sequence[Any], words: Sequence[Tokens], seed: int = 0) -> list[Any]:
    """For each batch every other sample of it, with a third or all of its tokens drawn anew, in turn.

    They are drawn evenly from the whole vocabulary. Special tokens, and those that stand in every sample (begin, end,
    separators), stay where they are and are not drawn: some models count them, or look for their place.

    Args:
        batches: as the model is called with.
        words: every part of them that it reads as tokens.
        seed: of the draws.

    >>> batch = torch.tensor([[7, 1, 2, 3], [7, 4, 5, 6], [7, 1, 5, 3]])
    >>> found, = redrawn([batch], [Tokens(None, 8)])
    >>> found.shape, found[:, 0].tolist(), bool((found == batch[::2]).all())
    (torch.Size([2, 4]), [7, 7], False)
    """
    kept = [torch.tensor(sorted({*one.special, *_everywhere(batches, one)}), dtype=torch.int64) for one in words]
    found = []
    for number, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(seed + number)
        count = samples_in(batch)
        some = selected(batch, torch.arange(0, count, 2), count)
        for one, special in zip(words, kept, strict=True):
            some = one.put(some, _drawn(one.of(some), one.size, special, number, generator))
        found.append(some)
    return found


def _everywhere(batches: Sequence[Any], words: Tokens) -> set[int]:
    """Tokens that stand in every sample; none where there is one sample."""
    rows = [set(row.unique().tolist()) for batch in batches for row in words.of(batch)]
    return set.intersection(*rows) if len(rows) > 1 else set()


def _drawn(ids: Tensor, size: int, special: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Tokens of some samples, a share of them drawn anew."""
    shares = torch.tensor([SHARES[(number + i) % 2] for i in range(len(ids))]).reshape(-1, *[1] * (ids.dim() - 1))
    hit = (torch.rand(ids.shape, generator=generator) < shares).to(ids.device)
    drawn = torch.randint(0, size, ids.shape, generator=generator).to(ids)
    special = special.to(ids)
    kept = ~hit | torch.isin(ids, special) | torch.isin(drawn, special)
    return torch.where(kept, ids, drawn)


def agreed(options: CompressOptions, known: Calibration) -> CompressOptions:
    """The options with the share that moments taken before have.

    Raises:
        InputRefused: another one is asked for.
    """
    if options.spread not in (None, known.spread):
        raise InputRefused(
            f"{known.path or 'these moments'}: taken with spread {known.spread:g}, not {options.spread:g}: leave it "
            "out to use them, or calibrate anew"
        )
    return replace(options, spread=known.spread)
