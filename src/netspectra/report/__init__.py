"""The self-contained HTML report: it sees plain data and the glossary, and nothing of how they came about."""

from netspectra.report.page import render

__all__ = ["render"]
