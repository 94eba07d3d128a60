"""Samples with tokens drawn anew: what other texts may bring to the layers of a model that reads tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.batches import call, samples_in, selected
from netspectra.live.untouched import untouched
from netspectra.live.watching import watching
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.options import CompressOptions

__all__ = ["SPREAD", "Vocabulary", "agreed", "redrawn", "vocabulary"]

SPREAD = 0.4  # share of the moments that is of such samples, where nothing else is asked for
SHARES = (0.3, 1.0)  # of a sample's tokens, in turn

Place = str | int | None  # of a tensor in a batch: key, index; None: the batch is the tensor


@dataclass(frozen=True)
class Vocabulary:
    """Where a batch has the tokens that a model reads, and how many there are.

    Attributes:
        place: key or index in the batch; None: the batch itself is the tokens.
        size: rows of the embedding that reads them.
    """

    place: Place
    size: int

    def of(self, batch: Any) -> Tensor:
        """The tokens of a batch."""
        return batch if self.place is None else batch[self.place]

    def put(self, batch: Any, ids: Tensor) -> Any:
        """The batch with other tokens."""
        if self.place is None:
            return ids
        if isinstance(batch, Mapping):
            return {**batch, self.place: ids}
        return tuple(ids if i == self.place else part for i, part in enumerate(batch))


def _whole_numbers(batch: Any) -> Iterator[tuple[Place, Tensor]]:
    parts: Any = [(None, batch)]
    if isinstance(batch, Mapping):
        parts = batch.items()
    elif isinstance(batch, tuple | list):
        parts = enumerate(batch)
    for place, part in parts:
        if isinstance(part, Tensor) and part.dtype in (torch.int32, torch.int64):
            yield place, part


def vocabulary(model: nn.Module, batch: Any) -> Vocabulary | None:
    """What an embedding of the model reads straight from a batch; None: nothing. Runs the batch once.

    Of several, ``input_ids``, or what the largest embedding reads (the other is a kind or a position).

    >>> class Reader(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.tokens, self.places = nn.Embedding(5, 2), nn.Embedding(9, 2)
    ...     def forward(self, ids):
    ...         return self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
    >>> vocabulary(Reader(), torch.tensor([[0, 4, 4]]))
    Vocabulary(place=None, size=5)
    """
    places = dict(_whole_numbers(batch))
    tables = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if not places or not tables:
        return None
    read: dict[Place, int] = {}

    def look(name: str, x: Tensor, y: Tensor) -> None:
        for place, ids in places.items():
            if x.shape == ids.shape and torch.equal(x, ids):
                size = tables[name].num_embeddings
                read[place] = min(read.get(place, size), size)

    with untouched(model), torch.no_grad(), watching(tables, look):
        call(model, batch)
    if not read:
        return None
    place = "input_ids" if "input_ids" in read else max(read, key=lambda one: read[one])
    return Vocabulary(place, read[place])


def redrawn(batches: Sequence[Any], words: Vocabulary, seed: int = 0) -> list[Any]:
    """For each batch every other sample of it, with a third or all of its tokens drawn anew, in turn.

    They are drawn evenly from the whole vocabulary. Tokens that stand in every sample (begin, end, separators) stay.

    >>> batch = torch.tensor([[7, 1, 2, 3], [7, 4, 5, 6], [7, 1, 5, 3]])
    >>> found, = redrawn([batch], Vocabulary(None, 8))
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
