"""Windows one after another, watched for as long as wished, with an error that holds at any time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from netspectra.errors import InputRefused
from netspectra.record import Verdict
from netspectra.verbs.drift.basis import Basis, Coordinates
from netspectra.verbs.drift.betting import Team

if TYPE_CHECKING:
    from netspectra.verbs.drift.reference import Reference

__all__ = ["Evidence", "Sequential"]

FOLLOWED = 8  # directions of a layer that are followed one by one
TOGETHER = 16  # rows of a block


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
        score: what moved there: of single rows ``direction 3``, ``residual``, ``energy`` or ``length``, of sixteen
            together ``mean`` or ``spread``.
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
    its length. So is every block of 16 rows: by how far their mean lies off, and by how far they spread. Each score has
    a rank among all rows or blocks so far, the reference's held-out ones first, and a bettor who gambles that ranks
    are not uniform. Under exchangeability nobody can expect to win; capital beyond (number of scores) / alpha is an
    alarm (Ville's inequality, and a union over the scores). Small drifts add up over windows; what a single window
    shows at once, `Reference.test` sees sooner.

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
        order = np.random.default_rng([seed, 0]).permutation(reference.held)
        held = {layer: kept.rows[order] for layer, kept in reference.layers.items()}
        whole = reference.held // TOGETHER * TOGETHER
        z = self._standard(held)
        names = [(layer, name) for layer, kept in reference.layers.items() for name in _row_scores(kept.basis)]
        pairs = [(layer, name) for layer in reference.layers for name in ("mean", "spread")]
        self._rows = Team(names, self._row_scores(held, z), [seed, 1])
        self._blocks = Team(pairs, self._block_scores(z[:whole]), [seed, 2])
        self._waiting = np.empty((0, z.shape[1]))  # rows of a block that is not full yet
        self.windows = self.rows = self.alarmed = 0

    def test(self, window: Any) -> Evidence:
        """Take the next window, as `Reference.test` takes it; one row is enough, and all rows are used."""
        layers = self.reference.layers
        taken = [
            {layer: kept.basis.coordinates(chunk[layer]) for layer, kept in layers.items()}
            for chunk in self.reference.chunks(window, [])
        ]  # all of them, before anything counts: a window that is refused half-way leaves no trace
        self.windows += 1
        for rows in taken:
            z = self._standard(rows)
            self._rows.play(self._row_scores(rows, z), self.windows)
            self.rows += len(z)
            waiting = np.concatenate([self._waiting, z])
            whole = len(waiting) // TOGETHER * TOGETHER
            self._blocks.play(self._block_scores(waiting[:whole]), self.windows)
            self._waiting = waiting[whole:]
        if self.evidence.alarm and not self.alarmed:
            self.alarmed = self.windows
        return self.evidence

    @property
    def evidence(self) -> Evidence:
        """What all windows so far say."""
        teams = (self._rows, self._blocks)
        team = max(teams, key=lambda team: float(team.bettors.top.max()))
        best = int(team.bettors.top.argmax())
        top = float(team.bettors.top[best])
        p = min(1.0, sum(len(one.names) for one in teams) * math.exp(-min(top, 700.0)))
        since, now = min(int(team.since[best]), self.windows), float(team.bettors.log[best])
        return Evidence(p, self.alpha, self.windows, self.rows, since, *team.names[best], now, self.alarmed)

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file of its state holds: arrays by name, and plain data."""
        arrays: dict[str, np.ndarray] = {"waiting": self._waiting}
        about: dict[str, Any] = {
            "schema": 1,
            "alpha": self.alpha,
            "seed": self.seed,
            "windows": self.windows,
            "rows": self.rows,
            "alarmed": self.alarmed,
            "reference": self.reference.fingerprint,
        }
        for kind, team in (("rows", self._rows), ("blocks", self._blocks)):
            found, about[f"{kind} team"] = team.saved()
            arrays |= {f"{kind}|{name}": array for name, array in found.items()}
        return arrays, about

    def restore_(self, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any], what: str) -> Sequential:
        """Go on from what `saved` gave.

        Raises:
            InputRefused: it belongs to another reference or level, or is damaged.
        """
        if about.get("schema") != 1:
            raise InputRefused(f"{what}: is of schema {about.get('schema')!r}, this version reads 1: begin anew")
        if about.get("reference") != self.reference.fingerprint or about.get("seed") != self.seed:
            raise InputRefused(f"{what}: is the state of another reference: name a new file")
        if about.get("alpha") != self.alpha:
            raise InputRefused(f"{what}: was begun with alpha {about.get('alpha')}, now {self.alpha}: keep it")
        waiting = arrays.get("waiting")
        fine = (
            all(type(about.get(name)) is int and about[name] >= 0 for name in ("windows", "rows", "alarmed"))
            and waiting is not None
            and waiting.ndim == 2
            and len(waiting) < TOGETHER
            and waiting.shape[1] == self._waiting.shape[1]
            and bool(np.isfinite(waiting).all())
        )
        for kind, team in (("rows", self._rows), ("blocks", self._blocks)):
            own = {name[len(kind) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{kind}|")}
            said = about.get(f"{kind} team")
            fine = fine and isinstance(said, dict) and team.restore_(own, said)
        if not fine or waiting is None or self._rows.ranks.seen != self.reference.held + about["rows"]:
            raise InputRefused(f"{what}: is not as netspectra writes it: damaged? Begin anew with another file")
        self._waiting = waiting.astype(float)
        self.windows, self.rows, self.alarmed = about["windows"], about["rows"], about["alarmed"]
        return self

    def _standard(self, rows: Mapping[str, Coordinates]) -> np.ndarray:
        """Coordinates of all layers side by side, in standard deviations of the fit."""
        return np.concatenate([_standard(self.reference.layers[n].basis, one) for n, one in rows.items()], axis=1)

    def _row_scores(self, rows: Mapping[str, Coordinates], z: np.ndarray) -> np.ndarray:
        """(count, scores), in the order of the names."""
        parts = [
            np.stack([*_row_scores(self.reference.layers[n].basis, one, part).values()], axis=1)
            for (n, one), part in zip(rows.items(), self._split(z), strict=True)
        ]
        return np.concatenate(parts, axis=1)

    def _block_scores(self, z: np.ndarray) -> np.ndarray:
        """Two scores a layer of every block: how far its mean lies off, how far its rows spread; both of order one."""
        found = []
        for part in self._split(z):
            blocks = part.reshape(-1, TOGETHER, part.shape[1])
            found.append(np.log(TOGETHER * (blocks.mean(1) ** 2).mean(1) + 1e-3))
            found.append(np.log(blocks.var(1) + 1e-3).mean(1))
        return np.stack(found, axis=1)

    def _split(self, z: np.ndarray) -> list[np.ndarray]:
        widths = [kept.basis.V.shape[1] for kept in self.reference.layers.values()]
        return np.split(z, np.cumsum(widths)[:-1], axis=1)


def _standard(basis: Basis, rows: Coordinates) -> np.ndarray:
    return rows.along / np.sqrt(np.maximum(basis.variances, np.finfo(float).tiny))


def _row_scores(basis: Basis, rows: Coordinates | None = None, z: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Scores of rows by name, of order one; nothing but the fit decides their scale. Without rows the names alone."""
    shown = min(FOLLOWED, basis.V.shape[1])
    if rows is None or z is None:
        rows, z = Coordinates(np.zeros((0, 0)), np.zeros(0), np.zeros(0)), np.zeros((0, shown))
    found = {f"direction {i + 1}": z[:, i] for i in range(shown)}
    found["energy"] = np.log((z**2).sum(1) / max(z.shape[1], 1) + 1e-3)
    found["length"] = rows.whole - math.log(basis.level)
    if basis.beside:
        found["residual"] = rows.beside - math.log(basis.beside)
    return found
