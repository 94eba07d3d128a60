"""GGUF in the words of transformers: names, config, and the order of rows where llama.cpp changed it.

A table of architectures, each with its names; what no row knows is refused, never guessed. Where llama.cpp's converter
rearranges numbers (source: ggml-org/llama.cpp, ``convert_hf_to_gguf.py``), the loader puts them back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from netspectra.errors import InputRefused
from netspectra.weight import Index, Loader, Source, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ARCHITECTURES", "Architecture", "Interleaved", "Transposed", "for_transformers"]


@dataclass(frozen=True, eq=False)
class Interleaved:
    """Rows of rotary heads as transformers wants them, from pairs that stand side by side; a `Loader`.

    llama.cpp rotates neighbours (2i, 2i + 1) where transformers rotates (i, i + d/2), so its converter interleaves the
    two halves of every query and key head.
    """

    load: Loader
    heads: int

    def __call__(self, index: Index = ()) -> Tensor:
        """Load all rows, put the even ones of each head before the odd ones, and give ``tensor[index]``."""
        stored = self.load()
        pairs = stored.reshape(self.heads, stored.shape[0] // self.heads // 2, 2, *stored.shape[1:])
        found = pairs.transpose(1, 2).reshape(stored.shape)
        return found[index] if index else found


@dataclass(frozen=True, eq=False)
class Transposed:
    """A matrix that is stored the other way round (GPT-2's Conv1D); a `Loader`."""

    load: Loader

    def __call__(self, index: Index = ()) -> Tensor:
        """Load, transpose, and give ``tensor[index]``."""
        found = self.load().mT.contiguous()
        return found[index] if index else found


@dataclass(frozen=True)
class Architecture:
    """What one ``general.architecture`` is in transformers.

    Attributes:
        model_type: of the config.
        model: the class.
        names: stem of a tensor's name, with N for the layer's number -> stem of the parameter's.
        heads: stems whose rows are interleaved, and the config entry that counts their heads.
        transposed: stems that are stored the other way round.
        words: entries of the config that have another name here.
    """

    model_type: str
    model: str
    names: Mapping[str, str]
    heads: Mapping[str, str] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    words: Mapping[str, str] = field(default_factory=dict)


_DECODER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.N.attn_norm": "model.layers.N.input_layernorm",
    "blk.N.attn_q": "model.layers.N.self_attn.q_proj",
    "blk.N.attn_k": "model.layers.N.self_attn.k_proj",
    "blk.N.attn_v": "model.layers.N.self_attn.v_proj",
    "blk.N.attn_output": "model.layers.N.self_attn.o_proj",
    "blk.N.ffn_norm": "model.layers.N.post_attention_layernorm",
    "blk.N.ffn_gate": "model.layers.N.mlp.gate_proj",
    "blk.N.ffn_up": "model.layers.N.mlp.up_proj",
    "blk.N.ffn_down": "model.layers.N.mlp.down_proj",
}
_NORMED_HEADS = {
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.N.attn_norm": "transformer.h.N.ln_1",
    "blk.N.attn_qkv": "transformer.h.N.attn.c_attn",
    "blk.N.attn_output": "transformer.h.N.attn.c_proj",
    "blk.N.ffn_norm": "transformer.h.N.ln_2",
    "blk.N.ffn_up": "transformer.h.N.mlp.c_fc",
    "blk.N.ffn_down": "transformer.h.N.mlp.c_proj",
}
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(
        "llama", "LlamaForCausalLM", _DECODER,
        heads={"blk.N.attn_q": "num_attention_heads", "blk.N.attn_k": "num_key_value_heads"},
    ),
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", _DECODER),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", {**_DECODER, **_NORMED_HEADS}),
    "gpt2": Architecture(
        "gpt2", "GPT2LMHeadModel", _GPT2,
        transposed=frozenset(("blk.N.attn_qkv", "blk.N.attn_output", "blk.N.ffn_up", "blk.N.ffn_down")),
        words={"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
               "max_position_embeddings": "n_positions", "intermediate_size": "n_inner"},
    ),
}  # fmt: skip
# Computed from the config by transformers, or of another use.
_LEFT_OUT = re.compile(r"blk\.\d+\.attn_rot_embd\.|rope_freqs\.weight$|blk\.\d+\.attn_masked_bias")


def for_transformers(source: Source) -> tuple[dict[str, Any], tuple[TensorRef, ...]]:
    """The config and the tensors of a GGUF file as transformers names and orders them.

    Raises:
        InputRefused: an architecture, a scaling of positions or a tensor that the table does not know.
    """
    kind = str(source.config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise InputRefused(
            f"{source.path}: no live model is known for the GGUF architecture {kind!r} "
            f"(known: {', '.join(ARCHITECTURES)}); build it: --model module:callable"
        )
    row = ARCHITECTURES[kind]
    if source.config.get("num_experts"):
        raise InputRefused(f"{source.path}: a mixture of experts; from GGUF only dense {kind} models can be built")
    if any(ref.name == "rope_freqs.weight" for ref in source.tensors):
        raise InputRefused(f"{source.path}: rope_freqs.weight scales positions in a way no config entry says")
    refs = tuple(_renamed(source, row, ref) for ref in source.tensors if not _LEFT_OUT.match(ref.name))
    return _config(source, row), refs


def _config(source: Source, row: Architecture) -> dict[str, Any]:
    shapes = {ref.name: ref.shape for ref in source.tensors}
    found = {row.words.get(key, key): value for key, value in source.config.items()}
    found.update(model_type=row.model_type, architectures=[row.model])
    if "token_embd.weight" in shapes:
        found["vocab_size"] = shapes["token_embd.weight"][0]
    if row.model_type == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in shapes
        found["mlp_bias"] = "blk.0.ffn_up.bias" in shapes
    return found


def _renamed(source: Source, row: Architecture, ref: TensorRef) -> TensorRef:
    match = re.fullmatch(r"((?:blk\.(\d+)\.)?[a-z_]+)\.(weight|bias)", ref.name)
    number = match[2] if match else None
    stem = (match[1] if number is None else match[1].replace(f".{number}.", ".N.", 1)) if match else ""
    if match is None or stem not in row.names:
        raise InputRefused(f"{source.path}: {ref.name}: has no place in {row.model}; build it: --model module:callable")
    name = f"{row.names[stem].replace('.N.', f'.{number}.')}.{match[3]}"
    load, shape = ref.load, ref.shape
    if stem in row.heads:
        heads = source.config.get(row.heads[stem], source.config.get("num_attention_heads"))
        if not isinstance(heads, int) or heads < 1 or shape[0] % (2 * heads):
            raise InputRefused(f"{source.path}: {ref.name}: {shape[0]} rows are not {heads} heads of pairs")
        load = Interleaved(load, heads)
    if stem in row.transposed and len(shape) == 2:
        load, shape = Transposed(load), shape[::-1]
    return TensorRef(name, shape, ref.dtype, load, ref.facts, ref.identity, ref.problem, ref.stored)
