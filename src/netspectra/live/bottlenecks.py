"""Which tensors of a graph everything must pass through, and where a graph has a way around."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Node", "bottlenecks", "bypassed", "first_sum"]

Node = Any  # a node of autograd's graph: it has next_functions and a name

# What an identity path may contain: sums, views and what acts on each number or normalises, but nothing that mixes.
PASSING = (
    *(
        "Add",
        "Sub",
        "Clone",
        "Alias",
        "View",
        "UnsafeView",
        "ReshapeAlias",
        "Transpose",
        "Permute",
        "T",
        "To",
        "ToCopy",
    ),
    *("Relu", "LeakyRelu", "Gelu", "Silu", "Elu", "Tanh", "Softplus", "Hardtanh", "Hardswish", "Mish", "NativeDropout"),
    *("NativeLayerNorm", "NativeBatchNorm", "FusedRmsNorm", "Squeeze", "Unsqueeze", "Expand", "Contiguous"),
)


def bottlenecks(output: Node, start: Node, candidates: Sequence[Node]) -> list[Node]:
    """Those candidates that lie on every path from the start to the output, in the order of the paths.

    In a topological order of the nodes between the two, a node is a bottleneck if no edge passes over it.

    Cost: linear in the size of the graph.
    """
    order = _ordered(output, start)
    place = {node: position for position, node in enumerate(order)}
    jumps = [0] * (len(order) + 1)
    for node in order:
        for below, _ in node.next_functions:
            if below in place:
                jumps[place[node] + 1] += 1
                jumps[place[below]] -= 1
    over, free = 0, set()
    for position, node in enumerate(order):
        over += jumps[position]
        if not over:
            free.add(node)
    return sorted({c for c in candidates if c in free}, key=lambda node: -place[node])


def bypassed(above: Node, below: Node) -> list[Node]:
    """The nodes of an identity path from ``below`` up to ``above``, both ends included; empty where there is none."""
    seen = {above: None}
    waiting = [above]
    while waiting:
        node = waiting.pop()
        if node is below:
            path = []
            while node is not None:
                path.append(node)
                node = seen[node]
            return path
        if _name(node) in PASSING:
            for child, _ in node.next_functions:
                if child is not None and child not in seen:
                    seen[child] = node
                    waiting.append(child)
    return []


def first_sum(path: Sequence[Node]) -> Node | None:
    """The sum of a residual on its identity path: where branch and stream meet."""
    return next((node for node in path if _name(node) == "Add"), None)


def _name(node: Node) -> str:
    """``Addmm`` of ``AddmmBackward0``."""
    return node.name().rsplit("::", 1)[-1].split("Backward")[0]


def _ordered(output: Node, start: Node) -> list[Node]:
    """The nodes on any path from output to start, every node before those below it."""
    finished: dict[Node, bool] = {}  # whether the start can be reached from it
    order: list[Node] = []
    stack: list[tuple[Node, bool]] = [(output, False)]
    while stack:
        node, done = stack.pop()
        if done:
            finished[node] = node is start or any(finished.get(below, False) for below, _ in node.next_functions)
            if finished[node]:
                order.append(node)
        elif node not in finished:
            finished[node] = False
            stack.append((node, True))
            stack += [(below, False) for below, _ in node.next_functions if below is not None and below not in finished]
    return order[::-1]
