"""Arithmetic of codes: small integers out of words, and scales spread over the numbers they belong to."""

from __future__ import annotations

import torch
from torch import Tensor

from netspectra.errors import InputRefused

__all__ = ["nibbles", "scaled", "spread", "unpacked"]

ROWS = 1024


def unpacked(words: Tensor, bits: int, axis: int, count: int, order: tuple[int, ...] = ()) -> Tensor:
    """Unsigned codes of ``bits`` bits out of 32-bit words, lowest bits first, ``count`` of them along ``axis``.

    Args:
        words: int32 matrix.
        bits: 2, 4 or 8.
        axis: along which codes were packed.
        count: how many there are; what the last word holds beyond is padding.
        order: which place of its word's run the code at each shift has; by default its own.

    >>> unpacked(torch.tensor([[0x76543210]], dtype=torch.int32), 4, 1, 6).tolist()
    [[0, 1, 2, 3, 4, 5]]
    """
    turned = words.movedim(axis, 1)
    factor = 32 // bits
    found = torch.empty(turned.shape[0], turned.shape[1], factor, dtype=torch.uint8)
    for place in range(factor):
        codes = (turned >> (bits * place)) & (2**bits - 1)
        found[:, :, order[place] if order else place] = codes.to(torch.uint8)
    return found.flatten(1)[:, :count].movedim(1, axis)


def nibbles(packed: Tensor, count: int) -> Tensor:
    """Codes of four bits, two a byte, the high half first.

    >>> nibbles(torch.tensor([0x12, 0x30], dtype=torch.uint8), 3).tolist()
    [1, 2, 3]
    """
    flat = packed.reshape(-1)
    return torch.stack([flat >> 4, flat & 15], dim=1).reshape(-1)[:count]


def spread(count: int, size: int) -> Tensor:
    """Number of the block that each of ``count`` places belongs to, for blocks of ``size``.

    >>> spread(5, 2).tolist()
    [0, 0, 1, 1, 2]
    """
    return torch.arange(count) // size


def scaled(codes: Tensor, scale: Tensor, zero: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
    """(code - zero) scale, in float32; ``rows`` and ``columns`` say which scale belongs to each place.

    Raises:
        InputRefused: a group number outside the scales there are.
    """
    for places, count in ((rows, scale.shape[0]), (columns, scale.shape[1])):
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < count:
            raise InputRefused(f"group numbers {int(places.min())} to {int(places.max())} for {count} groups of scales")
    wide = scale.float()
    found = torch.empty(codes.shape, dtype=torch.float32)
    for start in range(0, len(codes), ROWS):
        piece = rows[start : start + ROWS]
        chunk = codes[start : start + ROWS].to(torch.float32)
        if zero is not None:
            chunk -= zero.float()[piece][:, columns]
        found[start : start + ROWS] = chunk.mul_(wide[piece][:, columns])
    return found
