"""The Jacobian between two tensors of one forward pass, known by its products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = ["Differences", "Jacobian", "NoForwardProducts", "energies", "pushed", "sample_jacobians", "vjp"]

CHUNK = 1 << 24  # numbers of gradients that one batched backward pass may hold
TRUSTED = 1e-2  # relative disagreement of J and J^T beyond which forward products are not believed


class NoForwardProducts(RuntimeError):
    """Some kernel between the two tensors cannot be differentiated twice."""


class Jacobian:
    """d target / d source as a `LinearOperator`: products both ways, the matrix never formed.

    J^T y is a backward pass. J x is a backward pass through the backward pass: g(w) = J^T w is linear in w, and its
    own gradient in the direction x is J x. Both use the graph that is there: the network is not run again, and any
    kernel with a double backward will do.

    Attributes:
        source: tensor of the graph that requires grad.
        target: tensor that depends on it.

    >>> x = torch.ones(3, requires_grad=True)
    >>> J = Jacobian(x, x.square())
    >>> J.matmat(torch.eye(3))
    tensor([[2., 0., 0.],
            [0., 2., 0.],
            [0., 0., 2.]])
    """

    def __init__(self, source: Tensor, target: Tensor) -> None:
        """Of two tensors of one graph, which must be kept."""
        self.source, self.target = source, target
        self._backward: tuple[Tensor, Tensor] | None = None
        self.products = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): numbers in the target, numbers in the source."""
        return self.target.numel(), self.source.numel()

    @property
    def dtype(self) -> torch.dtype:
        """The source's dtype."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        """The source's device."""
        return self.source.device

    def rmatmat(self, Y: Tensor) -> Tensor:
        """J^T Y, a backward pass a column."""
        self.products += Y.shape[1]
        return torch.stack([vjp([self.source], self.target, y)[0].flatten() for y in Y.mT], 1)

    def matmat(self, X: Tensor) -> Tensor:
        """J X, two backward passes a column.

        Raises:
            NoForwardProducts: a kernel on the way has no double backward.
        """
        self.products += X.shape[1]
        w, g = self._twice()
        try:
            columns = [_through(g, w, x.reshape(g.shape)) for x in X.mT]
        except RuntimeError as wrong:
            raise NoForwardProducts(str(wrong).splitlines()[0]) from wrong
        return torch.stack([column.flatten() for column in columns], 1)

    def check(self, seed: int = 0) -> float:
        """Relative difference of <J x, y> and <x, J^T y> for a random pair: kernels that differentiate wrongly.

        Raises:
            NoForwardProducts: the products cannot be made, or disagree by more than a hundredth.
        """
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(size, 1, generator=generator).to(self.source) for size in self.shape[::-1])
        Jx, Jty = self.matmat(x), self.rmatmat(y)
        scale = float(torch.linalg.vector_norm(Jx) * torch.linalg.vector_norm(y))
        scale = max(scale, float(torch.linalg.vector_norm(Jty) * torch.linalg.vector_norm(x)))
        defect = abs(float((Jx * y).sum() - (Jty * x).sum())) / scale if scale else 0.0
        if defect > TRUSTED:
            raise NoForwardProducts(f"forward and backward products disagree by {defect:.1%}")
        return defect

    def _twice(self) -> tuple[Tensor, Tensor]:
        """W and g(w) = J^T w, with the graph from one to the other."""
        if self._backward is None:
            w = torch.zeros_like(self.target, requires_grad=True)
            (g,) = torch.autograd.grad(
                self.target, self.source, w, create_graph=True, allow_unused=True, materialize_grads=True
            )
            self._backward = w, g
        return self._backward


class Differences(Jacobian):
    """The same, where a kernel cannot be differentiated twice: J x by central differences of the function itself.

        J x = (f(a + h x) - f(a - h x)) / 2 h,   h = eps^(1/3) max(1, rms a) / rms x

    Relative error about eps^(2/3) times curvature, and more at kinks; `check` compares it with the backward pass.
    """

    def __init__(self, source: Tensor, target: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        """As `Jacobian`, with the function that takes the source to the target."""
        super().__init__(source, target)
        self.function = function

    def matmat(self, X: Tensor) -> Tensor:
        """J X, two runs a column."""
        self.products += X.shape[1]
        return torch.stack([self._difference(x.reshape(self.source.shape)).flatten() for x in X.mT], 1)

    def _difference(self, x: Tensor) -> Tensor:
        a = self.source.detach()
        size = float(x.square().mean().sqrt())
        if size == 0:
            return torch.zeros_like(self.target)
        h = torch.finfo(a.dtype).eps ** (1 / 3) * max(1.0, float(a.square().mean().sqrt())) / size
        with torch.no_grad():
            return (self.function(a + h * x) - self.function(a - h * x)) / (2 * h)


def _through(g: Tensor, w: Tensor, x: Tensor) -> Tensor:
    """The derivative of g in w, applied to x."""
    if not g.requires_grad:
        return torch.zeros_like(w)
    return torch.autograd.grad(g, w, x, retain_graph=True)[0]  # a w that g does not know of is an error, not a zero


def vjp(sources: Sequence[Tensor | GradientEdge], target: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """J^T y for the Jacobians from several tensors, or places of the graph, to the target: one backward pass."""
    places: Any = list(sources)  # tensors and places alike, which the annotation of grad does not know
    return torch.autograd.grad(
        target, places, y.reshape(target.shape), retain_graph=True, allow_unused=True, materialize_grads=True
    )


def energies(sources: Sequence[Tensor], target: Tensor, probes: Iterator[Tensor] | Sequence[Tensor]) -> list[Tensor]:
    """Of every probe w the squares of J^T w, for the Jacobians from each source to the target: one backward pass.

    Args:
        sources: tensors of the graph.
        target: what depends on them.
        probes: tensors of the target's shape.

    Returns:
        For each source (probes, its first size, or 1 where it has none): sums of squares, float64.
    """
    found: list[list[Tensor]] = [[] for _ in sources]
    for w in probes:
        for sums, g in zip(found, vjp(sources, target, w), strict=True):
            sums.append(_squares(g))
    return [torch.stack(sums) for sums in found]


def pushed(source: Tensor, targets: Sequence[Tensor], probes: Iterator[Tensor] | Sequence[Tensor]) -> list[Tensor]:
    """Of every probe u the squares of J u, for the Jacobians from the source to each target, as `energies` gives them.

    Raises:
        NoForwardProducts: a kernel on the way has no double backward.
    """
    Jacobian(source, targets[-1]).check()
    ws = [torch.zeros_like(target, requires_grad=True) for target in targets]
    found: list[list[Tensor]] = [[] for _ in targets]
    try:
        (g,) = torch.autograd.grad(targets, source, ws, create_graph=True)
        for u in probes:
            moved = torch.autograd.grad(g, ws, u, retain_graph=True)
            for sums, tangent in zip(found, moved, strict=True):
                sums.append(_squares(tangent))
    except RuntimeError as wrong:
        raise NoForwardProducts(str(wrong).splitlines()[0]) from wrong
    return [torch.stack(sums) for sums in found]


def _squares(g: Tensor) -> Tensor:
    return g.detach().double().square().reshape(len(g) if g.dim() else 1, -1).sum(1)


def sample_jacobians(source: Tensor, target: Tensor, samples: int) -> Tensor:
    """The Jacobian matrix of each sample, (samples, m, n), where no sample acts on another.

    Rows are backward passes from one output number of every sample at once, batched where the kernels allow it;
    columns likewise where the source is the shorter side and the kernels can be differentiated twice.

    >>> x = torch.arange(1.0, 5.0).reshape(2, 2).requires_grad_()
    >>> sample_jacobians(x, x.square(), 2).tolist()
    [[[2.0, 0.0], [0.0, 4.0]], [[6.0, 0.0], [0.0, 8.0]]]
    """
    m, n = target.numel() // samples, source.numel() // samples
    if n < m:
        J = Jacobian(source, target)
        try:
            J.check()
            w, g = J._twice()
            return _lines(g, w, samples, n, m).mT
        except NoForwardProducts:
            pass
    return _lines(target, source, samples, m, n)


def _lines(target: Tensor, source: Tensor, samples: int, m: int, n: int) -> Tensor:
    """Gradients of each of m numbers of every sample, (samples, m, n)."""
    if not target.requires_grad:
        return target.new_zeros(samples, m, n)
    at_once = max(1, CHUNK // max(1, samples * max(m, n)))
    lines = []
    for start in range(0, m, at_once):
        size = min(at_once, m - start)
        basis = torch.zeros(size, samples, m, dtype=target.dtype, device=target.device)
        basis[torch.arange(size), :, start + torch.arange(size)] = 1
        basis = basis.reshape(size, *target.shape)
        lines.append(_batched(target, source, basis).reshape(size, samples, n))
    return torch.cat(lines).transpose(0, 1).detach()


def _batched(target: Tensor, source: Tensor, Y: Tensor) -> Tensor:
    """Backward passes of many vectors at once; one by one where a kernel cannot be batched."""
    try:
        (g,) = torch.autograd.grad(
            target, source, Y, retain_graph=True, is_grads_batched=True, allow_unused=True, materialize_grads=True
        )
    except RuntimeError:
        return torch.stack([vjp([source], target, y)[0] for y in Y])
    return g
