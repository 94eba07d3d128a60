"""What of a model's output must be kept, as a label-free loss whose curvature is measured by drawing from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.batches import call, main_output
from netspectra.live.tokens import tokens_of

__all__ = ["Objective", "as_objective", "masked", "pooled", "token_mask"]

Kind = Literal["squared", "divergence"]
SPAN = ("start_logits", "end_logits")  # over the places of a text, as transformers' question answering has them
NO_CHOICE = ("regression", "multi_label_classification")  # values of ``problem_type`` that no softmax goes with
ROWS = 128  # of logits in float64 at once: vocabularies are long


@dataclass(frozen=True)
class Objective:
    """The signal of a model that compression has to keep, and how far two signals are apart.

    Attributes:
        name: ``logits``, ``embedding``, ``output`` or ``custom``.
        signal: (model output, batch) -> tensor whose first axis counts samples.
        kind: ``squared``: sum of squared differences a sample; ``divergence``: KL(softmax original || softmax new),
            summed over a sample's positions.
    """

    name: str
    signal: Callable[[Any, Any], Tensor]
    kind: Kind = "squared"

    def of(self, model: nn.Module, batch: Any) -> Tensor:
        """Run the model and take its signal."""
        return self.signal(call(model, batch), batch)

    def draw(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """A scalar whose squared gradients are, in expectation, the curvature of the loss at the original.

        Squared: s . v with v = +-1, as E[(J^T v)(J^T v)^T] = J^T J, the loss's second-order term itself. Divergence:
        log p(y) with y drawn from the model's own prediction, whose squared gradients are the Fisher matrix; the
        divergence is half of that form, so it is divided by sqrt 2.
        """
        if self.kind == "squared":
            signs = torch.randint(0, 2, signal.shape, generator=generator) * 2 - 1
            return (signal * signs.to(signal)).sum()
        flat = signal.reshape(-1, signal.shape[-1]).float()
        uniform = torch.rand(len(flat), 1, generator=generator, dtype=torch.float64).to(flat.device)
        with torch.no_grad():
            drawn = torch.cat([
                (rows.double().softmax(-1).cumsum(-1) < at).sum(-1).clamp_max(flat.shape[-1] - 1)
                for rows, at in zip(flat.split(ROWS), uniform.split(ROWS), strict=True)
            ])  # fmt: skip
        return -F.cross_entropy(flat, drawn, reduction="sum") / 2**0.5

    def distance(self, new: Tensor, original: Tensor) -> float:
        """The loss itself, summed over the batch's samples."""
        new, original = new.detach(), original.detach()
        if self.kind == "squared":
            return float((new.float() - original.float()).square().sum(dtype=torch.float64))
        found = 0.0
        for one, other in zip(new.split(ROWS), original.split(ROWS), strict=True):
            p, q = other.float().log_softmax(-1), one.float().log_softmax(-1)
            found += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        return found

    def difference(self, new: Tensor, original: Tensor) -> Tensor:
        """The loss to train by: squared differences relative to the original's squares, or the mean divergence."""
        if self.kind == "squared":
            return (new - original).square().sum() / original.square().sum().clamp_min(1e-30)
        p, q = original.float().log_softmax(-1), new.float().log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()


def token_mask(name: str, shape: Sequence[int], batch: Any) -> Tensor | None:
    """The padding mask that fits a layer's tokens, boolean; a decoder's own one first; None where there is none."""
    names = ("attention_mask", "decoder_attention_mask")
    for key in reversed(names) if "decoder" in name else names:
        mask = batch.get(key) if isinstance(batch, Mapping) else None
        if isinstance(mask, Tensor) and tuple(mask.shape) == tuple(shape):
            return mask.bool()
    return None


def masked(hidden: Tensor, batch: Any) -> Tensor:
    """The positions that are no padding, as rows (tokens, d); all of them where the batch has no mask that fits."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and mask.dim() == 2 and hidden.dim() == 3 and mask.shape == hidden.shape[:2]:
        return hidden[mask.to(device=hidden.device, dtype=torch.bool)]
    return hidden.reshape(-1, hidden.shape[-1])


def pooled(hidden: Tensor, batch: Any) -> Tensor:
    """Mean over the tokens that are no padding, normalized: a sentence embedding; over all where no mask fits.

    >>> import torch
    >>> pooled(torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), {"attention_mask": torch.tensor([[1, 0]])}).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    weight = torch.ones(hidden.shape[:2])
    if isinstance(mask, Tensor) and mask.shape == hidden.shape[:2]:
        weight = mask
    weight = weight.to(hidden)[..., None]
    return F.normalize((hidden * weight).sum(1) / weight.sum(1).clamp_min(1), dim=-1)


def as_objective(wanted: str | Callable[[Any, Any], Tensor] | None, model: nn.Module, batch: Any) -> Objective:
    """The objective a user names, or the one that the model's own output suggests.

    ``logits`` where the output has logits of several classes, of the begin and end of an answer, or is, token by token
    or for the next one, a number for every word of the embedding that reads the batch: divergence; ``embedding`` where
    it has a ``last_hidden_state``: the pooled and normalized sentence embedding; else ``output``: the main tensor
    itself, as with one logit, whose softmax is always 1, or logits that a config calls a regression or several labels.
    A callable (output, batch) -> tensor is taken as it is, with squared differences.

    Raises:
        InputRefused: an unknown name; logits of a single class.
    """
    if callable(wanted):
        return Objective("custom", wanted)
    if wanted is None:
        wanted = _suggested(model, batch)
    if wanted == "logits":
        return Objective("logits", lambda out, batch: _logits(out, batch), "divergence")
    if wanted == "embedding":
        return Objective("embedding", lambda out, batch: pooled(main_output(out), batch))
    if wanted == "hidden":
        return Objective("hidden", lambda out, batch: masked(main_output(out), batch))
    if wanted == "output":
        return Objective("output", lambda out, batch: main_output(out))
    raise InputRefused(f"objective {wanted!r}: there are logits, embedding, hidden, output, or a function")


def _suggested(model: nn.Module, batch: Any) -> str:
    with torch.no_grad():
        output = call(model, batch)
    has = output if isinstance(output, Mapping) else {}
    if isinstance(logits := has.get("logits"), Tensor):
        kind = getattr(getattr(model, "config", None), "problem_type", None)
        chosen = logits.dim() in (2, 3) and logits.shape[-1] > 1 and kind not in NO_CHOICE
        return "logits" if chosen else "output"
    if all(isinstance(has.get(name), Tensor) for name in SPAN):
        return "logits"
    if isinstance(has.get("last_hidden_state"), Tensor) and has["last_hidden_state"].dim() == 3:
        return "embedding"
    words, main = tokens_of(model, batch), main_output(output)
    if words is None:
        return "output"
    count, *rest = words.of(batch).shape
    predicted = [(count, *rest, words.size), (count, 1, words.size), (count, words.size)]  # of all tokens, or the next
    return "logits" if tuple(main.shape) in predicted else "output"


def _logits(output: Any, batch: Any) -> Tensor:
    if isinstance(output, Mapping) and all(isinstance(output.get(name), Tensor) for name in SPAN):
        return torch.cat([output[name] for name in SPAN])
    logits = main_output(output)
    if logits.shape[-1] < 2:
        raise InputRefused("logits of one class: its softmax is always 1; keep the output itself (objective output)")
    return masked(logits, batch) if logits.dim() == 3 else logits
