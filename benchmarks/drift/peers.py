"""What others do: Kolmogorov-Smirnov on every column, MMD by permutation, PCA reconstruction, and a naive rule.

Reference code of ours; each gets the whole reference, and its own p-value or threshold at 5 %.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ks_2samp

Rows = np.ndarray


def kolmogorov_smirnov(reference: Rows, window: Rows) -> float:
    """The least p over columns times their number (black box shift detection: Lipton 2018, Rabanser 2019)."""
    both = np.concatenate([reference, window])
    order = np.argsort(both, axis=0, kind="stable")
    steps = np.where(order < len(reference), 1 / len(reference), -1 / len(window)).cumsum(0)
    ordered = np.take_along_axis(both, order, 0)
    last = np.concatenate([ordered[1:] != ordered[:-1], np.ones((1, both.shape[1]), bool)])  # of each group of ties
    gaps = np.abs(np.where(last, steps, 0.0)).max(0)
    j = int(np.argmax(gaps))  # p falls with the largest gap, so one p is enough
    return min(1.0, reference.shape[1] * float(ks_2samp(reference[:, j], window[:, j]).pvalue))


def mmd(reference: Rows, window: Rows, permutations: int, seed: int) -> float:
    """Maximum mean discrepancy, Gaussian kernel, median heuristic (Gretton et al. 2012)."""
    m, n = len(reference), len(window)
    distances = pdist(np.concatenate([reference, window]).astype(float))
    kernel = squareform(np.exp(-(distances**2) / (2 * np.median(distances) ** 2))).astype(np.float32)
    kernel[np.diag_indices(m + n)] = 1.0
    rng = np.random.default_rng(seed)
    truth = np.arange(m + n) >= m
    labels = np.stack([truth, *(rng.permutation(truth) for _ in range(permutations))])
    signs = np.where(labels, 1 / n, -1 / m).astype(np.float32)
    statistic = np.einsum("ij,ij->i", signs @ kernel, signs)
    return float((statistic >= statistic[0]).mean())


def reconstruction(reference: Rows, window: Rows, seed: int) -> bool:
    """Whether the window's mean error of reconstruction by PCA (90 % of the variance) is beyond 95 % of resampled ones.

    Fitted on one half of the reference, thresholds from the other: one-sided, as it is commonly done.
    """
    fit, rest = reference[: len(reference) // 2], reference[len(reference) // 2 :]
    mean = fit.mean(0)
    _, s, Vh = np.linalg.svd(fit - mean, full_matrices=False)
    k = int(np.searchsorted(np.cumsum(s**2) / max((s**2).sum(), 1e-30), 0.9)) + 1
    V = Vh[:k].T

    def error(rows: Rows) -> Rows:
        z = rows - mean
        return ((z - z @ V @ V.T) ** 2).sum(1)

    held = error(rest)
    means = held[np.random.default_rng(seed).integers(0, len(held), (500, len(window)))].mean(1)
    return bool(error(window).mean() > np.quantile(means, 0.95))


def naive(reference: Rows, window: Rows) -> bool:
    """Whether the largest singular value of the centred rows, over sqrt(rows), moved by more than 10 %."""
    tops = [np.linalg.svd(rows - rows.mean(0), compute_uv=False)[0] / len(rows) ** 0.5 for rows in (reference, window)]
    return bool(abs(tops[1] / tops[0] - 1) > 0.1)
