"""From the JSON of an analysis to the compact data that the page's script reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from netspectra.report.curves import decimate, density, points_for, rounded

__all__ = ["SCENE_DEPTH", "payload", "plain"]

METRIC_DIGITS = 7
DEPTH = 6
SCENE_DEPTH = 8


def payload(
    document: Mapping[str, Any], glossary: Sequence[Mapping[str, str]], geometry: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Everything the page shows: spectra decimated and on shared index grids, metrics by position.

    Args:
        document: the JSON of an analysis (schema 1).
        glossary: entries with name, title, formula, meaning, reference, range.
        geometry: of chosen weights, each as `Geometry.to_dict` gives it.
    """
    weights: Sequence[Mapping[str, Any]] = document.get("weights") or []
    names = _metric_names(weights, glossary)
    grids: dict[tuple[int, ...], int] = {}
    points = points_for(len(weights) + sum(1 for w in weights if w.get("operator")))
    rows = [_row(weight, names, grids, points) for weight in weights]
    return {
        "version": document.get("netspectra"),
        "source": plain(document.get("source") or {}),
        "options": plain(document.get("options") or {}),
        "summary": plain(document.get("summary") or {}),
        "glossary": [{str(k): str(v) for k, v in entry.items()} for entry in glossary],
        "metrics": names,
        "weights": rows,
        "grids": [list(grid) for grid in grids],
        "skipped": [
            [_text(s.get("name")), plain(s.get("shape")), _text(s.get("reason"))] for s in document.get("skipped") or []
        ],
        "geometry": [plain(each, SCENE_DEPTH) for each in geometry],
    }


def plain(value: Any, depth: int = DEPTH) -> Any:
    """``value`` as strict, shallow JSON: non-finite numbers become None, unknown things their text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return rounded(value, METRIC_DIGITS)
    if depth == 0:
        return "…"
    if isinstance(value, Mapping):
        return {str(k): plain(v, depth - 1) for k, v in value.items()}
    if isinstance(value, Sequence | set | frozenset | np.ndarray):
        return [plain(v, depth - 1) for v in value]
    return str(value)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _metric_names(weights: Sequence[Mapping[str, Any]], glossary: Sequence[Mapping[str, str]]) -> list[str]:
    """Names of the metrics that occur: in the order of the glossary, then as they come."""
    found = dict.fromkeys(name for weight in weights for name in weight.get("metrics") or {})
    known = dict.fromkeys(entry["name"] for entry in glossary if "name" in entry)
    return [name for name in known if name in found] + [name for name in found if name not in known]


def _row(
    weight: Mapping[str, Any], names: Sequence[str], grids: dict[tuple[int, ...], int], points: int
) -> dict[str, Any]:
    metrics = weight.get("metrics") or {}
    row: dict[str, Any] = {
        "name": _text(weight.get("name")),
        "kind": _text(weight.get("kind")),
        "shape": plain(weight.get("shape") or []),
        "dtype": _text(weight.get("dtype")),
        "parameters": plain(weight.get("parameters")),
        "spectrum": _spectrum(weight.get("spectrum") or {}, grids, points),
        "metrics": [plain(metrics.get(name)) for name in names],
        "density": density((weight.get("spectrum") or {}).get("values"), _number(metrics.get("mp_edge"))),
    }
    if operator := weight.get("operator"):
        extra = {k: plain(v) for k, v in operator.items() if k not in ("values", "error", "how")}
        row["operator"] = {**_spectrum(operator, grids, points), "extra": extra}
    for key in ("aliases", "verdicts", "notes", "delta", "details"):
        if weight.get(key):
            row[key] = plain(weight[key])
    return row


def _spectrum(spectrum: Mapping[str, Any], grids: dict[tuple[int, ...], int], points: int) -> dict[str, Any]:
    """One curve: its count, the number of its index grid, its values, quartiles and error bound."""
    values = spectrum.get("values")
    sigma = np.array([np.nan if v is None else v for v in ([] if values is None else values)], dtype=float)
    grid, curve = decimate(sigma, points)
    known = sigma[np.isfinite(sigma)]
    quartiles = np.quantile(known, [1, 0.75, 0.5, 0.25, 0]) if known.size else []
    return {
        "how": _text(spectrum.get("how")),
        "count": len(sigma),
        "grid": grids.setdefault(grid, len(grids)),
        "values": curve,
        "quartiles": [rounded(float(q)) for q in quartiles],
        **_error(spectrum.get("error"), sigma),
    }


def _error(error: Any, sigma: np.ndarray) -> dict[str, Any]:
    """The largest bound, and how many values are no larger than their own bound."""
    if error is None:
        return {"error": None}
    bound = np.array([np.nan if e is None else e for e in np.atleast_1d(np.asarray(error, dtype=object))], dtype=float)
    known = bound[np.isfinite(bound)]
    if not known.size:
        return {"error": None}
    drowned = int((sigma <= bound).sum()) if bound.size in (1, sigma.size) else 0
    largest = float(known.max())
    return {"error": rounded(largest) if math.isfinite(largest) else None, "drowned": drowned}
