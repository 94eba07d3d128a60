"""Whether signals pass a network, and weights for which they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from netspectra.verbs.train.draws import Method
    from netspectra.verbs.train.findings import Trainability
    from netspectra.verbs.train.initialization import Initialization

__all__ = ["initialize_", "trainability"]


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
    mirror: bool = True,
    rescale: bool = True,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    start: str = "",
    seed: int = 0,
) -> Initialization:
    """Initialise a network in place so that signals pass it; before and after are in the result.

    Matrices become orthogonal (one a gate, head part or group), kernels of stride 1 delta-orthogonal, norms one, biases
    zero (an LSTM's forget gate one). Where an activation phi between two matrices of a plain network is not an odd
    function, units come in pairs, z and -z: the network begins with phi(z) - phi(-z), which of ReLU, GELU and SiLU is
    z, so that it is linear and keeps inputs apart at any depth. Then each block's scale is set by its own Jacobian,
    measured on the batch, until gradients keep their size through it. A residual branch is scaled at its last matrix
    (or the norm after it) to 1 / sqrt(number of branches) of its stream. Embeddings, and parameters whose use is not
    known, are left alone and listed.

    Args:
        model: any module; written to only if all goes well.
        batch: what it is called with; no labels.
        method: ``orthogonal``; ``gaussian`` (variance 1 / fan in); ``spectral`` (spectral norm sqrt(out / in), which
            fixes width but not depth, and no Jacobian); ``keep`` (only scale what is there).
        target: rms singular value of the end-to-end Jacobian, for networks without residual branches and norms.
        branch: rms singular value of a residual branch over that of its stream.
        mirror: whether orthogonal weights come in mirrored pairs where a plain network has activations like ReLU.
        rescale: whether the Jacobian may set scales after the draw.
        include: globs of names of parameters to touch; all by default.
        exclude: globs of names to leave alone: ``"head.*"``.
        start: as in `trainability`.
        seed: of the draws; the global generators are not touched.

    Returns:
        An `Initialization`: ``.before``, ``.after``, ``.changes``, ``.plot()``.

    Raises:
        InputRefused: as `trainability`.

    Reference: Xiao et al. 2018, arXiv 1806.05393 (delta-orthogonal); Balduzzi et al. 2017, arXiv 1702.08591 (mirrored
    pairs); Mishkin & Matas 2016, arXiv 1511.06422 (one scale after another from data); Zhang, Dauphin & Ma 2019, arXiv
    1901.09321 (branches); Yang, Simon & Bernstein 2023, arXiv 2310.17813 (spectral condition).

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
            mirror=mirror,
            rescale=rescale,
            include=(include,) if isinstance(include, str) else tuple(include),
            exclude=(exclude,) if isinstance(exclude, str) else tuple(exclude),
            start=start,
            seed=seed,
        ),
    )
