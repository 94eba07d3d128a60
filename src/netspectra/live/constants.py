"""Lipschitz constants, in the Euclidean norm, of what networks are made of, and of their compositions.

Note [Composition]
A traced graph is walked from the input on; each value carries a number L with ||dv|| <= L ||dx||. A layer multiplies
by its own constant, a sum adds the numbers of its terms, a concatenation takes the root of the sum of their squares.
What has no constant (dot-product attention, products of two signals) makes the number infinite, and the reason is kept.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from netspectra.errors import InputRefused
from netspectra.live.maps import linear_map
from netspectra.live.norm import norm_of

__all__ = ["Certificate", "Shapes", "certify", "layer_constant"]

# Distinct input shapes, batch first, of every layer by module name.
Shapes = Mapping[str, Sequence[tuple[int, ...]]]

# Largest slope of functions that act on each number alone; the roots and maxima are rounded up.
SLOPES: dict[type[nn.Module], float] = {
    nn.Identity: 1.0,
    nn.Dropout: 1.0,
    nn.Dropout1d: 1.0,
    nn.Dropout2d: 1.0,
    nn.Dropout3d: 1.0,
    nn.AlphaDropout: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
    nn.PixelShuffle: 1.0,
    nn.PixelUnshuffle: 1.0,
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Hardtanh: 1.0,
    nn.Tanh: 1.0,
    nn.Tanhshrink: 1.0,
    nn.Softplus: 1.0,
    nn.Softsign: 1.0,
    nn.LogSigmoid: 1.0,
    nn.Softshrink: 1.0,
    nn.CELU: 1.0,
    nn.Sigmoid: 0.25,
    nn.Hardsigmoid: 0.16667,
    nn.GELU: 1.1290,
    nn.SiLU: 1.0999,
    nn.Mish: 1.0885,
    nn.Hardswish: 1.5,
    nn.SELU: 1.7581,
    nn.Softmax: 1.0,
    nn.ZeroPad1d: 1.0,
    nn.ZeroPad2d: 1.0,
    nn.ZeroPad3d: 1.0,
}

# The same for functions and methods that a trace shows.
FUNCTIONS: dict[Any, float] = {
    torch.relu: 1.0,
    torch.relu_: 1.0,
    F.relu: 1.0,
    F.relu6: 1.0,
    torch.tanh: 1.0,
    F.tanh: 1.0,
    torch.sigmoid: 0.25,
    F.sigmoid: 0.25,
    F.gelu: 1.1290,
    F.silu: 1.0999,
    F.mish: 1.0885,
    F.hardswish: 1.5,
    F.softplus: 1.0,
    F.softmax: 1.0,
    torch.softmax: 1.0,
    F.dropout: 1.0,
    torch.flatten: 1.0,
    torch.reshape: 1.0,
    torch.squeeze: 1.0,
    torch.unsqueeze: 1.0,
    torch.transpose: 1.0,
    torch.permute: 1.0,
    torch.neg: 1.0,
    torch.abs: 1.0,
    torch.sin: 1.0,
    torch.cos: 1.0,
    operator.neg: 1.0,
    operator.getitem: 1.0,
}
METHODS = frozenset(
    (
        *("view", "reshape", "flatten", "squeeze", "unsqueeze", "transpose", "permute", "contiguous", "relu", "tanh"),
        *("neg", "abs", "clone", "t", "chunk", "split", "unflatten", "movedim", "swapaxes"),
    )
)
SUMS = (operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub)
PRODUCTS = (operator.mul, operator.imul, torch.mul)


def layer_constant(module: nn.Module, shape: Sequence[int] = ()) -> float:
    """A Lipschitz constant of one layer in eval mode, from its input (batch first) to its output.

    Linear layers: the rigorous upper bound of the operator norm (`netspectra.operator_norm`). LayerNorm, GroupNorm and
    RMSNorm: max |gamma| / sqrt(eps), true but seldom near what is used.

    Raises:
        InputRefused: there is no finite one, or none is known; the text says which.

    >>> layer_constant(nn.LeakyReLU(2.0))
    2.0
    """
    kind = _plain(module)
    if kind in SLOPES:
        return SLOPES[kind]
    rule = next((rule for of, rule in RULES.items() if isinstance(module, of)), None)
    if rule is not None:
        return rule(module, tuple(shape))
    if isinstance(module, nn.MultiheadAttention):
        raise InputRefused("dot-product attention has no Lipschitz constant (Kim et al. 2021, arXiv:2006.04710)")
    grid = tuple(shape)
    found = norm_of(linear_map(module, grid)(cast(Tensor, module.weight).detach()))
    return max(found.upper, found.value)


def _plain(module: nn.Module) -> type[nn.Module]:
    """The class, without what a parametrization put on top."""
    kind = type(module)
    return kind.__bases__[0] if kind.__name__.startswith("Parametrized") else kind


def _leaky(module: nn.Module, shape: tuple[int, ...]) -> float:
    return max(1.0, abs(cast(nn.LeakyReLU, module).negative_slope))


def _elu(module: nn.Module, shape: tuple[int, ...]) -> float:
    return max(1.0, abs(cast(nn.ELU, module).alpha))


def _prelu(module: nn.Module, shape: tuple[int, ...]) -> float:
    return max(1.0, float(cast(nn.PReLU, module).weight.detach().abs().max()))


def _batch_norm(module: nn.Module, shape: tuple[int, ...]) -> float:
    norm = cast(nn.BatchNorm2d, module)
    if norm.running_var is None:
        raise InputRefused(f"{type(module).__name__} without running statistics ties the samples of a batch together")
    scale = torch.rsqrt(norm.running_var + norm.eps)
    return float((scale if norm.weight is None else scale * norm.weight.detach().abs()).max())


def _sample_norm(module: nn.Module, shape: tuple[int, ...]) -> float:
    norm = cast(nn.LayerNorm, module)
    eps = norm.eps if norm.eps is not None else torch.finfo(torch.float32).eps
    gamma = 1.0 if norm.weight is None else float(norm.weight.detach().abs().max())
    if eps <= 0:
        raise InputRefused(f"{type(module).__name__} with eps 0 has no Lipschitz constant")
    return gamma / math.sqrt(eps)


def _max_pool(module: nn.Module, shape: tuple[int, ...]) -> float:
    pool = cast(nn.MaxPool2d, module)
    return math.sqrt(_overlap(pool.kernel_size, pool.stride, len(shape) - 2, pool.dilation))


def _average_pool(module: nn.Module, shape: tuple[int, ...]) -> float:
    pool = cast(nn.AvgPool2d, module)
    size = math.prod(_each(pool.kernel_size, len(shape) - 2))
    return math.sqrt(_overlap(pool.kernel_size, pool.stride, len(shape) - 2) / size)


def _overlap(size: Any, stride: Any, dims: int, dilation: Any = 1) -> int:
    """In how many windows a place can be."""
    reach = zip(_each(size, dims), _each(stride, dims), _each(dilation, dims), strict=True)
    return math.prod(k if d > 1 else -(-k // s) for k, s, d in reach)


def _adaptive_average(module: nn.Module, shape: tuple[int, ...]) -> float:
    pool = cast(nn.AdaptiveAvgPool2d, module)
    norm = 1.0
    for n, out in zip(shape[2:], _each(pool.output_size, len(shape) - 2), strict=True):
        out = n if out is None else out
        columns = [0.0] * n
        for i in range(out):
            window = range(i * n // out, -(-(i + 1) * n // out))
            for place in window:
                columns[place] += 1 / len(window)
        norm *= math.sqrt(max(columns))  # rows sum to one: ||A||^2 <= largest row sum x largest column sum
    return norm


def _each(value: Any, dims: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


RULES: dict[Any, Callable[[nn.Module, tuple[int, ...]], float]] = {
    nn.LeakyReLU: _leaky,
    nn.ELU: _elu,
    nn.PReLU: _prelu,
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm): _sample_norm,
    (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d): _max_pool,
    (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d): _average_pool,
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d): _adaptive_average,
}


@dataclass
class Certificate:
    """What composition gives.

    Attributes:
        bound: no pair of inputs is driven further apart by a larger factor; infinite where none is known.
        reasons: why it is infinite.
        constants: of every layer that was met, by module name.
    """

    bound: float
    reasons: list[str] = field(default_factory=list)
    constants: dict[str, float] = field(default_factory=dict)


def certify(model: nn.Module, shapes: Shapes) -> Certificate:
    """Bound the Lipschitz constant of a model in eval mode by composition (see Note [Composition]).

    Args:
        model: any module; what `torch.fx` cannot trace has no bound, and the reason says so.
        shapes: which inputs the layers see; the norm of a convolution depends on them.

    >>> model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    >>> certify(model, {}).bound == layer_constant(model[0])
    True
    """
    found = Certificate(math.inf)
    try:
        graph = fx.Tracer().trace(model)
    except (TraceError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError) as wrong:
        found.reasons.append(f"torch.fx cannot trace {type(model).__name__}: {str(wrong).splitlines()[0][:200]}")
        return found
    modules = dict(model.named_modules())
    values: dict[fx.Node, float] = {}
    for node in graph.nodes:
        if node.op == "output":
            found.bound = math.sqrt(sum(values[n] ** 2 for n in node.all_input_nodes))
        elif node.op == "placeholder":
            values[node] = 1.0
        elif node.op == "get_attr":
            values[node] = 0.0
        else:
            try:
                values[node] = _node(node, values, modules, shapes, found)
            except InputRefused as reason:
                found.reasons.append(f"{node.target if node.op == 'call_module' else node.name}: {reason}")
                values[node] = math.inf
    return found


def _node(
    node: fx.Node,
    values: Mapping[fx.Node, float],
    modules: Mapping[str, nn.Module],
    shapes: Shapes,
    found: Certificate,
) -> float:
    inputs = [values[n] for n in node.all_input_nodes]
    if not any(inputs):
        return 0.0
    if node.op == "call_module":
        name = str(node.target)
        if len(inputs) != 1:
            raise InputRefused(f"{type(modules[name]).__name__} takes several signals")
        if name not in found.constants:
            found.constants[name] = max(layer_constant(modules[name], shape) for shape in shapes.get(name, ((),)))
        return found.constants[name] * inputs[0]
    if node.target in SUMS:
        return sum(values.get(a, 0.0) for a in node.args if isinstance(a, fx.Node))
    if node.target in PRODUCTS or node.target is operator.truediv:
        return _product(node, values)
    if node.target in (torch.cat, torch.stack):
        return math.sqrt(sum(value**2 for value in inputs))
    if node.op == "call_function" and node.target in FUNCTIONS and len(inputs) == 1:
        return FUNCTIONS[node.target] * inputs[0]
    if node.op == "call_method" and len(inputs) == 1:
        if node.target in METHODS:
            return inputs[0]
        if node.target in ("sigmoid",):
            return 0.25 * inputs[0]
    raise InputRefused(f"no Lipschitz constant is known for {getattr(node.target, '__name__', node.target)}")


def _product(node: fx.Node, values: Mapping[fx.Node, float]) -> float:
    signals = [a for a in node.args if isinstance(a, fx.Node) and values[a]]
    numbers = [a for a in node.args if isinstance(a, int | float)]
    if len(signals) == 1 and len(numbers) == 1 and node.args[0] is signals[0]:
        factor = abs(numbers[0])
        return values[signals[0]] * (1 / factor if node.target is operator.truediv else factor)
    if len(signals) == 1 and len(numbers) == 1 and node.target in PRODUCTS:
        return values[signals[0]] * abs(numbers[0])
    raise InputRefused("a product of two signals has no Lipschitz constant")
