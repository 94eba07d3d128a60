"""Bets against exchangeability: p-values that are uniform and independent under it, capital that then cannot grow."""

from __future__ import annotations

import numpy as np

__all__ = ["Bettors", "Ranks", "binned"]

BINS = 2048
REACH = 12.0
JUMP = 0.005  # share of the capital that changes its bet at every row
# Bets on p in (0, 1), each with mean one: f(p) = 1 + a (2p - 1) + c (6 p^2 - 6 p + 1), and p^-1/2 / 2 from either end.
TILTS = ((0.0, 0.0), (0.25, 0.0), (-0.25, 0.0), (0.8, 0.0), (-0.8, 0.0), (0.0, 0.25), (0.0, -0.25), (0.0, 0.8))
BETS = len(TILTS) + 2


def binned(values: np.ndarray) -> np.ndarray:
    """Scores, of order one, as numbers of bins 0 ... 2047: fine in the middle, coarse far out, the same for all data.

    >>> binned(np.array([-1e9, 0.0, 1e9])).tolist()
    [0, 1024, 2047]
    """
    far = np.arcsinh(4.0 * values) / np.arcsinh(4.0 * REACH)
    return np.clip(((far + 1.0) * (BINS / 2)).astype(int), 0, BINS - 1)


class Ranks:
    """Where each new row stands among all rows so far: conformal p-values (Vovk, Gammerman & Shafer 2005).

        p = (#{i: s_i > s} + U #{i: s_i = s, the new one included}) / (number of rows, the new one included)

    While rows are exchangeable these are uniform, each independent of all before. Memory: a count a bin, for ever.
    """

    def __init__(self, bins: np.ndarray, rng: np.random.Generator) -> None:
        """Begin with rows (count, scores), as bins."""
        self.rng = rng
        self.counts = np.stack([np.bincount(column, minlength=BINS) for column in bins.T])
        self.seen = len(bins)

    def ranks(self, bins: np.ndarray) -> np.ndarray:
        """P-values of rows (count, scores), in turn, each among those before it; the rows are then counted too."""
        count, scores = bins.shape
        every = np.arange(scores)
        above = self.counts[:, ::-1].cumsum(1)[:, ::-1] - self.counts
        larger, equal = above[every, bins], self.counts[every, bins] + 1
        earlier = np.tri(count, k=-1, dtype=bool)[:, :, None]
        larger = larger + ((bins[None] > bins[:, None]) & earlier).sum(1)
        equal = equal + ((bins[None] == bins[:, None]) & earlier).sum(1)
        total = self.seen + 1 + np.arange(count)[:, None]
        np.add.at(self.counts, (every[None].repeat(count, 0), bins), 1)
        self.seen += count
        return (larger + self.rng.random((count, scores)) * equal) / total


class Bettors:
    """Capital of one bettor a score, who begins with one and spreads it over bets that change hands slowly.

    Under independent uniform p-values each capital is a martingale, so that it ever reaches c with a chance of at
    most 1 / c (Ville 1939); the spreading is Vovk's simple jumper (Vovk et al. 2021, arXiv 2102.10439).

    Attributes:
        log: logarithm of the capital, one a score.
        top: the largest it ever was.
    """

    def __init__(self, scores: int) -> None:
        """Begin with a capital of one each."""
        self.shares = np.full((scores, BETS), 1.0 / BETS)
        self.log = np.zeros(scores)
        self.top = np.zeros(scores)

    def bet(self, p: np.ndarray) -> None:
        """Play rows of p-values (count, scores), one after another."""
        factors = _factors(p)
        for factor in factors:
            self.shares *= factor
            won = self.shares.sum(1, keepdims=True)
            self.shares *= (1 - JUMP) / won
            self.shares += JUMP / BETS
            self.log += np.log(won[:, 0])
            np.maximum(self.top, self.log, out=self.top)


def _factors(p: np.ndarray) -> np.ndarray:
    """What each bet pays: (..., BETS)."""
    p = np.clip(p, 1e-12, 1 - 1e-12)[..., None]
    a, c = np.array(TILTS).T
    tilted = 1 + a * (2 * p - 1) + c * (6 * p * (p - 1) + 1)
    return np.concatenate([tilted, 0.5 / np.sqrt(p), 0.5 / np.sqrt(1 - p)], axis=-1)
