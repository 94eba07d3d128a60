"""Readers of narrowed layers fitted to what the student itself makes, one after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from netspectra.forms.factors import is_conv1d
from netspectra.forms.resized import bias_of
from netspectra.linalg.pairs import Pairs, anchored
from netspectra.verbs.compress.sites import matrix
from netspectra.verbs.distill.channels import Chain
from netspectra.verbs.distill.paired import entering, leaving, paired

__all__ = ["refit_"]


def refit_(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Any],
    narrowed: Sequence[Chain],
    outputs: Mapping[str, Tensor],
    norms: Mapping[str, str],
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Fit readers anew, in the order in which they run, to what reaches them in the student as it is by then.

        min over W, b of  sum |y - W z - b|^2 + l |W - W_now|^2,    z the student's, y the teacher's, l by halves

    Without this the errors of one layer reach the next as inputs that it was not fitted to.

    Args:
        student: written to.
        teacher: what it follows.
        batches: what both are called with.
        narrowed: chains, in the order in which they run.
        outputs: by maker, which of the teacher's outputs the student kept.
        norms: by convolution, the batch normalization behind it: its statistics become the student's, its function
            stays, so that training, which normalizes by the batch, starts from the same function.
        progress: told the share done.
    """
    waves = _waves(narrowed, norms)
    for done, wave in enumerate(waves):

        def wanted(name: str, module: nn.Module, x: Tensor, y: Tensor, batch: Any) -> Tensor:
            made = leaving(name, module, x, y, batch)
            return made[:, outputs[name]] if name in outputs else made

        names = [chain.reader for chain in wave]
        for name, halves in paired(teacher, student, batches, names, entering, wanted).items():
            reader = student.get_submodule(name)
            _fit_(reader, halves)
            if name in norms:
                _follow_(student.get_submodule(norms[name]), reader, halves[0] + halves[1])
        progress((done + 1) / len(waves))


def _waves(narrowed: Sequence[Chain], norms: Mapping[str, str]) -> list[list[Chain]]:
    """Chains that read what another of them makes, or feed a norm, in runs none of which reads what its own make.

    Others see their units as the teacher makes them, or nearly so behind a residual sum: `narrow_` has fitted those,
    and fitting them along the student's way changed nothing (MiniLM, a quarter of the neurons: cosine .880 both ways).
    """
    readers = {chain.reader for chain in narrowed}
    found: list[list[Chain]] = []
    for chain in narrowed:
        if chain.reader not in norms and not readers & set(chain.makers):
            continue
        if not found or any(one.reader in chain.makers for one in found[-1]):
            found.append([])
        found[-1].append(chain)
    return found


def _fit_(reader: nn.Module, halves: tuple[Pairs, Pairs]) -> None:
    weight, bias = cast(Tensor, reader.weight), bias_of(reader)
    W = anchored(halves, matrix(reader).cpu(), centred=bias is not None)
    z, y = (halves[0] + halves[1]).means()
    with torch.no_grad():
        weight.copy_(W.mT if is_conv1d(reader) else W.reshape(weight.shape))
        if bias is not None:
            bias.copy_(y - W @ z)


def _follow_(norm: Any, reader: nn.Module, seen: Pairs) -> None:
    """Give a batch normalization the statistics of what it reads now; gain and bias keep its function."""
    if norm.running_mean is None or norm.weight is None:
        return
    W, bias = matrix(reader).cpu(), bias_of(reader)
    z, _ = seen.means()
    mean = W @ z + (0 if bias is None else bias.detach().double().cpu())
    var = ((W @ seen.moments(seen.means())[0]) * W).sum(1)
    with torch.no_grad():
        old = (norm.running_var.double().cpu() + norm.eps).sqrt()
        gain = norm.weight.double().cpu() / old
        norm.bias.copy_(norm.bias.double().cpu() + gain * (mean - norm.running_mean.double().cpu()))
        norm.weight.copy_(gain * (var + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(var)
