"""Checkpoints elsewhere, by address (``s3://bucket/model``): what the readers ask of a path, answered by fsspec.

Headers and the wanted tensors are read by range requests; nothing is downloaded whole. Credentials, endpoints and
proxies are fsspec's business: its configuration, the environment, or the machine's role.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeAlias, cast
from urllib.parse import quote, unquote

from netspectra.sources.guard import printable, refuse
from netspectra.sources.ranges import FAILURES, RemoteFile, attempted, explain, warmed

__all__ = ["AnyPath", "RemotePath", "ahead", "is_address", "remote"]

# Protocols and the package that speaks each; fsspec knows the class.
SPOKEN = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp", "memory": "fsspec",
}  # fmt: skip
# Caches of fsspec's that may stand in front (``filecache::s3://...``): each keeps whole files on this machine.
CACHES = ("filecache", "simplecache")
ADDRESS = re.compile(r"(?:([a-z]+)::)?([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL)
# A web server lists no folder: these are the names that are asked for there.
CUSTOMARY = (
    "model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors", "pytorch_model.bin.index.json",
    "pytorch_model.bin", "model_index.json", "config.json", "adapter_config.json",
)  # fmt: skip
# What tells that a file is no longer the same, in the words of the several stores.
STAMPS = ("ETag", "etag", "Content-MD5", "md5Hash", "content_md5", "blob_id", "generation", "Last-Modified",
          "LastModified", "last_modified", "mtime", "created")  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What a store says of an address: a folder or a file, its size, and a mark that changes when it does."""

    folder: bool
    size: int | None = None
    stamp: str = ""
    denied: str = ""


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or folder in a store, with the manners of a `pathlib.Path`; holds no connection, so it pickles.

    What the store said of it travels along, so that a reader on another machine asks for bytes alone.
    """

    url: str

    def __str__(self) -> str:
        """The address without what may be secret: user, password and the query of a signed one."""
        if not self._web:
            return self.url
        protocol, _, rest = self.url.partition("://")
        host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
        return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave the listing of a folder behind."""
        return {key: value for key, value in self.__dict__.items() if key != "_children"}

    def __truediv__(self, name: str) -> RemotePath:
        """The file ``name`` in this folder."""
        protocol, rest = self._bare
        child = RemotePath(f"{protocol}://{rest and f'{rest}/'}{quote(name) if self._web else name}")
        if "_children" in self.__dict__ and (name in self._children or not self._web):
            child.__dict__["facts"] = self._children.get(name)
        return child

    @property
    def _web(self) -> bool:
        return re.match(r"(?:[a-z]+::)?https?://", self.url) is not None

    @property
    def _bare(self) -> tuple[str, str]:
        """Protocol and what follows ``://``, without query, fragment and trailing slash."""
        protocol, _, rest = self.url.partition("://")
        if self._web:
            rest = re.split(r"[?#]", rest, maxsplit=1)[0]
        return protocol, rest.rstrip("/")

    @property
    def name(self) -> str:
        """The last component."""
        last = self._bare[1].rpartition("/")[2]
        return unquote(last) if self._web else last

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without that end."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The folder that it is in."""
        protocol, rest = self._bare
        above = rest.rpartition("/")[0]
        return RemotePath(f"{protocol}://{above and f'{above}/'}")

    @cached_property
    def facts(self) -> Facts | None:
        """What the store says of it, asked once; None where there is nothing."""
        system, path = self.store()
        if self._web and self.url.partition("?")[0].endswith("/"):
            return Facts(folder=True)
        try:
            return _facts(attempted(lambda: system.info(path), self))
        except FileNotFoundError:
            return None
        except PermissionError as wrong:
            return Facts(folder=False, denied=str(wrong))

    @cached_property
    def _children(self) -> Mapping[str, Facts | None]:
        """What a folder holds, by name."""
        if self._web:
            return {name: facts for name in CUSTOMARY if _there(facts := (self / name).facts)}
        system, path = self.store()
        entries = attempted(lambda: system.ls(path, detail=True), self)
        return {str(entry["name"]).rstrip("/").rpartition("/")[2]: _facts(entry) for entry in entries}

    def store(self) -> tuple[Any, str]:
        """(fsspec's file system, the path as it knows it); the connection is fsspec's and shared."""
        try:
            from fsspec.core import url_to_fs

            return url_to_fs(self.url)
        except ImportError as wrong:
            found = ADDRESS.fullmatch(self.url)
            refuse(self, f"needs {SPOKEN[found[2]] if found else 'fsspec'}: pip install 'netspectra[remote]' "
                         f"({printable(str(wrong), 120)})")  # fmt: skip
        except FAILURES() as wrong:
            explain(self, wrong)
        except ValueError as wrong:
            refuse(self, printable(str(wrong)))

    def exists(self) -> bool:
        """Whether there is such a file or folder; what may not be looked at is not there."""
        return _there(self.facts)

    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return _there(self.facts) and bool(self.facts and self.facts.folder)

    def is_file(self) -> bool:
        """Whether it is a file."""
        return _there(self.facts) and not self.is_dir()

    def iterdir(self) -> Iterator[RemotePath]:
        """What the folder holds; of a web server's folder, the customary names that exist."""
        return iter([self / name for name in self._children])

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What the folder holds by a pattern of names."""
        return (child for child in self.iterdir() if fnmatch.fnmatchcase(child.name, pattern))

    def regular(self) -> int:
        """Size of the file.

        Raises:
            InputRefused: it is not there, may not be read, is a folder, or its size is not told.
        """
        facts = self.facts
        if facts is None:
            web = "; the address of a folder ends in /" if self._web else ""
            refuse(self, f"no such file{web}")
        if facts.denied:
            refuse(self, f"may not be read with these credentials ({printable(facts.denied, 120)})")
        if facts.folder:
            refuse(self, "not a regular file")
        if facts.size is None:
            refuse(self, "the server does not tell its size, so that no part of it can be asked for; download it first")
        return facts.size

    def state(self) -> tuple[int, str]:
        """Size, and the mark that changes when the file does."""
        return self.regular(), self.facts.stamp if self.facts else ""

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open it for reading, by range requests."""
        return cast("BinaryIO", RemoteFile(self, self.regular()))

    def read_bytes(self) -> bytes:
        """Read all of it."""
        with self.open() as file:
            return file.read()


AnyPath: TypeAlias = Path | RemotePath


def is_address(origin: str) -> bool:
    """Whether a text is the address of something elsewhere.

    >>> is_address("s3://bucket/model"), is_address("./model"), is_address("C:\\\\model")
    (True, False, False)
    """
    return ADDRESS.fullmatch(origin) is not None


def remote(address: str) -> AnyPath:
    """The file or folder at an address; ``file://`` ones are of this machine.

    Raises:
        InputRefused: an unknown protocol, a missing extra, nothing there, no permission.
        EnvironmentFailure: the store cannot be reached.
    """
    found = ADDRESS.fullmatch(address)
    assert found, address
    cache, protocol, rest = found.groups()
    if protocol == "file" and not cache:
        return Path(unquote(rest))
    if protocol not in SPOKEN or (cache and cache not in CACHES):
        refuse(RemotePath(address), f"is an address of unknown kind; there are {', '.join(f'{p}://' for p in SPOKEN)}, "
                                    f"each also after {' or '.join(f'{c}::' for c in CACHES)}")  # fmt: skip
    path = RemotePath(address)
    system, name = path.store()
    system.invalidate_cache(name)  # what an earlier look found may have changed
    if not path.exists() or not path.is_dir():
        path.regular()
    return path


def ahead(paths: list[AnyPath]) -> None:
    """Ask for the beginnings of many files side by side, where they are elsewhere."""
    warmed([path for path in paths if isinstance(path, RemotePath)])


def _there(facts: Facts | None) -> bool:
    return facts is not None and not facts.denied


def _facts(info: Mapping[str, Any]) -> Facts:
    size = info.get("size")
    stamp = next((str(info[key]) for key in STAMPS if info.get(key)), "")
    return Facts(info.get("type") == "directory", size if isinstance(size, int) and size >= 0 else None, stamp)
