"""Frames of three axes in a space of many dimensions, and the way from one to the other."""

from __future__ import annotations

import numpy as np

__all__ = ["axes_frame", "path", "principal_frame"]

STEPS = 24


def axes_frame(directions: np.ndarray) -> np.ndarray:
    """The orthonormal frame of the span of ``directions`` that is closest to the d coordinate axes it involves most.

    Args:
        directions: (n, d), orthonormal columns v_1 ... v_d.

    Returns:
        (d, d), orthonormal columns: each an axis of the frame in the coordinates v_1 ... v_d, the determinant 1.

    Source: the polar factor, Higham 1986, SIAM J. Sci. Stat. Comput. 7(4).

    >>> turned = np.array([[0.6, -0.8], [0.8, 0.6], [0.0, 0.0]])
    >>> np.allclose(abs(axes_frame(turned)), abs(turned[:2].T))  # the span holds the first two axes
    True
    """
    d = directions.shape[1]
    leverage = np.sum(directions**2, axis=1)
    chosen = np.sort(np.argsort(-leverage, kind="stable")[:d])
    return _turning(_orthonormal(directions[chosen].T))


def principal_frame(points: np.ndarray, d: int) -> tuple[np.ndarray, float]:
    """The d directions in which the points have the most energy (no mean is taken off), and its share of all.

    Args:
        points: (count, n).
        d: how many, at most min(count, n) of which carry energy.

    Returns:
        (n, d) with orthonormal columns; the share, 0 where every point is zero.

    >>> frame, share = principal_frame(np.array([[3.0, 0.0], [0.0, 4.0]]), 1)
    >>> abs(frame[:, 0]).round(6).tolist(), round(share, 6)
    ([0.0, 1.0], 0.64)
    """
    count, n = points.shape
    top = float(np.abs(points).max(initial=0.0))
    if top == 0:
        return np.eye(n, d), 0.0
    scaled = points / top
    if n <= count:
        energies, frame = np.linalg.eigh(scaled.T @ scaled)
        frame = frame[:, ::-1][:, :d]
    else:
        energies, left = np.linalg.eigh(scaled @ scaled.T)
        kept = min(d, count)
        frame = np.linalg.qr(np.concatenate([scaled.T @ left[:, ::-1][:, :kept], np.eye(n, d)], axis=1))[0][:, :d]
    share = float(energies[::-1][:d].sum() / max(energies.sum(), 1e-300))
    return frame, min(max(share, 0.0), 1.0)


def path(start: np.ndarray, end: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Frames from ``start`` to ``end``, each orthonormal: a rigid turn as seen on the screen.

        F(t) = the orthonormal frame nearest to (1 - t) start + t end

    Args:
        start: (n, d), orthonormal columns.
        end: likewise.
        steps: how many steps; steps + 1 frames.

    Returns:
        (steps + 1, n, d).

    >>> frames = path(np.eye(3, 2), np.eye(3)[:, [0, 2]], steps=2)
    >>> frames[1].round(4).tolist()
    [[1.0, 0.0], [0.0, 0.7071], [0.0, 0.7071]]
    """
    between = [start + t * (end - start) for t in np.linspace(0, 1, steps + 1)]
    return np.stack([start, *(_orthonormal(frame) for frame in between[1:-1]), end])


def facing(frame: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The frame with the sign of each axis such that it points no further than a right angle from the other's."""
    return frame * np.where(np.sum(frame * other, axis=0) < 0, -1.0, 1.0)


def _orthonormal(frame: np.ndarray) -> np.ndarray:
    u, _, vh = np.linalg.svd(frame, full_matrices=False)
    return u @ vh


def _turning(frame: np.ndarray) -> np.ndarray:
    """Signs such that the way from the frame to the unit frame is a turn without a mirror, and short."""
    frame = facing(frame, np.eye(len(frame)))
    if np.linalg.det(frame) < 0:
        weakest = int(np.argmin(np.abs(np.diag(frame))))
        frame[:, weakest] *= -1
    return frame
