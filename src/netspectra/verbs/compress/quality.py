"""How far a changed model is from the original on data that was not calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.live.batches import call, main_output, samples_in
from netspectra.live.spill import Spill
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.objective import Objective

__all__ = ["HeldOut", "is_causal", "perplexity"]

LARGE = 1 << 22  # numbers of a batch's signal that need not stay in memory


@dataclass(eq=False)
class HeldOut:
    """Held-out batches and what the original model makes of them.

    Attributes:
        batches: what models are called with.
        objective: what is compared.
        signals: of the original, as functions that load them: logits of a large vocabulary wait on disk.
        samples: how many.
    """

    batches: Sequence[Any]
    objective: Objective
    signals: list[Callable[[], Tensor]]
    samples: int

    @classmethod
    def of(cls, model: nn.Module, batches: Sequence[Any], objective: Objective) -> HeldOut:
        """Run the original."""
        with untouched(model), torch.no_grad():
            spill = Spill()
            signals = [_waiting(objective.of(model, batch), spill) for batch in batches]
        return cls(batches, objective, signals, sum(samples_in(batch) for batch in batches))

    def few(self, samples: int) -> HeldOut:
        """As many whole batches of it, evenly chosen, as hold about so many samples."""
        count = min(len(self.batches), max(1, round(samples * len(self.batches) / max(self.samples, 1))))
        some = [i * len(self.batches) // count for i in range(count)]
        batches = [self.batches[i] for i in some]
        return HeldOut(batches, self.objective, [self.signals[i] for i in some], sum(map(samples_in, batches)))

    def loss(self, model: nn.Module) -> float:
        """The objective's distance to the original, a sample."""
        return self.measure(model)["loss"]

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Loss a sample; with embeddings the mean cosine; with logits the share of equal first choices."""
        loss, alike, count = 0.0, 0.0, 0
        with untouched(model), torch.no_grad():
            for batch, signal in zip(self.batches, self.signals, strict=True):
                before, after = signal(), self.objective.of(model, batch)
                loss += self.objective.distance(after, before)
                if self.objective.kind == "divergence":
                    alike += float((after.argmax(-1) == before.argmax(-1)).sum())
                    count += before[..., 0].numel()
                elif before.dim() > 1:
                    alike += float(F.cosine_similarity(after.flatten(1), before.flatten(1), dim=-1).sum())
                    count += before.shape[0]
        found = {"loss": loss / self.samples}
        if count:
            found["agreement" if self.objective.kind == "divergence" else "cosine"] = alike / count
        return found


def _waiting(signal: Tensor, spill: Spill) -> Callable[[], Tensor]:
    return spill.put(signal) if signal.numel() > LARGE else lambda: signal


def is_causal(model: nn.Module, batches: Sequence[Any]) -> bool:
    """Whether it is a language model that predicts each token from those before it, as transformers names them."""
    named = any(part in type(model).__name__ for part in ("ForCausalLM", "LMHead"))
    return named and all(isinstance(batch, Mapping) and "input_ids" in batch for batch in batches)


def perplexity(model: nn.Module, batches: Sequence[Any]) -> float:
    """exp of the mean negative log-likelihood of each token after those before it; padding left out.

    Args:
        model: a causal language model, called with ``input_ids`` and perhaps ``attention_mask``.
        batches: mappings with these.
    """
    total, count = 0.0, 0
    with untouched(model), torch.no_grad():
        for batch in batches:
            logits = main_output(call(model, batch))[:, :-1].float()
            wanted = batch["input_ids"][:, 1:]
            mask = batch.get("attention_mask")
            keep = torch.ones_like(wanted, dtype=torch.bool) if mask is None else mask[:, 1:].bool()
            total += float(F.cross_entropy(logits[keep], wanted[keep], reduction="sum"))
            count += int(keep.sum())
    return float(torch.tensor(total / max(count, 1), dtype=torch.float64).exp())
