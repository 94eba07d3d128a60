"""Checkpoints with a real architecture's shapes, in bfloat16, whose singular values are known to the last digit.

Every matrix is a Kronecker product W = A (x) B of a 16 x 16 matrix of signed powers of two and a random B in bfloat16:
a product with a power of two is exact, so nothing is lost in storage, and the singular values of W are all products of
those of A and B, which are small enough for dense float64 LAPACK. W itself is dense and written a few rows at a time.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from netspectra.checkpoint import write_shards
from netspectra.weight import InMemory, TensorRef

SIDE = 16


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    name: str
    hidden: int
    inner: int
    keys: int
    layers: int
    vocabulary: int = 128_256

    def layer(self, number: int) -> Iterator[tuple[str, tuple[int, int]]]:
        at, d = f"model.layers.{number}", self.hidden
        yield f"{at}.self_attn.q_proj.weight", (d, d)
        yield f"{at}.self_attn.k_proj.weight", (self.keys, d)
        yield f"{at}.self_attn.v_proj.weight", (self.keys, d)
        yield f"{at}.self_attn.o_proj.weight", (d, d)
        yield f"{at}.mlp.gate_proj.weight", (self.inner, d)
        yield f"{at}.mlp.up_proj.weight", (self.inner, d)
        yield f"{at}.mlp.down_proj.weight", (d, self.inner)

    def weights(self, depth: int | None = None) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every matrix's name and shape; of fewer layers where ``depth`` says so."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for number in range(self.layers if depth is None else depth):
            yield from self.layer(number)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def config(self, depth: int) -> dict[str, object]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": depth,
            "num_attention_heads": self.hidden // 128 or 1,
            "num_key_value_heads": self.keys // 128 or 1,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
        }


LLAMA_3_8B = Shape("Llama 3 8B", 4096, 14336, 1024, 32)
LLAMA_3_70B = Shape("Llama 3 70B", 8192, 28672, 1024, 80)
LLAMA_3_405B = Shape("Llama 3.1 405B", 16384, 53248, 1024, 126)
TOY = Shape("toy", 256, 512, 128, 4, vocabulary=2048)


@dataclass(frozen=True, eq=False)
class Planted:
    """W = A (x) B as a loader that makes the wanted rows."""

    name: str
    shape: tuple[int, int]
    tuned: bool = False

    def factors(self) -> tuple[Tensor, Tensor]:
        """A (16, 16) and B in bfloat16; with ``tuned``, B as fine-tuning left it: moved by a few percent."""
        m, n = (size // SIDE for size in self.shape)
        g = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))
        powers = torch.randint(0, 4, (SIDE, SIDE), generator=g)
        signs = torch.randint(0, 2, (SIDE, SIDE), generator=g) * 2 - 1
        A = (signs * 2.0**-powers).to(torch.bfloat16)
        decay = torch.arange(1, n + 1) ** -0.4
        B = (torch.randn(m, n, generator=g) * decay / (n * SIDE) ** 0.5).to(torch.bfloat16)
        if self.tuned:
            B = (B.float() * (1 + 0.03 * torch.randn(m, n, generator=g))).to(torch.bfloat16)
        return A, B

    def __call__(self, index: tuple[slice | int, ...] = ()) -> Tensor:
        A, B = self.factors()
        rows = torch.arange(self.shape[0])[index[0]] if index else torch.arange(self.shape[0])
        a, b = rows // len(B), rows % len(B)
        return (A[a][:, :, None] * B[b][:, None, :]).reshape(len(rows), self.shape[1])


def spectrum(A: Tensor, B: Tensor) -> np.ndarray:
    """All products of the singular values of two matrices, descending."""
    a, b = (np.linalg.svd(matrix.double().numpy(), compute_uv=False) for matrix in (A, B))
    return np.sort(np.outer(a, b).ravel())[::-1]


def expected(name: str, shape: tuple[int, int]) -> np.ndarray:
    """The planted singular values of one weight."""
    return spectrum(*Planted(name, shape).factors())


def moved(name: str, shape: tuple[int, int]) -> np.ndarray:
    """Those of what fine-tuning added: A (x) (B' - B)."""
    A, before = Planted(name, shape).factors()
    _, after = Planted(name, shape, tuned=True).factors()
    return spectrum(A, after.double() - before.double())


def write(folder: Path, shape: Shape, depth: int, *, tuned: bool = False, embeddings: bool = True) -> int:
    """Write the checkpoint, sharded; give its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    refs = []
    for name, size in shape.weights(depth):
        if embeddings or ".layers." in name:
            refs.append(TensorRef(name, size, "bfloat16", Planted(name, size, tuned)))
    ones = torch.ones(shape.hidden, dtype=torch.bfloat16)
    for number in range(depth):
        for kind in ("input_layernorm", "post_attention_layernorm"):
            name = f"model.layers.{number}.{kind}.weight"
            refs.append(TensorRef(name, (shape.hidden,), "bfloat16", InMemory(ones)))
    refs.append(TensorRef("model.norm.weight", (shape.hidden,), "bfloat16", InMemory(ones)))
    write_shards(folder, refs)
    (folder / "config.json").write_text(json.dumps(shape.config(depth)))
    return sum(ref.nbytes for ref in refs)
