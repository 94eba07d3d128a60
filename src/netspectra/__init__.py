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
    from netspectra.run import Run
    from netspectra.sources import open
    from netspectra.verbs.geometry import Geometry
    from netspectra.verbs.train.draws import Method
    from netspectra.verbs.train.findings import Trainability
    from netspectra.verbs.train.initialization import Initialization
    from netspectra.weight import Weight

__all__ = [
    "Analysis",
    "EnvironmentFailure",
    "Geometry",
    "InputRefused",
    "NetspectraError",
    "NotDecomposable",
    "Spectrum",
    "__version__",
    "analyze",
    "geometry",
    "initialize_",
    "open",
    "operator_norm",
    "svd",
    "svdvals",
    "trainability",
]

_HOME = {
    "Analysis": "netspectra.analysis",
    "EnvironmentFailure": "netspectra.errors",
    "Geometry": "netspectra.verbs.geometry",
    "InputRefused": "netspectra.errors",
    "NetspectraError": "netspectra.errors",
    "NotDecomposable": "netspectra.errors",
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


def trainability(
    model: torch.nn.Module,
    batch: Any,
    *,
    start: str = "",
    exact: int = 256,
    probes: int = 8,
    steps: int = 10,
    seed: int = 0,
) -> Trainability:
    """Tell whether signals pass a network, and where along its depth they are lost or blow up.

    The Jacobian J of the output by the input decides whether a deep network trains: rms sigma(J) far below 1 takes the
    gradient away, far above 1 breaks it, and the condition numbers of the weights say next to nothing of either. No
    labels, no training; the model comes back untouched, measured in eval mode (dropout off, batch norms frozen).

        rms sigma(J) = sqrt(||J||_F^2 / narrowest size)

    Small Jacobians are decomposed in full; of large ones the norm is estimated by random backward passes (Hutchinson),
    the largest value by Golub-Kahan steps, the distribution by stochastic Lanczos. Every block between two tensors
    that all paths pass through gets its own.

    Args:
        model: any module; a Transformer, a recurrent or convolutional network, in any mode and dtype.
        batch: what the model is called with: a tensor, a tuple by position, a mapping by keyword. Sixteen samples do.
        start: name of the submodule at whose output signals start; by default the first floating input, or the
            embedding that reads integers.
        exact: largest short side of a Jacobian that is decomposed in full.
        probes: random vectors where norms are estimated.
        steps: Golub-Kahan steps for the largest singular value, two products each.
        seed: of the probes.

    Returns:
        A `Trainability`: ``.rms``, ``.score``, ``.blocks``, ``.verdicts``, ``.plot()``, ``save("depth.html")``.

    Raises:
        InputRefused: nothing to start from, or an output that does not depend on it.

    Cost: a forward pass, then about 10 backward passes for few outputs, 150 for many.

    Reference: Pennington, Schoenholz & Ganguli 2017, arXiv 1711.04735.

    >>> import torch, netspectra as ns
    >>> layers = [torch.nn.Linear(32, 32, bias=False) for _ in range(30)]
    >>> found = ns.trainability(torch.nn.Sequential(*layers), torch.randn(4, 32))
    >>> found.verdicts[0].rule, found.rms < 1e-5
    ('signal-lost', True)
    """
    from netspectra.verbs.train.trainability import TrainabilityOptions, trainability

    return trainability(model, batch, TrainabilityOptions(start, exact, probes, steps, seed))


def initialize_(
    model: torch.nn.Module,
    batch: Any,
    *,
    method: Method = "orthogonal",
    target: float = 1.0,
    branch: float | None = None,
    rescale: bool = True,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    start: str = "",
    seed: int = 0,
) -> Initialization:
    """Initialise a network in place so that signals pass it; before and after are in the result.

    Matrices become orthogonal (one a gate, head part or group), kernels of stride 1 delta-orthogonal, norms one, biases
    zero (an LSTM's forget gate one). Then each block's scale is set by its own Jacobian, measured on the batch, until
    gradients keep their size through it. A residual branch is scaled at its last matrix (or the norm after it) to
    1 / sqrt(number of branches) of its stream. Embeddings, and parameters whose use is not known, are left alone and
    listed.

    Args:
        model: any module; written to only if all goes well.
        batch: what it is called with; no labels.
        method: ``orthogonal``; ``gaussian`` (variance 1 / fan in); ``spectral`` (spectral norm sqrt(out / in), which
            fixes width but not depth, and no Jacobian); ``keep`` (only scale what is there).
        target: rms singular value of the end-to-end Jacobian, for networks without residual branches and norms.
        branch: rms singular value of a residual branch over that of its stream.
        rescale: whether the Jacobian may set scales after the draw.
        include: globs of names of parameters to touch; all by default.
        exclude: globs of names to leave alone: ``"head.*"``.
        start: as in `trainability`.
        seed: of the draws; the global generators are not touched.

    Returns:
        An `Initialization`: ``.before``, ``.after``, ``.changes``, ``.plot()``.

    Raises:
        InputRefused: as `trainability`.

    Reference: Xiao et al. 2018, arXiv 1806.05393 (delta-orthogonal); Mishkin & Matas 2016, arXiv 1511.06422 (one
    scale after another from data); Zhang, Dauphin & Ma 2019, arXiv 1901.09321 (branches); Yang, Simon & Bernstein
    2023, arXiv 2310.17813 (spectral condition).

    >>> import torch, netspectra as ns
    >>> layers = [torch.nn.Linear(32, 32) for _ in range(30)]
    >>> found = ns.initialize_(torch.nn.Sequential(*layers), torch.randn(4, 32))
    >>> found.before.passes, found.after.passes, round(found.after.rms, 1)
    (False, True, 1.0)
    """
    from netspectra.verbs.train.initialize import InitializeOptions, initialize_

    return initialize_(
        model,
        batch,
        InitializeOptions(
            method=method,
            target=target,
            branch=branch,
            rescale=rescale,
            include=(include,) if isinstance(include, str) else tuple(include),
            exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
            start=start,
            seed=seed,
        ),
    )


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
