"""How Lipschitz a network is: what it may stretch, what it is known not to exceed, what it does on data."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.linalg.lanczos import golub_kahan
from netspectra.live.batches import tensors
from netspectra.live.conditions import plain_kernels
from netspectra.live.constants import certify
from netspectra.live.jacobian import Jacobian, NoForwardProducts, pushed
from netspectra.live.layers import linear_layers
from netspectra.live.maps import LinearMap
from netspectra.live.norm import norm_of
from netspectra.live.trace import traced
from netspectra.live.untouched import untouched
from netspectra.weight import Selection

__all__ = ["LayerStretch", "Lipschitz", "lipschitz"]

TOLERANCE = 1e-3


@dataclass(frozen=True)
class LayerStretch:
    """One linear layer: what it could stretch, and what it does to the direction that the network stretches most.

    Attributes:
        name: of the module.
        kind: linear, conv, ...
        norm: operator norm, on the grid of the data.
        stretch: ||dy|| / ||dx|| at the layer for the network's most stretched direction; None where it was not reached
            from the input, or cannot be differentiated forwards.
    """

    name: str
    kind: str
    norm: float
    stretch: float | None

    @property
    def attenuation(self) -> float | None:
        """Stretch over norm, in 0 ... 1: how much of its norm the layer uses."""
        return None if self.stretch is None or not self.norm else self.stretch / self.norm


@dataclass(frozen=True, eq=False)
class Lipschitz:
    """The Lipschitz meter of a network, in the Euclidean norm from input to output.

    Attributes:
        budget: product of the operator norms of the linear layers; a bound only for a chain with 1-Lipschitz functions.
        bound: certified upper bound by composition; infinite where there is none.
        reasons: why the bound is infinite.
        used: largest norm of the Jacobian at the samples: no Lipschitz constant is smaller.
        residual: relative residual of ``used`` as a singular value.
        sample: which sample of the batch has it.
        layers: one each, in the order of the model.
        samples: how many were looked at.
    """

    budget: float
    bound: float
    reasons: tuple[str, ...]
    used: float
    residual: float
    sample: int
    layers: tuple[LayerStretch, ...]
    samples: int

    @property
    def share(self) -> float | None:
        """``used`` over ``bound``: how tight the certificate is on these data; None without a bound."""
        return self.used / self.bound if math.isfinite(self.bound) and self.bound > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        plain = asdict(self)
        for name in ("budget", "bound"):
            plain[name] = plain[name] if math.isfinite(plain[name]) else None
        for row, layer in zip(plain["layers"], self.layers, strict=True):
            row["attenuation"] = layer.attenuation
        return {**plain, "share": self.share}

    def __str__(self) -> str:
        """The three numbers, then a line a layer."""
        bound = f"{self.bound:.4g}" if math.isfinite(self.bound) else "none: " + "; ".join(self.reasons[:2])
        lines = [
            f"used            {self.used:.4g}  (largest Jacobian norm at {self.samples} samples: sample {self.sample})",
            f"certified bound {bound}",
            f"budget          {self.budget:.4g}  (product of the layers' norms)",
        ]
        width = max((len(layer.name) for layer in self.layers), default=5)
        lines.append(f"{'layer':{width}}  {'kind':15} {'norm':>9} {'stretch':>9} {'used':>6}")
        for x in self.layers:
            stretch = "-" if x.stretch is None else f"{x.stretch:.4g}"
            used = "-" if x.attenuation is None else f"{x.attenuation:.0%}"
            lines.append(f"{x.name:{width}}  {x.kind:15} {x.norm:9.4g} {stretch:>9} {used:>6}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Say the essentials in one line."""
        return f"Lipschitz(used {self.used:.4g}, bound {self.bound:.4g}, budget {self.budget:.4g})"

    def _repr_html_(self) -> str:
        """Show it in notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def lipschitz(model: nn.Module, data: Any, *, tolerance: float = TOLERANCE, seed: int = 0) -> Lipschitz:
    """Measure how Lipschitz a network is around data.

    - ``used``: the largest singular value of the Jacobian at any sample, by Golub-Kahan on all samples at once (their
      Jacobians are the blocks of one block-diagonal map). A lower bound of the true constant.
    - ``bound``: by composition of layers (`netspectra.live.constants`), with rigorous operator norms. On deep networks
      it is vacuous, often by many orders of magnitude; the share says how far.
    - ``layers``: what each linear layer does to the direction that the network stretches most at that sample.

    Args:
        model: any module, taken in eval mode; it comes back untouched.
        data: one batch, as the model is called: tensor, tuple or dict; its first floating tensor is the input. Samples
            must not act on one another.
        tolerance: relative residual of ``used``.
        seed: of the start vector.

    Raises:
        InputRefused: the data hold no floating tensor, or the output does not depend on it.

    Cost: two backward passes over the batch a product, some 20 to 60 products.

    >>> import torch
    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> meter = lipschitz(model, torch.randn(16, 4))
    >>> meter.used <= meter.bound and abs(meter.bound / meter.budget - 1) < 1e-6
    True
    """
    with untouched(model), plain_kernels():
        seen, hooks = _watched(model)
        try:
            trace = traced(model, data)
        finally:
            for hook in hooks:
                hook.remove()
        if not trace.given:
            raise InputRefused("the data hold no floating tensor; give embeddings instead of token numbers")
        x, y = trace.start, trace.output
        J = Jacobian(x, y)
        try:
            J.check()
            top = golub_kahan(J, 1, tolerance=tolerance, seed=seed)
        except NoForwardProducts as wrong:
            raise InputRefused(f"the model cannot be differentiated forwards: {wrong}") from None
        direction = top.Vh[0].reshape(x.shape)
        lengths = direction.double().reshape(len(x), -1).norm(dim=1)
        sample = int(lengths.argmax())
        stretches = _stretches(x, seen, direction)
        shapes = {name: list(dict.fromkeys(tuple(i.shape) for i, _ in calls)) for name, calls in seen.items()}
        certificate = certify(model, shapes)
        layers = _layers(model, data, seen, stretches)
    used = float(top.S[0])
    residual = float(top.residual[0]) / used if used else 0.0
    logs = [math.log(layer.norm) if layer.norm else -math.inf for layer in layers]
    budget = math.exp(sum(logs)) if sum(logs) < 709 else math.inf
    return Lipschitz(budget, certificate.bound, tuple(certificate.reasons), used, residual, sample, layers, len(x))


Calls = dict[str, list[tuple[Tensor, Tensor]]]


def _watched(model: nn.Module) -> tuple[Calls, list[Any]]:
    """Hooks that note input and output of every layer; the dict they fill, and their handles."""
    seen: Calls = {}

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            first = next(tensors(args), None)
            if first is not None and isinstance(output, Tensor):
                seen.setdefault(name, []).append((first, output))

        return see

    return seen, [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]


def _stretches(x: Tensor, seen: Calls, direction: Tensor) -> dict[str, float]:
    """||dy|| / ||dx|| of every layer, for one direction of the input; layers it does not reach are left out."""
    ends = [(name, *calls[0]) for name, calls in seen.items()]
    ends = [(name, source, target) for name, source, target in ends if source.requires_grad and target.requires_grad]
    targets = [tensor for _, source, target in ends for tensor in (source, target)]
    if not targets:
        return {}
    try:
        squares = [float(sums.sum()) for sums in pushed(x, targets, [direction])]
    except NoForwardProducts:
        return {}
    pairs = zip(ends, squares[::2], squares[1::2], strict=True)
    return {name: math.sqrt(after / before) for (name, _, _), before, after in pairs if before > 0}


def _layers(model: nn.Module, data: Any, seen: Calls, stretches: dict[str, float]) -> tuple[LayerStretch, ...]:
    found, _ = linear_layers(model, data, Selection(), parametrized=True)
    return tuple(
        LayerStretch(
            name,
            linear.kind,
            norm_of(linear(cast(Tensor, module.weight).detach()), bound=False).value,
            stretches.get(name),
        )
        for name, module, linear in found
        if name in seen and linear.kind != "embedding"
    )


def _norm(linear: LinearMap, module: nn.Module) -> float:
    return norm_of(linear(cast(Tensor, module.weight).detach()), bound=False).value
