"""How much a layer's own rounding error costs, to second order and without assuming that tokens are independent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.live.batches import samples_in
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.objective import Objective

__all__ = ["Along", "losses_along"]


@dataclass(frozen=True)
class Along:
    """The predicted loss of one layer's error.

    Attributes:
        loss: a sample.
        error: standard error of it, from how samples differ.
    """

    loss: float
    error: float


def losses_along(
    model: nn.Module,
    batches: Sequence[Any],
    objective: Objective,
    changed: Mapping[str, Sequence[nn.Module]],
    *,
    samples: int,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, list[Along]]:
    """The second-order loss of each replacement on its own, all of them in one forward and one backward pass.

        loss = E_s [(sum_t g_st . e_st)^2],    e = new layer's output - old layer's output,  g = d draw / d output

    The moments' tr(G E A E^T) is the same sum without what different tokens (or pixels) of a sample have to do with
    one another: what an average over tokens, or attention, cancels it counts, and what adds up it misses.

    Args:
        model: the original; left untouched.
        batches: what it is called with; no more of them than ``samples`` need, and again with new draws where they
            are fewer: what a draw adds to the error is more than what samples differ by.
        objective: whose draws are differentiated: their squared gradients are its curvature.
        changed: replacements by the name of the module that each of them would stand for.
        samples: how many to draw for, about: whole batches are run.
        seed: of the draws.
        progress: told the share that is done.

    Returns:
        By name, what each of its replacements loses, in their order; layers that were not reached are left out.

    Reference: the exact Gauss-Newton form (Martens 2014, arXiv:1412.1193) along one direction, as in directional
    sensitivity of quantization (Dong et al. 2019, HAWQ, arXiv:1905.03696, along a Hessian's eigenvector there).
    Cost: one forward pass, one backward pass, and each replacement once.
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[tuple[str, int], list[Tensor]] = {}
    seen = 0
    with untouched(model), ExitStack() as hooks:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        recorder = _Recorder(changed)
        for name in changed:
            hooks.callback(model.get_submodule(name).register_forward_hook(recorder.hook(name)).remove)
        for batch in cycle(batches):
            if seen >= samples:
                break
            recorder.begin(samples_in(batch))
            with torch.enable_grad():
                objective.draw(objective.of(model, batch), generator).backward()
            for key, dots in recorder.dots.items():
                found.setdefault(key, []).append(dots)
            seen += samples_in(batch)
            progress(min(seen / samples, 1.0))
    told = {key: _mean_square(torch.cat(dots)) for key, dots in found.items()}
    return {name: [told[name, i] for i in range(len(new))] for name, new in changed.items() if (name, 0) in told}


class _Recorder:
    """Sums g . e over what belongs to each sample of a batch, layer by layer, while the batch is differentiated."""

    def __init__(self, changed: Mapping[str, Sequence[nn.Module]]) -> None:
        self.changed = changed
        self.samples = 1
        self.dots: dict[tuple[str, int], Tensor] = {}

    def begin(self, samples: int) -> None:
        """Before a batch."""
        self.samples, self.dots = samples, {}

    def hook(self, name: str) -> Callable[..., Any]:
        """For the module of a name."""

        def forward(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
                return None
            x, y = args[0].detach(), output.detach()
            entering = None
            if not output.requires_grad:  # the first layer: nothing before it is differentiated
                entering = y.requires_grad_()
                output = entering * 1
            output.register_hook(lambda g: self._add(name, x, y.detach(), g))
            return output if entering is not None else None

        return forward

    @torch.no_grad()
    def _add(self, name: str, x: Tensor, y: Tensor, g: Tensor) -> None:
        for place, new in enumerate(self.changed[name]):
            products = (g * (new(x) - y)).double()
            whole = products.numel() % self.samples == 0 and products.dim() > 0
            dots = products.reshape(self.samples, -1).sum(1) if whole else products.sum()[None]
            known = self.dots.get((name, place))
            self.dots[name, place] = dots if known is None else known + dots


def _mean_square(dots: Tensor) -> Along:
    squares = dots.square()
    spread = float(squares.std()) if len(squares) > 1 else float("inf")
    return Along(float(squares.mean()), spread / len(squares) ** 0.5)
