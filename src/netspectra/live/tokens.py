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

__all__ = ["Tokens", "all_tokens_of", "tokens_of"]

ALIKE = 1e-3  # between the squares of what an embedding gives and of its rows: rounding, no more
SPECIAL = ("_token_id", "_token_ids", "_token_index")

Place = str | int | None  # of a tensor in a batch: key, index; None: the batch is the tensor


@dataclass(frozen=True)
class Tokens:
    """Where a batch has the tokens that a model reads, and how many there are.

    Attributes:
        place: key or index in the batch; None: the batch itself is the tokens.
        size: rows of the embedding that reads them.
        special: those that the model's config gives a meaning of their own: padding, begin, end, an image's place, ...
    """

    place: Place
    size: int
    special: tuple[int, ...] = ()

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

    Of several, the first of `all_tokens_of`.

    >>> class Reader(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.tokens, self.places = nn.Embedding(5, 2), nn.Embedding(9, 2)
    ...     def forward(self, ids):
    ...         return self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
    >>> tokens_of(Reader(), torch.tensor([[0, 4, 4]]))
    Tokens(place=None, size=5, special=())
    """
    found = all_tokens_of(model, batch)
    return found[0] if found else None


def all_tokens_of(model: nn.Module, batch: Any) -> tuple[Tokens, ...]:
    """Every part of a batch that a model reads as words; runs the batch once.

    The first is ``input_ids``, or what the largest embedding reads (the other is a kind or a position); a decoder's own
    ``decoder_input_ids``, or another part that the same table is read by, comes after it. An embedding reads what its
    output shows: modules of positions are handed tokens too, for their shape.
    """
    places = dict(_whole_numbers(batch))
    tables = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if not places or not tables:
        return ()
    read: dict[Place, nn.Embedding] = {}

    def look(name: str, x: Tensor, y: Tensor) -> None:
        table = tables[name]
        for place, ids in places.items():
            if x.shape == ids.shape and torch.equal(x, ids) and _looked_up(table, x, y):
                read[place] = min(read.get(place, table), table, key=lambda one: one.num_embeddings)

    with untouched(model), torch.no_grad(), watching(tables, look):
        call(model, batch)
    if not read:
        return ()
    main = "input_ids" if "input_ids" in read else max(read, key=lambda one: read[one].num_embeddings)
    more = [place for place, table in read.items()
            if place != main and (place == "decoder_input_ids" or table.weight is read[main].weight)]  # fmt: skip
    special = _special(model)
    return tuple(Tokens(place, read[place].num_embeddings, special) for place in (main, *more))


def _looked_up(table: nn.Embedding, x: Tensor, y: Tensor) -> bool:
    """Whether an output is the rows that were asked for, scaled perhaps."""
    if not isinstance(y, Tensor) or not x.numel() or int(x.min()) < 0 or int(x.max()) >= table.num_embeddings:
        return False
    rows = table.weight.detach()[x].double()
    if y.shape != rows.shape:
        return False
    y = y.double()
    return float((rows * y).sum().square()) >= (1 - ALIKE) * float(rows.square().sum() * y.square().sum())


def _special(model: nn.Module) -> tuple[int, ...]:
    """Numbers of tokens in a transformers config and those within it, by the names they are given there."""
    config: Any = getattr(model, "config", None)
    found: set[int] = set()

    def look(data: Any) -> None:
        for key, value in data.items() if isinstance(data, Mapping) else ():
            if isinstance(value, Mapping):
                look(value)
            elif str(key).endswith(SPECIAL):
                found.update(one for one in (value if isinstance(value, list) else [value]) if type(one) is int)

    look(config.to_dict() if hasattr(config, "to_dict") else {})
    return tuple(sorted(one for one in found if one >= 0))
