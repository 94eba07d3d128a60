"""A quantized model as a GGUF file, and as the lines that make ``llama-quantize`` give each tensor its bits.

Symmetric codes in groups of 32 are what GGUF's Q8_0, Q5_0 and Q4_0 hold, so they are written as they are, code by code
(layout: ggml's documentation of its block types); everything else is refused rather than rounded again in silence.
Names and orders: `netspectra.live.gguf`, the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.checkpoint import new_folder
from netspectra.errors import InputRefused
from netspectra.forms.coded import CodedLinear, CodedModule
from netspectra.linalg.packing import unpack
from netspectra.live.gguf import ARCHITECTURES, Architecture
from netspectra.live.runtimes import coded_modules, decoded, lacking
from netspectra.live.runtimes.adapter import FOLDER, write_adapter
from netspectra.live.saved import Saved
from netspectra.live.stock import is_transformers
from netspectra.weight import Source

if TYPE_CHECKING:
    from gguf import GGUFWriter

__all__ = ["llama_quantize_lines", "write_gguf"]

BLOCK = 32
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


def _row(model: nn.Module) -> tuple[str, Architecture]:
    """The architecture's name in GGUF and its table.

    Raises:
        InputRefused: the table has none for this model.
    """
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
    _, row = _row(model)
    lines = []
    for name, module in coded_modules(model).items():
        theirs, _ = _renamed(row, f"{name}.weight")
        lines.append(f"--tensor-type {re.escape(theirs)}={LLAMA_QUANTIZE[module.bits]}")
    return "\n".join(lines) + "\n"


def write_gguf(
    model: nn.Module, to: str | Path, *, source: Source | None, beside: Callable[[Path], None] = lambda folder: None
) -> Saved:
    """Write ``model.gguf`` and ``llama-quantize.txt`` into a folder.

    Tensors that were not quantized are float32 where they are vectors, float16 else. Metadata and tokenizer are copied
    where the source is a GGUF file; from a transformers folder the file gets the architecture's numbers and no
    tokenizer, which its notes say.

    Raises:
        InputRefused: an architecture or codes that the format does not know; the gguf library is missing.
    """
    if find_spec("gguf") is None:
        raise lacking("the format gguf", "gguf")
    kind, row = _row(model)
    modules = coded_modules(model)
    for name, module in modules.items():
        if reason := _refuses(module):
            raise InputRefused(
                f"{name}: {reason}; for GGUF quantize with group=32, symmetric=True, levels of 16, 8, 5, 4 "
                "(--group 32 --symmetric --level 8 --level 4)"
            )
    from gguf import GGUFWriter

    notes = []
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


def _refuses(module: CodedModule) -> str:
    if not isinstance(module, CodedLinear):
        return "GGUF holds quantized Linear layers"
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
        kind = np.float32 if tensor.dim() < 2 else np.float16
        yield theirs, np.ascontiguousarray(tensor.float().numpy().astype(kind)), (None, None)


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
