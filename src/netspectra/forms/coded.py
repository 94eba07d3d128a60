"""Modules whose numbers are codes of a few bits with scales, and perhaps a thin correction: what `rounded` places."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.forms import Spec
from netspectra.linalg.packing import pack, unpack
from netspectra.linalg.rounding import Coded

__all__ = ["CodedConvolution", "CodedEmbedding", "CodedLinear", "CodedModule", "stock"]

RUN = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class CodedModule(nn.Module):
    """A matrix as packed codes, scales and zero points, and an optional correction ``left right``.

    ``weight`` gives the numbers, decoded at every call: what a runtime with kernels of its own makes fast.
    """

    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None
    left: Tensor | None
    right: Tensor | None
    bias: nn.Parameter | None

    def __init__(self, shape: tuple[int, ...], spec: Spec, bias: bool, dtype: torch.dtype, device: Any) -> None:
        """Uninitialised; ``shape`` and ``dtype`` are the stored weight's; of the dtype the spec knows better."""
        super().__init__()
        dtype = getattr(torch, spec["weight"]) if "weight" in spec else dtype
        rows, columns = shape[0], int(np.prod(shape[1:]))
        self.shape, self.dtype, self.columns = tuple(shape), dtype, columns
        self.bits, self.rank = int(spec["bits"]), int(spec.get("rank", 0))
        if self.bits == 16:
            half = getattr(torch, spec["dtype"])
            self.register_buffer("codes", torch.empty(rows, columns, dtype=half, device=device))
            self.register_buffer("scale", None)
            self.register_buffer("zero", None)
        else:
            groups = columns // int(spec["group"])
            width = -(-columns * self.bits // 8)
            self.register_buffer("codes", torch.empty(rows, width, dtype=torch.uint8, device=device))
            scale = torch.empty(rows, groups, dtype=getattr(torch, spec["scale"]), device=device)
            self.register_buffer("scale", scale)
            zero = torch.empty(rows, -(-groups * self.bits // 8), dtype=torch.uint8, device=device)
            self.register_buffer("zero", None if spec["symmetric"] else zero)
        for name, size in (("left", (rows, self.rank)), ("right", (self.rank, columns))):
            thin = torch.empty(size, dtype=torch.float16, device=device) if self.rank else None
            self.register_buffer(name, thin)
        numbers = nn.Parameter(torch.empty(shape[0], dtype=dtype, device=device)) if bias else None
        self.register_parameter("bias", numbers)

    def coded(self) -> Coded:
        """Unpacked codes, scales and zero points; not for 16 bits."""
        assert self.scale is not None
        rows, groups = self.scale.shape
        middle = torch.full((rows, groups), 2 ** (self.bits - 1), dtype=torch.uint8, device=self.scale.device)
        zero = middle if self.zero is None else unpack(self.zero, self.bits, groups)
        return Coded(unpack(self.codes, self.bits, self.columns), self.scale, zero, self.bits)

    def rounded(self, dtype: torch.dtype) -> Tensor:
        """The codes' numbers as a matrix (rows, columns), without the correction."""
        return self.codes.to(dtype) if self.bits == 16 else self.coded().numbers(dtype)

    @property
    def weight(self) -> Tensor:
        """All of it in the shape and dtype of the original weight."""
        found = self.rounded(self.dtype)
        if self.left is not None and self.right is not None:
            found = found + self.left.to(self.dtype) @ self.right.to(self.dtype)
        return found.reshape(self.shape)

    def fill_(self, coded: Coded | Tensor, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
        """Give it numbers."""
        with torch.no_grad():
            if isinstance(coded, Tensor):
                self.codes.copy_(coded)
            else:
                assert self.scale is not None
                self.codes.copy_(pack(coded.codes, self.bits))
                self.scale.copy_(coded.scale)
                if self.zero is not None:
                    self.zero.copy_(pack(coded.zero, self.bits))
            if self.left is not None and self.right is not None:
                self.left.copy_(left)
                self.right.copy_(right)
            if self.bias is not None and bias is not None:
                self.bias.copy_(bias)

    def extra_repr(self) -> str:
        """Bits, shape and rank."""
        return f"{list(self.shape)}, {self.bits} bits{f' + rank {self.rank}' if self.rank else ''}"


class CodedLinear(CodedModule):
    """x -> W x + left (right x) + b, W decoded from codes; stands for a Linear or a transformers Conv1D."""

    def __init__(
        self, shape: tuple[int, ...], spec: Spec, bias: bool, dtype: torch.dtype, device: Any, turned: bool
    ) -> None:
        """Uninitialised; ``turned``: the weight is asked for as (n, m), as Conv1D stores it."""
        super().__init__(shape, spec, bias, dtype, device)
        self.out_features, self.in_features = shape
        self.turned = turned
        self.nf, self.nx = self.out_features, self.in_features

    @property
    def weight(self) -> Tensor:
        """The numbers, as the original stores them."""
        found = super().weight
        return found.mT if self.turned else found

    def forward(self, x: Tensor) -> Tensor:
        """Decode and multiply."""
        y = F.linear(x, self.rounded(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        if self.left is not None and self.right is not None:
            y = y + F.linear(F.linear(x, self.right.to(x.dtype)), self.left.to(x.dtype))
        return y


class CodedConvolution(CodedModule):
    """A convolution whose kernel is decoded from codes."""

    def __init__(self, original: nn.Conv1d | nn.Conv2d | nn.Conv3d, spec: Spec) -> None:
        """Uninitialised."""
        weight = original.weight
        super().__init__(tuple(weight.shape), spec, original.bias is not None, weight.dtype, weight.device)
        self.run: Any = RUN[type(original)]
        self.stride, self.padding = original.stride, original.padding
        self.dilation, self.groups = original.dilation, original.groups
        self.in_channels, self.out_channels = original.in_channels, original.out_channels
        self.kernel_size = original.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """Decode and convolve."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.run(x, self.weight.to(x.dtype), bias, self.stride, self.padding, self.dilation, self.groups)


class CodedEmbedding(CodedModule):
    """A table whose rows are decoded when they are looked up."""

    def __init__(self, original: nn.Embedding, spec: Spec) -> None:
        """Uninitialised."""
        super().__init__(tuple(original.weight.shape), spec, False, original.weight.dtype, original.weight.device)
        self.num_embeddings, self.embedding_dim = self.shape
        self.padding_idx = original.padding_idx

    def forward(self, indices: Tensor) -> Tensor:
        """Rows of the table."""
        flat = indices.reshape(-1)
        if self.bits == 16:
            found = self.codes[flat].to(self.dtype)
        else:
            assert self.scale is not None
            coded = self._rows(flat)
            found = coded.numbers(self.dtype)
        if self.left is not None and self.right is not None:
            found = found + self.left[flat].to(self.dtype) @ self.right.to(self.dtype)
        return found.reshape(*indices.shape, self.embedding_dim)

    def _rows(self, flat: Tensor) -> Coded:
        assert self.scale is not None
        scale = self.scale[flat]
        middle = torch.full(scale.shape, 2 ** (self.bits - 1), dtype=torch.uint8, device=scale.device)
        zero = middle if self.zero is None else unpack(self.zero[flat], self.bits, scale.shape[1])
        return Coded(unpack(self.codes[flat], self.bits, self.columns), scale, zero, self.bits)


def stock(module: CodedModule, *, corrected: bool = True) -> nn.Module:
    """The layer of torch (or transformers' Conv1D) with the decoded numbers, in the original's dtype.

    Args:
        module: one of codes.
        corrected: with the correction multiplied into the weight; else what the codes alone say.
    """
    rounded = module.rounded(module.dtype).reshape(module.shape)
    like = {"device": rounded.device, "dtype": module.dtype}
    bias = module.bias is not None
    if isinstance(module, CodedEmbedding):
        made: nn.Module = nn.utils.skip_init(nn.Embedding, *module.shape, padding_idx=module.padding_idx, **like)
    elif isinstance(module, CodedConvolution):
        kind = next(kind for kind, run in RUN.items() if run is module.run)
        sizes = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
        made = nn.utils.skip_init(kind, *sizes, module.dilation, module.groups, bias, **like)
    elif isinstance(module, CodedLinear) and module.turned:
        from transformers.pytorch_utils import Conv1D

        made, rounded = Conv1D(module.nf, module.nx).to(**like), rounded.mT
    else:
        made = nn.utils.skip_init(nn.Linear, module.shape[1], module.shape[0], bias=bias, **like)
    numbers = module.weight if corrected else rounded
    with torch.no_grad():
        made.get_parameter("weight").copy_(numbers)
        if module.bias is not None:
            made.get_parameter("bias").copy_(module.bias)
    return made.train(module.training)
