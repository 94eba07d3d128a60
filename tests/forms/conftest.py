"""Sites of random layers with the moments of random data."""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from netspectra.forms import Member
from netspectra.verbs.compress.calibrate import rows
from netspectra.verbs.compress.sites import matrix


def member(name: str, module: nn.Module, x: torch.Tensor, seed: int = 0, *, centre: bool = True) -> Member:
    """What a calibration on x would know, with a random G."""
    generator = torch.Generator().manual_seed(seed)
    W = matrix(module.double())
    X = torch.cat(list(rows(module, x.double())), -2)
    mean = X.mean(-2) if centre and module.bias is not None else None
    centred = X - X.mean(-2, keepdim=True) if mean is not None else X
    A = centred.mT @ centred / X.shape[-2]
    g = torch.randn(4 * len(W), len(W), generator=generator, dtype=torch.float64)
    return Member(name, module, W, A, g.mT @ g / len(g), mean, positions=X.shape[-2] / x.shape[0])
