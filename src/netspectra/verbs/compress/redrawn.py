"""Samples with tokens drawn anew: what other texts may bring to the layers of a model that reads tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from netspectra.errors import InputRefused
from netspectra.live.batches import samples_in, selected
from netspectra.live.tokens import Tokens
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.options import CompressOptions

__all__ = ["SPREAD", "agreed", "redrawn"]

SPREAD = 0.4  # share of the moments that is of such samples, where nothing else is asked for
SHARES = (0.3, 1.0)  # of a sample's tokens, in turn


def redrawn(batches: Sequence[Any], words: Tokens, seed: int = 0) -> list[Any]:
    """For each batch every other sample of it, with a third or all of its tokens drawn anew, in turn.

    They are drawn evenly from the whole vocabulary. Tokens that stand in every sample (begin, end, separators) stay.

    >>> batch = torch.tensor([[7, 1, 2, 3], [7, 4, 5, 6], [7, 1, 5, 3]])
    >>> found, = redrawn([batch], Tokens(None, 8))
    >>> found.shape, found[:, 0].tolist(), bool((found == batch[::2]).all())
    (torch.Size([2, 4]), [7, 7], False)
    """
    counts, samples = torch.zeros(words.size, dtype=torch.int64), 0
    for batch in batches:
        for row in words.of(batch).cpu():
            counts[row.unique()] += 1
            samples += 1
    everywhere = (counts == samples).nonzero().flatten() if samples > 1 else counts[:0]
    found = []
    for number, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(seed + number)
        count = samples_in(batch)
        some = selected(batch, torch.arange(0, count, 2), count)
        ids = words.of(some)
        shares = torch.tensor([SHARES[(number + i) % 2] for i in range(len(ids))]).reshape(-1, *[1] * (ids.dim() - 1))
        hit = (torch.rand(ids.shape, generator=generator) < shares).to(ids.device)
        drawn = torch.randint(0, words.size, ids.shape, generator=generator).to(ids)
        kept = ~hit | torch.isin(ids, everywhere.to(ids))
        found.append(words.put(some, torch.where(kept, ids, drawn)))
    return found


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
