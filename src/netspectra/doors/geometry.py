"""What a layer does to space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netspectra.verbs.geometry import Geometry

__all__ = ["geometry"]


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
