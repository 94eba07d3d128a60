"""Whether data, embeddings or activations still come from where a reference came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspectra.sources.guard import GUARD, refuse
from netspectra.verbs.drift import DriftOptions, Evidence, Reference, Sequential, WindowDrift, fitted, restored
from netspectra.written import write_atomically

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["DriftReference", "drift", "load_state", "save_state"]

REFERENCE, STATE = "drift reference", "drift state"


def drift(
    model: torch.nn.Module | None,
    data: Any,
    *,
    layers: str | Sequence[str] = (),
    options: DriftOptions | None = None,
    **wanted: Any,
) -> DriftReference:
    """Make a reference of data that were fine, to test windows of later data against.

    Rows are given (features, embeddings; ``model`` is None) or are what layers of a live model give out for batches
    of inputs, one row a sample, places averaged. Of every layer the principal directions are learnt in one pass (wide
    layers by Frequent Directions), and some rows, held out of that, are kept in them. The model is left untouched.

    Args:
        model: any module, or None.
        data: rows (samples, width), a mapping of layers to such, a data frame, chunks of these, the path of a ``.csv``,
            ``.parquet``, ``.npz``, ``.npy`` or safetensors file. With a model what it is called with: a tensor of
            samples, batches, a DataLoader (labels are left aside), a function that gives them.
        layers: patterns of names of modules (or of arrays); by default five blocks and ``output``.
        options: `DriftOptions`.
        wanted: its fields by name: ``directions=32``, ``reserve=1000``, ``seed=0``, ...

    Returns:
        A `DriftReference`: ``.test(window)``, ``.sequential()``, ``.save(path)``, ``DriftReference.load(path)``.

    Raises:
        InputRefused: fewer than 30 rows, NaN or Inf, no such layer.

    Cost: one pass; memory for 1000 rows of every layer and 8 n^2 bytes, for n > 1024 2 kB n.

    >>> import numpy as np, netspectra as ns
    >>> rng = np.random.default_rng(0)
    >>> reference = ns.drift(None, rng.standard_normal((1000, 8)))
    >>> reference.test(rng.standard_normal((50, 8))).alarm, reference.test(rng.standard_normal((50, 8)) + 1).alarm
    (False, True)
    """
    from dataclasses import replace

    unknown = set(wanted) - {field.name for field in fields(DriftOptions)}
    if unknown:
        raise TypeError(f"drift has no option {', '.join(sorted(unknown))}")
    chosen = (layers,) if isinstance(layers, str) else tuple(layers)
    options = replace(options or DriftOptions(), **wanted)
    return DriftReference(**vars(fitted(_opened(data, model), options, model=model, layers=chosen)))


class DriftReference(Reference):
    """A reference that also opens files: `test` and `sequential` take paths, `save` and `load` keep it."""

    def test(self, window: Any, **wanted: Any) -> WindowDrift:
        """As `Reference.test`; the window may be the path of a file of rows."""
        if isinstance(window, str | Path):
            wanted.setdefault("name", str(window))
        return super().test(_opened(window, self.model), **wanted)

    def sequential(self, *, alpha: float = 0.05, seed: int | None = None) -> Sequential:
        """Watch windows one after another; see `Sequential`."""
        return _Stream(self, alpha=alpha, seed=self.options.seed if seed is None else seed)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: arrays, and a JSON of what they are; a few hundred kB, never half of it."""
        write_atomically(path, _packed(REFERENCE, *self.saved()))

    @classmethod
    def load(cls, path: str | Path, model: torch.nn.Module | None = None) -> DriftReference:
        """Read what `save` wrote, believing nothing; of a reference of activations give the model again.

        Raises:
            InputRefused: no such file, damaged, of another kind.
        """
        arrays, about = _unpacked(Path(path), REFERENCE)
        found = cls(**vars(restored(arrays, about, str(path))))
        if about["model"] and model is None:
            found.notes = (*found.notes, f"the rows are activations of a {about['model']}")
        found.model = model
        return found


class _Stream(Sequential):
    """A `Sequential` that also opens files."""

    def test(self, window: Any) -> Evidence:
        return super().test(_opened(window, self.reference.model))


def is_reference(path: str | Path) -> bool:
    """Whether a file is a saved reference."""
    from netspectra.sources.formats.safetensors import Safetensors, texts

    path = Path(path)
    return path.is_file() and Safetensors().claims(path) and _kind(texts(path)) == REFERENCE


def save_state(stream: Sequential, path: str | Path) -> None:
    """Write where a stream stands, to go on another day."""
    write_atomically(path, _packed(STATE, *stream.saved()))


def load_state(stream: Sequential, path: str | Path) -> Sequential:
    """Let a fresh stream go on where `save_state` left it."""
    arrays, about = _unpacked(Path(path), STATE)
    return stream.restore_({name: tensor.numpy() for name, tensor in arrays.items()}, about, str(path))


def _opened(data: Any, model: torch.nn.Module | None) -> Any:
    """What a path holds: rows, or batches for the model."""
    if not isinstance(data, str | Path):
        return data
    if model is None:
        from netspectra.sources.tables import open_table

        return open_table(data)
    from netspectra.live.samples import tensor_batches
    from netspectra.sources import open as open_source

    return tensor_batches(open_source(data))


def _packed(kind: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """One key of text alone, so that the same reference gives the same bytes."""
    from safetensors.numpy import save

    text = json.dumps({"kind": kind, **about}, allow_nan=False)
    return save(dict(arrays), metadata={"netspectra": text})


def _unpacked(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from netspectra.sources.formats.safetensors import Safetensors, texts

    GUARD.regular(path)
    if not Safetensors().claims(path):
        refuse(path, f"is no {kind}: not a safetensors file")
    said = texts(path)
    if _kind(said) != kind:
        refuse(path, f"is no {kind}: name the file that netspectra wrote as one")
    about = GUARD.json(path, said["netspectra"].encode())
    del about["kind"]
    refs = list(Safetensors().tensors(path))
    for ref in refs:
        if ref.problem:
            refuse(path, ref.problem, ref.name)
    return {ref.name: ref.load() for ref in refs}, about


def _kind(texts: Mapping[str, str]) -> str:
    """What a file says it is."""
    try:
        said = json.loads(texts.get("netspectra", ""))
    except (ValueError, RecursionError):
        return ""
    kind = said.get("kind") if isinstance(said, dict) else None
    return kind if isinstance(kind, str) else ""
