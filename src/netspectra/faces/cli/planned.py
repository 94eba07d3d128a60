"""What the commands that plan share: a live model with its calibration batches, and the plan shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspectra.faces.cli.output import export, tell_files

if TYPE_CHECKING:
    import torch

    from netspectra.plan import Plan
    from netspectra.verbs.compress.calibrate import Calibration
    from netspectra.verbs.compress.workshop import Workshop
    from netspectra.weight import Source

__all__ = ["opened", "remembering", "told"]


def opened(
    path: str, make: str | None, calibration: Path | None, samples: int, tokens: int, size: int | None
) -> tuple[Source, torch.nn.Module, list[Any] | None]:
    """The checkpoint, its live model, and calibration batches for it."""
    from netspectra.live.build import build, factory
    from netspectra.live.samples import affordable, is_tensors, read_samples, tensor_batches, text_batches, tokenizer
    from netspectra.sources import open as open_source

    source = open_source(path)
    if calibration is None:
        return source, build(source, factory(make) if make else None), None
    if is_tensors(calibration):
        size = size or 32
        batches = tensor_batches(open_source(calibration), size=size)[: max(1, samples // size)]
        return source, build(source, factory(make) if make else None), batches
    texts, words = _spread(read_samples(calibration), samples), tokenizer(source)
    network = build(source, factory(make) if make else None)
    texts.sort(key=len)  # alike lengths in a batch: less padding
    size = size or affordable(network, tokens)
    return source, network, text_batches(texts, words, network, size=size, longest=tokens)


def _spread(texts: list[str], count: int) -> list[str]:
    """At most ``count`` of them, evenly from the whole file."""
    return texts if len(texts) <= count else [texts[i * len(texts) // count] for i in range(count)]


def remembering(moments: Path | None, plan: Callable[[Calibration | None], tuple[Plan, Workshop]]) -> Plan:
    """Plan with the moments that a file holds; where there is none yet, keep in it what was measured."""
    from netspectra.verbs.compress.calibrate import Calibration

    known = Calibration.load(moments) if moments is not None and moments.exists() else None
    made, shop = plan(known)
    if moments is not None and known is None and shop.calibration is not None:
        shop.calibration.save(moments)
    return made


def told(made: Plan, html: str | None, json_out: str | None, plan: Path | None, quiet: bool) -> None:
    """Write and show what was planned."""
    export(made, html, json_out)
    if not quiet and "-" not in (html, json_out):
        _show(made)
    tell_files(html, json_out, plan)


def _show(plan: Plan) -> None:
    """The plan as a table, and what was measured, on stdout."""
    from netspectra.faces.cli.table import show_plan

    show_plan(plan)
