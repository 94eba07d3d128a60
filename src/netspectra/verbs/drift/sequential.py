"""Windows one after another, watched for as long as wished, with an error that holds at any time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from netspectra.errors import InputRefused
from netspectra.record import Verdict
from netspectra.verbs.drift.basis import Basis, Coordinates
from netspectra.verbs.drift.betting import BETS, BINS, Bettors, Ranks, binned

if TYPE_CHECKING:
    from netspectra.verbs.drift.reference import Reference

__all__ = ["Evidence", "Sequential"]

FOLLOWED = 8  # directions of a layer that are followed one by one
BLOCK = 64  # rows ranked at a time


@dataclass(frozen=True)
class Evidence:
    """What all windows so far say.

    Attributes:
        p: anytime-valid: it ever falls to a or below with a chance of at most a, while nothing drifts.
        alpha: level of the alarm.
        window: how many windows there were.
        rows: of them all.
        since: the window with which the strongest evidence began to grow; 0 where there is none.
        layer: where the strongest evidence is.
        score: what moved there: ``direction 3``, ``residual``, ``energy`` or ``length``.
        log_e: logarithm of the strongest score's capital now.
        alarmed: the window of the first alarm; 0 before.
    """

    p: float
    alpha: float
    window: int
    rows: int
    since: int
    layer: str
    score: str
    log_e: float
    alarmed: int

    @property
    def alarm(self) -> bool:
        """Whether the stream has drifted, by any window so far."""
        return self.p <= self.alpha

    @property
    def verdict(self) -> Verdict:
        """The finding as a sentence."""
        told = f"{self.window} windows, {self.rows} rows, anytime-valid p = {self.p:.3g}"
        if not self.alarm:
            return Verdict("no-drift", "ok", f"no drift so far: {told}", {"p": self.p})
        evidence = {"p": self.p, "layer": self.layer, "score": self.score, "since": self.since}
        message = f"the stream has drifted, since about window {self.since}, in {self.layer!r} ({self.score}): {told}"
        return Verdict("drift", "error", message, evidence)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        return asdict(self) | {"alarm": self.alarm, "verdict": asdict(self.verdict)}

    def __str__(self) -> str:
        """Say it."""
        return f"{self.verdict.rule}: {self.verdict.message}"


class Sequential:
    """Tests windows as they come; the chance that it ever alarms while nothing drifts is at most alpha.

    Every row is scored: along the leading directions of each layer, by its energy in all of them, outside them and by
    its length. Each score has a rank among all rows so far, the reference's held-out ones first, and a bettor who
    gambles that ranks are not uniform. Under exchangeability nobody can expect to win; capital beyond
    (number of scores) / alpha is an alarm (Ville's inequality, and a union over the scores). Small drifts add up over
    windows; what a single window shows at once, `Reference.test` sees sooner.

    Reference: Vovk, Nouretdinov & Gammerman 2003 (testing exchangeability on-line); Vovk et al. 2021, arXiv 2102.10439.

    Cost: a few microseconds a score and row; memory 16 kB a score, for any number of rows.

    >>> rng = np.random.default_rng(0)
    >>> from netspectra.verbs.drift.options import DriftOptions
    >>> from netspectra.verbs.drift.reference import fitted
    >>> stream = fitted(rng.standard_normal((600, 4)), DriftOptions()).sequential()
    >>> quiet = [stream.test(rng.standard_normal((20, 4))).alarm for _ in range(20)]
    >>> loud = [stream.test(rng.standard_normal((20, 4)) + 1).alarm for _ in range(10)]
    >>> any(quiet), loud[-1]
    (False, True)
    """

    def __init__(self, reference: Reference, *, alpha: float = 0.05, seed: int = 0) -> None:
        """Begin with the reference's held-out rows."""
        if not 0 < alpha < 1:
            raise InputRefused("alpha lies between 0 and 1")
        self.reference, self.alpha, self.seed = reference, alpha, seed
        self.names: list[tuple[str, str]] = []
        columns = []
        for layer, kept in reference.layers.items():
            named, scores = _scores(kept.basis, kept.rows)
            self.names += [(layer, name) for name in named]
            columns.append(scores)
        start = np.concatenate(columns, axis=1)
        order = np.random.default_rng([seed, 0]).permutation(len(start))
        self._ranks = Ranks(binned(start)[order], np.random.default_rng([seed, 1]))
        self._bettors = Bettors(len(self.names))
        self._lowest, self._since = np.zeros(len(self.names)), np.ones(len(self.names), int)
        self.windows = self.rows = self.alarmed = 0

    def test(self, window: Any) -> Evidence:
        """Take the next window, as `Reference.test` takes it; one row is enough, and all rows are used."""
        self.windows += 1
        notes: list[str] = []
        for chunk in self.reference.chunks(window, notes):
            parts = [
                _scores(kept.basis, kept.basis.coordinates(chunk[layer]))[1]
                for layer, kept in self.reference.layers.items()
            ]
            bins = binned(np.concatenate(parts, axis=1))
            for first in range(0, len(bins), BLOCK):
                block = bins[first : first + BLOCK]
                self._bettors.bet(self._ranks.ranks(block))
                self.rows += len(block)
        log = self._bettors.log
        fallen = log <= self._lowest
        self._lowest = np.where(fallen, log, self._lowest)
        self._since = np.where(fallen, self.windows + 1, self._since)
        found = self.evidence
        if found.alarm and not self.alarmed:
            self.alarmed = self.windows
        return self.evidence

    @property
    def evidence(self) -> Evidence:
        """What all windows so far say."""
        top = self._bettors.top
        best = int(top.argmax())
        p = min(1.0, len(top) * math.exp(-min(float(top[best]), 700.0)))
        since = min(int(self._since[best]), self.windows)
        return Evidence(
            p,
            self.alpha,
            self.windows,
            self.rows,
            since,
            *self.names[best],
            float(self._bettors.log[best]),
            self.alarmed,
        )

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file of its state holds: arrays by name, and plain data."""
        arrays = {
            "counts": self._ranks.counts.astype(np.int64),
            "shares": self._bettors.shares,
            "log": self._bettors.log,
            "top": self._bettors.top,
            "lowest": self._lowest,
            "since": self._since.astype(np.int64),
        }
        about = {
            "schema": 1,
            "alpha": self.alpha,
            "seed": self.seed,
            "windows": self.windows,
            "rows": self.rows,
            "alarmed": self.alarmed,
            "names": [list(name) for name in self.names],
            "random": json.dumps(self._ranks.rng.bit_generator.state),
        }
        return arrays, about

    def restore_(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], what: str) -> Sequential:
        """Go on from what `saved` gave.

        Raises:
            InputRefused: it belongs to another reference or level, or is damaged.
        """
        if about.get("names") != [list(name) for name in self.names] or about.get("seed") != self.seed:
            raise InputRefused(f"{what}: is the state of another reference: name a new file")
        if about.get("alpha") != self.alpha:
            raise InputRefused(
                f"{what}: was begun with alpha {about.get('alpha')}, now {self.alpha}: keep it or begin anew"
            )
        if not self._believable(arrays, about) or not _revive(self._ranks.rng, about.get("random")):
            raise InputRefused(f"{what}: is not as netspectra writes it: damaged? Begin anew with another file")
        self._ranks.counts, self._ranks.seen = arrays["counts"].astype(int), self._ranks.seen + about["rows"]
        self._bettors.shares, self._bettors.log = arrays["shares"].astype(float), arrays["log"].astype(float)
        self._bettors.top, self._lowest = arrays["top"].astype(float), arrays["lowest"].astype(float)
        self._since = arrays["since"].astype(int)
        self.windows, self.rows, self.alarmed = about["windows"], about["rows"], about["alarmed"]
        return self

    def _believable(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bool:
        """Whether shapes and numbers of a state agree."""
        scores = len(self.names)
        shapes = {"counts": (scores, BINS), "shares": (scores, BETS)}
        shapes |= dict.fromkeys(("log", "top", "lowest", "since"), (scores,))
        if set(arrays) != set(shapes) or any(arrays[name].shape != shape for name, shape in shapes.items()):
            return False
        if not all(type(about.get(name)) is int and about[name] >= 0 for name in ("windows", "rows", "alarmed")):
            return False
        counts, shares = arrays["counts"], arrays["shares"]
        return bool(
            all(np.isfinite(array).all() for array in arrays.values())
            and (counts >= 0).all()
            and (counts.sum(1) == self._ranks.seen + about["rows"]).all()
            and (shares > 0).all()
            and np.allclose(shares.sum(1), 1.0)
        )


def _scores(basis: Basis, rows: Coordinates) -> tuple[list[str], np.ndarray]:
    """Scores of rows, (count, scores), of order one, and their names; nothing but the fit decides their scale."""
    deviation = np.sqrt(np.maximum(basis.variances, np.finfo(float).tiny))
    z = rows.along / deviation
    shown = min(FOLLOWED, z.shape[1])
    names = [f"direction {i + 1}" for i in range(shown)]
    scores = [z[:, :shown], np.log((z**2).mean(1) + 1e-3)[:, None], rows.whole[:, None] - math.log(basis.level)]
    names += ["energy", "length"]
    if basis.beside:
        names.append("residual")
        scores.append(rows.beside[:, None] - math.log(basis.beside))
    return names, np.concatenate(scores, axis=1)


def _revive(rng: np.random.Generator, text: Any) -> bool:
    """Put a generator into a state that came from a file; whether it is one."""
    try:
        rng.bit_generator.state = json.loads(text)
    except (ValueError, TypeError, KeyError, OverflowError):
        return False
    return True
