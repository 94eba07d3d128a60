"""Batches to run a model on: from a text file and a tokenizer, or from files of input tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.live.build import hushed, quiet_transformers
from netspectra.weight import Source

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["affordable", "is_tensors", "read_samples", "tensor_batches", "text_batches", "tokenizer"]

LARGEST = 1 << 28  # bytes of a text file
ROOM = 1 << 29  # bytes of layer outputs in a batch; a forward and a backward pass hold about twice as much


def is_tensors(path: str | Path) -> bool:
    """Whether a calibration file holds input tensors (``.npz``, ``.safetensors``) rather than text, by its suffix."""
    return Path(path).suffix.lower() in (".npz", ".npy", ".safetensors")


def read_samples(path: str | Path) -> list[str]:
    """The samples of a text file: what blank lines separate, or a sample a line where there is no blank line.

    Raises:
        InputRefused: no such file, not UTF-8, no text in it, more than 256 MiB.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise InputRefused(f"{path}: no such text file")
        if path.stat().st_size > LARGEST:
            raise InputRefused(f"{path}: has more than {LARGEST} bytes; a few hundred samples are enough, cut it")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as wrong:
        raise InputRefused(f"{path}: is not UTF-8 text (byte {wrong.start}); for tensors name it .npz") from None
    except OSError as wrong:
        if isinstance(wrong, EnvironmentFailure):
            raise
        raise EnvironmentFailure(f"{path}: {wrong.strerror}") from None
    found = split_samples(text)
    if not found:
        raise InputRefused(f"{path}: holds no text")
    return found


def split_samples(text: str) -> list[str]:
    """Cut text into samples, as `read_samples` does.

    >>> split_samples("one\\ntwo\\n"), split_samples("one\\nmore\\n \\n\\ntwo")
    (['one', 'two'], ['one\\nmore', 'two'])
    """
    text = text.replace("\r\n", "\n").strip("\n")
    blank = re.compile(r"\n[ \t]*\n\s*")
    pieces = blank.split(text) if blank.search(text) else text.split("\n")
    return [piece.strip("\n") for piece in pieces if piece.strip()]


def tokenizer(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: of its folder, or made of the vocabulary in a GGUF file's metadata.

    No code of the checkpoint's runs. A tokenizer without padding gets its end-of-text token for it, which the
    attention mask then hides.

    Raises:
        InputRefused: there is none, or it cannot be read; transformers is missing.
    """
    if source.root is None:
        raise InputRefused("a live model, or a checkpoint at an address, brings no tokenizer: give batches of tensors")
    if find_spec("transformers") is None:
        raise InputRefused("tokenizing text needs transformers: pip install 'netspectra[transformers]'")
    with hushed():
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = source.root if source.root.is_dir() else source.root.parent
    options: dict[str, Any] = {"local_files_only": True}
    kind: Any = PreTrainedTokenizerFast
    if source.format == "gguf":
        options["gguf_file"] = source.root.name
    elif not (folder / "tokenizer.json").exists():
        kind, options["trust_remote_code"] = AutoTokenizer, False
    try:
        with quiet_transformers():
            found = kind.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as wrong:
        reason = (str(wrong).splitlines() or [type(wrong).__name__])[0][:160]
        raise InputRefused(f"{source.path}: no tokenizer could be read ({reason}): give batches of tensors") from None
    if found.pad_token is None:
        found.pad_token = found.eos_token or found.convert_ids_to_tokens(0)
    found.init_kwargs.pop("local_files_only", None)
    found.init_kwargs.pop("is_local", None)
    return found


def text_batches(
    samples: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    model: nn.Module | None = None,
    *,
    size: int = 32,
    longest: int = 512,
) -> list[dict[str, Tensor]]:
    """Token batches in the order of the samples, each padded to its longest and masked.

    Args:
        samples: texts.
        tokenizer: of the model.
        model: what they are for: its config bounds the length and says whether a decoder wants tokens too (it then
            gets the same text, one place later).
        size: samples a batch.
        longest: tokens a sample; the rest is cut off.
    """
    config = getattr(model, "config", None)
    bounds = [longest, tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    longest = min(bound for bound in bounds if isinstance(bound, int) and bound > 0)
    batches = []
    for first in range(0, len(samples), size):
        found = tokenizer(list(samples[first : first + size]), padding=True, truncation=True, max_length=longest,
                          return_tensors="pt")  # fmt: skip
        batch: dict[str, Tensor] = dict(found)
        if getattr(config, "is_encoder_decoder", False):
            start = torch.full_like(batch["input_ids"][:, :1], getattr(config, "decoder_start_token_id", None) or 0)
            batch["decoder_input_ids"] = torch.cat([start, batch["input_ids"][:, :-1]], 1)
        batches.append(batch)
    return batches


def affordable(model: nn.Module, tokens: int, *, most: int = 32) -> int:
    """How many samples of so many tokens a batch may hold: at most ``most``, and half a GiB of layer outputs.

    A token takes a number for every output of every matrix, and the widest output, often that of a vocabulary, twice
    more for its probabilities and gradients.

    >>> affordable(nn.Linear(4, 10), 128), affordable(nn.Linear(4, 100_000), 1000)
    (32, 1)
    """
    widths = [
        getattr(module, "out_features", weight.shape[1])  # transformers' Conv1D and embeddings: (n, m)
        for module in model.modules()
        if isinstance(weight := getattr(module, "weight", None), Tensor) and weight.dim() == 2
    ]
    each = 4 * tokens * (sum(widths) + 2 * max(widths, default=0))
    return max(1, min(most, ROOM // max(each, 1)))


def tensor_batches(source: Source, *, size: int = 32) -> list[Any]:
    """Batches of the inputs that a file holds: one sample a row of the first axis of every tensor.

    One tensor alone is the model's only argument; ``arr_0, arr_1, ...`` (what ``numpy.savez`` calls what has no name)
    go by position; other names go by keyword.

    Raises:
        InputRefused: no tensors, or first axes of unequal length.
    """
    lengths = {ref.name: ref.shape[0] if ref.shape else 0 for ref in source.tensors}
    if not lengths or len(set(lengths.values())) > 1 or 0 in lengths.values():
        shown = ", ".join(f"{name}: {length}" for name, length in list(lengths.items())[:6])
        raise InputRefused(f"{source.path}: samples must be the rows of every tensor alike (found {shown or 'none'})")
    count = next(iter(lengths.values()))
    batches: list[Any] = []
    for first in range(0, count, size):
        rows = (slice(first, min(first + size, count)),)
        batches.append(_arguments({ref.name: ref.load(rows) for ref in source.tensors}))
    return batches


def _arguments(tensors: Mapping[str, Tensor]) -> Any:
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    if all(re.fullmatch(r"arr_\d+", name) for name in tensors):
        return tuple(tensors[name] for name in sorted(tensors, key=lambda name: int(name[4:])))
    return dict(tensors)
