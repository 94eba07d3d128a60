"""Two real data sets that arrive with a package: handwritten digits, and the text of Python's own manual."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

CONTEXT = 8  # characters that are seen
SYMBOLS = 32  # the most frequent ones; every other is one more
TESTED = 2000


@dataclass(frozen=True)
class Task:
    """Inputs (standardised as a whole: mean square 1) with labels; the test part is never trained on."""

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def fingerprint(self) -> str:
        """Of the contents: the manual's text differs between versions of Python."""
        parts = (self.x, self.y, self.test_x, self.test_y)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def digits() -> Task:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels; 797 of them, drawn once, are the test part."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.tensor(pixels[order], dtype=torch.float32)
    x = (x - x.mean()) / x.std()
    y = torch.tensor(labels[order])
    return Task("digits", x[797:], y[797:], x[:797], y[:797], 10)


def manual() -> Task:
    """The next character of Python's manual (``pydoc_data.topics``) from the eight before it, one-hot.

    Paragraphs that occur under several topics count once, so that none is in both parts; tables and lines of dashes
    are squeezed. A fifth of the paragraphs is the test part.
    """
    from pydoc_data.topics import topics

    paragraphs = [re.sub(r"\s+", " ", p).strip().lower() for text in topics.values() for p in text.split("\n\n")]
    paragraphs = [re.sub(r"([-=*])\1{2,}", r"\1", p) for p in dict.fromkeys(paragraphs) if len(p) > 80]
    order = np.random.default_rng(0).permutation(len(paragraphs))
    common = [symbol for symbol, _ in Counter("".join(paragraphs)).most_common(SYMBOLS - 1)]
    code = {symbol: place for place, symbol in enumerate(common)}
    fifth = len(order) // 5
    held_out, seen = (windows([paragraphs[i] for i in part], code) for part in (order[:fifth], order[fifth:]))
    (x, y), (test_x, test_y) = seen, held_out
    return Task("manual", one_hot(x[:8000]), y[:8000], one_hot(test_x[:TESTED]), test_y[:TESTED], SYMBOLS)


def windows(paragraphs: list[str], code: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Every place of every paragraph, in random order: the codes before it and its own."""
    found = []
    for paragraph in paragraphs:
        codes = [code.get(symbol, SYMBOLS - 1) for symbol in paragraph]
        found += [codes[i : i + CONTEXT + 1] for i in range(len(codes) - CONTEXT)]
    table = torch.tensor(found)[torch.from_numpy(np.random.default_rng(1).permutation(len(found)))]
    return table[:, :-1], table[:, -1].contiguous()


def one_hot(codes: Tensor) -> Tensor:
    """(n, CONTEXT) codes as (n, CONTEXT x SYMBOLS) numbers of mean square 1."""
    return torch.nn.functional.one_hot(codes, SYMBOLS).flatten(1).float() * SYMBOLS**0.5


TASKS = {"digits": digits, "manual": manual}
