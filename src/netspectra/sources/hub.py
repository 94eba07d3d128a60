"""Hugging Face hub ids: ``org/name`` becomes the folder of its snapshot in the hub's own cache."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

from netspectra.sources.guard import refuse

__all__ = ["fetched", "looks_like_id"]

# What to fetch of a repository, the first kind that it has; weights come with the small files that describe them.
KINDS = (("*.safetensors", "*.safetensors.index.json"), ("*.bin", "*.bin.index.json"), ("*.gguf",), ("*.onnx",))
BESIDE = ("config.json", "adapter_config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json",
          "vocab.*", "merges.txt", "spiece.model")  # fmt: skip


def looks_like_id(name: str) -> bool:
    """Whether a text that names no file could be a hub id.

    >>> looks_like_id("sentence-transformers/all-MiniLM-L6-v2"), looks_like_id("./model"), looks_like_id("model.pt")
    (True, False, False)
    """
    return re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name) is not None


def fetched(repository: str) -> Path:
    """Folder of the repository's weights: fetched where that is possible, else as the cache holds it.

    Raises:
        InputRefused: the extra is missing, there is no such repository, or it cannot be reached and is not cached.
    """
    if find_spec("huggingface_hub") is None:
        refuse(repository, "no such file or folder; if it is a hub id: pip install 'netspectra[hf]'")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        names = [file.rfilename for file in HfApi().model_info(repository).siblings or []]
    except HfHubHTTPError as wrong:
        status = wrong.response.status_code
        what = {401: "needs a login ('hf auth login')", 403: "is not open to this login", 404: "there is no such model"}
        refuse(repository, f"no such file or folder, and on the hub: {what.get(status, f'HTTP status {status}')}")
    except (OfflineModeIsEnabled, ConnectionError, OSError, *_unreached()):
        try:
            return Path(snapshot_download(repository, local_files_only=True))
        except LocalEntryNotFoundError:
            refuse(repository, "no such file or folder; as a hub id it is not cached, and the hub cannot be reached")
    except HFValidationError:
        refuse(repository, "no such file or folder")
    wanted = next(
        (kind for kind in KINDS if any(Path(name).match(pattern) for name in names for pattern in kind)), None
    )
    if wanted is None:
        refuse(repository, f"the model on the hub has no weights in a known format; it holds {', '.join(names[:5])}")
    try:
        return Path(snapshot_download(repository, allow_patterns=[*wanted, *BESIDE]))
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, *_unreached()) as wrong:
        refuse(repository, f"could not be fetched from the hub: {str(wrong).splitlines()[0][:200]}")


def _unreached() -> list[type[Exception]]:
    """What the hub's client raises where there is no network; which library that comes from depends on its version."""
    found = (getattr(sys.modules.get(name), "TransportError", None) for name in ("httpx", "httpx2"))
    return [kind for kind in found if kind is not None]
