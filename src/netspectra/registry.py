"""One file dropped into a folder is one plug-in, found at the first look-up.

Metrics, file formats and compression methods are all registered this way: a module in the folder decorates what it
offers, nothing else in the project names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

__all__ = ["Registry"]


class Registry(Mapping[str, T]):
    """A mapping from name to plug-in that imports every module of one package before its first answer.

    Order: the modules named first, then the others by name; entries as they stand in the file, whatever was imported
    first.

    >>> from netspectra.metrics import METRICS
    >>> "stable_rank" in METRICS
    True
    """

    def __init__(self, package: str, what: str, *, first: Sequence[str] = ()) -> None:
        """Describe the folder (a package name), what one entry is called in messages, which modules come first."""
        self._first = tuple(f"{package}.{module}" for module in first)
        self._package = package
        self._what = what
        self._entries: dict[str, T] = {}
        self._modules: dict[str, str] = {}
        self._complete = False

    def add(self, name: str, entry: T, module: str) -> None:
        """Register ``entry`` of ``module``; a name can be taken once."""
        if name in self._entries:
            raise ValueError(f"{self._what} {name!r} is registered twice")
        self._entries[name] = entry
        self._modules[name] = module

    def _discover(self) -> dict[str, T]:
        if not self._complete:
            package = importlib.import_module(self._package)
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda module: module.name):
                importlib.import_module(f"{self._package}.{module.name}")
            self._entries = {name: self._entries[name] for name in sorted(self._entries, key=self._place)}
            self._complete = True
        return self._entries

    def _place(self, name: str) -> tuple[int, str]:
        module = self._modules[name]
        return (self._first.index(module) if module in self._first else len(self._first)), module

    def __getitem__(self, name: str) -> T:
        """Return the entry, or raise a KeyError that lists the names there are."""
        entries = self._discover()
        if name not in entries:
            raise KeyError(f"unknown {self._what} {name!r}; there are {', '.join(entries)}")
        return entries[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._discover())

    def __len__(self) -> int:
        """Count the entries."""
        return len(self._discover())
