"""Who runs on which job. The first contender of a job is ours; the ratios are against the named baseline."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from netspectra.linalg.batch import svdvals_batch
from netspectra.linalg.conv import conv_operator
from netspectra.linalg.conv_spectrum import conv_svdvals
from netspectra.linalg.norm import conv_norm
from netspectra.linalg.svd import svd, svdvals

OURS = "netspectra"
Run = dict[str, Callable[[], object]]

SQUARE_AND_WIDE = [
    (384, 384), (384, 1536), (768, 768), (768, 3072), (2048, 2048), (4096, 4096), (4096, 11008), (32000, 4096),
]  # fmt: skip
SMALL = [(16, 16), (32, 32), (64, 64), (96, 96), (192, 192)]
QUICK = [(384, 384), (384, 1536), (768, 768), (768, 3072), (1024, 1024)]
# one layer of a 7B model: attention 4 of 4096 x 4096, gate, up and down of 4096 x 11008; two embeddings
MODEL_7B = {(4096, 4096): 4 * 32, (4096, 11008): 3 * 32, (32000, 4096): 2}


def gaussian(m: int, n: int, seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((m, n), dtype=np.float32))


def all_values(A: Tensor, *, slow: bool) -> Run:
    """All singular values of a float32 matrix as stored."""
    m, n = A.shape
    runs: Run = {OURS: lambda: svdvals(A), "torch f32": lambda: torch.linalg.svdvals(A)}
    turned = A.T.contiguous()
    if m != n:
        runs["torch f32, transposed"] = lambda: torch.linalg.svdvals(turned)
    if slow:
        wide, array = A.double(), A.numpy()
        runs["torch f64"] = lambda: torch.linalg.svdvals(wide)
        if m != n:
            turned64 = turned.double()
            runs["torch f64, transposed"] = lambda: torch.linalg.svdvals(turned64)
        runs["numpy f32"] = lambda: np.linalg.svd(array, compute_uv=False)
        runs["scipy gesdd f32"] = lambda: scipy.linalg.svd(array, compute_uv=False, lapack_driver="gesdd")
        runs["scipy gesvd f32"] = lambda: scipy.linalg.svd(array, compute_uv=False, lapack_driver="gesvd")
    return runs


def value_errors(A: Tensor) -> dict[str, float]:
    """Largest relative error of a value above 1e-6 sigma_1, against float64."""
    truth = torch.linalg.svdvals(A.double() if A.shape[0] >= A.shape[1] else A.T.double().contiguous()).numpy()
    keep = truth > 1e-6 * truth[0]
    found = {OURS: svdvals(A).values, "torch f32": torch.linalg.svdvals(A).double().numpy()}
    return {name: float(np.max(np.abs(v[keep] / truth[keep] - 1))) for name, v in found.items()}


def batch(g: int, m: int, n: int) -> Run:
    A = torch.from_numpy(np.random.default_rng(2).standard_normal((g, m, n), dtype=np.float32))
    runs: Run = {OURS: lambda: svdvals_batch(A), "torch f32": lambda: torch.linalg.svdvals(A)}
    if m != n:
        turned = A.mT.contiguous()
        runs["torch f32, transposed"] = lambda: torch.linalg.svdvals(turned)
    return runs


def convolution(channels: int, grid: int) -> Run:
    """All values of a circular convolution; the peers transform half the frequencies and call svdvals on each.

    In complex64 it does not reach the 1e-8 that ours gives; in complex128 it does.
    """
    kernel = torch.from_numpy(np.random.default_rng(3).standard_normal((channels, channels, 3, 3), dtype=np.float32))
    A = conv_operator(kernel, (grid, grid), padding=1, mode="circular")

    def per_frequency(dtype: torch.dtype) -> Tensor:
        blocks = torch.fft.rfft2(kernel.to(dtype), s=(grid, grid)).permute(2, 3, 0, 1).reshape(-1, channels, channels)
        return torch.linalg.svdvals(blocks)

    return {
        OURS: lambda: conv_svdvals(A),
        "rfft2 + torch svdvals c64": lambda: per_frequency(torch.float32),
        "rfft2 + torch svdvals c128": lambda: per_frequency(torch.float64),
    }


def zero_padded_norm(channels: int, grid: int) -> Run:
    """Norm of a zero-padded convolution; the baseline is the reshaped kernel, which answers another question."""
    kernel = torch.from_numpy(np.random.default_rng(4).standard_normal((channels, channels, 3, 3), dtype=np.float32))
    A = conv_operator(kernel, (grid, grid), padding=1)
    return {
        OURS: lambda: conv_norm(A, bound=False),
        "netspectra with bound": lambda: conv_norm(A),
        "reshaped kernel (not the norm)": lambda: torch.linalg.matrix_norm(kernel.flatten(1), 2),
    }


def truncated(A: Tensor, k: int) -> Run:
    """Leading k triplets; sklearn joins where it is installed."""
    runs: Run = {
        OURS: lambda: svd(A, k=k),
        "torch full svd f32": lambda: torch.linalg.svd(A, full_matrices=False),
        "torch svd_lowrank, niter 2": lambda: torch.svd_lowrank(A, q=k, niter=2),
    }
    try:
        from sklearn.utils.extmath import randomized_svd
    except ImportError:
        return runs
    array = A.numpy()
    runs["sklearn randomized_svd"] = lambda: randomized_svd(array, k, random_state=0)
    return runs


def truncated_residuals(A: Tensor, k: int) -> dict[str, float]:
    """max(||A v - s u||, ||A^T u - s v||) / s_1 of each."""
    ours = svd(A, k=k)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        U, S, V = torch.svd_lowrank(A, q=k, niter=2)
    right = torch.linalg.vector_norm(A @ V - U * S, dim=0).max()
    left = torch.linalg.vector_norm(A.T @ U - V * S, dim=0).max()
    return {OURS: ours.residual, "torch svd_lowrank, niter 2": float(torch.maximum(left, right) / S[0])}
