"""A quantized model in the formats that other programs load, each with a recipe of what was done and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from netspectra.checkpoint import sizes_in
from netspectra.errors import InputRefused
from netspectra.forms import Spec
from netspectra.forms.place import placed
from netspectra.forms.rounded import bits_of
from netspectra.live.runtimes import coded_modules, decoded
from netspectra.live.runtimes.adapter import ADAPTED
from netspectra.live.saved import Saved, save
from netspectra.plan import Plan
from netspectra.verbs.compress.calibrate import layers
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.weight import Selection, Source
from netspectra.written import strict_json

__all__ = ["FORMATS", "check", "emit", "recipe", "write_recipe"]

FORMATS = ("netspectra", "torchao", "compressed-tensors", "gguf", "dequantized")
RECIPE = "recipe.json"
READERS = {
    "netspectra": "ns.load; every number of bits, corrections included; decodes at every call",
    "torchao": "2 to 8 bits: torchao, and transformers with torchao installed",
    "compressed-tensors": "2 to 8 bits symmetric: compressed-tensors and transformers; vLLM, SGLang: 4 and 8 only",
    "gguf": "8, 5, 4 bits, symmetric, groups of 32: llama.cpp and what is built on it",
    "dequantized": "anything that reads the original; no smaller",
}


def emit(
    model: nn.Module,
    to: str | Path,
    kind: str = "netspectra",
    *,
    plan: Plan | None = None,
    source: Source | None = None,
) -> Saved:
    """Write a model that a plan was applied to, as one format.

    Args:
        model: with the plan applied; left as it is.
        to: a folder: new, empty, or one that was written by netspectra.
        kind: netspectra, torchao, compressed-tensors, gguf, dequantized.
        plan: for ``recipe.json``, which is left out without it.
        source: the checkpoint it came from, whose tokenizer and other small files go along.

    Raises:
        InputRefused: an unknown format, one that cannot hold these codes, a library that is missing.
    """
    if kind not in FORMATS:
        raise InputRefused(f"format {kind!r}: there are {', '.join(FORMATS)}")
    coded_modules(model)  # or there is nothing to write

    def beside(folder: Path) -> None:
        if plan is not None:
            write_recipe(folder, {one.module: one.spec for one in placed(model) if bits_of(one.form)}, plan)

    return _writer(kind)(model, to, source=source, beside=beside)


def check(model: nn.Module, kind: str, options: QuantizeOptions) -> None:
    """Refuse before any work a model, or options, whose codes a format will not hold.

    Raises:
        InputRefused: an architecture, a library or a grid that it lacks.
    """
    if kind == "torchao":
        from netspectra.live.runtimes.torchao import needed

        needed()
    if kind == "gguf":
        from netspectra.live.runtimes.gguf import BLOCK, SUITED, TYPES, architecture
        from netspectra.live.runtimes.gguf import check as check_layers

        architecture(model)
        if not options.symmetric or options.group != BLOCK or set(options.levels) - {16, *TYPES}:
            raise InputRefused(f"levels {options.levels}, groups of {options.group}: GGUF holds others; {SUITED}")
        selection = Selection(options.include, options.exclude)
        check_layers(model, [name for name in layers(model) if selection.accepts(f"{name}.weight")])


def _writer(kind: str) -> Callable[..., Saved]:
    if kind == "torchao":
        from netspectra.live.runtimes.torchao import write_torchao

        return write_torchao
    if kind == "compressed-tensors":
        from netspectra.live.runtimes.compressed import write_compressed

        return write_compressed
    if kind == "gguf":
        from netspectra.live.runtimes.gguf import write_gguf

        return write_gguf
    if kind == "dequantized":
        return lambda model, to, **more: save(decoded(model), to, **more)
    return save


def write_recipe(folder: Path, specs: Mapping[str, Spec], plan: Plan) -> None:
    """Write ``recipe.json``.

    Args:
        folder: of the model, whose tensors are there already.
        specs: of the quantized layers, by name.
        plan: what was decided.
    """
    text = strict_json(recipe(specs, plan, _lying(folder, plan)), indent=1)
    (folder / RECIPE).write_text(text, encoding="utf-8")


def _lying(folder: Path, plan: Plan) -> dict[str, int]:
    """Bytes that the modules of a plan take in the files of a folder, corrections beside the model included."""
    modules = {name for decision in plan for name in decision.modules}
    found: dict[str, int] = {}
    for tensor, size in sizes_in(folder).items():
        name = tensor.removeprefix(ADAPTED)
        while name and name not in modules:
            name = name.rpartition(".")[0]
        if name:
            found[name] = found.get(name, 0) + size
    return found


def recipe(specs: Mapping[str, Spec], plan: Plan, sizes: Mapping[str, int]) -> dict[str, Any]:
    """What was done to each layer, what it was predicted to cost, what was measured, and who reads which format.

    Args:
        specs: of the quantized layers, by name.
        plan: what was decided.
        sizes: bytes of each module in the file, which are not those of the plan where a format holds no such codes;
            none where the file calls tensors otherwise (GGUF).
    """
    layers = {
        name: {
            "bits": spec["bits"],
            "group": spec.get("group"),
            "symmetric": spec.get("symmetric", False),
            "rank": spec.get("rank", 0),
            "bytes": sizes.get(name),
            "predicted_loss": plan[name].loss,
        }
        for name, spec in specs.items()
    }
    before = plan.totals["selected_before"]
    losses = [decision.loss for decision in plan]
    decided = [name for decision in plan if decision.kind != "left" for name in decision.modules]
    known = all(name in sizes for name in decided)
    return {
        "format": 1,
        "layers": layers,
        "bytes": {
            "before": before.bytes,
            "planned": plan.totals["selected_after"].bytes,
            "after": sum(sizes[name] for name in decided) if known else None,
        },
        "predicted_loss": None if None in losses else sum(loss or 0.0 for loss in losses),
        "measured": plan.finish.get("final"),
        "held_out": dict(plan.held_out),
        "options": dict(plan.options),
        "readers": READERS,
    }
