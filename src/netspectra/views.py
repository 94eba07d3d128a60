"""From named tensors to weight matrices: a table of rules, tried in order; what none claims is listed with the reason.

A rule looks at a tensor's name, shape and the facts its source knows, and says which matrices it holds. Rules know no
files and formats know no layers: they meet here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from netspectra.composed import compose
from netspectra.record import Skipped
from netspectra.weight import Factors, Layout, Part, TensorRef, Weight

__all__ = ["RULES", "Context", "Rule", "view"]


@dataclass(frozen=True)
class Context:
    """What is known beside the single tensor.

    Attributes:
        config: the model's ``config.json``, where there is one.
        shapes: every tensor's shape by name.
        origin: what was opened, for messages; empty for a live model.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    origin: str = ""

    @property
    def model_type(self) -> str:
        """The config's ``model_type``, or an empty text."""
        found = self.config.get("model_type")
        return found if isinstance(found, str) else ""

    def size(self, *names: str) -> int | None:
        """The first of these config entries that is a positive whole number; a nested text config counts too."""
        text = self.config.get("text_config")
        for config in (self.config, text if isinstance(text, dict) else {}):
            for name in names:
                found = config.get(name)
                if type(found) is int and found > 0:
                    return found
        return None


class Routine(str):
    """A reason that was to be expected: the tensor is not meant to be a matrix."""


Answer = list[Weight] | str | None
WEIGHTS = 1_000_000  # most that are viewed of one source


@dataclass(frozen=True)
class Rule:
    """A row of the table: a name for people, and the function that claims a tensor.

    ``claim(ref, context)`` gives the weights it holds, a text that says why it holds none, or None: not mine.
    """

    name: str
    claim: Callable[[TensorRef, Context], Answer]


def view(refs: Iterable[TensorRef], context: Context) -> tuple[list[Weight], list[Skipped]]:
    """Compose what is stored in pieces, then apply the rules to every tensor; tied names become aliases."""
    refs = compose(refs, context.config, context.origin)
    context = replace(context, shapes={ref.name: ref.shape for ref in refs})
    weights: list[Weight] = []
    skipped: list[Skipped] = []
    tied: dict[Any, list[str]] = {}
    for ref in refs:
        if ref.identity is not None:
            tied.setdefault(ref.identity, []).append(ref.name)
    for ref in refs:
        names = tied.get(ref.identity, [ref.name])
        if ref.identity is not None and ref.name != names[0]:
            continue
        answer = _first(ref, context)
        if isinstance(answer, str):
            skipped.append(Skipped(ref.name, ref.shape, str(answer), isinstance(answer, Routine)))
        elif len(weights) + len(answer) > WEIGHTS:
            skipped.append(Skipped(ref.name, ref.shape, f"one of more than {WEIGHTS} matrices: not viewed"))
        else:
            weights.extend(_aliased(weight, ref.name, tuple(names[1:])) for weight in answer)
    return weights, skipped


def _aliased(weight: Weight, name: str, aliases: tuple[str, ...]) -> Weight:
    if not aliases:
        return weight
    suffix = weight.name.removeprefix(name)
    return replace(weight, aliases=tuple(f"{alias}{suffix}" for alias in aliases))


def _first(ref: TensorRef, context: Context) -> list[Weight] | str:
    for rule in RULES:
        answer = rule.claim(ref, context)
        if answer is not None:
            return answer
    return f"no rule for a tensor with {len(ref.shape)} axes"


# ---- what holds no matrix ----------------------------------------------------------------------------------------


def _unreadable(ref: TensorRef, context: Context) -> Answer:
    return (Routine(ref.problem) if ref.facts.get("routine") else ref.problem) or None


def _not_numbers(ref: TensorRef, context: Context) -> Answer:
    if ref.dtype.startswith(("float", "bfloat", "complex")) and ref.dtype != "float8_e8m0fnu":
        return None
    reason = f"{ref.dtype} numbers are codes, indices or flags, not weights"
    return Routine(reason) if ref.dtype in ("int64", "int32", "bool") or len(ref.shape) < 2 else reason


def _vector(ref: TensorRef, context: Context) -> Answer:
    if ref.numel == 0:
        return Routine("empty")
    if len(ref.shape) < 2 or ref.facts.get("bias"):
        return Routine("a vector (bias, gain or statistic): no spectrum" if ref.shape else "a single number")
    if len(ref.shape) > 2 and sum(size > 1 for size in ref.shape) < 2 and not ref.facts.get("conv"):
        return Routine("a vector in the shape of a tensor: no spectrum")
    return None


def _scale(ref: TensorRef, context: Context) -> Answer:
    return (
        Routine("scales or zero points of quantized weights, used to decode them") if ref.facts.get("scale") else None
    )


def _buffer(ref: TensorRef, context: Context) -> Answer:
    return Routine("a buffer, not a parameter") if ref.facts.get("buffer") else None


def _adapter(ref: TensorRef, context: Context) -> Answer:
    factors = ref.facts.get("factors")
    if not isinstance(factors, Factors):
        return None
    least = min(factors.shape)
    if factors.rank < least:
        zero = f"rank at most {factors.rank} by construction: all other singular values are zero"
        notes = (f"{zero}; sigma_min and condition_number are of these {factors.rank}",)
    else:
        notes = (f"rank at most {least}: its {factors.rank} columns of factors are no fewer",)
    return [Weight(ref.name, "lora", Part(ref), notes=(*notes, *ref.facts.get("notes", ())), factors=factors)]


# ---- names ----------------------------------------------------------------------------------------------------


def _ends(name: str, pattern: re.Pattern[str]) -> bool:
    """Whether a pattern that looks at no more than the last two parts of a dotted name finds itself there."""
    return _found(pattern, name[max(0, name.rfind(".", 0, max(0, name.rfind(".")))) :])


@lru_cache(maxsize=4096)
def _found(pattern: re.Pattern[str], end: str) -> bool:
    return pattern.search(end) is not None


# ---- fused projections -------------------------------------------------------------------------------------------

QKV = re.compile(r"(^|[._])(qkv(_proj)?|wqkv|in_proj|query_key_value|attn_qkv|to_qkv|c_attn)([._]weight)?$", re.I)
PER_HEAD = ("bloom", "gpt_neox", "gpt_neox_japanese", "persimmon")


def _letters(ref: TensorRef, parts: Mapping[str, Part], kind: str = "linear", layout: Layout = Layout()) -> Answer:
    return [Weight(f"{ref.name}[{letter}]", kind, part, layout) for letter, part in parts.items()]


def _cuts(ref: TensorRef, axis: int, sizes: Mapping[str, int]) -> dict[str, Part]:
    """Consecutive runs of ``axis``."""
    parts, start = {}, 0
    for letter, size in sizes.items():
        parts[letter] = Part(ref, (*[slice(None)] * axis, slice(start, start + size)))
        start += size
    return parts


def _whole(ref: TensorRef, note: str, layout: Layout) -> Answer:
    return [Weight(ref.name, "linear", Part(ref), layout, notes=(note,))]


def _fused_qkv(ref: TensorRef, context: Context) -> Answer:
    if len(ref.shape) != 2 or not _ends(ref.name, QKV) or ref.name.endswith("in_proj.weight"):
        return None
    first = _input_first(ref, context)
    layout = Layout(rows=(1,)) if first else Layout()
    axis = 1 if first else 0
    fused, inputs = ref.shape[axis], ref.shape[1 - axis]
    heads = context.size("num_attention_heads", "n_head", "n_heads", "num_heads")
    kv_heads = context.size("num_key_value_heads", "multi_query_group_num", "num_kv_heads")
    per_head = context.model_type in PER_HEAD and not ref.name.endswith("attn_qkv.weight")  # GGUF has them in order
    if per_head and heads and fused % (3 * heads) == 0:
        shape = (heads, 3, fused // (3 * heads), inputs)
        rows = Layout(rows=(0, 1))
        return _letters(ref, {c: Part(ref, (slice(None), i), shape) for i, c in enumerate("qkv")}, layout=rows)
    if "query_key_value" in ref.name and context.model_type not in ("chatglm", "glm"):
        return _whole(ref, "fused query, key and value in an order the checkpoint does not tell: kept whole", layout)
    if heads and kv_heads and kv_heads != heads and fused % (heads + 2 * kv_heads) == 0:
        head = fused // (heads + 2 * kv_heads)
        return _letters(ref, _cuts(ref, axis, {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}),
                        layout=layout)  # fmt: skip
    if fused == 3 * inputs:
        return _letters(ref, _cuts(ref, axis, dict.fromkeys("qkv", inputs)), layout=layout)
    return _whole(ref, "fused query, key and value of unequal size, unknown without config.json: kept whole", layout)


def _told_qkv(ref: TensorRef, context: Context) -> Answer:
    """The source knows the sizes of query, key and value, as ONNX's fused attention does."""
    sizes = ref.facts.get("qkv")
    first = _input_first(ref, context)
    if sizes is None or len(ref.shape) != 2 or len(sizes) != 3 or sum(sizes) != ref.shape[1 if first else 0]:
        return None
    layout = Layout(rows=(1,)) if first else Layout()
    return _letters(ref, _cuts(ref, 1 if first else 0, dict(zip("qkv", sizes, strict=True))), layout=layout)


GATE_UP = re.compile(r"(^|\.)gate_up_proj(\.weight)?$")
GPT2 = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")


def _fused_gate_up(ref: TensorRef, context: Context) -> Answer:
    if len(ref.shape) != 2 or ref.shape[0] % 2:
        return None
    half = ref.shape[0] // 2
    twice = ref.name.endswith(".ffn_up.weight") and half == context.size("intermediate_size")  # GGUF of Phi-3, GLM
    if not twice and not _ends(ref.name, GATE_UP):
        return None
    return _letters(ref, _cuts(ref, 0, {"gate": half, "up": half}))


def _input_first(ref: TensorRef, context: Context) -> bool:
    """Whether a matrix is stored inputs by outputs, as GPT-2's Conv1D does."""
    if "input_first" in ref.facts:
        return bool(ref.facts["input_first"])
    gpt2 = context.model_type in ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
    shaped = ref.name.endswith("c_attn.weight") and ref.shape[1] == 3 * ref.shape[0]
    return shaped or (gpt2 and _ends(ref.name, GPT2))


# ---- recurrent, experts, bilinear ---------------------------------------------------------------------------------

MOST = 4096  # experts or outputs of one tensor: each becomes a weight of its own
GATES = {4: ("i", "f", "g", "o"), 3: ("r", "z", "n")}


RECURRENT = re.compile(r"(?P<head>^|.*[._])(?P<word>weight|w)_(?P<use>ih|hh|hr)(?P<tail>(_l\d+)?(_reverse)?)$")


def _told_gates(ref: TensorRef, context: Context) -> Answer:
    """The source knows the order of the gates: ONNX (direction, gate x hidden, input), Keras (input, gate x hidden)."""
    gates = ref.facts.get("gates")
    if not gates or len(ref.shape) not in (2, 3):
        return None
    first = bool(ref.facts.get("input_first"))
    axis = len(ref.shape) - (1 if first else 2)
    if ref.shape[axis] % len(gates) or (len(ref.shape) == 3 and ref.shape[0] > MOST):
        return None
    size = ref.shape[axis] // len(gates)
    layout = Layout(rows=(1,)) if first else Layout()
    kind = {4: "lstm", 3: "gru"}.get(len(gates), "rnn")
    weights: list[Weight] = []
    for direction in range(ref.shape[0] if len(ref.shape) == 3 else 1):
        ways = {1: ("",), 2: ("[forward]", "[reverse]")}.get(ref.shape[0] if len(ref.shape) == 3 else 1)
        way = ways[direction] if ways else f"[direction {direction}]"
        for place, letter in enumerate(gates):
            cut = (slice(None), slice(place * size, (place + 1) * size)) if first else (
                slice(place * size, (place + 1) * size),
            )  # fmt: skip
            index = (direction, *cut) if len(ref.shape) == 3 else cut
            name = f"{ref.name}{way}[{letter}]" if letter else f"{ref.name}{way}"
            weights.append(Weight(name, kind, Part(ref, index), layout))
    return weights


def _recurrent(ref: TensorRef, context: Context) -> Answer:
    match = RECURRENT.match(ref.name) if "_h" in ref.name or "_ih" in ref.name else None
    if not match or len(ref.shape) != 2:
        return None
    if match["use"] == "hr":
        return [Weight(ref.name, "rnn", Part(ref))]
    shapes = {use: context.shapes.get(f"{match['head']}{match['word']}_{use}{match['tail']}") for use in ("hh", "hr")}
    state = ref.shape if match["use"] == "hh" else shapes["hh"]
    outputs = ref.shape[0]
    ratio = 4 if shapes["hr"] else (outputs // state[1] if state and len(state) == 2 and state[1] else 0)
    if ratio not in GATES or outputs % ratio:
        return [Weight(ref.name, "rnn", Part(ref))]
    kind = "lstm" if ratio == 4 else "gru"
    return _letters(ref, _cuts(ref, 0, dict.fromkeys(GATES[ratio], outputs // ratio)), kind)


def _experts(ref: TensorRef, context: Context) -> Answer:
    if len(ref.shape) != 3 or not re.search(r"expert|_(ch)?exps(\.|$)", ref.name.lower()):
        return None
    count, a, b = ref.shape
    if count > MOST:
        return f"{count} matrices in one tensor: at most {MOST} are viewed"
    hidden = context.size("hidden_size", "d_model", "n_embd")
    fused = re.search(r"gate_up_(proj|exps)(\.weight)?$", ref.name) is not None
    transposed = fused and a == hidden and b != hidden
    layout = Layout(rows=(1,)) if transposed else Layout()
    interleaved = context.model_type == "gpt_oss"
    weights: list[Weight] = []
    for expert in range(count):
        name = f"{ref.name}[expert {expert}]"
        outputs = b if transposed else a
        if not fused or outputs % 2:
            weights.append(Weight(name, "expert", Part(ref, (expert,)), layout))
            continue
        for position, letter in enumerate(("gate", "up")):
            cut = (
                slice(position, None, 2)
                if interleaved
                else slice(position * outputs // 2, (position + 1) * outputs // 2)
            )
            index = (expert, slice(None), cut) if transposed else (expert, cut)
            weights.append(Weight(f"{name}[{letter}]", "expert", Part(ref, index), layout))
    return weights


def _bilinear(ref: TensorRef, context: Context) -> Answer:
    if not ref.facts.get("bilinear") or len(ref.shape) != 3:
        return None
    if ref.shape[0] > MOST:
        return f"{ref.shape[0]} matrices in one tensor: at most {MOST} are viewed"
    return [Weight(f"{ref.name}[output {i}]", "bilinear", Part(ref, (i,))) for i in range(ref.shape[0])]


# ---- the common kinds ---------------------------------------------------------------------------------------------

TABLE = re.compile(r"(^|[._])(pos_embed\w*|position_embeddings?|rel_pos\w*|latents?|query_tokens)(\.weight)?$", re.I)
EMBEDDING = re.compile(
    r"(^|\.)(\w*embeddings?|embed\w*|\w+_embed|wte|wpe|tok_embeddings|\w+_embd|token_types|shared|lm_head_embed)\.weight$"
    r"|(^|[._])emb$",
    re.I,
)


def _position_table(ref: TensorRef, context: Context) -> Answer:
    if len(ref.shape) != 3 or ref.shape[0] != 1 or not _ends(ref.name, TABLE):
        return None
    return [Weight(ref.name, "embedding", Part(ref, (0,)))]


def _convolution(ref: TensorRef, context: Context) -> Answer:
    if not 3 <= len(ref.shape) <= 5:
        return None
    spatial = len(ref.shape) - 2
    if not ref.facts.get("conv"):
        notes = ("the file does not tell groups, stride or padding: unfolded as one ungrouped convolution",)
        depthwise = ref.shape[1] == 1 and ref.shape[0] > 1
        return [Weight(ref.name, f"conv{spatial}d", Part(ref), notes=notes if depthwise else ())]
    if ref.facts["transposed"]:
        return [Weight(ref.name, f"conv_transpose{spatial}d", Part(ref), Layout((1,), ref.facts["groups"]))]
    return [Weight(ref.name, f"conv{spatial}d", Part(ref), Layout((0,), ref.facts["groups"]))]


def _matrix(ref: TensorRef, context: Context) -> Answer:
    if len(ref.shape) != 2:
        return None
    if ref.facts.get("embedding") or _ends(ref.name, EMBEDDING) or _ends(ref.name, TABLE):
        return [Weight(ref.name, "embedding", Part(ref))]
    return [Weight(ref.name, "linear", Part(ref), Layout((1,)) if _input_first(ref, context) else Layout())]


RULES: tuple[Rule, ...] = (
    Rule("unreadable", _unreadable),
    Rule("scale", _scale),
    Rule("not numbers", _not_numbers),
    Rule("adapter", _adapter),
    Rule("vector", _vector),
    Rule("buffer", _buffer),
    Rule("query, key, value by facts", _told_qkv),
    Rule("fused query, key, value", _fused_qkv),
    Rule("fused gate and up", _fused_gate_up),
    Rule("gates by facts", _told_gates),
    Rule("recurrent", _recurrent),
    Rule("experts", _experts),
    Rule("bilinear", _bilinear),
    Rule("position table", _position_table),
    Rule("convolution", _convolution),
    Rule("matrix", _matrix),
)
