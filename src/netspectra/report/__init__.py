"""The self-contained HTML report: it sees plain data and the glossary, and nothing of how they came about."""

from netspectra.report.geometry import render_geometry
from netspectra.report.page import render

__all__ = ["render", "render_geometry"]
