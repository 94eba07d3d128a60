"""Putting replacements into a model, and finding them there again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from netspectra.errors import InputRefused
from netspectra.forms import FORMS, Spec

__all__ = ["Placed", "link_", "names_of", "place_", "placed", "rebuild_"]

MARK = "_netspectra_form"


@dataclass(frozen=True)
class Placed:
    """A replacement that stands in a model.

    Attributes:
        module: dotted name.
        form: which form built it.
        spec: what `netspectra.forms.Form.empty` rebuilds it from.
    """

    module: str
    form: str
    spec: Spec

    def to_dict(self) -> dict[str, Any]:
        """Plain data, one entry of ``netspectra.json``."""
        return {"module": self.module, "form": self.form, "spec": self.spec}


def names_of(model: nn.Module, module: nn.Module) -> list[str]:
    """Every name under which a module stands in a model (more than one when it is shared)."""
    return [name for name, child in model.named_modules(remove_duplicate=False) if child is module]


def place_(model: nn.Module, name: str, replacement: nn.Module, form: str, spec: Spec) -> None:
    """Put a replacement where ``name`` stands, under all its names, and mark it, so that `placed` finds it.

    Raises:
        InputRefused: there is no such module, or it is the model itself.
    """
    try:
        original = model.get_submodule(name)
    except AttributeError:
        raise InputRefused(f"{name}: the model has no such module; is this the model the plan was made for?") from None
    if not name:
        raise InputRefused("the whole model is one layer: wrap it, nn.Sequential(layer), so that it can be replaced")
    replacement.train(original.training)
    setattr(replacement, MARK, {"form": form, "spec": spec})
    for alias in names_of(model, original):
        model.set_submodule(alias, replacement)


def placed(model: nn.Module) -> list[Placed]:
    """The replacements in a model, in the order of its modules; shared ones once, under their first name."""
    found = []
    for name, module in model.named_modules():
        mark = module.__dict__.get(MARK)
        if mark is not None:
            found.append(Placed(name, mark["form"], dict(mark["spec"])))
    return found


def rebuild_(model: nn.Module, replacements: list[Placed]) -> nn.Module:
    """Give an original model the structure of a compressed one; its replaced layers hold no meaningful numbers yet."""
    for one in replacements:
        original = model.get_submodule(one.module)
        place_(model, one.module, FORMS[one.form].empty(original, one.spec), one.form, one.spec)
    link_(model, replacements)
    return model


def link_(model: nn.Module, replacements: list[Placed]) -> None:
    """Let replaced layers share again what their specs say they share; all of a model's replacements at once.

    Raises:
        ValueError: layers that cannot share.
    """
    for name in dict.fromkeys(one.form for one in replacements):
        link = getattr(FORMS[name], "link_", None)  # only forms whose modules share something have it
        if link is not None:
            link(model, {one.module: one.spec for one in replacements if one.form == name})
