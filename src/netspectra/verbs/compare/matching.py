"""Which weight of one source is which of another: by name, by the end of the name, by shape and content."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from netspectra.errors import InputRefused
from netspectra.weight import Part, TensorRef, Weight

__all__ = ["How", "Matching", "Pair", "match", "match_names"]

How = Literal["name", "end of name", "content", "shape"]
SAMPLE = 1024  # entries of a weight by which it is recognised; unrelated ones have a cosine of about 1 / 32
ALIKE = 0.5  # cosine of the samples from which two weights are the same one under another name
PARTS = (2, 3)  # a fused weight may be so many equal ones


@dataclass(frozen=True, eq=False)
class Pair:
    """One weight in both sources.

    Attributes:
        before: in the first.
        after: in the second.
        how: what told that they belong together.
        transposed: ``after`` is stored the other way round.
        added: one of the two is an adapter of the other: ``"after"`` or ``"before"`` is base plus adapter.
    """

    before: Weight
    after: Weight
    how: How
    transposed: bool = False
    added: Literal["", "before", "after"] = ""


@dataclass(frozen=True, eq=False)
class Matching:
    """All pairs, and what has no partner."""

    pairs: tuple[Pair, ...]
    only_before: tuple[Weight, ...]
    only_after: tuple[Weight, ...]


def match(before: Sequence[Weight], after: Sequence[Weight]) -> Matching:
    """Match the weights of two sources.

    First by name and shape; then where one name is the end of the other (``module.``, ``model.`` and the like in
    front) and no second could be meant; then what is left by content: 1024 entries at places given by the shape alone,
    compared by their cosine, for both orientations, and for two or three equal parts of a fused weight; what is still
    left, in order, where both sources have the same number of weights of one shape. An adapter belongs to the weight
    it is added to.

    Cost: weights that names do not match are read once, one at a time.
    """
    left, right = list(before), list(after)
    pairs = _adapters(left, right)
    for i, j, how in match_names([(w.name, _form(w)) for w in left], [(w.name, _form(w)) for w in right]):
        pairs.append(Pair(left[i], right[j], how))
    left, right = _rest(left, right, pairs)
    if left and right:
        left, right = _cut(left, right), _cut(right, left)
        pairs += _by_content(left, right)
        left, right = _rest(left, right, pairs)
        pairs += _by_order(left, right)
        left, right = _rest(left, right, pairs)
    places = {id(weight): place for place, weight in enumerate(before)}
    whole = {weight.name: place for place, weight in enumerate(before)}
    pairs.sort(key=lambda pair: places.get(id(pair.before), whole.get(pair.before.part.ref.name, len(places))))
    return Matching(tuple(pairs), tuple(left), tuple(right))


def match_names(
    before: Sequence[tuple[str, tuple[int, ...]]], after: Sequence[tuple[str, tuple[int, ...]]]
) -> list[tuple[int, int, How]]:
    """Pairs of equal names and shapes, then of names one of which ends the other, if only one could be meant.

    >>> match_names([("a.weight", (2, 2)), ("b.weight", (2, 2))], [("module.b.weight", (2, 2)), ("a.weight", (2, 2))])
    [(0, 1, 'name'), (1, 0, 'end of name')]
    """
    same = {key: j for j, key in enumerate(after)}
    found: list[tuple[int, int, How]] = []
    found.extend((i, same[key], "name") for i, key in enumerate(before) if key in same)
    taken_i, taken_j = {i for i, _, _ in found}, {j for _, j, _ in found}
    left = [(i, *key) for i, key in enumerate(before) if i not in taken_i]
    right = [(j, *key) for j, key in enumerate(after) if j not in taken_j]
    candidates: set[tuple[int, int]] = set()
    for one, other, turned in ((left, right, False), (right, left, True)):
        names = defaultdict(list)
        for j, name, shape in other:
            names[name, shape].append(j)
        for i, name, shape in one:
            for end in _ends(name):
                candidates |= {(j, i) if turned else (i, j) for j in names.get((end, shape), ())}
    count_i, count_j = defaultdict(int), defaultdict(int)
    for i, j in candidates:
        count_i[i] += 1
        count_j[j] += 1
    found.extend((i, j, "end of name") for i, j in sorted(candidates) if count_i[i] == count_j[j] == 1)
    return found


def _form(weight: Weight) -> tuple[int, ...]:
    """What must agree: of kernels the tensor's shape, since a file does not tell groups and a live module does."""
    return weight.part.shape if len(weight.part.shape) > 2 else weight.shape


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(1, len(parts))]


def _adapters(left: list[Weight], right: list[Weight]) -> list[Pair]:
    """Pairs of a weight and its adapter, where one source holds weights and the other adapters alone."""
    one, other = all(w.factors for w in left), all(w.factors for w in right)
    if one == other or not left or not right:
        return []
    bases, adapters = (right, left) if one else (left, right)
    names = [(_adapted(w), w.shape) for w in adapters]
    found = match_names([(w.name, w.shape) for w in bases], names)
    if one:
        return [Pair(adapters[j], bases[i], how, added="before") for i, j, how in found]
    return [Pair(bases[i], adapters[j], how, added="after") for i, j, how in found]


def _adapted(weight: Weight) -> str:
    return weight.part.ref.name.partition("[lora")[0].removeprefix("base_model.model.")


def _rest(left: list[Weight], right: list[Weight], pairs: Iterable[Pair]) -> tuple[list[Weight], list[Weight]]:
    used = {id(weight) for pair in pairs for weight in (pair.before, pair.after)}
    return [w for w in left if id(w) not in used], [w for w in right if id(w) not in used]


def _cut(weights: list[Weight], others: list[Weight]) -> list[Weight]:
    """Fused weights as their equal parts, where the other source has weights of the parts' shape and not of theirs."""
    shapes = {w.shape for w in others}
    found: list[Weight] = []
    for weight in weights:
        m, n = weight.shape
        cuts = [c for c in PARTS if m % c == 0 and (m // c, n) in shapes]
        if weight.shape in shapes or not cuts or not _cuttable(weight):
            found.append(weight)
            continue
        size, axis = m // cuts[-1], weight.layout.rows[0]
        for start in range(0, m, size):
            index = (*[slice(None)] * axis, slice(start, start + size))
            name = f"{weight.name}[rows {start}:{start + size}]"
            found.append(replace(weight, name=name, part=Part(weight.part.ref, index), aliases=()))
    return found


def _cuttable(weight: Weight) -> bool:
    plain = not weight.part.index and weight.part.reshape is None and not weight.factors
    return plain and len(weight.layout.rows) == 1 and weight.layout.groups == 1 and len(weight.part.shape) == 2


def _by_content(left: list[Weight], right: list[Weight]) -> list[Pair]:
    groups = defaultdict(lambda: ([], []))
    for side, weights in enumerate((left, right)):
        for weight in weights:
            if weight.layout.groups == 1 and not weight.factors:
                groups[tuple(sorted(weight.shape))][side].append(weight)
    pairs = []
    for ours, theirs in groups.values():
        if not ours or not theirs:
            continue
        a = np.stack([_sample(w, w.shape[0] > w.shape[1]) for w in ours])
        plain = a @ np.stack([_sample(w, w.shape[0] > w.shape[1]) for w in theirs]).T
        fits = np.array([[w.shape == v.shape for v in theirs] for w in ours])
        turns = np.array([[w.shape == v.shape[::-1] for v in theirs] for w in ours])
        square = ours[0].shape[0] == ours[0].shape[1]
        turned = a @ np.stack([_sample(w, square) for w in theirs]).T if square else plain
        score = np.maximum(np.where(fits, plain, -2.0), np.where(turns, turned, -2.0))
        for i, j in zip(*linear_sum_assignment(-score), strict=True):
            if score[i, j] >= ALIKE:
                way = bool(turns[i, j] and (not fits[i, j] or turned[i, j] > plain[i, j]))
                pairs.append(Pair(ours[i], theirs[j], "content", way))
    return pairs


def _sample(weight: Weight, turn: bool) -> np.ndarray:
    """Entries at places that depend on the shape alone, as a unit vector; of the transpose with ``turn``."""
    try:
        X = weight.layout.blocks(weight.part.load())[0]
    except InputRefused:
        return np.zeros(SAMPLE)
    X = X.mT if turn else X
    m, n = X.shape
    rng = np.random.default_rng([m, n])
    places = rng.integers(m, size=SAMPLE), rng.integers(n, size=SAMPLE)
    taken = X[torch.from_numpy(places[0]), torch.from_numpy(places[1])].double().numpy()
    length = float(np.linalg.norm(taken))
    return taken / length if length > 0 and math.isfinite(length) else np.zeros(SAMPLE)


def _by_order(left: list[Weight], right: list[Weight]) -> list[Pair]:
    groups = defaultdict(lambda: ([], []))
    for side, weights in enumerate((left, right)):
        for weight in weights:
            groups[weight.shape, bool(weight.factors)][side].append(weight)
    pairs = []
    for ours, theirs in groups.values():
        if len(ours) == len(theirs):
            ordered = (sorted(side, key=_natural) for side in (ours, theirs))
            pairs += [Pair(a, b, "shape") for a, b in zip(*ordered, strict=True)]
    return pairs


def _natural(weight: Weight) -> list[tuple[bool, int, str]]:
    """Layer 2 before layer 10: files may have them in the order of letters."""
    parts = re.split(r"(\d{1,9})", weight.name)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def others(tensors: Iterable[TensorRef], weights: Iterable[Weight]) -> list[TensorRef]:
    """The tensors that are no weight matrix: vectors, buffers, indices."""
    used = {weight.part.ref.name for weight in weights} | {alias for w in weights for alias in w.aliases}
    return [ref for ref in tensors if ref.name not in used and not ref.problem]


def as_float(tensor: Tensor) -> Tensor:
    """In float64; whole numbers and truth values too."""
    return tensor.detach().cpu().to(torch.float64)
