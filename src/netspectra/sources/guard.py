"""All limits on what comes from outside, in one place; every reader asks here before it reads, allocates or follows."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from netspectra.checkpoint import MANIFEST
from netspectra.errors import EnvironmentFailure, InputRefused

if TYPE_CHECKING:
    from netspectra.sources.remote import AnyPath

__all__ = ["GUARD", "Guard", "printable", "refuse"]


def printable(text: str, limit: int = 200) -> str:
    """Text with control and direction-changing characters escaped, cut in the middle beyond ``limit``.

    >>> printable("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else f"{shown[: limit // 2]}...{shown[-limit // 2 :]}"


def refuse(path: AnyPath | str, what: str, field: str = "") -> NoReturn:
    """Raise the one-line refusal ``FILE: FIELD: what``."""
    middle = f"{printable(field)}: " if field else ""
    raise InputRefused(f"{printable(str(path))}: {middle}{printable(what, 500)}")


def _encodes(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Guard:
    """Limits; a file beyond one of them is refused by name and number.

    Attributes:
        header_bytes: largest header or index that is parsed.
        items: most values, keys and brackets of a JSON text (12 a tensor).
        tensors: most tensors in one source; the largest that is public has 210 thousand.
        dimensions: most axes of one tensor.
        name_bytes: longest tensor name.
        numel: most numbers in one tensor.
        file_name_bytes: longest name of a file that an index names.
        shards: most files of one checkpoint.
        records: most records of a zip archive.
        pickle_steps: most opcodes of one pickle (about 55 a tensor; each costs a microsecond and up to 150 bytes).
        metadata_steps: the same for a distributed checkpoint's ``.metadata`` (about 60 a chunk).
        containers: deepest nesting of dicts, lists and objects that is searched for tensors.
        entries: most key-value pairs of a header.
        texts: most strings in the arrays of a header (a tokenizer's vocabulary).
        text_bytes: longest text header of an array.
        fields: most fields of protobuf messages that are looked at.
        nesting: deepest nesting of messages, subgraphs or groups.
        inflated_bytes: most bytes that packed data of any size may unpack to; beyond it ``inflation`` holds.
        inflation: most bytes that a packed byte may unpack to.
    """

    header_bytes: int = 100_000_000
    items: int = 6_000_000
    tensors: int = 400_000
    dimensions: int = 16
    name_bytes: int = 65_536
    numel: int = 2**50
    file_name_bytes: int = 255
    shards: int = 10_000
    records: int = 1_000_000
    pickle_steps: int = 3_000_000
    metadata_steps: int = 6_000_000
    containers: int = 64
    entries: int = 65_536
    texts: int = 2_000_000
    text_bytes: int = 65_536
    fields: int = 1_000_000
    nesting: int = 32
    inflated_bytes: int = 2**26
    inflation: int = 100

    def regular(self, path: AnyPath) -> int:
        """Size of ``path``, which must be a regular, readable file: no FIFO, device or folder is ever opened."""
        if not isinstance(path, Path):
            return path.regular()
        try:
            found = os.stat(path)
        except FileNotFoundError:
            refuse(path, "no such file")
        except OSError as wrong:
            raise EnvironmentFailure(f"{printable(str(path))}: {wrong.strerror}") from None
        if not stat.S_ISREG(found.st_mode):
            refuse(path, "not a regular file")
        return found.st_size

    def state(self, path: AnyPath) -> tuple[Any, ...]:
        """What changes when the file does: its size, and its time and inode, or the mark that a store gives."""
        if not isinstance(path, Path):
            return path.state()
        size, found = self.regular(path), path.stat()
        return size, found.st_mtime_ns, found.st_ino

    def inside(self, folder: AnyPath, name: Any) -> AnyPath:
        """``folder / name`` where ``name`` is a plain file name whose target stays in the folder.

        Links out of the folder are refused, but for the layout of the Hugging Face cache, where
        ``snapshots/REV/NAME`` points into ``blobs/`` two levels up.
        """
        if not isinstance(name, str) or not name or name in (".", "..") or set(name) & set("/\\\0"):
            refuse(folder, f"names the file {printable(repr(name))}, allowed are plain file names", "index")
        if len(name.encode("utf-8", "surrogatepass")) > self.file_name_bytes or not _encodes(name):
            refuse(folder, f"names the file {printable(repr(name))}, which no file can be called", "index")
        path = folder / name
        if not isinstance(path, Path) or not isinstance(folder, Path):
            return path
        try:
            target, home = path.resolve(), folder.resolve()
        except (OSError, RuntimeError):
            refuse(path, "is a link that leads round in a circle")
        cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
        if target.parent not in (home, cache):
            refuse(path, "is a link out of the folder; copy the file into it")
        return path

    def found(self, folder: AnyPath, pattern: str) -> list[AnyPath]:
        """Files of a folder by a glob, sorted; those that are links out of it are refused as `inside` does."""
        return [self.inside(folder, path.name) for path in sorted(folder.glob(pattern))]

    def shape(self, path: AnyPath, tensor: str, shape: Any) -> tuple[int, ...]:
        """Check a shape: few axes, whole sizes, a product within limits."""
        if not isinstance(shape, list | tuple) or len(shape) > self.dimensions:
            refuse(path, f"shape is not a list of at most {self.dimensions} sizes", tensor)
        for size in shape:
            if type(size) is not int or not 0 <= size <= self.numel:
                refuse(path, f"shape has the size {printable(repr(size), 40)}", tensor)
        if math.prod(size for size in shape if size) > self.numel:
            refuse(path, f"shape {printable(str(list(shape)))} has more than {self.numel} numbers", tensor)
        return tuple(shape)

    def name(self, path: AnyPath, name: str) -> str:
        """Check a tensor name: text that can be written down again, not too long."""
        try:
            length = len(name.encode())
        except UnicodeEncodeError:
            refuse(path, "a tensor name is not valid Unicode", name.encode("unicode_escape").decode())
        if length > self.name_bytes:
            refuse(path, f"a tensor name has {length} bytes, allowed are {self.name_bytes}")
        return name

    def inflates(self, path: AnyPath, what: str, packed: int, size: int) -> None:
        """Refuse packed data that claims to unpack to far more than it can honestly hold."""
        if size > self.inflated_bytes and size > packed * self.inflation:
            refuse(path, f"{packed} packed bytes claim to hold {size}; is it a decompression bomb?", what)

    def json(self, path: AnyPath, text: bytes) -> dict[str, Any]:
        """Parse a JSON object strictly: UTF-8, no key twice, not too deep, no NaN."""

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                refuse(path, "the key stands twice", Counter(key for key, _ in pairs).most_common(1)[0][0])
            return found

        items = sum(map(text.count, (b",", b":", b"[", b"{")))
        if items > self.items:
            refuse(path, f"the JSON header has {items} items, allowed are {self.items}")

        def constant(name: str) -> NoReturn:
            refuse(path, f"{name} is not JSON")

        try:
            parsed = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
        except UnicodeDecodeError:
            refuse(path, "the JSON header is not UTF-8")
        except InputRefused:
            raise
        except RecursionError:
            refuse(path, "the JSON header is nested too deeply")
        except ValueError as wrong:
            refuse(path, f"the JSON header is broken: {printable(str(wrong))}")
        if not isinstance(parsed, dict):
            refuse(path, "the JSON header is not an object")
        return parsed

    def read_json(self, path: AnyPath) -> dict[str, Any]:
        """Read a small JSON file under the same rules."""
        size = self.regular(path)
        if size > self.header_bytes:
            refuse(path, f"has {size} bytes, allowed are {self.header_bytes}")
        try:
            return self.json(path, path.read_bytes())
        except OSError as wrong:
            raise EnvironmentFailure(f"{printable(str(path))}: {wrong.strerror}") from None

    def config_beside(self, path: AnyPath) -> dict[str, Any]:
        """The Hugging Face ``config.json`` in the checkpoint's folder, and under ``peft`` its ``adapter_config.json``.

        Under ``netspectra``, by module, what ``netspectra.json`` says of those that are stored in another form.
        """
        folder = path if path.is_dir() else path.parent
        found: dict[str, Any] = {}
        if (folder / "config.json").exists():
            found = self.read_json(self.inside(folder, "config.json"))
        if (folder / "adapter_config.json").exists():
            found = {**found, "peft": self.read_json(self.inside(folder, "adapter_config.json"))}
        if (folder / MANIFEST).exists() and (forms := _forms(self.read_json(self.inside(folder, MANIFEST)))):
            found = {**found, "netspectra": forms}
        return found


def _forms(manifest: dict[str, Any]) -> dict[str, Any]:
    """The replacements of a manifest by module; those that are not understood are left to whoever rebuilds them."""
    listed = manifest.get("replacements")
    entries = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return {one["module"]: one.get("spec") for one in entries if isinstance(one.get("module"), str)}


GUARD = Guard()
