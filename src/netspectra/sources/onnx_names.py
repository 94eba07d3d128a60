"""Which module a weight with a generated name came from, by the bias beside it or the name of the node that uses it."""

from __future__ import annotations

import re
from collections.abc import Container

from netspectra.sources.onnx_graph import Graph, Node

__all__ = ["module_name"]

# Names that exporters make up, and what quantizers append to those they find.
ANONYMOUS = re.compile(r"(.*/)?(onnx::\w+_\d+|val_\d+|_v_\d+|\d+|t_?\d*|(\w*_)?[Cc]onstant\w*|)")
APPENDED = re.compile(r"(_quantized|_q|_f|_DequantizeLinear_Output|_dequantized|_cast)$")
STEPS = 5


def module_name(graph: Graph, node: Node, names: list[str], suffix: str, taken: Container[str]) -> str:
    """A weight's name: its own, if a person gave it; else after its module; else its own all the same.

    Args:
        graph: the graph.
        node: the node that uses the weight.
        names: the weight's name and those of the values between it and the node.
        suffix: what the module calls it (``weight``).
        taken: names that other tensors have.
    """
    raw = names[0]
    coded = len(names) > 1 or APPENDED.search(raw) is not None
    for name in [APPENDED.sub("", name) for name in names] if coded else names:
        if not ANONYMOUS.fullmatch(name) and (name == raw or name not in taken):
            return name
    for module in (_by_bias(graph, node), _by_path(node)):
        if module and f"{module}.{suffix}" not in taken:
            return f"{module}.{suffix}"
    return raw


def _by_bias(graph: Graph, node: Node) -> str:
    """The module whose bias is added to the node's output."""
    inputs, outputs = list(node.inputs), list(node.outputs[:1])
    for _ in range(STEPS):
        for value in inputs:
            held = graph.tensors.get(value)
            name = APPENDED.sub("", held.name) if held else ""
            if name.endswith(".bias"):
                return name.removesuffix(".bias")
        behind = [consumer for value in outputs for consumer in graph.consumers.get(value, ())]
        if len(behind) != 1 or behind[0].op not in ("Add", "Cast", "Mul", "QuantizeLinear", "DequantizeLinear"):
            return ""
        inputs, outputs = (behind[0].inputs if behind[0].op == "Add" else []), behind[0].outputs
    return ""


def _by_path(node: Node) -> str:
    """The module in a node's name: ``/encoder/layer.0/query/MatMul`` is of ``encoder.layer.0.query``."""
    *path, last = node.name.split("/")
    if not last.startswith(node.op.removesuffix("Integer").removeprefix("QLinear")):
        return ""
    parts: list[str] = []
    for part in path:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        if part:
            parts.append(part)
    return ".".join(parts)
