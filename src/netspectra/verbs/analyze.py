"""See: every weight's singular values, what they say, and how sure that is."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from netspectra.analysis import RELATIVE_ERROR, Analysis
from netspectra.errors import EnvironmentFailure, InputRefused, NotDecomposable, lacks_memory
from netspectra.linalg.batch import svdvals_batch
from netspectra.linalg.product import product_svdvals
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.values import svdvals, union
from netspectra.metrics import chosen, evaluate
from netspectra.metrics.ranks import relative_error
from netspectra.record import OperatorSpectrum, Record, Skipped, Value
from netspectra.run import Run
from netspectra.run.local import LocalRun
from netspectra.runfile import RunFile
from netspectra.verbs.convolution import operator_spectrum
from netspectra.verdicts import judge
from netspectra.version import __version__
from netspectra.weight import Selection, Source, Weight

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AnalyzeOptions", "analyze", "job", "measure"]


@dataclass(frozen=True)
class AnalyzeOptions:
    """What is asked of an analysis; part of a run file's identity.

    Attributes:
        metrics: names from the registry, or None for all (those that cost much only with ``thorough``).
        ranks: ranks k whose relative approximation error is wanted.
        accuracy: largest relative error of each singular value above the rounding floor.
        include: patterns of weight names to take (glob, or ``re:`` and a regular expression); none means all.
        exclude: patterns to leave out.
        device: where to compute, as torch names it; None leaves each tensor where it is.
        grid: input size along every dimension for which convolutions are taken as operators; None for a default.
        thorough: also bootstrap intervals and p-values, and the metrics that cost as much as the spectrum.
        seed: of every draw; each weight and metric has a generator of its own, so that order and workers do not matter.
    """

    metrics: tuple[str, ...] | None = None
    ranks: tuple[int, ...] = ()
    accuracy: float = 1e-6
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    device: str | None = None
    grid: int | None = None
    thorough: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not chosen(self.metrics):
            raise InputRefused("--metrics names none; leave it out for all")
        if not 1e-12 <= self.accuracy <= 0.1:
            raise InputRefused(f"--accuracy {self.accuracy:g}: give a relative error between 1e-12 and 0.1")
        if self.grid is not None and not 1 <= self.grid <= 4096:
            raise InputRefused(f"--grid {self.grid}: give an input size between 1 and 4096")
        for k in self.ranks:
            if k < 1:
                raise InputRefused(f"--rank {k}: a rank is at least 1")
        if self.seed < 0:
            raise InputRefused(f"--seed {self.seed}: give a whole number from 0 on")


def analyze(
    source: Source,
    options: AnalyzeOptions = AnalyzeOptions(),
    *,
    run: Run = LocalRun(),
    runfile: RunFile | None = None,
    progress: Callable[[Weight | None], None] = lambda weight: None,
) -> Analysis:
    """Find every selected weight's singular values and what follows from them.

    Args:
        source: what `netspectra.open` gave.
        options: what is wanted.
        run: the engine that maps a function over weights.
        runfile: where findings are kept as they come; weights it already holds are not done again.
        progress: called with each weight when it is done.
    """
    selection = Selection(options.include, options.exclude)
    wanted = {position: weight for position, weight in enumerate(source.weights) if selection.accepts(weight.name)}
    if not wanted:
        why = "no weight matches the patterns" if source.weights else "nothing to analyse: it holds no weight matrix"
        raise InputRefused(f"{source.path}: {why}; 'netspectra inspect' lists what a checkpoint holds")
    places = {id(weight): position for position, weight in wanted.items()}
    found = dict(runfile.found()) if runfile else {}
    for position, finding in found.items():
        if position not in wanted or wanted[position].name != finding.name:
            raise InputRefused(
                f"{runfile and runfile.path}: row {position} is of another job: damaged? Name a new file"
            )
        progress(wanted[position])
    open_ = [weight for position, weight in wanted.items() if position not in found]
    for weight, finding in run(partial(measure, options=options), open_):
        position = places[id(weight)]
        found[position] = finding
        if runfile:
            runfile.add(position, finding)
        progress(weight)
    ordered = [
        _attached(found[position], weight) for position, weight in sorted(wanted.items(), key=lambda item: item[0])
    ]
    return Analysis(
        tuple(r for r in ordered if isinstance(r, Record)),
        (*_left_out(source, selection), *(s for s in ordered if isinstance(s, Skipped))),
        source.describe(),
        _told(options),
        len(wanted),
    )


def job(source: Source, options: AnalyzeOptions) -> dict[str, Any]:
    """What makes two analyses the same job: the meta of their run file."""
    selection = Selection(options.include, options.exclude)
    return {
        "verb": "analyze",
        "version": __version__,
        "source": source.describe(),
        "guard": source.guard,
        "options": _told(options),
        "weights": sum(selection.accepts(weight.name) for weight in source.weights),
        "skipped": [asdict(skipped) for skipped in _left_out(source, selection)],
    }


def _left_out(source: Source, selection: Selection) -> list[Skipped]:
    return [skipped for skipped in source.skipped if selection.accepts(skipped.name)]


def measure(weight: Weight, options: AnalyzeOptions) -> Record | Skipped:
    """One weight's findings; what cannot be decomposed or read is skipped with the reason."""
    try:
        spectrum, operator, matrix = _decomposed(weight, options)
    except (NotDecomposable, InputRefused) as reason:
        return Skipped(weight.name, weight.part.shape, str(reason))
    except (torch.linalg.LinAlgError, np.linalg.LinAlgError) as reason:  # pyright: ignore[reportPrivateImportUsage]
        why = str(reason).splitlines()[0][:200]
        return Skipped(weight.name, weight.part.shape, f"the numerical library gave up: {why}")
    except (MemoryError, RuntimeError) as reason:
        if not lacks_memory(reason):
            raise
        m, n = weight.shape
        raise EnvironmentFailure(
            f"{weight.name!r} ({m} x {n}): out of memory. Use --workers 1, --exclude it, or a machine with more"
        ) from None
    wanted = chosen(options.metrics, thorough=options.thorough)
    seed = (options.seed, zlib.crc32(weight.name.encode("utf-8", "surrogatepass"))) if options.thorough else None
    # the rules see every default metric, so that a verdict does not depend on which columns were asked for
    every = evaluate(dict.fromkeys((*chosen(), *wanted)), spectrum, matrix, seed=seed)
    metrics = {entry.name: every[entry.name] for entry in wanted}
    for k in options.ranks:
        metrics[f"{RELATIVE_ERROR}{k}"] = Value(relative_error(spectrum, k))
    return Record(
        name=weight.name,
        kind=weight.kind,
        shape=weight.shape,
        dtype=weight.dtype,
        parameters=weight.parameters,
        spectrum=spectrum,
        metrics=metrics,
        aliases=weight.aliases,
        operator=operator,
        verdicts=judge(spectrum, every, weight.kind),
        notes=(*weight.notes, *_remarks(spectrum, options)),
    )


def _decomposed(weight: Weight, options: AnalyzeOptions) -> tuple[Spectrum, OperatorSpectrum | None, Tensor | None]:
    """The spectrum, of a convolution also the operator's, and the matrix where it is one piece."""
    if weight.factors:
        B, A = weight.factors.load()
        return product_svdvals(B, A, weight.factors.scale, device=options.device), None, None
    tensor = weight.part.load()
    blocks = weight.layout.blocks(tensor if options.device is None else tensor.to(options.device))
    if len(blocks) == 1:
        spectrum = svdvals(blocks[0], accuracy=options.accuracy)
    else:
        spectrum = union(svdvals_batch(blocks, accuracy=options.accuracy), weight.shape)
    operator = operator_spectrum(weight, tensor, spectrum, options.grid)
    return spectrum, operator, blocks[0] if len(blocks) == 1 else None


def _remarks(spectrum: Spectrum, options: AnalyzeOptions) -> list[str]:
    """What a reader should know about how the values were found."""
    remarks = []
    missed = (spectrum.error > options.accuracy * spectrum.values) & (spectrum.values + spectrum.error > spectrum.floor)
    if missed.any():
        with np.errstate(over="ignore"):
            worst = float(np.max(spectrum.error[missed] / np.maximum(spectrum.values[missed], 1e-300)))
        remarks.append(f"{missed.sum()} values are known less well than asked: to {worst:.1e}, relative")
    if options.device is not None and options.device.startswith("mps"):
        remarks.append("mps has no float64: computed on the cpu")
    return remarks


def _attached(finding: Record | Skipped, weight: Weight) -> Record | Skipped:
    return replace(finding, load=weight.operator) if isinstance(finding, Record) else finding


def _told(options: AnalyzeOptions) -> dict[str, Any]:
    """The options as exports show them."""
    names = [metric.name for metric in chosen(options.metrics, thorough=options.thorough)]
    return {**{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items()}, "metrics": names}
