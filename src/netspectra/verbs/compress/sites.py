"""What can be decided on: the model's layers as sites, with what the calibration knows, and why others are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.forms import Member, Site
from netspectra.forms.codes import Coding
from netspectra.forms.factors import is_conv1d
from netspectra.forms.shelf import Shelf
from netspectra.linalg.moments import Moments, shrunk
from netspectra.verbs.compress.calibrate import CONVOLUTIONS, WIDEST, Calibration, layers
from netspectra.weight import Selection

__all__ = ["NO_LAYER", "TIED", "Members", "Shrinkage", "Sites", "find_sites", "matrix"]

NO_LAYER = "{} multiplies it by itself: there is no layer to replace"
TIED = "tied to {}: every form replaces one layer, and both would have to change alike"


@dataclass(frozen=True)
class Shrinkage:
    """How far second moments are drawn to their mean diagonal, against too few tokens.

    Attributes:
        inputs: share for A.
        outputs: share for G.
    """

    inputs: float = 0.02
    outputs: float = 0.05


@dataclass(frozen=True, eq=False)
class Sites:
    """The sites of a model: alternatives overlap, single layers always come first.

    Attributes:
        found: sites; a layer may be a member of several.
        left: layers that are not decided on, and why.
    """

    found: tuple[Site, ...]
    left: Mapping[str, str]


def matrix(module: nn.Module) -> Tensor:
    """A layer's matrix as it acts on column vectors, float64; see `netspectra.forms.Member`."""
    weight = cast(Tensor, module.weight).detach().double()
    if is_conv1d(module) or isinstance(module, nn.Embedding):
        return weight.mT
    return weight.flatten(1)


def find_sites(
    model: nn.Module,
    calibration: Calibration | None,
    selection: Selection,
    *,
    method: str,
    shrinkage: Shrinkage = Shrinkage(),
    centre: bool = True,
    coding: Coding = Coding(),
) -> Sites:
    """Every selected layer as a site of its own, and the groups among them as further ones."""
    modules = layers(model)
    left = _left(model, modules, calibration, selection)
    makes = Members(calibration, shrinkage, centre)
    members = {name: makes.member(name, module) for name, module in modules.items() if name not in left}
    norms = calibration.structure.norms if calibration is not None else {}
    sites = []
    for name, member in members.items():
        facts: dict[str, Any] = {"coding": coding}
        if name in norms:
            facts["batch_norm"] = (norms[name], model.get_submodule(norms[name]))
        sites.append(Site(name, _kind(member.module), {"weight": member}, facts, method))
    if calibration is not None:
        sites += _groups(calibration, members, method)
    return Sites(tuple(sites), left)


def _kind(module: nn.Module) -> str:
    if isinstance(module, CONVOLUTIONS):
        return "convolution"
    return "embedding" if isinstance(module, nn.Embedding) else "linear"


def _groups(calibration: Calibration, members: Mapping[str, Member], method: str) -> list[Site]:
    found = []
    for block in calibration.structure.blocks:
        roles = {"gate_up" if block.fused else "up": block.up, "gate": block.gate, "down": block.down}
        roles = {role: name for role, name in roles.items() if name}
        if all(name in members for name in roles.values()):
            facts = {"activation": block.activation, "gated": bool(block.gate)}
            found.append(Site(_parent(roles.values()), "mlp", _pick(members, roles), facts, method))
    for attention in calibration.structure.attentions:
        facts: dict[str, Any] = {
            "heads": attention.heads,
            "kv_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
            "rotary": attention.rotary,
        }
        roles = {"query": attention.query, "key": attention.key, "value": attention.value}
        if all(name in members for name in roles.values()):
            if calibration.owner[attention.query] == calibration.owner[attention.key]:
                found.append(Site(_parent(roles.values()), "qkv", _pick(members, roles), facts, method))
            pairs = {"value_output": {"value": attention.value, "output": attention.output}}
            if not attention.rotary:
                pairs["query_key"] = {"query": attention.query, "key": attention.key}
            for kind, some in pairs.items():
                if all(name in members for name in some.values()):
                    found.append(Site(_parent(some.values()), kind, _pick(members, some), facts, method))
    return found


def _pick(members: Mapping[str, Member], roles: Mapping[str, str]) -> dict[str, Member]:
    return {role: members[name] for role, name in roles.items()}


def _parent(names: Any) -> str:
    """Their longest common prefix of whole parts."""
    split = [name.split(".") for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


@dataclass(frozen=True, eq=False)
class Members:
    """Makes members whose matrices exist only while they are worked on; layers with the same input share its moment.

    Attributes:
        calibration: what is known of the layers; None without data.
        shrinkage: of the moments.
        centre: whether errors are taken about the mean where there is a bias to fold the rest into.
        shelf: what all members share.
    """

    calibration: Calibration | None
    shrinkage: Shrinkage
    centre: bool
    shelf: Shelf = field(default_factory=Shelf)

    def member(self, name: str, module: nn.Module) -> Member:
        """The layer with what the calibration knows of it, which may be nothing."""
        known, shelf = self.calibration, self.shelf

        def weight() -> Tensor:
            return shelf.get((name, "W"), lambda: matrix(module))

        if known is None or name not in known.owner:
            return Member(name, module, weight, shelf=shelf)
        owner, share = known.owner[name], self.shrinkage
        inputs, outputs = known.inputs[owner], known.outputs.get(name)
        _must_fit(name, module, inputs, outputs)
        centred = self.centre and not inputs.diagonal and isinstance(getattr(module, "bias", None), Tensor)

        def second() -> Tensor:
            return shelf.get((owner, "A", centred), lambda: shrunk(
                inputs.covariance if centred else inputs.second, share.inputs))  # fmt: skip

        def gradients() -> Tensor:
            assert outputs is not None
            found = outputs
            return shelf.get((name, "G"), lambda: shrunk(found.second, share.outputs))

        return Member(
            name,
            module,
            weight,
            inputs=second,
            outputs=None if outputs is None else gradients,
            mean=inputs.mean if centred else None,
            positions=known.positions(name),
            shape=known.shapes.get(name, ()),
            tokens=inputs.count,
            shelf=shelf,
        )


def _must_fit(name: str, module: nn.Module, inputs: Moments, outputs: Moments | None) -> None:
    """Refuse moments that another layer's inputs and outputs left."""
    rows = _outputs(module)
    columns = cast(Tensor, module.weight).numel() // max(rows, 1)
    for side, width, found in (("inputs", columns, inputs), ("outputs", rows, outputs)):
        if found is not None and found.sum.shape[-1] != width:
            raise InputRefused(
                f"{name}: has {width} {side}, the moments know {found.sum.shape[-1]}: they are those of another model"
            )


def _outputs(module: nn.Module) -> int:
    """m: how many outputs a layer has."""
    weight = cast(Tensor, module.weight)
    return weight.shape[1] if is_conv1d(module) or isinstance(module, nn.Embedding) else weight.shape[0]


def _left(
    model: nn.Module, modules: Mapping[str, nn.Module], calibration: Calibration | None, selection: Selection
) -> dict[str, str]:
    """Layers that are not decided on, and why."""
    left: dict[str, str] = {}
    uses: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name)
    for name, module in modules.items():
        tied = [other for other in uses[id(module.weight)] if other != f"{name}.weight"]
        shared = [other for other in tied if model.get_submodule(other.rpartition(".")[0]) is not module]
        if not name:
            left[name] = "the whole model is one layer: wrap it, nn.Sequential(layer)"
        elif not selection.accepts(f"{name}.weight"):
            left[name] = "not selected"
        elif shared:
            left[name] = TIED.format(shared[0])
        elif not module.weight.is_floating_point():  # type: ignore[union-attr]
            left[name] = "its numbers are codes"
        elif calibration is not None and name not in calibration.owner:
            left[name] = "never ran on the calibration data"
        elif calibration is not None and calibration.outputs and _outputs(module) > WIDEST:
            left[name] = f"more than {WIDEST} outputs: the moments of their gradients take too much memory"
        elif calibration is not None and calibration.outputs and name not in calibration.outputs:
            left[name] = "no gradient reaches it: what is to be kept of the output does not depend on it"
        elif isinstance(module, CONVOLUTIONS) and module.groups > 1:
            depthwise = module.groups == module.in_channels
            if depthwise:
                left[name] = "depthwise: every channel has a filter of its own, so there is nothing to share"
    for name, module in model.named_modules():
        own = [n for n, p in module.named_parameters(recurse=False) if p.dim() > 1]
        if own and name not in modules:
            for parameter in own:
                left.setdefault(
                    f"{name}.{parameter}".lstrip("."),
                    NO_LAYER.format(type(module).__name__),
                )
    return left
