"""Pipelines of diffusers: a folder whose ``model_index.json`` names the parts, each a folder with a model of its own.

Every part is read by the format that claims it; its tensors get the part's name in front (``unet.conv_in.weight``).
Parts without weights (schedulers, tokenizers) are passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from netspectra.sources import FORMATS, Format
from netspectra.sources.guard import GUARD, refuse
from netspectra.sources.remote import AnyPath
from netspectra.weight import TensorRef

INDEX = "model_index.json"


class Diffusers:
    """The reader."""

    name = "diffusers"
    extra: str | None = None
    needs: tuple[str, ...] = ()

    def claims(self, path: AnyPath) -> bool:
        """A folder that holds a pipeline's index."""
        return path.is_dir() and (path / INDEX).is_file()

    def files(self, path: AnyPath) -> list[AnyPath]:
        """The files of every part."""
        return [file for part, reader in self._parts(path).items() for file in reader.files(path / part)]

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every part's tensors, in the order of the index."""
        for part, reader in self._parts(path).items():
            for ref in reader.tensors(path / part):
                yield replace(ref, name=f"{part}.{ref.name}")

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """Nothing: what one part's configuration says does not hold for another's."""
        return {}

    def _parts(self, path: AnyPath) -> dict[str, Format]:
        found: dict[str, Format] = {}
        for part, entry in GUARD.read_json(GUARD.inside(path, INDEX)).items():
            is_part = isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)
            if not is_part or not (path / GUARD.inside(path, part).name).is_dir():
                continue
            readers = (reader for reader in FORMATS.values() if reader is not self and reader.claims(path / part))
            reader = next(readers, None)
            if reader is not None:
                found[part] = reader
        if not found:
            refuse(path, "none of the pipeline's parts holds weights in a known format")
        return found


FORMATS.add(Diffusers.name, Diffusers(), __name__)
