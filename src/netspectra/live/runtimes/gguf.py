"""A quantized model as a GGUF file, and as the lines that make ``llama-quantize`` give each tensor its bits.

Symmetric codes in groups of 32 are what GGUF's Q8_0, Q5_0 and Q4_0 hold, so they are written as they are, code by code
(layout: ggml's documentation of its block types); everything else is refused rather than rounded again in silence.
Names and orders: `netspectra.live.gguf`, the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.checkpoint import new_folder
from netspectra.errors import InputRefused
from netspectra.forms.coded import CodedConvolution, CodedModule
from netspectra.linalg.packing import unpack
from netspectra.live.gguf import ARCHITECTURES, Architecture
from netspectra.live.runtimes import coded_modules, decoded, lacking
from netspectra.live.runtimes.adapter import FOLDER, write_adapter
from netspectra.live.saved import Saved
from netspectra.live.stock import is_transformers
from netspectra.weight import Source

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["architecture", "check", "llama_quantize_lines", "write_gguf"]

BLOCK = 32
SUITED = 'for GGUF quantize with group=32, symmetric=True, scales="float16", levels of 16, 8, 5, 4 (--format gguf does)'
TYPES = {8: "Q8_0", 5: "Q5_0", 4: "Q4_0"}
LLAMA_QUANTIZE = {16: "f16", 8: "q8_0", 6: "q6_K", 5: "q5_K", 4: "q4_K", 3: "q3_K", 2: "q2_K"}
# Entries of a config -> keys of the metadata under the architecture's name.
KEYS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
FLOATS = {"rms_norm_eps": "attention.layer_norm_rms_epsilon", "layer_norm_epsilon": "attention.layer_norm_epsilon"}


def architecture(model: nn.Module) -> tuple[str, Architecture]:
    """The architecture's name in GGUF and its table.

    Raises:
        InputRefused: the table has none for this model; the gguf library is missing.
    """
    if find_spec("gguf") is None:
        raise lacking("the format gguf", "gguf")
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for name, row in ARCHITECTURES.items():
        if is_transformers(model) and row.model_type == kind and row.model == type(model).__name__:
            return name, row
    known = ", ".join(row.model for row in ARCHITECTURES.values())
    raise InputRefused(f"{type(model).__name__}: no GGUF architecture is known for it (known: {known})")


def _renamed(row: Architecture, parameter: str) -> tuple[str, str]:
    """A parameter's name in GGUF, and the stem of it with N for the layer's number."""
    stem, _, kind = parameter.rpartition(".")
    number = re.search(r"\.(\d+)\.", f".{stem}.")
    general = f".{stem}.".replace(f".{number[1]}.", ".N.", 1).strip(".") if number else stem
    for theirs, ours in row.names.items():
        if ours == general:
            return f"{theirs.replace('.N.', f'.{number[1]}.') if number else theirs}.{kind}", theirs
    raise InputRefused(f"{parameter}: has no name in GGUF's {row.model_type}")


def llama_quantize_lines(model: nn.Module) -> str:
    """Options for ``llama-quantize``, one a line: the bits of every tensor, in llama.cpp's own types.

    Its K types want rows of 256 numbers; where a row is no multiple of that, it falls back by itself. Corrections and
    codes are not in it: llama.cpp rounds anew.

    Raises:
        InputRefused: nothing is quantized, or the architecture is not known.
    """
    _, row = architecture(model)
    lines = []
    for name, module in coded_modules(model).items():
        theirs, _ = _renamed(row, f"{name}.weight")
        if _positions(row, name):
            continue
        lines.append(f"--tensor-type {re.escape(theirs)}={LLAMA_QUANTIZE[module.bits]}")
    return "\n".join(lines) + "\n"


def write_gguf(
    model: nn.Module, to: str | Path, *, source: Source | None, beside: Callable[[Path], None] = lambda folder: None
) -> Saved:
    """Write ``model.gguf`` and ``llama-quantize.txt`` into a folder.

    Tensors that were not quantized are float32 where they are vectors or positions, else float16, or bfloat16 where
    that is what they are. A quantized table of positions is decoded, as llama.cpp wants it in float32. Metadata and
    tokenizer are copied where the source is a GGUF file; from a transformers folder the file gets the architecture's
    numbers and no tokenizer, which its notes say.

    Raises:
        InputRefused: an architecture or codes that the format does not know; the gguf library is missing.
    """
    kind, row = architecture(model)
    every = coded_modules(model)
    modules = {name: module for name, module in every.items() if not _positions(row, name)}
    for name, module in modules.items():
        if reason := _refuses(module):
            raise InputRefused(f"{name}: {reason}; {SUITED}")
    from gguf import GGUFWriter

    notes = [f"{name}: a table of positions; decoded, float32" for name in every if name not in modules]
    with new_folder(to) as folder:
        beside(folder)
        (folder / "llama-quantize.txt").write_text(llama_quantize_lines(model), encoding="utf-8")
        if corrected := write_adapter(model, folder / FOLDER):
            notes.append(f"corrections of {len(corrected)} layers: {FOLDER}/ (llama.cpp's convert_lora_to_gguf.py)")
        writer = GGUFWriter(folder / "model.gguf", kind)
        notes += _metadata(writer, model, kind, source)
        for name, array, shape in _tensors(model, row, modules):
            writer.add_tensor(name, array, raw_shape=shape[0], raw_dtype=shape[1])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        size = (folder / "model.gguf").stat().st_size
    return Saved(str(to), size, True, 0, tuple(notes))


def check(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse, before any work, layers that would not fit into blocks of 32 numbers.

    Args:
        model: not yet quantized.
        names: of the layers that are to be.

    Raises:
        InputRefused: one does not, or the architecture is not known.
    """
    _, row = architecture(model)
    for name in names:
        stem = _renamed(row, f"{name}.weight")[1]
        shape = cast(Tensor, model.get_submodule(name).weight).shape
        columns = shape[0] if stem in row.transposed else shape[1]
        if columns % BLOCK and not _positions(row, name):
            raise InputRefused(
                f"{name}: rows of {columns} numbers make no blocks of {BLOCK} for GGUF: --exclude {name}.weight"
            )


def _positions(row: Architecture, name: str) -> bool:
    return row.names.get("position_embd") == name


def _refuses(module: CodedModule) -> str:
    if isinstance(module, CodedConvolution):
        return "GGUF holds no quantized convolutions"
    if module.bits == 16:
        return ""
    if module.bits not in TYPES:
        return f"GGUF's library writes no type of {module.bits} bits"
    assert module.scale is not None
    if module.zero is not None:
        return "has zero points"
    if module.columns != BLOCK * module.scale.shape[1]:
        return f"has groups of {module.columns // module.scale.shape[1]}, not 32"
    if module.scale.dtype != torch.float16:
        return "its scales are no float16"
    return ""


def _metadata(writer: GGUFWriter, model: nn.Module, kind: str, source: Source | None) -> list[str]:
    if source is not None and source.format == "gguf":
        _copied(writer, source)
        return []
    config: Any = model.config
    for word, key in KEYS.items():
        value = getattr(config, word, None)
        if value is None and word == "intermediate_size" and kind == "gpt2":
            value = 4 * config.hidden_size
        if isinstance(value, int):
            writer.add_uint32(f"{kind}.{key}", value)
    for word, key in FLOATS.items():
        if isinstance(value := getattr(config, word, None), float):
            writer.add_float32(f"{kind}.{key}", value)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        raise InputRefused(f"positions scaled by {rope['rope_type']}: not written to GGUF; use llama.cpp's converter")
    if "rope_theta" in rope:
        heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_float32(f"{kind}.rope.freq_base", float(rope["rope_theta"]))
        writer.add_uint32(f"{kind}.rope.dimension_count", heads)
    writer.add_uint32(f"{kind}.vocab_size", config.vocab_size)
    writer.add_string("tokenizer.ggml.model", "no_vocab")
    return ["without a tokenizer: take that of a file made by llama.cpp's convert_hf_to_gguf.py --vocab-only, or start "
            "from a GGUF file, whose tokenizer is copied"]  # fmt: skip


def _copied(writer: GGUFWriter, source: Source) -> None:
    """Metadata of the file the model came from, but for what describes how its tensors are stored."""
    from gguf import GGUFReader, GGUFValueType

    assert source.root is not None
    for key, field in GGUFReader(source.root).fields.items():
        skipped = key.startswith(("GGUF.", "split.")) or key in (
            "general.architecture", "general.file_type", "general.quantization_version"
        )  # fmt: skip
        if not skipped:
            inner = field.types[1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    writer.add_quantization_version(2)


def _tensors(
    model: nn.Module, row: Architecture, modules: Mapping[str, CodedModule]
) -> Iterator[tuple[str, np.ndarray, tuple[Any, Any]]]:
    """Name, array and (shape, type) of every tensor."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    plain = decoded(model, corrected=False)
    for name, value in plain.named_parameters():
        theirs, stem = _renamed(row, name)
        layer = name.removesuffix(".weight")
        heads = int(getattr(cast(Any, model.config), row.heads[stem])) if stem in row.heads else 0
        module = modules.get(layer) if name.endswith(".weight") else None
        if module is not None and module.bits != 16:
            blocks = _blocks(module, heads)
            yield theirs, blocks, (blocks.shape, getattr(GGMLQuantizationType, TYPES[module.bits]))
            continue
        tensor = _paired(value.detach(), heads)
        tensor = tensor.mT if stem in row.transposed and tensor.dim() == 2 else tensor
        numbers = np.ascontiguousarray(tensor.float().numpy())
        kind = _kind(value) if value.dim() > 1 and stem != "position_embd" else torch.float32
        if kind is torch.bfloat16:
            words = quantize(numbers, GGMLQuantizationType.BF16)
            yield theirs, words, (words.shape, GGMLQuantizationType.BF16)
            continue
        yield theirs, numbers.astype(np.float16 if kind is torch.float16 else np.float32), (None, None)


def _kind(value: Tensor) -> torch.dtype:
    """16 bits that hold a matrix: float16, but bfloat16 where that alone is exact; float32 where neither would do."""
    half = value.half()
    if not torch.equal(half.to(value.dtype), value) and torch.equal(value.bfloat16().to(value.dtype), value):
        return torch.bfloat16
    return torch.float16 if bool(half.isfinite().all()) else torch.float32


def _paired(value: Tensor, heads: int) -> Tensor:
    """Rows as llama.cpp rotates them: the two halves of every head interleaved."""
    if not heads:
        return value
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape)


def _blocks(module: CodedModule, heads: int) -> np.ndarray:
    """Blocks of 32 codes with their scale, as bytes (rows, bytes a row)."""
    assert module.scale is not None
    codes = _paired(unpack(module.codes, module.bits, module.columns), heads)
    scale = _paired(module.scale, heads)
    rows, groups = scale.shape
    d = scale.cpu().numpy().view(np.uint8).reshape(rows, groups, 2)
    q = codes.cpu().numpy().reshape(rows, groups, BLOCK)
    if module.bits == 8:
        body = (q.astype(np.int16) - 128).astype(np.int8).view(np.uint8)
        return np.concatenate([d, body], -1).reshape(rows, -1)
    low = (q[..., : BLOCK // 2] & 15) | ((q[..., BLOCK // 2 :] & 15) << 4)
    if module.bits == 4:
        return np.concatenate([d, low], -1).reshape(rows, -1)
    fifth = np.packbits(q >> 4, axis=-1, bitorder="little")
    return np.concatenate([d, fifth, low], -1).reshape(rows, -1)
