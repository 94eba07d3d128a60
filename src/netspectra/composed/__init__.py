"""From the tensors a checkpoint stores to those its modules compute with: a table of rules over groups of names.

Some checkpoints hold one matrix in several tensors: a direction and its length, codes and their scales, two factors.
Each rule knows one such layout and makes one tensor of a group: its shape is known at once, its numbers are composed
when asked for. Formats know no layers, rules know no files: rules see names, shapes and loaders. A group that a rule
recognises but cannot understand becomes one tensor with a ``problem``, never numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from netspectra.composed.bitsandbytes import BITSANDBYTES
from netspectra.composed.coded import CODED
from netspectra.composed.group import CompositionRule, Group, Located
from netspectra.composed.lora import LORA
from netspectra.composed.normed import NORMED
from netspectra.composed.packed import PACKED
from netspectra.composed.scaled import SCALED
from netspectra.errors import InputRefused
from netspectra.weight import TensorRef

__all__ = ["COMPOSITIONS", "CompositionRule", "Group", "compose"]

COMPOSITIONS: tuple[CompositionRule, ...] = (*BITSANDBYTES, *CODED, *PACKED, *SCALED, *NORMED, *LORA)


def compose(refs: Iterable[TensorRef], config: Mapping[str, Any], origin: str = "") -> tuple[TensorRef, ...]:
    """Replace every group that a rule claims by the tensor it makes, in the place of its first member.

    Args:
        refs: what is stored.
        config: the checkpoint's.
        origin: what was opened, for the refusals of numbers that turn out not to fit when they are loaded.
    """
    stored = found = tuple(refs)
    names = "\n".join(ref.name for ref in found)
    for rule in COMPOSITIONS:
        if any(mark in names for mark in rule.marks):
            found = _applied(rule, found, config)
    if not origin or found is stored:
        return found
    own = {id(ref) for ref in stored}
    return tuple(
        ref if id(ref) in own or ref.problem else replace(ref, load=Located(origin, ref.load)) for ref in found
    )


def _applied(rule: CompositionRule, refs: tuple[TensorRef, ...], config: Mapping[str, Any]) -> tuple[TensorRef, ...]:
    groups: dict[tuple[str, str], dict[str, TensorRef]] = {}
    for ref in refs:
        match = rule.pattern.fullmatch(ref.name)
        if match:
            key = (match["base"], match.groupdict().get("adapter") or "")
            groups.setdefault(key, {})[match["role"] or ""] = ref
    names = {ref.name for ref in refs}
    first: dict[int, TensorRef] = {}
    gone: set[int] = set()
    for (base, adapter), members in groups.items():
        if not any(role in members for role in rule.needs):
            continue
        group = Group(base, members, config, adapter)
        made = _made(rule, group)
        if made is None:
            continue
        if made.name in names and made.name not in {member.name for member in members.values()}:
            made = replace(made, name=rule.first(group).name,
                           problem=f"a piece of {made.name}, which is stored whole too")  # fmt: skip
        gone.update(id(member) for member in members.values())
        first[id(next(iter(members.values())))] = made
    return tuple(first.get(id(ref), ref) for ref in refs if id(ref) in first or id(ref) not in gone)


def _made(rule: CompositionRule, group: Group) -> TensorRef | None:
    """What the rule makes of a group; where it cannot, the reason stands in one tensor's ``problem``."""
    unread = next((member for member in group.members.values() if member.problem), None)
    try:
        answer = rule.compose(group) if unread is None else f"{unread.name}: {unread.problem}"
    except InputRefused as refused:
        answer = str(refused)
    if not isinstance(answer, str):
        return answer
    main = rule.first(group)
    return TensorRef(main.name, main.shape, main.dtype, main.load, main.facts, problem=f"{rule.name}: {answer}")
