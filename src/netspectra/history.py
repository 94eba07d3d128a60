"""What a monitor keeps in its run file: curves, alarms and how far it is, in a size that does not grow with time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netspectra.errors import InputRefused
from netspectra.findings import EVENT, NOTES, STATE, check
from netspectra.runfile import INSERT, RunFile

__all__ = ["History", "Look"]

FINE = 256  # of the newest looks all are kept


@dataclass(frozen=True, eq=False)
class Look:
    """One look of one process at all weights.

    Attributes:
        step: of the training.
        what: ``cheap`` or ``leading``.
        numbers: float32, a row a weight; NaN where nothing was looked for.
        notes: numbers of the user's: the loss, the learning rate.
        rank: of the process that looked.
    """

    step: int
    what: str
    numbers: np.ndarray
    notes: Mapping[str, float] = field(default_factory=dict)
    rank: int = 0


@dataclass(eq=False)
class History:
    """The growing part of a monitor's run file.

    Of each kind of look the newest 256 are kept, of the older ones every second, fourth, eighth ..., so that there are
    never more than ``most``; of full spectra likewise as many as ``bytes_kept`` hold.

    Attributes:
        run: the file.
        most: looks of a kind.
        bytes_kept: what full spectra may take together.
    """

    run: RunFile
    most: int = 2000
    bytes_kept: float = 64e6
    _looks: list[Look] = field(default_factory=list)
    _rows: list[tuple[Any, ...]] = field(default_factory=list)
    _events: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    _steps: dict[str, list[int]] = field(default_factory=dict)
    _strides: dict[str, int] = field(default_factory=dict)
    _sizes: dict[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find what an earlier job left."""
        for step, what in self.run.select("SELECT DISTINCT step, what FROM looks ORDER BY step"):
            self._steps.setdefault(what, []).append(step)
        kept = 'SELECT step, position, length("values") FROM records WHERE "values" IS NOT NULL'
        for step, position, size in self.run.select(kept):
            self._sizes[step, position] = 2 * size
        self._places = self.run.select("SELECT coalesce(max(place), -1) FROM events")[0][0]

    @property
    def last(self) -> int | None:
        """The newest step there is anything of."""
        return max((steps[-1] for steps in self._steps.values() if steps), default=None)

    def forget_after(self, step: int) -> None:
        """Drop what lies beyond a step: the training was taken up again from there."""
        with self.run.transaction() as db:
            db.execute("DELETE FROM looks WHERE step > ?", (step,))
            db.execute("DELETE FROM records WHERE step > ?", (step,))
        self._steps = {what: [s for s in steps if s <= step] for what, steps in self._steps.items()}
        self._sizes = {key: size for key, size in self._sizes.items() if key[0] <= step}

    def add(self, look: Look) -> None:
        """Take a look; it is on disk after the next `flush`."""
        self._looks.append(look)

    def add_row(self, row: tuple[Any, ...]) -> None:
        """Take a full spectrum, as `record_row` lays it out."""
        self._rows.append(row)

    def add_event(self, finding: Mapping[str, Any]) -> int:
        """Take an alarm or a remark; gives its place, under which `end_event` finds it."""
        self._places += 1
        self._events[self._places] = {"until": None, **finding}
        return self._places

    def end_event(self, place: int, finding: Mapping[str, Any], until: int) -> None:
        """Say when an alarm ended."""
        self._events[place] = {**finding, "until": until}

    def flush(self, state: Mapping[str, Any]) -> None:
        """Write everything taken since the last time, and how far the monitor is, all or nothing."""
        with self.run.transaction() as db:
            rows = [(k.step, k.what, k.rank, _bytes(k.numbers), json.dumps(dict(k.notes))) for k in self._looks]
            db.executemany("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?)", rows)
            db.executemany(INSERT, self._rows)
            events = [(place, json.dumps(_strict(finding))) for place, finding in self._events.items()]
            db.executemany("INSERT OR REPLACE INTO events VALUES (?, ?)", events)
            db.execute("INSERT OR REPLACE INTO meta VALUES ('state', ?)", (json.dumps(dict(state)),))
            for what, step in self._thinned():
                db.execute("DELETE FROM looks WHERE step = ? AND what = ?", (step, what))
            for step, position in self._thinned_records():
                db.execute("DELETE FROM records WHERE step = ? AND position = ?", (step, position))
        self._looks, self._rows, self._events = [], [], {}

    def _thinned(self) -> Iterable[tuple[str, int]]:
        """Take the new looks in, and give those that have to go."""
        for look in self._looks:
            steps = self._steps.setdefault(look.what, [])
            if not steps or look.step > steps[-1]:
                steps.append(look.step)
        for what, steps in self._steps.items():
            if len(steps) > self.most:
                fine = min(FINE, self.most // 2)
                old, new = steps[:-fine], steps[-fine:]
                keep = _evenly(old, len(old) // 2)
                yield from ((what, step) for step in old if step not in keep)
                self._steps[what] = [step for step in old if step in keep] + new

    def _thinned_records(self) -> Iterable[tuple[int, int]]:
        for step, position, _, _, values, *_ in self._rows:
            self._sizes[step, position] = 2 * len(values)
        while sum(self._sizes.values()) > self.bytes_kept:
            steps: dict[int, list[int]] = {}
            for step, position in sorted(self._sizes):
                steps.setdefault(position, []).append(step)
            gone = [(s, p) for p, held in steps.items() for s in set(held) - _evenly(held, len(held) // 2 + 1)]
            if not gone:
                return
            for key in gone:
                del self._sizes[key]
            yield from gone

    # ---- reading -------------------------------------------------------------------------------------------------

    def looks(self, what: str, shape: tuple[int, int], after: int = -1) -> list[Look]:
        """The looks of a kind beyond a step, those of several processes put together, by step."""
        found: dict[int, Look] = {}
        query = "SELECT step, rank, numbers, notes FROM looks WHERE what = ? AND step > ? ORDER BY step, rank"
        for step, rank, data, text in self.run.select(query, what, after):
            where = f"{self.run.path}: the look at step {step!r}"
            if type(step) is not int or not isinstance(data, bytes) or len(data) != 4 * shape[0] * shape[1]:
                raise InputRefused(f"{where} is not as netspectra writes it: damaged? Repeat the job into a new file")
            numbers = np.frombuffer(data, dtype="<f4").reshape(shape)
            notes = check(self.run.parsed(text, where), NOTES, where)
            if step in found:
                before = found[step]
                numbers = np.where(np.isnan(before.numbers), numbers, before.numbers)
                notes = {**notes, **before.notes}
            found[step] = Look(step, what, numbers, notes, rank)
        return list(found.values())

    def events(self) -> list[dict[str, Any]]:
        """The alarms, in the order they were raised."""
        rows = self.run.select("SELECT place, finding FROM events ORDER BY place")
        where = f"{self.run.path}: an alarm"
        return [check(self.run.parsed(text, where), EVENT, where) for _, text in rows]

    def state(self) -> dict[str, Any] | None:
        """How far the monitor is; None before it began."""
        held = self.run.meta.get("state")
        return None if held is None else check(held, STATE, f"{self.run.path}: its state")


def _bytes(numbers: np.ndarray) -> bytes:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(numbers, dtype="<f4").tobytes()


def _evenly(steps: list[int], count: int) -> set[int]:
    """About so many of the steps, the first and the last among them, as evenly spread in time as they allow."""
    if len(steps) <= 2:
        return set(steps)
    gap = (steps[-1] - steps[0]) / max(1, count)
    kept = [steps[0]]
    for step in steps[1:]:
        if step - kept[-1] >= gap:
            kept.append(step)
    return {*kept, steps[-1]}


def _strict(value: Any) -> Any:
    """Numbers as JSON has them: None for those that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
