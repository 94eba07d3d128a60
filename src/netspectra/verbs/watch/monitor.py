"""The monitor: follows a training step by step, looks when a look is due and paid for, records, and raises alarms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import nn

from netspectra.errors import InputRefused
from netspectra.history import Look
from netspectra.runfile import record_row
from netspectra.verbs.watch.alarms import RULES, Alarm, AlarmRaised, falling, suspects
from netspectra.verbs.watch.book import Book, Sink
from netspectra.verbs.watch.budget import Lane
from netspectra.verbs.watch.followed import followed
from netspectra.verbs.watch.looking import SIGNALS, Eyes
from netspectra.verbs.watch.options import MonitorOptions
from netspectra.verbs.watch.recent import Recent
from netspectra.verbs.watch.shared import Mail, mail
from netspectra.version import __version__
from netspectra.weight import Selection, Source, Weight

__all__ = ["Watcher"]

# Of the budget, what each kind of look may take; a tenth is left for what surrounds them.
SHARES = {"cheap": 0.65, "leading": 0.125, "spectra": 0.125}
FULL_WITHOUT_BUDGET = 500  # steps between full spectra where neither budget nor steps are given
CALM = 3  # looks without a word after which an alarm has ended
SILENT = 20  # looks that another process may be silent before its layers are taken over


class Watcher:
    """Watches the weights of a live model through a training; `netspectra.Monitor` is the door to it.

    Attributes:
        alarms: raised so far.
        steps: taken so far.
        overhead: share of the time since the begin that went into looks and recording.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        options: MonitorOptions = MonitorOptions(),
        *,
        run: str | Path | None = None,
        resume: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        sinks: Sequence[Sink] = (),
        on_alarm: Callable[[Alarm], None] | None = None,
    ) -> None:
        """Prepare; nothing is looked at or written before `start`."""
        self.options, self.alarms = options, list[Alarm]()
        self._model, self._source, self._path, self._resume = model, source, run, resume
        self._book, self._on_alarm, self._optimizer = Book(sinks), on_alarm, optimizer
        self._watched = followed(model, source.weights, Selection(options.include, options.exclude))
        self._eyes = Eyes(model, self._watched, options)
        self._recent = Recent(
            [f.name for f in self._watched],
            [f.weight.kind for f in self._watched],
            np.array([min(f.weight.shape) for f in self._watched]),
        )
        # what others do on this machine is not counted: on the CPU time is the thread's own
        on_cpu = all(p.device.type == "cpu" for held in self._watched for p in held.parameters)
        self._clock = time.thread_time if on_cpu else time.perf_counter
        self._mail: Mail | None = None
        self._hook: Any = None
        self._places: list[int] = []
        self._others: dict[int, int] = {}  # rank -> step of its last letter
        self._notes: dict[str, Any] = {}
        self._round: list[int] = []
        self._remembered: set[int] = set()
        self._awaited: list[int] = []  # whose change is looked at after the next step
        self.steps, self._running, self._ended = 0, False, False

    # ---- life --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Watcher:
        """Start."""
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, wrong: BaseException | None, at: TracebackType | None) -> None:
        """Finish; without the last full spectra where the training failed."""
        self.finish(spectra=kind is None)

    def start(self, step: int = 0) -> None:
        """Open the run file, take the first look, follow the optimizer.

        Args:
            step: how many steps the training has behind it; what the run file holds beyond it is dropped.
        """
        if self._running or self._ended:
            raise InputRefused("a monitor watches one training: make a new one for the next")
        begun = self._clock()
        self._mail = mail()
        rank, world = (self._mail.rank, self._mail.world) if self._mail else (0, 1)
        self._places = list(range(len(self._watched)))[rank::world]
        self._others = dict.fromkeys(range(1, world), step) if rank == 0 else {}
        share = self.options.budget
        self._lanes = {
            "cheap": Lane(self.options.every, math.inf if share is None else SHARES["cheap"] * share),
            "leading": Lane(self.options.leading_every, math.inf if share is None else SHARES["leading"] * share),
            # full spectra of several processes do not fall into the same step: each holds all of them up
            "spectra": Lane(self._spectrum_every(), math.inf if share is None else SHARES["spectra"] * share / world),
        }
        if self._path is not None and rank == 0:
            step = self._book.open(Path(self._path), self._job(), self.options, step=step, resume=self._resume)
        self.steps, self._first, self._running = step, step, True
        self._own, self._began, self._unpaid = 0.0, begun, 0.0
        for lane in self._lanes.values():
            lane.due = step + lane.every
        self._first_looks()
        self._all_spectra()
        if self._optimizer is not None:
            self._hook = self._optimizer.register_step_post_hook(lambda *_: self.step())
        self._left = self._clock()
        self._aside = self._left - begun  # the begin and the end are beside the budget
        self._sleep()
        self._book.flush(self.state, force=True)

    def _first_looks(self) -> None:
        """Look at everything once, and learn from a second time what that costs when it is no longer new."""
        self._cheap()
        self._leading(self._places)
        for lane, look in (("cheap", self._eyes.cheap_again), ("leading", self._eyes.leading)):
            begun = self._clock()
            look(self._places)
            self._lanes[lane].cost = self._clock() - begun

    def finish(self, *, spectra: bool = True) -> None:
        """Take the last look, close the run file. May be called again."""
        if not self._running:
            return
        self._running, self._ended = False, True
        if self._hook is not None:
            self._hook.remove()
        self._forget()
        try:
            begun = self._clock()
            if spectra:
                if self._lanes["cheap"].last != self.steps:
                    self._cheap()
                if self._lanes["leading"].last != self.steps:
                    self._leading(self._places)
                self._all_spectra()
            self._book.end_alarms(self.steps)
            self._aside += self._clock() - begun
        finally:
            self._book.close(self.state)

    # ---- every step --------------------------------------------------------------------------------------------

    def step(self, step: int | None = None, **notes: Any) -> None:
        """Tell that the optimizer has made a step.

        Args:
            step: its number where the monitor is not to count by itself.
            notes: numbers to keep beside the looks: ``loss=loss``; read only when there is a look.
        """
        begun = self._clock()
        if not self._running:
            raise InputRefused("the monitor is not running: use it as a context manager, or call start()")
        self.steps = self.steps + 1 if step is None else step
        if notes:
            self.note(**notes)
        self._unpaid += max(0.0, begun - self._left)
        try:
            if self.steps >= self._wake_step or self._unpaid >= self._wake_seconds:
                for lane in self._lanes.values():
                    lane.earn(self._unpaid)
                self._unpaid = 0.0
                self._look()
                self._sleep()
        finally:
            self._left = self._clock()
            self._own += self._left - begun

    def _sleep(self) -> None:
        """Find out when there can be something to do next: at which step, or after how many seconds of training."""
        self._wake_step, self._wake_seconds = 1 << 62, math.inf
        for name, lane in self._lanes.items():
            if self.steps + 1 < lane.due and not (name == "spectra" and self._round):
                self._wake_step = min(self._wake_step, lane.due)
            else:
                self._wake_seconds = min(self._wake_seconds, lane.missing(self._cost(name)))
        if self._awaited:
            self._wake_step = self.steps + 1
        elif self.options.updates:  # the weights are remembered a step before
            self._wake_step -= 1

    def _cost(self, lane: str) -> float:
        if lane != "spectra":
            return self._lanes[lane].cost
        return self._eyes.expected(self._watched[self._round[0]].weight) if self._round else 0.0

    def note(self, **notes: Any) -> None:
        """Numbers to keep beside the next look, where the monitor follows the optimizer: ``note(loss=loss)``."""
        for name, value in notes.items():  # a loss would keep its whole graph
            self._notes[name] = value.detach() if isinstance(value, torch.Tensor) else value

    def _look(self) -> None:
        step, lanes = self.steps, self._lanes
        if lanes["cheap"].wants(step):
            self._timed("cheap", self._cheap)
        if lanes["leading"].wants(step):
            self._timed("leading", lambda: self._leading(self._places))
        while self._awaited:
            self._update_spectrum()
        self._forget()
        if step >= lanes["spectra"].due and not self._round:
            lanes["spectra"].due = step  # until the round is done
            self._round = list(self._places)
        while self._round and lanes["spectra"].wants(step, self._cost("spectra")):
            self._spectrum()
        if self.options.updates and lanes["cheap"].wants(step + 1):
            self._remember(self._places if self._mail and self._mail.rank else range(len(self._watched)))

    def _remember(self, places: Iterable[int]) -> None:
        """Keep copies of these weights until after the next step, for its change."""
        with torch.no_grad():
            for place in set(places) - self._remembered:
                self._watched[place].remember()
                self._remembered.add(place)

    def _forget(self) -> None:
        for place in self._remembered:
            self._watched[place].forget()
        self._remembered.clear()

    def _timed(self, lane: str, look: Callable[[], None]) -> None:
        begun = self._clock()
        try:
            look()
        finally:
            self._lanes[lane].looked(self.steps, self._clock() - begun)

    def _cheap(self) -> None:
        first = self._mail is None or self._mail.rank == 0
        numbers = self._eyes.cheap(self._places, all_norms=first)
        notes = {name: float(value) for name, value in self._notes.items()}
        self._notes.clear()
        if not first:
            self._send(step=self.steps, what="cheap", numbers=numbers)
            return
        self._take()
        self._recent.add(self.steps, numbers[:, 0], numbers[:, 1], numbers[:, 2])
        self._lanes["cheap"].urgent = falling(self._recent)
        self._book.add(Look(self.steps, "cheap", numbers, notes))
        if self._book.has_sinks:
            self._book.tell(self.steps, {**self._named(numbers), **notes})
        doubtful = [place for place in suspects(self._recent) if place in self._places]
        if doubtful:
            self._leading(doubtful, steps=4)
        self._raise_alarms()
        self._book.flush(self.state)

    def _leading(self, places: Sequence[int], *, steps: int = 1) -> None:
        found = self._eyes.leading(places, steps=steps)
        numbers = np.full((len(self._watched), self.options.leading), np.nan)
        for place, values in found.items():
            numbers[place, : len(values)] = values
        if self._mail is not None and self._mail.rank:
            self._send(step=self.steps, what="leading", numbers=numbers)
            return
        if self._recent.steps:
            self._recent.add_leading(self.steps, found)
            self._recent.add_norms(self.steps, self._eyes.norm_states())
        if found:
            self._book.add(Look(self.steps, "leading", numbers))

    def _spectrum(self) -> None:
        """The full spectrum of the next weight of the round, charged by what it takes."""
        begun = self._clock()
        place, lane = self._round.pop(0), self._lanes["spectra"]
        held = self._watched[place]
        operations = self._keep_full(place, held.weight)
        if self.options.gradients and (gradient := held.gradient_weight()) is not None:
            operations += self._keep_full(place + len(self._watched), gradient)
        if self.options.updates and self._running and self.steps > self._first:
            self._remember([place])
            self._awaited.append(place)
        seconds = self._clock() - begun
        self._eyes.learn(operations, seconds)
        lane.charge(seconds)
        if not self._round:
            lane.looked(self.steps, 0.0)
        self._book.flush(self.state)

    def _update_spectrum(self) -> None:
        begun, place = self._clock(), self._awaited.pop()
        with torch.no_grad():
            change = self._watched[place].update()
        if change is not None:
            self._keep_full(place + 2 * len(self._watched), self._watched[place].update_weight(change))
        self._lanes["spectra"].charge(self._clock() - begun)

    def _keep_full(self, position: int, weight: Weight) -> float:
        record, operations = self._eyes.full(weight, self.steps)
        if record is not None:
            row = record_row(position, record)
            if self._mail is not None and self._mail.rank:
                self._send(row=list(row))
            else:
                self._book.add_row(row)
        return operations

    def _all_spectra(self) -> None:
        """The full spectra of as many weights as the seconds for begin and end allow, those of all if they do."""
        until = self._clock() + self.options.ends
        self._round = list(self._places)
        while self._round:
            if self._clock() + self._eyes.expected(self._watched[self._round[0]].weight) > until:
                break
            credit = self._lanes["spectra"].credit
            self._spectrum()
            self._lanes["spectra"].credit = credit
        self._round = []

    def _spectrum_every(self) -> int:
        if self.options.spectrum_every is not None:
            return self.options.spectrum_every
        return self.options.leading_every if self.options.budget is not None else FULL_WITHOUT_BUDGET

    # ---- alarms --------------------------------------------------------------------------------------------------

    def _raise_alarms(self) -> None:
        spoken = ((rule.name, alarm) for rule in RULES for alarm in rule.spoken(self._recent))
        new = self._book.hear(spoken, self.steps, CALM * max(self.options.every, self._lanes["cheap"].gap))
        if new:
            self._book.flush(self.state, force=True)
        for alarm in new:
            self.alarms.append(alarm)
            if self._on_alarm is not None:
                self._on_alarm(alarm)
        for alarm in new:
            if alarm.verdict.rule in self.options.raise_on or alarm.verdict.level in self.options.raise_on:
                raise AlarmRaised(alarm)

    # ---- what it is and how far -----------------------------------------------------------------------------------

    def _job(self) -> dict[str, Any]:
        weights = [{"name": f.name, "kind": f.weight.kind, "shape": list(f.weight.shape)} for f in self._watched]
        source = {**self._source.describe(), "fingerprint": ""}  # the weights change: names and shapes are the job
        return {
            "verb": "monitor",
            "version": __version__,
            "source": source,
            "options": self.options.to_dict(),
            "weights": len(weights),
            "skipped": [asdict(skipped) for skipped in self._source.skipped],
            "watched": weights,
            "signals": list(SIGNALS),
            "leading": self.options.leading,
        }

    @property
    def overhead(self) -> float:
        """Share of the time since the begin, less what begin and end took, that went into looks and recording."""
        trained = self._clock() - self._began - self._aside
        return self._own / trained if trained > 0 else 0.0

    def state(self) -> dict[str, Any]:
        """How far the monitor is, what it took and how far apart its looks are."""
        return {
            "step": self.steps,
            "seconds": self._clock() - self._began,
            "own": self._own,
            "ended": self._ended,
            "lanes": {
                name: {"every": lane.every, "gap": lane.gap, "looks": lane.looks, "seconds": lane.spent}
                for name, lane in self._lanes.items()
            },
        }

    def _named(self, numbers: np.ndarray) -> dict[str, float]:
        named = {
            f"{signal}/{held.name}": float(value)
            for held, row in zip(self._watched, numbers, strict=True)
            for signal, value in zip(SIGNALS, row, strict=True)
            if not math.isnan(value)
        }
        for place, held in enumerate(self._watched):
            if math.isfinite(self._recent.rank[place]):
                named[f"stable_rank/{held.name}"] = float(self._recent.rank[place])
        named["alarms"] = float(self._book.standing)
        return named

    # ---- other processes ---------------------------------------------------------------------------------------------

    def _send(self, **letter: Any) -> None:
        assert self._mail is not None
        if "numbers" in letter:
            letter["numbers"] = np.ascontiguousarray(letter["numbers"], dtype="<f4").tobytes()
        self._mail.send(letter)

    def _take(self) -> None:
        """Take in what other processes found; take over the layers of one that has fallen silent."""
        if self._mail is None:
            return
        for rank, letter in self._mail.take():
            if "row" in letter:
                self._book.add_row(tuple(letter["row"]))
                continue
            step, what = letter["step"], letter["what"]
            self._others[rank] = step
            numbers = np.frombuffer(letter["numbers"], dtype="<f4").reshape(len(self._watched), -1)
            if what == "cheap":
                self._recent.fill(step, numbers[:, 1].astype(float))
            elif self._recent.steps:
                rows = {i: row[np.isfinite(row)] for i, row in enumerate(numbers) if np.isfinite(row).any()}
                self._recent.add_leading(step, rows)
            self._book.add(Look(step, what, numbers, rank=rank))
        patience = SILENT * max(self.options.every, self._lanes["cheap"].gap)
        for rank, step in list(self._others.items()):
            if step < self.steps - patience:
                del self._others[rank]
                self._places = sorted({*self._places, *range(rank, len(self._watched), self._mail.world)})
