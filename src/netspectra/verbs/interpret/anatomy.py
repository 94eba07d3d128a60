"""Where a transformer keeps what its layers read and write: roles of its weights, by a table of names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from netspectra.errors import InputRefused
from netspectra.weight import Source, Weight

__all__ = ["Anatomy", "Layer", "anatomy"]

# The end of a weight's name -> its role in the layer; the first row that matches counts. Fused tensors come as views
# with [q], [k], [v], [gate], [up] behind their names.
ROLES: tuple[tuple[str, str], ...] = (
    (r"cross|encoder_attn|enc_dec", ""),  # attention to another stream: its two sides have two vocabularies
    (r"\[q\]$|(^|[._])(attn_q|q_proj|q_lin|query|wq)$", "query"),
    (r"\[k\]$|(^|[._])(attn_k|k_proj|k_lin|key|wk)$", "key"),
    (r"\[v\]$|(^|[._])(attn_v|v_proj|v_lin|value|wv)$", "value"),
    (r"(^|[._])(attn_output|o_proj|out_lin|wo)$|(^|\.)(attention\.output\.dense|attention\.dense)$", "output"),
    (r"(attn|attention|self_attn)\.(c_proj|out_proj|dense|proj)$", "output"),
    (r"\[gate\]$|(^|[._])(ffn_gate|gate_proj|w1)$", "gate"),
    (r"\[up\]$|(^|[._])(ffn_up|up_proj|c_fc|fc1|lin1|fc_in|dense_h_to_4h|w3)$|intermediate\.dense$", "up"),
    (r"(^|[._])(ffn_down|down_proj|fc2|lin2|fc_out|dense_4h_to_h|w2)$|mlp\.c_proj$|(^|\.)output\.dense$", "down"),
)
# Norms that stand before what reads the stream. Models that normalize after their blocks have none of these.
NORMS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(attn_norm|input_layernorm|ln_1|attention_norm|self_attn_layer_norm)$", "attention"),
    (r"(^|\.)(ffn_norm|pre_feedforward_layernorm|ln_2|mlp_norm)$", "mlp"),
    (r"(^|\.)post_attention_layernorm$", "mlp"),
)
EMBEDDING = re.compile(r"(^|\.)(token_embd|embed_tokens|word_embeddings|wte|tok_embeddings|embed_in)$")
UNEMBEDDING = re.compile(r"(^|\.)(lm_head|embed_out)$|^output$")
FINAL_NORM = re.compile(r"(^|\.)(output_norm|ln_f|final_layer_norm|final_layernorm)$|^(model\.)?norm$")
EMBEDDING_NORM = re.compile(r"(^|\.)(embeddings\.LayerNorm|token_embd_norm|embed_layer_norm)$", re.I)
LAYER = re.compile(r"^(?P<stem>.*?(?:^|[._]))(?P<number>\d+)(?=\.)")


@dataclass(frozen=True, eq=False)
class Layer:
    """One block.

    Attributes:
        name: its prefix, as ``model.layers.3``.
        number: its place.
        weights: by role: query, key, value, output, up, gate, down; what it has of them.
        gains: (d,) of the norm before its attention and before its mlp; absent where none stands there.
    """

    name: str
    number: int
    weights: Mapping[str, Weight]
    gains: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What is needed to read a transformer's weights.

    Attributes:
        layers: in order.
        reads: (V, d) unit rows: tokens as a layer meets them, each normalized as the stream is before it is read.
        writes: (V, d) what a direction of the stream adds to each token's logit is ``writes @ u``.
        heads: of queries; 0 where unknown.
        kv_heads: of keys and values.
        unembedding: the name of what ``writes`` comes from.
        notes: what had to be assumed.
    """

    layers: tuple[Layer, ...]
    reads: Tensor
    writes: Tensor
    heads: int
    kv_heads: int
    unembedding: str
    notes: tuple[str, ...] = field(default=())


def anatomy(source: Source, *, heads: int | None = None, kv_heads: int | None = None) -> Anatomy:
    """Find the layers, heads and token tables of a checkpoint or module.

    Args:
        source: an opened checkpoint or module.
        heads: number of attention heads, where nothing says it.
        kv_heads: of keys and values, likewise.

    Raises:
        InputRefused: no token embedding, or no layer that is known.
    """
    stems = {weight.name: _stem(weight.name) for weight in source}
    tables = [w for w in source if EMBEDDING.search(stems[w.name]) and len(w.part.shape) == 2]
    if not tables:
        raise InputRefused(
            f"{source.path}: has no token embedding to read directions by; interpret is for models that read tokens"
        )
    table = max(tables, key=lambda w: w.shape[0])
    vectors = {re.sub(r"\.(weight|gamma)$", "", ref.name): ref for ref in source.tensors
               if len(ref.shape) == 1 and re.search(r"\.(weight|gamma)$", ref.name)}  # fmt: skip
    plus_one = str(source.config.get("model_type", "")).startswith("gemma") and source.format != "gguf"
    d = table.shape[1]

    def gain(name: str) -> Tensor:
        found = vectors[name].load().double()
        return found + 1 if plus_one else found

    layers = _layers(source, stems, {n: gain(n) for n, ref in vectors.items() if ref.shape == (d,)}, d)
    if not layers:
        raise InputRefused(f"{source.path}: no attention or MLP whose names are known; weights: {_some(source)}")
    embedding = _loaded(table)
    notes = []
    first = next((name for name in vectors if EMBEDDING_NORM.search(name)), None)
    if first is not None and vectors[first].shape == (d,):
        embedding = torch.nn.functional.layer_norm(embedding, (d,)) * gain(first)
    heads_of_vocabulary = [w for w in source if UNEMBEDDING.search(stems[w.name]) and w.shape == table.shape]
    final = next((name for name in vectors if FINAL_NORM.search(name) and vectors[name].shape == (d,)), None)
    if heads_of_vocabulary:
        writes, named = _loaded(heads_of_vocabulary[0]), heads_of_vocabulary[0].name
    else:
        writes, named = _loaded(table), table.name
    if final is not None:
        writes = writes * gain(final)
    elif not heads_of_vocabulary:
        writes = embedding
        notes.append("the model has no unembedding: what is written is read through the token embedding")
    count = heads or _size(source, "num_attention_heads", "n_head", "n_heads", "num_heads") or 0
    kv = kv_heads or _size(source, "num_key_value_heads", "num_kv_heads") or count
    if not count:
        notes.append("the number of heads is unknown: attention is left out (give heads=)")
    normalized = any(layer.gains for layer in layers)
    if not normalized:
        notes.append("no norm stands before the layers (they normalize afterwards): directions are read as they are")
    return Anatomy(tuple(layers), _unit(embedding), writes.float(), count, kv, named, tuple(notes))


def _layers(source: Source, stems: Mapping[str, str], gains: Mapping[str, Tensor], d: int) -> list[Layer]:
    weights: dict[str, dict[str, Weight]] = {}
    numbers: dict[str, int] = {}
    for weight in source:
        match = LAYER.match(stems[weight.name])
        if match is None or weight.kind == "expert":
            continue
        role = next((role for pattern, role in ROLES if re.search(pattern, stems[weight.name][match.end() :])), "")
        side = weight.shape[0] if role in ("output", "down") else weight.shape[1]
        if role and side == d:
            weights.setdefault(match[0], {}).setdefault(role, weight)
            numbers[match[0]] = int(match["number"])
    norms: dict[str, dict[str, Tensor]] = {}
    for pattern, role in NORMS:
        for name, found in gains.items():
            match = LAYER.match(name)
            if match and match[0] in weights and re.search(pattern, name):
                norms.setdefault(match[0], {}).setdefault(role, found)
    order = sorted(weights, key=lambda name: (re.sub(r"\d+$", "", name), numbers[name]))
    return [Layer(name, numbers[name], weights[name], norms.get(name, {})) for name in order]


def _stem(name: str) -> str:
    """A weight's name without ``.weight`` and the like, its letter kept."""
    return re.sub(r"[._]weight(?=$|\[)", "", name)


def _loaded(weight: Weight) -> Tensor:
    operator = weight.operator()
    return operator.dense().float()  # pyright: ignore[reportAttributeAccessIssue]


def _unit(X: Tensor) -> Tensor:
    return X / torch.linalg.vector_norm(X, dim=1, keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)


def _size(source: Source, *names: str) -> int | None:
    found = next((source.config[name] for name in names if isinstance(source.config.get(name), int)), None)
    return found if found and found > 0 else None


def _some(source: Source) -> str:
    return ", ".join(weight.name for weight in source.weights[:4])
