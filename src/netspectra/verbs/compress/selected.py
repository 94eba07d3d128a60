"""What of a checkpoint can be replaced with no live model, and why the rest is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from torch import nn

from netspectra.errors import InputRefused
from netspectra.forms.factors import is_conv1d
from netspectra.live.build import Purpose, skeleton, state_owners
from netspectra.plan import Cost, Decision, fingerprint
from netspectra.verbs.compress.calibrate import CONVOLUTIONS, Calibration, layers
from netspectra.verbs.compress.onelayer import CODED, CORRECTED, FACTORED, Layer
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.replace import DENSE
from netspectra.verbs.compress.sites import NO_LAYER, TIED
from netspectra.weight import ITEMSIZE, Layout, Part, Selection, Source, TensorRef, Weight

__all__ = ["Selected", "left_alone", "select"]

NAMING = Purpose(
    "a stream takes the layers' names and kinds from the live model that config.json names, which",
    "only a live model of your own code reads it: leave --stream out, and give --model module:callable",
)


@dataclass(frozen=True, eq=False)
class Selected:
    """The layers of a checkpoint.

    Attributes:
        layers: what can be replaced, by module name.
        left: what is not decided on, and why.
        linears: names of all layers of type Linear, selected or not.
        fingerprint: of the live model; empty where no config tells.
    """

    layers: Mapping[str, Layer]
    left: Mapping[str, Decision]
    linears: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class _Live:
    """What the live model of a config says; it has no numbers, and is let go.

    Attributes:
        stands: what each layer is: linear, conv1d, embedding, convolution.
        tied: by layer, another name of its weight.
        holders: by name of a tensor, the class of the module that has it.
        fingerprint: of the model.
    """

    stands: Mapping[str, str] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)
    holders: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""


def select(source: Source, options: CompressOptions, calibration: Calibration | None) -> Selected:
    """Find the layers that can be replaced.

    Args:
        source: the checkpoint.
        options: selection and forms.
        calibration: what is known of it.

    Raises:
        InputRefused: packed weights, names that are not the live model's, or nothing is selected.
    """
    packed = [ref for ref in source.tensors if ref.stored or (len(ref.shape) > 1 and ITEMSIZE.get(ref.dtype, 8) == 1)]
    if packed:
        raise InputRefused(f"{source.path}: {packed[0].name} is packed ({packed[0].stored or packed[0].dtype}); "
                           "only a live model decodes it: leave --stream out")  # fmt: skip
    live, selection = _live(source), Selection(options.include, options.exclude)
    taking = FACTORED if options.axis == "parameters" else CORRECTED if max(options.coding.ranks) else CODED
    known = calibration and (calibration.path or calibration)
    refs = {ref.name: ref for ref in source.tensors}
    found: dict[str, Layer] = {}
    left: dict[str, Decision] = {}
    linears = [name for name, stands in live.stands.items() if stands == "linear"] if live is not None else []
    for weight in source.weights:
        ref = weight.part.ref
        name = ref.name.removesuffix(".weight")
        if name in found or name in left:
            continue  # a further part of the same layer
        in_live = live.stands.get(name) if live is not None else None
        weight, stands = _whole(weight, in_live) if in_live else _told(weight, calibration)
        bias = refs.get(f"{name}.bias")
        if live is None and stands == "linear":
            linears.append(name)
        reason = _unfit(weight, live) or ("" if selection.accepts(ref.name) else "not selected")
        if reason:
            name = name if live is None or in_live else ref.name
            left[name] = left_alone(name, _cost(ref, bias), reason)
        else:
            own = {one.name: getattr(weight, one.name) for one in fields(Weight)}
            found[name] = Layer(**own, bias=bias, stands=stands, taking=taking, known=known)
    for name, other in live.tied.items() if live else ():  # names under which the checkpoint holds nothing
        left.setdefault(name, left_alone(name, Cost(), TIED.format(other)))
    if not found:
        raise InputRefused("no layer is selected: see --include and --exclude, or netspectra inspect")
    if calibration is not None and not any(name in calibration.owner for name in found):
        raise InputRefused(
            f"{calibration.path or 'the calibration'}: moments of another model: it knows none of the selected layers"
        )
    return Selected(found, left, tuple(linears), live.fingerprint if live else "")


def left_alone(name: str, cost: Cost, reason: str) -> Decision:
    """A layer that is not decided on."""
    return Decision(name, "left", (name,), DENSE, 0, cost, cost, 0.0, reason)


def _cost(ref: TensorRef, bias: TensorRef | None) -> Cost:
    return Cost(ref.numel + (bias.numel if bias else 0), ref.nbytes + (bias.nbytes if bias else 0))


def _live(source: Source) -> _Live | None:
    """What the live model says of its layers; None where no config tells.

    Refuses before any work what no live model could load afterwards.
    """
    if not source.config:
        return None
    model = skeleton(source.config, source.path, NAMING)
    owners = state_owners(model)
    names = {name for group in owners for name in group}
    strangers = [ref.name for ref in source.tensors if ref.name not in names and ref.dtype.startswith(("f", "bf"))]
    if strangers:
        raise InputRefused(
            f"{source.path}: {strangers[0]} is called otherwise in the live {type(model).__name__}; "
            "only a live model renames it: leave --stream out"
        )
    stands = {name: _stands(module) for name, module in layers(model).items()}
    several = [group for group in owners if len(group) > 1]
    shared = {name: next(other for other in group if other != name) for group in several for name in group}
    tied = {name: shared[f"{name}.weight"] for name in stands if f"{name}.weight" in shared}
    holders = {name: type(places[0][0]).__name__ for group, (_, places) in owners.items() for name in group}
    return _Live(stands, tied, holders, fingerprint(model.named_parameters()))


def _stands(module: nn.Module) -> str:
    """What a layer of the live model is."""
    if isinstance(module, CONVOLUTIONS):
        return "convolution"
    return "embedding" if isinstance(module, nn.Embedding) else "conv1d" if is_conv1d(module) else "linear"


def _whole(weight: Weight, stands: str) -> tuple[Weight, str]:
    """A matrix that is part of one layer of the live model (of fused query, key and value) as that layer."""
    ref = weight.part.ref
    if not weight.part.index or len(ref.shape) != 2 or weight.factors is not None:
        return weight, stands
    return Weight(ref.name, "linear", Part(ref), Layout((1,) if stands == "conv1d" else (0,))), stands


def _told(weight: Weight, calibration: Calibration | None) -> tuple[Weight, str]:
    """What a matrix is where no config tells: by its moments, as an embedding's are counts, else by its name."""
    ref = weight.part.ref
    name = ref.name.removesuffix(".weight")
    plain = weight.kind in ("linear", "embedding") and len(ref.shape) == 2 and not weight.part.index
    if plain and calibration is not None and name in calibration.owner:
        kind = "embedding" if calibration.inputs[calibration.owner[name]].diagonal else "linear"
        if kind != weight.kind:
            return Weight(ref.name, kind, Part(ref)), kind
    return weight, weight.kind


def _unfit(weight: Weight, live: _Live | None) -> str:
    """Why no stream replaces a weight; empty where one does."""
    name = weight.part.ref.name.removesuffix(".weight")
    if live is not None and name in live.tied:
        return TIED.format(live.tied[name])
    if weight.aliases:
        return TIED.format(weight.aliases[0])
    if live is not None and name not in live.stands:
        return NO_LAYER.format(live.holders.get(weight.part.ref.name, "the model"))
    if "conv" in weight.kind or (live is not None and live.stands[name] == "convolution"):
        return "a convolution: only a live model's are replaced"
    if weight.kind not in ("linear", "embedding") or not weight.part.ref.name.endswith(".weight"):
        return "holds no plain matrix of one layer under a name that ends in .weight"
    if weight.part.index and live is None:
        return "one of several matrices in a tensor, and no config.json says whose"
    part = weight.part
    single = not (part.index or part.reshape or weight.factors) and weight.layout.groups == 1 and len(part.shape) == 2
    return "" if single else "not one matrix"
