"""Weights over a series of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netspectra.record import Record
    from netspectra.verbs.drift.series import Kind, Series

__all__ = ["change_points"]

SQLITE = b"SQLite format 3\x00"


def change_points(
    *checkpoints: Any,
    kind: Kind = "training",
    alpha: float = 0.05,
    permutations: int = 499,
    seed: int = 0,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
) -> Series:
    """Find where the spectra of weights changed over a series of checkpoints, and say how sure that is.

    For every weight the logarithms of spectral and Frobenius norm, stable and effective rank are followed. Of a
    training the steps from one checkpoint to the next are compared: ``rate`` says that from here on the weights move
    otherwise than before. Of independent checkpoints (a model that is retrained every night) the values themselves:
    ``level``. Places are found by CUSUM of ranks, all weights together and each alone, and judged by exchanging steps
    or checkpoints (the same exchange for all weights); then both sides are searched again. ``jump`` is one step or
    checkpoint that stands out from its neighbours (Grubbs' test of log sizes, which takes them for normal).

    Args:
        checkpoints: six at least, in order: live modules, dicts of tensors, paths of checkpoints or run files (one that
            holds steps of a training counts as a checkpoint a step).
        kind: ``training`` or ``independent``.
        alpha: level of every test.
        permutations: exchanges.
        seed: of them.
        include: patterns of names of weights to take.
        exclude: patterns to leave out.

    Returns:
        A `Series`: ``.changes``, ``.verdict``, ``save("series.html")``.

    Raises:
        InputRefused: fewer than six checkpoints, no weight in all of them.

    Reference: Vostrikova 1981 (binary segmentation); Pettitt 1979, Appl. Statist. 28 (ranks); Grubbs 1950.

    >>> import torch, netspectra as ns
    >>> g = torch.Generator().manual_seed(0)
    >>> made = [{"w": torch.randn(30, 20, generator=g) * (1.0 if i < 10 else 1.3)} for i in range(20)]
    >>> found = ns.change_points(*made, kind="independent")
    >>> [(change.kind, change.at) for change in found.changes]
    [('level', '10')]
    """
    from netspectra.verbs.drift.series import series
    from netspectra.weight import Selection

    selection = Selection(
        (include,) if isinstance(include, str) else tuple(include),
        (exclude,) if isinstance(exclude, str) else tuple(exclude),
    )
    named: list[tuple[str, Sequence[Record]]] = []
    for place, origin in enumerate(checkpoints):
        name = str(origin) if isinstance(origin, str | Path) else str(place)
        for step, records in _records(origin, selection.include, selection.exclude):
            kept = [record for record in records if selection.accepts(record.name)]
            named.append((name if step is None else f"{name} step {step}" if len(checkpoints) > 1 else str(step), kept))
    return series(named, kind=kind, alpha=alpha, permutations=permutations, seed=seed)


def _records(
    origin: Any, include: tuple[str, ...], exclude: tuple[str, ...]
) -> list[tuple[int | None, Sequence[Record]]]:
    """Records of one checkpoint, or of every step in a run file."""
    from netspectra.record import Record
    from netspectra.run.local import LocalRun
    from netspectra.sources import open as open_source
    from netspectra.verbs.analyze import AnalyzeOptions, analyze
    from netspectra.verbs.drift.series import FEATURES

    if not _is_run(origin):
        options = AnalyzeOptions(metrics=FEATURES, include=include, exclude=exclude)
        return [(None, list(analyze(open_source(origin), options, run=LocalRun())))]
    from netspectra.runfile import RunFile

    run = RunFile.read(origin)
    try:
        steps: dict[int | None, list[Record]] = {}
        for step, _, record in run.rows():
            if isinstance(record, Record):
                steps.setdefault(step, []).append(record)
    finally:
        run.close()
    return list(steps.items())


def _is_run(origin: Any) -> bool:
    if not isinstance(origin, str | Path) or not Path(origin).is_file():
        return False
    with Path(origin).open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE
