"""The bulk of noise: where a random matrix's singular values would end, and which stand out beyond."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from netspectra.linalg.spectrum import Spectrum
from netspectra.metrics import metric
from netspectra.record import Value

__all__ = ["false_alarm_edge", "mp_cdf", "mp_median", "tracy_widom"]

FEWEST = 10  # values; with fewer the median says nothing of a bulk
SHOWN = 8  # strengths of spikes told in the detail
# Where 0.8 % of noise matrices have their largest lambda, in Tracy-Widom's scale, when the variance is estimated by
# the median: EDGE + (A + B M / N) / sqrt(M). Fitted to 24,000 simulated matrices of each of 140 shapes (6,000 where
# M > 500; M = 10 ... 1600, N / M = 1 ... 64) by benchmarks/metrics/calibrate_edge.py, seed 20251; the table is beside
# it, the residual (0.055) is the simulation's own error. 0.8 % and not 1 %, so that the promise holds with room.
EDGE, A, B = 2.161, 0.504, 8.851
NOMINAL = 0.01
LAW = "Marchenko & Pastur 1967, Math. USSR Sb. 1"


def mp_cdf(x: np.ndarray, beta: float) -> np.ndarray:
    """Share of the Marchenko-Pastur law below ``x``: eigenvalues of X X^T / N, X of M x N unit noise, beta = M / N.

    With r = sqrt(beta) and x = 1 + r^2 - 2 r cos t, 0 <= t <= pi, the density's integral is elementary:

        F = (sin t / r + (1 + r^2) t / (2 r^2) - (1 - r^2) / r^2 atan2((1 + r) sin t/2, (1 - r) cos t/2)) / pi

    Args:
        x: eigenvalues in units of the noise variance, any shape.
        beta: 0 < beta <= 1.

    Source: Marchenko & Pastur 1967, Math. USSR Sb. 1. Cost: a few operations a value.

    >>> mp_cdf(np.array([0.0, 0.652776, 4.0]), 1.0).round(6).tolist()
    [0.0, 0.5, 1.0]
    """
    r = math.sqrt(beta)
    t = np.arccos(np.clip((1 + beta - np.asarray(x, dtype=float)) / (2 * r), -1.0, 1.0))
    turn = np.arctan2((1 + r) * np.sin(t / 2), (1 - r) * np.cos(t / 2))
    return (np.sin(t) / r + (1 + beta) * t / (2 * beta) - (1 - beta) * turn / beta) / math.pi


@lru_cache(maxsize=1024)
def mp_median(beta: float) -> float:
    """mu_beta, the median of the Marchenko-Pastur law, to 1e-12 by bisection of `mp_cdf`.

    >>> [round(mp_median(1 / Q), 6) for Q in (1, 2, 4, 8, 16)]
    [0.652776, 0.830466, 0.916004, 0.958174, 0.979127]
    """
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if mp_cdf(np.array(middle), beta) < 0.5 else (low, middle)
    return (low + high) / 2


def tracy_widom(M: int, N: int) -> tuple[float, float]:
    """Centre and scale of lambda_1 of X X^T, X of M x N unit Gaussian noise: (lambda_1 - centre) / scale -> TW1.

    Source: Johnstone 2001, Ann. Statist. 29(2).

    >>> [round(v, 3) for v in tracy_widom(200, 400)]
    [1163.978, 16.864]
    """
    a, b = math.sqrt(N - 1), math.sqrt(M)
    return (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)


def false_alarm_edge(M: int, N: int) -> float:
    """Lambda beyond which unit noise of M x N comes in less than 1 % of matrices, when its variance is by the median.

    Centre and scale are Tracy and Widom's, the quantile is simulated. On fresh noise 0.7 to 0.9 % of matrices exceed
    it (20 x 20 to 1000 x 1000, aspect 1 to 16); the 99 % quantile of the law itself is exceeded by 1.8 % and more.

    >>> round(false_alarm_edge(200, 400) ** 0.5 / (20 + 200**0.5), 3)  # of the Marchenko-Pastur edge
    1.017
    """
    centre, scale = tracy_widom(M, N)
    return centre + scale * (EDGE + (A + B * M / N) / math.sqrt(M))


def _bulk(s: Spectrum) -> tuple[int, int, float, float] | str:
    """M, N, beta and the noise variance median(lambda) / (N mu_beta) in units of lambda_1; or why there is none."""
    M, N = sorted(s.shape)
    if s.blocks > 1:
        return "a grouped convolution is many small matrices, not one with a bulk"
    if len(s) < M:
        return "a product of thin factors has no bulk"
    if s.sigma_max == 0:
        return "the matrix is zero"
    if M < FEWEST:
        return f"only {M} values, a bulk needs {FEWEST}"
    median = float(np.median((s.values / s.sigma_max) ** 2))
    if math.sqrt(median) * s.sigma_max <= s.floor + float(s.error[M // 2]):
        return "half of the values are below the rounding floor: the bulk is rounding"
    return M, N, M / N, median / (N * mp_median(M / N))


@metric(
    "Noise level",
    formula="s = √(median(λ) / (N μ_β)), μ_β the median of the Marchenko-Pastur law, β = M / N",
    range="≥ 0",
    reference=LAW,
    degree=1,
)
def mp_sigma(s: Spectrum) -> float:
    """Standard deviation of the entries of the noise whose bulk has this layer's median."""
    bulk = _bulk(s)
    return Value.unknown(bulk) if isinstance(bulk, str) else math.sqrt(bulk[3]) * s.sigma_max


@metric("Edge of the noise bulk", formula="s √N (1 + √β), s the noise level", range="≥ 0", reference=LAW, degree=1)
def mp_edge(s: Spectrum) -> float:
    """Where the singular values would end if the layer were noise with its median; what is beyond has structure."""
    bulk = _bulk(s)
    if isinstance(bulk, str):
        return Value.unknown(bulk)
    _, N, beta, variance = bulk
    return math.sqrt(variance * N) * (1 + math.sqrt(beta)) * s.sigma_max


@metric(
    "Soft rank",
    formula="mp_edge² / λ₁",
    range="> 0",
    reference="Martin & Mahoney 2021, JMLR 22, arXiv 1810.01075",
    degree=0,
)
def mp_softrank(s: Spectrum) -> float:
    """Edge of the noise bulk over the largest λ: 1 for noise, small when a few directions tower over the bulk."""
    edge = mp_edge(s)
    return (edge / s.sigma_max) ** 2 if s.sigma_max and not math.isnan(edge) else Value.unknown(str(_bulk(s)))


@metric(
    "Distance from noise",
    formula="sup |F_M(λ / (N s²)) − F_β|, F_β the Marchenko-Pastur law",
    range="0 ... 1",
    reference=LAW,
    degree=0,
)
def mp_distance(s: Spectrum) -> float:
    """Largest gap between the spectrum's distribution and that of noise: about 1 / M for an untrained layer.

    The Kolmogorov-Smirnov distance over both sides of every step.
    """
    bulk = _bulk(s)
    if isinstance(bulk, str):
        return Value.unknown(bulk)
    M, N, beta, variance = bulk
    law = mp_cdf((s.values[::-1] / s.sigma_max) ** 2 / (N * variance), beta)
    steps = np.arange(M + 1) / M
    return float(max(np.max(law - steps[:-1]), np.max(steps[1:] - law)))


@metric(
    "Spikes",
    formula="#{λ > s² (centre + t scale)}: Tracy & Widom's centre and scale, t calibrated to < 1 % false alarms",
    range="0 ... M",
    reference="Johnstone 2001, Ann. Statist. 29(2); Benaych-Georges & Nadakuditi 2012, J. Multivar. Anal. 111, "
    "arXiv 1103.2221; calibration: benchmarks/metrics/calibrate_edge.py",
    degree=0,
)
def spikes(s: Spectrum) -> float:
    """Number of directions that noise with this layer's median would not have: signal, or an artefact.

    Less than 1 % of noise matrices show one. The detail has the edge in sigma, and of the largest spikes the strength
    theta of the direction before noise was added to it: the noise N s^2 moves t = theta^2 / (N s^2) > sqrt(beta) to
    lambda = N s^2 (1 + t)(beta + t) / t; a weaker direction cannot be seen in the spectrum.

    >>> from netspectra.linalg.svd import svdvals
    >>> noise = np.random.default_rng(0).standard_normal((100, 200))
    >>> float(spikes(svdvals(noise))), float(spikes(svdvals(noise + 0.3)))
    (0.0, 1.0)
    """
    bulk = _bulk(s)
    if isinstance(bulk, str):
        return Value.unknown(bulk)
    M, N, beta, variance = bulk
    edge = math.sqrt(variance * false_alarm_edge(M, N)) * s.sigma_max
    beyond = s.values[s.values > edge]
    seen = (beyond[:SHOWN] / s.sigma_max) ** 2 / (N * variance)
    excess = seen - 1 - beta
    t = (excess + np.sqrt(np.maximum(excess**2 - 4 * beta, 0.0))) / 2
    strengths = np.sqrt(t * N * variance) * s.sigma_max
    detail = {"edge": edge, "false_alarms": NOMINAL, "strengths": strengths.tolist()}
    return Value(float(len(beyond)), detail=detail)


@metric(
    "Gavish-Donoho rank",
    formula="#{σ > ω(β) median(σ)}, ω = √(2(β+1) + 8β / (β+1 + √(β²+14β+1))) / √μ_β",
    range="0 ... M",
    reference="Gavish & Donoho 2014, IEEE Trans. Inf. Theory 60(8), arXiv 1305.5870",
    degree=0,
)
def gavish_donoho_rank(s: Spectrum) -> float:
    """Number of singular values to keep for the least squared error, if the layer were low rank plus white noise.

    >>> from netspectra.linalg.svd import svdvals
    >>> float(gavish_donoho_rank(svdvals(np.random.default_rng(0).standard_normal((50, 50)) + 1.0)))
    1.0
    """
    bulk = _bulk(s)
    if isinstance(bulk, str):
        return Value.unknown(bulk)
    threshold = gavish_donoho_factor(bulk[2]) * float(np.median(s.values))
    return float(np.count_nonzero(s.values > threshold))


def gavish_donoho_factor(beta: float) -> float:
    """omega(beta): the threshold for singular values in units of their median.

    >>> [round(gavish_donoho_factor(1 / Q), 4) for Q in (1, 2, 4, 8, 16)]
    [2.8584, 2.1712, 1.8369, 1.65, 1.5428]
    """
    star = 2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta * beta + 14 * beta + 1))
    return math.sqrt(star / mp_median(beta))
