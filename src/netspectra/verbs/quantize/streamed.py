"""Quantization from checkpoint to checkpoint with no live model: one layer in memory at a time, by any engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from netspectra.checkpoint import SHARD
from netspectra.errors import InputRefused
from netspectra.forms import Spec
from netspectra.forms.coded import CodedModule, stock
from netspectra.forms.place import Placed
from netspectra.forms.rounded import bits_of
from netspectra.live.runtimes.adapter import FOLDER, correction, write_corrections
from netspectra.live.runtimes.compressed import (
    HOLDS,
    LINEAR_ONLY,
    NOTHING,
    against,
    compressed_config,
    compressed_state,
    kind_of,
    notes_on,
    with_config,
)
from netspectra.live.saved import Saved, same_config, save_tensors
from netspectra.plan import Plan
from netspectra.run import Run
from netspectra.run.local import LocalRun
from netspectra.verbs.compress.allocate import Budget
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.onelayer import Layer, own_state
from netspectra.verbs.compress.streamed import Fitted, Stream
from netspectra.verbs.compress.workshop import Progress
from netspectra.verbs.quantize.emit import write_recipe
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.planning import NO_DATA, WEAK
from netspectra.weight import Source

__all__ = ["STREAMED", "quantize_stream"]

STREAMED = ("netspectra", "compressed-tensors", "dequantized")


def quantize_stream(
    source: Source,
    to: str | Path | None,
    options: QuantizeOptions,
    kind: str = "netspectra",
    *,
    calibration: Calibration | None = None,
    plan: Plan | None = None,
    run: Run = LocalRun(),
    progress: Progress = lambda what, share: None,
    largest: int = SHARD,
) -> tuple[Plan, Saved | None]:
    """Quantize a checkpoint's matrices, layer by layer; every other tensor is copied in pieces.

    With moments of a calibration bits go where the predicted loss asks for them, and inputs make up for one another's
    errors; without, every layer gets the same share, rounded to the nearest. For compressed-tensors only layers that
    it packs are decided on; of a given plan the others are decoded. Nothing is checked along the network or
    on held-out samples, as no network runs. Peak memory: 100 bytes an entry of the largest selected matrix (56 without
    corrections), 40 an entry of its inputs' second moment and 16 of its gradients'. Time: a correction takes an
    eigenproblem of the smaller side for every number of bits; leave them out (``ranks=(0,)``) where sides are large.

    Args:
        source: an opened checkpoint of plain numbers, under the live model's names.
        to: the folder to write; None to plan only.
        options: budget and the rest; ``weigh="measured"`` needs a live model.
        kind: netspectra, compressed-tensors or dequantized.
        calibration: moments of an earlier run on the same model.
        plan: an earlier plan whose decisions are to be used.
        run: the engine that maps over layers; the same bytes are written whichever it is.
        progress: called with what is being done and its share, 0 ... 1.
        largest: bytes of one file.

    Raises:
        InputRefused: a format that needs a live model, packed weights, names that are not the live model's, a budget
            that cannot be met.
    """
    if kind not in STREAMED:
        raise InputRefused(f"format {kind} needs a live model: leave --stream out; it writes {', '.join(STREAMED)}")
    if options.weigh == "measured":
        raise InputRefused("weigh measured runs the model, which a stream does not: leave --stream out")
    packing = kind == "compressed-tensors"
    if packing and plan is None:
        options = _packable(options)
    stream = Stream.of(source, options.compression(), calibration, run, progress)
    if plan is not None:
        plan = stream.given(plan)
    else:
        if packing:
            stream = _linear_only(stream)
        plan = _planned(stream, options, calibration)
    if to is None:
        return plan, None
    if packing and (others := [d.site for d in plan if d.form != "dense" and not bits_of(d.form)]):
        raise InputRefused(f"{others[0]}: {HOLDS}")
    left = _left(stream, plan) if packing else {}
    if packing and not any(bits_of(d.form) and d.site not in left for d in plan):
        raise InputRefused(NOTHING)
    pack = {"dequantized": decoded_state, "compressed-tensors": packed_state}.get(kind, own_state)
    fitted = stream.fitted(plan, Path(to), pack)
    plan = _decoded(plan, left, fitted)
    return plan, _saved(stream, fitted, plan, to, kind, left, largest)


def _packable(options: QuantizeOptions) -> QuantizeOptions:
    """What may be planned for compressed-tensors: codes only, and none of 16 bits."""
    if options.forms:
        raise InputRefused(HOLDS)
    levels = tuple(bits for bits in options.levels if not against(bits, linear=True))
    if not levels:
        raise InputRefused(NOTHING)
    return replace(options, levels=levels)


def _linear_only(stream: Stream) -> Stream:
    """The same, all layers left alone that compressed-tensors would hold decoded."""
    others = {name: LINEAR_ONLY for name, layer in stream.layers.items() if layer.stands != "linear"}
    if len(others) == len(stream.layers):
        raise InputRefused(NOTHING)
    return stream.without(others)


def _planned(stream: Stream, options: QuantizeOptions, calibration: Calibration | None) -> Plan:
    notes = []

    def budget(layers: Sequence[Layer]) -> Budget:
        if options.loss is not None:
            return Budget("loss", options.loss, "bytes")
        limit, bits = options.limit(sum(layer.parameters for layer in layers), sum(layer.spare for layer in layers))
        notes.append(f"budget: {bits:.4g} bits a weight with scales, zero points and corrections")
        return Budget("bytes", limit)

    weak = options.weigh == "weights"
    plan = stream.plan(budget, weighed=True if weak else None)
    if weak or calibration is None:  # instead of what the stream says of its weighing
        notes += [WEAK if weak else NO_DATA, *plan.notes[1:]]
    else:
        notes += plan.notes
    return replace(plan, verb="quantize", notes=tuple(notes))


def decoded_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A layer of codes as plain numbers, its correction multiplied in."""
    return own_state(stock(module) if isinstance(module, CodedModule) else module)


def packed_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A layer as compressed-tensors has it, and its correction as PEFT has it."""
    assert isinstance(module, CodedModule)
    return compressed_state(module), correction(module)


def _left(stream: Stream, plan: Plan) -> dict[str, str]:
    """Layers that a plan gives bits, which compressed-tensors does not pack, and why."""
    coded = {d.modules[0]: bits_of(d.form) for d in plan if bits_of(d.form)}
    found = {name: against(bits, stream.layers[name].stands == "linear") for name, bits in coded.items()}
    return {name: reason for name, reason in found.items() if reason}


def _decoded(plan: Plan, left: Mapping[str, str], fitted: Mapping[str, Fitted]) -> Plan:
    """The plan, with the bytes that layers take which the format holds decoded."""
    decisions = []
    for decision in plan:
        name = decision.modules[0]
        if name in left:
            one = fitted[name]
            size = sum(ref.nbytes for ref in (*one.tensors.values(), *one.beside.values()))
            decision = replace(decision, after=replace(decision.after, bytes=size), reason=left[name])
        decisions.append(decision)
    more = sum(new.after.bytes - old.after.bytes for new, old in zip(decisions, plan, strict=True))
    after = {name: replace(cost, bytes=cost.bytes + more) for name, cost in plan.totals.items() if "after" in name}
    return replace(plan, decisions=tuple(decisions), totals={**plan.totals, **after})


def _saved(
    stream: Stream,
    fitted: Mapping[str, Fitted],
    plan: Plan,
    to: str | Path,
    kind: str,
    left: Mapping[str, str],
    largest: int,
) -> Saved:
    """Write the folder; ``left``: layers that its format holds decoded, and why."""
    specs: dict[str, Spec] = {name: dict(one.spec) for name, one in fitted.items() if bits_of(one.form)}
    describe = same_config(stream.source)
    ranks = {name: spec["rank"] for name, spec in specs.items() if spec.get("rank")}

    def beside(folder: Path) -> None:
        if kind == "compressed-tensors":
            turned = any(spec.get("turned") for spec in specs.values())
            write_corrections(folder / FOLDER, ranks, {name: fitted[name].beside.values() for name in ranks}, turned)
        write_recipe(folder, specs, plan)

    write = partial(save_tensors, stream.tensors(fitted), to=to, source=stream.source, beside=beside, largest=largest)
    if kind == "compressed-tensors":
        packed = {name: kind_of(spec, stream.layers[name].shape[1]) for name, spec in specs.items() if name not in left}
        config = compressed_config(packed, stream.found.linears)
        saved = write([], describe=with_config(config, describe), stock=True)
        return replace(saved, notes=(*saved.notes, *notes_on(packed.values(), left, len(ranks))))
    standing = fitted if kind == "netspectra" else {n: one for n, one in fitted.items() if n not in specs}
    records = [Placed(name, one.form, dict(one.spec)) for name, one in standing.items()]
    return write(records, describe=describe, stock=not records)
