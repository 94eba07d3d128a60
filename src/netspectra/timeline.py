"""A training as a monitor saw it: curves of norms and ranks, spectra against time, alarms. Read from its run file."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from netspectra.errors import InputRefused
from netspectra.findings import META, MONITOR, check
from netspectra.history import History
from netspectra.record import Record
from netspectra.runfile import RunFile
from netspectra.version import __version__
from netspectra.written import strict_json, write_by_suffix

__all__ = ["Timeline", "is_monitor"]


@dataclass(frozen=True, eq=False)
class Timeline:
    """What a monitor found, by weight and step.

    Attributes:
        path: of the run file.
        weights: name, kind and shape of each.
        options: of the monitor.
        steps: (T,) of the cheap looks.
        signals: by name, (T, W), NaN where nothing was looked for: ``frobenius_norm``, ``sigma_1``, ``gradient_norm``,
            ``update_norm``, and ``stable_rank`` made of the first two.
        leading_steps: (L,) of the looks at leading values.
        leading: (L, W, k).
        spectra: by name of the weight (and ``NAME (gradient)``, ``NAME (update)``) its full spectra, by step.
        alarms: step, name, rule, level, message, evidence, until.
        notes: numbers of the user's, by name: (steps, values).
        state: how far it is; None before the first look was written.
    """

    path: Path
    weights: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    steps: np.ndarray
    signals: Mapping[str, np.ndarray]
    leading_steps: np.ndarray
    leading: np.ndarray
    spectra: Mapping[str, tuple[Record, ...]]
    alarms: tuple[Mapping[str, Any], ...]
    notes: Mapping[str, tuple[list[int], list[float]]]
    state: Mapping[str, Any] | None

    @classmethod
    def read(cls, path: str | Path) -> Timeline:
        """Read a monitor's run file, also while the training goes on.

        Raises:
            InputRefused: no run file, a damaged one, or one of an analysis.
        """
        run = RunFile.read(path)
        try:
            return cls.from_run(run)
        finally:
            run.close()

    @classmethod
    def from_run(cls, run: RunFile) -> Timeline:
        """Read what an open run file holds."""
        meta = run.meta
        if not is_monitor(meta):
            raise InputRefused(f"{run.path}: the run file of an analysis, not of a monitor")
        where = f"{run.path}: the description of the job"
        check(check(meta, META, where), MONITOR, where)
        history, count, signals = History(run), len(meta["watched"]), meta["signals"]
        looks = history.looks("cheap", (count, len(signals)))
        leading = history.looks("leading", (count, meta["leading"]))
        found = np.array([look.numbers for look in looks], dtype=float).reshape(len(looks), count, len(signals))
        named = {signal: found[:, :, place] for place, signal in enumerate(signals)}
        named = {name: values for name, values in named.items() if not np.isnan(values).all() or not len(looks)}
        if {"frobenius_norm", "sigma_1"} <= set(named):
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                named["stable_rank"] = (named["frobenius_norm"] / named["sigma_1"]) ** 2
        spectra: dict[str, list[Record]] = {}
        for _, _, record in run.rows():
            if isinstance(record, Record):
                spectra.setdefault(record.name, []).append(record)
        notes: dict[str, tuple[list[int], list[float]]] = {}
        for look in looks:
            for name, value in look.notes.items():
                held = notes.setdefault(name, ([], []))
                held[0].append(look.step)
                held[1].append(value)
        return cls(
            path=run.path,
            weights=tuple(meta["watched"]),
            options=meta["options"],
            steps=np.array([look.step for look in looks], dtype=int),
            signals=named,
            leading_steps=np.array([look.step for look in leading], dtype=int),
            leading=np.array([k.numbers for k in leading], dtype=float).reshape(len(leading), count, meta["leading"]),
            spectra={name: tuple(records) for name, records in spectra.items()},
            alarms=tuple(history.events()),
            notes=notes,
            state=history.state(),
        )

    @cached_property
    def names(self) -> list[str]:
        """Of the weights, in the order of the model."""
        return [weight["name"] for weight in self.weights]

    def curve(self, name: str, signal: str = "sigma_1") -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of one signal of one weight, where it was looked for."""
        if signal not in self.signals:
            raise InputRefused(f"no signal {signal!r}; there are {', '.join(self.signals)}")
        if name not in self.names:
            raise InputRefused(f"no weight {name!r} was watched; there are {', '.join(self.names[:5])} ...")
        values = self.signals[signal][:, self.names.index(name)]
        known = ~np.isnan(values)
        return self.steps[known], values[known]

    @property
    def overhead(self) -> float | None:
        """Share of the time that the monitor took, begin and end included."""
        return self.state["own"] / self.state["seconds"] if self.state and self.state["seconds"] > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for strict JSON: schema 1 of a monitor."""
        return {
            "schema": 1,
            "netspectra": __version__,
            "verb": "monitor",
            "run": self.path.name,
            "options": dict(self.options),
            "state": dict(self.state) if self.state else None,
            "steps": self.steps.tolist(),
            "notes": {name: {"steps": s, "values": _listed(np.array(v))} for name, (s, v) in self.notes.items()},
            "weights": [self._weight(place) for place in range(len(self.weights))],
            "leading_steps": self.leading_steps.tolist(),
            "alarms": [dict(alarm) for alarm in self.alarms],
        }

    def _weight(self, place: int) -> dict[str, Any]:
        name = self.names[place]
        return {
            **self.weights[place],
            "signals": {signal: _listed(values[:, place]) for signal, values in self.signals.items()},
            "leading": _listed(self.leading[:, place]),
            "spectra": [_record(r) for r in self.spectra.get(name, ())],
            "gradients": [_record(r) for r in self.spectra.get(f"{name} (gradient)", ())],
            "updates": [_record(r) for r in self.spectra.get(f"{name} (update)", ())],
        }

    def to_json(self) -> str:
        """`to_dict` as text: strict JSON, ASCII."""
        return strict_json(self.to_dict())

    def to_csv(self) -> str:
        """One row a weight and look; what was not looked for is empty."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", "name", *self.signals])
        for t, step in enumerate(self.steps):
            for w, name in enumerate(self.names):
                row = [float(values[t, w]) for values in self.signals.values()]
                safe = f"'{name}" if name[:1] in "=+-@\t\r" else name
                writer.writerow([int(step), safe, *("" if np.isnan(v) else v for v in row)])
        return out.getvalue()

    def to_html(self, *beside: Timeline) -> str:
        """The self-contained page as text; other runs are drawn beside this one."""
        from netspectra.report.timeline_page import render_timeline

        return render_timeline([self.page_data(), *(other.page_data() for other in beside)])

    def page_data(self) -> dict[str, Any]:
        """What the page draws."""
        from netspectra.report.timeline_page import thinned

        return {"name": self.path.name, **thinned(self.to_dict())}

    def save(self, path: str | Path, *beside: Timeline) -> None:
        """Write to a file, by suffix: ``.html``, ``.json`` or ``.csv``."""
        writers = {".html": lambda: self.to_html(*beside), ".json": self.to_json, ".csv": self.to_csv}
        write_by_suffix(path, writers)

    def rows(self) -> list[tuple[str, ...]]:
        """Of each weight the newest numbers beside the first ones, as text for a table."""
        found = []
        for place, weight in enumerate(self.weights):
            cells = [weight["name"], f"{weight['shape'][0]} x {weight['shape'][1]}"]
            for signal in ("sigma_1", "frobenius_norm", "stable_rank", "gradient_norm"):
                values = self.signals.get(signal, np.full((1, len(self.weights)), np.nan))[:, place]
                known = values[~np.isnan(values)]
                cells.append(f"{known[-1]:.4g}" if len(known) else "-")
                if signal == "sigma_1":
                    cells.append(f"{known[-1] / known[0]:.2f}x" if len(known) and known[0] > 0 else "-")
            open_ = [a["rule"] for a in self.alarms if a["name"] == weight["name"] and a["until"] is None]
            found.append((*cells, " ".join(open_)))
        return found

    def __str__(self) -> str:
        """A table of the newest numbers, and the alarms."""
        head = ("weight", "shape", "sigma_1", "since begin", "norm", "stable rank", "gradient", "alarms")
        rows = [head, *self.rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
                 for r in rows]  # fmt: skip
        told = [f"step {a['step']}: {a['rule']}: {a['name']}: {a['message']}" for a in self.alarms]
        return "\n".join([self._title(), *(line.rstrip() for line in lines), *told])

    def _title(self) -> str:
        if self.state is None:
            return f"{self.path.name}: nothing was looked at yet"
        step = self.state["step"]
        return f"{self.path.name}: step {step}, {'ended' if self.state['ended'] else 'running or killed'}"

    def __repr__(self) -> str:
        """One line."""
        return f"Timeline({self._title()}, {len(self.weights)} weights, {len(self.steps)} looks)"

    def _repr_html_(self) -> str:
        """Show the table in notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def is_monitor(meta: Mapping[str, Any]) -> bool:
    """Whether a run file is a monitor's."""
    return meta.get("verb") == "monitor"


def _listed(values: np.ndarray) -> list[Any]:
    """Nested lists with None for what is no finite number."""
    if values.ndim > 1:
        return [_listed(row) for row in values]
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values.tolist()]


def _record(record: Record) -> dict[str, Any]:
    metrics = {name: float(value) if value.known else None for name, value in record.metrics.items()}
    alpha = record.metrics.get("alpha")
    interval = [alpha.low, alpha.high] if alpha is not None and alpha.known else None
    return {
        "step": record.step,
        "how": record.spectrum.how,
        "values": _listed(record.spectrum.values),
        "metrics": metrics,
        **({"alpha": interval} if interval and None not in interval else {}),
    }
