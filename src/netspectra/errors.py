"""The errors that users see: one line that names the input, what is wrong with it and what to do next."""

from __future__ import annotations

__all__ = ["EnvironmentFailure", "InputRefused", "NetspectraError", "NotDecomposable"]


class NetspectraError(Exception):
    """Base of every error this package raises on purpose; its text is one line for a person to act on."""

    exit_code = 2


class InputRefused(NetspectraError, ValueError):
    """The input is damaged, hostile, unsupported, or does not fit the options (exit code 2)."""


class EnvironmentFailure(NetspectraError, OSError):
    """The machine could not do it: disk full, no memory, no permission (exit code 4)."""

    exit_code = 4


class NotDecomposable(NetspectraError, ValueError):
    """One tensor has no singular values to speak of (NaN or Inf inside, no numbers); the text says why."""
