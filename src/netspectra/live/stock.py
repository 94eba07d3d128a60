"""Whether transformers' own config can say what a model has become."""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from netspectra.live.build import hushed, quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["is_transformers", "stock_config"]

# Config entries that are a width inside a block, which nothing but the shapes of its layers depends on.
WIDTHS = ("intermediate_size", "n_inner", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim",
          "dim_feedforward", "moe_intermediate_size", "shared_expert_intermediate_size")  # fmt: skip


def is_transformers(model: nn.Module) -> bool:
    """Whether it is a transformers model, without importing transformers."""
    found = sys.modules.get("transformers")
    return found is not None and isinstance(model, found.PreTrainedModel)


def stock_config(model: Any) -> PretrainedConfig | None:
    """A config from which transformers builds exactly this structure, or None: there is none.

    Tried, not reasoned: the model's own config, then the one with the widths that the layers now have; each is built
    without numbers and compared, module by module and shape by shape.
    """
    wanted = _structure(model)
    built = _built(model, model.config)
    if built == wanted:
        return model.config
    if built is None or built[0] != wanted[0]:
        return None
    changed = {
        (old, new)
        for name, shape in built[1].items()
        for old, new in zip(shape, wanted[1].get(name, ()), strict=False)
        if old != new
    }
    widths = dict(changed)
    if len(widths) < len(changed):
        return None
    config = copy.deepcopy(model.config)
    for part in (config, *_parts(config)):
        hidden = getattr(part, "hidden_size", 0)
        for word in WIDTHS:
            old = getattr(part, word, None)
            if word == "n_inner" and hasattr(part, "n_inner") and old is None:
                old = 4 * hidden
            if old in widths:
                setattr(part, word, widths[old])
    return config if _built(model, config) == wanted else None


Structure = tuple[dict[str, type], dict[str, tuple[int, ...]]]


def _structure(model: nn.Module) -> Structure:
    """The type of every module and the shape of every entry of the state dict, by name."""
    return (
        {name: type(module) for name, module in model.named_modules()},
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
    )


def _built(model: PreTrainedModel, config: PretrainedConfig) -> Structure | None:
    """The structure of a fresh model of this config; None where there can be none."""
    with hushed():
        from transformers.initialization import no_init_weights

    with quiet_transformers(), torch.random.fork_rng(devices=[]), torch.device("meta"), no_init_weights():
        try:
            fresh = type(model)(copy.deepcopy(config))
        except (ValueError, TypeError, RuntimeError, NotImplementedError):
            return None
    return _structure(fresh)


def _parts(config: Any) -> list[Any]:
    """The configs inside a config: text, vision, encoder, decoder, ..."""
    return [part for part in vars(config).values() if hasattr(part, "to_dict") and hasattr(part, "model_type")]
