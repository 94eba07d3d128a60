"""Where the findings of a monitor go: the run file and the sinks; and which alarms stand."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.history import History, Look
from netspectra.runfile import RunFile
from netspectra.verbs.watch.alarms import Alarm
from netspectra.verbs.watch.options import MonitorOptions

__all__ = ["Book", "Sink"]

FLUSH = 1.0  # seconds of findings that a kill can lose


class Sink(Protocol):
    """Where numbers go besides the run file; one with a ``close`` is closed with the monitor."""

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of one look."""
        ...


class Book:
    """Keeps what a monitor finds. A disk or a tracker that fails is warned of and let go; the training goes on."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        """Take the sinks; without `open` no run file is written."""
        self._sinks = list(sinks)
        self._history: History | None = None
        self._flushed = time.monotonic()
        self._standing: dict[tuple[str, str], tuple[int, dict[str, Any], int]] = {}

    def open(self, path: Path, job: Mapping[str, Any], options: MonitorOptions, *, step: int, resume: bool) -> int:
        """Open the run file; gives the step to go on from, beyond which it forgets."""
        if path.exists() and not resume:
            raise InputRefused(f"{path}: exists already. Name a new run file, or go on in it with resume=True")
        run = RunFile.create_or_resume(path, job, history=True)
        self._history = History(run, options.history, options.megabytes * 1e6)
        last = self._history.last
        if last is not None:
            step = step or last
            self._history.forget_after(step)
        return step

    @property
    def has_sinks(self) -> bool:
        """Whether anybody wants numbers by name."""
        return bool(self._sinks)

    @property
    def standing(self) -> int:
        """How many alarms have not ended."""
        return len(self._standing)

    def add(self, look: Look) -> None:
        """Keep a look."""
        if self._history:
            self._history.add(look)

    def add_row(self, row: tuple[Any, ...]) -> None:
        """Keep a full spectrum, as `record_row` lays it out."""
        if self._history:
            self._history.add_row(row)

    def hear(self, spoken: Iterable[tuple[str, Alarm]], step: int, calm: float) -> list[Alarm]:
        """Keep what the rules say now, as (rule, alarm); gives what is new, and ends what was silent for ``calm``."""
        new = []
        for rule, alarm in spoken:
            key = rule, alarm.name
            if key in self._standing:
                place, finding, _ = self._standing[key]
            else:
                finding = alarm.to_dict()
                place = self._history.add_event(finding) if self._history else -1
                new.append(alarm)
            self._standing[key] = place, finding, step
        for key, (place, finding, seen) in list(self._standing.items()):
            if seen < step - calm:
                del self._standing[key]
                if self._history:
                    self._history.end_event(place, finding, seen)
        return new

    def tell(self, step: int, numbers: Mapping[str, float]) -> None:
        """Give the numbers of a look to all sinks."""
        for sink in list(self._sinks):
            self._guarded(sink, lambda sink=sink: sink(step, numbers))

    def flush(self, state: Callable[[], Mapping[str, Any]], *, force: bool = False) -> None:
        """Write what was taken since the last time, if that was a second ago."""
        now = time.monotonic()
        if self._history is None or not (force or now - self._flushed > FLUSH):
            return
        self._flushed = now
        try:
            self._history.flush(state())
        except EnvironmentFailure as wrong:
            warnings.warn(f"the monitor stops recording, the training goes on: {wrong}", RuntimeWarning, stacklevel=2)
            self._history.run.close()
            self._history = None

    def end_alarms(self, step: int) -> None:
        """The training ends: an alarm that was not spoken at this step has ended where it was last."""
        for place, finding, seen in self._standing.values():
            if self._history and seen < step:
                self._history.end_event(place, finding, seen)

    def close(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write the rest and close run file and sinks."""
        self.flush(state, force=True)
        if self._history is not None:
            self._history.run.finish()
        for sink in list(self._sinks):
            if hasattr(sink, "close"):
                self._guarded(sink, sink.close)  # type: ignore[attr-defined]

    def _guarded(self, sink: Sink, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as wrong:  # noqa: BLE001 - somebody else's code: a training is not lost for a tracker
            warnings.warn(f"the monitor drops a sink, the training goes on: {wrong!r}", RuntimeWarning, stacklevel=2)
            self._sinks.remove(sink)
