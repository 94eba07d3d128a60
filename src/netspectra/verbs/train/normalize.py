"""Normalize: give every linear layer the operator norm it is meant to have, and hold it there while it trains."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from netspectra.errors import InputRefused
from netspectra.linalg.norm import dense_norm
from netspectra.live.layers import default_grid, linear_layers
from netspectra.live.maps import LinearMap, is_convolution, linear_map
from netspectra.live.norm import norm_of
from netspectra.live.spectral import Mode, OperatorNorm, OperatorNormalization
from netspectra.weight import Selection

__all__ = ["LayerNorm", "Method", "NormalizeOptions", "Normalized", "clipped", "normalize_", "spectral_norm"]

Method = Literal["scale", "at most", "clip", "orthogonal"]


@dataclass(frozen=True)
class NormalizeOptions:
    """How layers are normalized.

    Attributes:
        target: the operator norm K of each layer.
        budget: instead, the product of all norms: each gets its root.
        method: ``scale`` holds W K / sigma_1; ``at most`` scales down only; ``clip`` cuts singular values above K, once
            (convolutions are scaled); ``orthogonal`` holds K times a matrix with orthonormal rows or columns.
        gain: learn a positive factor a layer (``scale`` only).
        include: patterns of module names to take; none means all.
        exclude: patterns to leave out.
        accuracy: relative residual of the leading singular pair in eval mode, where the norm's own error is at most
            about sqrt(n) times this, n being the inputs of the layer, however close the next value is.
    """

    target: float = 1.0
    budget: float | None = None
    method: Method = "scale"
    gain: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    accuracy: float = 1e-5

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, value in (("target", self.target), ("budget", self.budget)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputRefused(f"{name} {value}: give a positive number")
        if self.gain and self.method != "scale":
            raise InputRefused(f"gain is learned with method 'scale' only, not {self.method!r}")
        if self.method not in ("scale", "at most", "clip", "orthogonal"):
            raise InputRefused(f"method {self.method!r}: there are 'scale', 'at most', 'clip' and 'orthogonal'")


@dataclass(frozen=True)
class LayerNorm:
    """One layer, before and after.

    Attributes:
        name: of the module.
        kind: linear, embedding, conv, transposed conv.
        grid: spatial input size the norm holds for, of convolutions.
        before: operator norm that it had.
        after: operator norm that it has now.
        upper: what the norm cannot exceed now.
        reshaped: norm of the reshaped kernel before, which others take for the norm; None where it is the same.
    """

    name: str
    kind: str
    grid: tuple[int, ...]
    before: float
    after: float
    upper: float
    reshaped: float | None


@dataclass(frozen=True, eq=False)
class Normalized:
    """What `normalize_` did.

    Attributes:
        layers: in the order of the module.
        skipped: modules with a weight that was left alone, and why.
        target: norm of each layer.
        options: what was asked.
    """

    layers: tuple[LayerNorm, ...]
    skipped: tuple[tuple[str, str], ...]
    target: float
    options: NormalizeOptions
    _modules: tuple[nn.Module, ...] = ()

    @property
    def budget(self) -> float:
        """Product of the norms; infinity beyond float64.

        A chain of these layers with 1-Lipschitz functions between stretches nothing by more.
        """
        return _product(layer.after for layer in self.layers)

    def remove_(self) -> None:
        """Take the parametrizations away; the weights keep the values they have in eval mode."""
        for module in self._modules:
            if parametrize.is_parametrized(module, "weight"):
                chain = cast(nn.Module, module.parametrizations["weight"])  # type: ignore[index]
                chain.eval()
                # copies of a parametrized module share a class, from which torch would take the property: part them
                kind = type(module)
                module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))  # type: ignore[assignment]
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        return {
            "target": self.target,
            "budget": self.budget if math.isfinite(self.budget) else None,
            "options": asdict(self.options),
            "layers": [asdict(layer) for layer in self.layers],
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
        }

    def __str__(self) -> str:
        """A line a layer."""
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines = [f"{'layer':{width}}  {'kind':15} {'before':>9} {'after':>9}"]
        for layer in self.layers:
            grid = f" {'x'.join(map(str, layer.grid))}" if layer.grid else ""
            note = f"  (reshaped kernel: {layer.reshaped:.4g})" if layer.reshaped is not None else ""
            lines.append(f"{layer.name:{width}}  {layer.kind + grid:15} {layer.before:9.4g} {layer.after:9.4g}{note}")
        lines.append(f"product of norms {self.budget:.4g}")
        lines += [f"left alone: {name}: {reason}" for name, reason in self.skipped]
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Say what was done in one line."""
        return f"Normalized({len(self.layers)} layers to {self.target:g}, {len(self.skipped)} left alone)"

    def _repr_html_(self) -> str:
        """Show a table in notebooks."""
        rows = "".join(
            f"<tr><td><code>{html.escape(x.name)}</code></td><td>{x.kind}</td><td>{x.before:.4g}</td>"
            f"<td>{x.after:.4g}</td></tr>"
            for x in self.layers
        )
        left = "".join(f"<li><code>{html.escape(n)}</code>: {html.escape(r)}</li>" for n, r in self.skipped)
        table = f"<table><tr><th>layer</th><th>kind</th><th>before</th><th>after</th></tr>{rows}</table>"
        return table + (f"<p>Left alone:</p><ul>{left}</ul>" if left else "")


def normalize_(
    model: nn.Module, batch: Any = None, options: NormalizeOptions | None = None, **wanted: Any
) -> Normalized:
    """Give every linear layer of a model an operator norm, in place, and hold it there while it trains.

    The norm is that of the map the layer applies: for a convolution with its stride, padding, groups and dilation on
    the grid it sees, where a normalization of the reshaped kernel leaves 1.2 to 2.9 times as much. ``scale``,
    ``at most`` and ``orthogonal`` are parametrizations of ``weight`` (`torch.nn.utils.parametrize`): they train,
    survive deepcopy, state dicts and moving averages, are exact in eval mode, and ``result.remove_()`` bakes them in.
    ``clip`` changes the weights once; call it after each step to project.

    Args:
        model: any module; Linear, Embedding, convolutions and transformers' Conv1D are normalized, tied weights and
            weights that are parametrized already are left alone, and listed.
        batch: what the model is called with once, to learn the grids of its convolutions; tensor, tuple or dict.
            Without it they are taken to be 64, 16 x 16 or 8 x 8 x 8.
        options: or its fields by name: ``normalize_(model, batch, target=1.0)``.

    Returns:
        `Normalized`: norms before and after, measured anew on what the layers hold now.

    Raises:
        InputRefused: an option that cannot be meant, or nothing to normalize.

    Cost: two norms a layer (`netspectra.operator_norm`); then one product with the weight and its adjoint a step.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> result = normalize_(model, torch.zeros(1, 1, 6, 6), target=1.0)
    >>> [round(layer.after, 3) for layer in result.layers]
    [1.0, 1.0]
    """
    if options is not None and wanted:
        raise InputRefused("give options or their fields by name, not both")
    options = options or NormalizeOptions(**wanted)
    found, skipped = linear_layers(model, batch, Selection(options.include, options.exclude))
    if not found:
        why = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3]) or "it has no linear layer"
        raise InputRefused(f"{type(model).__name__}: nothing to normalize: {why}")
    target = options.target if options.budget is None else options.budget ** (1 / len(found))
    done, touched = [], []
    for name, module, linear in found:
        reason = _refusal(module, options)
        if reason:
            skipped.append((name, reason))
            continue
        done.append(_normalized(name, module, linear, target, options))
        touched.append(module)
    return Normalized(tuple(done), tuple(skipped), target, options, tuple(touched) if options.method != "clip" else ())


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    input_shape: Sequence[int] = (),
    target: float = 1.0,
) -> nn.Module:
    """Take the place of `torch.nn.utils.parametrizations.spectral_norm`, by the true operator norm.

    Checkpoints of a model that was parametrized by torch's load into this one. The operator is told by the module, not
    by ``dim``; how many iterations are needed is measured: both are taken and not used.

    Args:
        module: Linear, Embedding or convolution.
        name: of its weight.
        n_power_iterations: ignored.
        eps: ignored; a weight of zeros stays zero.
        dim: ignored.
        input_shape: spatial input size of a convolution; by default 64, 16 x 16 or 8 x 8 x 8.
        target: the norm.

    >>> from netspectra.live.norm import operator_norm
    >>> layer = spectral_norm(nn.ConvTranspose2d(4, 2, 4, stride=2, padding=1), input_shape=(7, 7)).eval()
    >>> round(operator_norm(layer, (7, 7)).value, 3)
    1.0
    """
    if name != "weight":
        raise InputRefused(f"{name!r}: only 'weight' acts as one linear map")
    linear = linear_map(module, input_shape or default_grid(module))
    _hold(module, linear, target, "equal", gain=False, accuracy=NormalizeOptions.accuracy)
    return module


def _refusal(module: nn.Module, options: NormalizeOptions) -> str:
    """Why a method cannot be meant for a module."""
    weight = cast(Tensor, module.weight)
    if not weight.is_floating_point():
        return f"{weight.dtype} is no floating-point weight"
    if not bool(torch.isfinite(weight).all()):
        return "its weight holds NaN or Inf"
    if not bool(weight.any()):
        return "its weight is zero: there is no direction to scale"
    if options.method == "orthogonal" and is_convolution(module):
        return "a kernel with orthonormal rows is no orthogonal convolution; use 'scale'"
    return ""


def _normalized(name: str, module: nn.Module, linear: LinearMap, target: float, options: NormalizeOptions) -> LayerNorm:
    weight = cast(Tensor, module.weight)
    reshaped = _reshaped_norm(weight) if is_convolution(module) else None
    before = norm_of(linear(weight.detach()), tolerance=options.accuracy, bound=False).value
    if options.method == "clip":
        _clip(weight, linear, before, target)
    elif options.method == "orthogonal":
        parametrizations.orthogonal(module, "weight")
        parametrize.register_parametrization(module, "weight", _Times(target))
    else:
        mode: Mode = "at most" if options.method == "at most" else "equal"
        _hold(module, linear, target, mode, gain=options.gain, accuracy=options.accuracy)
    after = norm_of(linear(_eval_weight(module)), tolerance=options.accuracy)
    upper = max(after.upper, after.value)
    return LayerNorm(name, linear.kind, linear.grid, before, after.value, upper, reshaped)


def _hold(module: nn.Module, linear: LinearMap, target: float, mode: Mode, *, gain: bool, accuracy: float) -> None:
    norm = OperatorNorm(linear, cast(Tensor, module.weight), tolerance=accuracy)
    parametrize.register_parametrization(module, "weight", OperatorNormalization(norm, target, mode, gain=gain))


def _eval_weight(module: nn.Module) -> Tensor:
    """The weight as eval mode has it."""
    if not parametrize.is_parametrized(module, "weight"):
        return cast(Tensor, module.weight).detach()
    chain = cast(nn.Module, module.parametrizations["weight"])  # type: ignore[index]
    modes = [(part, part.training) for part in chain.modules()]
    chain.eval()
    with torch.no_grad():
        weight = chain()
    for part, mode in modes:
        part.training = mode
    return weight.detach()


def _clip(weight: Tensor, linear: LinearMap, norm: float, target: float) -> None:
    """Cut singular values above the target; convolutions, whose singular vectors are no kernels, are scaled."""
    with torch.no_grad():
        if norm <= target:
            return
        if linear.grid:
            weight.mul_(target / norm)
            return
        weight.copy_(clipped(weight, target))


def clipped(matrix: Tensor, target: float) -> Tensor:
    """The nearest matrix, in every unitarily invariant norm, whose singular values are at most the target.

    >>> clipped(torch.diag(torch.tensor([3.0, 1.0])), 2.0).tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    wide = matrix.double() if matrix.device.type != "mps" else matrix.float()
    U, S, Vh = torch.linalg.svd(wide, full_matrices=False)
    over = int((target < S).sum())
    return (wide - (U[:, :over] * (S[:over] - target)) @ Vh[:over]).to(matrix.dtype)


def _reshaped_norm(weight: Tensor) -> float:
    return dense_norm(weight.detach().flatten(1)).value


def _product(numbers: Iterator[float]) -> float:
    total = math.fsum(math.log(number) if number > 0 else -math.inf for number in numbers)
    return math.exp(total) if total < 709 else math.inf


class _Times(nn.Module):
    """A weight times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight / self.factor
