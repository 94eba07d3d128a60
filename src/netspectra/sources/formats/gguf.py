"""gguf: a llama.cpp checkpoint, one file or the parts of a split one; packed weights are decoded a few rows at a time.

The header is read here, strictly, before anything else sees the file (layout: https://github.com/ggml-org/ggml,
"docs/gguf.md", versions 2 and 3): key-value pairs, tensor entries, then the tensors at aligned offsets. The ``gguf``
library only ever sees the bytes of single rows. Axes are reversed, so that a weight is outputs by inputs.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

from netspectra.sources import FORMATS
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import StoredTensor, leading, opened
from netspectra.weight import ITEMSIZE, Index, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 20
CHUNK = 1 << 22
KEPT = 1024
ALIGNMENT = 32
STRING, ARRAY = 8, 9
# Scalar value types of the metadata, as struct letters.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
# Types that torch holds as they are; all others are decoded to float32.
PLAIN = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}
# Metadata of an architecture -> the words of a Hugging Face config.json.
WORDS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "rope.freq_base": "rope_theta",
}
SCALING = {"factor": "factor", "original_context_length": "original_max_position_embeddings"}
TOKENS = {"bos": "bos", "eos": "eos", "padding": "pad"}
SPLIT = re.compile(r"(.*-)(\d{5})(-of-(\d{5})\.gguf)")


class Gguf:
    """The reader."""

    name = "gguf"
    extra: str | None = "gguf"
    needs: tuple[str, ...] = ("gguf",)

    def claims(self, path: AnyPath) -> bool:
        """A file that begins with the magic word, whatever its suffix."""
        if path.is_dir():
            return False
        with opened(path) as file:
            return file.read(4) == b"GGUF"

    def files(self, path: AnyPath) -> list[AnyPath]:
        """The file, or all parts of the split checkpoint that it belongs to."""
        count = _header(path).metadata.get("split.count", 1)
        if not isinstance(count, int) or count <= 1:
            return [path]
        parts = SPLIT.fullmatch(path.name)
        if count > GUARD.shards or not parts or int(parts[4]) != count:
            refuse(path, f"is a part of {count}, and its name does not end in -00001-of-{count:05d}.gguf")
        files = [GUARD.inside(path.parent, f"{parts[1]}{i:05d}{parts[3]}") for i in range(1, count + 1)]
        for place, file in enumerate(files):
            if not file.exists():
                refuse(path, f"the part {printable(file.name)} is missing; fetch the checkpoint again")
            if _header(file).metadata.get("split.no") != place:
                refuse(file, f"is not part {place} of the split checkpoint, as its name says", "split.no")
        return files

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every tensor, by header alone, in the order of the file."""
        seen: set[str] = set()
        for file in self.files(path):
            for ref in _header(file).tensors:
                if ref.name in seen:
                    refuse(file, "the tensor is in another part too", ref.name)
                seen.add(ref.name)
                yield ref

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """The metadata that describe the architecture; numbers that differ from layer to layer are left out."""
        files = self.files(path)
        metadata = _header(files[0]).metadata
        kind = metadata.get("general.architecture")
        config: dict[str, Any] = {"model_type": kind} if isinstance(kind, str) else {}
        for key, word in WORDS.items():
            found = metadata.get(f"{kind}.{key}")
            if isinstance(found, list) and found and all(item == found[0] for item in found):
                found = found[0]
            if isinstance(found, int | float):
                config[word] = found
        for key, word in TOKENS.items():
            token = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if isinstance(token, int):
                config[f"{word}_token_id"] = token
        scaling = metadata.get(f"{kind}.rope.scaling.type")
        if isinstance(scaling, str) and scaling != "none":
            config["rope_scaling"] = {"rope_type": scaling} | {
                word: metadata[f"{kind}.rope.scaling.{key}"]
                for key, word in SCALING.items()
                if f"{kind}.rope.scaling.{key}" in metadata
            }
        names = {ref.name for file in files for ref in _header(file).tensors}
        if "token_embd.weight" in names:
            config["tie_word_embeddings"] = "output.weight" not in names
        return config


@dataclass(frozen=True)
class Packed:
    """Rows of blocks at an offset of a file; a `netspectra.weight.Loader` that decodes the wanted rows to float32."""

    raw: StoredTensor
    kind: str
    shape: tuple[int, ...]

    def __call__(self, index: Index = ()) -> Tensor:
        """Read and decode the rows that the first index selects, a few at a time."""
        import numpy as np
        import torch
        from gguf import GGMLQuantizationType, quants

        lonely = len(self.shape) < 2
        shape = (1, *self.shape) if lonely else self.shape
        cut, rest = (slice(0, 1), (0, *index)) if lonely else leading(index, shape)
        out = torch.empty((cut.stop - cut.start, *shape[1:]), dtype=torch.float32)
        step = max(1, CHUNK // max(1, math.prod(shape[1:])))
        for first in range(cut.start, cut.stop if out.numel() else cut.start, step):
            rows = slice(first, min(first + step, cut.stop))
            with np.errstate(all="ignore"):  # NaN scales give NaN, which is found out later
                decoded = quants.dequantize(self.raw((rows,)).numpy(), GGMLQuantizationType[self.kind])
            out[rows.start - cut.start : rows.stop - cut.start] = torch.from_numpy(decoded).reshape(-1, *shape[1:])
        return out[rest] if rest else out


@dataclass
class Header:
    """What stands before the tensors."""

    metadata: dict[str, Any] = field(default_factory=dict)
    tensors: list[TensorRef] = field(default_factory=list)


class Cursor:
    """Reads a header forward, in blocks; every length is checked against the file before it is believed."""

    def __init__(self, path: AnyPath, file: BinaryIO, size: int) -> None:
        """Begin at the start of ``file``, of which at most ``GUARD.header_bytes`` will be read."""
        self.path, self.file, self.size = path, file, size
        self.block, self.start, self.place = b"", 0, 0
        self.texts = 0

    @property
    def offset(self) -> int:
        """Bytes of the file before the cursor."""
        return self.start + self.place

    def skip(self, length: int, what: str) -> None:
        """Go on by ``length`` bytes."""
        end = self.offset + length
        if end > self.size:
            refuse(self.path, f"is truncated: {what} ends at byte {end}, the file has {self.size}; fetch it again")
        if end > GUARD.header_bytes:
            refuse(self.path, f"{what} ends beyond the {GUARD.header_bytes} bytes allowed for a header")
        self.place += length

    def take(self, length: int, what: str) -> bytes:
        """Give the next ``length`` bytes."""
        begin = self.offset
        self.skip(length, what)
        if self.place > len(self.block):
            self.file.seek(begin)
            self.block, self.start, self.place = self.file.read(max(BLOCK, length)), begin, length
        found = self.block[self.place - length : self.place]
        if len(found) < length:
            refuse(self.path, f"{what}: the file ends early; was it changed while it was read?")
        return found

    def number(self, letter: str, what: str) -> Any:
        """Give one scalar."""
        kind = struct.Struct(f"<{letter}")
        return kind.unpack(self.take(kind.size, what))[0]

    def text(self, what: str) -> str:
        """Give one string."""
        data = self.take(self.number("Q", what), what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            refuse(self.path, f"{what} is not UTF-8: {printable(repr(data), 80)}")

    def value(self, kind: int, key: str) -> Any:
        """Give one metadata value; a long array, or one of strings, is passed over and given as None."""
        what = f"the value of {printable(key, 80)}"
        if kind == STRING:
            return self.text(what)
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind != ARRAY:
            refuse(self.path, f"has the unknown value type {kind}", key)
        item, count = self.number("I", what), self.number("Q", what)
        if item in SCALARS:
            if count > KEPT:
                return self.skip(count * struct.calcsize(f"<{SCALARS[item]}"), what)
            return [self.number(SCALARS[item], what) for _ in range(count)]
        if item != STRING:
            refuse(self.path, f"is an array of {'arrays' if item == ARRAY else f'the unknown type {item}'}", key)
        self.texts += count
        if self.texts > GUARD.texts:
            refuse(self.path, f"brings the strings in arrays to {self.texts}, allowed are {GUARD.texts}", key)
        for _ in range(count):
            self.skip(int.from_bytes(self.take(8, what), "little"), what)
        return None


def _header(path: AnyPath) -> Header:
    """The header, parsed once for each state of the file."""
    return _parsed(path, GUARD.state(path))


@lru_cache(maxsize=4)
def _parsed(path: AnyPath, state: tuple[Any, ...]) -> Header:
    header = Header()
    with opened(path) as file:
        cursor = Cursor(path, file, state[0])
        tensors, pairs = _counts(cursor)
        for _ in range(pairs):
            key = GUARD.name(path, cursor.text("a key"))
            if key in header.metadata:
                refuse(path, "the key stands twice", key)
            header.metadata[key] = cursor.value(cursor.number("I", f"the type of {printable(key, 80)}"), key)
        entries = [_entry(cursor) for _ in range(tensors)]
        end = cursor.offset
    alignment = header.metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= BLOCK or alignment & (alignment - 1):
        refuse(path, f"is {printable(repr(alignment), 40)}, allowed are powers of two from 8 on", "general.alignment")
    header.tensors = _placed(path, state[0], entries, -(-end // alignment) * alignment, alignment)
    return header


def _counts(cursor: Cursor) -> tuple[int, int]:
    """Check magic, version and byte order; give the numbers of tensors and of key-value pairs."""
    path = cursor.path
    if cursor.take(4, "the magic word") != b"GGUF":
        refuse(path, "does not begin with GGUF")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        if int.from_bytes(version.to_bytes(4, "little"), "big") < 256:
            refuse(path, "is a big-endian GGUF file; convert it to little-endian")
        refuse(path, f"is GGUF version {version}, readable are 2 and 3")
    tensors, pairs = cursor.number("Q", "the header"), cursor.number("Q", "the header")
    if tensors > GUARD.tensors:
        refuse(path, f"claims {tensors} tensors, allowed are {GUARD.tensors}")
    if pairs > GUARD.entries:
        refuse(path, f"claims {pairs} key-value pairs, allowed are {GUARD.entries}")
    return tensors, pairs


def _entry(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """(name, shape outermost first, type, offset) of one tensor entry."""
    name = GUARD.name(cursor.path, cursor.text("a tensor name"))
    what = f"the entry of {printable(name, 80)}"
    axes = cursor.number("I", what)
    if axes > GUARD.dimensions:
        refuse(cursor.path, f"has {axes} axes, allowed are {GUARD.dimensions}", name)
    sizes = [cursor.number("Q", what) for _ in range(axes)]
    shape = GUARD.shape(cursor.path, name, sizes[::-1])
    return name, shape, cursor.number("I", what), cursor.number("Q", what)


def _placed(path: AnyPath, size: int, entries: list[Any], start: int, alignment: int) -> list[TensorRef]:
    """Tensor references, once every tensor is found to lie inside the file and on no other."""
    refs: list[TensorRef] = []
    spans: list[tuple[int, int, str]] = []
    seen: set[str] = set()
    for name, shape, code, offset in entries:
        if name in seen:
            refuse(path, "the tensor stands twice", name)
        seen.add(name)
        if offset % alignment:
            refuse(path, f"begins at {offset}, which is no multiple of the alignment {alignment}", name)
        ref, length = _ref(path, name, shape, code, start + offset)
        if start + offset + length > size:
            refuse(path, f"is truncated: the tensor ends at byte {start + offset + length}, the file has {size}; "
                         "fetch it again", name)  # fmt: skip
        refs.append(ref)
        spans.append((offset, offset + length, name))
    for (_, end, one), (begin, _, other) in pairwise(sorted(spans)):
        if begin < end:
            refuse(path, f"begins at {begin}, before {printable(one, 80)} ends at {end}: overlap", other)
    return refs


def _ref(path: AnyPath, name: str, shape: tuple[int, ...], code: int, offset: int) -> tuple[TensorRef, int]:
    """A tensor reference, and how many bytes its tensor takes."""
    kind, block, block_bytes, problem = _kind(code)
    if kind in PLAIN:
        plain = StoredTensor(path, offset, shape, PLAIN[kind])
        return TensorRef(name, shape, plain.dtype, plain), math.prod(shape) * ITEMSIZE[plain.dtype]
    row = shape[-1] if shape else 1
    if row % block:
        refuse(path, f"rows of {row} numbers cannot be {kind}, which packs {block} at a time", name)
    packed = (*(shape[:-1] or (1,)), row // block * block_bytes)
    loader = Packed(StoredTensor(path, offset, packed, "uint8"), kind, shape)
    return TensorRef(name, shape, "float32", loader, problem=problem, stored=kind), math.prod(packed)


@lru_cache
def _kind(code: int) -> tuple[str, int, int, str]:
    """(name, numbers a block, bytes a block, why it cannot be decoded) of a ggml type."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    try:
        kind = GGMLQuantizationType(code)
        block, length = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        return f"type {code}", 1, 0, f"packed as the ggml type {code}, which the installed gguf library does not know"
    if kind.name in PLAIN:
        return kind.name, block, length, ""
    try:
        quants.dequantize(np.zeros((1, length), np.uint8), kind)
    except NotImplementedError:
        return kind.name, block, length, f"packed as {kind.name}, which the installed gguf library cannot decode"
    return kind.name, block, length, ""


FORMATS.add(Gguf.name, Gguf(), __name__)
