"""What a file of a reference may hold, field by field: it may come from a stranger, and is believed only after this."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from netspectra.errors import InputRefused
from netspectra.verbs.drift.options import DriftOptions

__all__ = ["checked"]

ARRAYS = ("centre", "scale", "V", "variances", "along", "beside", "whole")


def checked(arrays: Mapping[str, Tensor], about: Mapping[str, Any], what: str) -> Sequence[Mapping[str, Any]]:
    """The descriptions of the layers, if all fits together."""
    if about.get("schema") != 1:
        raise InputRefused(
            f"{what}: is a reference of schema {about.get('schema')!r}, this version reads 1: make it anew"
        )
    options: Any = about.get("options")
    layers: Any = about.get("layers")
    fine = (
        set(about) == {"schema", "rows", "options", "notes", "model", "layers"}
        and _whole(about["rows"])
        and isinstance(about["model"], str)
        and _texts(about["notes"])
        and isinstance(options, dict)
        and set(options) == {field.name for field in fields(DriftOptions)}
        and all(map(_whole, options.values()))
        and isinstance(layers, list)
        and len(layers) > 0
        and all(map(_layer, layers))
        and len({layer["name"] for layer in layers}) == len(layers)
        and set(arrays) == {f"{i}|{name}" for i in range(len(layers)) for name in ARRAYS}
    )
    if not fine or len({arrays[f"{i}|whole"].shape for i in range(len(layers))}) != 1:
        raise InputRefused(f"{what}: is not as netspectra writes it: damaged? Make the reference anew")
    for i, layer in enumerate(layers):
        if not _fits({name: arrays[f"{i}|{name}"] for name in ARRAYS}, len(layer["columns"])):
            raise InputRefused(f"{what}: layer {i} is not as netspectra writes it: damaged? Make the reference anew")
    return layers


def _layer(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"name", "columns", "total", "sketched"}
        and isinstance(value["name"], str)
        and _texts(value["columns"])
        and isinstance(value["total"], float)
        and 0 <= value["total"] < math.inf
        and isinstance(value["sketched"], bool)
    )


def _fits(of: Mapping[str, Tensor], columns: int) -> bool:
    """Whether shapes and numbers of one layer agree."""
    if of["V"].dim() != 2 or of["along"].dim() != 2:
        return False
    (n, k), m = of["V"].shape, len(of["along"])
    shapes = {"centre": (n,), "scale": (n,), "variances": (k,), "along": (m, k), "whole": (m,)}
    return (
        n >= k > 0
        and m > 1
        and columns in (0, n)
        and all(tuple(of[name].shape) == shape for name, shape in shapes.items())
        and tuple(of["beside"].shape) in ((0,), (m,))
        and all(t.is_floating_point() and bool(torch.isfinite(t).all()) for t in of.values())
        and bool((of["scale"] > 0).all())
        and bool((of["variances"] >= 0).all())
    )


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
