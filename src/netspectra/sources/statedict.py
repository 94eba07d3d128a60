"""Which of the things that a training run saved are the weights, and what they are called.

A checkpoint is often more than a state dict. The rules, in words:

- names are the keys on the way, joined by dots; a container that stands in several places is searched once;
- optimizers, schedulers, scalers, callbacks, random states and hyper-parameters are training state: their tensors are
  counted, not listed. They are known by their key, wherever it is not below the weights, or by their form;
- where one branch is called ``state_dict``, ``model``, ``module``, ... and nothing but training state and single
  tensors stands beside it, names are relative to it; with two such branches (a model and its average) or none, names
  keep their prefix, so that nothing is called the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from netspectra.sources.guard import GUARD, printable
from netspectra.sources.pickled import Inert, Table, Unreadable

__all__ = ["Found", "find"]

WEIGHTS = frozenset(
    (
        *("state_dict", "model_state_dict", "model_state", "model_dict", "model", "module", "net", "network"),
        *("weights", "params", "parameters", "student", "teacher", "generator", "discriminator"),
        *("ema", "ema_state_dict", "ema_model", "model_ema", "state_dict_ema", "model_ema_state_dict"),
    )
)
TRAINING = re.compile(
    r"(^|_)(optim|optims|optimizer|optimizers|optimiser|opt|scheduler|schedulers|lr_sched|scaler|grad_scaler|amp|"
    r"callbacks|loops|rng|rng_state|rng_states|random_state|hyper_parameters|hparams|datamodule_hyper_parameters)"
    r"(_|$)",
    re.I,
)
MOMENTS = frozenset(("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"))


@dataclass
class Found:
    """What was found.

    Attributes:
        tensors: name and leaf, in the order of the file.
        training: where training state stands, and how many tensors it holds.
        modules: where whole pickled modules stand, and their class.
    """

    tensors: list[tuple[str, Any]] = field(default_factory=list)
    training: list[tuple[str, int]] = field(default_factory=list)
    modules: list[tuple[str, str]] = field(default_factory=list)


def find(root: Any, is_tensor: Callable[[Any], bool]) -> Found:
    """Search what a pickle holds for tensors.

    Raises:
        Unreadable: nested too deeply, too many tensors, two of one name.
    """
    search = _Search(is_tensor)
    paths = list(search.walk(root, (), False))
    names = _names([path for path, _ in paths])
    search.found.tensors = [(name, leaf) for name, (_, leaf) in zip(names, paths, strict=True)]
    return search.found


Path = tuple[str, ...]


class _Search:
    def __init__(self, is_tensor: Callable[[Any], bool]) -> None:
        self.is_tensor = is_tensor
        self.seen: set[int] = set()
        self.found = Found()
        self.count = 0
        self.characters = 0

    def walk(self, value: Any, path: Path, inside: bool) -> Iterator[tuple[Path, Any]]:
        """Every tensor below ``value``, with its path; ``inside`` the weights no key is taken for training state."""
        if self.is_tensor(value):
            self._spend(path)
            yield path, value
            return
        children = _children(value) if id(value) not in self.seen else []
        if not children:
            return
        self.seen.add(id(value))
        if len(path) > GUARD.containers:
            raise Unreadable(f"the file nests containers deeper than {GUARD.containers}")
        if _is_module(children):
            self._spend(path)
            self.found.modules.append((".".join(path), value.kind if isinstance(value, Inert) else "a module"))
            return
        scripted = isinstance(value, Inert) and value.kind.startswith("__torch__.")
        for key, child in children:
            here = (*path, key)
            if not inside and not scripted and self._is_training(key, child):
                self._count(here, child)
            else:
                yield from self.walk(child, here, inside or scripted or key.lower() in WEIGHTS)

    def _spend(self, path: Path) -> None:
        """Count a finding and the characters of its name."""
        self.count += 1
        self.characters += len(path) + sum(map(len, path))
        if self.count > GUARD.tensors or self.characters > GUARD.header_bytes:
            raise Unreadable(f"more than {GUARD.tensors} tensors, or {GUARD.header_bytes} characters in their names")

    def _is_training(self, key: str, child: Any) -> bool:
        if not isinstance(child, Table | list | tuple | Inert) or id(child) in self.seen:
            return False
        if TRAINING.search(key):
            return True
        keys = {name for name, _ in child.pairs if isinstance(name, str)} if isinstance(child, Table) else set()
        return {"state", "param_groups"} <= keys or bool(MOMENTS & keys)

    def _count(self, path: Path, value: Any) -> None:
        count = sum(1 for _ in self._tensors(value))
        if count:
            self._spend(path)
            self.found.training.append((".".join(path), count))

    def _tensors(self, value: Any) -> Iterator[Any]:
        """Every tensor below ``value``, without names and to any depth."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if self.is_tensor(value):
                yield value
            elif id(value) not in self.seen:
                self.seen.add(id(value))
                waiting.extend(child for _, child in _children(value))


def _children(value: Any) -> list[tuple[str, Any]]:
    """The named contents of a container; none for anything else."""
    if isinstance(value, Table):
        return _entries(value.pairs)
    if isinstance(value, list | tuple):
        return [(str(place), item) for place, item in enumerate(value) if _holds(item)]
    if not isinstance(value, Inert):
        return []
    children = _entries(value.pairs or [])
    children += [(str(place), item) for place, item in enumerate(value.items or []) if _holds(item)]
    states = value.state if isinstance(value.state, tuple) and len(value.state) == 2 else (value.state,)
    for state in states:
        children += _entries(state.pairs) if isinstance(state, Table) else []
    return children or (_children(value.args) if isinstance(value.args, tuple | list) else [])


def _holds(item: Any) -> bool:
    return not isinstance(item, str | bytes | int | float | None)


def _entries(pairs: list[tuple[Any, Any]]) -> list[tuple[str, Any]]:
    """Pairs with their keys as texts; of a text that stands twice, the last."""
    found: dict[str, Any] = {}
    for place, (key, value) in enumerate(pairs):
        if type(key) is int and abs(key) < 2**64:
            key = str(key)
        found[key if isinstance(key, str) else f"[{place}]"] = value
    return [(key, value) for key, value in found.items() if _holds(value)]


def _is_module(children: list[tuple[str, Any]]) -> bool:
    return {"_parameters", "_modules"} <= {key for key, _ in children}


# ---- names -------------------------------------------------------------------------------------------------------


def _branch(path: Path) -> Path:
    """The way to the weights: up to the first key that is called so, and further while the next is too."""
    for place, key in enumerate(path[:-1]):
        if key.lower() in WEIGHTS:
            end = place + 1
            while end < len(path) - 1 and path[end].lower() in WEIGHTS:
                end += 1
            return path[:end]
    return ()


def _names(paths: list[Path]) -> list[str]:
    full = [".".join(path) for path in paths]
    branches = {_branch(path) for path in paths} - {()}
    best = min(branches, key=len, default=())
    single = bool(best) and all(branch[: len(best)] == best for branch in branches)
    if single and all(len(path) == 1 or path[: len(best)] == best for path in paths):
        short = [".".join(path[len(best) :]) if path[: len(best)] == best else path[0] for path in paths]
        if len(set(short)) == len(short):
            return short
    if len(set(full)) < len(full):
        twice = Counter(full).most_common(1)[0][0]
        raise Unreadable(f"two tensors are called {printable(twice)}")
    return full
