"""The HTML report: one self-contained, inert page of an analysis."""

from netspectra.faces.html.page import render

__all__ = ["render"]
