"""Where weights come from: ``open`` is the one place in which kinds of input are told apart."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from netspectra.errors import InputRefused
from netspectra.registry import Registry
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.hub import fetched, looks_like_id
from netspectra.sources.ranges import sampled
from netspectra.sources.remote import AnyPath, RemotePath, is_address, remote
from netspectra.sources.stored import opened
from netspectra.views import Context, view
from netspectra.weight import Source, TensorRef

__all__ = ["FORMATS", "Format", "open"]


class Format(Protocol):
    """A reader of one file format: it knows bytes, and nothing of layers.

    Attributes:
        name: what the format is called in results.
        extra: the extra of this package it needs (``pip install netspectra[extra]``), or None.
        needs: the modules that extra brings.
    """

    name: str
    extra: str | None
    needs: tuple[str, ...]

    def claims(self, path: AnyPath) -> bool:
        """Whether the path looks like this format: by content, not by suffix."""
        ...

    def files(self, path: AnyPath) -> list[AnyPath]:
        """Every file that holds the checkpoint's tensors, in order."""
        ...

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every tensor's name, shape, dtype and loader, reading headers only."""
        ...

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """What the checkpoint says of the model, in the words of a Hugging Face ``config.json``; empty if nothing."""
        ...


FORMATS: Registry[Format] = Registry("netspectra.sources.formats", "format")


def open(origin: Any) -> Source:
    """Open anything that holds weights.

    Args:
        origin: a live ``torch.nn.Module``; a mapping of names to tensors (a state dict, gradients, updates); or the
            path of a checkpoint file or folder, on this machine, an address (``s3://bucket/model``, ``https://...``)
            or an id of the hub. A `Source` is returned as it is.

    Raises:
        InputRefused: no such file, damaged, or of no known format; the text says what was found and what to do.

    Cost: the headers of the files; no tensor is read.
    """
    if isinstance(origin, Source):
        return origin
    if isinstance(origin, str | os.PathLike):
        return _open_path(os.fspath(origin))
    torch = sys.modules.get("torch")
    if torch is not None:
        from netspectra.sources.module import open_mapping, open_module

        if isinstance(origin, torch.nn.Module):
            return open_module(origin)
        if isinstance(origin, Mapping):
            return open_mapping(origin)
    raise InputRefused(
        f"cannot open {type(origin).__name__}: give a torch.nn.Module, a dict of tensors, or a checkpoint's path"
    )


def _open_path(origin: str, at: AnyPath | None = None) -> Source:
    path = _located(origin) if at is None else at
    if not path.is_dir():
        GUARD.regular(path)
    for reader in FORMATS.values():
        if reader.claims(path):
            _must_have(reader, path)
            with _no_collection():
                tensors = tuple(islice(reader.tensors(path), GUARD.tensors + 1))
                if len(tensors) > GUARD.tensors:
                    refuse(path, f"holds more than {GUARD.tensors} tensors")
                config = reader.config(path)
                weights, skipped = view(tensors, Context(config=config, origin=printable(str(path))))
            identify = partial(_identify, reader, path, tensors, _decoding(config))
            told = str(path) if isinstance(path, RemotePath) else origin
            root = path if isinstance(path, Path) else None
            return Source(told, reader.name, tensors, tuple(weights), tuple(skipped), identify, config, root)
    if path.is_dir() and len(heads := _gguf_files(path)) == 1:
        return _open_path(origin, heads[0])
    refuse(path, _diagnosis(path))


def _gguf_files(folder: AnyPath) -> list[AnyPath]:
    """The GGUF files of a folder that nothing else makes a checkpoint; of split ones the first part."""
    found = GUARD.found(folder, "*.gguf")
    return [file for file in found if not re.search(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", file.name)]


def _located(origin: str) -> AnyPath:
    """The file or folder that a text names: an address, a path, or the id of a model on the hub."""
    if is_address(origin):
        return remote(origin)
    path = Path(origin).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError) as wrong:
        raise InputRefused(f"{printable(str(path))}: cannot be a path: {wrong}") from None
    if there:
        return path
    if not looks_like_id(origin):
        refuse(path, "no such file or folder")
    return fetched(origin)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Do not look for garbage: headers make many objects and none of it, and looking takes half of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _must_have(reader: Format, path: AnyPath) -> None:
    missing = [module for module in reader.needs if find_spec(module) is None]
    if missing:
        refuse(path, f"{reader.name} needs {', '.join(missing)}: pip install 'netspectra[{reader.extra}]'")


def _diagnosis(path: AnyPath) -> str:
    """What a path that no reader claims most likely is, and what to do."""
    known = ", ".join(FORMATS)
    if path.is_dir():
        if several := _gguf_files(path):
            held = ", ".join(printable(file.name, 60) for file in several[:5])
            return f"the folder holds {len(several)} GGUF files ({held}{', ...' if len(several) > 5 else ''}); name one"
        names = sorted(child.name for child in path.iterdir())[:5]
        held = ", ".join(printable(name, 40) for name in names) or "nothing"
        return f"the folder holds no checkpoint of a known format ({known}); it holds {held}"
    size = GUARD.regular(path)
    if size == 0:
        return "is empty; fetch it again"
    with opened(path) as file:
        start = file.read(512)
    lowered = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights; run 'git lfs pull'"
    if lowered.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page (an error page saved by a download?), not a checkpoint; fetch it again"
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            return f"is {what}, which is not among the readable formats ({known})"
    return f"is of no known format ({known}); it begins with {start[:8]!r}"


_MAGIC = {
    b"PK\x03\x04": "a zip archive of something else",
}

SAMPLES = 256
SAMPLE_BYTES = 4096


def _decoding(config: Mapping[str, Any]) -> str:
    """What of a config changes the numbers themselves: how codes are read, how adapters are scaled."""
    names = ("compression_config", "netspectra", "peft", "quantization_config")
    found = {name: config[name] for name in names if name in config}
    return json.dumps(found, sort_keys=True) if found else ""


def _identify(reader: Format, checkpoint: AnyPath, tensors: tuple[TensorRef, ...], decoding: str) -> tuple[str, str]:
    """(fingerprint, guard): what the input is, by names, sizes and sampled bytes; and when it was last written."""
    content, times = hashlib.sha256(decoding.encode("utf-8", "surrogatepass")), hashlib.sha256()
    for ref in tensors:
        content.update(f"{ref.name!r} {ref.dtype} {ref.shape}\n".encode("utf-8", "surrogatepass"))
    for path in reader.files(checkpoint):
        size, *mark = GUARD.state(path)
        content.update(f"{size}\n".encode())
        where = path.resolve() if isinstance(path, Path) else path
        times.update(f"{where} {size} {mark[0]}\n".encode("utf-8", "surrogateescape"))
        places = [max(0, size - SAMPLE_BYTES) * place // (SAMPLES - 1) for place in range(SAMPLES)]
        for sample in _samples(path, places):
            content.update(sample)
    return content.hexdigest(), times.hexdigest()


def _samples(path: AnyPath, places: list[int]) -> Iterator[bytes]:
    if isinstance(path, RemotePath):
        yield from sampled(path, places, SAMPLE_BYTES)
        return
    with opened(path) as file:
        for place in places:
            file.seek(place)
            yield file.read(SAMPLE_BYTES)
