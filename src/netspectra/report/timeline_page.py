"""The page of a training: curves, spectra against time and alarms, of one run or several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from netspectra.report.curves import index_grid, rounded
from netspectra.report.page import assembled, asset, heatmap_styles
from netspectra.report.payload import plain

__all__ = ["render_timeline", "thinned"]

SCRIPTS = ("text.js", "theme.js", "plots.js", "timeline.js")
NUMBERS = 250_000  # of curves, on a page
FEWEST, MOST = 60, 800  # points of a curve
VALUES = 64  # of a spectrum, on a heat map
SPECTRA = 150  # of a weight


def render_timeline(runs: Sequence[Mapping[str, Any]], *, live: bool = False) -> str:
    """One complete HTML page; every string of the runs is treated as text.

    Args:
        runs: as `thinned` gives them, each with a ``name``; the first one is the one asked for.
        live: the page asks its server for newer data every other second.
    """
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs()
    data = {"live": live, "runs": [plain(run, 8) for run in runs]}
    styles, attributes = ("report.css", "timeline.css"), heatmap_styles(library)
    return assembled(
        asset("timeline.html"), SCRIPTS, data, styles=styles, library=library, attributes=attributes, live=live
    )


def thinned(document: Mapping[str, Any]) -> dict[str, Any]:
    """A timeline's JSON with as many points as a page can show, the first and the last among them."""
    weights = document["weights"]
    per_look = max(1, sum(len(weight["signals"]) for weight in weights))
    points = int(np.clip(NUMBERS // per_look, FEWEST, MOST))
    cheap = _even(len(document["steps"]), points)
    width = max((len(row) for weight in weights for row in weight["leading"]), default=1)
    leading = _even(len(document["leading_steps"]), int(np.clip(NUMBERS // max(1, len(weights) * width), FEWEST, 400)))
    return {
        **{key: document[key] for key in ("netspectra", "options", "state", "alarms", "notes")},
        "steps": [document["steps"][i] for i in cheap],
        "leading_steps": [document["leading_steps"][i] for i in leading],
        "weights": [_weight(weight, cheap, leading) for weight in weights],
    }


def _weight(weight: Mapping[str, Any], cheap: Sequence[int], leading: Sequence[int]) -> dict[str, Any]:
    signals = {name: [_short(values[i]) for i in cheap] for name, values in weight["signals"].items()}
    rows = [weight["leading"][i] for i in leading]
    return {
        **{key: weight[key] for key in ("name", "kind", "shape")},
        "signals": signals,
        "leading": [[_short(v) for v in row] for row in rows if any(v is not None for v in row)],
        "leading_at": [place for place, row in enumerate(rows) if any(v is not None for v in row)],
        **{what: _spectra(weight[what]) for what in ("spectra", "gradients", "updates")},
    }


def _spectra(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    kept = [found[i] for i in _even(len(found), SPECTRA)]
    return [
        {
            "step": record["step"],
            "at": [i + 1 for i in index_grid(len(record["values"]), VALUES)],
            "values": [_short(record["values"][i]) for i in index_grid(len(record["values"]), VALUES)],
            "metrics": {name: _short(value) for name, value in record["metrics"].items()},
            **({"alpha": record["alpha"]} if "alpha" in record else {}),
        }
        for record in kept
    ]


def _even(count: int, points: int) -> list[int]:
    if count <= points:
        return list(range(count))
    return sorted(set(np.linspace(0, count - 1, points).round().astype(int).tolist()))


def _short(value: float | None) -> float | int | None:
    return None if value is None else rounded(value, 4)
