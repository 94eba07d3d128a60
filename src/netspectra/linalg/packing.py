"""Codes of a few bits in bytes: as many bits as they have, no padding between them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["pack", "unpack"]

ROWS = 512  # at a time: eight codes make one 64-bit word on the way


def pack(codes: Tensor, bits: int) -> Tensor:
    """Code k of a row at bits k b ... k b + b - 1, lowest first: (m, n) -> (m, ceil(n b / 8)) uint8.

    Args:
        codes: (m, n) uint8, below 2^bits.
        bits: 1 ... 8.

    >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist()
    [[33, 3]]
    """
    m, n = codes.shape
    if bits == 8:
        return codes.clone()
    places = torch.arange(8, device=codes.device)
    width = -(-n * bits // 8)
    packed = torch.empty(m, width, dtype=torch.uint8, device=codes.device)
    for start in range(0, m, ROWS):
        part = codes[start : start + ROWS]
        wide = part.new_zeros((len(part), -(-n // 8), 8), dtype=torch.int64)
        wide.flatten(1)[:, :n] = part
        words = (wide << (bits * places)).sum(-1)
        found = (words[..., None] >> (8 * places[:bits])) & 255
        packed[start : start + ROWS] = found.flatten(1)[:, :width].to(torch.uint8)
    return packed


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """Undo `pack`: (m, n) uint8.

    >>> unpack(torch.tensor([[33, 3]], dtype=torch.uint8), 4, 3).tolist()
    [[1, 2, 3]]
    """
    if bits == 8:
        return packed
    places = torch.arange(8, device=packed.device)
    found = torch.empty(len(packed), n, dtype=torch.uint8, device=packed.device)
    for start in range(0, len(packed), ROWS):
        part = packed[start : start + ROWS]
        wide = part.new_zeros((len(part), -(-n // 8), bits), dtype=torch.int64)
        wide.flatten(1)[:, : part.shape[1]] = part
        words = (wide << (8 * places[:bits])).sum(-1)
        codes = (words[..., None] >> (bits * places)) & (2**bits - 1)
        found[start : start + ROWS] = codes.flatten(1)[:, :n].to(torch.uint8)
    return found
