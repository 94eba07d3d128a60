"""The operator norm of a weight inside a training loop: followed cheaply, exact when it counts, differentiable."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from netspectra.linalg.lanczos import golub_kahan, random_rows
from netspectra.linalg.operator import LinearOperator
from netspectra.live.maps import LinearMap

__all__ = ["Mode", "OperatorNorm", "OperatorNormalization"]

Mode = Literal["equal", "at most"]
BLOCK = 4  # directions that are followed, so that one that overtakes the leading one is known already
WARM_STEPS = 10  # of the block, before the search begins anew
REFRESH = 100  # warm looks after which it does so in any case
MOST_STEPS, RESTARTS = 60, 10  # of Golub-Kahan


class OperatorNorm(nn.Module):
    """sigma_1 of the linear map of a weight, with gradient u v^T, from singular vectors kept between calls.

    While the weight trains, warm subspace iteration follows its four leading directions, most often for one step:
    until the residual of the first

        ||A v - s u|| / s

    is below ``slack``. Where ten steps do not get there, and after 100 looks, Golub-Kahan searches again. In eval
    mode, and at the first call, the leading pair is converged until its residual is below ``tolerance``. A pair that
    is not the leading one passes only if its value is within ``tolerance sqrt(n)``, since a random start holds about
    1 / sqrt(n) of the leading vector, and Lanczos only adds to it. A weight that has not changed since is
    not looked at again, so that a second forward costs one product. The vectors are not in the state dict: they follow
    from the weight. An average of them, vectors of another weight or none at all are only a start. Their random part
    comes from ``seed``, so that ranks agree.

    Inside `torch.compile` and function transforms, where nothing may depend on data or be stored, two steps are taken
    from the vectors that the last plain call left.

    Reference: Miyato et al. 2018, arXiv:1802.05957, for warm power iteration; the norm there is the reshaped kernel's,
    here the operator's.
    """

    left: Tensor
    rows: Tensor

    def __init__(
        self, linear_map: LinearMap, weight: Tensor, *, tolerance: float = 1e-5, slack: float = 0.02, seed: int = 0
    ) -> None:
        """Take the map and a weight of the right shape; nothing is computed yet."""
        super().__init__()
        self.map, self.tolerance, self.slack, self.seed = linear_map, tolerance, slack, seed
        A = linear_map(weight.detach())
        m, n = A.shape
        k = min(BLOCK, m, n)
        self.register_buffer("left", torch.zeros(m, dtype=A.dtype, device=weight.device), persistent=False)
        self.register_buffer("rows", torch.zeros(k, n, dtype=A.dtype, device=weight.device), persistent=False)
        self._seen: Any = None
        self._warm_looks = 0

    def forward(self, weight: Tensor) -> Tensor:
        """sigma_1, a scalar; zero with zero gradient for a weight of zeros."""
        with torch.no_grad():
            left, right = self._pair(weight.detach())
        return torch.dot(left, self.map(weight).matmat(right[:, None])[:, 0])

    def _pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The leading singular pair; copies, since the buffers may move on before a graph is walked backwards."""
        A = self.map(weight)
        if torch.compiler.is_compiling() or _transformed(weight):
            _, rows = _step(A, self.rows)
            left, rows = _step(A, rows)
            return left, rows[0]
        version = None if weight.is_inference() else (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if version is None or version != self._seen or (self._warm_looks and not self.training):
            self._follow(A)
            self._seen = version
        return self.left.clone(), self.rows[0].clone()

    def _follow(self, A: LinearOperator) -> None:
        if self._seen is not None and self.training and self._warm_looks < REFRESH:
            rows = self.rows
            for _ in range(WARM_STEPS):
                left, rows = _step(A, rows)
                image = A.matmat(rows[:1].mT)[:, 0]
                s = torch.dot(left, image)
                if float(torch.linalg.vector_norm(image - s * left)) <= self.slack * float(s):
                    self._keep(left, rows)
                    self._warm_looks += 1
                    return
        # half of the start is random: from a converged vector alone, one that has overtaken it would not be seen
        noise = random_rows(len(self.rows), A.shape[1], self.seed, A.dtype, A.device)
        noise = noise / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
        length = torch.linalg.vector_norm(self.rows[0])
        warm = bool(torch.isfinite(length)) and float(length) > 1e-6
        start = self.rows[0] / length + noise[0] if warm else noise[0]
        found = golub_kahan(A, 1, tolerance=self.tolerance, max_steps=MOST_STEPS, seed=self.seed, start=start)
        for _ in range(RESTARTS):  # restarted, so that the basis stays small on large grids
            if found.converged:
                break
            start = found.Vh[0]
            found = golub_kahan(A, 1, tolerance=self.tolerance, max_steps=MOST_STEPS, seed=self.seed, start=start)
        noise[0] = found.Vh[0]
        _, rows = _step(A, noise)  # twice, so that the other directions are worth following
        self._keep(*_step(A, rows))
        self._warm_looks = 0

    def _keep(self, left: Tensor, rows: Tensor) -> None:
        self.left.copy_(left)
        self.rows.copy_(rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> OperatorNorm:
        """Copy the vectors, forget which weight they belong to."""
        other = OperatorNorm.__new__(OperatorNorm)
        memo[id(self)] = other
        nn.Module.__init__(other)
        other.map, other.tolerance, other.slack, other.seed = self.map, self.tolerance, self.slack, self.seed
        other.register_buffer("left", self.left.clone(), persistent=False)
        other.register_buffer("rows", self.rows.clone(), persistent=False)
        other._seen, other._warm_looks = None, 0
        other.training = self.training
        return other


def _step(A: LinearOperator, rows: Tensor) -> tuple[Tensor, Tensor]:
    """One subspace iteration with Rayleigh-Ritz: the leading left vector, and the right ones as rows, descending."""
    Q = torch.linalg.qr(A.matmat(rows.mT)).Q
    P, R = torch.linalg.qr(A.rmatmat(Q))
    W, _, Zh = torch.linalg.svd(R.mT)
    return Q @ W[:, 0], Zh @ P.mT


def _transformed(weight: Tensor) -> bool:
    """Whether a function transform (grad, vmap, jvp) holds the weight; torch has no public word for it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(weight)  # type: ignore[attr-defined]


class OperatorNormalization(nn.Module):
    """A parametrization: the weight times K / sigma_1, sigma_1 being the true operator's (see `OperatorNorm`).

        equal:    W K g / sigma_1(W)
        at most:  W min(1, K / sigma_1(W))

    Register it with `torch.nn.utils.parametrize`; `normalize_` does so for a whole model. A state dict of torch's own
    ``spectral_norm`` loads into it: its power iteration vectors are not needed.

    Args:
        norm: follows sigma_1.
        target: K.
        mode: hold the norm at K, or only below it.
        gain: learn g, a positive factor that begins at 1 (``equal`` only).
    """

    gain: Tensor | None

    def __init__(self, norm: OperatorNorm, target: float = 1.0, mode: Mode = "equal", *, gain: bool = False) -> None:
        """See the class."""
        super().__init__()
        self.norm, self.target, self.mode = norm, target, mode
        # in log space: positive, and a step multiplies it
        self.register_parameter("gain", nn.Parameter(torch.zeros((), dtype=norm.left.dtype)) if gain else None)
        self.register_load_state_dict_pre_hook(_forget_vectors)

    def forward(self, weight: Tensor) -> Tensor:
        """The normalized weight, in the dtype of the weight; zeros stay zeros."""
        sigma = self.norm(weight)
        safe = torch.where(sigma > 0, sigma, torch.ones_like(sigma))
        scale = self.target / safe
        if self.mode == "at most":
            scale = scale.clamp_max(1.0)
        if self.gain is not None:
            scale = scale * self.gain.exp()
        return weight * scale.to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Any weight is taken as it is, and normalized when it is used."""
        return weight

    def extra_repr(self) -> str:
        """What is held."""
        at = f" on {'x'.join(map(str, self.norm.map.grid))}" if self.norm.map.grid else ""
        return f"{self.norm.map.kind}{at}: norm {self.mode} {self.target:g}" + (
            " x gain" if self.gain is not None else ""
        )


def _forget_vectors(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Leave out the power iteration vectors of torch's spectral_norm: ours follow from the weight."""
    for vector in ("_u", "_v"):
        state.pop(f"{prefix}{vector}", None)
