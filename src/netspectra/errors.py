"""The errors that users see: one line that names the input, what is wrong with it and what to do next."""

from __future__ import annotations

__all__ = ["EnvironmentFailure", "InputRefused", "NetspectraError", "NotDecomposable", "lacks_memory"]


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


# What libraries say, in exceptions of many types, where memory, address space or threads run out.
LACKING = (
    *("allocate memory", "not enough memory", "out of memory", "bad_alloc", "std::bad_alloc", "bad allocation"),
    *("start new thread", "failed to map segment", "resource temporarily unavailable", "unable to allocate"),
)


def lacks_memory(wrong: BaseException) -> bool:
    """Whether an exception means that memory ran out: torch and the loader of libraries have no type for that.

    >>> lacks_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    if isinstance(wrong, MemoryError):
        return True
    text = str(wrong).lower()
    return isinstance(wrong, RuntimeError | OSError | ImportError) and any(sign in text for sign in LACKING)
