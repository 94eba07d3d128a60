"""Shrink a model, and carry it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from netspectra.live.saved import Saved
    from netspectra.plan import Plan
    from netspectra.verbs.compress.options import CompressOptions

__all__ = ["compress", "load", "save"]


def compress(
    model: torch.nn.Module,
    *,
    keep: float | None = None,
    calibration: Any = None,
    plan: Plan | str | Path | None = None,
    options: CompressOptions | None = None,
    progress: Callable[[str, float], None] | None = None,
    **wanted: Any,
) -> Plan:
    """Plan how to shrink a network under a budget so that what it computes changes least; `Plan.apply` then does it.

    Every layer may stay dense, be factored, stored by its own rows, share a factor, lose neurons or head dimensions;
    forms and sizes are chosen by the loss they are predicted to cost, and judged on held-out samples against treating
    all layers alike. The model is not changed before ``plan.apply(model)``.

    Args:
        model: any module.
        keep: share of the selected weights' parameters that stays; one half where no budget is given.
        calibration: what the model is called with: batches, a DataLoader, a function that gives them; or the path of
            moments that were saved; None: plain truncation, which loses far more.
        plan: a plan or its file, perhaps edited, to be fitted instead of making a new one.
        options: `netspectra.verbs.compress.options.CompressOptions`, where all can be said.
        progress: called with what is being done and its share, 0 ... 1.
        wanted: fields of the options by name: ``loss=0.1``, ``portable=True``, ``heal=200``, ...

    Raises:
        InputRefused: the budget cannot be met, nothing is selected, options contradict each other.

    >>> import torch, netspectra as ns
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> plan = ns.compress(model, keep=0.5, calibration=[torch.randn(64, 32)])
    >>> _ = plan.apply(model)
    >>> sum(p.numel() for p in model.parameters()) <= 0.5 * (32 * 64 + 64 + 64 * 10 + 10)
    True
    """
    from dataclasses import replace

    from netspectra.plan import Plan
    from netspectra.verbs.compress.calibrate import Calibration
    from netspectra.verbs.compress.options import CompressOptions
    from netspectra.verbs.compress.planning import compress

    if keep is not None:
        wanted["keep"] = keep
    if isinstance(calibration, str | Path):
        known, data = Calibration.load(calibration), None
    else:
        known, data = None, calibration
    made, _ = compress(
        model,
        replace(options or CompressOptions(), **wanted),
        data,
        calibration=known,
        plan=Plan.load(plan) if isinstance(plan, str | Path) else plan,
        progress=progress or (lambda what, share: None),
    )
    return made


def save(
    model: torch.nn.Module,
    to: str | Path,
    *,
    like: Any = None,
    example: Any = None,
    format: str = "netspectra",
    plan: Plan | None = None,
    largest: int = 5_000_000_000,
) -> Saved:
    """Write a model, compressed or not, so that it can be loaded elsewhere; all of it or nothing.

    A folder of safetensors, tied weights once: a stock one for ``AutoModel.from_pretrained`` where a config can say
    what the model has become, else one for `load`. A name that ends in ``.pt2`` or ``.onnx`` gives one file that runs
    with torch or onnxruntime alone.

    Args:
        model: the live model.
        to: a folder (new, empty, or written by netspectra), or a file ``NAME.pt2`` or ``NAME.onnx``.
        like: the checkpoint it came from (a path or `open`'s answer): its tokenizer and other small files go along,
            and what was not changed is copied byte for byte.
        example: for ``.pt2`` and ``.onnx``, a batch: the call that is recorded, for any batch size and length.
        format: how a quantized model is written: ``netspectra``, ``torchao``, ``compressed-tensors``, ``gguf``, or
            ``dequantized``.
        plan: of the quantization: a ``recipe.json`` of what was done goes along.
        largest: bytes of one file of weights, beyond which there are several and an index.

    Raises:
        InputRefused: the folder holds something else; the model cannot be written so.

    >>> import tempfile, torch, netspectra as ns
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = ns.save(model, folder)
    ...     again = ns.load(folder, torch.nn.Sequential(torch.nn.Linear(4, 2)))
    >>> saved.stock, torch.equal(model[0].weight, again[0].weight)
    (True, True)
    """
    from netspectra.live.export import SUFFIXES, export
    from netspectra.live.saved import save
    from netspectra.sources import open as open_source

    if Path(to).suffix in SUFFIXES:
        return export(model, to, example)
    source = None if like is None else open_source(like)
    if plan is not None or format != "netspectra":
        from netspectra.verbs.quantize.emit import emit

        return emit(model, to, format, plan=plan, source=source)
    return save(model, to, source=source, largest=largest)


def load(folder: str | Path, model: torch.nn.Module | None = None) -> torch.nn.Module:
    """The model in a folder that `save` wrote, or in any checkpoint whose config transformers knows; in eval mode.

    No code of the checkpoint's runs, and a parameter that it lacks is an error, never a random number.

    Args:
        folder: of `save`, a Hugging Face folder, a GGUF file, ...
        model: where there is no config: the module as it was before compression, which gets the saved structure and
            numbers in place.

    Raises:
        InputRefused: nothing says how to build the model, or the weights do not fit it.
    """
    from netspectra.live.saved import load
    from netspectra.sources import open as open_source

    return load(open_source(folder), model)
