"""Second moments of what enters and leaves a layer: sums, means, shrinkage, square roots, and files of them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from netspectra.errors import EnvironmentFailure, InputRefused

__all__ = ["Moments", "folded", "load_moments", "root", "save_moments", "shrunk", "unfolded"]


REGULAR = 1e-10  # smallest pivot over largest: above it a matrix is factored as it is


@dataclass(eq=False)
class Moments:
    """Sums over tokens (or pixels) x of one kind: x x^T, x, and how many, in float64.

    A sum of x x^T is symmetric, so half of it is held: see `folded`. It may also lie in a file, and is then read each
    time it is asked for.

    Three layouts of ``total``: (n, n); (n,) where x is one-hot, so that x x^T is diagonal (the counts of an
    embedding's rows); (g, n, n) for the groups of a grouped convolution, each seeing its own n of the g n inputs.

    Attributes:
        held: sum of x x^T, folded; (n,) for a diagonal one; or what loads it.
        sum: sum of x: (n,), for groups (g, n).
        count: how many x, as a float (weights may be fractions).
        diagonal: whether x is one-hot.
    """

    held: Tensor | Callable[[], Tensor]
    sum: Tensor
    count: float = 0.0
    diagonal: bool = False

    @classmethod
    def zeros(cls, n: int, *, groups: int = 1, diagonal: bool = False) -> Moments:
        """Nothing seen yet.

        >>> Moments.zeros(3, diagonal=True).total.shape
        torch.Size([3])
        """
        lead = (groups,) if groups > 1 else ()
        shape = (n,) if diagonal else (*lead, (n + 1) // 2, n + 1)
        empty = torch.zeros(shape, dtype=torch.float64)
        return cls(empty, torch.zeros((*lead, n), dtype=torch.float64), diagonal=diagonal)

    def add_(self, X: Tensor) -> Moments:
        """Add rows x: (tokens, n), for groups (g, tokens, n); multiplied in float32 at least, summed in float64."""
        x = X.detach()
        if x.dtype not in (torch.float32, torch.float64):
            x = x.float()
        _fold_(self._sum(), _square(x))
        self.sum += x.sum(-2, dtype=torch.float64).to(self.sum)
        self.count += x.shape[-2]
        return self

    def add_counts_(self, indices: Tensor) -> Moments:
        """Add one-hot rows given by their indices; for the diagonal layout."""
        counts = torch.bincount(indices.reshape(-1).cpu(), minlength=len(self.sum)).double()
        self._sum().add_(counts)
        self.sum += counts
        self.count += indices.numel()
        return self

    def _sum(self) -> Tensor:
        return self.held if isinstance(self.held, Tensor) else self.held()

    @property
    def bytes(self) -> int:
        """Memory that its sum of x x^T takes; nothing while that lies in a file."""
        return self.held.numel() * self.held.element_size() if isinstance(self.held, Tensor) else 0

    def copy(self) -> Moments:
        """The same, to be added to on its own."""
        return Moments(self._sum().clone(), self.sum.clone(), self.count, self.diagonal)

    def mixed(self, other: Moments, share: float) -> Moments:
        """Moments of which ``share`` comes from the other, per token; the count stays. Nothing is loaded yet.

        >>> a, b = Moments.zeros(1).add_(torch.ones(4, 1)), Moments.zeros(1).add_(3 * torch.ones(2, 1))
        >>> a.mixed(b, 0.5).second.item(), a.mixed(b, 0.5).mean.item()
        (5.0, 2.0)
        """
        weight = share * self.count / max(other.count, 1.0)

        def held() -> Tensor:
            return (1 - share) * self._sum() + weight * other._sum()

        return Moments(held, (1 - share) * self.sum + weight * other.sum, self.count, self.diagonal)

    @classmethod
    def summed(cls, parts: Sequence[Moments]) -> Moments:
        """What several saw, added in their order. Nothing is loaded yet.

        >>> a, b = Moments.zeros(1).add_(torch.ones(4, 1)), Moments.zeros(1).add_(3 * torch.ones(2, 1))
        >>> both = Moments.summed([a, b])
        >>> both.total.item(), both.count
        (22.0, 6.0)
        """

        def held() -> Tensor:
            first, *others = parts
            found = first._sum().clone()
            for other in others:
                found += other._sum()
            return found

        first, *others = parts
        total = first.sum.clone()
        for other in others:
            total += other.sum
        return cls(held, total, sum(part.count for part in parts), first.diagonal)

    @property
    def total(self) -> Tensor:
        """Sum of x x^T, in one of the three layouts."""
        return self._sum() if self.diagonal else unfolded(self._sum())

    @property
    def second(self) -> Tensor:
        """E[x x^T], in the layout of ``total``.

        >>> Moments.zeros(2).add_(torch.tensor([[1.0, 0.0], [1.0, 2.0]])).second.tolist()
        [[1.0, 1.0], [1.0, 2.0]]
        """
        return self.total / max(self.count, 1.0)

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        return self.sum / max(self.count, 1.0)

    @property
    def covariance(self) -> Tensor:
        """E[x x^T] - E[x] E[x]^T."""
        mean = self.mean
        return self.second - mean[..., :, None] * mean[..., None, :]

    @property
    def effective_tokens(self) -> float:
        """Tokens per dimension: below about 3 the moments are mostly noise, and an answer should say so."""
        return self.count / self.sum.shape[-1]


def folded(S: Tensor) -> Tensor:
    """A symmetric (..., n, n) as ((n + 1) // 2, n + 1): row i holds S[i, :i+1], then row n-1-i backwards.

    >>> S = torch.tensor([[1.0, 2, 3], [2, 4, 5], [3, 5, 6]])
    >>> folded(S).tolist(), torch.equal(unfolded(folded(S)), S)
    ([[1.0, 6.0, 5.0, 3.0], [2.0, 4.0, 4.0, 2.0]], True)
    """
    n = S.shape[-1]
    into = S.new_zeros((*S.shape[:-2], (n + 1) // 2, n + 1))
    _fold_(into, S)
    return into


def _fold_(into: Tensor, S: Tensor) -> None:
    """Add a symmetric matrix to a folded one."""
    S, (k, n) = S.to(into.device), (into.shape[-2], S.shape[-1])
    into[..., :n] += S[..., :k, :].tril()
    into[..., 1:] += S[..., n - k :, :].flip(-2, -1).triu()


def unfolded(F: Tensor) -> Tensor:
    """The symmetric matrix that `folded` packed."""
    k, n = F.shape[-2], F.shape[-1] - 1
    low = F.new_empty((*F.shape[:-2], n, n))
    low[..., n - k :, :] = F[..., 1:].triu().flip(-2, -1)
    low[..., :k, :] = F[..., :n].tril()
    return low + low.tril(-1).mT


def _square(x: Tensor) -> Tensor:
    """x^T x; on the CPU by numpy, which recognises the symmetry of a real product and does half the work."""
    if x.device.type != "cpu" or x.dim() != 2:
        return x.mT @ x
    rows = x.numpy()
    return torch.from_numpy(rows.T @ rows)


def shrunk(A: Tensor, share: float) -> Tensor:
    """(1 - share) A + share mean(diag A) I: what too few tokens cannot know is drawn to the mean (Ledoit & Wolf 2004).

    >>> shrunk(torch.diag(torch.tensor([2.0, 0.0])), 0.1).diagonal().tolist()
    [1.899999976158142, 0.10000000149011612]
    """
    if A.dim() == 1:
        return (1 - share) * A + share * A.mean()
    level = A.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return (1 - share) * A + share * level * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def root(A: Tensor) -> Tensor:
    """R with R R^T = A, for a symmetric positive semidefinite A; no inverse, never fails.

    Where A is regular, as a shrunk moment is, its Cholesky factor, lower triangular, which costs a thirtieth of an
    eigendecomposition; else, and near there, V sqrt(max(lambda, 0)), whose columns are orthogonal.

    Args:
        A: (n, n), (g, n, n), or (n,) for a diagonal one (then R is its diagonal).
    """
    if A.dim() == 1:
        return A.clamp_min(0).sqrt()
    factor, failed = torch.linalg.cholesky_ex(A)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    if not failed.any() and bool((pivots.amin(-1) > REGULAR * pivots.amax(-1)).all()):
        return factor
    values, vectors = torch.linalg.eigh((A + A.mT) / 2)
    return vectors * values.clamp_min(0).sqrt()[..., None, :]


def save_moments(moments: Mapping[str, Moments], path: str | Path, about: Mapping[str, str]) -> None:
    """Write moments by name as safetensors, with strings ``about`` what they were taken from."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, one in moments.items():
        tensors[f"{name}|{'counts' if one.diagonal else 'folded'}"] = one._sum().contiguous()
        tensors[f"{name}|sum"] = one.sum.contiguous()
        tensors[f"{name}|count"] = torch.tensor(one.count, dtype=torch.float64)
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".netspectra-", suffix=".part")
        os.close(handle)
        try:
            # one entry: safetensors writes several in an order that changes from one call to the next
            save_file(tensors, temporary, metadata={"netspectra": json.dumps({"moments": dict(about)})})
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as wrong:
        raise EnvironmentFailure(f"{path}: cannot be written: {wrong.strerror}") from None


@dataclass(frozen=True)
class _Stored:
    """A tensor of a safetensors file, read when it is called for."""

    path: Path
    key: str

    def __call__(self) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.key)


def load_moments(path: str | Path) -> tuple[dict[str, Moments], dict[str, str]]:
    """Read what `save_moments` wrote; matrices stay in the file until they are asked for.

    Raises:
        InputRefused: not such a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = _about(file.metadata())
            if about is None:
                raise InputRefused(f"{path}: holds no moments; give the file that a calibration wrote")
            keys = set(file.keys())
            found = {}
            for name in sorted({key.rsplit("|", 1)[0] for key in keys}):
                diagonal = f"{name}|counts" in keys
                held = _Stored(Path(path), f"{name}|{'counts' if diagonal else 'folded'}")
                if held.key not in keys:
                    raise InputRefused(f"{path}: lacks {held.key!a}: written by another version? Calibrate again")
                count = float(file.get_tensor(f"{name}|count"))
                found[name] = Moments(held, file.get_tensor(f"{name}|sum"), count, diagonal)
    except (SafetensorError, FileNotFoundError) as wrong:
        why = str(wrong).encode("unicode_escape").decode()[:200]  # names in the file are a stranger's
        raise InputRefused(f"{path}: is no safetensors file of moments: {why}") from None
    return found, about


def _about(metadata: Mapping[str, str] | None) -> dict[str, str] | None:
    """What a file says that its moments were taken from; None for another kind of file."""
    try:
        said = json.loads((metadata or {}).get("netspectra", ""))["moments"]
    except (ValueError, KeyError, TypeError):
        return None
    return {str(key): str(value) for key, value in said.items()} if isinstance(said, dict) else None
