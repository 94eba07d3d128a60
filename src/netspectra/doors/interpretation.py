"""What directions mean in tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netspectra.verbs.interpret import Interpretation, InterpretOptions
    from netspectra.verbs.interpret.interpret import Effect
    from netspectra.weight import Source

__all__ = ["interpret"]


def interpret(
    origin: Any,
    *,
    data: Iterable[Any] | None = None,
    tokens: Any = None,
    options: InterpretOptions | None = None,
    progress: Callable[[str, float], None] | None = None,
    **wanted: Any,
) -> Interpretation:
    """Read a transformer's weights: what each head and MLP reads and writes, as token lists on both sides.

        OV_h = O_h V_h,   QK_h = Q_h^T K_h,   W_in,   W_out;    sigma_i u_i v_i^T  ->  tokens near v_i, tokens near u_i

    The circuits of a head are decomposed as thin factors; no d x d matrix is formed. A list is called coherent only
    where its tokens are more alike and stand out further than those of random directions, which is what rotated weights
    give, and sharp where they stand out; each with its false discovery rate over all directions. A direction is called
    reliable (separable from its neighbours) where rounding of the stored weights is not expected to turn it by 30
    degrees.

    Args:
        origin: a checkpoint's path (safetensors, GGUF, ...), or a live module.
        data: texts, or batches the model is called with: the effect of removing the most certain directions is
            measured (KL divergence where there are logits).
        tokens: a tokenizer, or the text of every token id; by default the checkpoint's own tokenizer, where
            transformers is installed.
        options: `netspectra.verbs.interpret.InterpretOptions`, where all can be said.
        progress: called with what is done and its share, 0 ... 1.
        wanted: fields of the options by name: ``top=16``, ``layers=(0, 1)``, ``rate=0.01``, ...

    Raises:
        InputRefused: no token embedding, no layers whose names are known, options out of range.

    Cost: an SVD of d x d_h factors a head; (directions + null / 2) d V multiplications to read them.

    Reference: Elhage et al. 2021 (circuits); Millidge & Black 2022 (singular vectors as tokens); Benjamini & Hochberg
    1995.

    >>> import torch, netspectra as ns
    >>> draw = torch.Generator().manual_seed(0)
    >>> weights = {f"layers.0.{name}.weight": torch.randn(16, 16, generator=draw) for name in ("fc1", "fc2")}
    >>> weights["embed_tokens.weight"] = torch.randn(100, 16, generator=draw)
    >>> found = ns.interpret(weights, null=1000)
    >>> len(found), len(found.coherent)
    (16, 0)
    """
    from dataclasses import replace

    from netspectra.live.vocabulary import vocabulary
    from netspectra.sources import open as open_source
    from netspectra.verbs.interpret import InterpretOptions, interpret

    source = _configured(open_source(origin), origin)
    chosen = replace(options or InterpretOptions(), **wanted)
    tell = progress or (lambda what, share: None)
    words, why = vocabulary(source, tokens)
    effect = None if data is None else _effect(origin, source, data, tokens, tell)
    return interpret(source, chosen, words=words, effect=effect, notes=(why,) if why else (), progress=tell)


def _configured(source: Source, origin: Any) -> Source:
    """A live transformers model says how many heads it has."""
    from dataclasses import replace

    config: Any = getattr(origin, "config", None)
    return replace(source, config=config.to_dict()) if hasattr(config, "to_dict") else source


def _effect(origin: Any, source: Source, data: Any, tokens: Any, progress: Callable[[str, float], None]) -> Effect:
    """What measures removals: on the live model, built where a path was given."""
    import torch

    from netspectra.live.build import build
    from netspectra.live.samples import text_batches, tokenizer
    from netspectra.sources import open as open_source
    from netspectra.verbs.interpret.effect import measuring

    model = origin if isinstance(origin, torch.nn.Module) else build(source)
    batches = list(data)
    if batches and all(isinstance(one, str) for one in batches):
        words = tokens if hasattr(tokens, "convert_ids_to_tokens") else tokenizer(source)
        batches = text_batches(batches, words, model, size=8, longest=128)
    return measuring(model, open_source(model), batches, progress)
