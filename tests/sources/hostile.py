"""What every reader must survive: a small file, cut, flipped and lied about."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

import netspectra as ns


def survives(path: Path, content: bytes) -> str:
    """Open and load whatever ``content`` is; give the one-line refusal, or an empty text where it was read."""
    path.write_bytes(content)
    began = time.process_time()
    said = ""
    try:
        for ref in ns.open(path).tensors:
            if not ref.problem and ref.nbytes < 1 << 28:
                ref.load()
    except ns.InputRefused as refusal:
        said = str(refusal)
        assert path.name in said and "\n" not in said and len(said) < 700, said
    assert time.process_time() - began < 2
    return said


def refused(path: Path, content: bytes, expected: str) -> None:
    """``content`` is refused, in one line that says what is expected."""
    path.write_bytes(content)
    began = time.process_time()
    with pytest.raises(ns.InputRefused) as refusal:
        ns.open(path)
    said = str(refusal.value)
    assert expected in said and path.name in said and "\n" not in said and len(said) < 700, said
    assert time.process_time() - began < 2


def cut(content: bytes, step: int = 1) -> Iterable[bytes]:
    """Every beginning of it."""
    return (content[:length] for length in range(0, len(content), step))


def flipped(content: bytes, times: int, head: int | None = None, seed: int = 0) -> Iterable[bytes]:
    """It with one to three bits flipped, in the first ``head`` bytes."""
    chance = random.Random(seed)
    for _ in range(times):
        found = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            found[chance.randrange(head or len(content))] ^= 1 << chance.randrange(8)
        yield bytes(found)
