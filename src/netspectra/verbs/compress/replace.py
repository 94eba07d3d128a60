"""Putting fitted forms into a model: for good, or for as long as they are tried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from netspectra.forms import FORMS, Spec
from netspectra.forms.place import names_of, place_
from netspectra.verbs.compress.allocate import Choice

__all__ = ["DENSE", "Key", "Replacement", "fitted", "key_of", "replace_", "tried"]

DENSE = "dense"
Key = tuple[int, str, int]
"""Of a site in one form and size."""


@dataclass(frozen=True, eq=False)
class Replacement:
    """A module to put somewhere.

    Attributes:
        name: dotted name of the place.
        module: what stands there then.
        form: who built it.
        spec: what it is rebuilt from.
    """

    name: str
    module: nn.Module
    form: str
    spec: Spec


def key_of(choice: Choice) -> Key:
    """Under which key its replacements are known."""
    return id(choice.site), choice.form, choice.size


def fitted(choices: Sequence[Choice], known: dict[Key, list[Replacement]]) -> list[Replacement]:
    """The replacements of these choices; ``known`` keeps those that were fitted before."""
    found = []
    for choice in choices:
        if choice.form == DENSE:
            continue
        key = key_of(choice)
        if key not in known:
            form = FORMS[choice.form]
            specs = form.specs(choice.site, choice.size)
            modules = form.fit(choice.site, choice.size)
            known[key] = [Replacement(name, module, choice.form, specs[name]) for name, module in modules.items()]
        found += known[key]
    return found


def replace_(model: nn.Module, replacements: Sequence[Replacement]) -> nn.Module:
    """Put them into the model."""
    for one in replacements:
        place_(model, one.name, one.module, one.form, one.spec)
    return model


@contextmanager
def tried(model: nn.Module, replacements: Sequence[Replacement]) -> Iterator[nn.Module]:
    """The model with the replacements inside the block; afterwards its own modules stand where they stood."""
    originals: Mapping[str, nn.Module] = {one.name: model.get_submodule(one.name) for one in replacements}
    aliases = {name: names_of(model, module) for name, module in originals.items()}
    try:
        yield replace_(model, replacements)
    finally:
        for name, module in originals.items():
            for alias in aliases[name]:
                model.set_submodule(alias, module)
