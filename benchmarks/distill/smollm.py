"""SmolLM2 with a narrower residual stream, on real text, without any training."""

from __future__ import annotations

import time
from typing import Any

import netspectra as ns
from benchmarks.compress.smollm import smollm
from benchmarks.compress.texts import topics
from netspectra.live.build import build
from netspectra.live.samples import text_batches, tokenizer
from netspectra.verbs.compress.objective import as_objective
from netspectra.verbs.compress.quality import HeldOut, perplexity
from netspectra.verbs.distill.stream import narrower

STARTS: dict[str, dict[str, Any]] = {
    "random directions, refitted": {"select": "random"},
    "principal directions, cut": {"refit": False},
    "principal directions, refitted": {},
}


def stream(quick: bool) -> dict[str, Any]:
    """Perplexity of held-out text, and how often the likeliest token is the teacher's, with fewer dimensions."""
    source, texts = ns.open(smollm()), topics()
    words, model = tokenizer(source), build(source)
    count, held = (8, 4) if quick else (64, 24)

    def batches(some: list[str]) -> list[Any]:
        return text_batches(sorted(some, key=len), words, model, size=4, longest=96)

    data, tests = batches(texts[:count]), batches(texts[count : count + held])
    quality = HeldOut.of(model, tests, as_objective(None, model, data[0]))
    found: dict[str, Any] = {"width": model.config.hidden_size, "before": perplexity(model, tests), "rows": []}
    for width in (432,) if quick else (432, 288):
        for name, options in STARTS.items():
            began = time.process_time()
            student = narrower(model, data, width, **options)
            seconds = time.process_time() - began
            row = {"stream": width, "start": name, "perplexity": perplexity(student, tests)}
            found["rows"].append(row | quality.measure(student) | {"cpu_seconds": seconds})
            print("  ", found["rows"][-1], flush=True)
    return found
