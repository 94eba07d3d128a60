"""Whether another law describes a tail better than the power law: likelihood ratios."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["compare_laws"]

NODES, WEIGHTS = np.polynomial.legendre.leggauss(128)
REACH = 50.0  # the integrand is cut where it has fallen by e^-50


def compare_laws(tail: np.ndarray, xmin: float, alpha: float) -> dict[str, dict[str, float]]:
    """Likelihood ratio of the power law against an exponential, a lognormal and a truncated power law.

    ``ratio`` is positive where the power law is the likelier, ``p`` is the chance of a ratio as far from 0 if both
    describe the tail equally well. For the exponential and the lognormal (not nested) it is Vuong's: the summed log
    ratio over sqrt(k) times its standard deviation, p = erfc(|ratio| / sqrt 2). The power law is a special case of the
    truncated one, x^-a exp(-x / c): its ratio is the plain summed log ratio, never above 0, and p that of Wilks.

    Args:
        tail: the values >= ``xmin``.
        xmin: where the tail begins.
        alpha: the fitted exponent.

    Source: Vuong 1989, Econometrica 57(2); Clauset, Shalizi & Newman 2009, arXiv 0706.1062, section 5 and appendix C.
    Cost: a hundred or two evaluations of each likelihood, some milliseconds. The values are taken for independent.

    >>> y = (1 - np.random.default_rng(0).random(2000)) ** (-1 / 2)
    >>> laws = compare_laws(y, 1.0, 3.0)
    >>> laws["exponential"]["ratio"] > 3, laws["truncated power law"]["p"] > 0.1
    (True, True)
    """
    y = tail / xmin
    logs = np.log(y)
    power = math.log(alpha - 1) - alpha * logs
    found = {}
    for name, likelihood in (("exponential", _exponential), ("lognormal", _lognormal)):
        difference = power - likelihood(y, logs)
        spread = float(np.std(difference)) * math.sqrt(len(y))
        ratio = float(difference.sum()) / spread if spread > 0 else 0.0
        found[name] = {"ratio": ratio, "p": math.erfc(abs(ratio) / math.sqrt(2))}
    ratio = min(0.0, float((power - _truncated(y, logs, alpha)).sum()))
    found["truncated power law"] = {"ratio": ratio, "p": math.erfc(math.sqrt(-ratio))}
    return found


def _exponential(y: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Log density of each value under the likeliest exponential from 1 on."""
    rate = 1 / max(float(y.mean()) - 1, 1e-300)
    return math.log(rate) - rate * (y - 1)


def _lognormal(y: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """The same for a lognormal that is cut off below 1."""
    from scipy.special import log_ndtr  # here, because importing scipy costs more than a default analysis needs

    def density(at: np.ndarray) -> np.ndarray:
        mean, width = float(at[0]), math.exp(float(at[1]))
        kept = float(log_ndtr(mean / width))
        return -logs - 0.5 * ((logs - mean) / width) ** 2 - math.log(width * math.sqrt(2 * math.pi)) - kept

    return density(_likeliest(density, [float(logs.mean()), math.log(max(float(logs.std()), 1e-6))]))


def _truncated(y: np.ndarray, logs: np.ndarray, alpha: float) -> np.ndarray:
    """The same for y^-a exp(-rate y)."""

    def density(at: np.ndarray) -> np.ndarray:
        a, rate = float(at[0]), math.exp(float(at[1]))
        return -a * logs - rate * (y - 1) - _log_integral(a, rate)

    return density(_likeliest(density, [alpha, math.log(1e-3 / float(y.max()))]))


def _log_integral(a: float, rate: float) -> float:
    """ln of the integral of y^-a exp(-rate (y - 1)) from 1 on, by Gauss-Legendre in ln y."""
    end = math.log1p(REACH / rate)
    if a > 1:
        end = min(end, REACH / (a - 1))
    u = end * (NODES + 1) / 2
    exponent = (1 - a) * u - rate * np.expm1(u)
    top = float(exponent.max())
    return top + math.log(float(np.exp(exponent - top) @ WEIGHTS) * end / 2)


def _likeliest(density: Callable[[np.ndarray], np.ndarray], start: list[float]) -> np.ndarray:
    from scipy.optimize import minimize

    def loss(at: np.ndarray) -> float:
        inside = abs(at[0]) < 1e3 and -40 < at[1] < 40
        value = -float(density(at).sum()) if inside else math.inf
        return value if math.isfinite(value) else 1e300

    return minimize(loss, start, method="Nelder-Mead", options={"maxiter": 400, "xatol": 1e-5}).x
