"""What changed between checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netspectra.run import Run
    from netspectra.verbs.compare import Comparison
    from netspectra.weight import Weight

__all__ = ["compare"]


def compare(
    before: Any,
    after: Any,
    *more: Any,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    accuracy: float = 1e-6,
    run: Run | None = None,
    progress: Callable[[Weight | None], None] | None = None,
) -> Comparison:
    """Tell what changed between two checkpoints: by how much, in which directions, and what they are to one another.

    For W and W + D of every weight: ||D|| / ||W||, their cosine, the singular values of D and what of them lies above
    the rounding of how the two are stored, principal angles of the leading subspaces, new leading directions, metrics
    before and after. One verdict on all: ``identical``, ``same-up-to-precision``, ``fine-tuned``,
    ``low-rank-adapted``, ``modified`` (pruned, noised, scaled, edited), ``unrelated``, ``different-architecture``.

    Weights are matched by name, by the end of the name (``module.`` and the like), then by shape and content. One pair
    is in memory at a time. An adapter may be compared with its base or another adapter: it stays two factors.

    Args:
        before: a live module, a dict of tensors, a checkpoint's path in any format.
        after: likewise; need not be of the same format.
        more: further ones: each is compared with the first, and all are ranked by their spectra.
        include: patterns of names in ``before`` to take: globs, or ``re:`` and a regular expression.
        exclude: patterns to leave out.
        accuracy: as in `analyze`.
        run: the engine that maps over weights.
        progress: called with each weight that is done.

    Returns:
        A `Comparison`: ``.lineage``, ``.verdict``, iterate or index it for `Delta`s, ``.save("change.html")``.

    Raises:
        InputRefused: as `open`; or no weight is selected.

    Cost: the singular values of W, W + D and D, ten leading triplets of the first two.

    Reference: Shuttleworth et al. 2024, arXiv 2410.21228 (new directions: "intruder dimensions").

    >>> import torch, netspectra as ns
    >>> weight = torch.randn(32, 24, generator=torch.Generator().manual_seed(0))
    >>> found = ns.compare({"fc.weight": weight}, {"module.fc.weight": weight.bfloat16()})
    >>> found.lineage, found["fc.weight"].how
    ('same-up-to-precision', 'end of name')
    """
    from netspectra.run.local import LocalRun
    from netspectra.sources import open as open_source
    from netspectra.verbs.compare import CompareOptions
    from netspectra.verbs.compare import compare as comparing

    options = CompareOptions(
        include=(include,) if isinstance(include, str) else tuple(include),
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
        accuracy=accuracy,
    )
    return comparing(
        open_source(before),
        [open_source(one) for one in (after, *more)],
        options,
        run=run or LocalRun(workers=1),
        progress=progress or (lambda weight: None),
    )
