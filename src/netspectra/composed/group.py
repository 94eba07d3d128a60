"""Several tensors of one name: what a rule of the table sees, and how it answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from re import Pattern
from typing import TYPE_CHECKING, Any

from netspectra.errors import InputRefused
from netspectra.weight import Index, Loader, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Answer", "CompositionRule", "Group", "Located", "floating", "is_simple"]

LIMIT = 512  # longest name and pattern that are compared by regular expression


@dataclass(frozen=True)
class Group:
    """Tensors that a rule's pattern gives the same ``base``.

    Attributes:
        base: what they have in common.
        members: by role, as the pattern names it; the whole tensor's role is most often the empty text.
        config: the checkpoint's ``config.json``; under ``peft`` its ``adapter_config.json``.
        adapter: the name of the adapter they belong to, where the pattern knows one.
    """

    base: str
    members: Mapping[str, TensorRef]
    config: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = ""

    def shape(self, role: str) -> tuple[int, ...]:
        """Shape of a member."""
        return self.members[role].shape

    def load(self, role: str) -> Loader | None:
        """Loader of a member, or None where the group has none."""
        found = self.members.get(role)
        return None if found is None else found.load

    @property
    def quantization(self) -> Mapping[str, Any]:
        """``quantization_config`` of the config (or its older name), empty where there is none."""
        for name in ("quantization_config", "compression_config"):
            found = self.config.get(name)
            if isinstance(found, dict):
                return found
        return {}

    def made(self, main: str, load: Loader, stored: str, **changed: Any) -> TensorRef:
        """The one tensor these make: float32, or float64 where a floating member is; facts are those of ``main``."""
        ref = self.members[main]
        wide = any(member.dtype == "float64" for member in self.members.values())
        facts = {key: value for key, value in ref.facts.items() if key != "buffer"}
        identities = tuple(member.identity for member in self.members.values())
        return TensorRef(
            changed.get("name", self.base),
            changed.get("shape", ref.shape),
            "float64" if wide else "float32",
            load,
            {**facts, **changed.get("facts", {})},
            None if None in identities else (stored, *identities),
            stored=stored,
        )


@dataclass(frozen=True)
class Located:
    """A loader of a composed tensor whose refusals begin with what was opened; a `netspectra.weight.Loader`.

    What a rule finds out only from the numbers (a group number beyond the scales) it can tell of no file.
    """

    origin: str
    load: Loader

    def __call__(self, index: Index = ()) -> Tensor:
        """Load, or say where it failed."""
        try:
            return self.load(index)
        except InputRefused as refusal:
            if str(refusal).startswith(self.origin):
                raise
            raise InputRefused(f"{self.origin}: {refusal}") from None


# A tensor; the reason why the group makes none; or None: not mine.
Answer = TensorRef | str | None


@dataclass(frozen=True)
class CompositionRule:
    """A row of the table.

    Attributes:
        name: for people.
        pattern: matches whole tensor names, with groups ``base`` and ``role``, perhaps ``adapter``.
        needs: a group is looked at only when it has one of these roles.
        compose: gives the tensor that a group makes.
        main: roles, first that is there: whose shape a problem is told of.
        marks: texts of which a name of a needed role holds one; where no name does, the pattern is not tried.
    """

    name: str
    pattern: Pattern[str]
    needs: tuple[str, ...]
    compose: Callable[[Group], Answer]
    main: tuple[str, ...]
    marks: tuple[str, ...]

    def first(self, group: Group) -> TensorRef:
        """The member that stands for the group."""
        roles = (*(role for role in self.main if role in group.members), *group.members)
        return group.members[roles[0]]


def floating(ref: TensorRef) -> bool:
    """Whether its numbers are numbers."""
    return ref.dtype.startswith(("float", "bfloat"))


def is_simple(pattern: str, name: str) -> bool:
    """Whether a stranger's pattern is an expression that cannot run long on a name, nor fail.

    >>> is_simple(r".*attn\\.q_proj$", "layers.0.attn.q_proj"), is_simple("(a+)+$", "aaaa"), is_simple("(", "a")
    (True, False, False)
    """
    nested = re.search(r"\(\?|\\[0-9]|[)\]}*+?][*+{]|\)\?", pattern)
    if nested or len(re.findall(r"[*+{]", pattern)) > 2 or max(len(pattern), len(name)) > LIMIT:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
