"""How alike two representations of the same samples are: debiased CKA, principal angles, Procrustes."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["debiased_cka", "principal_cosines", "procrustes"]


def debiased_cka(X: Tensor, Y: Tensor) -> float:
    """Centred kernel alignment of two representations, linear kernels, without the bias of few samples.

        CKA = h(K, L) / sqrt(h(K, K) h(L, L)),    K = X X^T, L = Y Y^T with zero diagonal,
        h(K, L) = [tr(K L) + sum(K) sum(L) / ((N - 1)(N - 2)) - 2 (1^T K L 1) / (N - 2)] / (N (N - 3))

    The plain estimate tends to 1 as widths grow past N, whatever is compared; this one is near 0 for independent
    representations, and may be slightly negative. 1 for representations equal up to rotation, scale and shift.

    Args:
        X: (N, d) one sample a row; N >= 4.
        Y: (N, d').

    Reference: Kornblith et al. 2019, arXiv 1905.00414; unbiased HSIC: Song et al. 2012, JMLR 13; in CKA: Nguyen et al.
    2021, arXiv 2010.15327.

    >>> X = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    >>> Y = torch.randn(50, 200, generator=torch.Generator().manual_seed(1))
    >>> round(debiased_cka(X, 3 * X + 1), 6), abs(debiased_cka(X, Y)) < 0.1
    (1.0, True)
    """
    K, L = _gram(X), _gram(Y)
    between, first, second = _hsic(K, L), _hsic(K, K), _hsic(L, L)
    return between / (first * second) ** 0.5 if first > 0 and second > 0 else float("nan")


def _gram(X: Tensor) -> Tensor:
    if len(X) < 4:
        raise ValueError(f"debiased CKA needs at least 4 samples, got {len(X)}")
    X = X.double() - X.double().mean(0)
    K = X @ X.mT
    return K.fill_diagonal_(0.0)


def _hsic(K: Tensor, L: Tensor) -> float:
    n = len(K)
    one = float(K.sum()) * float(L.sum()) / ((n - 1) * (n - 2))
    return (float((K * L).sum()) + one - 2 * float(K.sum(0) @ L.sum(0)) / (n - 2)) / (n * (n - 3))


def principal_cosines(X: Tensor, Y: Tensor, k: int) -> Tensor:
    """Cosines of the principal angles between the leading k-dimensional sample subspaces of two representations.

    Of centred X = U S V^T the first k columns of U, likewise of Y: the singular values of U_k^T U'_k. For independent
    representations the mean squared cosine is k / (N - 1), which must be small for the cosines to mean anything.

    Args:
        X: (N, d).
        Y: (N, d').
        k: dimensions; at most min(d, d', N - 1).

    Returns:
        (k,), descending.

    Reference: Bjorck & Golub 1973.

    >>> X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    >>> principal_cosines(X, X.flip(1), 3).round(decimals=6).tolist()
    [1.0, 1.0, 1.0]
    """
    bases = [torch.linalg.svd(Z.double() - Z.double().mean(0), full_matrices=False).U[:, :k] for Z in (X, Y)]
    return torch.linalg.svdvals(bases[0].mT @ bases[1]).clamp(max=1.0)


def procrustes(X: Tensor, Y: Tensor) -> float:
    """How well a rotation and a scale carry one representation onto the other.

        max over orthogonal R of  <X, Y R> / (|X| |Y|)  =  |X^T Y|_* / (|X|_F |Y|_F)

    after centring, between 0 and 1; 1 - its square is the share of X that the best such map leaves.

    Args:
        X: (N, d).
        Y: (N, d'); the narrower one is padded with zeros.

    Reference: Schonemann 1966; Williams et al. 2021, arXiv 2110.14739.

    >>> X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    >>> round(procrustes(X, 2 * X.flip(1)), 6)
    1.0
    """
    X, Y = X.double() - X.double().mean(0), Y.double() - Y.double().mean(0)
    size = float(torch.linalg.vector_norm(X) * torch.linalg.vector_norm(Y))
    return float(torch.linalg.svdvals(X.mT @ Y).sum()) / size if size > 0 else float("nan")
