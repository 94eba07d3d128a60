"""Distil: what a teacher uses, a student that starts from it, and a loss and loop to train it."""

from netspectra.verbs.distill.distill import DistillOptions, distill, expressivity
from netspectra.verbs.distill.result import Distillation, Expressivity

__all__ = ["DistillOptions", "Distillation", "Expressivity", "distill", "expressivity"]
