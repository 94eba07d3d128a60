"""Real text: MiniLM on State of the Union addresses, into which paragraphs of the language reference are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import netspectra as ns
from benchmarks.compress.texts import addresses, topics
from benchmarks.demo.run import minilm
from netspectra.live.build import build
from netspectra.live.samples import text_batches, tokenizer
from netspectra.verbs.drift.activations import activations

LAYERS = ("encoder.layer.1", "encoder.layer.3", "encoder.layer.5")
TOKENS = 64
SHARES = (0.0, 0.05, 0.1, 0.2)


@dataclass
class Sentences:
    """Rows of every layer for two kinds of text."""

    home: dict[str, np.ndarray]
    other: dict[str, np.ndarray]

    @classmethod
    def embedded(cls, count: int = 1300, others: int = 150) -> Sentences:
        """Mean over tokens of three blocks."""
        source = ns.open(minilm())
        model, words = build(source), tokenizer(source)

        def rows(texts: Sequence[str]) -> dict[str, np.ndarray]:
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
            batches = text_batches([texts[i] for i in order], words, model, longest=TOKENS)
            parts = list(activations(model, batches, LAYERS, []))
            found = {name: np.concatenate([part[name] for part in parts]) for name in LAYERS}
            back = np.argsort(order)
            return {name: one[back] for name, one in found.items()}

        return cls(rows(addresses()[:count]), rows(topics()[:others]))

    def draw(
        self, rng: np.random.Generator, held: int, size: int, share: float
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """A reference of addresses, and a window of others with a share of strangers."""
        order = rng.permutation(len(self.home[LAYERS[0]]))
        strangers = rng.permutation(len(self.other[LAYERS[0]]))[: round(share * size)]
        keep = order[held : held + size - len(strangers)]
        window = {n: np.concatenate([self.other[n][strangers], self.home[n][keep]]) for n in LAYERS}
        return {n: self.home[n][order[:held]] for n in LAYERS}, window
