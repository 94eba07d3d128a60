"""What changed between checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netspectra.run import Run
    from netspectra.verbs.compare import Comparison
    from netspectra.verbs.lora import Extraction
    from netspectra.weight import Weight

__all__ = ["compare", "pissa"]


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


def pissa(
    model: Any,
    to: str | Path,
    rank: int | None = None,
    *,
    energy: float | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    progress: Callable[[Weight | None], None] | None = None,
) -> Extraction:
    """Split every linear weight W = U S V^T into a PEFT adapter of its top directions and a base of the rest.

    ``to/base`` holds the checkpoint with W - B A, ``to/adapter`` the factors B = U_r sqrt(S_r), A = sqrt(S_r) V_r^T;
    together they are the model, to rounding, and training the adapter begins where the weights act most.

    Args:
        model: a checkpoint's path in a floating dtype, a live module, a dict of tensors.
        to: a new folder.
        rank: of every weight's factors; or
        energy: the share of each weight's squared singular values that they take, in (0, 1].
        include: patterns of names to take: globs, or ``re:`` and a regular expression.
        exclude: patterns to leave out.
        progress: called with each weight that is done.

    Raises:
        InputRefused: neither or both of rank and energy, no linear weight, packed weights, a folder of other things.

    Cost: the singular values and leading triplets of each weight; one in memory at a time.

    Reference: Meng, Wang & Zhang 2024, arXiv 2404.02948.

    >>> import tempfile, torch, netspectra as ns
    >>> with tempfile.TemporaryDirectory() as home:
    ...     found = ns.pissa({"fc.weight": torch.diag(torch.tensor([3.0, 2.0, 1.0]))}, f"{home}/start", rank=1)
    >>> [(w.name, w.rank, round(w.spectral, 6)) for w in found.weights]
    [('fc.weight', 1, 2.0)]
    """
    from netspectra.sources import open as open_source
    from netspectra.verbs.lora import LoraOptions
    from netspectra.verbs.lora import pissa as splitting
    from netspectra.weight import Selection

    selection = Selection(
        (include,) if isinstance(include, str) else tuple(include),
        (exclude,) if isinstance(exclude, str) else tuple(exclude),
    )
    options = LoraOptions(rank, energy)
    return splitting(open_source(model), to, options, selection, progress=progress or (lambda weight: None))
