"""Writing a checkpoint: a whole folder or none of it, its tensors streamed one at a time."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.weight import ITEMSIZE, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DTYPES",
    "MANIFEST",
    "SHARD",
    "new_folder",
    "refuse_foreign",
    "sizes_in",
    "write_safetensors",
    "write_shards",
]

MANIFEST = "netspectra.json"
SHARD = 5_000_000_000  # bytes: what transformers cuts at, too
PIECE = 1 << 26
# The names of safetensors, by torch's.
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
_CODES = {name: code for code, name in DTYPES.items()}


@contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` when the block ends well and vanishes when it does not.

    What ``target`` held before stays until then. An empty folder is replaced, and so is one that this function made
    (its ``netspectra.json`` lists every file in it); anything else is not ours to delete.

    Raises:
        InputRefused: ``target`` is a file, or a folder that holds something else.
        EnvironmentFailure: the machine cannot write there.
    """
    target = Path(target)
    refuse_foreign(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", suffix=".part", dir=target.parent))
    except OSError as wrong:
        raise EnvironmentFailure(f"{target}: cannot be written: {wrong.strerror}") from None
    try:
        yield home
        files = sorted(path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file())
        manifest = home / MANIFEST
        found = json.loads(manifest.read_text()) if manifest.exists() else {}
        listed = {"format": 1, **found, "files": sorted({*files, MANIFEST})}
        manifest.write_text(json.dumps(listed, indent=1) + "\n")
        umask = os.umask(0)
        os.umask(umask)
        home.chmod(0o777 & ~umask)
        refuse_foreign(target)
        _replace(home, target)
    except OSError as wrong:
        if isinstance(wrong, EnvironmentFailure):
            raise
        raise EnvironmentFailure(f"{target}: cannot be written: {wrong.strerror or wrong}") from None
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _replace(home: Path, target: Path) -> None:
    """Put ``home`` where ``target`` is; a folder of ours that was there goes last."""
    if not target.exists():
        home.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name[:40]}-", suffix=".old", dir=target.parent))
    try:
        target.rename(old)
        try:
            home.rename(target)
        except OSError:
            old.rename(target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def refuse_foreign(target: Path) -> None:
    """Refuse a place that `new_folder` would not replace, or could not make; worth asking before hours of work.

    Raises:
        InputRefused: a file, a link, a folder with anything in it that netspectra did not write.
        EnvironmentFailure: what it would be in is no folder, or not writable.
    """
    above = next(path for path in target.absolute().parents if path.exists() or path.is_symlink())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise EnvironmentFailure(f"{target}: {above} is {'not writable' if above.is_dir() else 'no folder'}")
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise InputRefused(f"{target}: is {'a link' if target.is_symlink() else 'a file'}; name a new folder")
    held = {path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir()}
    if not held:
        return
    try:
        ours = set(json.loads((target / MANIFEST).read_text(encoding="utf-8")).get("files", ()))
    except (OSError, ValueError, AttributeError, TypeError):
        ours = set()
    foreign = sorted(held - ours)
    if foreign:
        raise InputRefused(
            f"{target}: the folder holds {foreign[0]!r}, which is not of netspectra's writing; name a new folder"
        )


def write_shards(
    folder: Path, refs: Sequence[TensorRef], *, stem: str = "model", largest: int = SHARD
) -> dict[str, list[TensorRef]]:
    """Write tensors as ``STEM.safetensors``, or as several files and their index where that would exceed ``largest``.

    Args:
        folder: where to.
        refs: each is loaded in pieces when its turn comes, so that memory holds one piece at a time.
        stem: beginning of the file names.
        largest: bytes of one file; a larger tensor gets a file of its own.

    Returns:
        The tensors of each file, by its name.
    """
    groups: list[list[TensorRef]] = [[]]
    filled = 0
    for ref in refs:
        if groups[-1] and filled + ref.nbytes > largest:
            groups.append([])
            filled = 0
        groups[-1].append(ref)
        filled += ref.nbytes
    if len(groups) == 1:
        files = {f"{stem}.safetensors": groups[0]}
    else:
        files = {f"{stem}-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}
    for name, group in files.items():
        write_safetensors(folder / name, group)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(ref.nbytes for ref in refs)},
            "weight_map": {ref.name: name for name, group in files.items() for ref in group},
        }
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return files


def write_safetensors(path: Path, refs: Sequence[TensorRef], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, tensor by tensor (layout: https://github.com/huggingface/safetensors, "Format").

    Raises:
        InputRefused: two tensors of one name, one that cannot be read, one of another shape or dtype than was said.
    """
    ordered = sorted(refs, key=lambda ref: -ITEMSIZE.get(ref.dtype, 0))  # wide numbers first keep all of them aligned
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for ref in ordered:
        if ref.problem or ref.dtype not in _CODES:
            raise InputRefused(f"{ref.name}: cannot be written: {ref.problem or f'no safetensors dtype {ref.dtype}'}")
        if ref.name in table:
            raise InputRefused(f"{ref.name}: two tensors of this name")
        table[ref.name] = {
            "dtype": _CODES[ref.dtype],
            "shape": list(ref.shape),
            "data_offsets": [end, end + ref.nbytes],
        }
        end += ref.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for ref in ordered:
            _stream(file, ref)
        file.flush()
        os.fsync(file.fileno())


def sizes_in(folder: Path) -> dict[str, int]:
    """Bytes of every tensor in the safetensors files that were just written into a folder and those below it."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            table = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in table.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                found[name] = found.get(name, 0) + last - first
    return found


def _stream(file: BinaryIO, ref: TensorRef) -> None:
    """Write a tensor's numbers, a few rows at a time where it is large."""
    rows = ref.shape[0] if ref.shape else 1
    if ref.nbytes <= PIECE or rows < 2:
        _write(file, ref, ref.load(), ref.shape)
        return
    step = max(1, PIECE * rows // ref.nbytes)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        _write(file, ref, ref.load((slice(first, last),)), (last - first, *ref.shape[1:]))


def _write(file: BinaryIO, ref: TensorRef, piece: Tensor, shape: tuple[int, ...]) -> None:
    import torch

    dtype = str(piece.dtype).removeprefix("torch.")
    if tuple(piece.shape) != shape or dtype != ref.dtype:
        raise InputRefused(f"{ref.name}: {dtype} {tuple(piece.shape)} was loaded, {ref.dtype} {shape} was expected")
    if math.prod(shape):
        plain = piece.resolve_conj().resolve_neg().cpu().contiguous()
        file.write(memoryview(plain.reshape(-1).view(torch.uint8).numpy().data))
