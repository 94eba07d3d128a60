"""The page of an interpretation: a map of layers by heads, and the token lists of each direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from netspectra.report.page import assembled, framed

__all__ = ["render_interpretation"]

SCRIPTS = ("text.js", "theme.js", "interpretation.js")
LIST = ("side", "sign", "likeness", "sharpness", "p_likeness", "p_sharpness", "p", "coherent", "sharp")


def render_interpretation(document: Mapping[str, Any]) -> str:
    """One complete, self-contained HTML page; the same data give the same bytes, every string is treated as text.

    Args:
        document: `Interpretation.to_dict`.
    """
    body, styles = framed("interpretation.html"), ("report.css", "interpretation.css")
    return assembled(body, SCRIPTS, _payload(document), title="netspectra interpret", styles=styles)


def _payload(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with every word once."""
    words: dict[str, int] = {}
    rows = []
    for d in document["directions"]:
        lists = [
            {
                **{key: _short(one[key]) for key in LIST},
                "words": [words.setdefault(word, len(words)) for word in one["words"]],
                "scores": [round(score, 1) for score in one["scores"]],
            }
            for one in d["lists"]
        ]
        numbers = {key: _short(value) for key, value in d.items() if key != "lists"}
        rows.append({**numbers, "lists": lists})
    kept = {key: document[key] for key in ("source", "options", "notes", "counts", "effect_unit")}
    return {**kept, "directions": rows, "words": list(words)}


def _short(value: Any) -> Any:
    """A number to four digits."""
    if isinstance(value, float):
        return float(f"{value:.3e}")
    return [_short(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
