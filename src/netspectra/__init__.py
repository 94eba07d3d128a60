"""netspectra: the spectral workbench for neural networks.

From a live module or a checkpoint, every weight matrix's singular values with a bound on their error, and what follows
from them. Everything here is loaded when it is first used.

>>> import netspectra as ns, torch
>>> ns.svdvals(torch.eye(3)).values.tolist()
[1.0, 1.0, 1.0]
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and "-m netspectra" in " ".join(sys.orig_argv) and not sys.flags.safe_path:
    del sys.path[0]  # the current folder, which may be a stranger's checkpoint with a torch.py in it

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspectra.version import __version__

if TYPE_CHECKING:
    import torch

    from netspectra.analysis import Analysis
    from netspectra.errors import EnvironmentFailure, InputRefused, NetspectraError, NotDecomposable
    from netspectra.linalg.spectrum import Spectrum
    from netspectra.linalg.svd import svd
    from netspectra.linalg.values import svdvals
    from netspectra.live.norm import operator_norm
    from netspectra.live.saved import Saved
    from netspectra.plan import Plan
    from netspectra.run import Run
    from netspectra.sources import open
    from netspectra.verbs.compress.options import CompressOptions
    from netspectra.verbs.geometry import Geometry
    from netspectra.weight import Weight

__all__ = [
    "Analysis",
    "CompressOptions",
    "EnvironmentFailure",
    "Geometry",
    "InputRefused",
    "NetspectraError",
    "NotDecomposable",
    "Plan",
    "Spectrum",
    "__version__",
    "analyze",
    "compress",
    "geometry",
    "load",
    "open",
    "operator_norm",
    "save",
    "svd",
    "svdvals",
]

_HOME = {
    "Analysis": "netspectra.analysis",
    "CompressOptions": "netspectra.verbs.compress.options",
    "EnvironmentFailure": "netspectra.errors",
    "Geometry": "netspectra.verbs.geometry",
    "InputRefused": "netspectra.errors",
    "NetspectraError": "netspectra.errors",
    "NotDecomposable": "netspectra.errors",
    "Plan": "netspectra.plan",
    "Spectrum": "netspectra.linalg.spectrum",
    "open": "netspectra.sources",
    "svd": "netspectra.linalg.svd",
    "svdvals": "netspectra.linalg.values",
    "operator_norm": "netspectra.live.norm",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'netspectra' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def analyze(
    origin: Any,
    *,
    metrics: Sequence[str] | None = None,
    rank: int | Sequence[int] = (),
    accuracy: float = 1e-6,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    device: str | None = None,
    grid: int | None = None,
    thorough: bool = False,
    seed: int = 0,
    workers: int = 0,
    run: Run | None = None,
    runfile: str | Path | None = None,
    progress: Callable[[Weight | None], None] | None = None,
) -> Analysis:
    """Find every weight's singular values, metrics and verdicts.

    Args:
        origin: a live ``torch.nn.Module`` (it comes back untouched), a dict of tensors, or a checkpoint's path.
        metrics: names of metrics, by default all that cost little; ``netspectra metrics`` lists them.
        rank: ranks k whose relative approximation error is wanted too (``metrics["relative_error_K"]``).
        accuracy: largest relative error of each singular value above the rounding floor of the stored dtype.
        include: patterns of names to take: globs, or ``re:`` and a regular expression.
        exclude: patterns of names to leave out.
        device: where to compute; by default where each tensor is.
        grid: input size for which convolutions are taken as operators; by default 64, 16 x 16 or 8 x 8 x 8.
        thorough: also bootstrap intervals, p-values, FARMS and the randomised twin: several times the work.
        seed: of the draws that thorough work takes.
        workers: threads, one weight each; by default one a processor.
        run: another engine than threads in this process.
        runfile: keep findings in this file as they come; given again, the job resumes.
        progress: called with each weight that is done.

    Returns:
        An `Analysis`: iterate it, index it by name, ``to_pandas()``, ``plot()``, ``save("report.html")``.

    Raises:
        InputRefused: the input is damaged or unknown, or the run file belongs to another job.

    >>> import torch, netspectra as ns
    >>> analysis = ns.analyze({"layer.weight": torch.diag(torch.tensor([4.0, 2.0, 1.0]))}, rank=1)
    >>> layer = analysis["layer.weight"]
    >>> float(layer.metrics["condition_number"]), round(layer.metrics["stable_rank"], 4)
    (4.0, 1.3125)
    """
    from netspectra.run.local import LocalRun
    from netspectra.runfile import RunFile
    from netspectra.sources import open as open_source
    from netspectra.verbs.analyze import AnalyzeOptions, analyze, job

    options = AnalyzeOptions(
        metrics=None if metrics is None else tuple(metrics),
        ranks=(rank,) if isinstance(rank, int) else tuple(rank),
        accuracy=accuracy,
        include=(include,) if isinstance(include, str) else tuple(include),
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
        device=device,
        grid=grid,
        thorough=thorough,
        seed=seed,
    )
    source = open_source(origin)
    keep = RunFile.create_or_resume(runfile, job(source, options)) if runfile is not None else None
    try:
        found = analyze(
            source,
            options,
            run=run or LocalRun(workers=workers),
            runfile=keep,
            progress=progress or (lambda weight: None),
        )
        if keep:
            keep.finish()
        return found
    finally:
        if keep:
            keep.close()


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
    model: torch.nn.Module, to: str | Path, *, like: Any = None, example: Any = None, largest: int = 5_000_000_000
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
    return save(model, to, source=None if like is None else open_source(like), largest=largest)


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


def geometry(
    weight: Any,
    inputs: Any = None,
    *,
    name: str = "",
    labels: Sequence[Any] | None = None,
    points: int = 400,
) -> Geometry:
    """See what a layer does to space: V^T turns, S stretches, U turns, on a sphere and on real inputs.

        y = W x = U S V^T x

    The picture has three axes, the leading right singular directions v_1, v_2, v_3 of the inputs and u_1, u_2, u_3 of
    the outputs. The unit sphere in span(v_1, v_2, v_3) becomes an ellipsoid with half axes sigma_1, sigma_2, sigma_3:
    that is exact. Inputs are projected, and the share of their energy that is seen is told at every step.

    Args:
        weight: a matrix or kernel (outputs first), a record of an analysis, a `Weight`, a layer; or a model, a dict
            of tensors or a checkpoint's path, with ``name``.
        inputs: what the layer receives: (..., n) numbers; images for a convolution; token numbers for an embedding,
            all its tokens by default. At most 4096 are used.
        name: which weight of a model or checkpoint; else what to call it.
        labels: one for each input, for its colour.
        points: how many inputs are drawn.

    Returns:
        A `Geometry`: ``print`` it, show it in a notebook, ``.figure``, ``.save("layer.html")``.

    Raises:
        InputRefused: inputs that do not fit, more than one weight and no name.
        NotDecomposable: NaN or Inf.

    Cost: the eight leading singular triplets, and one product with the inputs.

    >>> import torch, netspectra as ns
    >>> seen = ns.geometry(torch.diag(torch.tensor([3.0, 2.0, 1.0])), torch.eye(3))
    >>> [round(direction.sigma, 4) for direction in seen.directions], round(seen.typical, 4)
    ([3.0, 2.0, 1.0], 2.1602)
    """
    from netspectra.record import Record
    from netspectra.sources import open as open_source
    from netspectra.verbs.geometry import geometry, one_of
    from netspectra.weight import Weight

    def single(origin: Any) -> bool:
        return isinstance(origin, Weight | Record) or (hasattr(origin, "shape") and hasattr(origin, "dtype"))

    if single(weight):
        return geometry(weight, inputs, labels=labels, name=name, points=points)
    return geometry(one_of(open_source(weight), name), inputs, labels=labels, points=points)
