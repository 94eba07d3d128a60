"""Checkpoints over several files: the index that says which tensor is in which, as Hugging Face writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from netspectra.sources.guard import GUARD, refuse
from netspectra.sources.remote import AnyPath, ahead

__all__ = ["shards"]


def shards(index: AnyPath, held: Callable[[AnyPath], Iterable[str]]) -> list[AnyPath]:
    """The files that an index names, in the order of their names.

    Args:
        index: a JSON file whose ``weight_map`` leads from tensor names to plain file names.
        held: the names of the tensors in one file.

    Raises:
        InputRefused: no weight_map, a missing file, one outside the folder, a tensor that is not where it should be.
    """
    weight_map = GUARD.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        refuse(index, "has no weight_map")
    if not all(isinstance(name, str) for name in weight_map.values()):
        refuse(index, "the weight_map holds what are no plain file names")
    names = list(dict.fromkeys(weight_map.values()))
    if len(names) > GUARD.shards:
        refuse(index, f"names {len(names)} files, allowed are {GUARD.shards}")
    files = {name: GUARD.inside(index.parent, name) for name in names}
    ahead(list(files.values()))
    for file in files.values():
        if not file.exists():
            refuse(index, f"the shard {file.name} is missing; fetch the checkpoint again")
    tensors = {name: set(held(file)) for name, file in files.items()}
    for tensor, shard in weight_map.items():
        if tensor not in tensors[shard]:
            refuse(index, f"says it is in {shard}, which does not hold it", tensor)
    return [files[name] for name in sorted(files)]
