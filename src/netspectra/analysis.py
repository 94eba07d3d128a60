"""All findings on one network, as an object to look at, look into and export."""

from __future__ import annotations

import csv
import html
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from netspectra.aggregate import Aggregate, aggregate
from netspectra.depth import Trend, deviations, trends
from netspectra.errors import InputRefused
from netspectra.findings import META, check
from netspectra.linalg.spectrum import Spectrum
from netspectra.metrics import METRICS
from netspectra.record import LEVELS, OperatorSpectrum, Record, Skipped, Value
from netspectra.runfile import RunFile, skipped_from
from netspectra.verdicts import judge_among
from netspectra.version import __version__
from netspectra.written import strict_json, write_by_suffix

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects as go

__all__ = ["Analysis", "glossary"]


@dataclass(frozen=True, eq=False)
class Analysis:
    """The records of one source, in the order of the source.

    Iterate over it for `Record`s; index it by name (``a["layer.weight"]``) or position.

    Attributes:
        records: one a weight.
        skipped: tensors without findings, and why.
        source: what was analysed: path, format, fingerprint, parameters, tensors.
        options: what was asked for.
        expected: how many weights there are; more than records + skipped weights if the job was cut short.
    """

    records: tuple[Record, ...]
    skipped: tuple[Skipped, ...]
    source: Mapping[str, Any]
    options: Mapping[str, Any]
    expected: int
    _by_name: dict[str, Record] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Compare each weight with its siblings; make names and aliases known."""
        object.__setattr__(self, "records", judge_among(self.records, deviations(self.records)))
        for record in self.records:
            for name in (record.name, *record.aliases):
                self._by_name.setdefault(name, record)

    @classmethod
    def from_run(cls, run: RunFile) -> Analysis:
        """Collect what a run file holds; of a monitor's file, each weight's last full spectrum."""
        meta = check(run.meta, META, f"{run.path}: the description of the job")
        most = meta["weights"] if meta.get("verb") == "monitor" else math.inf  # beyond: gradients and updates
        newest = {position: finding for _, position, finding in run.rows() if position < most}
        found = [finding for _, finding in sorted(newest.items(), key=lambda item: item[0])]
        return cls(
            tuple(r for r in found if isinstance(r, Record)),
            (*map(skipped_from, meta["skipped"]), *(s for s in found if isinstance(s, Skipped))),
            meta["source"],
            meta["options"],
            meta["weights"],
        )

    def __iter__(self) -> Iterator[Record]:
        """Iterate over the records."""
        return iter(self.records)

    def __len__(self) -> int:
        """Count the records."""
        return len(self.records)

    def __getitem__(self, key: str | int) -> Record:
        """Find a record by the weight's name, one of its aliases, or position."""
        if isinstance(key, int):
            return self.records[key]
        if key in self._by_name:
            return self._by_name[key]
        for skipped in self.skipped:
            if skipped.name == key:
                raise KeyError(f"{key!r} was skipped: {skipped.reason}")
        import difflib

        near = difflib.get_close_matches(key, self._by_name, n=3, cutoff=0.3)
        raise KeyError(f"no weight {key!r}" + (f"; near are {', '.join(map(repr, near))}" if near else ""))

    @property
    def metric_names(self) -> list[str]:
        """The metrics that any record has, in the order of the registry."""
        return list(dict.fromkeys(name for record in self.records for name in record.metrics))

    @cached_property
    def aggregates(self) -> dict[str, Aggregate]:
        """Each metric over all weights; unknown values are counted, not averaged in."""
        return {name: aggregate(self.records, name) for name in self.metric_names}

    @cached_property
    def trends(self) -> list[Trend]:
        """How norms and ranks change with depth, for weights that differ by their numbers only."""
        return trends(self.records)

    def summary(self) -> dict[str, Any]:
        """What can be said of all weights together."""
        kinds: dict[str, dict[str, int]] = {}
        for record in self.records:
            kind = kinds.setdefault(record.kind, {"weights": 0, "parameters": 0})
            kind["weights"] += 1
            kind["parameters"] += record.parameters
        levels = Counter(record.level for record in self.records)
        return {
            "weights": len(self.records),
            "expected": self.expected,
            "parameters": sum(record.parameters for record in self.records),
            "skipped": len(self.skipped),
            "kinds": kinds,
            "levels": {level: levels[level] for level in LEVELS},
            "verdicts": dict(sorted(Counter(v.rule for record in self.records for v in record.verdicts).items())),
            "metrics": {name: _strict(found.to_dict()) for name, found in self.aggregates.items()},
            "trends": [asdict(trend) for trend in self.trends],
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for strict JSON: schema 1 of the surface."""
        return {
            "schema": 1,
            "netspectra": __version__,
            "source": dict(self.source),
            "options": dict(self.options),
            "weights": [_weight(record) for record in self.records],
            "skipped": [asdict(s) for s in self.skipped],
            "summary": self.summary(),
        }

    def to_json(self) -> str:
        """`to_dict` as text: strict JSON, ASCII, the same bytes for the same findings."""
        return strict_json(self.to_dict())

    def to_csv(self) -> str:
        """One row a weight; a text that a spreadsheet would take for a formula gets an apostrophe in front."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        names = self.metric_names
        writer.writerow(["name", "kind", "rows", "columns", "dtype", "parameters", *names, "verdicts"])
        for record in self.records:
            numbers = [_number(record.metrics.get(name)) for name in names]
            head = [_cell(record.name), record.kind, *record.shape, record.dtype, record.parameters]
            writer.writerow([*head, *numbers, " ".join(verdict.rule for verdict in record.verdicts)])
        return out.getvalue()

    def to_html(self, geometry: Sequence[Any] = ()) -> str:
        """The self-contained report as text, with the geometries that `netspectra.geometry` gave of some weights."""
        from netspectra.report import render

        seen = [each.to_dict() for each in geometry]
        return render(self.to_dict(), glossary(self.metric_names), seen)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a weight, metrics as columns (needs ``pip install netspectra[pandas]``)."""
        try:
            import pandas
        except ImportError:
            raise InputRefused("to_pandas needs pandas: pip install 'netspectra[pandas]'") from None
        rows = [
            {
                "kind": record.kind,
                "rows": record.shape[0],
                "columns": record.shape[1],
                "dtype": record.dtype,
                "parameters": record.parameters,
                **{name: float(value) for name, value in record.metrics.items()},
                "verdicts": " ".join(verdict.rule for verdict in record.verdicts),
            }
            for record in self.records
        ]
        return pandas.DataFrame(rows, index=pandas.Index([record.name for record in self.records], name="name"))

    def plot(
        self, names: str | Sequence[str] | None = None, what: str = "spectra", *, save: str | Path | None = None
    ) -> go.Figure:
        """Draw the findings as a plotly figure.

        Args:
            names: which weights; by default all.
            what: ``spectra``, singular values against their index on logarithmic axes (at most 40 weights, evenly
                spread over the depth); ``reading``, one weight beside noise and beside a power law; or the name of a
                metric, against the depth, a line a kind.
            save: also write the picture: ``.html``, or ``.png``, ``.svg``, ``.pdf`` with ``netspectra[image]``.
        """
        from netspectra.figures import bulk_and_tail, depth, save_figure, spectra

        wanted = [names] if isinstance(names, str) else names
        records = list(self.records) if wanted is None else [self[name] for name in wanted]
        if what == "spectra":
            figure = spectra(records)
        elif what == "reading":
            if len(records) != 1:
                raise InputRefused(f"a reading is of one weight: name one of the {len(records)}")
            figure = bulk_and_tail(records[0])
        else:
            figure = depth(records, what)
        if save is not None:
            save_figure(figure, Path(save))
        return figure

    def save(self, path: str | Path, *, geometry: Sequence[Any] = ()) -> None:
        """Write the findings to a file, by suffix: ``.html``, ``.json`` or ``.csv``. Never half a file.

        Args:
            path: where to.
            geometry: what `netspectra.geometry` gave, for a section of the report of its own.
        """
        writers = {".html": lambda: self.to_html(geometry), ".json": self.to_json, ".csv": self.to_csv}
        suffix = Path(path).suffix.lower()
        if geometry and suffix in writers and suffix != ".html":
            raise InputRefused(f"{path}: only the report, .html, has a place for geometry")
        write_by_suffix(path, writers)

    def __repr__(self) -> str:
        """Say what was analysed in one line."""
        return f"Analysis({self.source['path']!r}: {len(self.records)} weights, {len(self.skipped)} skipped)"

    def _repr_html_(self) -> str:
        """Show a table in notebooks."""
        shown = [name for name in NOTEBOOK_COLUMNS if name in self.metric_names]
        head = "".join(f"<th>{html.escape(METRICS[name].title)}</th>" for name in shown)
        rows = "".join(
            f"<tr><td><code>{html.escape(record.name)}</code></td><td>{html.escape(record.kind)}</td>"
            f"<td>{record.shape[0]} × {record.shape[1]}</td>"
            + "".join(f"<td>{_short(record.metrics.get(name))}</td>" for name in shown)
            + f"<td>{html.escape(', '.join(v.rule for v in record.verdicts))}</td></tr>"
            for record in self.records[:NOTEBOOK_ROWS]
        )
        more = len(self.records) - NOTEBOOK_ROWS
        tail = f"<p>... and {more} more; all in <code>to_pandas()</code></p>" if more > 0 else ""
        title = f"{html.escape(str(self.source['path']))}: {len(self.records)} weights"
        table = f"<tr><th>weight</th><th>kind</th><th>shape</th>{head}<th>verdicts</th></tr>{rows}"
        return f"<p><b>{title}</b></p><table>{table}</table>{tail}"


NOTEBOOK_ROWS = 60
NOTEBOOK_COLUMNS = ("sigma_max", "sigma_min", "condition_number", "stable_rank", "effective_rank", "k90")


def glossary(names: Sequence[str]) -> list[dict[str, str]]:
    """What each of these metrics means, for reports and documentation."""
    entries = []
    for name in names:
        if name in METRICS:
            entries.append(METRICS[name].entry())
        elif name.startswith(RELATIVE_ERROR):
            k = name.removeprefix(RELATIVE_ERROR)
            entries.append(
                {
                    "name": name,
                    "title": f"Relative error of rank {k}",
                    "formula": f"‖W − W_{k}‖_F / ‖W‖_F = √(Σ_{{i>{k}}} λ / Σ λ)",
                    "meaning": f"What the best approximation of rank {k} misses; an untrained layer is not low-rank.",
                    "reference": "Eckart & Young 1936, Psychometrika 1",
                    "range": "0 ... 1",
                    "when": "--rank",
                }
            )
    return entries


RELATIVE_ERROR = "relative_error_"


def _weight(record: Record) -> dict[str, Any]:
    remarks = [f"{name}: {value.note}" for name, value in record.metrics.items() if value.note]
    return {
        "name": record.name,
        "kind": record.kind,
        "shape": list(record.shape),
        "dtype": record.dtype,
        "aliases": list(record.aliases),
        "parameters": record.parameters,
        "spectrum": _spectrum(record.spectrum),
        **({"operator": _operator(record.operator)} if record.operator else {}),
        "metrics": {name: _plain(name, value) for name, value in record.metrics.items()},
        "details": {
            name: _strict(value.detail)
            for name, value in record.metrics.items()
            if value.detail and not _has_interval(name)
        },
        "verdicts": [
            {"rule": v.rule, "level": v.level, "message": v.message, "evidence": _strict(v.evidence)}
            for v in record.verdicts
        ],
        "notes": [*record.notes, *remarks],
    }


def _spectrum(s: Spectrum) -> dict[str, Any]:
    error = _rounded_up(s.error)
    same = len(error) == 0 or bool(np.all(error == error[0]))
    return {
        "how": s.how,
        "error": (float(error[0]) if len(error) else 0.0) if same else error.tolist(),
        "values": s.values.tolist(),
    }


def _operator(operator: OperatorSpectrum) -> dict[str, Any]:
    upper = operator.upper if math.isfinite(operator.upper) else None
    return {**_spectrum(operator.spectrum), "grid": list(operator.grid), "upper": upper, "note": operator.note}


def _rounded_up(error: np.ndarray) -> np.ndarray:
    """Bounds to two significant digits, never below the bound itself."""
    with np.errstate(divide="ignore"):
        unit = np.where(error > 0, 10.0 ** (np.floor(np.log10(np.where(error > 0, error, 1.0))) - 1), 1.0)
    rounded = np.ceil(error / unit) * unit
    return np.array([float(f"{value:.12g}") for value in np.where(rounded < error, error, rounded)])


def _number(value: Value | None) -> float | int | None:
    """A float for JSON and CSV: whole numbers as such, unknown ones as nothing."""
    if value is None or not value.known:
        return None
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)


def _plain(name: str, value: Value) -> Any:
    """A number; for the metrics that are nothing without their interval an object with it."""
    number = _number(value)
    if not _has_interval(name):
        return number
    return {"value": number, "low": value.low, "high": value.high, **_strict(value.detail)}


def _has_interval(name: str) -> bool:
    return name in METRICS and METRICS[name].interval


def _strict(data: Any) -> Any:
    """Replace what strict JSON cannot say by null."""
    if isinstance(data, Mapping):
        return {str(key): _strict(item) for key, item in data.items()}
    if isinstance(data, list | tuple):
        return [_strict(item) for item in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def _cell(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _short(value: Value | None) -> str:
    return "-" if value is None or not value.known else f"{float(value):.4g}"
