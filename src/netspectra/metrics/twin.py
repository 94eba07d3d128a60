"""The randomised twin: what of a spectrum is the arrangement of the entries, and what their sizes alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.svd import svdvals
from netspectra.metrics import chosen, evaluate, metric
from netspectra.record import Value

if TYPE_CHECKING:
    from torch import Tensor


@metric(
    "Distance from the randomised twin",
    formula="sup |F_W(σ) − F_twin(σ)|, the twin holding the same entries in random places",
    range="0 ... 1",
    reference="Martin & Mahoney 2021, JMLR 22, arXiv 1810.01075, section 2",
    degree=0,
    needs="matrix",
    thorough=True,
)
def twin_distance(s: Spectrum, matrix: Tensor, rng: np.random.Generator) -> Value:
    """How far the spectrum is from that of the same entries shuffled: 0 when their arrangement says nothing.

    The Kolmogorov-Smirnov distance between the two distributions of sigma (of the distributions, not of values paired
    by rank). The detail holds every other metric of the twin: a spike of the twin comes from single large entries, and
    is what Martin calls a correlation trap. The twin depends on the entries and the seed only, not on their order.

    Cost: a sort, a shuffle and one more spectrum; a copy of the matrix.

    >>> import torch
    >>> one = torch.ones(30, 40)
    >>> twin_distance(svdvals(one), one, np.random.default_rng(0)) < 0.1  # equal entries
    True
    """
    if not s.complete:
        return Value.unknown(f"needs every singular value, the spectrum is {s.how}")
    twin = replace(svdvals(shuffled(matrix, rng)), dtype=s.dtype)
    known = [np.where(of.values > of.floor + of.error, of.values, 0.0) for of in (s, twin)]  # the rest is rounding
    both = np.concatenate(known)
    ours, theirs = (np.searchsorted(values[::-1], both, side="right") / len(values) for values in known)
    others = [entry for entry in chosen() if entry.needs != "matrix"]
    found = evaluate(others, twin)
    detail = {name: float(value) if value.known else None for name, value in found.items()}
    return Value(float(np.abs(ours - theirs).max()), detail=detail)


def shuffled(matrix: Tensor, rng: np.random.Generator) -> Tensor:
    """A tall matrix of the same entries in random places; the same for any order they came in.

    Entries are sorted as bits and shuffled by ``rng``: no other generator is touched.
    """
    import torch

    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    long, short = max(matrix.shape), min(matrix.shape)
    flat = matrix.detach().cpu().resolve_conj().reshape(-1)
    if flat.dtype.itemsize in bits:
        numbers = flat.view(bits[flat.dtype.itemsize]).numpy().copy()
    else:
        numbers = flat.numpy().copy()
    numbers.sort()
    rng.shuffle(numbers)
    back = torch.from_numpy(numbers)
    return (back.view(flat.dtype) if back.dtype != flat.dtype else back).reshape(long, short).to(matrix.device)
