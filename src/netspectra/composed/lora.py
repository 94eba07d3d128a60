"""Low-rank adapters: two thin factors and a scale, kept as factors.

Layout: PEFT's documentation of its checkpoint format and of ``LoraConfig``: the update of ``PATH.weight`` is
``scale B A`` with ``PATH.lora_A.weight`` (r, in) and ``PATH.lora_B.weight`` (out, r), scale = alpha / r or, rank
stabilized, alpha / sqrt(r) (Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspectra.composed.group import Answer, CompositionRule, Group, floating, is_simple
from netspectra.errors import InputRefused
from netspectra.weight import Factors, Index, Part, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LORA", "Multiplied"]


@dataclass(frozen=True)
class Multiplied:
    """scale B A as one tensor, for whoever asks for it by all means."""

    factors: Factors

    def __call__(self, index: Index = ()) -> Tensor:
        """Multiply out, then select."""
        left, right = self.factors.load()
        found = self.factors.scale * (left.float() @ right.float())
        return found[index] if index else found


def _scale(group: Group, path: str, rank: int) -> tuple[float, tuple[str, ...]]:
    """alpha / r of the adapter of ``path``.

    Raises:
        InputRefused: the adapter's config contradicts the factors, or is no config.
    """
    config = group.config.get("peft")
    if not isinstance(config, dict):
        return 1.0, ("the scale (alpha / r) stands in adapter_config.json, which is not there: taken as 1",)
    if config.get("peft_type", "LORA") != "LORA":
        raise InputRefused(f"how an adapter of type {str(config['peft_type'])[:40]!r} is made is not read")
    r = _setting(config, "rank_pattern", path, config.get("r"))
    if r != rank:
        raise InputRefused(f"adapter_config.json says rank {str(r)[:40]}, the factors have {rank}")
    alpha = _setting(config, "alpha_pattern", path, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < 1e30:
        raise InputRefused("adapter_config.json: lora_alpha is not a number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") is True else rank), ()


def _setting(config: Mapping[str, Any], table: str, path: str, default: Any) -> Any:
    """The first entry of a pattern table that names the path's end, as PEFT looks it up."""
    found = config.get(table) or {}
    if not isinstance(found, dict):
        raise InputRefused(f"adapter_config.json: {table} is not a table")
    for pattern, value in found.items():
        if _names(pattern, path):
            return value
    return default


def _names(pattern: str, path: str) -> bool:
    """Whether a pattern matches the whole path or its end after a dot; expressions that could run long are refused."""
    if re.fullmatch(r"\w+(\.\w+)*", pattern):
        return path == pattern or path.endswith(f".{pattern}")
    if not is_simple(pattern, path):
        raise InputRefused(f"adapter_config.json: {pattern[:60]!r} is no expression, or too involved to be followed")
    return re.match(rf"(.*\.)?({pattern})$", path) is not None


def _pair(group: Group) -> Answer:
    path, adapter = group.base, group.adapter
    if "E" in group.members:
        return "AdaLoRA's diagonal beside the factors is not read"
    transposed = "A" not in group.members and "B" not in group.members
    a, b = ("embedding_A", "embedding_B") if transposed else ("A", "B")
    if a not in group.members or b not in group.members:
        return f"lora_{b if a in group.members else a} is missing"
    A, B = _flat(group.members[a]), _flat(group.members[b])
    if A is None or B is None or A.shape[0] != B.shape[1] or not A.shape[0]:
        return f"factors of shapes {list(group.shape(b))} and {list(group.shape(a))} do not fit"
    scale, notes = _scale(group, path.removeprefix("base_model.model."), A.shape[0])
    if _is_dora(group):
        notes = (*notes, "DoRA: the adapter alone does not tell the effective change, which depends on the base weight")
    factors = Factors(B, A, scale, transposed)
    label = f"[lora{' ' + adapter if adapter not in ('', 'default') else ''}]"
    return group.made(
        a, Multiplied(factors), group.members[a].dtype, name=f"{path}.weight{label}", shape=factors.shape,
        facts={"factors": factors, "notes": notes},
    )  # fmt: skip


def _is_dora(group: Group) -> bool:
    config = group.config.get("peft")
    return "magnitude_vector" in group.members or (isinstance(config, dict) and config.get("use_dora") is True)


def _flat(ref: TensorRef) -> Part | None:
    """The factor as a matrix; of a convolution, every axis but the first flattened."""
    if not floating(ref) or not 2 <= len(ref.shape) <= 5:
        return None
    if len(ref.shape) == 2:
        return Part(ref)
    return Part(ref, (), (ref.shape[0], math.prod(ref.shape[1:])))


LORA = (
    CompositionRule(
        "adapter",
        re.compile(
            r"(?P<base>.+)\.lora_(?P<role>A|B|E|embedding_A|embedding_B|magnitude_vector)"
            r"(\.(?P<adapter>(?!weight$|bias$)[^.]+))?(\.weight)?"
        ),
        ("A", "B", "embedding_A", "embedding_B"), _pair, ("A", "embedding_A", "B", "embedding_B"),
        (".lora_",),
    ),
)  # fmt: skip
