"""Bets against exchangeability: p-values that are uniform and independent under it, capital that then cannot grow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["Bettors", "Ranks", "Team", "binned"]

BINS = 2048
REACH = 12.0
BLOCK = 64  # rows ranked at a time
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


class Team:
    """Ranks of several scores, a bettor on each, and when each capital began to grow.

    Attributes:
        names: layer and name of each score.
    """

    def __init__(self, names: list[tuple[str, str]], scores: np.ndarray, seed: list[int]) -> None:
        """Begin with the scores of the reference's rows, (count, scores)."""
        self.names = names
        self.ranks = Ranks(binned(scores), np.random.default_rng(seed))
        self.bettors = Bettors(len(names))
        self.lowest, self.since = np.zeros(len(names)), np.ones(len(names), int)

    def play(self, scores: np.ndarray, window: int) -> None:
        """Bet on rows of scores that came with this window."""
        bins = binned(scores)
        for first in range(0, len(bins), BLOCK):
            self.bettors.bet(self.ranks.ranks(bins[first : first + BLOCK]))
        fallen = self.bettors.log <= self.lowest
        self.lowest = np.where(fallen, self.bettors.log, self.lowest)
        self.since = np.where(fallen, window + 1, self.since)

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays by name, and plain data."""
        arrays = {
            "counts": self.ranks.counts.astype(np.int64),
            "shares": self.bettors.shares,
            "log": self.bettors.log,
            "top": self.bettors.top,
            "lowest": self.lowest,
            "since": self.since.astype(np.int64),
        }
        return arrays, {"seen": self.ranks.seen, "random": json.dumps(self.ranks.rng.bit_generator.state)}

    def restore_(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bool:
        """Go on from what `saved` gave; False where it cannot be true."""
        scores = len(self.names)
        shapes = {"counts": (scores, BINS), "shares": (scores, BETS)}
        shapes |= dict.fromkeys(("log", "top", "lowest", "since"), (scores,))
        seen = about.get("seen")
        if set(arrays) != set(shapes) or any(arrays[name].shape != shape for name, shape in shapes.items()):
            return False
        if type(seen) is not int or not all(np.isfinite(array).all() for array in arrays.values()):
            return False
        counts, shares = arrays["counts"], arrays["shares"]
        fair = (shares > 0).all() and np.allclose(shares.sum(1), 1.0)
        if not (fair and (counts >= self.ranks.counts).all() and (counts.sum(1) == seen).all()):
            return False
        try:
            self.ranks.rng.bit_generator.state = json.loads(about["random"])
        except (ValueError, TypeError, KeyError, OverflowError):
            return False
        self.ranks.counts, self.ranks.seen = counts.astype(int), seen
        self.bettors.shares, self.bettors.log = shares.astype(float), arrays["log"].astype(float)
        self.bettors.top, self.lowest = arrays["top"].astype(float), arrays["lowest"].astype(float)
        self.since = arrays["since"].astype(int)
        return True


def _factors(p: np.ndarray) -> np.ndarray:
    """What each bet pays: (..., BETS)."""
    p = np.clip(p, 1e-12, 1 - 1e-12)[..., None]
    a, c = np.array(TILTS).T
    tilted = 1 + a * (2 * p - 1) + c * (6 * p * (p - 1) + 1)
    return np.concatenate([tilted, 0.5 / np.sqrt(p), 0.5 / np.sqrt(1 - p)], axis=-1)
