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
from netspectra.live.build import skeleton
from netspectra.live.runtimes.adapter import FOLDER, correction, write_corrections
from netspectra.live.runtimes.compressed import (
    HOLDS,
    NOTHING,
    against,
    compressed_config,
    compressed_state,
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
    errors; without, every layer gets the same share, rounded to the nearest. Nothing is checked along the network or
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
    stream = Stream.of(source, options.compression(), calibration, run, progress)
    if plan is None:
        plan = _planned(stream, options, calibration)
    if to is None:
        return plan, None
    if kind == "compressed-tensors" and (others := [d.site for d in plan if d.form != "dense" and not bits_of(d.form)]):
        raise InputRefused(f"{others[0]}: {HOLDS}")
    if kind == "compressed-tensors" and not any(_packs(stream, d.modules[0], d.form) for d in plan):
        raise InputRefused(NOTHING)
    pack = {"dequantized": decoded_state, "compressed-tensors": packed_state}.get(kind, own_state)
    fitted = stream.fitted(plan, Path(to), pack)
    return plan, _saved(stream, fitted, plan, to, kind, largest)


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


def _saved(stream: Stream, fitted: Mapping[str, Fitted], plan: Plan, to: str | Path, kind: str, largest: int) -> Saved:
    """Write the folder."""
    specs: dict[str, Spec] = {name: dict(one.spec) for name, one in fitted.items() if bits_of(one.form)}
    describe = same_config(stream.source)
    left = {
        name: reason
        for name, spec in specs.items()
        if (reason := against(spec["bits"], stream.layers[name].stands == "linear"))
    }
    packed = {name: _kind(stream, name, spec) for name, spec in specs.items() if name not in left}
    ranks = {name: spec["rank"] for name, spec in specs.items() if spec.get("rank")}

    def beside(folder: Path) -> None:
        write_recipe(folder, specs, plan)
        if kind == "compressed-tensors":
            turned = any(spec.get("turned") for spec in specs.values())
            write_corrections(folder / FOLDER, ranks, {name: fitted[name].beside.values() for name in ranks}, turned)

    write = partial(save_tensors, stream.tensors(fitted), to=to, source=stream.source, beside=beside, largest=largest)
    if kind == "compressed-tensors":
        config = compressed_config(packed, _linears(stream))
        saved = write([], describe=with_config(config, describe), stock=True)
        return replace(saved, notes=(*saved.notes, *notes_on(packed.values(), left, len(ranks))))
    standing = fitted if kind == "netspectra" else {n: one for n, one in fitted.items() if n not in specs}
    records = [Placed(name, one.form, dict(one.spec)) for name, one in standing.items()]
    return write(records, describe=describe, stock=not records)


def _packs(stream: Stream, name: str, form: str) -> bool:
    """Whether compressed-tensors holds what a layer becomes."""
    bits = bits_of(form)
    return bool(bits) and name in stream.layers and not against(bits, stream.layers[name].stands == "linear")


def _kind(stream: Stream, name: str, spec: Spec) -> tuple[int, int, bool]:
    """Bits, group size (0: rows), whether there are no zero points."""
    return spec["bits"], 0 if spec["group"] == stream.layers[name].shape[1] else spec["group"], spec["symmetric"]


def _linears(stream: Stream) -> list[str]:
    """Names of all Linear layers of the model; without a config, of what is known of it."""
    source = stream.source
    if not source.config:
        return [name for name, layer in stream.layers.items() if layer.stands == "linear"]
    model = skeleton(source.config, source.path)
    return [name for name, module in model.named_modules() if type(module) is nn.Linear]
