"""Compare checkpoints: what changed between them, by how much, in which directions, and what that makes of them."""

from netspectra.verbs.compare.compare import CompareOptions, compare
from netspectra.verbs.compare.result import Comparison

__all__ = ["CompareOptions", "Comparison", "compare"]
