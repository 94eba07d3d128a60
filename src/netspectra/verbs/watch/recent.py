"""What the last looks found, for all weights side by side: what the alarms see."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["SPAN", "NormState", "Recent", "pairs"]

SPAN = 100  # steps that are remembered
FEWEST, MOST = 4, 64  # looks that are remembered


QUERY = re.compile(r"(?<![a-z])(q|query|q_proj|to_q|wq|q_lin|q\])(?![a-z_])")
KEYS = {"q": "k", "query": "key", "q_proj": "k_proj", "to_q": "to_k", "wq": "wk", "q_lin": "k_lin", "q]": "k]"}


def pairs(names: Iterable[str]) -> list[tuple[int, int]]:
    """Positions of the query and the key matrix of each attention, as their names tell.

    >>> pairs(["h.0.q_proj.weight", "h.0.k_proj.weight", "h.0.up.weight", "h.1.qkv[q]", "h.1.qkv[k]"])
    [(0, 1), (3, 4)]
    """
    places = {name: place for place, name in enumerate(names)}
    found = []
    for name, place in places.items():
        for match in QUERY.finditer(name):
            other = f"{name[: match.start()]}{KEYS[match[0]]}{name[match.end() :]}"
            if other in places:
                found.append((place, places[other]))
                break
    return found


@dataclass(frozen=True)
class NormState:
    """A normalization layer's buffers at a look.

    Attributes:
        training: whether it is in training mode.
        count: how many batches it has seen, by its own counter.
        finite: whether its statistics are.
        trains: whether its gain takes part in the training.
    """

    training: bool
    count: int
    finite: bool
    trains: bool


@dataclass(eq=False)
class Recent:
    """The last looks at W weights, newest last, and what has been seen since the watch began.

    Attributes:
        names: of the weights.
        kinds: of the weights.
        sizes: min(m, n) of each.
        steps: of the looks.
        frobenius: a row a look, a column a weight.
        sigma: sigma_1, carried on where a look did not find it anew.
        gradient: norm of the gradient; NaN where there is none.
        tail: (W,) share of the energy beyond the leading values, at the last look at them; NaN where unknown.
        tail_first: the first of them.
        tail_step: step of that last look.
        rank: (W,) stable rank at the last look that found sigma_1; NaN where unknown.
        rank_before: (W,) the one found at the look before.
        rank_most: (W,) the largest so far.
        norms: by the name of a normalization layer, its buffers at the last looks, as (step, state).
        began: the step of the first look.
        zero: (W,) which weights were zero, or next to it, at the first look.
        pairs: positions of the query and the key matrix of each attention.
    """

    names: Sequence[str]
    kinds: Sequence[str]
    sizes: np.ndarray
    steps: deque[int] = field(default_factory=deque)
    frobenius: deque[np.ndarray] = field(default_factory=deque)
    sigma: deque[np.ndarray] = field(default_factory=deque)
    gradient: deque[np.ndarray] = field(default_factory=deque)
    norms: dict[str, deque[tuple[int, NormState]]] = field(default_factory=dict)
    began: int | None = None

    def __post_init__(self) -> None:
        """Nothing is known yet."""
        self.tail, self.tail_first = (np.full(len(self.names), np.nan) for _ in range(2))
        self.tail_step = np.full(len(self.names), -1)
        self.pairs = pairs(self.names)
        self.zero = np.zeros(len(self.names), dtype=bool)
        self.rank = np.full(len(self.names), np.nan)
        self.rank_before = self.rank
        self.rank_most = np.zeros(len(self.names))

    def add(self, step: int, frobenius: np.ndarray, sigma: np.ndarray, gradient: np.ndarray) -> None:
        """A cheap look; NaN where a number was not looked for."""
        self._rank(frobenius, sigma)
        if self.sigma:
            sigma = np.where(np.isnan(sigma), self.sigma[-1], sigma)
        if self.began is None:
            self.began = step
            self.zero = frobenius < 1e-3 * float(np.fmax.reduce(frobenius))
        for held, new in ((self.steps, step), (self.frobenius, frobenius), (self.sigma, sigma)):
            held.append(new)  # type: ignore[arg-type]
        self.gradient.append(gradient)
        while len(self.steps) > FEWEST and (self.steps[0] < step - SPAN or len(self.steps) > MOST):
            for held in (self.steps, self.frobenius, self.sigma, self.gradient):
                held.popleft()

    def fill(self, step: int, sigma: np.ndarray) -> None:
        """Values of sigma_1 that another process found at a step; they count from there on."""
        for place, (at, row) in enumerate(zip(self.steps, self.sigma, strict=True)):
            if at >= step:
                self.sigma[place] = np.where(np.isnan(sigma), row, sigma)
                if at == step:
                    self._rank(self.frobenius[place], sigma)

    def _rank(self, frobenius: np.ndarray, sigma: np.ndarray) -> None:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = (frobenius / sigma) ** 2
        self.rank_before = self.rank
        self.rank = np.where(np.isfinite(found), found, np.where(np.isnan(sigma), self.rank, np.nan))
        self.rank_most = np.fmax(self.rank_most, self.rank)

    def add_leading(self, step: int, values: Mapping[int, np.ndarray]) -> None:
        """The leading singular values of some weights, by position."""
        for place, found in values.items():
            energy = float(self.frobenius[-1][place]) ** 2
            if energy > 0 and np.isfinite(energy):
                self.tail[place] = max(0.0, 1 - float(np.sum(found.astype(float) ** 2)) / energy)
                self.tail_step[place] = step
                if np.isnan(self.tail_first[place]):
                    self.tail_first[place] = self.tail[place]

    def add_norms(self, step: int, states: Mapping[str, NormState]) -> None:
        """The buffers of the normalization layers."""
        for name, state in states.items():
            held = self.norms.setdefault(name, deque(maxlen=MOST))
            if held and (held[-1][1].training, held[-1][1].finite) != (state.training, state.finite):
                held.clear()
            held.append((step, state))

    @property
    def now(self) -> int:
        """Step of the last look."""
        return self.steps[-1]

    def within(self, steps: int, fewest: int = 2) -> int:
        """How many of the last looks lie within so many steps, at least ``fewest`` where there are as many."""
        inside = sum(step >= self.now - steps for step in self.steps)
        return min(len(self.steps), max(inside, fewest))
