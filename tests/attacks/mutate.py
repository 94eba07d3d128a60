"""Spoilt files: a seed taken apart as its format is built, something in it made wrong, and put together again.

A random flip rarely gets past the first check. So lengths, checksums and nesting are kept right around what is wrong:
JSON values and keys, GGUF fields, opcodes of pickles, members of zip archives, fields of protocol buffers.
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import warnings
import zipfile
import zlib
from random import Random
from typing import Any

__all__ = ["spoil"]

INTEGERS = (0, 1, 2, 3, 7, 8, 31, 127, 128, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**50,
            2**50 + 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -1, -2)  # fmt: skip
TEXTS = ("", "a", "..", "../x", "/etc/passwd", "\0", "\x1b[31m", "\u202e", "weight", "experts", "F32", "BF16", "I4",
         "dtype", "__metadata__", "x" * 300, "\ud800", "=1+1", "<script>", "m.safetensors")  # fmt: skip


def spoil(content: bytes, format: str, chance: Random) -> bytes:
    """``content`` of a format, made wrong in one to three places."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        content = (_bytes if chance.random() < 0.25 else _structured(content, format))(content, chance)
    return content


def _structured(content: bytes, format: str) -> Any:
    if content.startswith(b"PK"):
        return _archive
    if content.startswith(b"{"):
        return _json
    if format == "safetensors":
        return _safetensors
    if format == "gguf":
        return _gguf
    if content.startswith(b"\x80"):
        return _pickle
    return _message if format == "onnx" else _bytes


# ---- bytes -------------------------------------------------------------------------------------------------------


def _bytes(content: bytes, chance: Random) -> bytes:
    """Flip, cut, double, remove, or put a telling number somewhere."""
    if not content:
        return chance.randbytes(chance.randrange(40))
    found, place = bytearray(content), chance.randrange(len(content))
    head = chance.randrange(min(len(content), 400))
    match chance.randrange(8):
        case 0:
            found[place] ^= 1 << chance.randrange(8)
        case 1:
            found[head] = chance.randrange(256)
        case 2:
            return content[:place]
        case 3:
            return content[:head] + content[chance.randrange(len(content)) :]
        case 4:
            width = chance.choice((1, 2, 4, 8))
            found[head : head + width] = (chance.choice(INTEGERS) % 256**width).to_bytes(width, "little")
        case 5:
            size = chance.randrange(1, 64)
            found[place:place] = found[place : place + size]
        case 6:  # an address that leads somewhere else
            there = chance.randrange(len(content))
            found[place : place + 8] = found[there : there + 8]
        case 7:
            found += chance.randbytes(chance.randrange(1, 40))
    return bytes(found)


def _integer(chance: Random) -> int:
    return chance.choice(INTEGERS) if chance.random() < 0.7 else chance.getrandbits(chance.randrange(1, 65))


# ---- JSON --------------------------------------------------------------------------------------------------------


def _value(chance: Random, depth: int = 0) -> Any:
    match chance.randrange(9 if depth < 3 else 6):
        case 0 | 1:
            return _integer(chance)
        case 2:
            return chance.choice(TEXTS)
        case 3:
            return chance.choice((None, True, False, 1.5, -0.0, 1e308, float("nan"), float("inf")))
        case 4 | 5:
            return [_integer(chance) for _ in range(chance.randrange(4))]
        case 6:
            return [_value(chance, depth + 1) for _ in range(chance.randrange(20))]
        case _:
            return {chance.choice(TEXTS): _value(chance, depth + 1) for _ in range(chance.randrange(4))}


def _changed(tree: Any, chance: Random, depth: int = 0) -> Any:
    """The tree with something in it replaced, renamed, removed or added."""
    if not isinstance(tree, dict | list) or not tree or chance.random() < 0.15 * depth:
        return _value(chance)
    if isinstance(tree, list):
        place = chance.randrange(len(tree))
        return [*tree[:place], _changed(tree[place], chance, depth + 1), *tree[place + 1 :]]
    key = chance.choice(list(tree))
    match chance.randrange(8):
        case 0:
            return {name: value for name, value in tree.items() if name != key}
        case 1:
            return {chance.choice(TEXTS) if name == key else name: value for name, value in tree.items()}
        case 2:
            return {**tree, chance.choice(TEXTS): tree[key]}
        case _:
            return {**tree, key: _changed(tree[key], chance, depth + 1)}


def _json(content: bytes, chance: Random) -> bytes:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return _bytes(content, chance)
    found = json.dumps(_changed(tree, chance), ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    match chance.randrange(12):
        case 0:  # a key twice
            return found.replace(b"{", b'{"a":0,"a":0,', 1)
        case 1:
            return found.replace(b"[", b"[" * chance.choice((2, 100, 100_000)), 1)
        case 2:
            return found + b" " * chance.randrange(20)
    return found


def _safetensors(content: bytes, chance: Random) -> bytes:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 + length or length > 1 << 20:
        return _bytes(content, chance)
    header, data = _json(content[8 : 8 + length], chance), content[8 + length :]
    match chance.randrange(12):
        case 0:
            data = data[: chance.randrange(len(data) + 1)]
        case 1:
            data += bytes(chance.randrange(1, 64))
        case 2:
            return struct.pack("<Q", _integer(chance) % 2**64) + header + data
        case 3:
            header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


# ---- GGUF --------------------------------------------------------------------------------------------------------


def _text(chance: Random, usual: str) -> bytes:
    text = (usual if chance.random() < 0.7 else chance.choice(TEXTS)).encode("utf-8", "surrogatepass")
    length = len(text) if chance.random() < 0.95 else _integer(chance) % 2**64
    return struct.pack("<Q", length) + text


def _metadatum(chance: Random, depth: int = 0) -> tuple[int, bytes]:
    """(type, bytes) of a value of GGUF metadata."""
    kind = chance.randrange(14) if chance.random() < 0.95 else _integer(chance) % 2**32
    if kind == 8:
        return kind, _text(chance, "llama")
    if kind == 9 and depth < 3:
        item, _ = _metadatum(chance, depth + 1)
        count = chance.randrange(5)
        items = b"".join(_text(chance, "t") if item == 8 else _of_size(chance, item) for _ in range(count))
        return kind, struct.pack("<IQ", item, count if chance.random() < 0.8 else _integer(chance) % 2**64) + items
    return kind, _of_size(chance, kind)


def _of_size(chance: Random, kind: int) -> bytes:
    return chance.randbytes({0: 1, 1: 1, 7: 1, 2: 2, 3: 2, 10: 8, 11: 8, 12: 8}.get(kind, 4))


def _gguf(content: bytes, chance: Random) -> bytes:
    """A new file of a few pairs and tensors, each field wrong now and then."""
    keys = ("general.architecture", "general.alignment", "llama.block_count", "tokenizer.ggml.tokens", "split.count")
    pairs, entries, offset = [], [], 0
    for _ in range(chance.randrange(6)):
        kind, value = _metadatum(chance)
        pairs.append(_text(chance, chance.choice(keys)) + struct.pack("<I", kind) + value)
    for place in range(chance.randrange(5)):
        sizes = [chance.choice((1, 2, 3, 32, 64, 256)) for _ in range(chance.choice((0, 1, 2, 2, 2, 3, 4)))]
        if chance.random() < 0.1:
            sizes = [_integer(chance) % 2**64 for _ in range(chance.randrange(20))]
        kind = chance.choice((0, 1, 2, 3, 8, 24, 30)) if chance.random() < 0.7 else chance.randrange(64)
        begin = offset if chance.random() < 0.9 else _integer(chance) % 2**64
        name = chance.choice((f"blk.{place}.attn_q.weight", f"blk.{place}.ffn_gate_exps.weight", "token_embd.weight"))
        axes = len(sizes) if chance.random() < 0.97 else _integer(chance) % 2**32
        entries.append(_text(chance, name) + struct.pack(f"<I{len(sizes)}QIQ", axes, *sizes, kind, begin))
        offset += chance.choice((32, 64, 128, 1024))
    counts = [len(entries), len(pairs)]
    if chance.random() < 0.06:
        counts[chance.randrange(2)] = _integer(chance) % 2**64
    version = 3 if chance.random() < 0.97 else _integer(chance) % 2**32
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(entries)
    size = chance.choice((0, offset, 4096, 65536))
    return head + bytes(-len(head) % 32) + (bytes(size) if chance.random() < 0.5 else chance.randbytes(size))


# ---- pickles -----------------------------------------------------------------------------------------------------

CODES = b"(.012FIJKLMNPQRSTUVX]abcdeghijlopqrstu}GBC\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f"


def _pickle(content: bytes, chance: Random) -> bytes:
    """Opcodes removed, doubled, swapped or replaced, with their arguments or without."""
    try:
        starts = [place for _, _, place in pickletools.genops(content) if place is not None]
    except (ValueError, KeyError, IndexError, AttributeError, struct.error, UnicodeDecodeError):
        return _bytes(content, chance)
    if len(starts) < 3:
        return _bytes(content, chance)
    parts = [content[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    one, other = chance.randrange(len(parts)), chance.randrange(len(parts))
    match chance.randrange(7):
        case 0:
            del parts[one]
        case 1:
            parts.insert(one, parts[other])
        case 2:
            parts[one], parts[other] = parts[other], parts[one]
        case 3:
            parts[one] = bytes([chance.choice(CODES)]) + parts[one][1:]
        case 4:
            parts[one] = b"\x8a\x09" + (_integer(chance) % 2**71).to_bytes(9, "little")
        case 5:
            text = chance.choice(TEXTS).encode("utf-8", "surrogatepass")
            parts[one] = b"X" + struct.pack("<I", len(text)) + text
        case 6:
            parts[one] = chance.choice((b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"R", b"b", b"\x81"))
    return b"".join(parts)


# ---- archives ----------------------------------------------------------------------------------------------------


def _archive(content: bytes, chance: Random) -> bytes:
    """One member spoilt, renamed, doubled or packed otherwise, and the archive written anew."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            held = [(info.filename, file.read(info)) for info in file.infolist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, KeyError, RuntimeError, EOFError, zlib.error):
        return _bytes(content, chance)
    if not held:
        return _bytes(content, chance)
    place = chance.randrange(len(held))
    name, member = held[place]
    match chance.randrange(10):
        case 0:
            held[place] = (name[:-1] + chance.choice(("", "x", "/..", ".npy")), member)
        case 1:
            del held[place]
        case 2:
            held.append((name, member))
        case _:
            place = chance.choice([i for i, (_, one) in enumerate(held) if one] or [place])
            name, member = held[place]
            held[place] = (name, _structured(member, "")(member, chance))
    method = chance.choice((zipfile.ZIP_STORED,) * 3 + (zipfile.ZIP_DEFLATED,))
    written = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(written, "w", method) as file:
        warnings.simplefilter("ignore")  # a name twice is meant
        for name, member in held:
            info = zipfile.ZipInfo(name.replace("\0", "") or "x")
            info.compress_type = method
            file.writestr(info, member)
    return written.getvalue()


# ---- protocol buffers --------------------------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise IndexError


def _fields(content: bytes) -> list[tuple[int, int, Any]]:
    """(number, wire type, value) of a message; an IndexError where it is none."""
    found, place = [], 0
    while place < len(content):
        tag, place = _read_varint(content, place)
        wire = tag & 7
        if wire == 0:
            value, place = _read_varint(content, place)
        elif wire in (1, 2, 5):
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, place = _read_varint(content, place)
            if place + size > len(content):
                raise IndexError
            value, place = content[place : place + size], place + size
        else:
            raise IndexError
        if not tag >> 3:
            raise IndexError
        found.append((tag >> 3, wire, value))
    return found


def _message(content: bytes, chance: Random, depth: int = 0) -> bytes:
    """A field removed, doubled, renumbered or with another value, at any depth, with lengths that fit."""
    try:
        fields = _fields(content)
    except IndexError:
        return _bytes(content, chance)
    if not fields:
        return b"" if chance.random() < 0.5 else chance.randbytes(3)
    place = chance.randrange(len(fields))
    number, wire, value = fields[place]
    match chance.randrange(9):
        case 0:
            del fields[place]
        case 1:
            fields.insert(place, fields[chance.randrange(len(fields))])
        case 2:
            fields[place] = (chance.choice((number, 1, 2, 5, 7, 8, 13, 99)), chance.choice((0, wire)), _integer(chance))
        case 3 if wire == 2:
            fields[place] = (number, 2, chance.choice(TEXTS).encode("utf-8", "surrogatepass"))
        case _ if wire == 2 and depth < 6:
            fields[place] = (number, 2, _message(value, chance, depth + 1))
        case _ if wire == 0:
            fields[place] = (number, 0, _integer(chance))
    found = bytearray()
    for number, wire, value in fields:
        if isinstance(value, int):
            found += _varint(number << 3) + _varint(value % 2**64)
        else:
            found += _varint(number << 3 | wire) + (_varint(len(value)) if wire == 2 else b"") + value
    return bytes(found)
