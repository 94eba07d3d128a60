"""What a network uses on data, and smaller networks that start from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from netspectra.verbs.distill import Distillation, Expressivity

__all__ = ["distill", "expressivity"]


def distill(
    teacher: torch.nn.Module,
    data: Iterable[Any],
    *,
    student: torch.nn.Module | None = None,
    objective: str | Callable[[Any, Any], Tensor] | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> Distillation:
    """Tell how small a student may be, and start it from its teacher instead of from noise.

    Ranks of every layer's activations with intervals (samples resampled); for every chain of neurons, channels or heads
    the fewest from which its reader's output follows linearly; how alike the layers of teacher and student are. Then
    ``.student(width=0.25, depth=3, stream=384)`` gives a shrunk copy, ``.state_dict(your_student)`` the numbers for a
    module of your own, ``.loss(...)`` principal-subspace losses, ``.train(student, steps=...)`` a small training loop.

        keep J by forward selection on y = W h;    W' = W H[:, J] H[J, J]^-1,    H = E[h h^T] about the mean

    Args:
        teacher: any module; it comes back untouched.
        data: what it is called with: batches, a DataLoader, a function that gives them. Labels of a loader are ignored.
        student: to compare with the teacher.
        objective: what of the output counts: logits, embedding, hidden, output, a function (output, batch) -> tensor;
            None: what the output suggests.
        include: patterns of module names to measure.
        exclude: patterns to leave out.
        seed: of the resampling.
        progress: called with what is done and its share, 0 ... 1.

    Raises:
        InputRefused: no data, no layers, or nothing of them selected.

    Cost: two passes over the data, an eigendecomposition of every layer's input moments, n^3 / 2 a chain of n units.

    Reference: Chen, Billings & Luo 1989, doi:10.1080/00207178908953472 (forward selection); Kornblith et al.
    2019, arXiv 1905.00414 (CKA); Ashkboos et al. 2024, arXiv 2401.15024 (rotations of the stream).

    >>> import torch, netspectra as ns
    >>> _ = torch.manual_seed(0)
    >>> teacher = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    >>> found = ns.distill(teacher, [torch.randn(256, 8) for _ in range(4)])
    >>> [(one.name, one.kind, one.width) for one in found.widths]
    [('0', 'neurons', 64)]
    >>> found.student(width=0.25)[2].in_features
    16
    """
    from netspectra.verbs.distill import DistillOptions, distill

    options = DistillOptions(
        include=(include,) if isinstance(include, str) else tuple(include),
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
        objective=objective,
        seed=seed,
    )
    return distill(teacher, data, student, options, progress=progress or (lambda what, share: None))


def expressivity(
    model: torch.nn.Module,
    data: Iterable[Any],
    *,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[str, float], None] | None = None,
) -> Expressivity:
    """Tell which directions a network uses: each layer's spectrum as it acts on data beside that of its weights alone.

        plain: singular values of W;    used: singular values of W C^(1/2), C the covariance of the layer's inputs

    A matrix may have full rank and yet act through a few directions, because its inputs have few. ``k90`` directions
    hold 90 % of the energy; intervals (95 %) come from resampling samples.

    Args:
        model: any module; it comes back untouched.
        data: what it is called with: batches, a DataLoader, a function that gives them.
        include: patterns of module names to measure.
        exclude: patterns to leave out.
        seed: of the resampling.
        progress: called with what is done and its share, 0 ... 1.

    Returns:
        An `Expressivity`: iterate it, index by layer, ``print``, ``save("use.html")``.

    Raises:
        InputRefused: no data, no layers, or nothing of them selected.

    >>> import torch, netspectra as ns
    >>> _ = torch.manual_seed(0)
    >>> inputs = torch.randn(512, 2) @ torch.randn(2, 16)
    >>> found = ns.expressivity(torch.nn.Sequential(torch.nn.Linear(16, 16)), [inputs])
    >>> layer = found["0"]
    >>> float(layer.used.k99), float(layer.plain.k99) > 10
    (2.0, True)
    """
    from netspectra.verbs.distill import DistillOptions, expressivity

    options = DistillOptions(
        include=(include,) if isinstance(include, str) else tuple(include),
        exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
        seed=seed,
    )
    return expressivity(model, data, options, progress=progress or (lambda what, share: None))
