"""Read: what the singular directions of attention heads and MLPs say in tokens, and which of it is no accident."""

from netspectra.verbs.interpret.interpret import InterpretOptions, interpret
from netspectra.verbs.interpret.result import Interpretation

__all__ = ["InterpretOptions", "Interpretation", "interpret"]
