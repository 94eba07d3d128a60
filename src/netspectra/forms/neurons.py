"""MLP blocks with fewer hidden neurons: a stock block of smaller width."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from netspectra.forms import Curve, Member, Site, Spec, form, sizes_up_to
from netspectra.forms.resized import bias_of, fill_, resized, sizes
from netspectra.linalg.neurons import NeuronOrder, neuron_order

__all__ = ["Neurons"]


@form
class Neurons:
    """The most telling hidden neurons, and an output matrix refitted to them; plain and gated blocks.

    Roles of the site: ``up`` and ``down``, with a ``gate`` where there is one; or ``gate_up`` for both in one matrix,
    halves one after the other. ``down.A`` is the second moment of the hidden activations (about their mean where
    ``down.mean`` is given: it then goes into the bias of ``down``).
    """

    name = "neurons"
    kinds = frozenset({"mlp"})
    portable = True
    named = False

    def refuses(self, site: Site) -> str:
        """Refuse without activations: which neurons repeat others shows in data only."""
        if site.members["down"].inputs is None:
            return "which neurons can be spared shows in their activations: give calibration data"
        return ""

    def curve(self, site: Site) -> Curve:
        """Every width below the present one; losses from one pivoted Cholesky factorization."""
        down = site.members["down"]
        m, width = down.W.shape
        found = np.array(sizes_up_to(width - 1, width), dtype=int)
        kept = site.parameters - width * self._each(site)
        parameters = kept + found * self._each(site)
        inputs = sum(member.W.shape[1] * self._copies(role) for role, member in site.members.items() if role != "down")
        return Curve(
            found,
            parameters,
            found * (inputs + m) * down.positions,
            self._order(down).losses[found] * down.positions,
        )

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """``{"outputs": k}`` for what feeds the neurons, ``{"inputs": k}`` for what reads them."""
        return {
            member.name: {"inputs": int(size)} if role == "down" else {"outputs": int(size) * self._copies(role)}
            for role, member in site.members.items()
        }

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """The neurons' rows as they are; the output matrix by least squares."""
        down = site.members["down"]
        J, W = self._order(down).refit(size)
        specs, new = self.specs(site, size), {}
        for role, member in site.members.items():
            bias = bias_of(member.module)
            bias = None if bias is None else bias.detach().to(member.W)
            module = self.empty(member.module, specs[member.name])
            if role == "down":
                if bias is not None and member.mean is not None:
                    bias = bias + member.W @ member.mean - W @ member.mean[J]
                new[member.name] = fill_(module, W, bias)
            else:
                rows = torch.cat([J + copy * down.W.shape[1] for copy in range(self._copies(role))])
                new[member.name] = fill_(module, member.W[rows], None if bias is None else bias[rows])
        return new

    def empty(self, original: nn.Module, spec: Spec) -> nn.Module:
        """A layer of the same kind with fewer outputs or inputs."""
        m, n = sizes(original)
        return resized(original, int(spec.get("outputs", m)), int(spec.get("inputs", n)))

    @staticmethod
    def _copies(role: str) -> int:
        return 2 if role == "gate_up" else 1

    def _each(self, site: Site) -> int:
        """Parameters that one neuron has."""
        total = site.members["down"].W.shape[0]
        for role, member in site.members.items():
            if role != "down":
                total += self._copies(role) * (member.W.shape[1] + (bias_of(member.module) is not None))
        return total

    @staticmethod
    def _order(down: Member) -> NeuronOrder:
        def order() -> NeuronOrder:
            A = down.A
            assert A is not None
            return neuron_order(down.W, A, down.G)

        return down.kept("neurons", order)
