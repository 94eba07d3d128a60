"""Chains in which one layer's outputs, channel by channel, are all that another reads: what may become narrower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from netspectra.forms.factors import is_conv1d
from netspectra.forms.resized import bias_of, resized, sizes
from netspectra.linalg.features import least_squares
from netspectra.linalg.groups import GroupOrder, Rule, group_order
from netspectra.linalg.moments import shrunk
from netspectra.live.batches import samples_in, selected
from netspectra.verbs.compress.calibrate import CONVOLUTIONS, Calibration
from netspectra.verbs.compress.flow import Experiment, proven, watched
from netspectra.verbs.compress.sites import matrix
from netspectra.verbs.compress.structure import Structure

__all__ = ["Chain", "chain_order", "chains", "narrow_", "outputs_of"]

AGREE = 1e-3
SHRINKAGE = 1e-4  # share of the mean diagonal: features that repeat others exactly stay solvable


@dataclass(frozen=True)
class Chain:
    """``reader`` reads nothing but the ``makers``' units, each on its own way (activated, pooled, attended).

    Attributes:
        kind: ``neurons``, ``channels`` or ``heads``.
        makers: names of the layers whose outputs may be fewer: one; up and gate; query, key and value.
        reader: name of the layer that reads them.
        width: units: neurons, channels, key-value heads.
        norm: name of the batch normalization between, or empty.
        copies: how often the units stand in a maker, one run after the other (2: gate and up in one matrix).
    """

    kind: str
    makers: tuple[str, ...]
    reader: str
    width: int
    norm: str = ""
    copies: int = 1

    @property
    def name(self) -> str:
        """What stands for it in widths: the first maker; of heads the reader."""
        return self.reader if self.kind == "heads" else self.makers[0]


def chains(model: nn.Module, batch: Any, modules: Mapping[str, nn.Module], structure: Structure) -> tuple[Chain, ...]:
    """Find them by what flows where, and prove each by experiment, in the order in which they run.

    Changing half of a layer's channels must change those inputs of the reader, no other, and nothing behind it. Gated
    blocks and attentions are those that the calibration has proven.
    """
    few = selected(batch, torch.arange(min(2, samples_in(batch))), samples_in(batch))
    flow = watched(model, few, modules)
    generator = torch.Generator().manual_seed(0)
    found: list[tuple[Chain, Experiment]] = []
    for reader, makers in flow.origins.items():
        if len(makers) != 1 or reader not in modules or not _plain(modules[reader]):
            continue
        (maker,) = makers
        if maker not in flow.leaving or not _plain(modules[maker]):
            continue
        width = flow.leaving[maker].shape[_axis(modules[maker], flow.leaving[maker])]
        inputs = flow.entering[reader][0].shape[_axis(modules[reader], flow.entering[reader][0])]
        if width < 2 or inputs % width or (isinstance(modules[reader], CONVOLUTIONS) and inputs != width):
            continue
        kind = "channels" if isinstance(modules[maker], CONVOLUTIONS) else "neurons"
        experiment = _experiment(modules, maker, reader, width, inputs // width, generator)
        found.append((Chain(kind, (maker,), reader, width, structure.norms.get(maker, "")), experiment))
    held = proven(model, few, modules, flow, [experiment for _, experiment in found])
    proved = [chain for (chain, _), good in zip(found, held, strict=True) if good]
    known = {chain.reader for chain in proved}
    for block in structure.blocks:
        if block.down not in known:
            width = matrix(modules[block.down]).shape[1]
            makers = (block.up, block.gate) if block.gate else (block.up,)
            proved.append(Chain("neurons", makers, block.down, width, copies=2 if block.fused else 1))
    for a in structure.attentions:
        if a.kv_heads > 1:
            proved.append(Chain("heads", (a.query, a.key, a.value), a.output, a.kv_heads))
    order = list(flow.leaving)
    return tuple(sorted(proved, key=lambda chain: order.index(chain.reader)))


def _plain(module: nn.Module) -> bool:
    if isinstance(module, CONVOLUTIONS):
        return module.groups == 1
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _axis(module: nn.Module, x: Tensor) -> int:
    return 1 if isinstance(module, CONVOLUTIONS) and x.dim() == cast(Tensor, module.weight).dim() else -1


def _experiment(
    modules: Mapping[str, nn.Module], maker: str, reader: str, width: int, each: int, generator: torch.Generator
) -> Experiment:
    mine = torch.zeros(width, dtype=torch.bool)
    mine[torch.randperm(width, generator=generator)[: max(1, width // 2)]] = True

    def changed(y: Tensor) -> Tensor:
        axis = _axis(modules[maker], y)
        where = mine.to(y.device).reshape([-1 if a == axis % y.dim() else 1 for a in range(y.dim())])
        noise = torch.randn(y.shape, generator=generator).to(y) * (y.std() + y.abs().mean()) + y.mean()
        return torch.where(where, noise, y)

    def holds(now: Tensor, before: Tensor) -> bool:
        axis = _axis(modules[reader], now)
        where = mine.repeat_interleave(each).to(now.device)
        same, other = (x.movedim(axis, -1)[..., ~where] for x in (now, before))
        new, old = (x.movedim(axis, -1)[..., where] for x in (now, before))
        return _close(same, other) and not _close(new, old)

    return Experiment({maker: changed}, reader, holds)


def _close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).double().norm()) <= AGREE * float(b.double().norm())


def chain_order(
    model: nn.Module, chain: Chain, calibration: Calibration, rule: Rule = "forward", most: int | None = None
) -> GroupOrder:
    """The chain's units from the most to the least telling for its reader; ``most`` of them."""
    reader = model.get_submodule(chain.reader)
    moments = calibration.inputs[calibration.owner[chain.reader]]
    W = matrix(reader)
    A = moments.covariance if bias_of(reader) is not None else moments.second
    return group_order(W, shrunk(A, SHRINKAGE), W.shape[1] // chain.width, rule=rule, most=most)


def narrow_(
    model: nn.Module, chain: Chain, order: GroupOrder, keep: Tensor, mean: Tensor, *, refit: bool = True
) -> None:
    """Leave only the channels ``keep`` of a chain; the reader's matrix is fitted to them by least squares.

    Args:
        model: changed in place.
        chain: of this model.
        order: of `chain_order`, from the model as it was.
        keep: channels, ascending.
        mean: of the reader's inputs as they were.
        refit: whether the reader makes up for what is gone; else its columns are cut.
    """
    reader = model.get_submodule(chain.reader)
    J = (keep[:, None] * order.size + torch.arange(order.size)).flatten()
    W = matrix(reader)
    new = least_squares(order.H[J][:, J], order.H[J] @ W.mT).mT if refit else W[:, J]
    bias = bias_of(reader)
    if bias is not None and refit:
        bias = bias.detach().double() + W @ mean - new @ mean[J]
    _put(model, chain.reader, _with_inputs(reader, new, bias))
    for name in chain.makers:
        maker = model.get_submodule(name)
        _put(model, name, _with_outputs(maker, outputs_of(maker, chain, keep)))
    if chain.norm:
        _put(model, chain.norm, _fewer_features(model.get_submodule(chain.norm), keep))


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    module.train(model.get_submodule(name).training)
    model.set_submodule(name, module)


def outputs_of(maker: nn.Module, chain: Chain, keep: Tensor) -> Tensor:
    """The maker's outputs (of all its units) that belong to these units."""
    outputs = matrix(maker).shape[0] // chain.copies
    each = outputs // chain.width
    rows = (keep[:, None] * each + torch.arange(each)).flatten()
    return torch.cat([rows + copy * outputs for copy in range(chain.copies)])


def _with_outputs(maker: nn.Module, keep: Tensor) -> nn.Module:
    weight, bias = cast(Tensor, maker.weight).detach(), bias_of(maker)
    if isinstance(maker, CONVOLUTIONS):
        new = _convolution(maker, maker.in_channels, len(keep))
        rows = weight[keep]
    else:
        new = resized(maker, len(keep), sizes(maker)[1])
        rows = weight[:, keep] if is_conv1d(maker) else weight[keep]
    with torch.no_grad():
        cast(Tensor, new.weight).copy_(rows)
        if bias is not None:
            cast(Tensor, new.bias).copy_(bias.detach()[keep])
    return new


def _with_inputs(reader: nn.Module, W: Tensor, bias: Tensor | None) -> nn.Module:
    if isinstance(reader, CONVOLUTIONS):
        taps = cast(Tensor, reader.weight)[0, 0].numel()
        new = _convolution(reader, W.shape[1] // taps, reader.out_channels)
        shaped = W.reshape(cast(Tensor, new.weight).shape)
    else:
        new = resized(reader, W.shape[0], W.shape[1])
        shaped = W.mT if is_conv1d(reader) else W
    with torch.no_grad():
        cast(Tensor, new.weight).copy_(shaped)
        if bias is not None:
            cast(Tensor, new.bias).copy_(bias)
    return new


def _convolution(old: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: int, outputs: int) -> nn.Module:
    kind: Any = type(old)
    like = {"device": old.weight.device, "dtype": old.weight.dtype}
    return nn.utils.skip_init(
        kind, inputs, outputs, old.kernel_size, stride=old.stride, padding=old.padding, dilation=old.dilation,
        bias=old.bias is not None, padding_mode=old.padding_mode, **like,
    ).requires_grad_(old.weight.requires_grad)  # fmt: skip


def _fewer_features(norm: nn.Module, keep: Tensor) -> nn.Module:
    new = type(norm)(len(keep), eps=norm.eps, momentum=norm.momentum, affine=norm.affine,
                     track_running_stats=norm.track_running_stats)  # type: ignore[call-arg]  # fmt: skip
    state = {name: value[keep] if value.dim() else value for name, value in norm.state_dict().items()}
    new.load_state_dict(state)
    return new.to(next(iter(norm.state_dict().values())).device)
