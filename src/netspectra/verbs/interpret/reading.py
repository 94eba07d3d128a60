"""Token lists of directions, how coherent they are, and what a random direction would give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.discovery import empirical_p

__all__ = ["Reader", "Readings"]

RANGE = 1e-4  # of the largest variance: directions of less are not magnified further
APART = 7_368_787 << 20  # so that no user's own small seed, perhaps that of the table, draws the same numbers
AT_ONCE = 256  # directions whose V projections are held at a time


@dataclass(frozen=True, eq=False)
class Readings:
    """Both ends of N directions: the lists of +u are rows 0 ... N - 1, those of -u rows N ... 2 N - 1.

    Attributes:
        tokens: (2 N, k) ids, most extreme first.
        scores: (2 N, k) projections in standard deviations over the vocabulary.
        likeness: (2 N,) mean cosine between the list's tokens in the whitened table.
        sharpness: (2 N,) mean of the scores.
    """

    tokens: np.ndarray
    scores: np.ndarray
    likeness: np.ndarray
    sharpness: np.ndarray


class Reader:
    """Reads directions of the residual stream through one token table.

    A direction u gives every token t the score  z_t = (e_t . u - mean) / deviation  over the vocabulary; its list are
    the k largest. Two statistics say whether a list is more than k numbers that happened to be largest:

        likeness  = mean over pairs of the list of cos(C^-1/2 (e_s - mean), C^-1/2 (e_t - mean))
        sharpness = mean z of the list

    with C the table's covariance: in a whitened table tokens are not alike for being frequent, rare or never trained,
    which a few directions of large variance say (compare Mu & Viswanath 2018, arXiv 1702.01417). Both have values far
    from zero for *any* direction, because token tables are neither isotropic nor Gaussian. What they must be compared
    with is the same for rotated weights: the singular vectors of Q W P with random orthogonal P and Q are those of W,
    turned to a uniformly random direction, so the null are uniformly random directions.

    A token table has clusters (quotation marks, numerals, names of modules), and random directions now and then meet
    one: alone, neither statistic tells a topic of seven words from that. Such meetings are alike without standing out;
    what a layer has learned does both, and is judged by the larger of its two p-values, itself compared with random
    directions'.

    Args:
        table: (V, d) one row a token.
        words: k, tokens a list.
        null: lists of random directions.
        seed: of their draw.
        left_out: ids that are never listed: special and unused tokens.
    """

    def __init__(self, table: Tensor, *, words: int, null: int, seed: int, left_out: Tensor | None = None) -> None:
        """Centre the table; nothing is drawn yet."""
        self.table = table.float()
        self.words, self.null_size, self.seed = min(words, len(table) // 2), null, seed
        self.left_out = left_out
        kept = self.table if left_out is None else self.table[~left_out]
        self._mean = kept.mean(0)
        centred = kept - self._mean
        self._covariance = (centred.mT @ centred).double() / len(centred)
        values, vectors = torch.linalg.eigh(self._covariance)
        scale = values.clamp_min(float(values[-1]) * RANGE).rsqrt()
        unit = (self.table - self._mean) @ ((vectors * scale) @ vectors.mT).float()
        self._unit = unit / torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_min(1e-30)

    def read(self, directions: Tensor) -> Readings:
        """The lists of ``directions`` (N, d), any length above zero; both ends of each."""
        found = [self._some(chunk.float()) for chunk in directions.split(AT_ONCE)]
        ends = [[torch.cat([part[end][i] for part in found]) for i in range(4)] for end in (0, 1)]
        return Readings(*(torch.cat([ends[0][i], ends[1][i]]).cpu().numpy() for i in range(4)))

    def p_values(self, readings: Readings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P-values of likeness, of sharpness, and of both together: how rarely a random list has both as small."""
        pairs = ((readings.likeness, self.null.likeness), (readings.sharpness, self.null.sharpness))
        alone = [empirical_p(values, null) for values, null in pairs]
        own = [empirical_p(null, null) - 1 / (1 + len(null)) for _, null in pairs]  # not one more than themselves
        return alone[0], alone[1], empirical_p(-np.maximum(*alone), -np.maximum(*own))

    @cached_property
    def null(self) -> Readings:
        """Readings of uniformly random directions."""
        generator = torch.Generator().manual_seed(APART + self.seed)
        drawn = torch.randn(max(1, self.null_size // 2), self.table.shape[1], generator=generator)
        return self.read(drawn.to(self.table.device))

    def _some(self, u: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        deviation = ((u.double() @ self._covariance) * u.double()).sum(1).clamp_min(0).sqrt().float()
        z = (self.table @ u.mT - self._mean @ u.mT) / deviation.clamp_min(torch.finfo(torch.float32).tiny)
        if self.left_out is not None:
            z[self.left_out] = 0.0
        z = z.mT.contiguous()
        return self._end(z, largest=True), self._end(z, largest=False)

    def _end(self, z: Tensor, *, largest: bool) -> tuple[Tensor, ...]:
        scores, tokens = z.topk(self.words, dim=1, largest=largest)
        scores = scores.abs()
        k = self.words
        together = self._unit[tokens].sum(1).double().square().sum(1)
        likeness = (together - k) / max(k * (k - 1), 1)
        return tokens, scores, likeness, scores.double().mean(1)
