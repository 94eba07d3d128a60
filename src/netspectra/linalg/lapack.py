"""BLAS and LAPACK routines that numpy and torch keep to themselves, from the library that scipy carries.

They are taken from ``scipy.linalg.cython_blas`` and ``cython_lapack``, which scipy offers to compiled callers. A call
through `ctypes` works in place and lets go of the interpreter lock; scipy's own wrappers hold it, so that a pool of
workers would stand in a queue.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import scipy.linalg

__all__ = ["Tridiagonal", "cholesky_", "gram_update_", "tridiagonal_"]

BLOCK = 64  # workspace columns: what every blocked routine here asks for at most


_NAME = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_POINTER = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@cache
def _routine(name: str) -> Callable[..., None]:
    """The Fortran routine of this name, every argument a pointer."""
    blas, lapack = (importlib.import_module(f"scipy.linalg.cython_{part}").__pyx_capi__ for part in ("blas", "lapack"))
    capsule = lapack[name] if name in lapack else blas[name]
    signature = _NAME(capsule)
    if b"int *" not in signature or b"long" in signature or b"int64" in signature:
        raise ImportError(f"scipy's {name} takes no 32-bit integers: {signature.decode()}")
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * signature.count(b"*"))(_POINTER(capsule, signature))


def _call(name: str, *arguments: bytes | int | float | np.ndarray) -> None:
    """Call by reference: letters, integers, float64 numbers and arrays."""
    passed: list[Any] = []
    for argument in arguments:
        if isinstance(argument, np.ndarray):
            passed.append(argument.__array_interface__["data"][0])
        elif isinstance(argument, bytes):
            passed.append(argument)
        else:
            number = ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_double(argument)
            passed.append(ctypes.byref(number))
    _routine(name)(*passed)


def gram_update_(C: np.ndarray, X: np.ndarray, *, add: bool = False, of_rows: bool = False) -> None:
    """Lower triangle of C <- X^H X, or X X^H ``of_rows``; half the work of a general product.

    Args:
        C: (n, n), float64 or complex128, rows contiguous; above the diagonal nothing is touched.
        X: (k, n), or (n, k) ``of_rows``; the same dtype, rows contiguous.
        add: onto what C holds.

    >>> C = np.zeros((2, 2))
    >>> gram_update_(C, np.array([[1.0, 2.0], [0.0, 3.0]]))
    >>> C
    array([[ 1.,  0.],
           [ 2., 13.]])
    """
    n, k = X.shape if of_rows else X.shape[::-1]
    if min(k, n) == 0:
        return
    # Fortran sees the transposes of both, and the upper triangle: conj(X^H X) = X^T conj(X)
    name, adjoint = ("zherk", b"C") if X.dtype == np.complex128 else ("dsyrk", b"T")
    lda, ldc = max(X.shape[1], X.strides[0] // X.itemsize), max(n, C.strides[0] // C.itemsize)
    _call(name, b"U", adjoint if of_rows else b"N", n, k, 1.0, X, lda, 1.0 if add else 0.0, C, ldc)


def cholesky_(G: np.ndarray) -> bool:
    """Replace the lower triangle of G by its Cholesky factor, in place; False where G is not positive definite.

    >>> G = np.array([[4.0, 9.0], [2.0, 5.0]])
    >>> cholesky_(G), G.tolist()
    (True, [[2.0, 9.0], [1.0, 2.0]])
    """
    info = np.zeros(1, np.int32)
    _call("zpotrf" if G.dtype == np.complex128 else "dpotrf", b"U", len(G), G, len(G), info)
    return not info[0]


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """A Hermitian matrix as Q T Q^H: the diagonals of T, which is real, and Q as the reflectors it is a product of.

    Attributes:
        diagonal: (n,).
        beside: (n - 1,).
        reflectors: (n, n), in the memory of the matrix they reduced.
        tau: (n - 1,), their scales.
    """

    diagonal: np.ndarray
    beside: np.ndarray
    reflectors: np.ndarray
    tau: np.ndarray

    def eigenvalues(self) -> np.ndarray:
        """All of them, descending, by the Pal-Walker-Kahan variant of the QL and QR iterations.

        Raises:
            LinAlgError: no convergence: of finite numbers this is not known to happen.
        """
        d, e, info = self.diagonal.copy(), self.beside.copy(), np.zeros(1, np.int32)
        _call("dsterf", len(d), d, e, info)
        if info[0]:
            raise np.linalg.LinAlgError("the tridiagonal eigensolver did not converge")
        return d[::-1].copy()

    def lowest(self, k: int) -> np.ndarray:
        """Orthonormal eigenvectors (n, k) of the k smallest eigenvalues, ascending.

        Raises:
            LinAlgError: the eigenvectors were not found; another route has to answer.
        """
        _, Z = scipy.linalg.eigh_tridiagonal(self.diagonal, self.beside, select="i", select_range=(0, k - 1),
                                             check_finite=False)  # fmt: skip
        return self.back(Z)

    def back(self, X: np.ndarray, adjoint: bool = False) -> np.ndarray:
        """Q X, or Q^H X, for X of shape (n, k)."""
        n, k = X.shape
        dtype = self.reflectors.dtype
        work, info = np.empty(BLOCK * (k + BLOCK + 1), dtype), np.zeros(1, np.int32)
        # Fortran was given the conjugate matrix, so its Q is the conjugate of ours
        Y = np.array(X.conj(), dtype=dtype, order="F")
        name, turn = ("zunmtr", b"C") if dtype == np.complex128 else ("dormtr", b"T")
        turn = turn if adjoint else b"N"
        _call(name, b"L", b"U", turn, n, k, self.reflectors, n, self.tau, Y, n, work, len(work), info)
        return Y.conj()

    def solver(self, shift: float) -> Callable[[np.ndarray], np.ndarray] | None:
        """B -> (Q T Q^H + shift)^-1 B for B of shape (n, k); None where that is not positive definite.

        Cost: 8 n^2 k operations a call.
        """
        n = len(self.diagonal)
        d, e, info = self.diagonal + shift, self.beside.copy(), np.zeros(1, np.int32)
        _call("dpttrf", n, d, e, info)
        if info[0]:
            return None

        def solve(B: np.ndarray) -> np.ndarray:
            X = self.back(B, adjoint=True)
            parts = [X] if X.dtype == np.float64 else [np.asfortranarray(part) for part in (np.real(X), np.imag(X))]
            for part in parts:
                _call("dpttrs", n, part.shape[1], d, e, part, n, info)
            return self.back(parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1])

        return solve


def tridiagonal_(G: np.ndarray) -> Tridiagonal:
    """Reduce a Hermitian matrix, held in its lower triangle, to tridiagonal form; its memory is used up.

    Args:
        G: (n, n), float64 or complex128, rows contiguous.

    Cost: 4/3 n^3 operations, half of them products of the matrix with one vector.

    >>> tridiagonal_(np.array([[2.0, 0.0], [1.0, 2.0]])).eigenvalues()
    array([3., 1.])
    """
    n = len(G)
    d, e, tau = np.empty(n), np.empty(max(1, n - 1)), np.empty(max(1, n - 1), G.dtype)
    work, info = np.empty(BLOCK * n, G.dtype), np.zeros(1, np.int32)
    _call("zhetrd" if G.dtype == np.complex128 else "dsytrd", b"U", n, G, n, d, e, tau, work, len(work), info)
    return Tridiagonal(d, e[: n - 1], G, tau[: n - 1])
