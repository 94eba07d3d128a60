"""See: the spectra of every weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netspectra.analysis import Analysis
    from netspectra.run import Run
    from netspectra.weight import Weight

__all__ = ["analyze"]


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
