"""Drift: whether rows, embeddings or activations still come from where a reference came from, and since when."""

from netspectra.verbs.drift.options import DriftOptions
from netspectra.verbs.drift.reference import Reference, fitted, restored
from netspectra.verbs.drift.result import ColumnShift, DirectionShift, LayerDrift, StatisticDrift, WindowDrift
from netspectra.verbs.drift.sequential import Evidence, Sequential

__all__ = [
    "ColumnShift",
    "DirectionShift",
    "DriftOptions",
    "Evidence",
    "LayerDrift",
    "Reference",
    "Sequential",
    "StatisticDrift",
    "WindowDrift",
    "fitted",
    "restored",
]
