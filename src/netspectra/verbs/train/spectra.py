"""What is known of the singular values of a Jacobian: all of them where it is small, estimates where it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.batch import svdvals_batch
from netspectra.linalg.density import spectral_density
from netspectra.linalg.lanczos import Triplets, golub_kahan
from netspectra.linalg.spectrum import How
from netspectra.live.jacobian import Differences, Jacobian, NoForwardProducts, energies, sample_jacobians
from netspectra.record import Value

__all__ = ["BAND", "JacobianSpectrum", "Limits", "gauss_probes", "leading", "spectrum_of"]

BAND = (0.1, 10.0)  # singular values that neither vanish nor explode
DEEPEST = 8.0  # decades beyond which it does not matter how much is lost
BLOCK_SAMPLES = 8  # of a single block, so many matrices are decomposed; its rms is that of all samples
ENTRIES = 1 << 25  # numbers in the Jacobians of all samples beyond which they are not formed


@dataclass(frozen=True)
class Limits:
    """How much work a Jacobian may be.

    Attributes:
        exact: largest short side that is decomposed in full.
        probes: random vectors for norms; a quarter of them for the density.
        steps: Golub-Kahan steps, two products each.
        seed: of the probes.
    """

    exact: int = 256
    probes: int = 8
    steps: int = 10
    seed: int = 0


@dataclass(frozen=True, eq=False)
class JacobianSpectrum:
    """Singular values of the Jacobians of all samples, together.

    Attributes:
        shape: (m, n) of the Jacobian of one sample.
        count: singular values of one sample that can differ from zero: the narrowest size between its two ends.
        rms: sqrt(||J||_F^2 / count), mean over the samples.
        max: the largest of all.
        median: of the ``count`` largest values.
        lost: mean over them of max(0, -log10 sigma), each at most 8: decades by which the average direction shrinks.
        share: of them in 0.1 ... 10.
        effective_rank: exp of the entropy of sigma / sum sigma, of one sample.
        condition_number: largest over smallest, median over the samples; never from an estimate.
        how: ``exact`` or ``estimated``.
        values: (samples, count), descending, where exact.
        products: with J or its transpose, in vectors of the whole batch.
    """

    shape: tuple[int, int]
    count: int
    rms: Value
    max: Value
    median: Value
    lost: Value
    share: Value
    effective_rank: Value
    condition_number: Value
    how: How
    values: np.ndarray | None = None
    products: int = 0


def gauss_probes(count: int, like: Tensor, seed: int) -> list[Tensor]:
    """Random vectors of a tensor's shape, the same on every device: of any direction, their mean square one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(like.shape, generator=generator) for _ in range(count)]
    return [(w / w.square().mean().sqrt()).to(like) for w in drawn]


def spectrum_of(
    source: Tensor,
    target: Tensor,
    samples: int,
    count: int,
    limits: Limits,
    *,
    function: Callable[[Tensor], Tensor] | None = None,
    density: bool = True,
) -> JacobianSpectrum:
    """The spectrum of d target / d source.

    Args:
        source: tensor of a graph.
        target: tensor that depends on it.
        samples: how many independent ones both hold along their first axis; 1 if they are one whole.
        count: the narrowest size between the two.
        limits: of the work.
        function: from source to target, for differences where a kernel cannot be differentiated twice.
        density: estimate the distribution too where the Jacobian is large.
    """
    m, n = target.numel() // samples, source.numel() // samples
    if min(m, n) <= limits.exact and samples * m * n <= ENTRIES:
        return _exact(sample_jacobians(source, target, samples), count, samples if density else BLOCK_SAMPLES)
    return _estimated(source, target, samples, count, limits, function, density)


def _exact(J: Tensor, count: int, most: int) -> JacobianSpectrum:
    """From the matrices; no more than ``most`` of them are decomposed."""
    samples, m, n = J.shape
    values = np.stack([spectrum.values[:count] for spectrum in svdvals_batch(J[:most])])
    error = 8 * float(torch.finfo(J.dtype).eps) * float(values.max())  # of the products that J is made of
    rms = math.sqrt(float(J.double().square().sum()) / (samples * count))
    low = values[:, -1]
    if (low > 8 * error).all():
        condition = Value(float(np.median(values[:, 0] / low)))
    else:
        condition = Value.unknown("the smallest singular value cannot be told from zero")
    return JacobianSpectrum(
        (m, n),
        count,
        Value(rms, error=error),
        Value(float(values.max()), error=error),
        Value(float(np.median(values)), error=error),
        Value(float(_decades_lost(values).mean())),
        Value(float(np.mean((values >= BAND[0]) & (values <= BAND[1])))),
        Value(
            float(np.mean([_entropy_rank(row.sum(), (row[row > 0] * np.log(row[row > 0])).sum()) for row in values]))
        ),
        condition,
        "exact",
        values,
        min(m, n),
    )


def _decades_lost(values: np.ndarray) -> np.ndarray:
    """max(0, -log10 sigma), at most 8."""
    return np.clip(-np.log10(np.maximum(values, 10.0**-DEEPEST)), 0.0, DEEPEST)


def _entropy_rank(total: float, logs: float) -> float:
    """exp(-sum p ln p) for p = sigma / total, from the sums of sigma and of sigma ln sigma."""
    return math.exp(math.log(total) - logs / total) if total > 0 else 0.0


def _estimated(
    source: Tensor,
    target: Tensor,
    samples: int,
    count: int,
    limits: Limits,
    function: Callable[[Tensor], Tensor] | None,
    density: bool,
) -> JacobianSpectrum:
    m, n = target.numel() // samples, source.numel() // samples
    (sums,) = energies([source], target, gauss_probes(limits.probes, target, limits.seed))
    rms = root_mean(sums.sum(1) / (samples * count))
    plain = JacobianSpectrum(
        (m, n), count, rms, *[Value.unknown("not asked for")] * 6, how="estimated", products=limits.probes
    )
    J: Jacobian = Jacobian(source, target)
    note = ""
    try:
        J.check(limits.seed)
    except NoForwardProducts as why:
        if function is None:
            return replace(plain, max=Value.unknown(f"no products with J: {why}"))
        J = Differences(source, target, function)
        try:
            J.check(limits.seed)
        except NoForwardProducts:
            return replace(plain, max=Value.unknown(f"no products with J: {why}, and differences do not agree either"))
        note = "products with J by central differences"
    top = golub_kahan(J, 1, tolerance=1e-3, max_steps=limits.steps, seed=limits.seed)
    largest = Value(leading(top), error=float(top.residual[0]), note=note or "at least")
    found = replace(
        plain,
        max=largest,
        condition_number=Value.unknown("no estimate gives the smallest singular value"),
    )
    if density:
        found = _with_density(found, J, samples, limits)
    return replace(found, products=J.products + limits.probes)


def leading(found: Triplets) -> float:
    """The largest singular value from a few steps: ||J^T u_1|| = sqrt(s^2 + residual^2), never more than the truth."""
    return math.hypot(float(found.S[0]), float(found.residual[0]))


def _with_density(found: JacobianSpectrum, J: Jacobian, samples: int, limits: Limits) -> JacobianSpectrum:
    d = spectral_density(J, probes=max(2, limits.probes // 4), steps=2 * limits.steps, seed=limits.seed + 1)
    part = found.count * samples / d.count  # of the singular values; the others are zero by a narrow place
    points, weights = d.values.ravel(), d.weights.ravel() / len(d.values)
    order = np.argsort(points)
    points, weights = points[order], weights[order]
    above = np.cumsum(weights[::-1])[::-1]
    median = points[max(0, int(np.searchsorted(-above, -part / 2, side="right")) - 1)]
    inside = min(part, float(weights[(points >= BAND[0]) & (points <= BAND[1])].sum())) / part
    total, _ = d.sum(lambda s: s)
    logs, _ = d.sum(lambda s: np.where(s > 0, s * np.log(np.where(s > 0, s, 1.0)), 0.0))
    told = f"estimated from {len(d.values)} probes"
    closed = DEEPEST * (d.count - found.count * samples)
    lost = max(0.0, (d.sum(_decades_lost)[0] - closed) / (found.count * samples))
    return replace(
        found,
        median=Value(float(median), note=told),
        lost=Value(lost, note=told),
        share=Value(inside, note=told),
        effective_rank=Value(_entropy_rank(total, logs) / samples, note=told),
    )


def root_mean(sums: Tensor) -> Value:
    """The root of a mean over probes, with its standard error."""
    mean = float(sums.mean())
    if mean <= 0 or len(sums) < 2:
        return Value(math.sqrt(max(mean, 0.0)))
    spread = float(sums.std()) / math.sqrt(len(sums))
    root = math.sqrt(mean)
    return Value(root, error=spread / (2 * root), note=f"estimated from {len(sums)} probes")
