"""Where a model reads tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.live.batches import call
from netspectra.live.untouched import untouched
from netspectra.live.watching import watching

__all__ = ["Tokens", "tokens_of"]

Place = str | int | None  # of a tensor in a batch: key, index; None: the batch is the tensor


@dataclass(frozen=True)
class Tokens:
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


def tokens_of(model: nn.Module, batch: Any) -> Tokens | None:
    """What an embedding of the model reads straight from a batch; None: nothing. Runs the batch once.

    Of several, ``input_ids``, or what the largest embedding reads (the other is a kind or a position).

    >>> class Reader(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.tokens, self.places = nn.Embedding(5, 2), nn.Embedding(9, 2)
    ...     def forward(self, ids):
    ...         return self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
    >>> tokens_of(Reader(), torch.tensor([[0, 4, 4]]))
    Tokens(place=None, size=5)
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
    return Tokens(place, read[place])
