"""From a weight and inputs to its geometry: the leading triplets, where the inputs lie in them, and the frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import InputRefused, NotDecomposable
from netspectra.linalg.product import Factored, product_svd
from netspectra.linalg.svd import svd
from netspectra.record import Record
from netspectra.verbs.geometry.frames import axes_frame, facing, path, principal_frame
from netspectra.verbs.geometry.inputs import Inputs, as_inputs
from netspectra.verbs.geometry.result import Direction, Geometry
from netspectra.weight import Source, Weight

if TYPE_CHECKING:
    from netspectra.linalg.operator import LowRank

__all__ = ["geometry", "one_of"]

DIRECTIONS = 8
SHOWN = 3
POINTS = 400
NAMED = 3  # coordinates named for each direction


def geometry(
    weight: Any, inputs: Any = None, *, labels: Sequence[Any] | None = None, name: str = "", points: int = POINTS
) -> Geometry:
    """See what a layer does to space; `netspectra.geometry` is the door and describes it.

    Args:
        weight: a matrix or kernel (tensor or array, outputs first), a `Record` or a `Weight`. Kernels are unfolded to
            (out, in * kernel). A matrix of kind ``embedding`` that looks tokens up maps one-hot tokens to its rows.
        inputs: as `as_inputs` takes them.
        labels: of the inputs, for their colour; one each.
        name: what to call it.
        points: how many inputs the picture shows, evenly chosen.
    """
    layer = _layer(weight, name)
    given = as_inputs(inputs, labels, layer.kind, layer.operator.shape, layer.kernel)
    if given is not None and given.tokens:
        layer = layer.transposed()
    m, n = layer.operator.shape
    if min(m, n) == 0:
        raise NotDecomposable("the matrix is empty")
    factors = layer.factors(min(DIRECTIONS, m, n))
    V, U = _signed(factors)
    sigma = factors.S.double().cpu().numpy()
    d = min(SHOWN, len(sigma))  # an adapter has no more directions than its rank
    shown = {"the weight": _share(float((sigma[:d] ** 2).sum()), factors.frobenius2)}
    scene: dict[str, Any] = {"sigma": _short(sigma[:d]), "sphere": _sphere(V[:, :d], U[:, :d])}
    seen = None
    if given is not None:
        seen = _Seen.of(given, layer.operator, V, U)
        scene["inputs"], shares = seen.scene(sigma, V, U, d, points)
        shown |= shares
    typical = math.sqrt(factors.frobenius2 / n)
    scene["typical"] = _short(np.array(typical))
    return Geometry(
        name=layer.name,
        kind=layer.kind,
        shape=(m, n),
        tokens=given is not None and given.tokens,
        directions=_directions(factors, V, U, seen),
        typical=typical,
        inputs_stretch=None if seen is None else seen.stretch,
        inputs_are="" if given is None else given.described,
        shown=shown,
        notes=(*layer.notes, *(given.notes if given else ())),
        scene=scene,
    )


def one_of(source: Source, name: str = "") -> Weight:
    """The weight of that name or alias, or the only one there is."""
    if not name:
        if len(source.weights) == 1:
            return source.weights[0]
        raise InputRefused(
            f"{source.path} has {len(source.weights)} weights: name one; 'netspectra inspect' lists them"
        )
    for weight in source.weights:
        if name in (weight.name, *weight.aliases):
            return weight
    near = get_close_matches(name, [weight.name for weight in source.weights], n=3, cutoff=0.3)
    raise InputRefused(f"{source.path}: no weight {name!r}" + (f"; near are {', '.join(near)}" if near else ""))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A weight as the linear map that is looked at."""

    name: str
    kind: str
    operator: Any
    kernel: tuple[int, ...] = ()  # spatial size, where known
    notes: tuple[str, ...] = ()

    def transposed(self) -> _Layer:
        """The look-up of an embedding: one-hot tokens to vectors."""
        from netspectra.linalg.operator import Dense

        return _Layer(self.name, self.kind, Dense(self.operator.dense().mT), notes=self.notes)

    def factors(self, k: int) -> LowRank:
        if isinstance(self.operator, Factored):
            return product_svd(self.operator.B, self.operator.A, self.operator.scale, k=k)
        return svd(self.operator.dense(), k=k)


def _layer(weight: Any, name: str) -> _Layer:
    from netspectra.linalg.operator import Dense

    if isinstance(weight, Weight):
        found = _Layer(name or weight.name, weight.kind, weight.operator(), _kernel(weight), weight.notes)
    elif isinstance(weight, Record):
        if weight.load is None:
            raise InputRefused(f"{weight.name}: only its spectrum was kept; analyze the model or checkpoint for it")
        found = _Layer(name or weight.name, weight.kind, weight.load(), notes=weight.notes)
    elif isinstance(weight, Tensor | np.ndarray):
        tensor = torch.as_tensor(weight).detach()
        if tensor.dim() < 2:
            raise InputRefused(f"a weight has at least two dimensions, this has shape {tuple(tensor.shape)}")
        kind = f"conv{tensor.dim() - 2}d" if tensor.dim() > 2 else "linear"
        found = _Layer(name or "weight", kind, Dense(tensor.reshape(len(tensor), -1)), tuple(tensor.shape[2:]))
    else:
        raise InputRefused(f"{type(weight).__name__} is no weight: give a matrix, a layer, a record or a Weight")
    if found.operator.dtype.is_complex:
        raise InputRefused(f"{found.name}: complex weights have no picture in real space")
    return found


def _kernel(weight: Weight) -> tuple[int, ...]:
    """Spatial size of a convolution's kernel that unfolds as outputs by inputs; empty for anything else."""
    plain = weight.kind.startswith("conv") and "transpose" not in weight.kind and weight.layout.rows == (0,)
    return tuple(weight.part.shape[2:]) if plain else ()


def _signed(factors: LowRank) -> tuple[np.ndarray, np.ndarray]:
    """V and U as float64 columns; the largest entry of each v is positive."""
    V, U = factors.Vh.double().cpu().numpy().T, factors.U.double().cpu().numpy()
    signs = np.sign(V[np.abs(V).argmax(axis=0), np.arange(V.shape[1])])
    return V * signs, U * signs


def _sphere(V: np.ndarray, U: np.ndarray) -> dict[str, Any]:
    """Frames of the two turns in span(v) and span(u): from the coordinate axes nearest, and to them."""
    unit = np.eye(V.shape[1])
    return {"into": _short(path(axes_frame(V), unit)), "out": _short(path(unit, axes_frame(U)))}


@dataclass(frozen=True, eq=False)
class _Seen:
    """Inputs and outputs, with their coordinates along the singular directions."""

    given: Inputs
    inputs: np.ndarray  # (count, n); of tokens, which are axes of their own, the coordinates along v
    outputs: np.ndarray  # (count, m)
    along_v: np.ndarray
    along_u: np.ndarray
    energy: float  # of all inputs

    @classmethod
    def of(cls, given: Inputs, operator: Any, V: np.ndarray, U: np.ndarray) -> _Seen:
        if given.tokens:
            outputs = operator.dense()[:, torch.from_numpy(given.numbers)].double().cpu().numpy().T
            along_v = V[given.numbers]
            return cls(given, along_v, outputs, along_v, outputs @ U, float(len(given.numbers)))
        X = torch.from_numpy(given.numbers)
        wide = operator.dtype if operator.dtype == torch.float64 else torch.float32
        matrix = operator.dense().to(wide)
        outputs = (matrix @ X.to(wide).to(matrix.device).mT).mT.double().cpu().numpy()
        energy = float(np.sum(given.numbers**2))
        return cls(given, given.numbers, outputs, given.numbers @ V, outputs @ U, energy)

    @property
    def stretch(self) -> float:
        """Root mean square stretch."""
        return math.sqrt(float(np.sum(self.outputs**2)) / self.energy) if self.energy else 0.0

    def scene(
        self, sigma: np.ndarray, V: np.ndarray, U: np.ndarray, d: int, points: int
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Coordinates of the points that are drawn, frames of both turns, and the shares of the energy seen."""
        count = len(self.outputs)
        drawn = np.unique(np.linspace(0, count - 1, min(points, count)).round().astype(int))
        if self.given.tokens:
            into, before, as_is = path(axes_frame(V[:, :d]), np.eye(d)), self.along_v[drawn, :d], None
        else:
            frame, as_is = principal_frame(self.inputs, d)
            into, before = _between(facing(frame, V[:, :d]), V[:, :d], self.inputs[drawn])
        frame, outputs_as_is = principal_frame(self.outputs, d)
        out, after = _between(U[:, :d], facing(frame, U[:, :d]), self.outputs[drawn])
        shares = {} if as_is is None else {"the inputs as they are": as_is}
        shares["the inputs along v"] = _share(float(np.sum(self.along_v[:, :d] ** 2)), self.energy)
        total = float(np.sum(self.outputs**2))
        shares["the outputs along u"] = _share(float(np.sum(self.along_u[:, :d] ** 2)), total)
        shares["the outputs as they are"] = outputs_as_is
        scene = {
            "before": _short(before),
            "into": _short(into),
            "after": _short(after),
            "out": _short(out),
            "labels": [self.given.labels[i] for i in drawn] if self.given.labels else None,
        }
        return scene, shares


def _between(start: np.ndarray, end: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames from start to end within the space that both span, and the points' coordinates in it."""
    both = np.concatenate([start, end], axis=1)
    u, s, _ = np.linalg.svd(both, full_matrices=False)
    basis = u[:, s > 1e-6 * s[0]]
    return path(basis.T @ start, basis.T @ end), points @ basis


def _directions(factors: LowRank, V: np.ndarray, U: np.ndarray, seen: _Seen | None) -> tuple[Direction, ...]:
    sigma = factors.S.double().cpu().numpy()
    mean = None
    if seen is not None and not seen.given.tokens:
        mean = seen.inputs.mean(axis=0)
        length = float(np.linalg.norm(mean))
        mean = mean / length if length > 1e-9 * math.sqrt(seen.energy / len(seen.inputs)) else None
    total = float(np.sum(seen.outputs**2)) if seen is not None else 0.0
    tokens = seen is not None and seen.given.tokens
    return tuple(
        Direction(
            sigma=float(sigma[i]),
            weight_energy=_share(float(sigma[i] ** 2), factors.frobenius2),
            input_energy=None if seen is None else _share(float(np.sum(seen.along_v[:, i] ** 2)), seen.energy),
            output_energy=None if seen is None else _share(float(np.sum(seen.along_u[:, i] ** 2)), total),
            turn=_angle(float(V[:, i] @ U[:, i])) if len(V) == len(U) and not tokens else None,
            mean_angle=None if mean is None else _angle(float(mean @ V[:, i])),
            inputs=_strongest(V[:, i]),
            outputs=_strongest(U[:, i]),
        )
        for i in range(len(sigma))
    )


def _strongest(direction: np.ndarray) -> tuple[tuple[int, float], ...]:
    most = np.argsort(-np.abs(direction), kind="stable")[:NAMED]
    return tuple((int(i), float(f"{direction[i]:.4g}")) for i in most)


def _angle(cosine: float) -> float:
    return math.degrees(math.acos(min(1.0, abs(cosine))))


def _share(part: float, whole: float) -> float:
    return min(part / whole, 1.0) if whole > 0 else 0.0


def _short(numbers: np.ndarray) -> Any:
    """Nested lists of four significant digits: what a picture needs."""
    flat = [float(f"{x:.4g}") for x in np.asarray(numbers, dtype=float).ravel()]
    return np.array(flat).reshape(np.shape(numbers)).tolist()
